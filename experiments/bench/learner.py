"""Suite `learner`: an SFT step and a policy step against the same model in transformers, rollouts
with a shared prompt against rollouts with their own, and the backends of attention.

What is compared takes turns, so that what else the machine does falls on both alike. A ratio is the
median over the pairs of turns.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import learner_cases, learner_plot
from experiments.bench.generate import limit_cores
from experiments.bench.learner_cases import Case
from experiments.bench.learner_torch import Result, TorchModel, TorchOptions
from experiments.bench.measuring import say
from experiments.bench.recipe import AttentionBench, BenchRecipe
from paravt_jax import packing
from paravt_jax.models import attention
from paravt_jax.models.attention import ranges, tiled
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator import parts, profiling
from paravt_jax.orchestrator.plan.accelerators import ACCELERATORS
from paravt_jax.packing import Sample, Tree
from paravt_jax.train import heap, metric_sums, sharding, state, step
from paravt_jax.train.optimizer import OptimizerOptions, make_optimizer

Step = Callable[[], Result]
_KERNELS = {'gpu': 'triton', 'cuda': 'triton', 'tpu': 'splash'}  # by JAX's platform
_MICROSECONDS = 1e6


def suite(recipe: BenchRecipe) -> dict[str, Any]:
  """Measures everything, and writes learner.json and learner.png into the run's folder."""
  with limit_cores(recipe.threads):
    report = _measure(recipe)
  folder = pathlib.Path(recipe.run.folder).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  report['plot'] = str(learner_plot.draw(report, folder / 'learner.png'))
  (folder / 'learner.json').write_text(json.dumps(report, indent=2) + '\n')
  say(f'figures are in {folder}/learner.json, their picture in {report["plot"]}')
  return report


def _measure(recipe: BenchRecipe) -> dict[str, Any]:
  bench = _Bench(recipe)
  knobs, seed = recipe.learner, recipe.seed
  device = jax.devices()[0]
  report: dict[str, Any] = {'device': _device_name(device), 'threads': recipe.threads}
  versus: dict[str, Any] = {}
  for name, case in (
    ('text', learner_cases.text_case(bench.config, knobs, seed)),
    ('packed', learner_cases.packed_case(bench.config, knobs, seed)),
  ):
    say(f'{name}: an SFT step of {case.tokens} tokens, ours and transformers take turns')
    theirs = bench.theirs().sft_step(case.documents)
    versus[name] = bench.versus(case, bench.sft_step(case), theirs)
  shared, alone = learner_cases.group_cases(bench.config, knobs, seed)
  say(
    f'policy: {knobs.group.rollouts} rollouts of one prompt, {shared.tokens} tokens if not shared'
  )
  ours = bench.policy_step(shared)
  theirs = bench.theirs().policy_step(alone.documents, bench.rl, knobs.temperature)
  versus['policy'] = bench.versus(shared, ours, theirs)
  ratios = {f'{name}_ratio': found['tokens_per_second_ratio'] for name, found in versus.items()}
  report['versus_torch'] = {**ratios, **versus}
  report['prefix_sharing'] = bench.sharing(shared, ours, alone)
  say('attention: every backend that this device has')
  report['attention'] = attention_times(knobs.attention, bench.config, device, recipe.seed)
  folder = bench.profile(learner_cases.text_case(bench.config, knobs, seed))
  return report | {'profile': folder}


def _device_name(device: Any) -> str:
  if device.platform != 'cpu':
    return device.device_kind
  name = platform.processor() or platform.machine()
  return f'cpu ({name}, {len(_cores())} cores)'


def _cores() -> set[int]:
  # macOS cannot say which cores a process may use
  if not hasattr(os, 'sched_getaffinity'):
    return set(range(os.cpu_count() or 1))
  return os.sched_getaffinity(0)


class _Bench:
  """One model in both programs, and what their steps share."""

  def __init__(self, recipe: BenchRecipe):
    knobs = recipe.learner
    self.recipe, self.knobs = recipe, knobs
    given, tiny = recipe.model.folder, parts.tiny_model(recipe.seed)
    folder = pathlib.Path(given) if given else None
    if folder is None:
      sizes = learner_cases.model_config(weights.read_config(tiny), knobs)
      folder = learner_cases.build_folder(recipe, sizes, tiny)
    self.config, self._params = weights.load_hf(folder)
    self.mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    heap.keep_pages(self.mesh)  # as a trainer does; it serves torch too
    self.optimizer_options = dataclasses.replace(
      OptimizerOptions.published(), learning_rate=knobs.learning_rate
    )
    frozen = ('visual',) if knobs.freeze_vision else ()
    axes = model.logical_axes(self.config)
    self._optimizer = make_optimizer(self.optimizer_options, axes, frozen)
    # no reference model and plain advantages: transformers has neither
    self.rl = dataclasses.replace(step.RLOptions.published(), beta=0.0, batch_norm='none')
    gpu = jax.devices()[0].platform in ('gpu', 'cuda')
    options = TorchOptions(
      knobs.dtype, recipe.threads, knobs.freeze_vision, self.optimizer_options, gpu
    )
    # anew for each comparison, so that both begin with the same weights
    self.theirs = functools.partial(TorchModel, folder, options)

  def sft_step(self, case: Case) -> Step:
    """Returns our SFT step on these rows, compiled."""
    made = step.make_sft_step(self.config, self._optimizer, self.mesh, self._options(1.0))
    return self._compiled(case, made, 'sft/loss')

  def policy_step(self, case: Case) -> Step:
    """Returns our policy step on these rows, compiled."""
    options = self._options(self.knobs.temperature)
    made = step.make_rl_step(self.config, self._optimizer, self.mesh, options, self.rl)
    return self._compiled(case, functools.partial(made.jitted), 'policy/loss', None)

  def _options(self, temperature: float) -> step.ModelOptions:
    knobs = self.knobs
    return step.ModelOptions(
      knobs.dtype, knobs.remat, 'auto', knobs.head_chunk, temperature, banned=()
    )

  def _compiled(self, case: Case, made: Any, loss: str, *rest: Any) -> Step:
    begun = state.from_params(self.config, self._optimizer, self.mesh, self._params)
    arrays, used = case.rows.micro_batches(min(self.knobs.rows, case.rows.rows))
    batch = step.put_batch(self.mesh, arrays, used)
    held = [begun]

    def run() -> Result:
      held[0], found = made(held[0], batch, *rest)
      metrics = metric_sums.reduce(found)  # waits for the device
      return Result(metrics.get(loss, 0.0), metrics['optim/grad_norm'])

    return run

  def versus(self, case: Case, ours: Step, theirs: Step) -> dict[str, Any]:
    """Returns speeds of both on the same tokens, and how far their first steps differ."""
    first, second = ours(), theirs()  # the same weights; both compile or warm up
    turns = take_turns({'ours': ours, 'torch': theirs}, self.knobs.repeats)
    found = {
      'tokens_per_second_ratio': median_ratio(turns, 'torch', 'ours'),
      'cpu_seconds_ratio': median_ratio(turns, 'torch', 'ours', cpu=True),
      **spread(turns),
      **{
        f'{name}_tokens_per_second': case.tokens / statistics.median(one.wall for one in values)
        for name, values in turns.items()
      },
      'grad_norm_gap': abs(first.grad_norm - second.grad_norm) / second.grad_norm,
      'loss_gap': abs(first.loss - second.loss),
      'tokens': case.tokens,
      'fill': case.rows.fill,
    }
    return found | self._speed(case, turns['ours'])

  def _speed(self, case: Case, turns: list['Turn']) -> dict[str, Any]:
    seconds = statistics.median(one.wall for one in turns)
    needed = case.needed_flops(self.config, self.knobs.freeze_vision)
    peak = peak_flops(jax.devices()[0], self.knobs.dtype)
    return {
      'flops': needed,
      'flops_per_second': needed / seconds,
      'mfu': needed / seconds / peak if peak else None,
    }

  def sharing(self, shared: Case, ours: Step, alone: Case) -> dict[str, Any]:
    """Returns what a shared prefix saves: the policy step with it against the one without."""
    other = self.policy_step(alone)
    ours()  # both compile or warm up
    other()
    turns = take_turns({'shared': ours, 'unshared': other}, self.knobs.repeats)
    flops = [one.needed_flops(self.config, self.knobs.freeze_vision) for one in (alone, shared)]
    held = [int((one.rows.segments_RT > 0).sum()) for one in (alone, shared)]
    return {
      'flops_ratio': flops[0] / flops[1],
      'time_ratio': median_ratio(turns, 'unshared', 'shared'),
      **spread(turns),
      'unshared_tokens': held[0],
      'shared_tokens': held[1],
    }

  def profile(self, case: Case) -> str | None:
    """Traces some SFT steps if the recipe asks for them. Returns the folder of the trace."""
    if not self.recipe.profile.steps:
      return None
    folder = pathlib.Path(self.recipe.run.folder).absolute() / 'profile'
    run = self.sft_step(case)
    with profiling.Profiler(self.recipe.profile, folder) as profiler:
      for _ in range(self.recipe.profile.steps + profiling.WARM_UP):
        with profiler.step():
          run()
    return str(folder)


# Time


@dataclasses.dataclass(frozen=True)
class Turn:
  """Seconds of one turn."""

  wall: float
  cpu: float  # of all threads of this process


def take_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Turn]]:
  """Runs each `repeats` times, one after the other and in turns of both orders."""
  turns: dict[str, list[Turn]] = {name: [] for name in runs}
  for turn in range(repeats):
    names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
    for name in names:
      wall, cpu = time.perf_counter(), time.process_time()
      runs[name]()
      turns[name].append(Turn(time.perf_counter() - wall, time.process_time() - cpu))
  return turns


def median_ratio(
  turns: Mapping[str, list[Turn]], top: str, bottom: str, cpu: bool = False
) -> float:
  """Returns the median over the turns of one's seconds divided by the other's."""
  seconds = (lambda one: one.cpu) if cpu else (lambda one: one.wall)
  pairs = zip(turns[top], turns[bottom], strict=True)
  # process_time may stand still for a very short turn
  return statistics.median(seconds(a) / max(seconds(b), 1 / _MICROSECONDS) for a, b in pairs)


def spread(turns: Mapping[str, list[Turn]]) -> dict[str, float]:
  """Returns median, least and most seconds of each."""
  found = {}
  for name, values in turns.items():
    walls = [one.wall for one in values]
    found[f'{name}_seconds'] = statistics.median(walls)
    found[f'{name}_least_seconds'], found[f'{name}_most_seconds'] = min(walls), max(walls)
  return found


def peak_flops(device: Any, dtype: str) -> float | None:
  """Returns a device's FLOP/s by its data sheet, None for one that is not in the plan's table."""
  if device.platform == 'cpu':
    return None
  kind = device.device_kind.lower().replace('-', ' ').split()
  # the longest name first: 'a100_40' is no A100 of 80 GB, which only the memory tells
  known = [one for name, one in ACCELERATORS.items() if name in kind or one.title.lower() in kind]
  return known[0].flops(dtype) if known else None


# Attention


def attention_times(
  knobs: AttentionBench, config: Config, device: Any, seed: int
) -> dict[str, Any]:
  """Returns seconds of a forward and backward pass by backend, and the pairs that are multiplied.

  `pairs_ratio` is pairs of tokens that the tiled form multiplies per pair that sees each other, on
  a row of episodes with a shared prompt. Times are those of a row of the same kind, so short that
  the plain form's weights fit.
  """
  pairs = _episode_rows(knobs.prompt, knobs.reply, knobs.replies, knobs.pair_row_tokens)
  tile = tiled.tile_size(knobs.pair_row_tokens)
  visible = ranges.count_visible_pairs(*pairs)
  multiplied = ranges.count_tile_pairs(*pairs, tile) * tile**2
  # the timed row: everything smaller by the same factor
  scale = knobs.row_tokens / knobs.pair_row_tokens
  short = _episode_rows(
    int(knobs.prompt * scale), int(knobs.reply * scale), knobs.replies, knobs.row_tokens
  )
  backends = {'plain': 'xla', 'chunked': 'chunked', 'tiled': 'tiled'}
  kernel = _KERNELS.get(device.platform)
  runs = {name: _attention_run(backend, config, short, seed) for name, backend in backends.items()}
  if kernel is not None:
    runs['kernel'] = _attention_run(kernel, config, short, seed)
  for run in runs.values():
    run()
  turns = take_turns(runs, knobs.repeats)
  seconds = {
    f'{name}_seconds': statistics.median(t.wall for t in one) for name, one in turns.items()
  }
  return {
    'pairs_ratio': multiplied / visible,
    'visible_pairs': visible,
    'multiplied_pairs': multiplied,
    'kernel_seconds': None,
    **seconds,
    'plain_to_tiled_ratio': median_ratio(turns, 'plain', 'tiled'),
    'tiled_to_kernel_ratio': median_ratio(turns, 'tiled', 'kernel') if kernel else None,
  }


def _episode_rows(prompt: int, reply: int, replies: int, length: int) -> tuple[Any, Any]:
  """Returns segments and branches of one row, filled with prompts and their replies."""
  tree = Tree(_blank(prompt), (_blank(reply),) * replies)
  count = length // (prompt + reply * replies)
  rows = packing.pack(
    (tree,) * count, row_tokens=length, row_images=0, image_patches=4, image_id=0,
    rows_multiple=1, extras={},
  )  # fmt: skip
  return rows.segments_RT, rows.branches_RT


def _blank(tokens: int) -> Sample:
  return Sample(np.ones(tokens, np.int32))


def _attention_run(backend: str, config: Config, rows: tuple[Any, Any], seed: int) -> Callable:
  """Returns a forward and backward pass of one backend, compiled at its first call."""
  text, length = config.text, rows[0].shape[1]
  dtype = jnp.float32 if backend not in _KERNELS.values() else jnp.bfloat16
  keys = jax.random.split(jax.random.key(seed), 4)
  counts = (text.heads, text.kv_heads, text.kv_heads, text.heads)
  q, k, v, direction = (
    jax.random.normal(key, (1, length, heads, text.head_dim), dtype)
    for key, heads in zip(keys, counts)
  )
  segments, branches = map(jnp.asarray, rows)

  @jax.jit
  def both(q, k, v):
    call = functools.partial(
      attention.attend, segments_BT=segments, branches_BT=branches, backend=backend
    )
    return jax.vjp(call, q, k, v)[1](direction)

  return lambda: jax.block_until_ready(both(q, k, v))

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
from collections.abc import Callable
from typing import Any

import jax

from experiments.bench import learner_attention, learner_cases, learner_plot
from experiments.bench.generate import limit_cores
from experiments.bench.learner_cases import Case
from experiments.bench.learner_torch import Result, TorchModel, TorchOptions
from experiments.bench.measuring import say
from experiments.bench.recipe import BenchRecipe
from experiments.bench.turns import Turn, median_ratio, spread, take_turns
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.orchestrator import parts, profiling
from paravt_jax.orchestrator.plan.accelerators import ACCELERATORS
from paravt_jax.train import heap, metric_sums, state, step
from paravt_jax.train.optimizer import OptimizerOptions, make_optimizer

Step = Callable[[], Result]


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
  heap.keep_pages()  # as a trainer does; it serves torch too
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
  report['attention'] = learner_attention.attention_times(
    knobs.attention, bench.config, device, recipe.seed
  )
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

  def _speed(self, case: Case, turns: list[Turn]) -> dict[str, Any]:
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


def peak_flops(device: Any, dtype: str) -> float | None:
  """Returns a device's FLOP/s by its data sheet, None for one that is not in the plan's table."""
  if device.platform == 'cpu':
    return None
  kind = device.device_kind.lower().replace('-', ' ').split()
  # the longest name first: 'a100_40' is no A100 of 80 GB, which only the memory tells
  known = [one for name, one in ACCELERATORS.items() if name in kind or one.title.lower() in kind]
  return known[0].flops(dtype) if known else None

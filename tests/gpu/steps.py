"""One step of SFT or RL at a scale's real sizes: memory against the compiler's, seconds, MFU."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from configs import base
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator.plan import accelerators, ahead, flops, shapes
from paravt_jax.orchestrator.plan import state as plan_state
from paravt_jax.orchestrator.plan.job import Job, job_of, model_of
from paravt_jax.packing import Sample, Tree, pack
from paravt_jax.row_layout import Shape
from paravt_jax.train import metric_sums, state, step
from tests.recipes import typed

MICRO_BATCHES = 2
REPEATS = 2
GIB = 2**30


def measure(kind: str, scale: str) -> dict[str, float]:
  """Returns the figures of a step over full rows of synthetic documents, with random weights."""
  recipe = typed((base.rl if kind == 'rl' else base.sft)(scale).unlock())
  config, _ = model_of(recipe, scale)
  device = jax.devices()[0]
  full = job_of(recipe, config, 'cuda' if device.platform == 'gpu' else device.platform)
  job = full.at(Shape(full.row_tokens, full.row_images, MICRO_BATCHES))
  mesh = sharding.make_mesh(1, 1, 1, [device])
  made, _ = ahead.program(recipe, job, mesh)
  arguments, load = _arguments(job, recipe.video.max_pixels, mesh)

  compiled = made.lower(*arguments).compile()
  sizes = compiled.memory_analysis()
  kept = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  foretold = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + kept
  policy, *rest = arguments
  policy, totals = compiled(policy, *rest)  # the first run also loads kernels
  jax.block_until_ready(policy)
  begin = time.perf_counter()
  for _ in range(REPEATS):
    policy, totals = compiled(policy, *rest)
  jax.block_until_ready(policy)
  seconds = (time.perf_counter() - begin) / REPEATS
  metrics = metric_sums.reduce(totals)

  needed = flops.needed(job, load).total
  used = device.memory_stats() or {}
  return {
    'seconds_per_step': seconds,
    'tokens_per_second': load.tokens / seconds,
    'needed_tflops_per_second': needed / seconds / 1e12,
    'mfu': needed / seconds / peak_flops(device, job.train.dtype),
    'compiled_gib': foretold / GIB,
    'peak_gib': used.get('peak_bytes_in_use', 0) / GIB,
    'peak_over_compiled': used.get('peak_bytes_in_use', 0) / foretold,
    'loss': float(metrics['sft/loss' if kind == 'sft' else 'policy/loss']),
    'gradient_norm': float(metrics['optim/grad_norm']),
  }


def peak_flops(device: Any, dtype: str) -> float:
  """Returns the peak FLOP/s of a device of the plan's table; of a CPU where it is not there."""
  table = accelerators.ACCELERATORS
  words = device.device_kind.lower().replace(' ', '_')
  names = sorted((name for name in table if name in words), key=len, reverse=True)
  return table[names[0] if names else 'cpu'].flops(dtype)


def _arguments(job: Job, max_pixels: int, mesh: Any) -> tuple[tuple[Any, ...], shapes.Load]:
  """Returns the step's arguments with values, and what they hold."""
  trees, documents = _trees(job, max_pixels)
  extras = step.SFT_EXTRAS if job.kind == 'sft' else step.RL_EXTRAS
  packed = pack(
    trees,
    row_tokens=job.row_tokens,
    row_images=job.row_images,
    image_patches=job.train.image_patches,
    image_id=job.model.image_id,
    rows_multiple=job.train.rows,
    extras=extras,
    row_large_images=getattr(job.train, 'row_large_images', 0),
    large_image_patches=getattr(job.train, 'large_image_patches', 0),
  )
  arrays, used = packed.micro_batches(job.train.rows, MICRO_BATCHES)
  optimizer = plan_state.optimizer_of(job)
  policy = state.from_params(job.model, optimizer, mesh, model.init(job.model, jax.random.key(0)))
  batch = step.put_batch(mesh, arrays, used)
  load = shapes.pack(job, documents)
  if job.kind == 'sft':
    return (policy, batch), load
  reference = state.reference(policy, optimizer, job.train.dtype) if job.reference else None
  return (policy, batch, reference), load


def _trees(job: Job, max_pixels: int) -> tuple[list[Tree], list[shapes.Document]]:
  """Returns a group of rollouts and then sub-agents for each row, until all rows are full."""
  rng, shape = np.random.default_rng(0), _shape(job)
  side, each = _image(max_pixels, job.model)
  trees, documents = [], []

  def add(frames: int, words: int, suffixes: tuple[int, ...]) -> None:
    made = _tree(rng, job.model, side, frames, words, suffixes)
    trees.append(made)
    prefix = words + frames * each
    documents.append(shapes.Document(prefix, suffixes, frames, sum(suffixes)))

  look = (shape.call_frames, shape.task + shape.summary, ())
  look_tokens = look[1] + look[0] * each
  group = (shape.suffix,) * 8 if job.kind == 'rl' else (shape.suffix,)
  for _ in range(job.train.rows * MICRO_BATCHES):
    tokens, images = job.row_tokens, job.row_images
    frames = min(shape.frames, images)
    add(frames, shape.prompt, group)
    tokens -= shape.prompt + frames * each + sum(group)
    images -= frames
    while tokens >= look_tokens and images >= look[0]:
      add(*look)
      tokens, images = tokens - look_tokens, images - look[0]
  return trees, documents


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Tokens of the synthetic documents."""

  prompt: int
  suffix: int
  frames: int
  call_frames: int
  task: int
  summary: int


def _shape(job: Job) -> _Shape:
  if job.row_tokens < 4096:
    return _Shape(prompt=30, suffix=20, frames=8, call_frames=4, task=20, summary=6)
  return _Shape(prompt=1000, suffix=900, frames=64, call_frames=16, task=264, summary=80)


def _image(max_pixels: int, config: Config) -> tuple[int, int]:
  """Returns the side of a square frame in pixels, and its tokens."""
  unit = config.vision.patch * config.vision.merge
  side = int(max_pixels**0.5) // unit * unit
  return side, (side // unit) ** 2


def _tree(
  rng: np.random.Generator,
  config: Config,
  side: int,
  frames: int,
  words: int,
  suffixes: tuple[int, ...],
) -> Tree:
  """Returns a prompt of frames and words, and its suffixes. All sampled tokens are trained."""
  last = min(config.text.vocab, config.image_id, config.video_id, config.vision_start_id)
  text = lambda count: rng.integers(1, max(last, 2), count).astype(np.int32)
  ids = np.concatenate([np.full(frames, config.image_id, np.int32), text(words)])
  images = tuple(rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(frames))

  def extras(count, trained):
    return {
      'mask': np.full(count, trained, np.float32),
      'advantage': np.full(count, rng.normal(), np.float32),
      'behavior': np.full(count, -np.log(config.text.vocab), np.float32),
      'token_class': np.zeros(count, np.int32),
      'current': np.full(count, trained, np.float32),
    }

  # a document without suffixes trains the end of its own text
  own = extras(len(ids), 0.0)
  if not suffixes:
    own['mask'][-max(words // 4, 1) :] = 1.0
  branches = tuple(Sample(text(count), (), extras(count, 1.0)) for count in suffixes)
  return Tree(Sample(ids, images, own), branches)

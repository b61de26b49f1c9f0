"""The backends of attention against each other, and the pairs of tokens that they multiply."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.learner_options import AttentionBench
from experiments.bench.turns import median_ratio, take_turns
from paravt_jax import packing
from paravt_jax.models import attention
from paravt_jax.models.attention import ranges, tiled
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.packing import Sample, Tree

_KERNELS = {'gpu': 'triton', 'cuda': 'triton', 'tpu': 'splash'}  # by JAX's platform


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

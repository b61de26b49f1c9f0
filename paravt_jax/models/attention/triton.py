"""Attention as Pallas kernels for NVIDIA GPUs: both ranges of keys in one pass, tiles in registers.

Each program of the grid owns one tile of one head. It visits the tiles of the other side that it
sees, as `tiled.py` does. The forward pass and the gradient of queries own tiles of queries; the
gradients of keys and values own tiles of keys, and visit the query heads of their key head too.
Lists of visible tiles and the ranges come as arrays of O(T) and O((T / tile)^2).

Triton compiles the kernels. `interpret` runs them on any platform, slowly, for tests.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from paravt_jax.models.attention import ranges
from paravt_jax.models.attention.plain import FAR
from paravt_jax.models.remat import mark_attention


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Sizes of the kernels' launches."""

  tile: int  # queries and keys of a tile
  warps: int  # of a program
  stages: int  # of Triton's software pipeline
  interpret: bool  # run on the host instead, for tests


PUBLISHED = Kernel(tile=64, warps=4, stages=2, interpret=False)


def attend_triton(
  q_BTHF: jax.Array,
  k_BTKF: jax.Array,
  v_BTKF: jax.Array,
  ranges_BT4: jax.Array,
  kernel: Kernel = PUBLISHED,
) -> jax.Array:
  """Computes attention of queries to their two ranges of keys on a GPU.

  There may be fewer queries than keys: those of a slice of the row.

  Returns [B, T, H, F] in q's dtype. A query that sees no key returns 0, and its gradient is 0.
  """
  length, width = q_BTHF.shape[1], q_BTHF.shape[3]
  # whole tiles, and a head width that Triton can multiply
  wide = max(16, pl.next_power_of_2(width)) - width
  more = lambda x: (0, -x.shape[1] % kernel.tile)
  pad = lambda x: jnp.pad(x, ((0, 0), more(x), (0, 0), (0, wide)))
  ranges_BT4 = jnp.pad(ranges_BT4, ((0, 0), more(ranges_BT4), (0, 0)))
  q_BTHF = q_BTHF * width**-0.5
  out_BTHF: Any = _attend(kernel, pad(q_BTHF), pad(k_BTKF), pad(v_BTKF), ranges_BT4)
  return out_BTHF[:, :length, :, :width]


def _following(seen):
  """Returns int32[B, tiles, tiles + 1]: the first visible tile from each one on, or their number."""
  count = seen.shape[2]
  index = jnp.where(seen, jnp.arange(count, dtype=jnp.int32), count)
  index = jnp.pad(index, ((0, 0), (0, 0), (0, 1)), constant_values=count)
  return jax.lax.cummin(index, axis=2, reverse=True)


def _visit(following_ref, body, carry):
  """Runs `body(tile, carry)` for each visible tile, in order."""
  count = following_ref.shape[0] - 1
  step = lambda state: (following_ref[state[0] + 1], body(state[0], state[1]))
  return jax.lax.while_loop(lambda state: state[0] < count, step, (following_ref[0], carry))[1]


def _mask(ranges_ref, queries, first_key, tile):
  """Returns bool[tile queries, tile keys]."""
  index = first_key + jnp.arange(tile, dtype=jnp.int32)[None, :]
  start1, end1, start2, end2 = (ranges_ref[i, queries][:, None] for i in range(4))
  return ((start1 <= index) & (index < end1)) | ((start2 <= index) & (index < end2))


# float32 inputs are multiplied as float32, not as TF32
_dot = functools.partial(plgpu.dot, allow_tf32=False)


def _forward_kernel(q_ref, k_ref, v_ref, ranges_ref, following_ref, out_ref, log_sum_ref, *, tile):
  queries = pl.ds(pl.program_id(0) * tile, tile)
  q = q_ref[...]

  def body(at, carry):
    out, most, total = carry
    keys = pl.ds(at * tile, tile)
    scores = _dot(q, k_ref[keys, :], trans_b=True)
    scores = jnp.where(_mask(ranges_ref, queries, at * tile, tile), scores, FAR)
    # rescale what was summed so far to the new maximum
    new = jnp.maximum(most, jnp.max(scores, axis=1))
    weights = jnp.exp(scores - new[:, None])
    decay = jnp.exp(most - new)
    add = _dot(weights.astype(v_ref.dtype), v_ref[keys, :])
    return out * decay[:, None] + add, new, total * decay + jnp.sum(weights, axis=1)

  zero = jnp.zeros(tile, jnp.float32)
  start = (jnp.zeros(q.shape, jnp.float32), zero + FAR, zero)
  out, most, total = _visit(following_ref, body, start)
  # a tile that sees nothing has sum 0
  total = jnp.where(total > 0, total, 1)
  out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
  log_sum_ref[...] = most + jnp.log(total)


def _scores_gradient(q, d_out, log_sum, dot, k, v, mask):
  """Returns the weights and the gradient of the scores of a pair of tiles, [queries, keys]."""
  scores = _dot(q, k, trans_b=True)
  weights = jnp.where(mask, jnp.exp(scores - log_sum[:, None]), 0)
  d_weights = _dot(d_out, v, trans_b=True)
  return weights.astype(q.dtype), (weights * (d_weights - dot[:, None])).astype(q.dtype)


def _queries_kernel(
  q_ref, d_out_ref, log_sum_ref, dot_ref, k_ref, v_ref, ranges_ref, following_ref, d_q_ref, *, tile
):
  queries = pl.ds(pl.program_id(0) * tile, tile)
  q, d_out, log_sum, dot = q_ref[...], d_out_ref[...], log_sum_ref[...], dot_ref[...]

  def body(at, d_q):
    keys = pl.ds(at * tile, tile)
    k = k_ref[keys, :]
    mask = _mask(ranges_ref, queries, at * tile, tile)
    _, d_scores = _scores_gradient(q, d_out, log_sum, dot, k, v_ref[keys, :], mask)
    return d_q + _dot(d_scores, k)

  d_q = _visit(following_ref, body, jnp.zeros(q.shape, jnp.float32))
  d_q_ref[...] = d_q.astype(d_q_ref.dtype)


def _keys_kernel(
  q_ref, d_out_ref, log_sum_ref, dot_ref, k_ref, v_ref, ranges_ref, following_ref, d_k_ref, d_v_ref,
  *, tile, groups,
):  # fmt: skip
  first = pl.program_id(0) * tile
  k, v = k_ref[...], v_ref[...]

  def body(at, carry):
    queries = pl.ds(at * tile, tile)
    mask = _mask(ranges_ref, queries, first, tile)

    def head(g, carry):
      d_k, d_v = carry
      q, d_out = q_ref[queries, g, :], d_out_ref[queries, g, :]
      weights, d_scores = _scores_gradient(
        q, d_out, log_sum_ref[g, queries], dot_ref[g, queries], k, v, mask
      )
      d_v = d_v + _dot(weights, d_out, trans_a=True)
      return d_k + _dot(d_scores, q, trans_a=True), d_v

    return jax.lax.fori_loop(0, groups, head, carry)

  zero = jnp.zeros(k.shape, jnp.float32)
  d_k, d_v = _visit(following_ref, body, (zero, zero))
  d_k_ref[...] = d_k.astype(d_k_ref.dtype)
  d_v_ref[...] = d_v.astype(d_v_ref.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  return _forward(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4)[0]


def _call(kernel, body, grid, inputs, outputs, name):
  """Launches a kernel; inputs are pairs of an array and its block, outputs of a shape and its."""
  return pl.pallas_call(
    functools.partial(body, tile=kernel.tile),
    grid=grid,
    in_specs=[spec for _, spec in inputs],
    out_specs=[spec for _, spec in outputs],
    out_shape=[shape for shape, _ in outputs],
    compiler_params=plgpu.CompilerParams(num_warps=kernel.warps, num_stages=kernel.stages),
    interpret=kernel.interpret,
    name=name,
  )(*(array for array, _ in inputs))


def _blocks(kernel, length, keys, width, groups):
  """Blocks of a program (tile, head, row) that owns a tile of queries."""
  tile, tiles = kernel.tile, keys // kernel.tile
  return {
    'q': pl.BlockSpec((None, tile, None, width), lambda i, h, b: (b, i, h, 0)),
    'sum': pl.BlockSpec((None, None, tile), lambda i, h, b: (b, h, i)),
    'k': pl.BlockSpec((None, keys, None, width), lambda i, h, b: (b, 0, h // groups, 0)),
    'ranges': pl.BlockSpec((None, 4, length), lambda i, h, b: (b, 0, 0)),
    'list': pl.BlockSpec((None, None, tiles + 1), lambda i, h, b: (b, i, 0)),
  }


def _forward(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  rows, length, heads, width = q_BTHF.shape
  keys, kv_heads = k_BTKF.shape[1:3]
  block = _blocks(kernel, length, keys, width, heads // kv_heads)
  following = _following(ranges.visible_tiles(ranges_BT4, kernel.tile, keys))
  out_BTHF, log_sum_BHT = _call(
    kernel,
    _forward_kernel,
    (length // kernel.tile, heads, rows),
    [
      (q_BTHF, block['q']),
      (k_BTKF, block['k']),
      (v_BTKF, block['k']),
      (jnp.swapaxes(ranges_BT4, 1, 2), block['ranges']),
      (following, block['list']),
    ],
    [
      (jax.ShapeDtypeStruct(q_BTHF.shape, q_BTHF.dtype), block['q']),
      (jax.ShapeDtypeStruct((rows, heads, length), jnp.float32), block['sum']),
    ],
    'attend_forward',
  )
  out_BTHF, log_sum_BHT = mark_attention(out_BTHF), mark_attention(log_sum_BHT)
  return out_BTHF, (q_BTHF, k_BTKF, v_BTKF, ranges_BT4, out_BTHF, log_sum_BHT)


def _backward(kernel, saved, d_out_BTHF):
  """Computes the gradients of q, k and v as in Dao et al. 2022, appendix B."""
  q_BTHF, k_BTKF, v_BTKF, ranges_BT4, out_BTHF, log_sum_BHT = saved
  rows, length, heads, width = q_BTHF.shape
  keys, kv_heads, tile = *k_BTKF.shape[1:3], kernel.tile
  groups = heads // kv_heads
  # sum_F(d_out * out), one number per query
  dot_BHT = jnp.einsum('BTHF,BTHF->BHT', d_out_BTHF, out_BTHF, preferred_element_type=jnp.float32)
  seen = ranges.visible_tiles(ranges_BT4, tile, keys)
  ranges_B4T = jnp.swapaxes(ranges_BT4, 1, 2)
  # programs that own a tile of queries
  block = _blocks(kernel, length, keys, width, groups)
  queries = [(q_BTHF, 'q'), (d_out_BTHF, 'q'), (log_sum_BHT, 'sum'), (dot_BHT, 'sum')]
  others = [(k_BTKF, 'k'), (v_BTKF, 'k'), (ranges_B4T, 'ranges'), (_following(seen), 'list')]
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  (d_q,) = _call(
    kernel,
    _queries_kernel,
    (length // tile, heads, rows),
    [(array, block[name]) for array, name in (*queries, *others)],
    [(shape(q_BTHF), block['q'])],
    'attend_backward_queries',
  )
  # programs that own a tile of keys see all queries of their group
  many = pl.BlockSpec((None, length, groups, width), lambda i, h, b: (b, 0, h, 0))
  sums = pl.BlockSpec((None, groups, length), lambda i, h, b: (b, h, 0))
  own = pl.BlockSpec((None, tile, None, width), lambda i, h, b: (b, i, h, 0))
  following = pl.BlockSpec((None, None, length // tile + 1), lambda i, h, b: (b, i, 0))
  d_k, d_v = _call(
    kernel,
    functools.partial(_keys_kernel, groups=groups),
    (keys // tile, kv_heads, rows),
    [
      (q_BTHF, many),
      (d_out_BTHF, many),
      (log_sum_BHT, sums),
      (dot_BHT, sums),
      (k_BTKF, own),
      (v_BTKF, own),
      (ranges_B4T, block['ranges']),
      (_following(jnp.swapaxes(seen, 1, 2)), following),
    ],
    [(shape(k_BTKF), own), (shape(v_BTKF), own)],
    'attend_backward_keys',
  )
  return d_q, d_k, d_v, None


_attend.defvjp(_forward, _backward)

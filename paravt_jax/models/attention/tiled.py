"""Attention that multiplies only pairs of tiles in which some query sees some key.

A row is cut into tiles of `tile` tokens. For each tile of queries a loop visits the tiles of keys
that it sees, and keeps one pair of tiles in memory. Rows have their own lists of tiles, so the loop
runs row by row, and rows of different lengths cost what they hold. Both passes are XLA loops, so
this form runs on every platform.

A pair of tiles has weights of shape [keys U, queries Q = G * tile]. With this layout no product of
the forward or backward pass transposes its last two axes, which is slow on a CPU.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from paravt_jax.models.attention import ranges
from paravt_jax.models.attention.plain import FAR
from paravt_jax.models.remat import mark_attention


def tile_size(length: int) -> int:
  """Returns the tokens of a tile for rows of this length, as measured on a CPU."""
  return 128 if length <= 2048 else 256 if length <= 8192 else 512


def attend_tiled(
  q_BTHF: jax.Array,
  k_BTKF: jax.Array,
  v_BTKF: jax.Array,
  ranges_BT4: jax.Array,
  tile: int | None = None,
) -> jax.Array:
  """Computes attention of queries to their two ranges of keys, over pairs of tiles.

  There may be fewer queries than keys: those of a slice of the row.

  Returns [B, T, H, F] in q's dtype. A query that sees no key returns garbage, and its gradient
  is 0.
  """
  rows, length, heads, width = q_BTHF.shape
  groups = heads // k_BTKF.shape[2]
  tile = tile or min(tile_size(k_BTKF.shape[1]), -(-length // 8) * 8)
  # whole tiles; queries of the padding see nothing, and no query sees its keys
  pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile)) + ((0, 0),) * (x.ndim - 2))
  tiles = lambda x: pad(x).reshape(rows, -1, tile, *x.shape[2:])
  # [B, tiles, t, K, G, F] -> [B, tiles, K, Q, F]
  q_tiles = tiles((q_BTHF * width**-0.5).reshape(rows, length, -1, groups, width))
  q_tiles = jnp.transpose(q_tiles, (0, 1, 3, 4, 2, 5))
  q_tiles = q_tiles.reshape(*q_tiles.shape[:3], groups * tile, width)
  # [B, tiles, t, K, F] -> [B, tiles, K, t, F]
  k_tiles, v_tiles = (jnp.swapaxes(tiles(x), 2, 3) for x in (k_BTKF, v_BTKF))
  out_tiles: Any = _attend(groups, q_tiles, k_tiles, v_tiles, pad(ranges_BT4))
  out_tiles = out_tiles.reshape(*out_tiles.shape[:3], groups, tile, width)
  return jnp.transpose(out_tiles, (0, 1, 4, 2, 3, 5)).reshape(rows, -1, heads, width)[:, :length]


class _Lists(NamedTuple):
  """What each tile of queries sees."""

  ranges_4Q: jax.Array  # int32[B, tiles, 4, Q]
  following: jax.Array  # int32[B, tiles, tiles + 1]: the first visible tile of keys from each on


def _lists(groups: int, k_tiles: jax.Array, ranges_BT4: jax.Array) -> _Lists:
  (rows, count), tile = k_tiles.shape[:2], k_tiles.shape[3]
  ranges_4t = jnp.swapaxes(ranges_BT4.reshape(rows, -1, tile, 4), 2, 3)
  seen = ranges.visible_tiles(ranges_BT4, tile, count * tile)
  # the number of tiles stands for "no further tile"
  index = jnp.where(seen, jnp.arange(count, dtype=jnp.int32), count)
  index = jnp.pad(index, ((0, 0), (0, 0), (0, 1)), constant_values=count)
  return _Lists(jnp.tile(ranges_4t, (1, 1, 1, groups)), jax.lax.cummin(index, axis=2, reverse=True))


def _mask(ranges_4Q: jax.Array, at: jax.Array, tile: int) -> jax.Array:
  """Returns bool[U, Q]: whether a query sees the keys of tile `at`."""
  index_U1 = at * tile + jnp.arange(tile, dtype=jnp.int32)[:, None]
  start1, end1, start2, end2 = ranges_4Q
  return ((start1 <= index_U1) & (index_U1 < end1)) | ((start2 <= index_U1) & (index_U1 < end2))


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _visit(following, body, carry):
  """Runs `body(tile of keys, carry)` for each visible tile of keys, in order."""
  count = following.shape[0] - 1
  step = lambda state: (_take(following, state[0] + 1), body(state[0], state[1]))
  return jax.lax.while_loop(lambda state: state[0] < count, step, (following[0], carry))[1]


def _take(tiles: jax.Array, at: jax.Array) -> jax.Array:
  """Returns one tile; the index is known to be in bounds, which indexing would check."""
  return jax.lax.dynamic_index_in_dim(tiles, at, 0, keepdims=False)


def _add_at(sums: jax.Array, at: jax.Array, more: jax.Array) -> jax.Array:
  """Adds to one tile, in place."""
  return jax.lax.dynamic_update_index_in_dim(sums, _take(sums, at) + more, at, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(groups, q_tiles, k_tiles, v_tiles, ranges_BT4):
  return _forward(groups, q_tiles, k_tiles, v_tiles, ranges_BT4)[0]


def _forward(groups, q_tiles, k_tiles, v_tiles, ranges_BT4):
  tile = k_tiles.shape[3]

  def one_row(row):
    q_row, k_row, v_row, lists = row
    flat_row = v_row.mT  # once for a row: [tiles, K, F, U]

    def one_tile(tile_row):
      q_KQF, ranges_4Q, following = tile_row
      return _forward_tile(q_KQF, ranges_4Q, following, k_row, flat_row, tile)

    return jax.lax.map(one_tile, (q_row, *lists))

  lists = _lists(groups, k_tiles, ranges_BT4)
  found = jax.lax.map(one_row, (q_tiles, k_tiles, v_tiles, lists))
  out_tiles, log_sum_tiles = map(mark_attention, found)
  return out_tiles, (q_tiles, k_tiles, v_tiles, ranges_BT4, out_tiles, log_sum_tiles)


def _forward_tile(q_KQF, ranges_4Q, following, k_row, flat_row, tile):
  """Returns the outputs [K, Q, F] and log-sums [K, Q] of one tile of queries.

  Keys are [tiles, K, U, F], values are [tiles, K, F, U].
  """
  q_KFQ = q_KQF.mT

  def body(at, carry):
    out_KFQ, most_KQ, sum_KQ = carry
    scores_KUQ = _product('KUF,KFQ->KUQ', _take(k_row, at), q_KFQ)
    scores_KUQ = jnp.where(_mask(ranges_4Q, at, tile), scores_KUQ, FAR)
    # rescale what was summed so far to the new maximum
    new_KQ = jnp.maximum(most_KQ, jnp.max(scores_KUQ, axis=1))
    decay_KQ = jnp.exp(most_KQ - new_KQ)
    weights_KUQ = jnp.exp(scores_KUQ - new_KQ[:, None])
    sum_KQ = sum_KQ * decay_KQ + jnp.sum(weights_KUQ, axis=1)
    add_KFQ = _product('KFU,KUQ->KFQ', _take(flat_row, at), weights_KUQ.astype(flat_row.dtype))
    return out_KFQ * decay_KQ[:, None] + add_KFQ, new_KQ, sum_KQ

  empty_KQ = jnp.zeros((q_KFQ.shape[0], q_KFQ.shape[2]), jnp.float32)
  start = (jnp.zeros(q_KFQ.shape, jnp.float32), empty_KQ + FAR, empty_KQ)
  out_KFQ, most_KQ, sum_KQ = _visit(following, body, start)
  # a tile that sees nothing has sum 0
  sum_KQ = jnp.where(sum_KQ > 0, sum_KQ, 1)
  return (out_KFQ / sum_KQ[:, None]).astype(q_KFQ.dtype).mT, most_KQ + jnp.log(sum_KQ)


def _backward(groups, saved, d_out_tiles):
  """Computes the gradients of q, k and v as in Dao et al. 2022, appendix B.

  The weights w are recomputed from the scores and their log-sum. The gradient of the scores is
  w * (d_w - sum_F(d_out * out)).
  """
  q_tiles, k_tiles, v_tiles, ranges_BT4, out_tiles, log_sum_tiles = saved
  tile = k_tiles.shape[3]
  # sum_F(d_out * out), one number per query
  dot_tiles = jnp.sum(d_out_tiles.astype(jnp.float32) * out_tiles.astype(jnp.float32), axis=4)

  def one_row(row):
    k_row, v_row, *queries = row
    flat_row = k_row.mT  # once for a row: [tiles, K, F, U]

    def step(carry, tile_row):
      d_q_KQF, carry = _backward_tile(tile_row, k_row, v_row, flat_row, tile, carry)
      return carry, d_q_KQF

    empty = jnp.zeros(k_row.shape, jnp.float32)
    (d_k, d_v), d_q = jax.lax.scan(step, (empty, empty), tuple(queries))
    return d_q, d_k.astype(k_row.dtype), d_v.astype(v_row.dtype)

  lists = _lists(groups, k_tiles, ranges_BT4)
  queries = (q_tiles, d_out_tiles, log_sum_tiles, dot_tiles, *lists)
  return (*jax.lax.map(one_row, (k_tiles, v_tiles, *queries)), None)


def _backward_tile(tile_row, k_row, v_row, flat_row, tile, carry):
  """Returns the gradient [K, Q, F] of one tile of queries, and the sums of those of keys and values.

  The sums (d_k, d_v) have the shape [tiles, K, U, F].
  """
  q_KQF, d_out_KQF, log_sum_KQ, dot_KQ, ranges_4Q, following = tile_row
  dtype = q_KQF.dtype
  q_KFQ, d_out_KFQ = q_KQF.mT, d_out_KQF.mT

  def body(at, carry):
    d_q_KFQ, d_k, d_v = carry
    k_KUF, v_KUF = _take(k_row, at), _take(v_row, at)
    # recompute the weights of the forward pass
    weights_KUQ = jnp.exp(_product('KUF,KFQ->KUQ', k_KUF, q_KFQ) - log_sum_KQ[:, None])
    weights_KUQ = jnp.where(_mask(ranges_4Q, at, tile), weights_KUQ, 0)
    # backpropagate through the values and the softmax to the scores
    d_weights_KUQ = _product('KUF,KFQ->KUQ', v_KUF, d_out_KFQ)
    d_scores_KUQ = (weights_KUQ * (d_weights_KUQ - dot_KQ[:, None])).astype(dtype)
    # gradients of values, keys and queries
    d_v = _add_at(d_v, at, _product('KUQ,KQF->KUF', weights_KUQ.astype(dtype), d_out_KQF))
    d_k = _add_at(d_k, at, _product('KUQ,KQF->KUF', d_scores_KUQ, q_KQF))
    d_q_KFQ = d_q_KFQ + _product('KFU,KUQ->KFQ', _take(flat_row, at), d_scores_KUQ)
    return d_q_KFQ, d_k, d_v

  start = (jnp.zeros(q_KFQ.shape, jnp.float32), *carry)
  d_q_KFQ, d_k, d_v = _visit(following, body, start)
  return d_q_KFQ.astype(dtype).mT, (d_k, d_v)


_attend.defvjp(_forward, _backward)

"""Attention in blocks of queries: the fastest form on a CPU for short rows.

Each block of queries multiplies all keys up to its end, those of other documents too. Blocks are
unrolled, at most 16 in a row, so the weights of one block grow with the square of the row:
`tiled.py` is the form for long rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from paravt_jax.models.attention.plain import FAR, visible
from paravt_jax.models.remat import mark_attention

_CHUNK = 128  # queries of a block: fastest on a CPU at T = 512 and 1024
_MOST_CHUNKS = 16  # longer rows get longer blocks, so that programs stay short


def attend_chunked(q_BTHF, k_BTKF, v_BTKF, segments_BT, branches_BT):
  """Computes attention in blocks of queries; each block reads only the keys up to its end.

  This halves the number of products and keeps only one block of weights in memory.
  """
  length, groups = q_BTHF.shape[1], q_BTHF.shape[2] // k_BTKF.shape[2]
  # whole blocks of _CHUNK queries, few enough that the program stays short
  chunk = max(_CHUNK, -(-length // (_MOST_CHUNKS * _CHUNK)) * _CHUNK)
  # heads first, tokens last
  q_BKGFT = jnp.moveaxis(q_BTHF.reshape(*q_BTHF.shape[:2], -1, groups, q_BTHF.shape[-1]), 1, -1)
  k_BKTF = jnp.swapaxes(k_BTKF, 1, 2)
  v_BKTF = jnp.swapaxes(v_BTKF, 1, 2)
  scaled_BKGFT = q_BKGFT * q_BTHF.shape[-1] ** -0.5
  o_BKGFT: Any = _blocks(chunk, scaled_BKGFT, k_BKTF, v_BKTF, segments_BT, branches_BT)
  return jnp.moveaxis(o_BKGFT, -1, 1).reshape(q_BTHF.shape)


# Inside a block, weights have the shape [keys U, queries Q = G * t]. With this layout no product of
# the forward or backward pass transposes its last two axes. That matters on a CPU, where a
# transposed [Q, U] operand costs five times as much.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(chunk, q_BKGFT, k_BKTF, v_BKTF, segments_BT, branches_BT):
  return _blocks_forward(chunk, q_BKGFT, k_BKTF, v_BKTF, segments_BT, branches_BT)[0]


def _take_queries(x_BKGFT, first, last):
  """Returns queries first..last of all groups, concatenated: [B, K, F, G * t]."""
  block = jnp.swapaxes(x_BKGFT[..., first:last], 2, 3)
  return block.reshape(*block.shape[:3], -1)


def _join_queries(blocks, groups):
  """Inverts `_take_queries` for the list of all blocks. Returns [B, K, G, F, T]."""
  parts = [jnp.swapaxes(b.reshape(*b.shape[:3], groups, -1), 2, 3) for b in blocks]
  return jnp.concatenate(parts, axis=-1)


def _block_mask(segments_BT, branches_BT, first, last, groups):
  """Returns the mask bool[B, 1, U, Q] of keys 0..last and queries first..last of every group."""
  mask_BTU = visible(
    segments_BT[:, first:last],
    branches_BT[:, first:last],
    segments_BT[:, :last],
    branches_BT[:, :last],
    first,
  )
  return jnp.tile(jnp.swapaxes(mask_BTU, 1, 2), (1, 1, groups))[:, None]


def _scores(k_BKTF, q_BKFQ, last):
  return jnp.einsum(
    'BKUF,BKFQ->BKUQ', k_BKTF[:, :, :last], q_BKFQ, preferred_element_type=jnp.float32
  )


def _blocks_forward(chunk, q_BKGFT, k_BKTF, v_BKTF, segments_BT, branches_BT):
  groups, length = q_BKGFT.shape[2], q_BKGFT.shape[-1]
  v_BKFT = jnp.swapaxes(v_BKTF, 2, 3)
  out, log_sums = [], []
  for first in range(0, length, chunk):
    last = min(first + chunk, length)
    # scores of this block's queries with the keys up to its end
    scores_BKUQ = _scores(k_BKTF, _take_queries(q_BKGFT, first, last), last)
    scores_BKUQ = jnp.where(
      _block_mask(segments_BT, branches_BT, first, last, groups), scores_BKUQ, FAR
    )
    # softmax over keys; the division by the sum comes last
    most_BKQ = jnp.max(scores_BKUQ, axis=2)
    weights_BKUQ = jnp.exp(scores_BKUQ - most_BKQ[:, :, None])
    sum_BKQ = jnp.sum(weights_BKUQ, axis=2)
    out_BKFQ = jnp.einsum(
      'BKFU,BKUQ->BKFQ',
      v_BKFT[..., :last],
      weights_BKUQ.astype(v_BKFT.dtype),
      preferred_element_type=jnp.float32,
    )
    out.append((out_BKFQ / sum_BKQ[:, :, None]).astype(v_BKTF.dtype))
    log_sums.append(most_BKQ + jnp.log(sum_BKQ))
  out_BKGFT = mark_attention(_join_queries(out, groups))
  log_sums = [mark_attention(one) for one in log_sums]
  return out_BKGFT, (q_BKGFT, k_BKTF, v_BKTF, segments_BT, branches_BT, out_BKGFT, log_sums)


def _blocks_backward(chunk, saved, d_out_BKGFT):
  """Computes the gradients of q, k and v as in Dao et al. 2022, appendix B.

  The weights w are recomputed from the scores and their log-sum. The gradient of the scores is
  w * (d_w - sum_F(d_out * out)).
  """
  q_BKGFT, k_BKTF, v_BKTF, segments_BT, branches_BT, out_BKGFT, log_sums = saved
  groups, length, dtype = q_BKGFT.shape[2], q_BKGFT.shape[-1], q_BKGFT.dtype
  # sum_F(d_out * out), one number per query
  dot_BKGFT = jnp.sum(
    d_out_BKGFT.astype(jnp.float32) * out_BKGFT.astype(jnp.float32), axis=3, keepdims=True
  )
  k_BKFT = jnp.swapaxes(k_BKTF, 2, 3)
  d_k = jnp.zeros(k_BKTF.shape, jnp.float32)
  d_v = jnp.zeros(v_BKTF.shape, jnp.float32)
  d_q = []
  times = functools.partial(jnp.einsum, 'BKUQ,BKQF->BKUF', preferred_element_type=jnp.float32)
  for block, first in enumerate(range(0, length, chunk)):
    last = min(first + chunk, length)
    q_BKFQ = _take_queries(q_BKGFT, first, last)
    d_out_BKFQ = _take_queries(d_out_BKGFT, first, last)
    # recompute the weights of the forward pass
    weights_BKUQ = jnp.exp(_scores(k_BKTF, q_BKFQ, last) - log_sums[block][:, :, None])
    weights_BKUQ = jnp.where(
      _block_mask(segments_BT, branches_BT, first, last, groups), weights_BKUQ, 0
    )
    # backpropagate through the values and the softmax to the scores
    d_weights_BKUQ = _scores(v_BKTF, d_out_BKFQ, last)
    d_scores_BKUQ = (
      weights_BKUQ * (d_weights_BKUQ - _take_queries(dot_BKGFT, first, last))
    ).astype(dtype)
    # gradients of values, keys and this block's queries
    d_v = d_v.at[:, :, :last].add(times(weights_BKUQ.astype(dtype), jnp.swapaxes(d_out_BKFQ, 2, 3)))
    d_k = d_k.at[:, :, :last].add(times(d_scores_BKUQ, jnp.swapaxes(q_BKFQ, 2, 3)))
    d_q.append(jnp.einsum('BKFU,BKUQ->BKFQ', k_BKFT[..., :last], d_scores_BKUQ))
  return _join_queries(d_q, groups), d_k.astype(k_BKTF.dtype), d_v.astype(v_BKTF.dtype), None, None


_blocks.defvjp(_blocks_forward, _blocks_backward)

"""Attention to two ranges of keys by two calls of a flash kernel that knows one range per query.

The softmax over both ranges is the mean of the two outputs, weighted by the exponentials of their
log-sums. In the backward pass each call gets the merged output and log-sum, as if its keys were a
part of one softmax, and the gradients of the two calls are added.
"""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp

from paravt_jax.models.remat import mark_attention


class FlashKernel(Protocol):
  """A kernel for one range of keys per query. It is hashable, and queries come scaled.

  `range_BT2` is int32 (start, end). For a query with an empty range the kernel may return anything,
  and its gradients are zero.
  """

  def forward(
    self, q_BTHF: jax.Array, k_BTKF: jax.Array, v_BTKF: jax.Array, range_BT2: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output [B, T, H, F] in q's dtype and the log-sums float32[B, T, H]."""
    ...

  def backward(
    self,
    q_BTHF: jax.Array,
    k_BTKF: jax.Array,
    v_BTKF: jax.Array,
    range_BT2: jax.Array,
    out_BTHF: jax.Array,
    log_sum_BTH: jax.Array,
    d_out_BTHF: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of q, k and v, given the output and log-sum of the whole softmax."""
    ...


def attend_merged(
  kernel: FlashKernel,
  q_BTHF: jax.Array,
  k_BTKF: jax.Array,
  v_BTKF: jax.Array,
  ranges_BT4: jax.Array,
) -> jax.Array:
  """Computes attention of queries to their two ranges of keys with two calls of `kernel`.

  Returns [B, T, H, F] in q's dtype. A query that sees no key returns 0, and its gradient is 0.
  """
  return _merged(kernel, q_BTHF * q_BTHF.shape[-1] ** -0.5, k_BTKF, v_BTKF, ranges_BT4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _merged(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  return _forward(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4)[0]


def _forward(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  outputs, log_sums, seen = [], [], []
  for range_BT2 in (ranges_BT4[..., :2], ranges_BT4[..., 2:]):
    out_BTHF, log_sum_BTH = kernel.forward(q_BTHF, k_BTKF, v_BTKF, range_BT2)
    some_BT1 = range_BT2[..., :1] < range_BT2[..., 1:]
    # what a kernel returns for an empty range may be nan: replace it, do not multiply it by 0
    outputs.append(jnp.where(some_BT1[..., None], out_BTHF.astype(jnp.float32), 0))
    log_sums.append(jnp.where(some_BT1, log_sum_BTH, -jnp.inf))
    seen.append(some_BT1)
  # a query that sees no key has log-sum 0, so that exp(score - log_sum) stays finite
  total_BTH = jnp.where(seen[0] | seen[1], jnp.logaddexp(*log_sums), 0)
  merged_BTHF = sum(
    jnp.exp(log_sum_BTH - total_BTH)[..., None] * out_BTHF
    for log_sum_BTH, out_BTHF in zip(log_sums, outputs)
  )
  out_BTHF = mark_attention(jnp.asarray(merged_BTHF).astype(q_BTHF.dtype))
  total_BTH = mark_attention(total_BTH)
  return out_BTHF, (q_BTHF, k_BTKF, v_BTKF, ranges_BT4, out_BTHF, total_BTH)


def _backward(kernel, saved, d_out_BTHF):
  q_BTHF, k_BTKF, v_BTKF, ranges_BT4, out_BTHF, total_BTH = saved
  inputs = (q_BTHF, k_BTKF, v_BTKF)
  parts = [
    kernel.backward(*inputs, range_BT2, out_BTHF, total_BTH, d_out_BTHF)
    for range_BT2 in (ranges_BT4[..., :2], ranges_BT4[..., 2:])
  ]
  wide = [(a.astype(jnp.float32) + b.astype(jnp.float32)) for a, b in zip(*parts)]
  return (*(x.astype(like.dtype) for x, like in zip(wide, inputs)), None)


_merged.defvjp(_forward, _backward)

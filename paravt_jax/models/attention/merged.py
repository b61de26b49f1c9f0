"""Attention to two ranges of keys by calls of a flash kernel that knows one range per query.

There is one call for each range. A kernel that takes only so many keys is called for each span of
them, with the part of the range that lies in the span.

The softmax over all parts is the mean of their outputs, weighted by the exponentials of their
log-sums. In the backward pass each call gets the merged output and log-sum, as if its keys were a
part of one softmax, and the gradients of the calls are added.
"""

import functools
from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp

from paravt_jax.models.remat import mark_attention


class FlashKernel(Protocol):
  """A kernel for one range of keys per query. It is hashable, and queries come scaled.

  `range_BT2` is int32 (start, end). For a query with an empty range, (0, 0), the kernel may return
  anything, and its gradients are zero.
  """

  @property
  def most_keys(self) -> int:
    """Keys that it takes at once, at most."""
    ...

  def forward(
    self, q_BTHF: jax.Array, k_BUKF: jax.Array, v_BUKF: jax.Array, range_BT2: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output [B, T, H, F] in q's dtype and the log-sums float32[B, T, H]."""
    ...

  def backward(
    self,
    q_BTHF: jax.Array,
    k_BUKF: jax.Array,
    v_BUKF: jax.Array,
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
  """Computes attention of queries to their two ranges of keys with calls of `kernel`.

  Returns [B, T, H, F] in q's dtype. A query that sees no key returns 0, and its gradient is 0.
  """
  return _merged(kernel, q_BTHF * q_BTHF.shape[-1] ** -0.5, k_BTKF, v_BTKF, ranges_BT4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _merged(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  return _forward(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4)[0]


def _parts(kernel, keys, ranges_BT4) -> Iterator[tuple[slice, jax.Array]]:
  """Yields (keys of a span, the range of each query within the span), for each span and range."""
  for first in range(0, keys, kernel.most_keys):
    size = min(kernel.most_keys, keys - first)
    for range_BT2 in (ranges_BT4[..., :2], ranges_BT4[..., 2:]):
      inside_BT2 = jnp.clip(range_BT2 - first, 0, size)
      some_BT1 = inside_BT2[..., :1] < inside_BT2[..., 1:]
      yield slice(first, first + size), jnp.where(some_BT1, inside_BT2, 0)


def _forward(kernel, q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  out_BTHF, total_BTH = jnp.zeros(q_BTHF.shape, jnp.float32), jnp.full(q_BTHF.shape[:3], -jnp.inf)
  for keys, range_BT2 in _parts(kernel, k_BTKF.shape[1], ranges_BT4):
    new_BTHF, log_sum_BTH = kernel.forward(q_BTHF, k_BTKF[:, keys], v_BTKF[:, keys], range_BT2)
    some_BT1 = range_BT2[..., :1] < range_BT2[..., 1:]
    # what a kernel returns for an empty range may be nan: replace it, do not multiply it by 0
    new_BTHF = jnp.where(some_BT1[..., None], new_BTHF.astype(jnp.float32), 0)
    log_sum_BTH = jnp.where(some_BT1, log_sum_BTH, -jnp.inf)
    # the mean of what was found so far and of the new part
    both_BTH = jnp.logaddexp(total_BTH, log_sum_BTH)
    finite_BTH = jnp.where(both_BTH > -jnp.inf, both_BTH, 0)
    out_BTHF = (
      jnp.exp(total_BTH - finite_BTH)[..., None] * out_BTHF
      + jnp.exp(log_sum_BTH - finite_BTH)[..., None] * new_BTHF
    )
    total_BTH = both_BTH
  # a query that sees no key has log-sum 0, so that exp(score - log_sum) stays finite
  total_BTH = jnp.where(total_BTH > -jnp.inf, total_BTH, 0)
  out_BTHF, total_BTH = mark_attention(out_BTHF.astype(q_BTHF.dtype)), mark_attention(total_BTH)
  return out_BTHF, (q_BTHF, k_BTKF, v_BTKF, ranges_BT4, out_BTHF, total_BTH)


def _backward(kernel, saved, d_out_BTHF):
  q_BTHF, k_BTKF, v_BTKF, ranges_BT4, out_BTHF, total_BTH = saved
  sums = [jnp.zeros(x.shape, jnp.float32) for x in (q_BTHF, k_BTKF, v_BTKF)]
  everything = slice(0, q_BTHF.shape[1])
  for keys, range_BT2 in _parts(kernel, k_BTKF.shape[1], ranges_BT4):
    new = kernel.backward(
      q_BTHF, k_BTKF[:, keys], v_BTKF[:, keys], range_BT2, out_BTHF, total_BTH, d_out_BTHF
    )
    places = (everything, keys, keys)
    sums = [total.at[:, at].add(part) for total, at, part in zip(sums, places, new)]
  inputs = (q_BTHF, k_BTKF, v_BTKF)
  return (*(x.astype(like.dtype) for x, like in zip(sums, inputs)), None)


_merged.defvjp(_forward, _backward)

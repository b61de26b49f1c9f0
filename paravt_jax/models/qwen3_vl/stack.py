"""A stack of equal layers that keeps only their inputs, and adds its gradients to sums in place.

A micro-batch's gradient of all layers is as large as the sum over micro-batches that it is added
to. Here the backward pass adds each layer's gradient to the sum as soon as it is made, so only one
layer's gradient is in memory beside the sums.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Layer = Callable[[jax.Array, jax.Array, Any], jax.Array]  # (i, x, parameters of layer i) -> x

__all__ = ['run_stack']


def run_stack(layer: Layer, x: jax.Array, stacked: Any, sums: Any) -> jax.Array:
  """Runs x through all layers; the backward pass computes each layer again.

  Args:
    layer: layer(i, x, params) -> x. What it closes over gets no gradient.
    stacked: parameters of all layers; each leaf is [layers, ...].
    sums: a tree like `stacked`, of the same dtypes.

  Returns:
    The output of the last layer. Its gradient by `stacked` is not the gradient alone, but `sums`
    plus the gradient. Its gradient by `sums` is 0.
  """
  return _adding(layer)(x, stacked, sums)


def _adding(layer: Layer) -> Callable[..., Any]:
  @jax.custom_vjp
  def run(x, stacked, sums):
    return _forward(layer, x, stacked)[0]

  def forward(x, stacked, sums):
    out, inputs = _forward(layer, x, stacked)
    return out, (inputs, stacked, sums)

  def backward(saved, d_out):
    inputs, stacked, sums = saved
    return (*_backward(layer, inputs, stacked, sums, d_out), None)

  run.defvjp(forward, backward)
  return run


def _forward(layer: Layer, x: jax.Array, stacked: Any) -> tuple[jax.Array, jax.Array]:
  """Returns the output, and the input of each layer [layers, ...]."""
  numbers = jnp.arange(_depth(stacked))
  return jax.lax.scan(lambda x, one: (layer(one[0], x, one[1]), x), x, (numbers, stacked))


def _backward(
  layer: Layer, inputs: jax.Array, stacked: Any, sums: Any, d_out: jax.Array
) -> tuple[jax.Array, Any]:
  """Returns the gradient of the input, and the sums with the gradients of the layers added."""
  depth = _depth(stacked)

  def body(count, carry):
    d_x, sums = carry
    i = depth - 1 - count
    x, params = jax.tree.map(lambda a: _at(a, i), (inputs, stacked))
    _, pull = jax.vjp(lambda x, params: layer(i, x, params), x, params)
    d_x, d_params = pull(d_x)
    # the sums are a loop's carry and written where they are read, so XLA needs no second copy
    sums = jax.tree.map(
      lambda total, new: jax.lax.dynamic_update_index_in_dim(total, _at(total, i) + new, i, 0),
      sums,
      d_params,
    )
    return d_x, sums

  return jax.lax.fori_loop(0, depth, body, (d_out, sums))


def _at(a: jax.Array, i: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(a, i, keepdims=False)


def _depth(stacked: Any) -> int:
  return jax.tree.leaves(stacked)[0].shape[0]

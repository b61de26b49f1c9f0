"""Small linen modules that the vision tower and the text decoder share.

All parameters are float32 and carry the names of their logical axes.

Three functions have a backward pass of their own: `product`, `rms_norm` and `swiglu_product`.
Theirs saves fewer arrays for the backward pass than automatic differentiation does, and spares a
CPU the transposed copies that cost as much as the products.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from paravt_jax.models import lora


def named(init: Callable[..., jax.Array], axes: tuple[str, ...]) -> Callable[..., Any]:
  """Returns an initializer like `init` that attaches logical axes to its array.

  Inside a module, `self.param` returns the array without the axes.
  """
  return nn.with_logical_partitioning(init, axes)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x @ kernel: [..., in] and [in, out] give [..., out], in the dtype of both."""
  return x @ kernel


def _product_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _product_backward(saved, d_y):
  """Returns the gradients of `x` and `kernel`.

  Automatic differentiation writes the kernel's gradient as a transposed product. XLA then copies
  the larger operand to another layout on a CPU, and so it does with several axes of tokens;
  contracting both over one axis of tokens copies nothing.
  """
  x, kernel = saved
  d_x = jax.lax.dot_general(d_y, kernel, (((d_y.ndim - 1,), (1,)), ((), ())))
  flat_x, flat_d_y = (a.reshape(-1, a.shape[-1]) for a in (x, d_y))
  return d_x, jax.lax.dot_general(flat_x, flat_d_y, (((0,), (0,)), ((), ())))


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def swiglu_product(gate: jax.Array, up: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns (silu(gate) * up) @ kernel (Shazeer 2020), as `product` does.

  The backward pass computes the hidden units silu(gate) * up again, which is cheaper than to keep
  them.
  """
  return (jax.nn.silu(gate) * up) @ kernel


def _swiglu_forward(gate, up, kernel):
  return swiglu_product(gate, up, kernel), (gate, up, kernel)


def _swiglu_backward(saved, d_y):
  gate, up, kernel = saved
  sigmoid = jax.nn.sigmoid(gate)
  silu = gate * sigmoid
  d_hidden, d_kernel = _product_backward((silu * up, kernel), d_y)
  return d_hidden * up * (sigmoid + silu * (1 - sigmoid)), d_hidden * silu, d_kernel


swiglu_product.defvjp(_swiglu_forward, _swiglu_backward)


class Linear(nn.Module):
  """Computes x @ kernel (+ bias) in `dtype`.

  The kernel is [in, out] and starts as a normal with standard deviation scale / sqrt(in).
  """

  features: int
  axes: tuple[str, str]
  dtype: jnp.dtype
  bias: bool
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    y = self._add_adapter(product(x, self._kernel(x.shape[-1])), x)
    if self.bias:
      init = named(nn.initializers.zeros, self.axes[1:])
      bias = self.param('bias', init, (self.features,), jnp.float32)
      y = y + bias.astype(self.dtype)
    return y

  def _kernel(self, width: int) -> jax.Array:
    init = named(nn.initializers.normal(self.scale * width**-0.5), self.axes)
    return self.param('kernel', init, (width, self.features), jnp.float32).astype(self.dtype)

  def _add_adapter(self, y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns y + x A B where the parameters have a pair beside the kernel (`lora.join`)."""
    if not self.has_variable('params', lora.A):
      return y
    a, b = (self.get_variable('params', name).astype(self.dtype) for name in (lora.A, lora.B))
    return y + product(product(x, a), b)


class GatedLinear(Linear):
  """Computes (silu(gate) * up) @ kernel in `dtype`; it has no bias."""

  @nn.compact
  def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
    gate, up = gate.astype(self.dtype), up.astype(self.dtype)
    y = swiglu_product(gate, up, self._kernel(gate.shape[-1]))
    if not self.has_variable('params', lora.A):
      return y
    return self._add_adapter(y, jax.nn.silu(gate) * up)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rms_norm(eps: float, x: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in float32.

  The result has x's dtype.
  """
  return _rms_forward(eps, x, scale)[0]


def _rms_forward(eps, x, scale):
  wide = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
  y = (wide * inverse * scale.astype(jnp.float32)).astype(x.dtype)
  return y, (x, inverse, scale)


def _rms_backward(eps, saved, d_y):
  # with n = x * inverse: d_x = inverse * (d_n - n * mean(d_n * n))
  x, inverse, scale = saved
  normed, wide = x.astype(jnp.float32) * inverse, d_y.astype(jnp.float32)
  both = wide * normed
  d_scale = jnp.sum(both, axis=tuple(range(x.ndim - 1)))
  factor = scale.astype(jnp.float32)
  d_x = inverse * (wide * factor - normed * jnp.mean(both * factor, axis=-1, keepdims=True))
  return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


class RMSNorm(nn.Module):
  """RMSNorm (Zhang & Sennrich 2019): x / rms(x) * scale, computed in float32.

  The result has x's dtype.
  """

  eps: float
  axis: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = named(nn.initializers.ones, (self.axis,))
    scale = self.param('scale', init, x.shape[-1:], jnp.float32)
    return rms_norm(self.eps, x, scale)


class LayerNorm(nn.Module):
  """LayerNorm (Ba et al. 2016) with eps 1e-6, computed in float32. The result has x's dtype."""

  axis: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = named(nn.initializers.ones, (self.axis,))
    scale = self.param('scale', init, x.shape[-1:], jnp.float32)
    init = named(nn.initializers.zeros, (self.axis,))
    bias = self.param('bias', init, x.shape[-1:], jnp.float32)
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rotate(x_BTHF: jax.Array, angle_BTF: jax.Array) -> jax.Array:
  """Applies the rotary embedding in float32; feature i is paired with feature i + F/2.

  `angle_BTF` has F/2 angles per token, which all heads share. The result has x's dtype.
  """
  cos = jnp.cos(angle_BTF)[..., None, :]
  sin = jnp.sin(angle_BTF)[..., None, :]
  a, b = jnp.split(x_BTHF.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHF.dtype)


def stacked_init(init: Callable[[jax.Array], dict], key: jax.Array, count: int) -> dict:
  """Returns `count` draws of `init(key)`, stacked on a new leading axis.

  Flax's partitioning boxes are preserved.
  """
  return jax.vmap(init)(jax.random.split(key, count))

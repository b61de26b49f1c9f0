"""Small linen modules that the vision tower and the text decoder share.

All parameters are float32 and carry the names of their logical axes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def named(init: Callable[..., jax.Array], axes: tuple[str, ...]) -> Callable[..., Any]:
  """Returns an initializer like `init` that attaches logical axes to its array.

  Inside a module, `self.param` returns the array without the axes.
  """
  return nn.with_logical_partitioning(init, axes)


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
    init = nn.initializers.normal(self.scale * x.shape[-1] ** -0.5)
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', named(init, self.axes), shape, jnp.float32)
    y = x.astype(self.dtype) @ kernel.astype(self.dtype)
    if self.bias:
      init = named(nn.initializers.zeros, self.axes[1:])
      bias = self.param('bias', init, (self.features,), jnp.float32)
      y = y + bias.astype(self.dtype)
    return y


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
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


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

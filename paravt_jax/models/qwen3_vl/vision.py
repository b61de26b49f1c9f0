"""The vision tower's modules: patches to tokens, blocks with 2-D rotary attention inside one image,
mergers.

Patches come in merge order: the four patches of a merged token are neighbours. Images are padded to
X patches; a padded patch is seen by nobody. Shapes: [B, N, X, ...] for B rows of N images.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models import attention
from paravt_jax.models.layers import LayerNorm, Linear, rotate
from paravt_jax.models.qwen3_vl.config import VisionConfig


def patch_places(
  config: VisionConfig, grids_BN2: jax.Array, patches: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Row and column of each patch in merge order (int32[B, N, X]), and whether it exists (bool[B, N,
  X]).
  """
  m = config.merge
  height, width = grids_BN2[..., 0:1], grids_BN2[..., 1:2]
  index = jnp.arange(patches)
  block, inner = index // (m * m), index % (m * m)
  blocks_wide = jnp.maximum(width // m, 1)
  row = block // blocks_wide * m + inner // m
  column = block % blocks_wide * m + inner % m
  exists = index < height * width
  return jnp.where(exists, row, 0), jnp.where(exists, column, 0), exists


def interpolated_positions(
  table: jax.Array, row: jax.Array, column: jax.Array, grids_BN2: jax.Array
) -> jax.Array:
  """Bilinear look-up in the learned square (corners aligned): float32[B, N, X, W] from table [side
  * side, W].
  """
  side = int(round(table.shape[0] ** 0.5))

  def taps(at, size):
    place = at.astype(jnp.float32) * ((side - 1) / jnp.maximum(size - 1, 1).astype(jnp.float32))
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, side - 1)
    return low, jnp.minimum(low + 1, side - 1), place - low.astype(jnp.float32)

  top, bottom, down = taps(row, grids_BN2[..., 0:1])
  left, right, across = taps(column, grids_BN2[..., 1:2])
  index = jnp.stack(
    [top * side + left, top * side + right, bottom * side + left, bottom * side + right], axis=-1
  )
  weight = jnp.stack(
    [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], axis=-1
  )
  return jnp.einsum('BNXZ,BNXZW->BNXW', weight, table.astype(jnp.float32)[index])


def rotary_angles(config: VisionConfig, row: jax.Array, column: jax.Array) -> jax.Array:
  """float32[B * N, X, F/2]: the first half of the frequencies turns with the row, the second with
  the column; theta 1e4.
  """
  quarter = config.width // config.heads // 4
  frequency = (
    1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))
  ).astype(np.float32)
  place = jnp.stack([row, column], axis=-1).astype(jnp.float32)
  angle = (place[..., None] * frequency).reshape(-1, row.shape[-1], 2 * quarter)
  return angle


class PatchEmbed(nn.Module):
  """Pixels to width, one matrix product: uint8[..., X, P, C] -> [..., X, W]; one frame (P = 1)
  stands for all of a patch's.
  """

  config: VisionConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    c = self.config
    channels = 3 * c.patch**2
    init = nn.initializers.normal((c.temporal * channels) ** -0.5)
    init = nn.with_logical_partitioning(init, ('time', 'pixels', 'vision_embed'))
    kernel = self.param('kernel', init, (c.temporal, channels, c.width), jnp.float32)
    bias = self.param(
      'bias',
      nn.with_logical_partitioning(nn.initializers.zeros, ('vision_embed',)),
      (c.width,),
      jnp.float32,
    )
    if patches.shape[-2] == 1:
      kernel = jnp.sum(kernel.astype(jnp.float32), axis=0, keepdims=True)
    pixels = (patches.astype(jnp.float32) * (2 / 255) - 1).astype(self.dtype)
    flat = pixels.reshape(*pixels.shape[:-2], -1)
    return flat @ kernel.reshape(-1, c.width).astype(self.dtype) + bias.astype(self.dtype)


class VisionBlock(nn.Module):
  """Pre-norm block on [I, X, W] (I images); attention within an image, among the patches that
  exist.
  """

  config: VisionConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_IXW: jax.Array, angle_IXF: jax.Array, exists_IX: jax.Array) -> jax.Array:
    x_IXW = x_IXW + self._attention(
      LayerNorm('vision_norm', name='norm1')(x_IXW), angle_IXF, exists_IX
    )
    y = Linear(self.config.mlp, ('vision_embed', 'vision_mlp'), self.dtype, True, name='fc1')(
      LayerNorm('vision_norm', name='norm2')(x_IXW)
    )
    y = jax.nn.gelu(y, approximate=True)
    scale = (2 * self.config.depth) ** -0.5
    return x_IXW + Linear(
      self.config.width, ('vision_mlp', 'vision_embed'), self.dtype, True, scale, name='fc2'
    )(y)

  def _attention(self, x_IXW, angle_IXF, exists_IX):
    c = self.config
    qkv = Linear(3 * c.width, ('vision_embed', 'vision_qkv'), self.dtype, True, name='qkv')(x_IXW)
    q, k, v = (
      part[:, :, 0] for part in jnp.split(qkv.reshape(*qkv.shape[:2], 3, c.heads, -1), 3, axis=2)
    )
    mask = jnp.broadcast_to(exists_IX[:, None, :], (*exists_IX.shape, exists_IX.shape[1]))
    o = attention.masked(rotate(q, angle_IXF), rotate(k, angle_IXF), v, mask)
    out = Linear(
      c.width,
      ('vision_heads', 'vision_embed'),
      self.dtype,
      True,
      (2 * c.depth) ** -0.5,
      name='proj',
    )
    return out(o.reshape(x_IXW.shape))


class Merger(nn.Module):
  """Joins neighbouring patches to a token of text width: [I, X, W] -> [I, X / merge^2, D]. `wide`:
  norm after joining.
  """

  config: VisionConfig
  width: int
  wide: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_IXW: jax.Array) -> jax.Array:
    area = self.config.merge**2
    norm = LayerNorm('merged_norm' if self.wide else 'vision_norm', name='norm')
    joined = lambda x: x.reshape(x.shape[0], x.shape[1] // area, area * x.shape[2])
    y = norm(joined(x_IXW)) if self.wide else joined(norm(x_IXW))
    y = Linear(y.shape[-1], ('merged', 'vision_mlp'), self.dtype, True, name='fc1')(y)
    return Linear(self.width, ('vision_mlp', 'embed'), self.dtype, True, name='fc2')(
      jax.nn.gelu(y, approximate=False)
    )

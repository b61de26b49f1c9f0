"""The modules of the vision tower: patch embedding, attention blocks and mergers.

Attention uses 2-D rotary embeddings and stays inside one image. Patches come in merge order: the
four patches of a merged token are adjacent. Images are padded to X patches, and no patch sees
padding. `paravt_jax.shapes` explains the axis letters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.attention.dispatch import attend_images
from paravt_jax.models.layers import LayerNorm, Linear, named, rotate
from paravt_jax.models.placement import Place, anywhere
from paravt_jax.models.qwen3_vl.config import VisionConfig


def patch_places(
  config: VisionConfig, grids_BN2: jax.Array, patches: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (row, column, exists) of each patch in merge order.

  Rows and columns are int32[B, N, X], 0 for padding. `exists` is bool[B, N, X].
  """
  m = config.merge
  height, width = grids_BN2[..., 0:1], grids_BN2[..., 1:2]
  # the merged token that a patch belongs to, and its index among the m * m patches of that token
  index_X = jnp.arange(patches)
  block_X, inner_X = index_X // (m * m), index_X % (m * m)
  blocks_wide = jnp.maximum(width // m, 1)
  row_BNX = block_X // blocks_wide * m + inner_X // m
  column_BNX = block_X % blocks_wide * m + inner_X % m
  exists_BNX = index_X < height * width
  return jnp.where(exists_BNX, row_BNX, 0), jnp.where(exists_BNX, column_BNX, 0), exists_BNX


def interpolated_positions(
  table: jax.Array, row_BNX: jax.Array, column_BNX: jax.Array, grids_BN2: jax.Array
) -> jax.Array:
  """Interpolates the learned position table [side * side, W] at each patch: float32[B, N, X, W].

  The interpolation is bilinear with aligned corners.
  """
  side = int(round(table.shape[0] ** 0.5))

  # along one axis: the table entries below and above a position, and its distance from the lower
  def taps(at, size):
    place = at.astype(jnp.float32) * ((side - 1) / jnp.maximum(size - 1, 1).astype(jnp.float32))
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, side - 1)
    return low, jnp.minimum(low + 1, side - 1), place - low.astype(jnp.float32)

  top, bottom, down = taps(row_BNX, grids_BN2[..., 0:1])
  left, right, across = taps(column_BNX, grids_BN2[..., 1:2])
  # the four neighbours of each position, and their bilinear weights
  index_BNXZ = jnp.stack(
    [top * side + left, top * side + right, bottom * side + left, bottom * side + right], axis=-1
  )
  weight_BNXZ = jnp.stack(
    [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], axis=-1
  )
  return jnp.einsum('BNXZ,BNXZW->BNXW', weight_BNXZ, table.astype(jnp.float32)[index_BNXZ])


def add_positions(
  config: VisionConfig,
  table: jax.Array,
  x_BNXW: jax.Array,
  grids_BN2: jax.Array,
  place: Place = anywhere,
) -> jax.Array:
  """Adds the interpolated position of each patch to its embedding [B, N, X, W].

  The images of a row share few grids. Positions are interpolated once per grid of a row: at the
  first slot with that grid, for all slots that have it. Empty slots (grid 0, 0) stay as they are.
  """
  slots, patches = x_BNXW.shape[1:3]
  # a small table, whole on every device: else the places of all rows would travel to its shards
  table = place(jnp.asarray(table), None, None)
  filled_BN = (grids_BN2 > 0).all(-1)
  # the first slot of the row with the same grid
  first_BN = (grids_BN2[:, :, None] == grids_BN2[:, None, :]).all(-1).argmax(-1)

  def step(x_BNXW, slot):
    here_BN = (first_BN == slot) & filled_BN

    def add():
      grid_B12 = jax.lax.dynamic_slice_in_dim(grids_BN2, slot, 1, axis=1)
      row_BNX, column_BNX, _ = patch_places(config, grid_B12, patches)
      position_BNXW = interpolated_positions(table, row_BNX, column_BNX, grid_B12)
      return x_BNXW + jnp.where(here_BN[..., None, None], position_BNXW, 0).astype(x_BNXW.dtype)

    return jax.lax.cond(here_BN.any(), add, lambda: x_BNXW), None

  return jax.lax.scan(step, x_BNXW, jnp.arange(slots))[0]


def rotary_angles(config: VisionConfig, row_BNX: jax.Array, column_BNX: jax.Array) -> jax.Array:
  """Returns the rotary angles float32[B * N, X, F/2], with theta 1e4.

  The first half of the frequencies uses the row, the second half the column.
  """
  # a head of width F has F/2 angles: F/4 for the row and F/4 for the column
  quarter = config.width // config.heads // 4
  exponent = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
  frequency = (1.0 / 10000.0**exponent).astype(np.float32)
  place_BNX2 = jnp.stack([row_BNX, column_BNX], axis=-1).astype(jnp.float32)
  return (place_BNX2[..., None] * frequency).reshape(-1, row_BNX.shape[-1], 2 * quarter)


class PatchEmbed(nn.Module):
  """Embeds patches by one matrix product: uint8[..., X, P, C] -> [..., X, W].

  A single frame (P = 1) stands for all frames of its temporal patch.
  """

  config: VisionConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    c = self.config
    channels = 3 * c.patch**2
    init = nn.initializers.normal((c.temporal * channels) ** -0.5)
    init = named(init, ('time', 'pixels', 'vision_embed'))
    kernel_PCW = self.param('kernel', init, (c.temporal, channels, c.width), jnp.float32)
    init = named(nn.initializers.zeros, ('vision_embed',))
    bias_W = self.param('bias', init, (c.width,), jnp.float32)
    # a repeated frame needs only one product, with the sum of the kernels over time
    if patches.shape[-2] == 1:
      kernel_PCW = jnp.sum(kernel_PCW.astype(jnp.float32), axis=0, keepdims=True)
    # scale 0..255 to -1..1, then flatten the frames and pixels of each patch
    pixels = (patches.astype(jnp.float32) * (2 / 255) - 1).astype(self.dtype)
    flat = pixels.reshape(*pixels.shape[:-2], -1)
    return flat @ kernel_PCW.reshape(-1, c.width).astype(self.dtype) + bias_W.astype(self.dtype)


class VisionBlock(nn.Module):
  """Pre-norm block on [I, X, W] (I images).

  A patch attends to the patches of its image, without padding. `place` says where images, heads and
  hidden units lie on a mesh.
  """

  config: VisionConfig
  dtype: jnp.dtype
  place: Place = anywhere
  backend: str = 'auto'

  @nn.compact
  def __call__(self, x_IXW: jax.Array, angle_IXF: jax.Array, exists_IX: jax.Array) -> jax.Array:
    y_IXW = LayerNorm('vision_norm', name='norm1')(x_IXW)
    x_IXW = self.place(x_IXW + self._attention(y_IXW, angle_IXF, exists_IX), 'images', None, None)
    y_IXW = LayerNorm('vision_norm', name='norm2')(x_IXW)
    return self.place(x_IXW + self._mlp(y_IXW), 'images', None, None)

  def _attention(self, x_IXW, angle_IXF, exists_IX):
    c = self.config
    # one product computes queries, keys and values
    qkv = Linear(3 * c.width, ('vision_embed', 'vision_qkv'), self.dtype, True, name='qkv')(x_IXW)
    parts = jnp.split(qkv.reshape(*qkv.shape[:2], 3, c.heads, -1), 3, axis=2)
    q_IXHF, k_IXHF, v_IXHF = (
      self.place(part[:, :, 0], 'images', None, 'vision_heads', None) for part in parts
    )
    q_IXHF, k_IXHF = rotate(q_IXHF, angle_IXF), rotate(k_IXHF, angle_IXF)
    # every patch sees the patches of its image that are not padding
    o_IXHF = attend_images(
      q_IXHF, k_IXHF, v_IXHF, exists_IX, backend=self.backend, mesh=self.place.mesh
    )
    axes, scale = ('vision_heads', 'vision_embed'), (2 * c.depth) ** -0.5
    out = Linear(c.width, axes, self.dtype, True, scale, name='proj')
    return out(o_IXHF.reshape(x_IXW.shape))

  def _mlp(self, x_IXW):
    c, scale = self.config, (2 * self.config.depth) ** -0.5
    y = Linear(c.mlp, ('vision_embed', 'vision_mlp'), self.dtype, True, name='fc1')(x_IXW)
    y = self.place(jax.nn.gelu(y, approximate=True), 'images', None, 'vision_mlp')
    return Linear(c.width, ('vision_mlp', 'vision_embed'), self.dtype, True, scale, name='fc2')(y)


class Merger(nn.Module):
  """Merges adjacent patches into one token of text width: [I, X, W] -> [I, X / merge^2, D].

  With `wide`, the norm comes after the patches are joined; otherwise before.
  """

  config: VisionConfig
  width: int
  wide: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_IXW: jax.Array) -> jax.Array:
    area = self.config.merge**2
    norm = LayerNorm('merged_norm' if self.wide else 'vision_norm', name='norm')
    # concatenate the patches of each merged token: [I, Y, area * W]
    joined_shape = (x_IXW.shape[0], x_IXW.shape[1] // area, area * x_IXW.shape[2])
    y = norm(x_IXW.reshape(joined_shape)) if self.wide else norm(x_IXW).reshape(joined_shape)
    y = Linear(y.shape[-1], ('merged', 'vision_mlp'), self.dtype, True, name='fc1')(y)
    y = jax.nn.gelu(y, approximate=False)
    return Linear(self.width, ('vision_mlp', 'embed'), self.dtype, True, name='fc2')(y)

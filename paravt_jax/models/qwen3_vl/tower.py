"""The vision tower on packed rows: image slots in, features for the text decoder out.

A slot without an image costs next to nothing: slots are encoded in blocks, in order, and a block
that no row fills is skipped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes
from paravt_jax.models import remat as remats
from paravt_jax.models.placement import Place, anywhere
from paravt_jax.models.qwen3_vl import vision
from paravt_jax.models.qwen3_vl.config import Config

__all__ = ['Features', 'encode_images']

# a stack of at most this many layers is unrolled; in a short stack a scan's copies cost too much
UNROLL = 4
# a row's image slots are encoded in this many blocks; more blocks skip more, fewer gather the
# weights less often
_BLOCKS = 4


class Features(NamedTuple):
  """The vision tower's output, which the text decoder reads."""

  merged_BNYD: jax.Array  # merged image tokens, which replace the placeholders' embeddings
  deepstack_JBNYD: jax.Array  # DeepStack features, added after each of the first J text layers


def encode_images(
  config: Config,
  params: dict[str, Any],
  patches_BNXPC: jax.Array,
  grids_BN2: jax.Array,
  dtype: jnp.dtype,
  *,
  remat: str = 'none',
  place: Place = anywhere,
  backend: str = 'auto',
) -> Features:
  """Runs the vision tower on every image separately.

  Slots without an image (grid 0, 0) are skipped where no row has an image in the same block of
  slots. So fill slots from the first on.

  Args:
    config, params: of the whole model.
    patches_BNXPC, grids_BN2: as in `model.Inputs`.
    dtype: of products and of the result.
    remat: a name of `remat.POLICIES`; all but 'none' also recompute each block of slots.
    place: where activations lie; images are split over devices.
    backend: of attention, see `attention.attend_images`.

  Returns:
    Features with Y = X / merge^2, in `dtype`. Tokens beyond an image's grid are garbage. If N or X
    is 0, the features are empty.

  Raises:
    ValueError: X is not a multiple of merge^2.
  """
  sizes = shapes.check(patches_BNXPC=patches_BNXPC, grids_BN2=grids_BN2)
  v, (rows, images, count) = config.vision, patches_BNXPC.shape[:3]
  if 0 in (rows, images, count):
    return _empty(config, rows, images, count, dtype)
  if sizes['X'] % v.merge**2:
    raise ValueError(
      f'patches_BNXPC has X={sizes["X"]}, wanted a multiple of merge^2 = {v.merge**2}; pad '
      'with zeros'
    )

  visual = jax.tree.map(jnp.asarray, params['visual'])  # see model.hidden

  def encode(patches_BNXPC, grids_BN2):
    new_block = vision.VisionBlock(v, dtype, place, backend)
    return _encode(config, visual, patches_BNXPC, grids_BN2, dtype, remat, new_block)

  size = -(-images // _BLOCKS)
  if size == images:
    return encode(patches_BNXPC, grids_BN2)

  def block(patches_BNXPC, grids_BN2):
    skip = _empty(config, rows, size, count, dtype)
    return jax.lax.cond((grids_BN2 > 0).any(), encode, lambda *_: skip, patches_BNXPC, grids_BN2)

  # around the cond: inside, the backward pass would keep a copy of the weights per block of slots
  run = block if remat == 'none' else jax.checkpoint(block)
  # every block of slots is spread over the devices that share a row
  patches = place(_split(patches_BNXPC, size), None, 'rows', 'slots', None, None, None)
  slots = (patches, _split(grids_BN2, size))
  blocks = jax.lax.scan(lambda _, one: (None, run(*one)), None, slots)[1]
  return Features(_join(blocks.merged_BNYD, 1, images), _join(blocks.deepstack_JBNYD, 2, images))


def _split(x: jax.Array, size: int) -> jax.Array:
  """[B, N, ...] -> [blocks, B, size, ...], the last block padded with empty slots."""
  padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
  return jnp.moveaxis(padded.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _join(blocks: jax.Array, axis: int, images: int) -> jax.Array:
  """Joins blocks of slots [blocks, ...] on `axis`, where the first `images` slots are kept."""
  joined = jnp.moveaxis(blocks, 0, axis)
  joined = joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])
  return jax.lax.slice_in_dim(joined, 0, images, axis=axis)


def _empty(config: Config, rows: int, images: int, count: int, dtype: jnp.dtype) -> Features:
  v = config.vision
  shape = (rows, images, count // v.merge**2, config.text.width)
  return Features(jnp.zeros(shape, dtype), jnp.zeros((len(v.taps), *shape), dtype))


def _apply(module: nn.Module, params: dict[str, Any], *args: Any) -> Any:
  return module.apply({'params': params}, *args)


def _encode(
  config: Config,
  visual: dict[str, Any],
  patches_BNXPC: jax.Array,
  grids_BN2: jax.Array,
  dtype: jnp.dtype,
  remat: str,
  vision_block: vision.VisionBlock,
) -> Features:
  """Runs the tower on slots that hold at least one image."""
  place = vision_block.place
  v, (rows, images, count) = config.vision, patches_BNXPC.shape[:3]
  merged_shape = (rows, images, count // v.merge**2, config.text.width)

  # embed the patches and add their interpolated positions: [B, N, X, W]
  patches_BNXPC = place(patches_BNXPC, 'rows', 'slots', None, None, None)
  row_BNX, column_BNX, exists_BNX = vision.patch_places(v, grids_BN2, count)
  x_BNXW = _apply(vision.PatchEmbed(v, dtype), visual['patch_embed'], patches_BNXPC)
  x_BNXW = vision.add_positions(v, visual['pos_embed']['embedding'], x_BNXW, grids_BN2, place)

  # the blocks process each image alone: rows and images become one axis, I = B * N
  x_IXW = place(x_BNXW.reshape(rows * images, count, v.width), 'images', None, None)
  angle_IXF = vision.rotary_angles(v, row_BNX, column_BNX)
  exists_IX = exists_BNX.reshape(rows * images, count)

  def block(x_IXW, layer_params):
    return _apply(vision_block, layer_params, x_IXW, angle_IXF, exists_IX)

  run = remats.apply(block, remat)
  x_IXW, tapped_JIXW = _run_blocks(v, visual['blocks'], x_IXW, run)

  # merge the patches of the last block and of each tapped block into tokens of text width
  def merge(merger_params, x_IXW, wide):
    merger = vision.Merger(v, config.text.width, wide, dtype)
    merged_IYD = place(_apply(merger, merger_params, x_IXW), 'images', None, None)
    return merged_IYD.reshape(merged_shape)

  merged_BNYD = merge(visual['merger'], x_IXW, False)
  if not v.taps:
    return Features(merged_BNYD, jnp.zeros((0, *merged_shape), dtype))
  deepstack_JBNYD = jax.vmap(lambda p, x: merge(p, x, True))(visual['deepstack'], tapped_JIXW)
  return Features(
    place(merged_BNYD, 'rows', 'slots', None, None),
    place(deepstack_JBNYD, None, 'rows', 'slots', None, None),
  )


def _run_blocks(
  v: vision.VisionConfig, blocks: dict[str, Any], x_IXW: jax.Array, block: Callable
) -> tuple[jax.Array, jax.Array]:
  """Runs all blocks. Returns the last output, and those of the tapped blocks [J, I, X, W]."""
  empty_JIXW = jnp.zeros((len(v.taps), *x_IXW.shape), x_IXW.dtype)
  if v.depth <= UNROLL:
    outputs = []
    for i in range(v.depth):
      x_IXW = block(x_IXW, jax.tree.map(lambda p, i=i: p[i], blocks))
      outputs.append(x_IXW)
    return x_IXW, jnp.stack([outputs[t] for t in v.taps]) if v.taps else empty_JIXW

  # the tap index of each block, -1 for blocks without a tap; the scan stores outputs by this index
  tap_of_layer = np.full(v.depth, -1, np.int32)
  tap_of_layer[list(v.taps)] = np.arange(len(v.taps))

  def step(carry, layer):
    x_IXW, tapped_JIXW = carry
    layer_params, tap = layer
    x_IXW = block(x_IXW, layer_params)
    tapped_JIXW = jax.lax.cond(
      tap >= 0,
      lambda: jax.lax.dynamic_update_index_in_dim(tapped_JIXW, x_IXW, tap, 0),
      lambda: tapped_JIXW,
    )
    return (x_IXW, tapped_JIXW), None

  return jax.lax.scan(step, (x_IXW, empty_JIXW), (blocks, jnp.asarray(tap_of_layer)))[0]

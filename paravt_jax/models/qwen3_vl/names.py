"""Where each Hugging Face tensor lies in our parameter tree, and in which layout."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from paravt_jax.models.qwen3_vl.config import Config

# rows transposed at a time: four times as fast as the whole matrix, which does not fit the cache
_STRIP = 16
# columns per block of `pick_blocks`: a few MB, which stay in the CPU cache until they are written
_COLUMNS = 1024

# Hugging Face's names -> ours. A linear's weight is [out, in] there and [in, out] here.
_TEXT_LAYER = {
  'input_layernorm.weight': 'norm1.scale',
  'post_attention_layernorm.weight': 'norm2.scale',
  'self_attn.q_norm.weight': 'q_norm.scale',
  'self_attn.k_norm.weight': 'k_norm.scale',
  **{f'self_attn.{n}_proj.weight': f'{n}.kernel' for n in 'qkvo'},
  **{f'mlp.{n}_proj.weight': f'{n}.kernel' for n in ('gate', 'up', 'down')},
}
_NORM = {'norm.weight': 'norm.scale', 'norm.bias': 'norm.bias'}
_MERGER = {
  **_NORM,
  **{
    f'linear_fc{i}.{a}': f'fc{i}.{b}'
    for i in (1, 2)
    for a, b in (('weight', 'kernel'), ('bias', 'bias'))
  },
}
_VISION_BLOCK = {
  **{
    f'norm{i}.{a}': f'norm{i}.{b}'
    for i in (1, 2)
    for a, b in (('weight', 'scale'), ('bias', 'bias'))
  },
  **{
    f'{n}.{a}': f'{n.split(".")[-1].replace("linear_", "")}.{b}'
    for n in ('attn.qkv', 'attn.proj', 'mlp.linear_fc1', 'mlp.linear_fc2')
    for a, b in (('weight', 'kernel'), ('bias', 'bias'))
  },
}


class Slot(NamedTuple):
  """The position of one Hugging Face tensor in our parameter tree."""

  path: tuple[str, ...]  # of the leaf
  layer: int | None  # index into a stacked leaf; None for a leaf that is not stacked
  form: str  # Hugging Face's layout relative to ours: 'same' | 'transposed' | 'patches'


def name_table(config: Config) -> dict[str, Slot]:
  """Returns {tensor name: Slot} for all tensors of a checkpoint of this size."""
  table = {}

  def add(theirs, ours, layer=None):
    form = 'transposed' if ours.endswith('kernel') else 'same'
    table[theirs] = Slot(tuple(ours.split('.')), layer, form)

  def add_all(prefix, names, ours, layer=None):
    for theirs, name in names.items():
      add(f'{prefix}.{theirs}', f'{ours}.{name}', layer)

  table['model.visual.patch_embed.proj.weight'] = Slot(
    ('visual', 'patch_embed', 'kernel'), None, 'patches'
  )
  add('model.visual.patch_embed.proj.bias', 'visual.patch_embed.bias')
  add('model.visual.pos_embed.weight', 'visual.pos_embed.embedding')
  for i in range(config.vision.depth):
    add_all(f'model.visual.blocks.{i}', _VISION_BLOCK, 'visual.blocks', i)
  add_all('model.visual.merger', _MERGER, 'visual.merger')
  for j in range(len(config.vision.taps)):
    add_all(f'model.visual.deepstack_merger_list.{j}', _MERGER, 'visual.deepstack', j)
  add('model.language_model.embed_tokens.weight', 'text.embed.embedding')
  for i in range(config.text.layers):
    add_all(f'model.language_model.layers.{i}', _TEXT_LAYER, 'text.layers', i)
  add('model.language_model.norm.weight', 'text.norm.scale')
  if not config.tied:
    add('lm_head.weight', 'head.kernel')
  return table


def to_our_layout(tensor: np.ndarray, form: str) -> np.ndarray:
  """Returns a tensor (or a block of its first axis) in our layout, as a view where possible."""
  if form == 'patches':  # [W, 3, time, h, w] -> [time, 3 * h * w, W]
    return tensor.transpose(2, 1, 3, 4, 0).reshape(tensor.shape[2], -1, tensor.shape[0])
  return tensor.T if form == 'transposed' else tensor


def to_their_layout(config: Config, array: np.ndarray, form: str) -> np.ndarray:
  """Returns a contiguous array in Hugging Face's layout; the inverse of `to_our_layout`."""
  if form == 'transposed':
    return _transpose_copy(array)
  return np.ascontiguousarray(_their_view(config, array, form))


def _their_view(config: Config, array: np.ndarray, form: str) -> np.ndarray:
  """Returns an array in Hugging Face's layout, without a copy of a contiguous one."""
  if form == 'patches':
    v = config.vision
    return array.reshape(v.temporal, 3, v.patch, v.patch, v.width).transpose(4, 1, 0, 2, 3)
  return array.T if form == 'transposed' else array


def _transpose_copy(array: np.ndarray) -> np.ndarray:
  """Returns a contiguous copy of `array.T`.

  The bits are copied as integers, because numpy then releases the GIL.
  """
  bits = array.view(f'u{array.itemsize}')
  out = np.empty(bits.shape[::-1], bits.dtype)
  copy_transposed(out, bits)
  return out.view(array.dtype)


def copy_transposed(out: np.ndarray, array: np.ndarray) -> None:
  """Copies `array.T` into `out`, cast to its dtype, in strips that fit the processor's cache."""
  for start in range(0, len(array), _STRIP):
    strip = array[start : start + _STRIP].astype(out.dtype, copy=False)
    out[:, start : start + _STRIP] = strip.T


def pick(config: Config, params: dict[str, Any], slot: Slot) -> np.ndarray:
  """Returns the tensor of one slot in Hugging Face's layout.

  `params` is a tree of numpy arrays with the shapes of the parameters.
  """
  return to_their_layout(config, _slice(params, slot), slot.form)


def _slice(params: dict[str, Any], slot: Slot) -> np.ndarray:
  leaf: Any = params
  for key in slot.path:
    leaf = leaf[key]
  return leaf if slot.layer is None else leaf[slot.layer]


def pick_view(config: Config, params: dict[str, Any], slot: Slot) -> np.ndarray:
  """Returns the values of `pick` without copying them, for contiguous arrays."""
  return _their_view(config, _slice(params, slot), slot.form)


def pick_blocks(config: Config, params: dict[str, Any], slot: Slot) -> Iterator[np.ndarray]:
  """Yields the rows of `pick`'s result in contiguous blocks.

  It never copies a whole transposed tensor. A tensor with the same layout is not copied at all.
  """
  yield from blocks(config, _slice(params, slot), slot.form)


def blocks(config: Config, array: np.ndarray, form: str) -> Iterator[np.ndarray]:
  """Yields the rows of one tensor in Hugging Face's layout; `array` is in our layout."""
  if form == 'transposed':
    for start in range(0, array.shape[1], _COLUMNS):
      yield _transpose_copy(array[:, start : start + _COLUMNS])
  else:
    yield to_their_layout(config, array, form)


def their_region(region: tuple[slice, ...], form: str) -> tuple[slice, ...]:
  """Returns the region of a tensor that contains a region of our array (without its layer axis).

  It is the same region. Of patches it is the smallest one that is contiguous along the first axis.
  """
  if form == 'patches':
    return (region[2], *[slice(None)] * 4)
  return region[::-1] if form == 'transposed' else region


def their_shape(config: Config, shape: tuple[int, ...], slot: Slot) -> tuple[int, ...]:
  """Returns the shape of `pick`'s result; `shape` is that of the whole leaf."""
  shape = shape if slot.layer is None else shape[1:]
  v = config.vision
  if slot.form == 'patches':
    return (v.width, 3, v.temporal, v.patch, v.patch)
  return shape[::-1] if slot.form == 'transposed' else shape

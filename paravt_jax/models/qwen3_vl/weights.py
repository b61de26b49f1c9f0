"""Converts Hugging Face safetensors to our parameters and back, bit for bit.

One table maps the names. `stored.py` handles the variants of checkpoint folders.
"""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import model, stored
from paravt_jax.models.qwen3_vl.config import Config

_SHARD_BYTES = 5 * 10**9
# rows transposed at a time: four times as fast as the whole matrix, which does not fit the cache
_STRIP = 16
# columns per block of `pick_blocks`: a few MB, which stay in the CPU cache until they are written
_COLUMNS = 1024
# image size limits (pixels) in a saved folder, so that a server does not resize our frames
_SERVED_PIXELS = (1024, 50176)
_TOKENIZERS = (('tokenizer.json',), ('vocab.json', 'merges.txt'))
_COPIED = (
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.json',
  'merges.txt',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.json',
  'chat_template.jinja',
  'generation_config.json',
  'processor_config.json',
)

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


def _to_our_layout(tensor: np.ndarray, form: str) -> np.ndarray:
  if form == 'patches':  # [W, 3, time, h, w] -> [time, 3 * h * w, W]
    return tensor.transpose(2, 1, 3, 4, 0).reshape(tensor.shape[2], -1, tensor.shape[0])
  return tensor.T if form == 'transposed' else tensor


def _to_their_layout(config: Config, array: np.ndarray, form: str) -> np.ndarray:
  if form == 'patches':
    v = config.vision
    array = array.reshape(v.temporal, 3, v.patch, v.patch, v.width).transpose(4, 1, 0, 2, 3)
  return _transpose_copy(array) if form == 'transposed' else np.ascontiguousarray(array)


def _transpose_copy(array: np.ndarray) -> np.ndarray:
  """Returns a contiguous copy of `array.T`, made in strips.

  The bits are copied as integers, because numpy then releases the GIL.
  """
  bits = array.view(f'u{array.itemsize}')
  out = np.empty(bits.shape[::-1], bits.dtype)
  for start in range(0, len(bits), _STRIP):
    out[:, start : start + _STRIP] = bits[start : start + _STRIP].T
  return out.view(array.dtype)


def pick(config: Config, params: dict[str, Any], slot: Slot) -> np.ndarray:
  """Returns the tensor of one slot in Hugging Face's layout.

  `params` is a tree of numpy arrays with the shapes of the parameters.
  """
  return _to_their_layout(config, _slice(params, slot), slot.form)


def _slice(params: dict[str, Any], slot: Slot) -> np.ndarray:
  leaf: Any = params
  for key in slot.path:
    leaf = leaf[key]
  return leaf if slot.layer is None else leaf[slot.layer]


def pick_blocks(config: Config, params: dict[str, Any], slot: Slot) -> Iterator[np.ndarray]:
  """Yields the rows of `pick`'s result in contiguous blocks.

  It never copies a whole transposed tensor. A tensor with the same layout is not copied at all.
  """
  array = _slice(params, slot)
  if slot.form == 'transposed':
    for start in range(0, array.shape[1], _COLUMNS):
      yield _transpose_copy(array[:, start : start + _COLUMNS])
  else:
    yield _to_their_layout(config, array, slot.form)


def their_shape(config: Config, shape: tuple[int, ...], slot: Slot) -> tuple[int, ...]:
  """Returns the shape of `pick`'s result; `shape` is that of the whole leaf."""
  shape = shape if slot.layer is None else shape[1:]
  v = config.vision
  if slot.form == 'patches':
    return (v.width, 3, v.temporal, v.patch, v.patch)
  return shape[::-1] if slot.form == 'transposed' else shape


def load_hf(
  folder: str | os.PathLike, only: Collection[tuple[str, ...]] | None = None
) -> tuple[Config, dict[str, Any]]:
  """Reads a checkpoint folder (one safetensors file, or several with an index).

  Args:
    only: paths of the leaves to read, such as ('visual', 'pos_embed', 'embedding'); None for all.

  Returns:
    (config, parameters as numpy arrays). All arrays have the dtype in which most numbers are
    stored. One tensor is read at a time.

  Raises:
    DataError: a file is missing or unreadable, a name is unknown or missing, a shape or dtype does
      not fit the config, or a tied model stores a head that differs from its embedding.
    ConfigError: config.json is not of the dense Qwen3-VL family.
  """
  folder = pathlib.Path(folder)
  config = Config.from_hf(_read_json(folder / 'config.json'))
  table, params, files = name_table(config), {}, _weight_files(folder)
  wanted = {name for name, slot in table.items() if only is None or slot.path in only}
  found = stored.tensors(files)
  _refuse_names(config, found, table, wanted, folder)
  dtype = stored.main_dtype([found[name] for name in table if name in found])
  for file in files:
    chosen = [tensor for name, tensor in found.items() if tensor.file == file and name in wanted]
    for tensor, array in stored.arrays(file, chosen, dtype):
      _fill(
        config,
        params,
        model.abstract_params(config),
        table[tensor.name],
        array,
        f'{file}: {tensor.key}',
      )
  if config.tied and stored.HEAD in found:
    stored.refuse_other_head(found[stored.HEAD], found[stored.EMBEDDING])
  stored.tell_casts(folder, [tensor for name, tensor in found.items() if name in wanted], dtype)
  return config, params


def _refuse_names(
  config: Config, found: dict, table: dict[str, Slot], wanted: set[str], folder: pathlib.Path
) -> None:
  """Raises DataError if the files have unknown tensors or lack wanted ones.

  A tied model may also store its head.
  """
  known = set(table) | ({stored.HEAD} if config.tied else set())
  unknown = sorted(set(found) - known)
  if unknown:
    first = found[unknown[0]]
    raise DataError(
      f'{first.file}: got {len(unknown)} unknown tensors, such as {first.key!r}, wanted only '
      'those of the model in '
      'config.json; check that weights and config (tie_word_embeddings, too) belong together'
    )
  missing = sorted((wanted | ({stored.EMBEDDING} if stored.HEAD in found else set())) - set(found))
  if missing:
    raise DataError(
      f'{folder}: got {len(wanted & set(found))} of {len(wanted)} tensors, wanted also '
      f'{missing[0]!r}; '
      'a shard is missing, or config.json (tie_word_embeddings, too) is of another model'
    )


def _fill(
  config: Config, params: dict, shapes_tree: dict, slot: Slot, tensor: np.ndarray, where: str
) -> None:
  """Copies one tensor into its leaf, or into its layer of a stacked leaf.

  The first tensor of a leaf allocates it.
  """
  wanted, node = shapes_tree, params
  for key in slot.path[:-1]:
    wanted, node = wanted[key], node.setdefault(key, {})
  shape = wanted[slot.path[-1]].shape
  leaf = node.get(slot.path[-1])
  if leaf is None:
    leaf = node[slot.path[-1]] = np.empty(shape, tensor.dtype)
  target = leaf if slot.layer is None else leaf[slot.layer]
  rank = 5 if slot.form == 'patches' else target.ndim
  array = _to_our_layout(tensor, slot.form) if tensor.ndim == rank else tensor
  if array.shape != target.shape or tensor.dtype != leaf.dtype:
    raise DataError(
      f'{where}: got {tensor.dtype}{list(tensor.shape)}, wanted '
      f'{leaf.dtype}{list(_to_their_layout(config, target, slot.form).shape)}; weights and '
      'config.json do not belong together'
    )
  target[...] = array


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    names = _read_json(index)
    names = names.get('weight_map') if isinstance(names, dict) else None
    if (
      not isinstance(names, dict)
      or not names
      or not all(isinstance(name, str) for name in names.values())
    ):
      raise DataError(
        f'{index}: got no weight_map, wanted the index that transformers writes; copy or '
        'download it again'
      )
    files = sorted({folder / name for name in names.values()})
  else:
    files = [folder / 'model.safetensors']
  for file in files:
    if not file.exists():
      raise DataError(f'{file}: no such file, wanted the weights of {folder}; {_instead(folder)}')
  return files


def _instead(folder: pathlib.Path) -> str:
  """Returns advice for a folder without weights, based on the files that it does have."""
  pickled = sorted(folder.glob('pytorch_model*.bin'))
  if pickled:
    return (
      f'{pickled[0].name} is a pickle, which is not read: load it with transformers and '
      'save_pretrained(safe_serialization=True)'
    )
  shards = sorted(folder.glob('model-*-of-*.safetensors'))
  if shards and not (folder / 'model.safetensors.index.json').exists():
    return (
      f'{shards[0].name} is a part of it: download model.safetensors.index.json, which names '
      'the parts, too'
    )
  return 'download or export the checkpoint again'


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(file.read_text())
  except OSError as error:
    raise DataError(
      f'{file}: cannot be read ({error.strerror}), wanted a Hugging Face checkpoint folder; '
      'check the path'
    ) from error
  except ValueError as error:
    raise DataError(f'{file}: is not JSON ({error}); copy or download it again') from error


def save_hf(
  folder: str | os.PathLike,
  config: Config,
  params: dict[str, Any],
  tokenizer_folder: str | os.PathLike,
) -> None:
  """Writes a folder that transformers, SGLang and `load_hf` can read.

  The folder is written completely or not at all. An existing checkpoint folder is replaced.

  Args:
    folder: the checkpoint folder; its parent must exist.
    params: fully addressable arrays; each keeps its dtype.
    tokenizer_folder: tokenizer and processor files are copied from here. The processor's image
      size is set to [1024, 50176] pixels, so that a server does not resize our frames.

  Raises:
    DataError: `params` do not fit `config`, `tokenizer_folder` has no tokenizer, or writing fails.
  """
  folder, source = pathlib.Path(folder), pathlib.Path(tokenizer_folder)
  if not any(all((source / name).exists() for name in names) for names in _TOKENIZERS):
    raise DataError(
      f'{source}: got no tokenizer.json, nor vocab.json and merges.txt, wanted the folder of '
      'the tokenizer that the '
      'model was trained with'
    )
  if folder.exists() and not (folder / 'config.json').exists() and any(folder.iterdir()):
    raise DataError(
      f'{folder}: exists and is no checkpoint, wanted a new folder or one to replace; choose '
      'another'
    )
  _check_params(config, params)
  try:
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
      dtype = str(np.dtype(params['text']['embed']['embedding'].dtype))
      _write_weights(temporary, config, params)
      write_companions(temporary, config, dtype, source)
      temporary.chmod(0o755)
      if folder.exists():
        aside = temporary.with_name(temporary.name + '.old')
        folder.rename(aside)
        temporary.rename(folder)
        shutil.rmtree(aside)
      else:
        temporary.rename(folder)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  except (OSError, SafetensorError) as error:
    raise DataError(
      f'{folder}: could not be written ({error}); nothing was left behind, free space or '
      'choose another '
      'place'
    ) from error


def write_companions(
  folder: pathlib.Path, config: Config, dtype: str, source: pathlib.Path
) -> None:
  """Writes a checkpoint folder except its weights: config.json, tokenizer and processor files.

  The tokenizer comes from the folder `source`; see `save_hf` for the processor files.

  Raises:
    OSError: writing fails.
  """
  _write_json(folder / 'config.json', config.to_hf(dtype))
  _write_processor(folder, config, source)


def _check_params(config: Config, params: dict[str, Any]) -> None:
  """Raises DataError unless the leaves and their shapes are exactly those of the config."""
  got = {path: leaf.shape for path, leaf in _leaves(params)}
  wanted = {path: leaf.shape for path, leaf in _leaves(model.abstract_params(config))}
  wrong = sorted(path for path in got.keys() | wanted.keys() if got.get(path) != wanted.get(path))
  if wrong:
    raise DataError(
      f'params: {".".join(wrong[0])} is {got.get(wrong[0])}, wanted {wanted.get(wrong[0])} '
      f'({len(wrong)} such); save with the config the params were made with'
    )


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
  if not isinstance(tree, dict):
    return [(path, tree)]
  return [leaf for key, child in tree.items() for leaf in _leaves(child, (*path, key))]


def _write_weights(folder: pathlib.Path, config: Config, params: dict[str, Any]) -> None:
  """Writes one file up to 5 GB, or several with an index in transformers' format."""
  leaves = dict(_leaves(params))

  def size(slot):
    leaf = leaves[slot.path]
    return leaf.nbytes // (1 if slot.layer is None else leaf.shape[0])

  # assign the tensors to files, in the order of their names
  shards, filled = [[]], 0
  for name, slot in sorted(name_table(config).items()):
    if shards[-1] and filled + size(slot) > _SHARD_BYTES:
      shards.append([])
      filled = 0
    shards[-1].append((name, slot))
    filled += size(slot)

  weight_map = {}
  host = jax.tree.map(np.asarray, params)
  for i, shard in enumerate(shards):
    file = (
      'model.safetensors'
      if len(shards) == 1
      else f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    )
    save_file(
      {name: pick(config, host, slot) for name, slot in shard},
      folder / file,
      metadata={'format': 'pt'},
    )
    weight_map |= {name: file for name, _ in shard}
  if len(shards) > 1:
    total = sum(leaf.nbytes for leaf in leaves.values())
    _write_json(
      folder / 'model.safetensors.index.json',
      {'metadata': {'total_size': total}, 'weight_map': weight_map},
    )


def _write_processor(folder: pathlib.Path, config: Config, source: pathlib.Path) -> None:
  """Copies the tokenizer files and writes processor files with our image size.

  If `source` has no processor files, they are made from the config.
  """
  for name in _COPIED:
    if (source / name).exists():
      shutil.copyfile(source / name, folder / name)
  v, (least, most) = config.vision, _SERVED_PIXELS
  ours = {
    'patch_size': v.patch,
    'temporal_patch_size': v.temporal,
    'merge_size': v.merge,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    'processor_class': 'Qwen3VLProcessor',
    'size': {'shortest_edge': least, 'longest_edge': most},
  }
  kinds = {
    'preprocessor_config.json': {'image_processor_type': 'Qwen2VLImageProcessorFast'},
    'video_preprocessor_config.json': {'video_processor_type': 'Qwen3VLVideoProcessor'},
  }
  for name, kind in kinds.items():
    old = _read_json(source / name) if (source / name).exists() else kind
    extra = {key: value for key, value in old.items() if key not in ('min_pixels', 'max_pixels')}
    _write_json(folder / name, {**extra, **ours})


def _write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
  file.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')

"""Reads Hugging Face safetensors into our parameters, bit for bit: on the host, or on a mesh.

`names.py` maps names and layouts, `stored.py` handles the variants of checkpoint folders, and
`export.py` writes. Their functions for other modules are also here.
"""

import collections
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import export, model, stored
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.models.qwen3_vl.export import save_hf, write_companions
from paravt_jax.models.qwen3_vl.names import (
  Slot,
  copy_transposed,
  name_table,
  pick,
  pick_blocks,
  pick_view,
  their_region,
  their_shape,
  to_our_layout,
)
from paravt_jax.models.qwen3_vl.stored import Stored

__all__ = [
  'Slot',
  'load_hf',
  'load_sharded',
  'name_table',
  'pick',
  'pick_blocks',
  'pick_view',
  'read_config',
  'save_hf',
  'stored_dtype',
  'their_shape',
  'write_companions',
]

Index = tuple[slice, ...]
Path = tuple[str, ...]  # of a leaf, such as ('visual', 'pos_embed', 'embedding')


class _Checkpoint(NamedTuple):
  """A folder whose names and shapes fit its config."""

  folder: pathlib.Path
  config: Config
  table: dict[str, Slot]
  found: dict[str, Stored]  # all tensors of the files
  wanted: set[str]
  dtype: np.dtype  # of most numbers
  shapes: dict[Path, tuple[int, ...]]  # of all leaves; empty if no tensor is wanted


def read_config(folder: str | os.PathLike) -> Config:
  """Returns the sizes in a folder's config.json.

  Raises:
    DataError: there is no such file.
    ConfigError: it is not of the dense Qwen3-VL family.
  """
  return Config.from_hf(stored.read_json(pathlib.Path(folder) / 'config.json'))


def stored_dtype(folder: str | os.PathLike) -> str:
  """Returns the name of the dtype in which most numbers of a folder are stored.

  Raises:
    DataError: as `load_hf`.
  """
  return _open(folder, ()).dtype.name


def stored_shard_bytes(folder: str | os.PathLike) -> int:
  """Returns the size of a folder's largest weight file; the usual limit if it has one file.

  An export that keeps to it is cut into about as many files.

  Raises:
    DataError: as `load_hf`.
  """
  files = _weight_files(pathlib.Path(folder))
  return max(file.stat().st_size for file in files) if len(files) > 1 else export.SHARD_BYTES


def load_hf(
  folder: str | os.PathLike, only: Collection[Path] | None = None
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
  opened = _open(folder, only)
  params: dict[str, Any] = {}
  for file in sorted({tensor.file for tensor in opened.found.values()}):
    chosen = [t for name, t in opened.found.items() if t.file == file and name in opened.wanted]
    for tensor, array in stored.arrays(file, chosen, opened.dtype):
      _fill(params, opened.shapes, opened.table[tensor.name], array)
  _finish(opened)
  return opened.config, params


def load_sharded(
  folder: str | os.PathLike, places: Mapping[str, Any], dtype: str = 'float32'
) -> tuple[Config, dict[str, Any]]:
  """Reads parameters onto the devices of their shardings, without a whole copy in host memory.

  Each shard's bytes are read from the mapped files and cast there. Beside the arrays themselves,
  the host holds at most this process's shards of one leaf, and no device holds a leaf whole unless
  its sharding says so.

  Args:
    places: a sharding for each leaf to read, in the tree of the parameters. Parts of the tree may
      be missing; they are not read.
    dtype: of the result. Values are first rounded to the dtype of most stored numbers, as in
      `load_hf`.

  Raises:
    DataError, ConfigError: as `load_hf`.
  """
  named = {
    tuple(key.key for key in path): place
    for path, place in jax.tree_util.tree_leaves_with_path(places)
  }
  opened = _open(folder, named.keys())
  layers: dict[Path, list[str]] = collections.defaultdict(list)
  for name, slot in opened.table.items():  # in the order of the layers
    layers[slot.path].append(name)
  params: dict[str, Any] = {}
  with stored.Reader(opened.dtype) as reader:
    for path, place in named.items():
      node = params
      for key in path[:-1]:
        node = node.setdefault(key, {})
      leaf = _Leaf(opened, reader, layers[path], opened.shapes[path], np.dtype(dtype))
      # The next leaf is read when this one has left the host, so that only one is there.
      node[path[-1]] = jax.block_until_ready(leaf.place(place))
  _finish(opened)
  return opened.config, params


class _Leaf:
  """One leaf of the parameters, read by regions."""

  def __init__(
    self,
    opened: _Checkpoint,
    reader: stored.Reader,
    names: list[str],
    shape: tuple[int, ...],
    dtype: np.dtype,
  ):
    self._tensors = [opened.found[name] for name in names]
    slot = opened.table[names[0]]
    self._reader, self._form, self._stacked = reader, slot.form, slot.layer is not None
    self._shape, self._dtype = shape, dtype

  def place(self, place: jax.sharding.Sharding) -> jax.Array:
    """Returns the array on the devices of a sharding."""
    # Devices with the same part get the same host array.
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def shard(index: Index | None) -> np.ndarray:
      whole = (slice(None),) * len(self._shape) if index is None else index
      ends = tuple(part.indices(size)[:2] for part, size in zip(whole, self._shape))
      if ends not in read:
        read[ends] = self._read(tuple(slice(*end) for end in ends))
      return read[ends]

    return jax.make_array_from_callback(self._shape, place, shard, dtype=self._dtype)

  def _read(self, index: Index) -> np.ndarray:
    out = np.empty([part.stop - part.start for part in index], self._dtype)
    if not self._stacked:
      self._fill(out, self._tensors[0], index)
    else:
      for target, tensor in zip(out, self._tensors[index[0]], strict=True):
        self._fill(target, tensor, index[1:])
    return out

  def _fill(self, out: np.ndarray, tensor: Stored, index: Index) -> None:
    """Fills `out` with a region of one tensor, block by block."""
    for start, stop, rows in self._reader.blocks(tensor, their_region(index, self._form)):
      # The first axis there is the last one here, except where the layout is the same.
      if self._form == 'same':
        out[start:stop] = rows
      elif self._form == 'transposed':
        copy_transposed(out[:, start:stop], rows)
      else:
        out[..., start:stop] = to_our_layout(rows, self._form)[index[:-1]]


def _open(folder: str | os.PathLike, only: Collection[Path] | None) -> _Checkpoint:
  """Reads the headers of a folder and compares names and shapes with its config.

  Raises:
    DataError, ConfigError: as `load_hf`.
  """
  folder = pathlib.Path(folder)
  config = read_config(folder)
  table = name_table(config)
  wanted = {name for name, slot in table.items() if only is None or slot.path in only}
  found = stored.tensors(_weight_files(folder))
  _refuse_names(config, found, table, wanted, folder)
  dtype = stored.main_dtype([found[name] for name in table if name in found])
  shapes = _shapes(config) if wanted else {}
  for name in sorted(wanted):
    tensor, slot = found[name], table[name]
    shape = their_shape(config, shapes[slot.path], slot)
    if tensor.shape != shape:
      raise DataError(
        f'{tensor.file}: {tensor.key}: got {dtype}{list(tensor.shape)}, wanted '
        f'{dtype}{list(shape)}; weights and config.json do not belong together'
      )
  return _Checkpoint(folder, config, table, found, wanted, dtype, shapes)


def _shapes(config: Config) -> dict[Path, tuple[int, ...]]:
  return {
    tuple(key.key for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract_params(config))
  }


def _finish(opened: _Checkpoint) -> None:
  """Compares the head of a tied model with its embedding, and reports casts."""
  found = opened.found
  if opened.config.tied and stored.HEAD in found:
    stored.refuse_other_head(found[stored.HEAD], found[stored.EMBEDDING])
  used = [tensor for name, tensor in found.items() if name in opened.wanted]
  stored.tell_casts(opened.folder, used, opened.dtype)


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
  params: dict[str, Any], shapes: dict[Path, tuple[int, ...]], slot: Slot, tensor: np.ndarray
) -> None:
  """Copies one tensor into its leaf, or into its layer of a stacked leaf.

  The first tensor of a leaf allocates it.
  """
  node = params
  for key in slot.path[:-1]:
    node = node.setdefault(key, {})
  leaf = node.get(slot.path[-1])
  if leaf is None:
    leaf = node[slot.path[-1]] = np.empty(shapes[slot.path], tensor.dtype)
  target = leaf if slot.layer is None else leaf[slot.layer]
  if slot.form == 'transposed':
    copy_transposed(target, tensor)
  else:
    target[...] = to_our_layout(tensor, slot.form)


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    names = stored.read_json(index)
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

"""Writes Hugging Face checkpoint folders: completely or not at all, and leaf by leaf."""

import collections
import contextlib
import fcntl
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import model, stored
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.models.qwen3_vl.names import Slot, blocks, name_table, their_shape

SHARD_BYTES = 5 * 10**9  # of one file; as published
_ABANDONED_S = 60.0  # a folder of this age whose writer is gone is removed
Path = tuple[str, ...]  # of a leaf

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


def save_hf(
  folder: str | os.PathLike,
  config: Config,
  params: dict[str, Any],
  tokenizer_folder: str | os.PathLike,
  *,
  dtype: str | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a folder that transformers, SGLang and `load_hf` can read.

  The folder is written completely or not at all. An existing checkpoint folder is replaced. The
  host holds one layer of a stacked leaf, or one other leaf, at a time.

  Args:
    folder: the checkpoint folder; its parent must exist.
    params: arrays on the host or on devices, sharded or not. Every process of a multi-host run
      calls this, and the first one writes.
    tokenizer_folder: tokenizer and processor files are copied from here. The processor's image
      size is set to [1024, 50176] pixels, so that a server does not resize our frames.
    dtype: numpy's name of the dtype to write; None: each leaf keeps its own.
    shard_bytes: a larger model is written as several files with an index.

  Raises:
    DataError: `params` do not fit `config`, `tokenizer_folder` has no tokenizer, writing fails, or
      the dtype cannot hold a value.
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
  if jax.process_index() != 0:
    _write_weights(None, config, params, dtype, shard_bytes)
    return
  shown = dtype or np.dtype(params['text']['embed']['embedding'].dtype).name
  try:
    with _new_folder(folder) as temporary:
      _write_weights(temporary, config, params, dtype, shard_bytes)
      # config.json comes last: a folder without it is no checkpoint
      write_companions(temporary, config, shown, source)
  except OSError as error:
    raise DataError(
      f'{folder}: could not be written ({error}); nothing was left behind, free space or '
      'choose another '
      'place'
    ) from error


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a hidden folder that gets the name `folder` at the end, or is removed on an error.

  It also removes what killed processes left of the same folder.
  """
  _sweep(folder)
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}.writing-', dir=folder.parent))
  lock = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
  try:
    # The system releases the lock when this process ends, also when it is killed.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield temporary
    temporary.chmod(0o755)
    if folder.exists():
      aside = temporary.with_name(temporary.name + '.old')
      folder.rename(aside)
      temporary.rename(folder)
      shutil.rmtree(aside, ignore_errors=True)
    else:
      temporary.rename(folder)
  finally:
    os.close(lock)
    shutil.rmtree(temporary, ignore_errors=True)


def _sweep(folder: pathlib.Path) -> None:
  """Removes the hidden folders of `folder` whose process is gone."""
  for left in folder.parent.glob(f'.{folder.name}.writing-*'):
    try:
      # A folder that was just made is not locked yet.
      if time.time() - left.stat().st_mtime < _ABANDONED_S:
        continue
      lock = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
      continue
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(left, ignore_errors=True)
    except OSError:  # its process is alive
      pass
    finally:
      os.close(lock)


def write_companions(
  folder: pathlib.Path, config: Config, dtype: str, source: pathlib.Path
) -> None:
  """Writes a checkpoint folder except its weights: config.json, tokenizer and processor files.

  The tokenizer comes from the folder `source`; see `save_hf` for the processor files.

  Raises:
    OSError: writing fails.
  """
  _write_processor(folder, config, source)
  _write_json(folder / 'config.json', config.to_hf(dtype))


def _check_params(config: Config, params: dict[str, Any]) -> None:
  """Raises DataError unless the leaves and their shapes are exactly those of the config."""
  got = {path: leaf.shape for path, leaf in leaves(params)}
  wanted = {path: leaf.shape for path, leaf in leaves(model.abstract_params(config))}
  wrong = sorted(path for path in got.keys() | wanted.keys() if got.get(path) != wanted.get(path))
  if wrong:
    raise DataError(
      f'params: {".".join(wrong[0])} is {got.get(wrong[0])}, wanted {wanted.get(wrong[0])} '
      f'({len(wrong)} such); save with the config the params were made with'
    )


def leaves(tree: dict[str, Any], path: Path = ()) -> list[tuple[Path, Any]]:
  """Returns (path, leaf) of a nested dict of parameters."""
  if not isinstance(tree, dict):
    return [(path, tree)]
  return [leaf for key, child in tree.items() for leaf in leaves(child, (*path, key))]


class Tensor(NamedTuple):
  """One tensor of a folder to be written."""

  name: str
  slot: Slot
  dtype: str  # numpy's name
  shape: tuple[int, ...]
  bytes: int


def plan(
  config: Config, dtypes: Mapping[Path, str] | str, shard_bytes: int
) -> dict[str, list[Tensor]]:
  """Returns the tensors of each file, in their order: one file, or several of at most `shard_bytes`.

  It needs no arrays. A single tensor above `shard_bytes` has a file of its own.

  Args:
    dtypes: numpy's name of the dtype, of all leaves or by path.
  """
  shapes = {path: leaf.shape for path, leaf in leaves(model.abstract_params(config))}
  shards: list[list[Tensor]] = [[]]
  filled = 0
  for name, slot in sorted(name_table(config).items()):
    dtype = dtypes if isinstance(dtypes, str) else dtypes[slot.path]
    shape = their_shape(config, shapes[slot.path], slot)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if shards[-1] and filled + size > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(Tensor(name, slot, dtype, shape, size))
    filled += size
  if len(shards) == 1:
    return {'model.safetensors': shards[0]}
  return {
    f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors': shard for i, shard in enumerate(shards)
  }


def index(files: Mapping[str, list[Tensor]]) -> dict[str, Any]:
  """Returns the content of model.safetensors.index.json, in transformers' format."""
  return {
    'metadata': {'total_size': sum(one.bytes for tensors in files.values() for one in tensors)},
    'weight_map': {one.name: file for file, tensors in files.items() for one in tensors},
  }


def _write_weights(
  folder: pathlib.Path | None,
  config: Config,
  params: dict[str, Any],
  dtype: str | None,
  shard_bytes: int,
) -> None:
  """Writes the files and, if there are several, their index.

  It takes the parameters leaf by leaf and layer by layer, so the host never holds more than one
  layer of a stacked leaf, or one other leaf. folder: None takes part in gathering distributed
  arrays and writes nothing.
  """
  named = dict(leaves(params))
  dtypes = {path: dtype or np.dtype(leaf.dtype).name for path, leaf in named.items()}
  files = plan(config, dtypes, shard_bytes)
  places: dict[Path, list[tuple[Tensor, str, int]]] = collections.defaultdict(list)
  with contextlib.ExitStack() as stack:
    opened = {}
    for file, tensors in files.items():
      head = stored.header({one.name: (one.dtype, one.shape, one.bytes) for one in tensors})
      end = len(head)
      for one in tensors:
        places[one.slot.path].append((one, file, end))
        end += one.bytes
      if folder is not None:
        opened[file] = stack.enter_context((folder / file).open('wb'))
        opened[file].write(head)
        opened[file].truncate(end)
    for path, leaf in named.items():
      for one, file, start in places[path]:
        array = to_host(leaf, one.slot.layer, one.dtype)
        if folder is not None:
          _refuse_overflow(array, one.name)
          opened[file].seek(start)
          for block in blocks(config, array, one.slot.form):
            opened[file].write(block.reshape(-1).view(np.uint8).data)
    for handle in opened.values():  # a machine that stops later has the files, too
      handle.flush()
      os.fsync(handle.fileno())
  if folder is not None and len(files) > 1:
    _write_json(folder / 'model.safetensors.index.json', index(files))


def to_host(leaf: Any, layer: int | None, dtype: str) -> np.ndarray:
  """Returns a leaf, or one layer of it, in host memory. It is cast on its devices."""
  if not isinstance(leaf, jax.Array):
    array = np.asarray(leaf if layer is None else leaf[layer])
    with np.errstate(over='ignore'):
      return array.astype(dtype, copy=False)
  array = _cast(leaf, dtype) if layer is None else _cast_layer(leaf, layer, dtype)
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


@functools.partial(jax.jit, static_argnums=1)
def _cast(leaf: jax.Array, dtype: str) -> jax.Array:
  return leaf.astype(dtype)


@functools.partial(jax.jit, static_argnums=2)
def _cast_layer(leaf: jax.Array, layer: int, dtype: str) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False).astype(dtype)


def _refuse_overflow(array: np.ndarray, name: str) -> None:
  # float16 alone has a smaller range than what is trained
  if array.dtype == np.float16 and not np.isfinite(array).all():
    raise DataError(
      f'{name}: has values that float16 cannot hold, wanted at most 65504; begin from a folder '
      'in bfloat16 or float32'
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
    old = stored.read_json(source / name) if (source / name).exists() else kind
    extra = {key: value for key, value in old.items() if key not in ('min_pixels', 'max_pixels')}
    _write_json(folder / name, {**extra, **ours})


def _write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
  file.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')

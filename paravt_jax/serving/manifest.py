"""The manifest of a published weight version: a JSON file next to the arrays, with content hashes.

    {format, version, adapter: {rank, alpha, products} | null,
     arrays: {name: {shape, dtype, shards: [{index: [[start, stop], ...], hash}]}},
     frozen: {name: hash}, canary, files: {path: [bytes, hash | null]}, tree, seal}

`arrays` are published. With `adapter`, they are a low-rank adapter of that form (models/lora.py),
and all arrays of the model are `frozen`. `frozen` are the model's other arrays, unchanged since the base model.
`files` are those of the array store, with a hash where a shard's hash does not cover every byte.
`tree` is the model's identity: a hash over the names and hashes of all arrays. `seal` is a hash
over the manifest itself, which reveals edits.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes
import numpy as np

from paravt_jax.errors import SyncError
from paravt_jax.models.lora import Adapter

FILE = 'manifest.json'
FORMAT = 4  # increases when the manifest changes
DTYPES = ('bfloat16', 'float32')
# threads; hashing releases the GIL. More than 16 wait for the memory
HASHERS = min(16, max(4, os.cpu_count() or 4))
BLOCK = 4 << 20  # bytes that one thread hashes at a time
_SMALL = 1 << 20  # files up to this size are hashed whole
_DIGEST_BYTES = 16

Params = dict[str, Any]
Index = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Shard:
  """A part of an array."""

  index: Index  # [start, stop) per axis
  hash: str  # of its bytes in row-major order


@dataclasses.dataclass(frozen=True)
class Entry:
  """One published array."""

  shape: tuple[int, ...]
  dtype: str  # 'float32' or 'bfloat16'
  shards: tuple[Shard, ...]  # together they cover the whole array

  def text(self) -> str:
    """Formats the entry as 'float32[8, 30]'."""
    return f'{self.dtype}{list(self.shape)}'


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The manifest of a published version. The module docstring explains its fields."""

  version: int
  arrays: dict[str, Entry]  # name -> the published array
  frozen: dict[str, str]  # name -> hash of the model's other arrays
  canary: dict[str, Any] | None  # as JSON
  files: dict[str, tuple[int, str | None]]  # path below the array folder -> (bytes, hash or None)
  adapter: Adapter | None = None  # the form of an adapter, where the arrays are one

  @property
  def tree(self) -> str:
    """Returns the model's identity.

    The same weights, published in the same dtype and shards, have the same identity.
    """
    arrays = {name: dataclasses.asdict(entry) for name, entry in self.arrays.items()}
    return _text_hash(json.dumps([arrays, self.frozen, self._form], sort_keys=True))

  @property
  def _form(self) -> dict[str, Any] | None:
    return None if self.adapter is None else dataclasses.asdict(self.adapter)

  def to_text(self) -> str:
    """Returns the file's text, byte for byte what `read` accepts."""
    arrays = {
      name: {
        'shape': entry.shape,
        'dtype': entry.dtype,
        'shards': [{'index': shard.index, 'hash': shard.hash} for shard in entry.shards],
      }
      for name, entry in self.arrays.items()
    }
    body = {
      'format': FORMAT,
      'version': self.version,
      'adapter': self._form,
      'arrays': arrays,
      'frozen': self.frozen,
      'canary': self.canary,
      'files': self.files,
      'tree': self.tree,
    }
    body['seal'] = _text_hash(json.dumps(body, sort_keys=True))
    return json.dumps(body, indent=1, sort_keys=True) + '\n'


def read(folder: str | os.PathLike) -> Manifest:
  """Reads the manifest of one published version.

  Raises:
    SyncError: it is missing, broken or edited, or its version differs from the folder's name.
  """
  folder = pathlib.Path(folder)
  file = folder / FILE
  try:
    text = file.read_bytes().decode()
    found = parse(json.loads(text))
  except OSError as error:
    raise SyncError(
      f'{folder}: got no {FILE} ({error.strerror}), wanted a published version; check the path'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise SyncError(
      f'{file}: broken ({type(error).__name__}: {error}); publish it again'
    ) from error
  if found.to_text() != text:
    raise SyncError(
      f'{file}: was changed after it was published, wanted it untouched; publish it again'
    )
  if folder.name.isdecimal() and folder.name != str(found.version):
    raise SyncError(
      f'{folder}: holds version {found.version}, wanted {folder.name}, as its name says; '
      f'publish {folder.name} again'
    )
  return found


def parse(page: dict[str, Any]) -> Manifest:
  """Returns the manifest of a parsed file. Raises ValueError, KeyError or TypeError if broken."""
  if page['format'] != FORMAT or type(page['version']) is not int:
    raise ValueError(
      f'format {page["format"]!r}, version {page["version"]!r}; wanted format {FORMAT}, other '
      'releases write others'
    )
  arrays = {
    name: Entry(
      tuple(entry['shape']),
      entry['dtype'],
      tuple(
        Shard(tuple((start, stop) for start, stop in shard['index']), shard['hash'])
        for shard in entry['shards']
      ),
    )
    for name, entry in page['arrays'].items()
  }
  files = {path: (size, digest) for path, (size, digest) in page['files'].items()}
  form = page['adapter']
  adapter = form and Adapter(form['rank'], form['alpha'], tuple(form['products']))
  return Manifest(page['version'], arrays, dict(page['frozen']), page['canary'], files, adapter)


def leaves(tree: Params) -> dict[str, Any]:
  """Returns the leaves of a tree by path, such as 'text/embed/embedding'."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}


def nest(named: Mapping[str, Any]) -> Params:
  """Returns the tree of nested dicts that `leaves` flattens to the given names."""
  tree: Params = {}
  for name, leaf in named.items():
    *parents, last = name.split('/')
    functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
  return tree


def inspect(arrays: Sequence[np.ndarray]) -> list[tuple[str, bool]]:
  """Returns (hash, finite) per array.

  The hash covers the array's bytes in row-major order. `finite` says whether all values (float32 or
  bfloat16) are finite.
  """
  with ThreadPoolExecutor(HASHERS) as pool:
    return [_join(parts) for parts in by_block(pool, arrays, [_inspect_block] * len(arrays))]


def fill(arrays: Sequence[np.ndarray], files: Sequence[pathlib.Path]) -> list[tuple[str, bool]]:
  """Reads each file into its contiguous array. Returns (hash, finite) per array, as `inspect`.

  It inspects each block while the block is in the processor's cache.

  Raises:
    OSError: a file cannot be read or is too short.
  """
  with contextlib.ExitStack() as stack:
    opened = [stack.enter_context(file.open('rb', buffering=0)).fileno() for file in files]
    readers = [functools.partial(_read_block, handle) for handle in opened]
    with ThreadPoolExecutor(HASHERS) as pool:
      return [_join(parts) for parts in by_block(pool, arrays, readers)]


def frozen_hashes(named: Mapping[str, Any]) -> dict[str, str]:
  """Returns hashes that compare arrays between processes.

  They cover values rounded to bfloat16, so the stored dtype does not matter.

  Args:
    named: name -> whole array, of numpy or of jax if this process can address it.
  """
  with ThreadPoolExecutor(HASHERS) as pool:
    return {
      name: _join(by_block(pool, [np.asarray(array)], [_rounded_block])[0])
      for name, array in named.items()
    }


def by_block(
  pool: Executor,
  arrays: Sequence[np.ndarray],
  functions: Sequence[Callable[[np.ndarray, int], Any]],
) -> list[list[Any]]:
  """Calls each array's function with its blocks (block, its first byte). Returns the results by
  array.

  Blocks let one large array use every thread.
  """
  calls = []
  for array, function in zip(arrays, functions, strict=True):
    flat = np.ascontiguousarray(array).reshape(-1)
    step = BLOCK // flat.itemsize
    calls.append(
      [
        pool.submit(function, flat[start : start + step], start * flat.itemsize)
        for start in range(0, max(flat.size, 1), step)
      ]
    )
  return [[call.result() for call in own] for own in calls]


def _join(parts: list[Any]) -> Any:
  if isinstance(parts[0], bytes):
    return hashlib.sha256(b''.join(parts)).hexdigest()[: 2 * _DIGEST_BYTES]
  return _join([digest for digest, _ in parts]), all(finite for _, finite in parts)


def _hash_block(block: np.ndarray) -> bytes:
  return hashlib.sha256(block.view(np.uint8).data).digest()


def _rounded_block(block: np.ndarray, start: int) -> bytes:
  return _hash_block(block.astype(ml_dtypes.bfloat16))


def _inspect_block(block: np.ndarray, start: int) -> tuple[bytes, bool]:
  return _hash_block(block), finite(block)


def _read_block(file: int, block: np.ndarray, start: int) -> tuple[bytes, bool]:
  left = block.view(np.uint8).data
  while left:
    count = os.preadv(file, [left], start)
    if not count:
      raise OSError(f'{len(left)} bytes are missing at {start}')
    left, start = left[count:], start + count
  return _inspect_block(block, start)


def finite(block: np.ndarray) -> bool:
  """Returns whether float32 or bfloat16 values are all finite.

  Two maxima over the bits take a quarter of the time of isfinite.
  """
  if not block.size:
    return True
  if block.itemsize == 4:
    signed = np.int32
    unsigned = np.uint32
    infinite = 0x7F800000
  else:
    signed = np.int16
    unsigned = np.uint16
    infinite = 0x7F80
  negative = infinite | 1 << 8 * block.itemsize - 1
  return bool(block.view(signed).max() < infinite and block.view(unsigned).max() < negative)


def list_files(folder: pathlib.Path) -> dict[str, tuple[int, str | None]]:
  """Lists every file below `folder`: its size, and its hash if it is small.

  Raises:
    OSError: a file cannot be read.
  """
  found = {}
  for path in sorted(path for path in folder.rglob('*') if not path.is_dir()):
    size = path.stat().st_size
    found[path.relative_to(folder).as_posix()] = (
      size,
      _bytes_hash(path.read_bytes()) if size <= _SMALL else None,
    )
  return found


def shard_index(index: Iterable[slice], shape: Sequence[int]) -> Index:
  """Returns the slices of an array of this shape as [start, stop) pairs."""
  return tuple(one.indices(size)[:2] for one, size in zip(index, shape))


def _bytes_hash(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[: 2 * _DIGEST_BYTES]


def _text_hash(text: str) -> str:
  return _bytes_hash(text.encode())

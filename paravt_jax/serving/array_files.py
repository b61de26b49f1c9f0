"""Reads and writes the arrays of a weight version on disk: one file of bytes per shard.

Orbax writes them as uncompressed Zarr, so a reader needs only the manifest and the files. Several
processes write into one folder, each its own shards.
"""

import errno
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jax.experimental import multihost_utils

from paravt_jax.errors import SyncError
from paravt_jax.serving import manifest
from paravt_jax.serving.manifest import Entry, Manifest, Shard

ARRAYS = 'arrays'


_UNSYNCED = tensorstore.Context({'file_io_sync': False, 'file_io_concurrency': {'limit': 128}})


class _HostArrays(ocp.type_handlers.NumpyHandler):
  """Orbax's writer of host arrays, without fsync."""

  async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
    return await super().serialize(values, _disable_fsync(infos), args)


class _DeviceArrays(ocp.type_handlers.ArrayHandler):
  """Orbax's writer of device arrays, without fsync."""

  async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
    return await super().serialize(values, _disable_fsync(infos), args)


def _disable_fsync(infos: Any) -> Any:
  for info in infos:
    info.ts_context = _UNSYNCED
  return infos


def _handler() -> ocp.PyTreeCheckpointHandler:
  """Returns a handler that writes each shard as one file of its bytes, without splitting
  replicas.
  """
  writers = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, _HostArrays(deepcopy_host_arrays=False)),
    (jax.Array, _DeviceArrays(use_replica_parallel=False)),
  )
  return ocp.PyTreeCheckpointHandler(
    use_ocdbt=False, use_compression=False, type_handler_registry=writers
  )


def snapshot(leaf: Any) -> Any:
  """Returns a copy in host memory. An accelerator's array is copied by shard to pinned memory."""
  if not isinstance(leaf, jax.Array):
    return np.array(leaf)
  platform = next(iter(leaf.sharding.device_set)).platform
  place = leaf.sharding if platform == 'cpu' else leaf.sharding.with_memory_kind('pinned_host')
  return jax.device_put(leaf, place, may_alias=False)


def whole(leaf: Any) -> np.ndarray:
  """Returns the whole array in host memory, gathered over processes if it is distributed.

  leaf: an array, or a function that returns it.
  """
  if callable(leaf):
    leaf = leaf()
  if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
    return multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf)


def write(folder: pathlib.Path, named: Mapping[str, Any]) -> dict[str, Entry]:
  """Writes this process's part of the arrays into an empty folder.

  Returns:
    The entries of all arrays, with the shards and hashes of this process.

  Raises:
    OSError, ValueError, RuntimeError: no space, no permission, or another fault of the store.
  """
  _refuse_too_large(folder.parent, named)
  # Hashing and writing both read the arrays, and neither needs the other.
  with ThreadPoolExecutor(1) as side:
    entries = side.submit(_entries, named)
    _handler().save(epath.Path(folder), args=ocp.args.PyTreeSave(manifest.nest(named)))
  return entries.result()


def _refuse_too_large(folder: pathlib.Path, named: Mapping[str, Any]) -> None:
  """Raises OSError if the arrays do not fit on the disk.

  Orbax's own error would be lost among tracebacks of its other writers.
  """
  need = sum(leaf.nbytes for leaf in named.values()) // jax.process_count()
  if shutil.disk_usage(folder).free < need:
    raise OSError(errno.ENOSPC, f'{os.strerror(errno.ENOSPC)}: {need / 1e6:.0f} MB are wanted')
  # Some file systems limit the size of one file, so try a sparse file of that size.
  with tempfile.TemporaryFile(dir=folder) as probe:
    probe.truncate(max((_largest_shard(leaf) for leaf in named.values()), default=0))


def _largest_shard(leaf: Any) -> int:
  """Returns the bytes of the largest file that an array becomes."""
  shape = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
  return math.prod(shape) * leaf.dtype.itemsize


def _entries(named: Mapping[str, Any]) -> dict[str, Entry]:
  shards = {name: _own_shards(leaf) for name, leaf in named.items()}
  hashes = iter(manifest.inspect([data for own in shards.values() for _, data in own]))
  return {
    name: Entry(
      tuple(leaf.shape),
      np.dtype(leaf.dtype).name,
      tuple(Shard(index, next(hashes)[0]) for index, _ in shards[name]),
    )
    for name, leaf in named.items()
  }


def _own_shards(leaf: Any) -> list[tuple[manifest.Index, np.ndarray]]:
  """Returns the (index, values) of the shards that this process must hash.

  Exactly one process hashes each part of the array.
  """
  if isinstance(leaf, jax.Array):
    return [
      (manifest.shard_index(shard.index, leaf.shape), np.asarray(shard.data))
      for shard in leaf.addressable_shards
      if shard.replica_id == 0
    ]
  return (
    [(tuple((0, size) for size in leaf.shape), np.asarray(leaf))]
    if jax.process_index() == 0
    else []
  )


def layout(page: Manifest) -> list[tuple[str, Shard, str]]:
  """Returns (name, shard, file) of all shards.

  An uncompressed Zarr chunk contains the bytes of its shard in row-major order.

  Raises:
    ValueError: a file and its shard differ in size, or the shards are not the whole array.
  """
  found = []
  for name, entry in page.arrays.items():
    written = 0
    for shard in entry.shards:
      chunk = '.'.join(str(start // (stop - start)) for start, stop in shard.index) or '0'
      file = f'{name.replace("/", ".")}/{chunk}'
      size = math.prod(stop - start for start, stop in shard.index)
      if page.files.get(file, (None,))[0] != size * np.dtype(entry.dtype).itemsize:
        raise ValueError(f'{name!r}: file {file!r} is not the {size} values of a shard')
      written += size
      found.append((name, shard, file))
    if written != math.prod(entry.shape):
      raise ValueError(
        f'{name!r} has {math.prod(entry.shape)} values, of which {written} were written'
      )
  return found


def reason(error: BaseException) -> str:
  """Formats an error of the store as one line."""
  return ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:400]


def read(folder: pathlib.Path, page: Manifest) -> dict[str, np.ndarray]:
  """Reads and checks the arrays of a published version, in one pass over the files.

  Args:
    folder: `weights/<version>`, which contains the folder of the arrays.

  Raises:
    SyncError: a file cannot be read, an array is not finite, or it differs from what was published.
  """
  named = {name: np.empty(entry.shape, entry.dtype) for name, entry in page.arrays.items()}
  try:
    files = layout(page)
    # Each file is read straight into its place in the whole array, or through a buffer if that
    # place is not contiguous.
    places = [
      named[name][tuple(slice(start, stop) for start, stop in shard.index)]
      for name, shard, _ in files
    ]
    parts = [
      place if place.flags.c_contiguous else np.empty(place.shape, place.dtype) for place in places
    ]
    inspected = manifest.fill(parts, [folder / ARRAYS / file for _, _, file in files])
  except (OSError, ValueError) as error:
    raise SyncError(
      f'{folder}: the arrays cannot be read ({reason(error)}); publish it again'
    ) from error
  for (name, shard, _), place, part, (found, finite) in zip(
    files, places, parts, inspected, strict=True
  ):
    check(folder, name, found == shard.hash, finite)
    if part is not place:
      place[...] = part
  return named


def check(folder: pathlib.Path, name: str, same: bool, finite: bool) -> None:
  """Raises SyncError for an array that is not what was published, or not finite."""
  if not same:
    raise SyncError(f'{folder}: {name!r} has other content than was published; publish it again')
  if not finite:
    raise SyncError(f'{folder}: {name!r} holds values that are not finite; publish it again')

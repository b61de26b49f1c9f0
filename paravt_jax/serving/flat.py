"""A weight version as one flat file, for servers on the machine of the learner.

`<version>/` holds `weights.bin` (all arrays one after the other, each at a multiple of 64 bytes, in
the order of their names) and `manifest.json` (see `manifest`), in which each array is one shard.
Its hash is XXH3, which is as fast as the memory: it finds damage, and nobody but the owner can
write into the folder.
The folder is in memory. A server maps the file, so reading copies nothing: it checks every block
against the manifest, and uses the arrays where they are.

The file is not changed after its folder has its name. One that is removed stays readable for those
that have mapped it.
"""

import dataclasses
import errno
import functools
import logging
import math
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

from paravt_jax import files
from paravt_jax.errors import SyncError
from paravt_jax.serving import array_files, manifest, owned_folders
from paravt_jax.serving.manifest import Entry, Manifest, Shard

FILE = 'weights.bin'
KEEP = 2  # versions: the one that is served, and the one that is written
_PREFIX = 'paravt-weights-'
_ALIGNED = 64  # bytes; JAX uses an array of the host in place at such an address

log = logging.getLogger('paravt.publish')


def offsets(entries: Mapping[str, Entry]) -> tuple[dict[str, int], int]:
  """Returns the first byte of each array in the file, and the size of the file."""
  found, end = {}, 0
  for name in sorted(entries):
    found[name] = end
    end += -(-entry_bytes(entries[name]) // _ALIGNED) * _ALIGNED
  return found, end


def entry_bytes(entry: Entry) -> int:
  """Returns the size of an array."""
  return math.prod(entry.shape) * np.dtype(entry.dtype).itemsize


class Store:
  """Versions in memory, in a folder of this process that goes when the process ends.

  If the process is killed, the next run removes the folder.
  """

  def __init__(self, parent: pathlib.Path = owned_folders.MEMORY):
    self._parent, self._place = parent, owned_folders.Place(parent, _PREFIX)
    self._warned = False

  def write(self, page: Manifest, named: Mapping[str, Any]) -> pathlib.Path | None:
    """Writes a version. Returns its folder, or None if memory has no room for it.

    Args:
      page: the version; its arrays and files are filled in here.
      named: arrays that no other code changes meanwhile.

    Raises:
      SyncError: an array is not finite.
    """
    try:
      folder = self._place.open()
      for old in sorted(_versions(folder))[: -(KEEP - 1)]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
      target = folder / str(page.version)
      with files.replacing_folder(target) as part:
        write(part, page, {name: array_files.whole(leaf) for name, leaf in named.items()})
      return target
    except OSError as error:
      log.log(
        logging.INFO if self._warned else logging.WARNING,
        'weights %d do not go through memory (%s: %s); servers read them from the disk, which is '
        'slower; free memory, or set --config.publish.form=files',
        page.version,
        self._parent,
        array_files.reason(error),
      )
      self._warned = True
      return None


def _versions(folder: pathlib.Path) -> list[int]:
  return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def write(folder: pathlib.Path, page: Manifest, whole: Mapping[str, np.ndarray]) -> Manifest:
  """Writes the file and the manifest of a version into an empty folder. Returns the manifest.

  Raises:
    OSError: no space, or no permission. SyncError: an array is not finite.
  """
  whole = dict(sorted(whole.items()))
  file = folder / FILE
  places, size = offsets(_entries(whole))
  free = shutil.disk_usage(file.parent).free
  if free < size:
    raise OSError(errno.ENOSPC, f'{size / 1e6:.0f} MB are wanted, {free / 1e6:.0f} MB are free')
  with file.open('wb', buffering=0) as out:
    out.truncate(size)  # the end of the last array may be padded
    writers = [functools.partial(_write_block, out.fileno(), places[name]) for name in whole]
    page = _inspected(page, whole, writers)
  (folder / manifest.FILE).write_text(page.to_text())
  return page


def describe(page: Manifest, whole: Mapping[str, np.ndarray]) -> Manifest:
  """Returns a version's manifest as that of one flat file, which is not written.

  Raises:
    SyncError: an array is not finite.
  """
  return _inspected(page, whole, [_inspect_block] * len(whole))


def _entries(whole: Mapping[str, np.ndarray]) -> dict[str, Entry]:
  """Returns each array as one shard, without its hash."""
  return {
    name: Entry(array.shape, array.dtype.name, (Shard(tuple((0, end) for end in array.shape), ''),))
    for name, array in whole.items()
  }


def _inspected(
  page: Manifest, whole: Mapping[str, np.ndarray], inspectors: Sequence[Callable[..., Any]]
) -> Manifest:
  """Returns the manifest with the arrays, whose blocks are given to the inspectors."""
  entries = _entries(whole)
  with ThreadPoolExecutor(manifest.HASHERS) as pool:
    blocks = manifest.by_block(pool, list(whole.values()), inspectors)
  for (name, entry), own in zip(entries.items(), blocks, strict=True):
    finite = all(finite for _, finite in own)
    array_files.check(pathlib.Path(str(page.version)), name, same=True, finite=finite)
    shard = dataclasses.replace(entry.shards[0], hash=_join([digest for digest, _ in own]))
    entries[name] = dataclasses.replace(entry, shards=(shard,))
  size = offsets(entries)[1]
  return dataclasses.replace(page, arrays=entries, files={FILE: (size, None)})


def parts(folder: pathlib.Path, page: Manifest) -> dict[str, np.ndarray]:
  """Maps the arrays of a version without reading them, so without checking them. Raises SyncError."""
  places, size = offsets(page.arrays)
  try:
    data = _map(folder / FILE, size)
  except (OSError, ValueError) as error:
    raise SyncError(
      f'{folder}: {FILE} cannot be read ({array_files.reason(error)}); publish it again'
    ) from error
  named = {}
  for name, entry in page.arrays.items():
    part = data[places[name] : places[name] + entry_bytes(entry)]
    named[name] = part.view(entry.dtype).reshape(entry.shape)
  return named


def read(folder: pathlib.Path, page: Manifest) -> dict[str, np.ndarray]:
  """Maps and checks the arrays of a version. They are read-only, and stay valid if the file goes.

  Raises:
    SyncError: the file cannot be read, an array is not finite, or it differs from what was
    published.
  """
  named = parts(folder, page)
  compare(folder, page, named)
  return named


def compare(folder: pathlib.Path, page: Manifest, named: Mapping[str, np.ndarray]) -> None:
  """Raises SyncError, with the folder's name, for arrays that are not those of the manifest."""
  arrays = [named[name] for name in page.arrays]
  with ThreadPoolExecutor(manifest.HASHERS) as pool:
    blocks = manifest.by_block(pool, arrays, [_hash_block] * len(arrays))
  for (name, entry), found in zip(page.arrays.items(), blocks, strict=True):
    same = [_join(found)] == [one.hash for one in entry.shards]
    array_files.check(folder, name, same, finite=True)  # other values are not published


def _write_block(file: int, first: int, block: np.ndarray, start: int) -> tuple[bytes, bool]:
  left, place = block.view(np.uint8).data, first + start
  while left:
    count = os.pwrite(file, left, place)
    left, place = left[count:], place + count
  return _inspect_block(block, start)


def _inspect_block(block: np.ndarray, start: int) -> tuple[bytes, bool]:
  return _hash_block(block, start), manifest.finite(block)


def _hash_block(block: np.ndarray, start: int) -> bytes:
  return xxhash.xxh3_128_digest(block.view(np.uint8).data)


def _join(digests: Sequence[bytes]) -> str:
  return xxhash.xxh3_128_hexdigest(b''.join(digests))


def _map(file: pathlib.Path, size: int) -> np.ndarray:
  """Returns the bytes of a file of this size. Raises OSError, or ValueError for another size."""
  with file.open('rb') as opened:
    found = os.fstat(opened.fileno()).st_size
    if found != size:
      raise ValueError(f'{found} bytes, wanted {size}')
    # the pages are mapped at once: one fault per page would take longer than reading them
    flags = mmap.MAP_SHARED | getattr(mmap, 'MAP_POPULATE', 0)
    mapped = mmap.mmap(opened.fileno(), size, flags=flags, prot=mmap.PROT_READ)
  return np.frombuffer(mapped, np.uint8)

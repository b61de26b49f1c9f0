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
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

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
    self._parent = parent
    self._folder: pathlib.Path | None = None
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
      folder = self._open()
      for old in sorted(_versions(folder))[: -(KEEP - 1)]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
      return _write(folder, page, named)
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

  def _open(self) -> pathlib.Path:
    if self._folder is None:
      owned_folders.sweep(self._parent, _PREFIX)
      self._folder, lock = owned_folders.claim(self._parent, _PREFIX)
      weakref.finalize(self, owned_folders.release, self._folder, lock)
    return self._folder


def _versions(folder: pathlib.Path) -> list[int]:
  return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _write(parent: pathlib.Path, page: Manifest, named: Mapping[str, Any]) -> pathlib.Path:
  whole = {name: array_files.whole(leaf) for name, leaf in sorted(named.items())}
  target, partial = parent / str(page.version), parent / f'.{page.version}.part'
  for left in (partial, target):
    shutil.rmtree(left, ignore_errors=True)
  partial.mkdir()
  try:
    page = _store(partial / FILE, page, whole)
    (partial / manifest.FILE).write_text(page.to_text())
    partial.rename(target)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return target


def _store(file: pathlib.Path, page: Manifest, whole: Mapping[str, np.ndarray]) -> Manifest:
  """Writes the arrays. Returns the manifest with them."""
  entries = {
    name: Entry(array.shape, array.dtype.name, (Shard(tuple((0, end) for end in array.shape), ''),))
    for name, array in whole.items()
  }
  places, size = offsets(entries)
  free = shutil.disk_usage(file.parent).free
  if free < size:
    raise OSError(errno.ENOSPC, f'{size / 1e6:.0f} MB are wanted, {free / 1e6:.0f} MB are free')
  with file.open('wb', buffering=0) as out:
    out.truncate(size)  # the end of the last array may be padded
    starts = [places[name] for name in whole]
    inspected = _write_all(list(whole.values()), out.fileno(), starts)
  for (name, entry), (digest, finite) in zip(entries.items(), inspected, strict=True):
    array_files.check(file.parent, name, True, finite)
    shard = dataclasses.replace(entry.shards[0], hash=digest)
    entries[name] = dataclasses.replace(entry, shards=(shard,))
  return dataclasses.replace(page, arrays=entries, files={file.name: (size, None)})


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
  with ThreadPoolExecutor(manifest.HASHERS) as pool:
    blocks = manifest.by_block(pool, list(named.values()), [_hash_block] * len(named))
  for (name, entry), found in zip(page.arrays.items(), blocks, strict=True):
    same = [_join(found)] == [one.hash for one in entry.shards]
    array_files.check(folder, name, same, finite=True)  # `write` refuses others
  return named


def _write_all(
  arrays: Sequence[np.ndarray], file: int, starts: Sequence[int]
) -> list[tuple[str, bool]]:
  """Writes each array at its first byte in an open file. Returns (hash, finite) per array.

  Each block is inspected while it is in the processor's cache.
  """
  writers = [functools.partial(_write_block, file, start) for start in starts]
  with ThreadPoolExecutor(manifest.HASHERS) as pool:
    blocks = manifest.by_block(pool, arrays, writers)
  return [(_join([digest for digest, _ in own]), all(ok for _, ok in own)) for own in blocks]


def _write_block(file: int, first: int, block: np.ndarray, start: int) -> tuple[bytes, bool]:
  left, place = block.view(np.uint8).data, first + start
  while left:
    count = os.pwrite(file, left, place)
    left, place = left[count:], place + count
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

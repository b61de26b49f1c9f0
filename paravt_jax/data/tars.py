"""Tar archives, plain or packed: their headers, their links, and where they end.

Python's tarfile takes a broken header, or the end of the file, for the end of the archive. Here
nothing but zeros follows the end mark, or another tar that was joined to the first one.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from paravt_jax.data import archive_members
from paravt_jax.data.archive_members import (
  CHUNK,
  RATIO,
  STORED,
  Archive,
  Listing,
  Member,
  damage_error,
  guarded,
  is_left_behind,
  refused,
  relative,
)
from paravt_jax.data.zips import zstd
from paravt_jax.errors import DataError

PACKINGS = {
  'tar.gz': (b'\x1f\x8b', gzip.open),
  'tar.bz2': (b'BZh', bz2.open),
  'tar.xz': (b'\xfd7zXZ', lzma.open),
  'tar.zst': (b'\x28\xb5\x2f\xfd', zstd),
  'tar.lz4': (b'\x04\x22\x4d\x18', lambda file: zstd(file, 'lz4')),
  'tar.lzma': (b'\x5d\0\0', lzma.open),
}
_BLOCK = tarfile.BLOCKSIZE
_EXTENSIONS = (
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
)
_LONGEST_EXTENSION = 1 << 20  # in bytes: such a header is read whole into memory
_REST = b'M'
_MOST_ZEROS = 1 << 20  # in bytes, after the end mark; tapes were padded to less
_RECORD = 10240  # in bytes: what an empty tar has


class _Broken(Exception):
  """A block that should be a header is none; says why."""


def listing(archive: Archive, spend: Callable[[int], None]) -> Listing:
  """A tar's members and faults. Raises DataError for damage and bombs.

  spend(n): n more bytes of a packed tar were read.
  """
  found, left = Listing(), 0
  held: dict[str, Member] = {}  # by name, for hard links
  first = None
  for number, info, content in entries(archive, spend):
    if is_left_behind(info.name):
      left += not info.isdir()
      continue
    try:
      inside, problem = relative(info.name), _problem(info)
      if info.islnk():
        first = held.get(relative(info.linkname))
        problem = '' if first else f'a hard link to {info.linkname!r}, which is no file before it'
    except ValueError as error:
      inside, problem = '', str(error)
    if problem:
      found.faults.append(refused(archive.path, info.name, problem))
      held.pop(inside, None)
    elif info.islnk() and inside and first:
      held[inside] = Member(inside, first.size, first.crc, first.place, first.packed, STORED)
      if inside != first.name:
        found.members.append(held[inside])
    elif info.isreg() and inside:
      crc, place = None, info.offset_data
      if content is not None:
        crc, place = 0, number
        for piece in content:
          crc = zlib.crc32(piece, crc)
      held[inside] = Member(inside, info.size, crc, place, info.size, STORED)
      found.members.append(held[inside])
  return Listing(found.members, found.faults, left)


def _problem(info: tarfile.TarInfo) -> str:
  if info.issparse():
    return 'a file with holes'
  if info.type == _REST:
    return 'the rest of a file, in a tar over several volumes'
  return '' if info.isreg() or info.isdir() or info.islnk() else 'a link or device'


def entries(
  archive: Archive, spend: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[int, tarfile.TarInfo, Iterator[bytes] | None]]:
  """(number, header, content) of a tar's entries.

  content: pieces, to be read before the next entry; None in a plain tar. Both raise DataError for
  a damaged or truncated archive and for a bomb.
  """
  path, kind, size = archive.path, archive.kind, archive.bytes
  strict = _strict()
  with guarded(path, kind), contextlib.ExitStack() as stack:
    tar = None
    buffer = CHUNK if archive.is_stream else io.DEFAULT_BUFFER_SIZE
    plain = raw = stack.enter_context(io.BufferedReader(archive.open(), buffer))
    if archive.is_stream:
      unpacked = stack.enter_context(PACKINGS[kind][1](_Counted(raw, spend)))
      plain = _Bounded(unpacked, path, max(archive_members.FLOOR, RATIO * size))
    try:
      tar = stack.enter_context(
        tarfile.open(
          fileobj=cast(IO[bytes], plain),
          mode='r|' if archive.is_stream else 'r:',
          bufsize=CHUNK,
          tarinfo=strict,
          ignore_zeros=True,
        )
      )
      number = -1
      for number, info in enumerate(tar):
        _refuse_gaps(archive, info, strict.between)
        strict.between = 0
        content = archive.is_stream and info.isreg()
        yield number, info, _content(path, kind, tar, info) if content else None
    except _Broken as error:
      at = tar.offset if tar else 0
      raise damage_error(
        path,
        kind,
        f'{error}; at byte {at}'
        if strict.zeros
        else f'no end mark: it is cut, or the header at byte {at} is broken',
      ) from error
    if strict.zeros < 2:
      raise damage_error(path, kind, 'no end mark of two blocks of zeros: it is cut')
    if number < 0 and strict.zeros * _BLOCK > _RECORD:
      raise damage_error(path, kind, 'nothing but zeros')
    while archive.is_stream and plain.read(CHUNK):
      pass  # the packing's own checksum stands at its end


def _refuse_gaps(archive: Archive, info: tarfile.TarInfo, zeros: int) -> None:
  """Raises DataError for a member that ends after the file, and for so many blocks of zeros before
  its header that a part of the archive must be missing.
  """
  is_plain = not archive.is_stream and info.isreg() and not info.issparse()
  if info.size < 0 or (is_plain and info.offset_data + info.size > archive.bytes):
    raise damage_error(archive.path, archive.kind, f'member {info.name!r} ends after the file')
  if zeros and not _is_joint(zeros, info.offset):
    raise damage_error(
      archive.path,
      archive.kind,
      f'{zeros * _BLOCK} bytes of zeros before byte {info.offset}, which is how a download with '
      'a hole looks',
    )


def _is_joint(zeros: int, at: int) -> bool:
  """Whether so many zero blocks are the end of one tar, before another that was joined to it.

  Some writers end with two of them, others go on to the end of a record.
  """
  return zeros == 2 or (at % _RECORD == 0 and 2 < zeros <= _RECORD // _BLOCK + 1)


class _Strict(tarfile.TarInfo):
  """A header that raises _Broken when it is broken. The class counts, so each archive has one."""

  zeros: int = 0  # blocks since the last header
  between: int = 0  # zero blocks before that one

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    """As in tarfile, but strict."""
    if not buf and cls.zeros:
      return super().frombuf(buf, encoding, errors)  # the end of the file, after the mark
    if len(buf) < _BLOCK:
      if cls.zeros and not buf.strip(b'\0'):
        return super().frombuf(b'', encoding, errors)
      raise _Broken('the file ends in a header')
    if not buf.strip(b'\0'):
      cls.zeros += 1
      if cls.zeros * _BLOCK > _MOST_ZEROS:
        raise _Broken(
          f'more than {_MOST_ZEROS} bytes of zeros after its end, where a download may have stopped'
        )
      return super().frombuf(buf, encoding, errors)
    try:
      info = super().frombuf(buf, encoding, errors)
    except tarfile.HeaderError as error:
      raise _Broken('bytes after its end that are no further tar') from error
    if info.size < 0 or (info.type in _EXTENSIONS and info.size > _LONGEST_EXTENSION):
      raise tarfile.ReadError('a size that cannot be')
    cls.between, cls.zeros = cls.zeros, 0
    return info


def _strict() -> type[_Strict]:
  """A class of headers for one archive."""

  class Strict(_Strict):
    """See `_Strict`."""

  return Strict


def _content(
  path: pathlib.Path, kind: str, tar: tarfile.TarFile, info: tarfile.TarInfo
) -> Iterator[bytes]:
  with guarded(path, kind):
    file = cast(IO[bytes], tar.extractfile(info))  # of a regular file, which has content
    while piece := file.read(CHUNK):
      yield piece


class _Counted:
  """A file that reports how much of it was read."""

  closed = False

  def __init__(self, file: IO[bytes], spend: Callable[[int], None]):
    self._file, self._spend = file, spend

  def read(self, size: int = -1) -> bytes:
    """Reads on."""
    data = self._file.read(size)
    self._spend(len(data))
    return data

  def close(self) -> None:
    """Nothing: whoever opened the file closes it."""


class _Bounded:
  """An unpacking stream that refuses to grow beyond a limit of bytes."""

  def __init__(self, file: Any, path: pathlib.Path, limit: int):
    self._file, self._path = file, path
    self._limit, self._total = limit, 0

  def read(self, size: int) -> bytes:
    """Reads on. Raises DataError beyond the limit."""
    data = self._file.read(size)
    self._total += len(data)
    if self._total > self._limit:
      raise DataError(
        f'{self._path}: got more than {self._limit} bytes out of it, a bomb; wanted '
        f'at most {RATIO} times as many as it has'
      )
    return data

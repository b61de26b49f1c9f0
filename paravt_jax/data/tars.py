"""Tar archives, plain or packed: their headers, their links, and their end.

Python's tarfile takes a broken header, or the end of the file, for the end of the archive. This
module is stricter: after the end mark it accepts only zeros, or another tar that was appended.
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
_LONGEST_EXTENSION = 1 << 20  # in bytes; such a header is read into memory as a whole
_REST = b'M'
_MOST_ZEROS = 1 << 20  # in bytes, after the end mark; padding for tapes is shorter
_RECORD = 10240  # in bytes; the size of an empty tar


class _Broken(Exception):
  """Raised for a block that should be a header but is not one. The message gives the reason."""


def listing(archive: Archive, spend: Callable[[int], None]) -> Listing:
  """Returns the members and faults of a tar.

  Args:
    spend: called as spend(n) after n more bytes of a packed tar were read.

  Raises:
    DataError: the archive is damaged or a bomb.
  """
  found, left = Listing(), 0
  held: dict[str, Member] = {}  # members by name, to resolve hard links
  first = None
  for number, info, content in entries(archive, spend):
    # skip metadata of macOS and Windows
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
  """Yields (number, header, content) for each entry of a tar.

  `content` yields the bytes in pieces and must be read before the next entry. It is None in a plain
  tar and for entries without content.

  Raises:
    DataError: the archive is damaged, truncated or a bomb. Reading `content` raises it too.
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
    # a complete tar ends with two blocks of zeros
    if strict.zeros < 2:
      raise damage_error(path, kind, 'no end mark of two blocks of zeros: it is cut')
    if number < 0 and strict.zeros * _BLOCK > _RECORD:
      raise damage_error(path, kind, 'nothing but zeros')
    while archive.is_stream and plain.read(CHUNK):
      pass  # read to the end, where the compression format has its checksum


def _refuse_gaps(archive: Archive, info: tarfile.TarInfo, zeros: int) -> None:
  """Raises DataError for a member that ends after the file, or for a gap before its header.

  A gap is a number of zero blocks that no writer produces: a part of the archive must be missing.
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
  """Returns whether the zero blocks before byte `at` end one tar, with another tar appended.

  Some writers end a tar with two zero blocks. Others fill the last record with zeros.
  """
  return zeros == 2 or (at % _RECORD == 0 and 2 < zeros <= _RECORD // _BLOCK + 1)


class _Strict(tarfile.TarInfo):
  """A tar header that raises _Broken if it is invalid.

  It counts zero blocks in class attributes, so each archive needs a subclass; see `_strict`.
  """

  zeros: int = 0  # zero blocks since the last header
  between: int = 0  # zero blocks before the last header

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    """Parses a header like tarfile, but raises _Broken for invalid blocks."""
    if not buf and cls.zeros:
      return super().frombuf(buf, encoding, errors)  # end of the file, after the end mark
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
  """Returns a header class for one archive."""

  class Strict(_Strict):
    """See `_Strict`."""

  return Strict


def _content(
  path: pathlib.Path, kind: str, tar: tarfile.TarFile, info: tarfile.TarInfo
) -> Iterator[bytes]:
  with guarded(path, kind):
    file = cast(IO[bytes], tar.extractfile(info))  # a regular file, so the result is not None
    while piece := file.read(CHUNK):
      yield piece


class _Counted:
  """A file that reports how many bytes were read from it."""

  closed = False

  def __init__(self, file: IO[bytes], spend: Callable[[int], None]):
    self._file, self._spend = file, spend

  def read(self, size: int = -1) -> bytes:
    """Returns up to `size` bytes and reports their number."""
    data = self._file.read(size)
    self._spend(len(data))
    return data

  def close(self) -> None:
    """Does nothing: the code that opened the file closes it."""


class _Bounded:
  """A stream of unpacked bytes that stops at a limit."""

  def __init__(self, file: Any, path: pathlib.Path, limit: int):
    self._file, self._path = file, path
    self._limit, self._total = limit, 0

  def read(self, size: int) -> bytes:
    """Returns up to `size` bytes. Raises DataError beyond the limit."""
    data = self._file.read(size)
    self._total += len(data)
    if self._total > self._limit:
      raise DataError(
        f'{self._path}: got more than {self._limit} bytes out of it, a bomb; wanted '
        f'at most {RATIO} times as many as it has'
      )
    return data

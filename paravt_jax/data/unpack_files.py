"""Writes members of an archive as files below a root: by rename, with checksums compared.

Both threads and worker processes use this module.
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from paravt_jax import files
from paravt_jax.data import archives, tars
from paravt_jax.data.archives import CHUNK, Archive, Member
from paravt_jax.data.unpack_journal import PART, PART_END, File
from paravt_jax.errors import DataError

_numbers = itertools.count()


@dataclasses.dataclass
class Brought:
  """The result of writing some members."""

  # files that are complete now, by member name
  files: dict[str, File] = dataclasses.field(default_factory=dict)
  faults: list[str] = dataclasses.field(default_factory=list)  # one line for each damaged member
  # keys: written, replaced (of the written ones), kept, bytes (written)
  counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  error: OSError | None = None  # the error of a failing disk


def bring(
  root: str, archive: Archive, members: list[Member], advance: Callable[[int], None]
) -> Brought:
  """Writes some members as files, in byte order, into folders that already exist.

  An existing file with the right size and content stays. A file with other content is replaced. A
  damaged member is recorded as a fault, and the next member follows. A disk error ends the call and
  is returned in `error`.

  Args:
    advance: called as advance(n) after n more bytes. An exception it raises also ends the call and
      leaves no partial file.
  """
  done = Brought()
  try:
    for member, pieces in _contents(root, archive, members, done):
      try:
        done.files[member.name] = _bring_member(root, archive, member, pieces, advance, done.counts)
      except DataError as error:
        done.faults.append(str(error))
  except DataError as error:  # a packed tar that is damaged in the middle
    done.faults.append(str(error))
  except OSError as error:
    done.error = error
  return done


def crc(archive: Archive, member: Member) -> int:
  """Returns the CRC-32 of a member. For a plain tar this reads the member.

  Raises:
    DataError: the member is damaged.
    OSError: the archive cannot be read.
  """
  if member.crc is not None:
    return member.crc
  with archive.open() as file:
    return archives.checksum(file, archive, member)


def _contents(
  root: str, archive: Archive, members: list[Member], done: Brought
) -> Iterator[tuple[Member, Callable[[], Iterator[bytes]]]]:
  """Yields (member, a function that returns an iterator over the member's bytes).

  For a packed tar, call the function only once, and before the next member.
  """
  if not archive.is_stream:
    with archive.open() as file:
      for member in members:
        yield member, functools.partial(archives.content, file, archive, member)
    return
  wanted: dict[int, list[Member]] = {}
  for member in members:
    wanted.setdefault(member.place, []).append(member)
  for number, _, content in tars.entries(archive):
    if number in wanted and content is not None:
      first, *links = wanted.pop(number)
      yield first, functools.partial(iter, content)
      for link in links:  # the stream cannot go back, so read the file written for the first link
        yield link, functools.partial(_write_pieces, root, archive, first, link, done)
    if not wanted:
      return
  raise archives.damage_error(archive.path, archive.kind, 'it changed while it was read')


def _write_pieces(
  root: str, archive: Archive, first: Member, link: Member, done: Brought
) -> Iterator[bytes]:
  """Yields the bytes of a hard link, read from the file that was written for `first`."""
  if first.name not in done.files:
    raise DataError(
      f'{archive.path}: member {link.name!r}: got a hard link to {first.name!r}, which '
      'could not be written; fetch the archive again'
    )
  with open(f'{root}/{first.name}', 'rb') as file:
    while piece := file.read(CHUNK):
      yield piece


def _bring_member(
  root: str,
  archive: Archive,
  member: Member,
  pieces: Callable[[], Iterator[bytes]],
  advance: Callable[[int], None],
  counts: collections.Counter[str],
) -> File:
  target = f'{root}/{member.name}'
  try:
    status = os.stat(target)
  except FileNotFoundError:
    status = None
  # keep an existing file with the same size and checksum
  if status and status.st_size == member.size:
    wanted = crc(archive, member)
    if _file_crc(target) == wanted:
      advance(member.size)
      counts['kept'] += 1
      return File(member.size, wanted, status.st_mtime_ns)
  # write to a temporary file, check size and checksum, then rename
  part = f'{os.path.dirname(target)}/{PART}{os.getpid()}-{next(_numbers)}{PART_END}'
  with files.replacing(target, sync=False, part=pathlib.Path(part)) as out:
    got, size = _copy(pieces(), out, advance)
    if size != member.size or member.crc not in (None, got):
      raise archives.damage_error(
        archive.path,
        archive.kind,
        f'member {member.name!r}: {size} bytes with checksum {got:08x}, declared as '
        f'{member.size}' + ('' if member.crc is None else f' with {member.crc:08x}'),
      )
    out.flush()
    mtime_ns = os.fstat(out.fileno()).st_mtime_ns
  counts.update(written=1, bytes=size, replaced=int(status is not None))
  return File(size, got, mtime_ns)


def _copy(
  pieces: Iterator[bytes], out: BinaryIO, advance: Callable[[int], None]
) -> tuple[int, int]:
  """Writes all pieces and returns (CRC-32, number of bytes)."""
  checksum = size = 0
  for piece in pieces:
    checksum, size = zlib.crc32(piece, checksum), size + len(piece)
    out.write(piece)
    advance(len(piece))
  return checksum, size


def _file_crc(path: str) -> int:
  checksum = 0
  with open(path, 'rb', buffering=0) as file:
    while piece := file.read(CHUNK):
      checksum = zlib.crc32(piece, checksum)
  return checksum

"""What all archive readers share: members, faults, safe names, and the errors for damage."""

import contextlib
import dataclasses
import lzma
import os
import pathlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence

from paravt_jax import files
from paravt_jax.data.archive_parts import Joined
from paravt_jax.errors import DataError

OURS = '.paravt_unpack'  # the folder of the journal; a member may not use this name
# Limits for bombs. Media barely shrink and text shrinks 20-fold. An archive is a bomb if the ratio
# of unpacked to packed bytes is above RATIO and it unpacks to more than FLOOR bytes.
RATIO = 200
FLOOR = 64 << 20
CHUNK = 1 << 20
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
PLAIN = ('zip', 'tar')  # kinds whose members can be read in any order
_NAME_BYTES = 255  # longest part of a path, on all common file systems
_DRIVE = re.compile('[A-Za-z]:')
# Metadata that Finder and Explorer add to archives: resource forks, thumbnails, window settings.
_LEFT_FOLDERS = (
  '__macosx',
  '.appledouble',
  '.spotlight-v100',
  '.trashes',
  '.fseventsd',
  '.temporaryitems',
  '$recycle.bin',
  'system volume information',
)
_LEFT_FILES = ('.ds_store', 'thumbs.db', 'ehthumbs.db', 'desktop.ini', 'icon\r', '.localized')
# All exceptions that the readers raise for invalid bytes.
_DAMAGE = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  struct.error,
  NotImplementedError,
  ValueError,
  IndexError,
  OverflowError,
  RecursionError,
)
# What a failed download leaves in place of an archive: (first bytes, description).
_OTHERS = (
  (b'version https://git-lfs', 'a Git LFS pointer in its place'),
  (b'<!doctype html', 'a web page in its place'),
  (b'<html', 'a web page in its place'),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """A file in an archive. Files that are hard links to each other have the same `place`."""

  name: str
  size: int  # bytes of the unpacked file
  crc: int | None  # CRC-32; None in a plain tar, which stores none
  place: int  # offset of its header (zip) or its bytes (plain tar); entry number in a packed tar
  packed: int  # bytes in the archive
  method: int  # compression method, as numbered by zip


@dataclasses.dataclass(frozen=True)
class Fault:
  """A reason to refuse an archive or a member."""

  member: str | None  # name as written in the archive; None for a fault of the whole archive
  text: str  # one line of text


@dataclasses.dataclass(frozen=True)
class Listing:
  """The members and faults of an archive."""

  members: list[Member] = dataclasses.field(default_factory=list)
  faults: list[Fault] = dataclasses.field(default_factory=list)
  left: int = 0  # metadata files of macOS or Windows; not in `members`


@dataclasses.dataclass(frozen=True)
class Archive:
  """An archive with its valid members, in order."""

  path: pathlib.Path  # the file, or the first of several parts
  parts: tuple[pathlib.Path, ...]  # all files of the archive, in order
  kind: str  # zip, tar, tar.gz, tar.zst, ...
  bytes: int  # sum over all parts
  stamp: str  # hash of the sizes and modification times of all parts
  digest: str  # hash of the list of members
  members: tuple[Member, ...]
  faults: tuple[Fault, ...]
  left: int  # metadata files of macOS or Windows; not in `members`

  @property
  def is_stream(self) -> bool:
    """Whether members can only be read in order, as in a packed tar."""
    return self.kind not in PLAIN

  def open(self) -> Joined:
    """Opens all parts as one file. Raises OSError."""
    return Joined(self.parts)


def relative(name: str) -> str:
  """Returns a member's name as a path below the root, with `/` and without empty or `.` parts.

  Returns '' for the root itself.

  Raises:
    ValueError: the path leaves the root or the name is unusable; the message says which.
  """
  parts = name.split('/')
  leaves = '..' in name.replace('\\', '/').split('/')
  if name.startswith(('/', '\\')) or _DRIVE.match(name) or leaves:
    raise ValueError('a path that leaves the root')
  if not name or '\0' in name:
    raise ValueError('an empty name or one with a NUL')
  parts = [part for part in parts if part not in ('', '.')]
  if any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
    raise ValueError(f'a name with a part of more than {_NAME_BYTES} bytes')
  if parts and parts[0] == OURS:
    raise ValueError('a name inside the journal of this command')
  return '/'.join(parts)


def is_left_behind(name: str) -> bool:
  """Returns whether a file is metadata of macOS or Windows: `__MACOSX/`, `._*`, ..."""
  *folders, last = name.replace('\\', '/').rstrip('/').lower().split('/')
  return (
    last.startswith('._')
    or last in (*_LEFT_FILES, *_LEFT_FOLDERS)
    or any(folder in _LEFT_FOLDERS for folder in folders)
  )


def digest(members: Sequence[Member]) -> str:
  """Returns the hex BLAKE2b (16 bytes) of a list of members (from zip directory or tar headers)."""
  lines = '\n'.join(f'{m.name!r} {m.size} {m.crc} {m.place} {m.packed}' for m in members)
  return files.digest(lines.encode('utf-8', 'surrogateescape'))


def damage_error(path: pathlib.Path, kind: str, why: str) -> DataError:
  """Returns the error for an archive with invalid bytes."""
  return DataError(
    f'{path}: damaged archive ({_describe_start(path) or why}), wanted a whole {kind}; fetch '
    'it again'
  )


@contextlib.contextmanager
def guarded(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Converts what the readers raise for invalid bytes into a DataError."""
  try:
    yield
  except _DAMAGE as error:
    raise damage_error(path, kind, str(error) or type(error).__name__) from error
  except OSError as error:
    if error.errno is not None:  # an error of the disk
      raise
    if 'too much memory' in str(error):
      raise DataError(
        f'{path}: got zstd with a window of more than 128 MB, wanted a smaller one; '
        'unpack it with `zstd -d --long=31`'
      ) from error
    # gzip, bz2 and zstd report damage as an OSError without errno
    raise damage_error(path, kind, str(error)) from error


def _describe_start(path: pathlib.Path) -> str:
  """Returns what the file contains instead of an archive; '' if unknown."""
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    start = file.read(64).lstrip().lower()
    return next((told for magic, told in _OTHERS if start.startswith(magic)), '')
  return ''


def refused(path: pathlib.Path, name: str, problem: str) -> Fault:
  """Returns the fault for a member that may not be written."""
  return Fault(
    name,
    f'{path}: member {name!r}: got {problem}, wanted a plain file with a '
    'relative path; drop it there',
  )

"""What every reader of archives shares: members, faults, safe names, and how damage is said."""

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

OURS = '.paravt_unpack'  # the folder of the journal; no member may be called so
RATIO = 200  # media barely shrink, text 20-fold: more is made to hurt,
FLOOR = 64 << 20  # in bytes: unless it is small anyway
CHUNK = 1 << 20
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
PLAIN = ('zip', 'tar')  # kinds whose members can be read in any order
_NAME_BYTES = 255  # of one part of a path, on every usual file system
_DRIVE = re.compile('[A-Za-z]:')
# What Finder and Explorer leave in archives: forks, thumbnails, settings of a folder's window.
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
# All that the readers raise on bytes that make no sense.
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
# What is fetched in an archive's place when something went wrong.
_OTHERS = (
  (b'version https://git-lfs', 'a Git LFS pointer in its place'),
  (b'<!doctype html', 'a web page in its place'),
  (b'<html', 'a web page in its place'),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """A file in an archive. Files that are hard links to each other share one place."""

  name: str
  size: int  # bytes of the file itself
  crc: int | None  # CRC-32; None where only reading tells it (a plain tar)
  place: int  # where its header (zip) or its bytes (plain tar) begin; its number in a packed tar
  packed: int  # bytes that it takes in the archive
  method: int  # of compression, as zip numbers them


@dataclasses.dataclass(frozen=True)
class Fault:
  """Why an archive is refused."""

  member: str | None  # its name as the archive spells it; None when the archive itself is at fault
  text: str  # one line


@dataclasses.dataclass(frozen=True)
class Listing:
  """What was found in an archive."""

  members: list[Member] = dataclasses.field(default_factory=list)
  faults: list[Fault] = dataclasses.field(default_factory=list)
  left: int = 0  # files that macOS or Windows left there; they are no members


@dataclasses.dataclass(frozen=True)
class Archive:
  """An archive and its good members in their order."""

  path: pathlib.Path  # its file, or the first one of several
  parts: tuple[pathlib.Path, ...]  # all of its files, in order
  kind: str  # zip, tar, tar.gz, tar.zst, ...
  bytes: int  # of all parts
  stamp: str  # names the sizes and times of all parts
  digest: str  # names the list of members
  members: tuple[Member, ...]
  faults: tuple[Fault, ...]
  left: int  # files that macOS or Windows left in it; they are no members

  @property
  def is_stream(self) -> bool:
    """Whether members come only in their order: a packed tar."""
    return self.kind not in PLAIN

  def open(self) -> Joined:
    """Its bytes, as one file. Raises OSError."""
    return Joined(self.parts)


def relative(name: str) -> str:
  """A member's name as a path below the root, with `/` and without empty or `.` parts.

  '' for the root itself.

  Raises:
    ValueError: it leaves the root or is no usable name; the text says what it is.
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
  """Whether macOS or Windows left this file, and nobody wants it: `__MACOSX/`, `._*`, ..."""
  *folders, last = name.replace('\\', '/').rstrip('/').lower().split('/')
  return (
    last.startswith('._')
    or last in (*_LEFT_FILES, *_LEFT_FOLDERS)
    or any(folder in _LEFT_FOLDERS for folder in folders)
  )


def digest(members: Sequence[Member]) -> str:
  """Hex BLAKE2b (16 bytes) of a list of members: of a zip's directory, of a tar's headers."""
  lines = '\n'.join(f'{m.name!r} {m.size} {m.crc} {m.place} {m.packed}' for m in members)
  return files.digest(lines.encode('utf-8', 'surrogateescape'))


def damage_error(path: pathlib.Path, kind: str, why: str) -> DataError:
  """The error for an archive whose bytes make no sense."""
  return DataError(
    f'{path}: damaged archive ({_describe_start(path) or why}), wanted a whole {kind}; fetch it again'
  )


@contextlib.contextmanager
def guarded(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns what the readers raise on nonsense into a DataError."""
  try:
    yield
  except _DAMAGE as error:
    raise damage_error(path, kind, str(error) or type(error).__name__) from error
  except OSError as error:
    if error.errno is not None:  # a disk's own trouble
      raise
    if 'too much memory' in str(error):
      raise DataError(
        f'{path}: got zstd with a window of more than 128 MB, wanted a smaller one; '
        'unpack it with `zstd -d --long=31`'
      ) from error
    # gzip, bz2 and zstd say damage so
    raise damage_error(path, kind, str(error)) from error


def _describe_start(path: pathlib.Path) -> str:
  """What was fetched in the archive's place; '' when nothing is known of that."""
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    start = file.read(64).lstrip().lower()
    return next((told for magic, told in _OTHERS if start.startswith(magic)), '')
  return ''


def refused(path: pathlib.Path, name: str, problem: str) -> Fault:
  """The fault of a member that may not be written."""
  return Fault(
    name,
    f'{path}: member {name!r}: got {problem}, wanted a plain file with a '
    'relative path; drop it there',
  )

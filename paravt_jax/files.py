"""Files that are whole or not there: digests that name contents, writes by rename, and files of
lines that only grow.

Every function raises OSError as the system does. Callers turn it into an error that says what the
file is for.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import re
import secrets
import stat
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Self

_BLOCK = 1 << 20  # bytes that are read at a time
_PART = re.compile(r'\..+\.(\d{1,9})(-[0-9a-f]{8})?\.part', re.DOTALL)  # `.name.PID-random.part`
_YOUNG = 60.0  # seconds; the writer of a younger part may not have locked it yet


# Digests


def digest(content: bytes, size: int = 16) -> str:
  """Hex BLAKE2b of `size` bytes, so 2 * size digits."""
  return hashlib.blake2b(content, digest_size=size).hexdigest()


def digest_json(value: Any, size: int = 16) -> str:
  """Hex digest of a JSON value; the order of an object's keys does not count."""
  return digest(json.dumps(value, sort_keys=True).encode(), size)


def digest_file(path: str | os.PathLike, size: int = 16) -> str:
  """Hex digest of a file's content, read in blocks."""
  hashed = hashlib.blake2b(digest_size=size)
  with open(path, 'rb') as file:
    while block := file.read(_BLOCK):
      hashed.update(block)
  return hashed.hexdigest()


# Writes by rename


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, *, sync: bool, part: pathlib.Path | None = None
) -> Iterator[BinaryIO]:
  """A new binary file that takes the place of `path` when the block ends without an error.

  Until then a reader finds the old file. After an error nothing new is left. What a killed writer
  left is removed by the next write into its folder.

  Args:
    path: the file; its folder is made when it is missing.
    sync: whether the content must be on the disk before the rename, which survives a power cut.
    part: how the file is called meanwhile, for callers that remove such files themselves.
  """
  path = pathlib.Path(path)
  if part is None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    part = path.with_name(f'.{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part')
  with open(part, 'xb') as file:
    try:
      with contextlib.suppress(OSError):  # without locks, only age tells that a writer is dead
        fcntl.flock(file, fcntl.LOCK_EX)
      yield file
      file.flush()
      if sync:
        os.fsync(file.fileno())
      os.replace(part, path)
    except BaseException:  # Ctrl-C too
      part.unlink(missing_ok=True)
      raise


def write(path: str | os.PathLike, content: bytes, *, sync: bool) -> None:
  """Writes a whole file by rename."""
  with replacing(path, sync=sync) as file:
    file.write(content)


def write_if_changed(path: pathlib.Path, content: bytes, *, sync: bool) -> bool:
  """Writes a whole file by rename; False when it holds just this already, and is left alone."""
  if path.is_file() and path.read_bytes() == content:
    return False
  write(path, content, sync=sync)
  return True


def sweep(folder: pathlib.Path) -> None:
  """Removes from a folder what killed writers of `replacing` left half-written."""
  for entry in os.scandir(folder):
    if entry.name.endswith('.part') and (match := _PART.fullmatch(entry.name)):
      remove_abandoned(pathlib.Path(entry.path), int(match[1]))


def remove_abandoned(part: pathlib.Path, writer: int | None = None) -> None:
  """Removes a half-written file unless its writer lives, and so holds its lock.

  writer: the id of the process; a file that is young stays unless this process is known to be gone.
  """
  try:
    with part.open('rb') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      old = time.time() - os.fstat(file.fileno()).st_mtime > _YOUNG
      if old or (writer is not None and not _lives(writer)):
        part.unlink(missing_ok=True)
  except OSError:  # locked by its writer, gone, another user's, or where there are no locks
    return


def _lives(process: int) -> bool:
  """Whether this machine has such a process."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # it is another user's
    return True
  return True


# Files of lines


class Line(NamedTuple):
  """A whole line of a file."""

  number: int  # from 1
  text: bytes  # with its line feed
  end: int  # bytes of the file up to and with this line


def read_lines(path: pathlib.Path) -> Iterator[Line]:
  """The whole lines of a file. A missing file has none; a torn last line is left out."""
  if not path.is_file():
    return
  end = 0
  with path.open('rb') as file:
    for number in itertools.count(1):
      text = file.readline()
      if not text.endswith(b'\n'):
        return
      end += len(text)
      yield Line(number, text, end)


class LineWriter:
  """Appends lines to a file, each whole or not at all. A line is with the system when `append`
  returns, so that a kill of this process does not lose it.
  """

  def __init__(self, path: pathlib.Path, keep: int | None = None):
    """Opens the file and makes it and its folder if they are missing.

    keep: bytes that stay, the end of a line of `read_lines`; the rest is cut off. None keeps all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open('ab', buffering=0)
    if keep is not None:
      self._cut(keep)

  def append(self, lines: bytes) -> None:
    """Writes lines that end in line feeds. When the disk is full, what was written of them is cut
    off again, so that the next line is not spoilt.
    """
    start, written = os.fstat(self._file.fileno()).st_size, 0
    try:
      while written < len(lines):
        written += self._file.write(lines[written:])
    except OSError:
      self._cut(start)
      raise

  def _cut(self, size: int) -> None:
    if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):  # a device has no size
      os.ftruncate(self._file.fileno(), size)

  def close(self) -> None:
    """Closes the file; further appends fail."""
    self._file.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

"""Digests of contents, atomic writes by rename, and append-only files of lines.

Functions let OSError pass. Callers turn it into an error that names the purpose of the file.
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
import shutil
import stat
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Self

_BLOCK = 1 << 20  # bytes per read
_PART = re.compile(r'\..+\.(\d{1,9})(-[0-9a-f]{8})?\.part', re.DOTALL)  # `.name.PID-random.part`
_YOUNG = 60.0  # seconds; the writer of a younger part may not have locked it yet


# Digests


def digest(content: bytes, size: int = 16) -> str:
  """Returns the BLAKE2b hash of `size` bytes as 2 * size hex digits."""
  return hashlib.blake2b(content, digest_size=size).hexdigest()


def digest_json(value: Any, size: int = 16) -> str:
  """Returns the hex digest of a JSON value. The order of an object's keys does not matter."""
  return digest(json.dumps(value, sort_keys=True).encode(), size)


def digest_file(path: str | os.PathLike, size: int = 16) -> str:
  """Returns the hex digest of a file's content, which is read in blocks."""
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
  """Opens a new binary file that replaces `path` when the block ends without an error.

  Until then a reader finds the old file. After an error the new file is removed. The next write
  into the folder removes what a killed writer left.

  Args:
    path: the file. Its folder is created if missing.
    sync: whether to fsync the content before the rename, so that it survives a power cut.
    part: the temporary name, for callers that remove such files themselves.
  """
  path = pathlib.Path(path)
  if part is None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    part = path.with_name(f'.{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part')
  with open(part, 'xb') as file:
    try:
      with contextlib.suppress(OSError):  # without locks, only age shows that a writer is dead
        fcntl.flock(file, fcntl.LOCK_EX)
      yield file
      file.flush()
      if sync:
        os.fsync(file.fileno())
      os.replace(part, path)
    except BaseException as error:  # Ctrl-C too
      part.unlink(missing_ok=True)
      _name(error, path)
      raise


def _name(error: BaseException, path: pathlib.Path) -> None:
  """Adds the file to an error of the system that names none, as that of a full disk."""
  if isinstance(error, OSError) and error.errno is not None and error.filename is None:
    error.filename = str(path)


@contextlib.contextmanager
def replacing_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder that replaces `target` when the block ends without an error.

  After an error it is removed. What a killed writer of the same target left is removed first.
  """
  part = target.with_name(f'.{target.name}.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir()
  try:
    yield part
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
  except BaseException:  # Ctrl-C too
    shutil.rmtree(part, ignore_errors=True)
    raise


def write(path: str | os.PathLike, content: bytes, *, sync: bool) -> None:
  """Writes a whole file by rename."""
  with replacing(path, sync=sync) as file:
    file.write(content)


def write_if_changed(path: pathlib.Path, content: bytes, *, sync: bool) -> bool:
  """Writes a whole file by rename. Returns False if the file already has this content."""
  if path.is_file() and path.read_bytes() == content:
    return False
  write(path, content, sync=sync)
  return True


def sweep(folder: pathlib.Path) -> None:
  """Removes the unfinished files that killed writers of `replacing` left in a folder."""
  for entry in os.scandir(folder):
    if entry.name.endswith('.part') and (match := _PART.fullmatch(entry.name)):
      remove_abandoned(pathlib.Path(entry.path), int(match[1]))


def remove_abandoned(part: pathlib.Path, writer: int | None = None) -> None:
  """Removes an unfinished file unless its writer is alive and so holds its lock.

  writer: the process id. A recent file stays unless this process is known to have ended.
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
  """Returns whether the process runs on this machine."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # it belongs to another user
    return True
  return True


# Files of lines


class Line(NamedTuple):
  """A complete line of a file."""

  number: int  # from 1
  text: bytes  # with its line feed
  end: int  # offset in bytes of the end of this line


def read_lines(path: pathlib.Path) -> Iterator[Line]:
  """Yields the complete lines of a file. A missing file has none, and an incomplete last line is
  skipped.
  """
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
  """Appends lines to a file, each completely or not at all.

  When `append` returns, the system has the line, so killing this process does not lose it.
  """

  def __init__(self, path: pathlib.Path, keep: int | None = None):
    """Opens the file. The file and its folder are created if missing.

    keep: length in bytes to truncate to, the `end` of a line of `read_lines`. None keeps the whole
    file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path, self._file = path, path.open('ab', buffering=0)
    if keep is not None:
      self._cut(keep)

  def append(self, lines: bytes) -> None:
    """Writes lines that end in line feeds.

    If the disk is full, it removes the partial write, so the next line stays intact.
    """
    start, written = os.fstat(self._file.fileno()).st_size, 0
    try:
      while written < len(lines):
        written += self._file.write(lines[written:])
    except OSError as error:
      self._cut(start)
      _name(error, self._path)
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

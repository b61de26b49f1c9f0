"""Temporary folders that are removed after their process, also if it was killed.

The owner holds a lock on a file in its folder. The system releases the lock when the process ends.
"""

import fcntl
import os
import pathlib
import secrets
import shutil
import weakref
from collections.abc import Callable

MEMORY = pathlib.Path('/dev/shm')  # files in it are in memory
_LOCK = '.lock'


class Place:
  """A folder that is made when it is first asked for, and goes with this object or its process."""

  def __init__(self, parent: pathlib.Path, prefix: str):
    self._parent, self._prefix = parent, prefix
    self._folder: pathlib.Path | None = None
    self._end: Callable[[], object] = lambda: None

  def open(self) -> pathlib.Path:
    """Returns the folder. Removes those of processes that are gone, the first time.

    Raises:
      OSError: no space, or no permission.
    """
    if self._folder is None:
      sweep(self._parent, self._prefix)
      self._folder, lock = claim(self._parent, self._prefix)
      self._end = weakref.finalize(self, release, self._folder, lock)
    return self._folder

  def close(self) -> None:
    """Removes the folder. `open` makes another one."""
    self._end()
    self._folder = None


def claim(parent: pathlib.Path, prefix: str) -> tuple[pathlib.Path, int]:
  """Creates a folder `<prefix><process id>-<random>` below `parent`. Returns it and its open lock.

  Raises:
    OSError: no space, or no permission.
  """
  while True:
    folder = parent / f'{prefix}{os.getpid()}-{secrets.token_hex(4)}'
    folder.mkdir(mode=0o700)
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (folder / _LOCK).exists():
      return folder, lock
    os.close(lock)  # another process locked the new folder first and swept it


def release(folder: pathlib.Path, lock: int) -> None:
  """Removes a folder that `claim` created, and closes its lock."""
  shutil.rmtree(folder, ignore_errors=True)
  os.close(lock)


def sweep(parent: pathlib.Path, prefix: str) -> list[pathlib.Path]:
  """Removes the folders `<prefix>*` below `parent` whose process is gone. Returns them.

  A folder without a lock file stays, because it may be about to be locked.
  """
  gone = []
  for folder in sorted(parent.glob(f'{prefix}*')):
    try:
      lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # without a lock file, or another user's
      continue
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(folder, ignore_errors=True)
      gone.append(folder)
    except BlockingIOError:
      pass
    finally:
      os.close(lock)
  return gone

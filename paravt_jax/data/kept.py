"""Writing a file of a cache that several processes share: whole or not at all, and what a killed
writer left is swept.
"""

import fcntl
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import BinaryIO

_PART = '.part'
_OLD = 60.0  # seconds; a younger part may not be locked yet by the writer that just made it


def replace(target: pathlib.Path, write: Callable[[BinaryIO], None]) -> None:
  """Writes `target` beside its place, to the disk, and renames it. Its folder is made if missing.

  Raises:
    OSError: it cannot be written; nothing is left behind. Also what `write` raises.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  for part in target.parent.glob(f'*{_PART}'):
    _sweep(part)
  with tempfile.NamedTemporaryFile(dir=target.parent, suffix=_PART, delete=False) as out:
    fcntl.flock(out, fcntl.LOCK_EX)
    try:
      write(out)
      out.flush()
      os.fsync(out.fileno())
      os.replace(out.name, target)
    except BaseException:
      pathlib.Path(out.name).unlink(missing_ok=True)
      raise


def _sweep(part: pathlib.Path) -> None:
  """Removes a half-written file unless its writer lives (and holds its lock)."""
  try:
    with part.open('rb') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if time.time() - os.fstat(file.fileno()).st_mtime > _OLD:
        part.unlink(missing_ok=True)
  except (FileNotFoundError, BlockingIOError):
    return

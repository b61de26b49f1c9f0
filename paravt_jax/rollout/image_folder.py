"""Frames as files in a folder that rollout servers see, for servers that read images by path.

SGLang reads `file://` paths. A folder in shared memory, such as /dev/shm, saves the base64 text in
every request. Every frame is one PNG file, written once.
"""

import asyncio
import base64
import collections
import contextlib
import fcntl
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence

from paravt_jax.errors import ConfigError

_LOCK = 'lock'  # a file that the owner of a folder keeps locked


class ImageFolder:
  """A folder of this process below `parent`, with at most `capacity` files that no request reads.

  It is removed by `close`. Folders of processes that died are removed at the start.

  Raises:
    ConfigError: nothing can be written below `parent`.
  """

  def __init__(self, parent: str, capacity: int):
    self._capacity = capacity
    self._users: collections.Counter[str] = collections.Counter()
    self._files: collections.OrderedDict[str, asyncio.Task] = collections.OrderedDict()
    above = pathlib.Path(parent).absolute()
    try:
      above.mkdir(parents=True, exist_ok=True)
      _remove_abandoned(above)
      self._folder = pathlib.Path(tempfile.mkdtemp(prefix='frames-', dir=above))
      self._lock = (self._folder / _LOCK).open('w')
      fcntl.flock(self._lock, fcntl.LOCK_EX)
    except OSError as error:
      raise ConfigError(
        f'--config.client.image_folder={parent!r}: cannot be written ({error.strerror}), wanted a '
        "folder that this process and its servers see, such as '/dev/shm/paravt', or ''"
      ) from error

  def close(self) -> None:
    """Removes the folder."""
    shutil.rmtree(self._folder, ignore_errors=True)
    self._lock.close()

  @contextlib.asynccontextmanager
  async def urls(
    self, names: Sequence[str], encoded: Sequence[bytes]
  ) -> AsyncIterator[tuple[list[str], list[int]]]:
    """Yields (one file URL per frame, the bytes of each new file). The files stay while the block runs.

    Args:
      names: of the frames, by content.
      encoded: the frames as base64 PNG, with JSON's quotes.

    Raises:
      OSError: the folder is full or gone.
    """
    new = {name: text for name, text in zip(names, encoded, strict=True) if name not in self._files}
    self._users.update(names)
    try:
      for name, text in new.items():
        self._files[name] = asyncio.create_task(asyncio.to_thread(self._write, name, text))
      # another request may forget a failed file while this one waits
      files = {name: self._files[name] for name in names}
      try:
        for task in files.values():
          await asyncio.shield(task)
      except OSError:
        self._forget_failed()
        raise
      for name in files:
        self._files.move_to_end(name)
      sizes = [files[name].result() for name in new]
      yield [self._path(name).as_uri() for name in names], sizes
    finally:
      self._users.subtract(names)
      self._remove_oldest()

  def _path(self, name: str) -> pathlib.Path:
    return self._folder / f'{name.rpartition(":")[2]}.png'

  def _write(self, name: str, text: bytes) -> int:
    """Writes a file under its name once it is whole. Returns its size."""
    content = base64.b64decode(text.strip(b'"'))
    part = self._path(name).with_suffix('.part')
    part.write_bytes(content)
    part.replace(self._path(name))
    return len(content)

  def _forget_failed(self) -> None:
    for name, task in list(self._files.items()):
      if task.done() and (task.cancelled() or task.exception() is not None):
        del self._files[name]

  def _remove_oldest(self) -> None:
    for name in list(self._files):
      if len(self._files) <= self._capacity:
        break
      if self._users[name] <= 0 and self._files[name].done():
        del self._files[name], self._users[name]
        self._path(name).unlink(missing_ok=True)


def _remove_abandoned(above: pathlib.Path) -> None:
  """Removes the folders of processes that ended without doing so. Their locks are free."""
  for lock in above.glob(f'frames-*/{_LOCK}'):
    with contextlib.suppress(OSError), lock.open() as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(lock.parent, ignore_errors=True)

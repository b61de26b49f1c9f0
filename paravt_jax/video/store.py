"""A cache of decoded frames in memory and, optionally, in a folder. Both are bounded in bytes.

A key consists of the file (path, size, modification time), the seconds, the pixel limits and the
decoder. A changed file or knob gives another key, so frames are never stale. Several processes may
share a folder; each checks what the others wrote before it deletes files.

  <folder>/<first two digits of the key>/
    <key>.npz   frames, seconds, duration; own where it differs from seconds. Its modification time
                is the time of its last use.
    *.part      being written and locked by its writer; files of killed writers are deleted
"""

import asyncio
import collections
import contextlib
import logging
import math
import os
import pathlib
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from paravt_jax import files
from paravt_jax.errors import MediaError
from paravt_jax.timeline import Timeline
from paravt_jax.types import Clip
from paravt_jax.video.decode import DecodePool, Times
from paravt_jax.video.readers import VideoInfo, missing

_LAYOUT = 2  # of the files below; a new number is a new key
_PART = '.part'
# bytes of the disk that stay free for checkpoints and other data; on a small disk 1/20 stays free
_RESERVE = 1 << 30
_SLACK = 1_000_000_000  # ns by which file times may lag behind this machine's clock
# share of the folder's bound that is freed at a time, and that may be written before the folder is
# scanned again
_ROOM = 0.1


class FrameStore:
  """A DecodePool with a cache.

  Its coroutines belong to one event loop at a time. The sync methods may run at the same time.

  Concurrent requests for the same frames share one decode. Errors are not cached, so a repaired
  file is read again. A full disk never ends the run: it gives one warning, and every failed write
  is counted. `counts`: memory, disk, decoded, shared, disk_write_failed, disk_unreadable,
  disk_dropped (files deleted to free space), disk_full (not written for lack of space).

  Epochs visit the whole corpus. If the corpus is larger than the bound, plain LRU eviction would
  always delete the files that are needed next, and no request would hit. So the store deletes only
  files that no process has used since it was opened. When none are left it stops writing, and the
  cached share hits in every epoch.

  Args:
    folder: for decoded frames, made if missing; None keeps them in memory only.
    pool: decodes frames that are not cached; the caller closes it.
    capacity: bytes of frames in memory; the least recently used are evicted first.
    disk_capacity: approximate bytes of frames in the folder; None for no bound.
    timeline: gets a lane of the decodes.
  """

  def __init__(
    self,
    folder: str | os.PathLike | None,
    pool: DecodePool,
    capacity: int,
    disk_capacity: int | None = None,
    timeline: Timeline | None = None,
  ):
    self.counts: collections.Counter[str] = collections.Counter()
    self._folder = pathlib.Path(folder) if folder is not None else None
    self._disk_capacity = float('inf') if disk_capacity is None else disk_capacity
    self._unseen = float('inf')  # bytes written since the last scan of the folder
    self._room = 0.0  # bytes that were free below the bound at that scan
    self._opened = time.time_ns() - _SLACK
    self._full = False
    self._pool = pool
    self._timeline = timeline or Timeline(None)
    self._capacity = capacity
    self._clips: collections.OrderedDict[str, Clip] = collections.OrderedDict()
    self._bytes = 0
    self._lock = threading.Lock()  # guards memory and counts
    self._sweeping = threading.Lock()  # guards the folder's known size
    self._infos: dict[tuple, VideoInfo] = {}
    self._running: dict[str, asyncio.Task] = {}
    self._warned: set[int | None] = set()

  async def frames(self, path: str, seconds: Times, min_pixels: int, max_pixels: int) -> Clip:
    """As DecodePool.frames; the arrays are shared between callers and cannot be written to."""
    times = np.asarray(seconds, np.float64)
    identity = await asyncio.to_thread(_identity, path)
    key = self._key(identity, times, min_pixels, max_pixels)
    clip = self._lookup(key)
    if clip is not None:
      return clip
    if key in self._running:
      self._count('shared')
    else:
      self._running[key] = asyncio.create_task(self._load(key, path, times, min_pixels, max_pixels))
      self._running[key].add_done_callback(lambda task: self._finish(key, task))
    # a cancelled caller must not cancel the decode of the other callers
    return await asyncio.shield(self._running[key])

  async def probe(self, path: str) -> VideoInfo:
    """As DecodePool.probe; each file is probed once."""
    identity = await asyncio.to_thread(_identity, path)
    if identity not in self._infos:
      self._infos[identity] = await self._pool.probe(path)
    return self._infos[identity]

  def frames_sync(self, path: str, seconds: Times, min_pixels: int, max_pixels: int) -> Clip:
    """As `frames`, for threads without an event loop; concurrent requests are not shared."""
    times = np.asarray(seconds, np.float64)
    key = self._key(_identity(path), times, min_pixels, max_pixels)
    clip = self._lookup(key) or (self._read(self._folder, key) if self._folder else None)
    if clip is None:
      clip = self._pool.frames_sync(path, times, min_pixels, max_pixels)
      self._count('decoded')
      if self._folder:
        self._write(self._folder, key, clip)
    return self._keep(key, clip)

  def probe_sync(self, path: str) -> VideoInfo:
    """As `probe`, for threads without an event loop."""
    identity = _identity(path)
    if identity not in self._infos:
      self._infos[identity] = self._pool.probe_sync(path)
    return self._infos[identity]

  def _key(self, identity: tuple, times: np.ndarray, min_pixels: int, max_pixels: int) -> str:
    words = (_LAYOUT, self._pool.backend, identity, times.tolist(), min_pixels, max_pixels)
    return files.digest(repr(words).encode(), size=20)

  def _finish(self, key: str, task: asyncio.Task):
    self._running.pop(key, None)
    if not task.cancelled():
      task.exception()  # marks it as retrieved: every caller may have been cancelled

  async def _load(
    self, key: str, path: str, times: np.ndarray, min_pixels: int, max_pixels: int
  ) -> Clip:
    clip = await asyncio.to_thread(self._read, self._folder, key) if self._folder else None
    if clip is None:
      with self._timeline.busy('decoder'):
        clip = await self._pool.frames(path, times, min_pixels, max_pixels)
      self._count('decoded')
      if self._folder:
        await asyncio.to_thread(self._write, self._folder, key, clip)
    return self._keep(key, clip)

  def _lookup(self, key: str) -> Clip | None:
    with self._lock:
      clip = self._clips.get(key)
      if clip is not None:
        self._clips.move_to_end(key)
        self.counts['memory'] += 1
      return clip

  def _keep(self, key: str, clip: Clip) -> Clip:
    clip.frames.setflags(write=False)
    clip.seconds.setflags(write=False)
    clip.own.setflags(write=False)
    with self._lock:
      if key not in self._clips and clip.frames.nbytes <= self._capacity:
        self._clips[key] = clip
        self._bytes += clip.frames.nbytes
      while self._bytes > self._capacity:
        self._bytes -= self._clips.popitem(last=False)[1].frames.nbytes
    return clip

  def _count(self, name: str):
    with self._lock:
      self.counts[name] += 1

  def _read(self, folder: pathlib.Path, key: str) -> Clip | None:
    file = _file(folder, key)
    try:
      with np.load(file) as arrays:
        seconds, own = arrays['seconds'], arrays['own' if 'own' in arrays else 'seconds']
        clip = Clip(arrays['frames'], seconds, float(arrays['duration']), own)
      self._count('disk')
      self._touch(file)
      return clip
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      self._count('disk_unreadable')  # decoded and written again
      return None

  def _touch(self, file: pathlib.Path):
    """Marks a file as used now, unless it was deleted or belongs to another user."""
    if math.isfinite(self._disk_capacity):
      with contextlib.suppress(OSError):
        os.utime(file)

  def _write(self, folder: pathlib.Path, key: str, clip: Clip):
    """Writes by rename, so that a reader never sees an incomplete file."""
    file = _file(folder, key)
    if clip.frames.nbytes > self._disk_capacity:
      return
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      if not self._make_room(folder, clip.frames.nbytes):
        self._count('disk_full')
        return
      arrays: dict[str, Any] = {
        'frames': clip.frames,
        'seconds': clip.seconds,
        'duration': clip.duration,
      }
      if not np.array_equal(clip.own, clip.seconds):
        arrays['own'] = clip.own
      part = file.with_name(f'{key}.{secrets.token_hex(4)}{_PART}')
      with files.replacing(file, sync=False, part=part) as out:
        np.savez(out, **arrays)
    except OSError as error:
      self._count('disk_write_failed')
      if error.errno not in self._warned:
        self._warned.add(error.errno)
        logging.getLogger(__name__).warning(
          'frame store %s: writing failed (%s); continuing without it, wanted space for decoded '
          'frames: free some space or set video.cache_folder elsewhere (counted in '
          'disk_write_failed)',
          self._folder,
          error.strerror,
        )

  def _make_room(self, folder: pathlib.Path, size: int) -> bool:
    """Returns whether `size` bytes may be written.

    If necessary, deletes the least recently used files of earlier runs.
    """
    with self._sweeping:
      disk = shutil.disk_usage(folder)
      if self._full or disk.free - size < min(_RESERVE, disk.total // 20):
        return False
      if self._unseen + size <= min(self._room, _ROOM * self._disk_capacity):
        self._unseen += size
        return True
      found = sorted(_files(folder))
      total = sum(bytes_ for _, bytes_, _ in found)
      if total + size > self._disk_capacity:
        for used, bytes_, path in found:
          if used >= self._opened or total + size <= (1 - _ROOM) * self._disk_capacity:
            break
          path.unlink(missing_ok=True)
          total -= bytes_
          self._count('disk_dropped')
      self._room, self._unseen = self._disk_capacity - total, size
      self._full = self._room < size
      return not self._full


def _file(folder: pathlib.Path, key: str) -> pathlib.Path:
  return folder / key[:2] / f'{key}.npz'


def _files(folder: pathlib.Path) -> Iterator[tuple[int, int, pathlib.Path]]:
  """Yields (time of last use, bytes, path) of every file of frames.

  Also deletes the partial files of killed writers.
  """
  for path in folder.glob('??/*'):
    try:
      stat = path.stat()
      if path.suffix == _PART:
        files.remove_abandoned(path)
      elif path.suffix == '.npz':
        yield stat.st_mtime_ns, stat.st_size, path
    except FileNotFoundError:  # another process was quicker
      continue


def _identity(path: str) -> tuple:
  """Returns (path, size, modification time). Raises MediaError 'missing'."""
  try:
    stat = os.stat(path)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise missing(str(path)) from error
  except OSError as error:
    raise MediaError(
      f'{path}: {error.strerror}, wanted a readable video; check its permissions', 'not_video'
    ) from error
  return str(path), stat.st_size, stat.st_mtime_ns

"""The process that decodes. Started by `decode.DecodePool` with one end of a socket; imports no
more than av, numpy and PIL.
"""

import collections
import os
import signal
from multiprocessing.connection import Connection

import numpy as np

from paravt_jax.errors import MediaError
from paravt_jax.video import patches, readers

_OPEN_FILES = 8  # readers kept per worker: crops of one episode come in runs on the same video
_LONGER = 1.05  # of a frame interval: forgives times that are rounded to milliseconds
_LOOK_UP = 5.0  # seconds between looks at whether the parent is still there


class Files:
  """The last few open readers, keyed by the file itself, so that a replaced file is opened anew."""

  def __init__(self, backend: str):
    self._open = readers.READERS[backend]
    self._readers: collections.OrderedDict = collections.OrderedDict()

  def get(self, path: str):
    try:
      stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
      raise readers.missing(path) from error
    except OSError as error:
      raise readers.not_video(path, error.strerror or str(error)) from error
    key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    reader = self._readers.pop(key, None) or self._open(path)
    self._readers[key] = reader
    if len(self._readers) > _OPEN_FILES:
      self._readers.popitem(last=False)[1].close()
    return reader

  def forget(self, path: str):
    """Closes readers of a file that failed: their decoder's state is unknown."""
    for key in [key for key in self._readers if key[0] == path]:
      self._readers.pop(key).close()


def decode(
  reader, seconds: np.ndarray, min_pixels: int, max_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
  """(uint8[N, h, w, 3], float64[N] their own times) of the frames shown at `seconds`, in the order
  asked for; resized once.
  """
  frames = np.empty((len(seconds), 0, 0, 3), np.uint8)
  own = np.zeros(len(seconds))
  size, last = None, None
  for i, time, image in reader.read(seconds):
    if size is None:
      height, width = image.shape[:2]
      size = patches.target_size(height, width, min_pixels, max_pixels)
      frames = np.empty((len(seconds), *size, 3), np.uint8)
    if last is not None and own[last] == time:
      frames[i] = frames[last]
    else:
      frames[i] = patches.resize(image[None], size)[0]
    own[i] = time
    last = i
  return frames, own


def labels(own: np.ndarray, seconds: np.ndarray, interval: float, duration: float) -> np.ndarray:
  """float64[N]: the frames' own times; where one is on screen for longer than `interval` by then,
  the time looked at.
  """
  looked = np.clip(seconds, 0.0, duration)
  return np.where(looked - own > interval * _LONGER, looked, own)


def answer(files: Files, request: tuple) -> tuple[tuple, np.ndarray | None]:
  """The reply to one request, and the frames that follow it as raw bytes."""
  kind, path, *rest = request
  try:
    reader = files.get(path)
    if kind == 'probe':
      return ('ok', reader.info), None
    frames, own = decode(reader, *rest)
    shown = labels(own, rest[0], reader.interval, reader.info.duration)
    return ('ok', frames.shape, shown, reader.info.duration, own), frames
  except MediaError as error:
    files.forget(path)
    return ('error', str(error), error.reason), None


def main(descriptor: int, backend: str, parent: int, alarm: float):
  """Answers requests until the other end closes or the parent is gone.

  A request that outlives `alarm` seconds is ended by the kernel, even inside C code that holds the
  interpreter lock: so a worker whose parent died while it hung does not stay behind.
  """
  connection = Connection(descriptor)
  files = Files(backend)
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  try:
    connection.send(('ready',))
    while True:
      if not connection.poll(_LOOK_UP):
        if os.getppid() != parent:
          return
        continue
      request = connection.recv()
      signal.setitimer(signal.ITIMER_REAL, alarm)
      reply, frames = answer(files, request)
      connection.send(reply)
      if frames is not None:
        connection.send_bytes(frames.reshape(-1).data)
      signal.setitimer(signal.ITIMER_REAL, 0)
  except (EOFError, ConnectionError):
    return  # the parent closed its end or died

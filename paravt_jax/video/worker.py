"""The main program of a decoding process.

`decode.DecodePool` starts it with one end of a socket. It imports only av, numpy,
PIL and msgpack. Messages are bytes of `wire`, never pickles: a file that takes a decoder over must
not get further.
"""

import collections
import ctypes
import os
import signal
from multiprocessing.connection import Connection

import numpy as np

from paravt_jax import wire
from paravt_jax.errors import MediaError
from paravt_jax.video import patches, readers

_OPEN_FILES = 8  # open readers per worker: crops of one episode often read the same video in a row
_LONGER = 1.05  # factor of the frame interval that tolerates times rounded to milliseconds
# Requests after which freed memory goes back to the system. Frames of many sizes leave holes in the
# heap, which would double a worker's memory in some thousand requests.
_TRIM_EVERY = 32
_LOOK_UP = 5.0  # seconds between checks whether the parent is alive


class Files:
  """Caches the most recently used open readers.

  The key includes the file's inode, size and modification time, so a replaced file is reopened.
  """

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
    """Closes the readers of a file after an error, since their decoder's state is unknown."""
    for key in [key for key in self._readers if key[0] == path]:
      self._readers.pop(key).close()


def decode(
  reader, seconds: np.ndarray, min_pixels: int, max_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes the frames on screen at `seconds` and resizes each once.

  Returns (frames uint8[N, h, w, 3], their presentation times float64[N]) in the order of `seconds`.
  """
  # one size for all requests to a file, whose images may change theirs
  size = patches.target_size(reader.info.height, reader.info.width, min_pixels, max_pixels)
  frames, own, last = np.empty((len(seconds), *size, 3), np.uint8), np.zeros(len(seconds)), None
  for i, time, image in reader.read(seconds):
    if last is not None and own[last] == time:
      frames[i] = frames[last]
    else:
      frames[i] = patches.resize(image[None], size)[0]
    own[i] = time
    last = i
  return frames, own


def labels(own: np.ndarray, seconds: np.ndarray, interval: float, duration: float) -> np.ndarray:
  """Returns the labels of frames, float64[N] in seconds: their presentation times `own`.

  If a frame has been on screen for longer than `interval`, its label is the requested time.
  """
  looked = np.clip(seconds, 0.0, duration)
  return np.where(looked - own > interval * _LONGER, looked, own)


def answer(files: Files, request: tuple) -> tuple[tuple, np.ndarray | None]:
  """Returns (reply to one request, frames to send after it as raw bytes or None)."""
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
  """Answers requests until the other end of the socket closes or the parent process is gone.

  If a request takes longer than `alarm` seconds, the kernel ends this process, even inside C code
  that holds the GIL. So a hung worker does not outlive its parent.
  """
  connection = Connection(descriptor)
  files = Files(backend)
  trim, done = getattr(ctypes.CDLL(None), 'malloc_trim', None), 0  # glibc alone has it
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  try:
    connection.send_bytes(wire.encode(('ready',)))
    while True:
      if not connection.poll(_LOOK_UP):
        if os.getppid() != parent:
          return
        continue
      request = wire.decode(connection.recv_bytes())
      signal.setitimer(signal.ITIMER_REAL, alarm)
      reply, frames = answer(files, request)
      connection.send_bytes(wire.encode(reply, (readers.VideoInfo,)))
      if frames is not None:
        connection.send_bytes(frames.reshape(-1).data)
      signal.setitimer(signal.ITIMER_REAL, 0)
      done += 1
      if trim is not None and done % _TRIM_EVERY == 0:
        del reply, frames
        trim(0)
  except (EOFError, ConnectionError):
    return  # the parent closed its end or died

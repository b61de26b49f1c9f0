"""Decodes videos in killable processes.

Every request returns within its deadline, with frames or with a typed MediaError.

Workers are fresh interpreters (never forked, and the caller's main module is not imported again),
each with one socket. A worker that hangs or dies is replaced. The request of one that hung fails with
the reason 'timeout'. That of one that died is made again by its replacement, in what is left of the
deadline, and fails with 'crashed' if too many die in a row.
"""

import asyncio
import collections
import concurrent.futures
import logging
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from paravt_jax import children, wire
from paravt_jax.errors import ConfigError, DataError, MediaError
from paravt_jax.types import Clip
from paravt_jax.video import decord_reader
from paravt_jax.video.readers import READERS, VideoInfo

_START_LIMIT = 60.0  # seconds for a worker to import its libraries, before the deadline starts
# Workers that may die with a request. One may be killed for its memory, or by hand: only a file that
# does it again and again is at fault.
_DEATHS = 4
# Requests after which a worker is replaced. Each seek loses about 400 bytes in PyAV 18.1 or below it,
# some 12 KB a request, and a run makes hundreds of thousands.
_REQUESTS = 1000
_STARTS = 16  # workers that may die before a request reaches them, which is not the file's fault
# frames of one request to a worker: 64 MB of 300 x 300 pixels. An overview of an hour is several
_MOST_FRAMES = 256
# seconds after the deadline at which a worker ends itself, in case its parent has died
_GRACE = 2.0
_MOST_BYTES = 1 << 20  # of a reply without its frames
_PROGRAM = (
  'import sys; from paravt_jax.video import worker; '
  'worker.main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))'
)


Times = Sequence[float] | np.ndarray  # seconds from the start of a video


class _Worker:
  """One worker process and the pool's end of its socket."""

  def __init__(self, backend: str, deadline_s: float, parent: int):
    ours, theirs = socket.socketpair()
    arguments = [str(theirs.fileno()), backend, str(parent), str(deadline_s + _GRACE)]
    self.process = subprocess.Popen(
      children.command(_PROGRAM, *arguments),
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      start_new_session=True,
    )
    theirs.close()
    self._connection = Connection(ours.detach())
    self._ready = False
    self.served = 0  # requests that it has answered
    self.asked: float | None = None  # when it was sent the present request; None: not yet

  def ask(self, request: tuple, deadline_s: float) -> tuple | None:
    """Sends a request and returns the reply, or None if the deadline passed.

    The last item of a reply to 'frames' is the frames uint8[N, h, w, 3].

    Raises:
      EOFError, OSError: the process ended, or its reply is too long.
      DataError: its reply is none.
    """
    self.asked = None
    if not self._ready:
      if not self._connection.poll(_START_LIMIT):
        return None
      self._connection.recv_bytes(_MOST_BYTES)
      self._ready = True
    elif self._connection.poll(0):  # nobody has asked: it says that it has ended
      raise EOFError
    self.asked = time.monotonic()
    self._connection.send_bytes(wire.encode(request))
    if not self._connection.poll(deadline_s):
      return None
    reply = wire.decode(self._connection.recv_bytes(_MOST_BYTES), (VideoInfo,))
    if request[0] == 'frames' and reply[0] == 'ok':
      frames = np.empty(reply[1], np.uint8)
      self._connection.recv_bytes_into(frames.reshape(-1).data)
      return (*reply, frames)
    return reply

  def end(self):
    """Kills the process and closes the socket.

    Does not wait for a process that the kernel cannot end yet (a dead network disk).
    """
    self.process.kill()
    self._connection.close()
    try:
      self.process.wait(1.0)
    except subprocess.TimeoutExpired:
      return


class DecodePool:
  """Decodes frames of videos in `workers` processes.

  Several threads and a running event loop may use the pool; it never blocks the loop. `counts` has
  requests, frames, and failures by reason.

  Args:
    workers: processes; each decodes one request at a time on one thread.
    deadline_s: seconds that a request may take once a worker has it.
    backend: 'pyav' or 'decord'.

  Raises:
    ConfigError: the backend is unknown, or workers or deadline_s is not positive.
  """

  def __init__(self, workers: int, deadline_s: float, backend: str):
    if backend not in READERS:
      raise ConfigError(f'video.backend: got {backend!r}, wanted one of {sorted(READERS)}')
    if workers < 1 or not deadline_s > 0:
      raise ConfigError(
        f'decoding: got workers={workers}, deadline_s={deadline_s}, wanted both positive'
      )
    if backend == 'decord':
      logging.getLogger(__name__).warning(decord_reader.KNOWN_FAULTS)
    self.backend = backend
    self.counts: collections.Counter[str] = collections.Counter()
    self._deadline_s = deadline_s
    self._lock = threading.Lock()
    self._closed = False
    self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    self._workers: set[_Worker] = set()
    self._threads = concurrent.futures.ThreadPoolExecutor(workers, 'decode')
    for _ in range(workers):
      self._idle.put(self._start())

  def __enter__(self) -> 'DecodePool':
    return self

  def __exit__(self, *_):
    self.close()

  async def frames(self, path: str, seconds: Times, min_pixels: int, max_pixels: int) -> Clip:
    """Decodes the frames on screen at `seconds`, one per time and in that order.

    Frames are resized once, to between min_pixels and max_pixels. Times outside the video give its
    first or last frame. Clip.seconds are the frames' presentation times. If a frame has been on
    screen for longer than a nominal frame interval, its label is the requested time. A frame may
    be returned several times; `sampling.once` removes repeats. Many frames are several requests to
    workers, each with its own deadline, so that a worker's memory does not grow with their number.

    Raises:
      MediaError: reason missing, not_video, no_frames, decode, timeout or crashed.
      ValueError: there are no times, or one is not finite.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(
      self._threads, self.frames_sync, path, seconds, min_pixels, max_pixels
    )

  async def probe(self, path: str) -> VideoInfo:
    """Returns the properties of the file's video stream. Raises as `frames`."""
    return await asyncio.get_running_loop().run_in_executor(self._threads, self.probe_sync, path)

  def frames_sync(self, path: str, seconds: Times, min_pixels: int, max_pixels: int) -> Clip:
    """As `frames`, for callers without an event loop."""
    times = np.asarray(seconds, np.float64)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all():
      raise ValueError(f'{path}: got times {seconds!r}, wanted one or more finite seconds')
    replies = [
      self._run(('frames', str(path), times[first : first + _MOST_FRAMES], min_pixels, max_pixels))
      for first in range(0, len(times), _MOST_FRAMES)
    ]
    _, _, shown, duration, own, frames = replies[0]
    if len(replies) > 1:
      shown, own, frames = (np.concatenate([reply[i] for reply in replies]) for i in (2, 4, 5))
    self._count('frames', len(frames))
    return Clip(frames, shown, duration, own)

  def probe_sync(self, path: str) -> VideoInfo:
    """As `probe`, for callers without an event loop."""
    return self._run(('probe', str(path)))[1]

  def close(self):
    """Kills the workers. Running requests fail with the reason 'crashed'. May be called twice."""
    with self._lock:
      self._closed = True
      workers, self._workers = self._workers, set()
    self._threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
      worker.end()

  def _run(self, request: tuple) -> tuple:
    self._count('requests')
    worker, whole = self._idle.get(), False
    started = time.monotonic()
    left, deaths, starts = self._deadline_s, 0, 0
    try:
      while True:
        try:
          reply = worker.ask(request, left)
          whole = reply is not None
          worker.served += whole
          break
        except (EOFError, OSError, DataError):  # the last two: a reply that is none
          reply = self._crash(worker, request[1])
        if worker.asked is None:
          starts += 1
        else:
          deaths += 1
          left -= time.monotonic() - worker.asked
        if self._closed or left <= 0 or deaths == _DEATHS or starts == _STARTS:
          break
        self._count('retried')
        worker = self._replace(worker)
    finally:
      fresh = whole and worker.served < _REQUESTS
      self._idle.put(worker if fresh or self._closed else self._replace(worker))
    if reply is None:
      reply = (
        'error',
        f'{request[1]}: no answer after {time.monotonic() - started:.1f} s, wanted one within '
        f'{self._deadline_s} s; check the file and its disk, or raise video.deadline_s',
        'timeout',
      )
    if reply[0] == 'error':
      self._count(reply[2])
      raise MediaError(reply[1], reply[2])
    return reply

  def _crash(self, worker: _Worker, path: str) -> tuple:
    if self._closed:
      return 'error', f'{path}: the decoding pool was closed, wanted it open', 'crashed'
    worker.end()
    return (
      'error',
      f'{path}: the decoding process ended with code {worker.process.returncode}, wanted frames; '
      'try the file alone, or the other video.backend',
      'crashed',
    )

  def _start(self) -> _Worker:
    worker = _Worker(self.backend, self._deadline_s, os.getpid())
    with self._lock:
      self._workers.add(worker)
      closed = self._closed
    if closed:  # meanwhile: nobody else would end it
      worker.end()
    return worker

  def _replace(self, worker: _Worker) -> _Worker:
    with self._lock:
      self._workers.discard(worker)
    worker.end()
    return self._start()

  def _count(self, name: str, amount: int = 1):
    with self._lock:
      self.counts[name] += amount

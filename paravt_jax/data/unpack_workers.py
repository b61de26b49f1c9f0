"""Processes that bring members into a root, for archives of many small files.

Python's threads take turns at every system call, and a small file is nothing but calls: four
threads are three times slower than one there (large files are reads, checksums and writes that run
side by side). Each process is asked by one thread at a time.
"""

import contextlib
import dataclasses
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, cast

from paravt_jax import children
from paravt_jax.data.archives import CHUNK, Archive, Member
from paravt_jax.data.unpack_files import Brought, bring
from paravt_jax.errors import DataError

_PROGRAM = 'from paravt_jax.data import unpack_workers; unpack_workers.serve()'


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
  """What a process of `Workers` reads, and what it writes: pipes, both."""
  return cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)


class Workers:
  """`count` processes. They hold the descriptor `lock` too: while one of a killed run still writes,
  the root is not free.
  """

  def __init__(self, count: int, lock: int):
    self._free: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    self.all = [
      # Ctrl-C is for the parent, which then ends them
      subprocess.Popen(
        children.command(_PROGRAM),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(lock,),
        start_new_session=True,
      )
      for _ in range(count)
    ]
    for each in self.all:
      self._free.put(each)

  def __enter__(self) -> 'Workers':
    return self

  def __exit__(self, kind, error, trace):
    for each in self.all:
      if error is not None:
        each.terminate()
      with contextlib.suppress(BrokenPipeError):  # it was dead
        _pipes(each)[0].close()  # the end of its life
    for each in self.all:
      _pipes(each)[1].close()
      each.wait()

  def bring(
    self, root: str, archive: Archive, members: list[Member], advance: Callable[[int], None]
  ) -> Brought:
    """`unpack_files.bring` in a process that is free; waits for one.

    Raises:
      DataError: the process died.
    """
    process = self._free.get()
    to_it, from_it = _pipes(process)
    try:
      pickle.dump((root, dataclasses.replace(archive, members=(), faults=()), members), to_it)
      to_it.flush()
      while isinstance(answer := pickle.load(from_it), int):
        advance(answer)
      return answer
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
      raise DataError(
        f'{archive.path}: the process that unpacked it died (status {process.wait()}), wanted it '
        'to live; was it out of memory? Run again, with fewer --workers'
      ) from error
    finally:
      self._free.put(process)


def serve():
  """A worker's life: jobs from stdin, progress (ints, in bytes) and results to stdout, until the
  parent closes or dies.
  """
  ended = threading.Event()
  # looked at between pieces: an exception anywhere could not clean up
  signal.signal(signal.SIGTERM, lambda *_: ended.set())
  while True:
    try:
      root, archive, members = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    advanced = _ProgressSender(ended)
    try:
      result = bring(root, archive, members, advanced)
      _send(advanced.rest)
      _send(result)
    except BrokenPipeError:  # nobody listens any more
      return


class _ProgressSender:
  """Reports progress, but not for every small file; ends the process when it was told to."""

  def __init__(self, ended: threading.Event):
    self.rest, self._ended = 0, ended

  def __call__(self, count: int):
    if self._ended.is_set():
      sys.exit(1)
    self.rest += count
    if self.rest >= CHUNK:
      _send(self.rest)
      self.rest = 0


def _send(value: int | Brought):
  data = memoryview(pickle.dumps(value))
  while data:
    data = data[os.write(1, data) :]

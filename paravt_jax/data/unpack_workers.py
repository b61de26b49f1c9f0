"""Worker processes that write members into a root, for archives of many small files.

Python threads wait for each other at every system call, and writing a small file is mostly system
calls. Four threads are three times slower than one there. Large files consist of long reads,
checksums and writes, which do run in parallel. Each process serves one thread at a time.
"""

import collections
import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, cast

from paravt_jax import children, wire
from paravt_jax.data.archives import CHUNK, Archive, Member
from paravt_jax.data.unpack_files import Brought, bring
from paravt_jax.data.unpack_journal import File
from paravt_jax.errors import DataError

_LENGTH = 8  # bytes in front of each message: its own
_KINDS = (Member, File)
_PROGRAM = 'from paravt_jax.data import unpack_workers; unpack_workers.serve()'


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
  """Returns (stdin, stdout) of a process of `Workers`. Both are pipes."""
  return cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)


class Workers:
  """`count` worker processes.

  They inherit the descriptor `lock`. So the root stays locked while a worker of a killed run still
  writes.
  """

  def __init__(self, count: int, lock: int):
    self._free: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    self.all = [
      # own session: Ctrl-C reaches only the parent, which then stops the workers
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
      with contextlib.suppress(BrokenPipeError):  # the process has already died
        _pipes(each)[0].close()  # end of input tells the process to exit
    for each in self.all:
      _pipes(each)[1].close()
      each.wait()

  def bring(
    self, root: str, archive: Archive, members: list[Member], advance: Callable[[int], None]
  ) -> Brought:
    """Runs `unpack_files.bring` in a free process. Waits until one is free.

    Raises:
      DataError: the process died.
    """
    process = self._free.get()
    to_it, from_it = _pipes(process)
    try:
      to_it.write(_message((root, _plain(archive), members)))
      to_it.flush()
      while isinstance(answer := _receive(from_it), int):
        advance(answer)
      return _brought(*answer)
    except (EOFError, BrokenPipeError) as error:
      raise DataError(
        f'{archive.path}: the process that unpacked it died (status {process.wait()}), wanted it '
        'to live; was it out of memory? Run again, with fewer --workers'
      ) from error
    finally:
      self._free.put(process)


def serve():
  """Runs a worker process until the parent closes its input or dies.

  Reads jobs from stdin. Writes progress (ints, in bytes) and results to stdout.
  """
  ended = threading.Event()
  # the flag is checked between pieces, because an exception at any point would prevent cleanup
  signal.signal(signal.SIGTERM, lambda *_: ended.set())
  while True:
    try:
      root, archive, members = _receive(sys.stdin.buffer)
    except EOFError:
      return
    archive = _archive(*archive)
    advanced = _ProgressSender(ended)
    try:
      result = bring(root, archive, members, advanced)
      _send(advanced.rest)
      _send((result.files, result.faults, dict(result.counts), _reason(result.error)))
    except BrokenPipeError:  # the parent is gone
      return


class _ProgressSender:
  """Reports progress after at least CHUNK bytes. Exits the process once `ended` is set."""

  def __init__(self, ended: threading.Event):
    self.rest, self._ended = 0, ended

  def __call__(self, count: int):
    if self._ended.is_set():
      sys.exit(1)
    self.rest += count
    if self.rest >= CHUNK:
      _send(self.rest)
      self.rest = 0


def _message(value: Any) -> bytes:
  data = wire.encode(value, _KINDS)
  return len(data).to_bytes(_LENGTH, 'little') + data


def _send(value: Any) -> None:
  data = memoryview(_message(value))
  while data:
    data = data[os.write(1, data) :]


def _receive(source: IO[bytes]) -> Any:
  """Returns the next message. Raises EOFError where it ends before its end."""
  length = int.from_bytes(_exactly(source, _LENGTH), 'little')
  return wire.decode(_exactly(source, length), _KINDS)


def _exactly(source: IO[bytes], count: int) -> bytes:
  data = source.read(count)
  if len(data) < count:
    raise EOFError
  return data


def _plain(archive: Archive) -> tuple[Any, ...]:
  """Returns the fields of an archive that writing its members needs, as values of `wire`."""
  parts = tuple(map(str, archive.parts))
  return (str(archive.path), parts, archive.kind, archive.bytes, archive.stamp, archive.digest)


def _archive(
  path: str, parts: tuple[str, ...], kind: str, size: int, stamp: str, digest: str
) -> Archive:
  files = tuple(map(pathlib.Path, parts))
  return Archive(pathlib.Path(path), files, kind, size, stamp, digest, (), (), 0)


def _reason(error: OSError | None) -> tuple[Any, ...] | None:
  """Returns what an error of the disk is made of."""
  if error is None:
    return None
  return (error.errno, error.strerror or str(error), error.filename and os.fspath(error.filename))


def _brought(
  files: dict[str, File], faults: list[str], counts: dict[str, int], reason: tuple[Any, ...] | None
) -> Brought:
  error = None if reason is None else OSError(*reason)
  return Brought(files, faults, collections.Counter(counts), error)

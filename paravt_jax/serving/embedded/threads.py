"""Runs the embedded server in threads of this process, on devices that nothing else uses.

A TPU is opened by one process of a host. So where learner and servers share a slice, the servers
live in the learner's process. They speak the same HTTP, on a port of this machine.
"""

import asyncio
import contextlib
import gc
import logging
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from paravt_jax.errors import ParavtError, RolloutError
from paravt_jax.serving import process
from paravt_jax.serving.embedded import server
from paravt_jax.serving.embedded.options import ServerOptions


class ServerThread:
  """A server in a thread of this process: a `process.StartedServer`.

  One thread has the event loop, and a second one runs the engine. Neither keeps the process alive.
  """

  def __init__(self, options: ServerOptions, devices: Sequence[Any], log: pathlib.Path):
    self.url = ''  # until it answers
    self.log = log
    self.error = ''  # why it ended
    self._options, self._devices = options, tuple(devices)
    self._loop, self._done = asyncio.new_event_loop(), asyncio.Event()
    self._freed = False
    self._known = threading.Event()  # whether it answers, or has ended before that
    self._thread = threading.Thread(target=self._run, daemon=True, name=log.stem)

  def start(self, deadline_s: float) -> None:
    """Starts the thread and returns once the server answers.

    Raises:
      RolloutError: it ended, or did not answer within `deadline_s` seconds.
    """
    self._thread.start()
    if not self._known.wait(deadline_s):
      self.stop(0.0)
      raise RolloutError(
        f'embedded server: not ready within {deadline_s:g} s, raise server.ready_timeout_s; its '
        f'log {self.log} ends:\n{self.tail()}'
      )
    if not self.url:
      self.stop(0.0)
      raise RolloutError(
        f'embedded server: {self.error or "its thread ended"} (its log: {self.log})'
      )

  @property
  def alive(self) -> bool:
    """Returns whether its thread runs."""
    return self._thread.is_alive()

  def stop(self, grace_s: float) -> None:
    """Ends the server, which aborts running requests, and frees its arrays on the devices.

    A thread cannot be killed: one that does not end within `grace_s` seconds, because it compiles
    or waits for a device, ends after that. A second call is no error.
    """
    with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
      self._loop.call_soon_threadsafe(self._done.set)
    self._thread.join(grace_s)
    if not self.alive and not self._freed:
      self._freed = True
      self._free()

  def _free(self) -> None:
    """Frees all arrays on the devices, of which nothing else has any."""
    gc.collect()  # engine and handlers refer to each other
    own = set(self._devices)
    for array in jax.live_arrays():  # JAX keeps the arguments of a program that failed
      # not `devices()`, which raises where the learner's step has donated the array meanwhile
      if array.sharding.device_set <= own:
        array.delete()

  def tail(self) -> str:
    """Returns the last lines of the log. Empty if there is no log."""
    return process.tail(self.log)

  def memory_mb(self) -> float:
    """Returns 0: the memory of a thread is that of its process."""
    return 0.0

  def _run(self) -> None:
    try:
      with (
        _log_to(self.log) as log,
        asyncio.Runner(loop_factory=lambda: self._loop) as runner,
      ):
        runner.run(self._live(log))
    finally:
      self._known.set()

  async def _live(self, log: logging.Logger) -> None:
    """Serves until the end, and writes down an error as a process would print it."""
    task = asyncio.create_task(self._serve(log))
    await asyncio.wait([task])
    error = task.exception()
    if error is None:
      return
    # the text alone: the error's frames would keep the engine's arrays
    self.error = str(error) or type(error).__name__
    if isinstance(error, ParavtError):
      log.error('error: %s', error)
    else:
      log.error('error', exc_info=error)

  async def _serve(self, log: logging.Logger) -> None:
    with contextlib.closing(server.bind(self._options.host, self._options.port)) as sock:
      # what has no place of its own must not lie on the first device, which is another's
      with jax.default_device(self._devices[0]):
        engine = server.build(self._options, self._devices, log)
      self.url = 'http://{}:{}'.format(*sock.getsockname()[:2])
      self._known.set()  # the socket listens: requests wait for the loop
      await server.serve(engine, self._options, sock, self._done, log)


def launch(
  options: ServerOptions, *, devices: Sequence[Any], log: pathlib.Path, deadline_s: float
) -> ServerThread:
  """Starts a server in this process and returns once it answers.

  Args:
    options: `port_file`, `parent_pid` and `compile_cache` have no effect: they are a process's.
    devices: `options.tensor_parallel` of them, all of which this process can use.
    log: the file to which its lines are appended.

  Raises:
    RolloutError: the server ended, or did not answer within `deadline_s` seconds.
  """
  started = ServerThread(options, devices, log)
  started.start(deadline_s)
  return started


@contextlib.contextmanager
def _log_to(path: pathlib.Path) -> Iterator[logging.Logger]:
  """Yields a logger of one server alone: those by name belong to the whole process."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.closing(logging.FileHandler(path)) as file:
    file.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    log = logging.Logger('paravt.server', logging.INFO)
    log.addHandler(file)
    yield log

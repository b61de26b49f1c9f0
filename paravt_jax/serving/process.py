"""Runs servers as child processes. Each has its own session and ends together with its children."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import psutil

from paravt_jax.errors import RolloutError

_TAIL = 12  # lines of the log in an error message
_POLL_S = 0.05
_KILLED_S = 5.0  # seconds to wait for the end of a killed process


class StartedServer(Protocol):
  """A server that this run started: a process, or a thread of its own (`embedded/threads.py`)."""

  @property
  def url(self) -> str:
    """Returns its address, without a trailing slash."""
    ...

  @property
  def log(self) -> pathlib.Path:
    """Returns the file with what it says."""
    ...

  @property
  def alive(self) -> bool:
    """Returns whether it runs."""
    ...

  def stop(self, grace_s: float) -> None:
    """Ends it, which may take `grace_s` seconds. A second call is no error."""
    ...

  def tail(self) -> str:
    """Returns the last lines of the log. Empty if there is no log."""
    ...

  def memory_mb(self) -> float:
    """Returns the MiB of memory that it takes on the host, 0 where that is not known."""
    ...


@dataclasses.dataclass(frozen=True)
class ServerProcess:
  """A server process that this run started."""

  url: str  # without a trailing slash
  process: subprocess.Popen
  log: pathlib.Path  # its standard output and error

  @property
  def alive(self) -> bool:
    """Returns whether the process runs. Its children are not checked, because they end with it."""
    return not ended(self.process)

  @property
  def pid(self) -> int:
    """Returns the id of the started process, which leads the session of its children."""
    return self.process.pid

  def stop(self, grace_s: float) -> None:
    """Asks the server to end, which aborts running requests. Kills the rest after `grace_s`
    seconds.

    On return, no process of its group is alive. A second call is no error.
    """
    end(self.process, grace_s)

  def tail(self) -> str:
    """Returns the last lines of the log. Empty if there is no log."""
    return tail(self.log)

  def memory_mb(self) -> float:
    """Returns the MiB of memory of the process and all its descendants. 0 after its end.

    Shared pages count once (PSS). Resident memory counts if the system does not report PSS.
    """
    return sum(_memory_bytes(member) for member in _family(self.pid)) / 2**20


def _memory_bytes(process: psutil.Process) -> int:
  """Returns a process's memory in bytes. 0 if it has ended."""
  try:
    try:
      full = process.memory_full_info()
      return getattr(full, 'pss', full.rss)
    except psutil.AccessDenied:
      return process.memory_info().rss
  except psutil.NoSuchProcess:  # also raised for a zombie
    return 0


def start(
  command: Sequence[str],
  *,
  env: Mapping[str, str],
  log: pathlib.Path,
  key: str | None = None,
) -> subprocess.Popen:
  """Starts `command` as the leader of a new session. Its output is appended to `log`.

  Args:
    env: the whole environment of the child.
    key: a secret, which the child reads from its stdin as one line of JSON. Nobody else sees it: a
      command line and an environment can be read in /proc. None: stdin is empty.

  Raises:
    RolloutError: the command cannot be started, or the log cannot be written.
  """
  try:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('ab') as sink:
      child = subprocess.Popen(
        list(command),
        env=dict(env),
        stdin=subprocess.DEVNULL if key is None else subprocess.PIPE,
        stdout=sink,
        stderr=sink,
        start_new_session=True,
      )
  except OSError as error:
    raise RolloutError(
      f'server: cannot start {command[0]} with its log at {log} ({error.strerror}); '
      'check both paths'
    ) from error
  if child.stdin is not None:
    # a child that has ended by now leaves its reason in the log
    with contextlib.suppress(BrokenPipeError), child.stdin:
      child.stdin.write(json.dumps(key).encode() + b'\n')
  return child


def wait_until(
  process: subprocess.Popen,
  ready: Callable[[], bool],
  log: pathlib.Path,
  deadline_s: float,
  what: str,
) -> None:
  """Waits until `ready()` is true. It checks twenty times a second.

  It does not end the process. `what` names the server in errors.

  Raises:
    RolloutError: the process ended, or was not ready within `deadline_s` seconds. The message
    contains the end of its log.
  """
  deadline = time.monotonic() + deadline_s
  while not ready():
    if ended(process):
      said = tail(log)
      last = said.rpartition('\n')[2]
      why = (
        f'{last.removeprefix("error: ")} (its log: {log})'
        if last.startswith('error: ')
        else f'its log {log} ends:\n{said}'
      )
      raise RolloutError(f'{what}: ended with status {process.wait()} before it was ready; {why}')
    if time.monotonic() > deadline:
      raise RolloutError(
        f'{what}: not ready within {deadline_s:g} s, raise server.ready_timeout_s; '
        f'its log {log} ends:\n{tail(log)}'
      )
    time.sleep(_POLL_S)


def ended(process: subprocess.Popen) -> bool:
  """Returns whether the process ended, without reaping it.

  Its id stays reserved, so signals to its group cannot reach an unrelated process.
  """
  if process.returncode is not None:
    return True
  try:
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
  except ChildProcessError:  # another thread reaped it
    return True


def end(process: subprocess.Popen, grace_s: float) -> None:
  """Sends SIGTERM, waits up to `grace_s` seconds, kills the group, and reaps the process."""
  if process.returncode is not None:
    return
  family = _family(process.pid)
  if not ended(process):
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while not ended(process) and time.monotonic() < deadline:
      time.sleep(_POLL_S)
  with contextlib.suppress(ProcessLookupError):
    # The process leads its group, so its id is the group's id.
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  # Processes that are not our children disappear a moment later.
  deadline = time.monotonic() + _KILLED_S
  while any(_runs(member) for member in family) and time.monotonic() < deadline:
    time.sleep(_POLL_S)


def _family(pid: int) -> list[psutil.Process]:
  """Returns a process and its descendants. Empty if it has ended."""
  try:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
  except psutil.NoSuchProcess:
    return []


def _runs(member: psutil.Process) -> bool:
  try:
    return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def tail(log: pathlib.Path) -> str:
  """Returns the last lines of a log. Empty if there is no log."""
  try:
    return '\n'.join(log.read_text(errors='replace').splitlines()[-_TAIL:])
  except FileNotFoundError:
    return ''

"""Starts the embedded server as a child process, waits until it answers, and ends it. Nothing is killed by name."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from paravt_jax.errors import RolloutError
from paravt_jax.serving.embedded.options import ServerOptions

_TAIL = 12                   # lines of the log that an error shows


@dataclasses.dataclass(frozen=True)
class ServerProcess:
  """A running server of ours. url: without a slash at the end."""
  url: str
  process: subprocess.Popen
  log: pathlib.Path

  @property
  def alive(self) -> bool:
    """Whether the process runs."""
    return self.process.poll() is None

  def stop(self, grace_s: float) -> None:
    """Asks the server to end (running requests are aborted), kills it after `grace_s` seconds; ending twice is no error."""
    _end(self.process, grace_s)

  def tail(self) -> str:
    """The last lines of its log."""
    return _tail(self.log)


def launch(options: ServerOptions, *, env: Mapping[str, str], log: pathlib.Path, deadline_s: float,
           parent_pid: int) -> ServerProcess:
  """Starts a server in its own session and returns once it answers.

  Args:
    options: `port_file` and `parent_pid` are replaced; port 0 takes a free one.
    env: the whole environment of the child.
    log: file that gets what the server says, appended.
    parent_pid: the process (this one) after whose end the server ends too.

  Raises:
    RolloutError: it ended, or did not answer within `deadline_s` seconds; the end of its log is shown.
  """
  log.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='paravt-server-') as folder:
    port_file = pathlib.Path(folder) / 'port'
    given = dataclasses.replace(options, port_file=str(port_file), parent_pid=parent_pid)
    command = [sys.executable, '-m', 'paravt_jax.serving.embedded.server', '--options', given.to_json()]
    with log.open('ab') as sink:
      process = subprocess.Popen(command, env=dict(env), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                                 start_new_session=True)
    try:
      port = _wait(process, port_file, log, deadline_s)
    except BaseException:              # Ctrl-C included: no child is left behind
      _end(process, 1.0)
      raise
  return ServerProcess(f'http://{options.host}:{port}', process, log)


def _wait(process: subprocess.Popen, port_file: pathlib.Path, log: pathlib.Path, deadline_s: float) -> int:
  """The port, which the server writes when it is ready to answer."""
  end = time.monotonic() + deadline_s
  while time.monotonic() < end:
    if port_file.exists():
      return int(port_file.read_text())
    if process.poll() is not None:
      said = _tail(log)
      last = said.rpartition('\n')[2]
      why = f'{last.removeprefix("error: ")} (its log: {log})' if last.startswith('error: ') else f'its log {log} ends:\n{said}'
      raise RolloutError(f'embedded server: ended with status {process.returncode} before it was ready; {why}')
    time.sleep(0.05)
  raise RolloutError(f'embedded server: not ready within {deadline_s:g} s, raise server.ready_timeout_s; '
                     f'its log {log} ends:\n{_tail(log)}')


def _end(process: subprocess.Popen, grace_s: float) -> None:
  if process.poll() is None:
    process.send_signal(signal.SIGTERM)
    try:
      process.wait(grace_s)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _tail(log: pathlib.Path) -> str:
  return '\n'.join(log.read_text(errors='replace').splitlines()[-_TAIL:])

"""Turns JAX's report that another process has died into one line.

JAX ends a process by an abort, after it has printed a stack. So the process writes its errors to a
small child, which passes everything on but that report. It runs as a file and imports nothing of
the library, so that it starts in milliseconds.
"""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable

# what JAX's coordination service logs before it ends the process, or while it only warns
_BEGIN = re.compile(rb'^[EWF]\d{4} [^\n]*(coordination_service|coordination_client|client\.h)')
_FATAL = b'Terminating process because the JAX distributed service detected fatal errors'
_ABSENT = b'CoordinationService/RegisterTask'  # the call that failed
_GONE = re.compile(rb'unhealthy[^\n]*:\n\s*([0-9][0-9, \n]*)')
_HOLD_S = 15.0  # a warning that is not followed by the end is passed on after so long


def watch() -> None:
  """Lets a child write this process's standard error from here on."""
  sys.stderr.flush()
  child = subprocess.Popen(
    [sys.executable, '-I', '-S', os.path.abspath(__file__)],
    stdin=subprocess.PIPE,
    start_new_session=True,  # Ctrl-C is for the run, whose last lines the child still writes
  )
  if child.stdin is None:
    raise AssertionError('Popen was asked for a pipe')
  os.dup2(child.stdin.fileno(), 2)
  child.stdin.close()


def line(report: bytes) -> bytes:
  """Returns the line for JAX's report that other processes have died, or have not come."""
  if _ABSENT in report:
    return (
      b'error: the processes of this run did not all come within hosts.join_s; start one on every '
      b'host, each with its own hosts.index and all with the same hosts.coordinator and hosts.count, '
      b'or raise hosts.join_s\n'
    )
  named = _GONE.search(report)
  gone = ', '.join(re.findall(r'\d+', named[1].decode())) if named else '0'
  return (
    f'error: host {gone} has ended or cannot be reached, so this one ends too; its own output '
    'says why. The same command continues from the last record\n'
  ).encode()


class Filter:
  """Passes bytes on, and holds back what may be the beginning of JAX's report."""

  def __init__(self, write: Callable[[bytes], object]):
    self._write = write
    self._held, self._since = b'', 0.0
    self._line_begins = True

  @property
  def holds(self) -> bool:
    """Returns whether bytes wait for what follows them."""
    return bool(self._held)

  def add(self, data: bytes, now: float) -> None:
    """Takes the next bytes."""
    if self._held:
      self._held += data
      return
    lines = data.splitlines(keepends=True)
    for number, one in enumerate(lines):
      if self._line_begins and _BEGIN.match(one):
        self._held, self._since = b''.join(lines[number:]), now
        return
      self._write(one)
      self._line_begins = one.endswith((b'\n', b'\r'))

  def tick(self, now: float) -> None:
    """Passes on a warning that the process has outlived."""
    if self._held and now - self._since > _HOLD_S and _FATAL not in self._held:
      self._write(self._held)
      self._held, self._line_begins = b'', True

  def end(self) -> None:
    """Writes what is left: one line in place of a report."""
    if _FATAL in self._held:
      self._write(line(self._held))
    elif self._held:
      self._write(self._held)


def main() -> None:
  """Filters standard input to standard error until its end."""
  passed = Filter(lambda data: os.write(2, data))
  while True:
    if select.select([0], [], [], 1.0)[0]:
      data = os.read(0, 1 << 16)
      if not data:
        break
      passed.add(data, time.monotonic())
    passed.tick(time.monotonic())
  passed.end()


if __name__ == '__main__':
  main()

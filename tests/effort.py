"""What a machine does in a fixed loop of Python: a measure of time that a shared machine moves too."""

import time


def loop_seconds() -> float:
  """Seconds of this thread for two million additions: about a tenth of a second alone, on a core
  of a server. A bound given as a multiple of it holds on a slow machine and on a busy one.
  """
  began, total = time.thread_time(), 0
  for i in range(2_000_000):
    total += i % 7
  return time.thread_time() - began

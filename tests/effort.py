"""A fixed loop of Python, against which tests measure a thread's own time.

`tests.patience` measures a process instead, for how long tests wait.
"""

import time


def loop_seconds() -> float:
  """Returns this thread's seconds for two million additions: about a tenth of a second alone, on a core
  of a server. A bound given as a multiple of it holds on a slow machine and on a busy one.
  """
  began, total = time.thread_time(), 0
  for i in range(2_000_000):
    total += i % 7
  return time.thread_time() - began

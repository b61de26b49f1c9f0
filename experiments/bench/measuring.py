"""What the suites share: a line on their progress, and the seconds that a piece of work takes."""

import sys
import time
from collections.abc import Callable
from typing import Any


def say(text: str) -> None:
  """A line on stderr: what is measured now."""
  print(f'bench: {text}', file=sys.stderr, flush=True)


def timed(work: Callable[[], Any]) -> float:
  """Seconds that a piece of work takes."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start

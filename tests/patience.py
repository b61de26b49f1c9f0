"""How long tests wait for what must come. A limit is there for hangs: it grows with how slow the
machine is just then.

Numbers given here are seconds on a quiet machine. `until` and `seen` say what they waited for when
they give up.
"""

import asyncio
import functools
import inspect
import subprocess
import sys
import time
from collections.abc import Callable

QUIET_S = 0.12  # what `unit` takes on a quiet machine
_LASTS_S = 60.0  # a measurement is taken again after so long: others come and go


def unit() -> float:
  """Seconds of a fixed small piece of work, of the kind that tests wait for: a process starts and
  imports something.
  """
  start = time.monotonic()
  subprocess.run([sys.executable, '-c', 'import numpy, asyncio, json'], check=True)
  return time.monotonic() - start


@functools.lru_cache(1)
def _measured(period: int) -> float:
  return max(1.0, unit() / QUIET_S)


def slowness() -> float:
  """How many times slower than a quiet machine this one is now; at least 1."""
  return _measured(int(time.monotonic() / _LASTS_S))


def seconds(quiet: float) -> float:
  """A limit for what a quiet machine is sure to have done in so many seconds."""
  return quiet * slowness()


def until(
  condition: Callable[[], object], what: str = '', quiet: float = 120.0, step: float = 0.01
) -> None:
  """Polls until the condition holds.

  Raises:
    AssertionError: it does not hold in time; names `what`, or the line that the condition stands
    in.
  """
  start = time.monotonic()
  while not condition():
    _check(start, what or _line(condition), quiet)
    time.sleep(step)


async def seen(
  condition: Callable[[], object], what: str = '', quiet: float = 120.0, step: float = 0.01
) -> None:
  """`until` for an event loop."""
  start = time.monotonic()
  while not condition():
    _check(start, what or _line(condition), quiet)
    await asyncio.sleep(step)


def _line(condition: Callable[[], object]) -> str:
  return ' '.join(inspect.getsource(condition).split())


def _check(start: float, what: str, quiet: float) -> None:
  waited = time.monotonic() - start
  if waited > quiet and waited > seconds(quiet):
    raise AssertionError(
      f'waited {waited:.0f} s for {what}: it did not come (the machine is {slowness():.1f} '
      'times slower than a quiet one)'
    )

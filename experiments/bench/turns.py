"""Programs that take turns, so that what else the machine does falls on all alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

_LEAST = 1e-6  # seconds: process_time may stand still for a very short turn


@dataclasses.dataclass(frozen=True)
class Turn:
  """Seconds of one turn."""

  wall: float
  cpu: float  # of all threads of this process


def take_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Turn]]:
  """Runs each `repeats` times, one after the other and in turns of both orders."""
  turns: dict[str, list[Turn]] = {name: [] for name in runs}
  for turn in range(repeats):
    names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
    for name in names:
      wall, cpu = time.perf_counter(), time.process_time()
      runs[name]()
      turns[name].append(Turn(time.perf_counter() - wall, time.process_time() - cpu))
  return turns


def median_ratio(
  turns: Mapping[str, list[Turn]], top: str, bottom: str, cpu: bool = False
) -> float:
  """Returns the median over the turns of one's seconds divided by the other's."""
  seconds = (lambda one: one.cpu) if cpu else (lambda one: one.wall)
  pairs = zip(turns[top], turns[bottom], strict=True)
  return statistics.median(seconds(a) / max(seconds(b), _LEAST) for a, b in pairs)


def spread(turns: Mapping[str, list[Turn]]) -> dict[str, float]:
  """Returns median, least and most seconds of each."""
  found = {}
  for name, values in turns.items():
    walls = [one.wall for one in values]
    found[f'{name}_seconds'] = statistics.median(walls)
    found[f'{name}_least_seconds'], found[f'{name}_most_seconds'] = min(walls), max(walls)
  return found

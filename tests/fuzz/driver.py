"""Runs targets on seeded inputs: bounded in time and memory, every fault saved with its command.

A target makes an input from a random generator and checks it. `check` returns a short word for the
outcome, such as 'valid' or 'refused'. It catches the errors that the code promises. Whatever else
it raises is a fault.

  <folder>/running               the input that is being checked; it stays if the process dies
  <folder>/<target>-<digest>     an input with a fault: replay it with --target and --replay
"""

import collections
import contextlib
import dataclasses
import pathlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from paravt_jax import files, seeds

# Wall seconds for each CPU second of a bound: a hang that uses no CPU ends as well.
_WALL_FACTOR = 10
_SAVED_PER_KIND = 3  # inputs of one kind of fault that are saved
_SLICE_S = 2.0  # of one target before the next one has its turn


class TooSlow(BaseException):
  """An input took longer than its target allows. No handler in the code under test catches it."""


class TooLarge(Exception):
  """An input took more memory than its target allows."""


@dataclasses.dataclass(frozen=True)
class Target:
  """A piece of code and its inputs."""

  name: str
  make: Callable[[np.random.Generator], bytes]  # an input
  check: Callable[[bytes], str]  # its outcome; raises for a fault
  seconds: float = 2.0  # CPU seconds that one input may take
  megabytes: int = 256  # by which one input may raise the peak of the process's memory


@dataclasses.dataclass
class Result:
  """What a target's inputs came to."""

  tried: int = 0
  seconds: float = 0.0  # spent on the target
  outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  faults: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by kind


def attempt(target: Target, data: bytes) -> tuple[str, str, str]:
  """Returns (outcome, kind of the fault or '', its traceback) of one input."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    with _time_limit(target.seconds):
      outcome = target.check(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    if grown > target.megabytes:
      raise TooLarge(f'the peak of memory grew by {grown} MB, wanted {target.megabytes} at most')
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # whatever is raised is a fault
    return 'fault', _kind(error), traceback.format_exc()
  return outcome, '', ''


def run(
  targets: Sequence[Target],
  *,
  seed: int,
  folder: pathlib.Path,
  seconds: float | None = None,
  inputs: int | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, Result]:
  """Tries inputs of each target, `inputs` of them or for its share of `seconds`.

  Input n of a target depends on the seed, the target's name and n alone.
  """
  folder.mkdir(parents=True, exist_ok=True)
  results = {target.name: Result() for target in targets}
  share = float('inf') if seconds is None else seconds / len(targets)
  with open(folder / 'running', 'wb') as running:
    waiting = list(targets)
    while waiting:
      for target in list(waiting):
        result, start = results[target.name], time.monotonic()
        budget = min(_SLICE_S, share - result.seconds)
        while time.monotonic() - start < budget and result.tried != inputs:
          _try_next(target, result, seed, folder, running, say)
        result.seconds += time.monotonic() - start
        if result.seconds >= share or result.tried == inputs:
          waiting.remove(target)
  (folder / 'running').unlink()
  return results


def _try_next(
  target: Target,
  result: Result,
  seed: int,
  folder: pathlib.Path,
  running,
  say: Callable[[str], None],
) -> None:
  data = target.make(seeds.rng(seed, 'fuzz', target.name, result.tried))
  running.seek(0)
  running.truncate()
  running.write(data)
  running.flush()
  result.tried += 1
  outcome, kind, trace = attempt(target, data)
  result.outcomes[outcome] += 1
  if kind:
    result.faults[kind] += 1
    if result.faults[kind] <= _SAVED_PER_KIND:
      path = folder / f'{target.name}-{files.digest(data, 8)}'
      path.write_bytes(data)
      say(f'{trace}{target.name}: {kind}\n  replay: {replay_command(target.name, path)}')


def replay_command(name: str, path: pathlib.Path) -> str:
  """Returns the command that checks a saved input again."""
  return f'{sys.executable} -m tests.fuzz --target {name} --replay {path}'


def lines(results: dict[str, Result]) -> Iterator[str]:
  """Yields a line per target: inputs, faults, outcomes."""
  for name, result in results.items():
    outcomes = ', '.join(f'{outcome} {count}' for outcome, count in result.outcomes.most_common())
    yield (
      f'{name}: {result.tried} inputs in {result.seconds:.0f} s, '
      f'{result.faults.total()} faults ({outcomes})'
    )
    yield from (f'  {count} x {kind}' for kind, count in result.faults.most_common())


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
  """Raises TooSlow in the block after CPU `seconds` of the process, or a multiple of wall time."""

  def expire(number, frame):
    del frame
    clock = 'CPU' if number == signal.SIGPROF else 'wall'
    raise TooSlow(f'{clock} time is over, wanted at most {seconds:g} s of CPU')

  before = {name: signal.signal(name, expire) for name in (signal.SIGPROF, signal.SIGALRM)}
  signal.setitimer(signal.ITIMER_PROF, seconds)
  signal.setitimer(signal.ITIMER_REAL, seconds * _WALL_FACTOR)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for name, handler in before.items():
      signal.signal(name, handler)


def _kind(error: BaseException) -> str:
  """Names a fault by its error and where it was raised, so that repeats count as one kind."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [frame for frame in frames if 'paravt_jax' in frame.filename] or list(frames)
  place = f'{pathlib.Path(own[-1].filename).name}:{own[-1].lineno}' if own else '?'
  return f'{type(error).__name__} at {place}'

"""The memory of a job's processes over time, as the system counts it."""

import statistics
import threading
import time
from collections.abc import Iterator

import psutil

_EVERY_S = 0.5
_LEAST = 8  # samples of a process that lives long enough to count
# What the command line of a learner's child holds.
ROLES = {'server': 'serving.embedded.server', 'decoder': 'video import worker'}


class Watch:
  """Samples the memory of a process and its children while the block runs.

  pid: of the learner.
  """

  def __init__(self, pid: int):
    self._root = psutil.Process(pid)
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._look, daemon=True)
    self.samples: dict[tuple[str, int], list[tuple[float, int]]] = {}

  def __enter__(self) -> 'Watch':
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    self._thread.join()

  def growth(self) -> dict[str, float]:
    """Returns bytes of each role late in the run, and the largest share by which one grew.

    The middle third of a process's samples is compared with the last. What comes before them is
    warm-up: programs are compiled, and caches fill up to their bounds.
    """
    shares: dict[str, float] = {}
    bytes_: dict[str, float] = {}
    for (role, _), samples in self.samples.items():
      if len(samples) < _LEAST:
        continue
      third = len(samples) // 3
      before, after = (
        statistics.median(size for _, size in part)
        for part in (samples[third : 2 * third], samples[2 * third :])
      )
      shares[role] = max(shares.get(role, -1.0), after / before - 1)
      bytes_[role] = max(bytes_.get(role, 0.0), after)
    return {
      'growth_share': max(shares.values()),
      **{f'{role}_growth_share': share for role, share in shares.items()},
      **{f'{role}_bytes': size for role, size in bytes_.items()},
    }

  def _look(self) -> None:
    while not self._ended.wait(_EVERY_S):
      now = time.monotonic()
      for role, pid, size in self._sizes():
        self.samples.setdefault((role, pid), []).append((now, size))

  def _sizes(self) -> Iterator[tuple[str, int, int]]:
    try:
      family = [self._root, *self._root.children(recursive=True)]
    except psutil.NoSuchProcess:
      return
    for process in family:
      try:
        role = 'learner' if process == self._root else _role(process.cmdline())
        size = process.memory_info().rss
      except psutil.Error:
        continue
      if role is not None:
        yield role, process.pid, size


def _role(words: list[str]) -> str | None:
  text = ' '.join(words)
  return next((role for role, mark in ROLES.items() if mark in text), None)

"""How far rollouts may run ahead of the learner (Fu et al. 2025, AReaL, section 5), counted in
prompt groups.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from paravt_jax.errors import CheckpointError


def capacity(
  *, version: int, batch: int, accepted: int, running: int, max_concurrent: int, staleness: int
) -> int:
  """Returns how many groups may start now. It may be negative.

  Args:
    version: weight version of the learner, the number of its finished steps.
    batch: groups per step.
    accepted: groups that finished and were kept, ever.
    running: groups in flight.
    max_concurrent: the most that may be in flight.
    staleness: eta, how many versions old a token may get; 0 is exactly synchronous.
  """
  return min(max_concurrent - running, (staleness + version + 1) * batch - (accepted + running))


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
  """batch: groups per step; max_concurrent: groups in flight; staleness: eta."""

  batch: int
  max_concurrent: int
  staleness: int


class Schedule:
  """The counters behind `capacity`. A group is started, then accepted or rejected; positions name
  groups (data order, epoch included).

  What was running when a run died is started again first: its positions are in the saved state.
  """

  def __init__(self, options: ScheduleOptions):
    self.options = options
    self.version = 0
    self.accepted = 0
    self.rejected = 0
    self.next_position = 0
    self._running: dict[int, None] = {}  # an ordered set
    self._again: list[int] = []

  @property
  def running(self) -> int:
    """Groups in flight."""
    return len(self._running)

  @property
  def free(self) -> int:
    """Groups that may start now; not negative."""
    return max(
      0,
      capacity(
        version=self.version,
        batch=self.options.batch,
        accepted=self.accepted,
        running=self.running,
        max_concurrent=self.options.max_concurrent,
        staleness=self.options.staleness,
      ),
    )

  def start(self) -> int | None:
    """Starts the next group and returns its position. None if no group may start."""
    if not self.free:
      return None
    if self._again:
      position = self._again.pop(0)
    else:
      position = self.next_position
      self.next_position += 1
    self._running[position] = None
    return position

  def accept(self, position: int) -> None:
    """The group finished and is kept for a step."""
    self._end(position)
    self.accepted += 1

  def reject(self, position: int) -> None:
    """Marks a group as lost (its video is broken, say), so the next group may take its place."""
    self._end(position)
    self.rejected += 1

  def retract(self, position: int) -> None:
    """Marks a kept group as lost after all, so the next group may take its place.

    Raises ValueError if no group was kept.
    """
    if not self.accepted:
      raise ValueError(f'schedule: group {position} was not kept')
    self.accepted -= 1
    self.rejected += 1

  def _end(self, position: int) -> None:
    if position not in self._running:
      raise ValueError(
        f'schedule: group {position} is not running; running are {list(self._running)}'
      )
    del self._running[position]

  def publish(self, version: int) -> None:
    """The learner made a step and its weights are out."""
    self.version = version

  def state(self) -> dict[str, object]:
    """JSON-able; part of the checkpoint. Groups in flight are listed as ones to start again."""
    return {
      'version': self.version,
      'accepted': self.accepted,
      'rejected': self.rejected,
      'next_position': self.next_position,
      'again': sorted([*self._running, *self._again]),
    }

  def restore(self, state: Mapping[str, Any], lost: Iterable[int] = ()) -> None:
    """Restores a `state()`.

    lost: accepted positions whose groups were not saved. They run again.

    Raises:
      CheckpointError: a counter is missing.
    """
    missing = [
      name
      for name in ('version', 'accepted', 'rejected', 'next_position', 'again')
      if name not in state
    ]
    if missing:
      raise CheckpointError(
        f'rollout counters: got {sorted(state)}, missing {missing}; is this checkpoint of '
        'another version?'
      )
    lost = list(lost)
    self.version, self.rejected = int(state['version']), int(state['rejected'])
    self.accepted = int(state['accepted']) - len(lost)
    self.next_position = int(state['next_position'])
    self._again = sorted([*state['again'], *lost])
    self._running = {}

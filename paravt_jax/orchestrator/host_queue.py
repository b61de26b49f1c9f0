"""The queue of one of several hosts: each runs its own share of the groups.

All hosts have the same schedule, and every group belongs to one of them by its position in the data.
They tell each other only how the groups of a step ended, so their counters stay equal, and equal
to those of one host. A batch holds the first positions of the data that are not lost: a group that
takes long is waited for, where the queue of one host may let newer ones overtake it.
"""

import asyncio
import collections
import dataclasses
from typing import Any

from paravt_jax.orchestrator import rollout_queue
from paravt_jax.orchestrator.group_record import Finished
from paravt_jax.orchestrator.hosts import Hosts
from paravt_jax.rollout import schedule
from paravt_jax.types import Group


class HostQueue(rollout_queue.Queue):
  """The queue of a host. `next_batch` returns this host's groups of the next step."""

  def __init__(self, hosts: Hosts, *arguments: Any):
    """Takes the arguments of `Queue` behind `hosts`."""
    super().__init__(*arguments)
    # All hosts must start the same positions, so the schedule does not know what runs where. The
    # groups in flight are limited on each host.
    before, options = self.schedule, self.schedule.options
    most = options.batch * (options.staleness + 1)
    self.schedule = schedule.Schedule(dataclasses.replace(options, max_concurrent=most))
    self.schedule.restore(before.state())
    self._hosts, self._channel = hosts, hosts.channel('rl/queue')
    self._slots = asyncio.Semaphore(max(1, options.max_concurrent // hosts.count))
    self._open: dict[int, asyncio.Task[Group] | None] = {}  # by position; None: another host's
    self._here: dict[int, Group] = {}  # finished groups of this host
    self.owners: tuple[int, ...] = ()  # the hosts of the last batch's groups, in their order

  def _fill(self) -> None:
    while (position := self.schedule.start()) is not None:
      self._open[position] = None
      if self._owner(position) == self._hosts.index:
        task = asyncio.create_task(self._run(position))
        self._open[position] = task
        self._running[task] = position

  def _owner(self, position: int) -> int:
    return position % self._hosts.count

  async def _run(self, position: int) -> Group:
    async with self._slots:
      return await self._run_group(position)

  def finished(self) -> list[Finished]:
    """Returns none: process 0 alone writes a record, so those of all hosts run again."""
    return []

  async def next_batch(self) -> list[Group]:
    """Returns this host's groups of the next step, in the order of the data.

    All hosts call it at the same steps.

    Raises:
      RolloutError: too many groups in a row are lost.
    """
    while True:
      batch = await self._first_positions()
      await self._finished([task for p in batch if (task := self._open.get(p)) is not None])
      self._settle(await self._channel.meet(self._outcomes(batch)))
      if len(batch) == self._batch and not any(position in self._open for position in batch):
        ready = {position for position, _ in self._ready}
        if ready.issuperset(batch):
          break
    self._ready = [pair for pair in self._ready if pair[0] not in batch]
    whole = [(p, self._here.pop(p, Group('', 0, ()))) for p in batch]
    self._handed.append(whole)
    self._number += 1
    self.owners = tuple(map(self._owner, batch))
    self._fill()
    return [group for p, group in whole if self._owner(p) == self._hosts.index]

  async def _first_positions(self) -> list[int]:
    """Returns the first positions that a batch can consist of, at most a batch of them.

    It waits for a delivery if too few may start before it.
    """
    self._fill()
    while len(self._open) + len(self._ready) < self._batch and self._delivery is not None:
      await self.delivered()
      self._fill()
    known = {*self._open, *(position for position, _ in self._ready)}
    return sorted(known)[: self._batch]

  async def _finished(self, tasks: list[asyncio.Task[Group]]) -> None:
    """Waits for groups of this host. A delivery that fails ends the wait with its error."""
    while waiting := {task for task in tasks if not task.done()}:
      delivery = {self._delivery} if self._delivery is not None else set()
      done, _ = await asyncio.wait({*waiting, *delivery}, return_when=asyncio.FIRST_COMPLETED)
      if done & delivery:
        await self.delivered()

  def _outcomes(self, batch: list[int]) -> dict[int, str | None]:
    """Returns how this host's groups of a batch ended: None, or why they are lost."""
    found: dict[int, str | None] = {}
    for position in batch:
      task = self._open.get(position)
      if task is not None:
        group = task.result()
        found[position] = None if group.scored else group.dropped[0]
        if self._is_too_old(group):
          found[position] = rollout_queue.TOO_OLD
        self._here[position] = group
        del self._running[task]
    return found

  def _settle(self, outcomes: list[dict[int, str | None]]) -> None:
    """Counts how the groups of all hosts ended, in the order of their positions."""
    for position, reason in sorted(item for one in outcomes for item in one.items()):
      del self._open[position]
      # what `_take` looks at: whether an episode is there, else the reason
      kept = Group('', 0, (), () if reason is None else (reason,))
      self._end(position, kept, reason)

  def _end(self, position: int, group: Group, reason: str | None) -> None:
    if reason is None:
      self._record(position, None)
      self.schedule.accept(position)
      self._ready.append((position, group))
      self._lost = 0
    else:
      self._here.pop(position, None)
      self._began[position] = 0
      self._take(position, group)
      if self._owner(position) != self._hosts.index:  # its own host counts it
        self._dropped -= collections.Counter((reason,))


def make_queue(hosts: Hosts, *arguments: Any) -> rollout_queue.Queue:
  """Returns the queue of a run: `Queue` for one host, `HostQueue` for one of several."""
  return rollout_queue.Queue(*arguments) if hosts.is_alone else HostQueue(hosts, *arguments)


def owners(queue: rollout_queue.Queue) -> tuple[int, ...]:
  """Returns the hosts of the last batch's groups in their order; () for one host."""
  return queue.owners if isinstance(queue, HostQueue) else ()

"""The queue of groups for the learner.

It starts groups as far ahead as the schedule allows, and hands out one step's groups at a time.
"""

import asyncio
import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Coroutine, Sequence
from typing import Any

from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import DataError, RolloutError
from paravt_jax.orchestrator import rollouts
from paravt_jax.orchestrator.group_record import Finished
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.rollout import groups, quarantine, schedule
from paravt_jax.types import Group, Task

LOST_IN_A_ROW = 64  # consecutive lost groups after which the run gives up
TOO_OLD = 'too_old'  # why a group is lost that has a token more than `staleness` versions behind


class Queue:
  """Runs groups as the schedule allows, hands them out in batches, and saves its position."""

  def __init__(
    self,
    recipe: RLRecipe,
    server: rollouts.Rollouts,
    reward: groups.Reward,
    options: groups.GroupOptions,
    order: EpochOrder,
    tasks: Sequence[Task],
    host: dict[str, Any] | None,
    finished: Sequence[Finished] = (),
  ):
    """Takes the parts of a run.

    Args:
      host: the `state` of the record that the run goes on from.
      finished: its finished groups. Those of its positions that it lacks run again.
    """
    knobs = recipe.rollout
    self.schedule = schedule.Schedule(
      schedule.ScheduleOptions(knobs.prompts, knobs.max_concurrent, knobs.staleness)
    )
    self._rows = digest(tasks, recipe.data.media_root)
    if host is not None:
      if host['rows'] not in (self._rows, digest(tasks)):  # older records hashed whole paths
        raise DataError(
          f'the {len(tasks)} training rows are not those with which this run was begun '
          f'(digest {self._rows}, wanted {host["rows"]}): '
          'continue with the same files, or choose another run with --config.run.folder=DIR'
        )
      kept = {one.position for one in finished}
      self.schedule.restore(host['schedule'], lost=[p for p in host['ready'] if p not in kept])
    self._quarantine = quarantine.Quarantine(
      recipe.data.media_root,
      (task.videos for task in tasks),
      None if host is None else host.get('quarantine'),  # older records have none
    )
    self._agent = server.sampling
    self._reward = reward
    self._options = options
    self._order = order
    self._tasks = tasks
    self._client = server.client
    self._batch = knobs.prompts
    self._staleness = knobs.staleness
    self._steps = knobs.steps  # of the run: behind its last one nothing starts
    self._closed = False
    self._running: dict[asyncio.Task, int] = {}
    self._ready = [(one.position, one.group) for one in finished]
    self._number = self.schedule.version  # of the step that the next batch is for
    # position -> the delivered version with which its group began, until it is trained
    self._began = {one.position: one.began for one in finished}
    # batches handed out for steps that are not finished, oldest first
    self._handed: collections.deque[list[tuple[int, Group]]] = collections.deque()
    self._delivery: asyncio.Task | None = None
    self._lost = 0
    # Groups whose rollouts were all lost since the last step, by reason.
    self._dropped: collections.Counter[str] = collections.Counter()
    self._seen = dict(self._client.counts)

  def _fill(self) -> None:
    """Starts as many groups as may run."""
    while (position := self.schedule.start()) is not None:
      self._began[position] = self.schedule.version
      self._running[asyncio.create_task(self._run_group(position))] = position

  async def _run_group(self, position: int) -> Group:
    """Runs the group of a position, unless its video is in quarantine."""
    epoch, index = self._order.at(position)
    task = self._tasks[index]
    if reason := await asyncio.to_thread(self._quarantine.refuse, task.videos, epoch):
      return Group(task.id, epoch, (), (reason,) * self._options.size)
    prompt = groups.Prompt(task, epoch)
    return await groups.run_group(self._agent, prompt, self._reward, self._options)

  def _record(self, position: int, reason: str | None) -> None:
    epoch, index = self._order.at(position)
    self._quarantine.record(self._tasks[index].videos, epoch, reason)

  async def next_batch(self) -> list[Group]:
    """Returns the next step's groups, in the order of their positions.

    The step before may still run. Without staleness, its version must be delivered meanwhile. Groups
    that began with an older version go first, and a group that would be too old for the step after
    is waited for: newer ones may have overtaken it. A group with a token that is too old all the
    same, because its server was behind the others, is lost and counted.

    Raises:
      RolloutError: too many groups in a row are lost.
    """
    await self._collect()
    while self._drop_too_old():
      await self._collect()
    self._ready.sort(key=lambda pair: self._began[pair[0]])  # else in the order of their ends
    batch, self._ready = self._ready[: self._batch], self._ready[self._batch :]
    self._handed.append(batch)
    self._number += 1
    self._fill()  # with staleness above 0 the next groups run while the learner steps
    return [group for _, group in sorted(batch, key=lambda pair: pair[0])]

  async def _collect(self) -> None:
    """Waits until a batch is ready and no group that runs must be in it."""
    while len(self._ready) < self._batch or any(map(self._is_due, self._running.values())):
      self._fill()
      delivery = {self._delivery} if self._delivery is not None else set()
      done, _ = await asyncio.wait({*self._running, *delivery}, return_when=asyncio.FIRST_COMPLETED)
      if done & delivery:
        await self.delivered()
      for task in sorted(done - delivery, key=self._running.__getitem__):
        self._take(self._running.pop(task), task.result())

  def _drop_too_old(self) -> bool:
    """Drops the finished groups that the next step may not train on. Returns whether any was."""
    old = {position for position, group in self._ready if self._is_too_old(group)}
    self._ready = [pair for pair in self._ready if pair[0] not in old]
    for position in sorted(old):
      self.schedule.retract(position)
      self._lose(position, TOO_OLD)
    return bool(old)

  def _is_too_old(self, group: Group) -> bool:
    """Returns whether a token of the group is more than `staleness` versions behind the next step."""
    oldest = groups.oldest_version(group)
    return oldest is not None and oldest + self._staleness < self._number

  def _is_due(self, position: int) -> bool:
    """Returns whether a group must be in the next batch, or its tokens get too old.

    The schedule starts so few groups with a version that all that are due fit into a batch.
    """
    return self._began[position] + self._staleness <= self._number

  def mark_trained(self) -> None:
    """Records that the update on the oldest batch that was handed out is finished."""
    for position, _ in self._handed.popleft():
      self._began.pop(position, None)

  def deliver(self, work: Coroutine[Any, Any, None], version: int) -> None:
    """Starts `work`, which delivers `version` to the servers while groups continue.

    The schedule counts the version once the delivery is finished.
    """
    if self._delivery is not None:
      raise RuntimeError(
        f'version {version} cannot go out before the one before has: await delivered()'
      )

    async def bring() -> None:
      await work
      self.schedule.publish(version)
      # The learner may be in a step, and asks for its next batch only after it. Without staleness
      # it asks at once.
      if self._staleness and version < self._steps and not self._closed:
        self._fill()

    self._delivery = asyncio.create_task(bring())

  async def delivered(self) -> None:
    """Waits until the last version is delivered. Raises the error of its delivery."""
    if self._delivery is not None:
      # Cancelling the wait must not cancel an update of a server.
      await asyncio.shield(self._delivery)
      self._delivery = None

  def _take(self, position: int, group: Group) -> None:
    self._record(position, None if group.scored else group.dropped[0])
    if group.scored:
      self.schedule.accept(position)
      self._ready.append((position, group))
      self._lost = 0
      return
    self.schedule.reject(position)
    self._lose(position, group.dropped[0])

  def _lose(self, position: int, reason: str) -> None:
    """Counts a lost group. Raises RolloutError after too many in a row."""
    del self._began[position]
    self._dropped[reason] += 1
    self._lost += 1
    if self._lost >= LOST_IN_A_ROW:
      raise RolloutError(
        f'{self._lost} groups in a row were lost whole (the last: {reason}); see '
        "the server's log, and check the media root"
      )

  def state(self) -> dict[str, Any]:
    """Returns the state for the checkpoint, but for the `finished` groups.

    Groups that are not finished run again after a restart.
    """
    return {
      'rows': self._rows,
      'schedule': self.schedule.state(),
      'ready': sorted(position for batch in (*self._handed, self._ready) for position, _ in batch),
      'quarantine': self._quarantine.state(),
    }

  def finished(self) -> list[Finished]:
    """Returns the groups that wait for a step, for the checkpoint."""
    return [
      Finished(position, self._began[position], group)
      for batch in (*self._handed, self._ready)
      for position, group in batch
    ]

  def metrics(self) -> dict[str, float]:
    """Returns how full the queue is, and losses, cuts, retries and images since the previous call."""
    before, self._seen = self._seen, dict(self._client.counts)
    dropped, self._dropped = self._dropped, collections.Counter()
    return {
      **{f'groups/dropped/reason={reason}': float(count) for reason, count in dropped.items()},
      **{
        f'rollout/{name}': float(self._seen.get(name, 0) - before.get(name, 0))
        for name in ('interrupted', 'retried', 'moved', 'images', 'images_sent', 'image_bytes')
      },
      'rollout/running': float(len(self._running)),
      'rollout/queued': float(len(self._ready)),
      'rollout/capacity': float(self.schedule.free),
      'rollout/epoch': self.schedule.next_position / self._order.size,
      'data/quarantined': float(
        self._quarantine.count(self._order.at(max(0, self.schedule.next_position - 1))[0])
      ),
    }

  async def close(self, limit_s: float | None = None) -> None:
    """Cancels the groups. It waits for a delivery that has begun, so that no server stays paused.

    Args:
      limit_s: after which it cancels the delivery. A server by URL may then stay paused; the next run
        that uses it resumes it. None: no limit.
    """
    self._closed = True
    for task in self._running:
      task.cancel()
    delivery = {self._delivery} if self._delivery is not None else set()
    if delivery:
      await asyncio.wait(delivery, timeout=limit_s)
      for task in delivery:
        task.cancel()
    await asyncio.gather(*self._running, *delivery, return_exceptions=True)


def digest(tasks: Sequence[Task], media_root: str = '') -> str:
  """Returns sixteen hex digits that identify the rows and their order.

  Videos count by their path below the media root, because the root may move.
  """
  hashed, root = hashlib.blake2b(digest_size=8), pathlib.Path(media_root)

  def below(path: str) -> str:
    video = pathlib.Path(path)
    return str(video.relative_to(root)) if video.is_relative_to(root) else path

  for task in tasks:
    if media_root:
      task = dataclasses.replace(task, videos=tuple(map(below, task.videos)))
    hashed.update(repr(task).encode(errors='backslashreplace') + b'\0')
  return hashed.hexdigest()

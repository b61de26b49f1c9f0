"""The training loop of RL: rollouts, update, publish, log, record.

After SIGTERM or Ctrl-C the last finished step is recorded, also where `run.checkpoint_every` had not
come to it. Only the computation of a step that is under way is waited for, never a rollout, a server
or the delivery of its weights: the record needs none of them, and the run that continues delivers
them anew. So a preempted node needs a grace period of one update, plus the seconds of the record, plus
those that `LEAVE_S` and the servers' own grace add before the process ends. Several hosts must agree,
so they end after the whole step. If no server is left, the last finished step is recorded too.
"""

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import RolloutError
from paravt_jax.metrics import writer
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.options import extended
from paravt_jax.orchestrator import (
  alarms,
  group_record,
  host_queue,
  parts,
  rollouts,
  step_facts,
  step_log,
)
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator.corpus import Questions
from paravt_jax.orchestrator.learner import Learner, PreparedBatch
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.rollout_queue import Queue
from paravt_jax.orchestrator.run_folder import Interrupts, RunFolder, saves
from paravt_jax.report.episodes import EpisodeLog
from paravt_jax.rollout import groups
from paravt_jax.timeline import Timeline
from paravt_jax.train import checkpoint
from paravt_jax.types import Group

LEAVE_S = 5.0  # that a delivery may take to end once the run is asked to end

# stages of a step in which the learner waits, as its lane of the timeline has them
_WAITS = {'rollout': 'wait for rollouts', 'sync': 'wait for servers'}


async def train(
  recipe: RLRecipe,
  folder: RunFolder,
  learner: Learner,
  server: rollouts.Rollouts,
  questions: Questions,
  host: dict[str, Any] | None,
  interrupts: Interrupts,
) -> None:
  """Trains up to the recipe's number of steps. Rollouts may be `staleness` versions old.

  Args:
    host: the queue's state in the record that the learner was restored from. None without a record.
  """
  knobs = recipe.rollout
  options = extended(groups.GroupOptions, recipe.frames, size=knobs.group_size, seed=recipe.seed)
  tasks = questions.train
  order = EpochOrder(len(tasks), recipe.seed)
  wandb = parts.wandb_options(recipe, folder.path)
  episodes = folder.path / 'episodes' / 'train.jsonl'
  begun, board = learner.version, recipe.run.tensorboard
  lines = folder.path / step_log.FILE
  async with rollouts.rewards(recipe) as reward:
    hosts = hosts_.current()
    record = checkpoint.folder(folder.path / 'checkpoints', learner.version)
    finished = () if host is None else group_record.read(record)
    queue = host_queue.make_queue(
      hosts, recipe, server, reward, options, order, tasks, host, finished
    )
    with contextlib.ExitStack() as stack:
      stack.enter_context(learner)  # waits at the end for the record that is being written
      logs = None
      if hosts.is_first:
        logs = Logs(
          stack.enter_context(
            MetricsWriter(folder.path, tensorboard=board, wandb=wandb, start_step=begun)
          ),
          stack.enter_context(EpisodeLog(episodes, start_step=begun)),
          step_log.StepLog(lines, knobs.steps, servers_wait=not knobs.staleness),
        )
      # without a terminal, the lines of the steps are the progress
      shown = hosts.is_first and sys.stderr.isatty()
      progress = stack.enter_context(parts.bar(knobs.steps, recipe.name, begun, shown))
      loop = _Loop(recipe, learner, server, queue, logs, questions.metrics(), folder)
      try:
        with loop.recording():
          while learner.version < knobs.steps:
            metrics = await loop.step(interrupts)
            progress.set_postfix_str(glance(metrics), refresh=False)
            progress.update()
            await loop.check(interrupts)
      finally:
        await loop.close()
        await queue.close(LEAVE_S if interrupts.asked else None)


@dataclasses.dataclass(frozen=True)
class Logs:
  """What is written of each step, by process 0."""

  metrics: MetricsWriter
  episodes: EpisodeLog
  lines: step_log.StepLog


class _NoInterrupts(Interrupts):
  """Ctrl-C during the rollouts of several hosts: it counts after the step, when all agree."""

  def check(self) -> None:
    """Raises nothing."""


class _Loop:
  """The steps of one process: their shared parts, and when the last record was written."""

  def __init__(
    self,
    recipe: RLRecipe,
    learner: Learner,
    server: rollouts.Rollouts,
    queue: Queue,
    logs: Logs | None,
    skipped: dict[str, float],
    folder: RunFolder,
  ):
    self._recipe, self._learner = recipe, learner
    self._server, self._queue = server, queue
    self._logs, self._skipped = logs, skipped
    self._folder, limits = folder, recipe.rollout
    self._alarms = alarms.rl_alarms(recipe.watch, limits.gap_limit, limits.gap_ratio)
    if logs is not None:
      self._alarms.replay(writer.read(logs.metrics.path))
    self._hosts = hosts_.current()
    self._channel = self._hosts.channel('rl/steps')
    self._saved = self._logged = learner.version
    self._clock = Clock(server.timeline, learner.version)
    # the next step's batch, collected and packed beside the present step
    self._ahead: asyncio.Task[PreparedBatch] | None = None

  async def step(self, interrupts: Interrupts) -> dict[str, float]:
    """Makes one step, as numbered in the package's docstring. Returns the logged metrics."""
    learner, queue, clock = self._learner, self._queue, self._clock
    knobs, number = self._recipe.rollout, learner.version
    rounding = learner.rounding  # of the version that sampled the current tokens
    until = interrupts if self._hosts.is_alone else _NoInterrupts()
    if self._ahead is None:
      batch = await rollouts.unless_stopped(queue.next_batch(), until, self._server)
      clock.lap('rollout')
      prepared = await self._prepare(batch, number)
    else:
      prepared = await rollouts.unless_stopped(self._ahead, until, self._server)
      clock.lap('rollout')
    # With staleness the next groups need not wait for this step's weights.
    self._ahead = None
    if knobs.staleness and number + 1 < knobs.steps:
      self._ahead = asyncio.create_task(self._collect(number + 1))
    metrics = await hosts_.apart(learner.train_on, prepared)
    metrics['policy/rounding'] = rounding
    queue.mark_trained()
    clock.lap('learn')
    save = saves(self._recipe.run.checkpoint_every, learner.version, knobs.steps)
    # With staleness, writing, conversion and loading of a version overlap with the next groups.
    await self._bring_out(until, waits=save or not knobs.staleness)
    stop = await self._write(number, prepared, metrics, clock)
    self._logged = learner.version
    await self._end_if(stop)
    # Saving counts towards the next step, so that each record on disk has its line in the log.
    self._clock = Clock(self._server.timeline, learner.version)
    self._server.timeline.flush()
    if save:
      self.save_what_is_done()
      self._clock.lap('checkpoint')
    return metrics

  async def _bring_out(self, until: Interrupts, *, waits: bool) -> None:
    """Publishes the version of the step and begins its delivery; `waits`: until its end.

    After SIGTERM it does neither.
    """
    learner, clock = self._learner, self._clock
    await self._delivered(until)  # the weights of the previous step
    clock.lap('sync')
    if until.asked:
      return
    pending = await hosts_.apart(learner.publish)
    clock.lap('publish')
    self._queue.deliver(self._server.deliver(pending, learner.version), learner.version)
    if waits:
      await self._delivered(until)
      clock.lap('sync')

  async def _delivered(self, until: Interrupts) -> None:
    """Waits until the last version is delivered, or an end is requested."""
    work = asyncio.ensure_future(self._queue.delivered())
    while not work.done() and not until.asked:
      await asyncio.wait({work}, timeout=0.2)
    if not work.done():
      work.cancel()  # the wait, not the delivery
    await asyncio.gather(work, return_exceptions=until.asked)

  @contextlib.contextmanager
  def recording(self) -> Iterator[None]:
    """Begins the record of the last finished step if an end is requested, or no server is left."""
    try:
      yield
    except KeyboardInterrupt:  # a second Ctrl-C may interrupt a step; then the last record counts
      self.save_what_is_done()
      raise
    except RolloutError:  # it came in one host alone, and a record is of all
      if self._hosts.is_alone:
        self.save_what_is_done()
      raise

  async def check(self, interrupts: Interrupts) -> None:
    """Raises KeyboardInterrupt in all processes if an end was requested in one of them."""
    if any(await self._channel.meet(interrupts.asked)):
      raise KeyboardInterrupt

  async def _collect(self, version: int) -> PreparedBatch:
    """Returns the next groups' arrays for the step that begins with `version`."""
    return await self._prepare(await self._queue.next_batch(), version)

  async def _prepare(self, batch: list[Group], version: int) -> PreparedBatch:
    owners = host_queue.owners(self._queue)
    with self._server.timeline.busy('packing'):
      return await hosts_.apart(self._learner.prepare, batch, version, owners)

  async def close(self) -> None:
    """Ends the work on a batch that no step will use. Its groups stay in the queue's state."""
    if self._ahead is not None:
      self._ahead.cancel()
      await asyncio.gather(self._ahead, return_exceptions=True)

  async def _write(
    self, number: int, batch: PreparedBatch, metrics: dict[str, float], clock: 'Clock'
  ) -> alarms.Stop | None:
    """Logs a step in process 0, and returns whether an alarm ends the run. None elsewhere."""
    times = clock.times()
    own = {**self._queue.metrics(), **self._server.metrics()}
    around = step_facts.add_metrics(await self._channel.meet(own))
    if self._logs is None:
      return None
    for group in batch.groups:
      for one in group.scored:
        self._logs.episodes.append(number, one)
    record = {**metrics, **times, **around, **self._skipped}
    found = self._alarms.step(number, record)
    self._logs.metrics.write(number, {**record, **found.metrics})
    self._logs.lines.write(number, record, found)
    return found.stop

  async def _end_if(self, stop: alarms.Stop | None) -> None:
    """Raises the error of process 0's alarm in all processes, after the record that it leaves."""
    keep, version = self._recipe.run.keep, self._learner.version
    save, error = False, None
    if stop is not None:
      records = {*checkpoint.steps(self._folder.path / 'checkpoints'), self._saved} - {0}
      save = alarms.saves_on(stop, sorted(records), keep)
      error = alarms.error(stop, sorted({*records, version} if save else records))
    save, error = (await self._channel.meet((save, error)))[0]
    if save:
      self.save_what_is_done()
    if error is not None:
      raise error

  def _save(self) -> None:
    """Begins a record, which is written while training goes on."""
    self._learner.save(self._queue.state(), group_record.files(self._queue.finished()))
    self._saved = self._learner.version

  def save_what_is_done(self) -> None:
    """Begins the record of the newest version, unless one exists or its step was interrupted.

    Servers may lack the version: the run that continues begins with its delivery.
    """
    version = self._learner.version
    if version == self._logged > self._saved:
      self._queue.schedule.publish(version)
      self._save()


def glance(metrics: dict[str, float]) -> str:
  """Returns what the progress bar shows of a step."""
  found = [metrics.get(name, 0.0) for name in ('reward/total', 'accuracy', 'calls/executed')]
  return 'reward {:.2f} accuracy {:.2f} calls {:.2f}'.format(*found)


class Clock:
  """Measures the seconds of each stage of a step, and tells a timeline."""

  def __init__(self, timeline: Timeline, step: int):
    self._timeline, self._step = timeline, step
    self._start = self._last = time.monotonic()
    self._laps: dict[str, float] = {}

  def lap(self, stage: str) -> None:
    """Adds the time since the last lap to `stage`."""
    now = time.monotonic()
    self._laps[stage] = self._laps.get(stage, 0.0) + now - self._last
    name = _WAITS.get(stage, stage)
    self._timeline.span('learner', name, self._last, now, step=self._step)
    self._last = now

  def times(self) -> dict[str, float]:
    """Returns seconds by stage, and of the whole step."""
    self.lap('other')
    stages = {f'time/{stage}': seconds for stage, seconds in self._laps.items()}
    return {**stages, 'time/step': self._last - self._start}

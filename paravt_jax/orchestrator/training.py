"""The training loop of RL: rollouts, update, publish, log, record."""

import asyncio
import time
from typing import Any

from paravt_jax.data.order import EpochOrder
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.options import extended
from paravt_jax.orchestrator import parts, rollouts
from paravt_jax.orchestrator.corpus import Questions
from paravt_jax.orchestrator.learner import Learner, PreparedBatch
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.rollout_queue import Queue
from paravt_jax.orchestrator.run_folder import Interrupts, RunFolder, saves
from paravt_jax.orchestrator.weight_delivery import guard
from paravt_jax.report.episodes import EpisodeLog
from paravt_jax.rollout import groups
from paravt_jax.types import Group


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
  options = extended(
    groups.GroupOptions,
    recipe.frames,
    size=knobs.group_size,
    seed=recipe.seed,
  )
  tasks = questions.train
  order = EpochOrder(len(tasks), recipe.seed)
  wandb = parts.wandb_options(recipe, folder.path)
  episodes = folder.path / 'episodes' / 'train.jsonl'
  begun, board = learner.version, recipe.run.tensorboard
  async with rollouts.rewards(recipe) as reward:
    queue = Queue(recipe, server, reward, options, order, tasks, host)
    with (
      learner,  # waits at the end for the record that is being written
      MetricsWriter(folder.path, tensorboard=board, wandb=wandb, start_step=begun) as writer,
      EpisodeLog(episodes, start_step=begun) as log,
      parts.bar(knobs.steps, recipe.name, begun) as progress,
    ):
      loop = _Loop(recipe, learner, server, queue, writer, log, questions.metrics())
      try:
        while learner.version < knobs.steps:
          metrics = await loop.step(interrupts)
          progress.set_postfix_str(glance(metrics), refresh=False)
          progress.update()
          interrupts.check()
      except KeyboardInterrupt:  # a second Ctrl-C may interrupt a step; then the last record counts
        await loop.save_what_is_out()
        raise
      finally:
        await loop.close()
        await queue.close()


class _Loop:
  """The steps of one process: their shared parts, and when the last record was written."""

  def __init__(
    self,
    recipe: RLRecipe,
    learner: Learner,
    server: rollouts.Rollouts,
    queue: Queue,
    writer: MetricsWriter,
    log: EpisodeLog,
    skipped: dict[str, float],
  ):
    self._recipe, self._learner = recipe, learner
    self._server, self._queue = server, queue
    self._writer, self._log, self._skipped = writer, log, skipped
    self._saved, self._clock = learner.version, Clock()
    # the next step's batch, collected and packed beside the present step
    self._ahead: asyncio.Task[tuple[list[Group], PreparedBatch]] | None = None

  async def step(self, interrupts: Interrupts) -> dict[str, float]:
    """Makes one step, as numbered in the package's docstring. Returns the logged metrics."""
    learner, queue, clock = self._learner, self._queue, self._clock
    knobs, number = self._recipe.rollout, learner.version
    rounding = learner.rounding  # of the version that sampled the current tokens
    if self._ahead is None:
      batch = await rollouts.unless_stopped(queue.next_batch(), interrupts, self._server)
      clock.lap('rollout')
      prepared = await asyncio.to_thread(learner.prepare, batch, number)
    else:
      batch, prepared = await rollouts.unless_stopped(self._ahead, interrupts, self._server)
      clock.lap('rollout')
    # With staleness the next groups need not wait for this step's weights.
    self._ahead = None
    if knobs.staleness and number + 1 < knobs.steps:
      self._ahead = asyncio.create_task(self._collect(number + 1))
    metrics = await asyncio.to_thread(learner.train_on, prepared)
    metrics['policy/rounding'] = rounding
    queue.mark_trained()
    clock.lap('learn')
    await queue.delivered()  # the weights of the previous step
    clock.lap('sync')
    pending = await asyncio.to_thread(learner.publish)
    clock.lap('publish')
    queue.deliver(self._server.deliver(pending, learner.version), learner.version)
    save = saves(self._recipe.run.checkpoint_every, learner.version, knobs.steps)
    # With staleness, writing, conversion and loading of a version overlap with the next groups.
    if save or not knobs.staleness:
      await queue.delivered()
      clock.lap('sync')
    self._write(number, batch, metrics, clock)
    guard(metrics, knobs, rounding, number)
    # Saving counts towards the next step, so that each record on disk has its line in the log.
    self._clock = Clock()
    if save:
      self._save()
      self._clock.lap('checkpoint')
    return metrics

  async def _collect(self, version: int) -> tuple[list[Group], PreparedBatch]:
    """Returns the next groups, and their arrays for the step that begins with `version`."""
    batch = await self._queue.next_batch()
    return batch, await asyncio.to_thread(self._learner.prepare, batch, version)

  async def close(self) -> None:
    """Ends the work on a batch that no step will use. Its groups stay in the queue's state."""
    if self._ahead is not None:
      self._ahead.cancel()
      await asyncio.gather(self._ahead, return_exceptions=True)

  def _write(self, number: int, batch: list[Group], metrics: dict[str, float], clock: 'Clock'):
    for group in batch:
      for one in group.scored:
        self._log.append(number, one)
    times, queue, server = clock.times(), self._queue.metrics(), self._server.metrics()
    self._writer.write(number, {**metrics, **times, **queue, **server, **self._skipped})

  def _save(self) -> None:
    """Begins a record, which is written while training goes on."""
    self._learner.save(self._queue.state())
    self._saved = self._learner.version

  async def save_what_is_out(self) -> None:
    """Records the newest version once it is delivered, unless a record exists or a step was
    interrupted.
    """
    await self._queue.delivered()
    version = self._learner.version
    if version == self._queue.schedule.version > self._saved:
      self._save()


def glance(metrics: dict[str, float]) -> str:
  """Returns what the progress bar shows of a step."""
  found = [metrics.get(name, 0.0) for name in ('reward/total', 'accuracy', 'calls/executed')]
  return 'reward {:.2f} accuracy {:.2f} calls {:.2f}'.format(*found)


class Clock:
  """Measures the seconds of each stage of a step."""

  def __init__(self) -> None:
    self._start = self._last = time.monotonic()
    self._laps: dict[str, float] = {}

  def lap(self, stage: str) -> None:
    """Adds the time since the last lap to `stage`."""
    now = time.monotonic()
    self._laps[stage] = self._laps.get(stage, 0.0) + now - self._last
    self._last = now

  def times(self) -> dict[str, float]:
    """Returns seconds by stage, and of the whole step."""
    self.lap('other')
    stages = {f'time/{stage}': seconds for stage, seconds in self._laps.items()}
    return {**stages, 'time/step': self._last - self._start}

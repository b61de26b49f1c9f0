"""The main job: `python -m experiments.rl --config=configs/para_grpo.py[:scale] [--config.knob=value]`.

corpus -> cold start (made if it does not exist) -> rollout server -> evaluation -> PARA-GRPO -> evaluation -> report.
The same command goes on where it was. The last line on standard output is the run folder.
"""

import asyncio
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import evaluation, rollouts, runs, sft, wiring
from experiments.launch import build, require, run
from experiments.learner import Learner
from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.report.episodes import EpisodeLog
from paravt_jax.rollout import groups, schedule
from paravt_jax.types import Group, Task

LOST_IN_A_ROW = 64           # groups lost whole, one after the other, before the run gives up


def main(config: ConfigDict) -> None:
  """Runs the recipe from wherever its folder stands to the report."""
  check(config)
  folder = runs.RunFolder.named(config, folder=config.run.folder, default=f'{config.name}_{config.scale}')
  runs.announce(config, folder)
  with folder.phase('world' if config.data.kind == 'world' else 'corpus'):
    corpus = wiring.rl_corpus(config)
    train_tasks, questions = (wiring.tasks(config, files, corpus.media_root) for files in (corpus.train, corpus.heldout))
  with folder.phase('cold_start'):
    model_folder = sft.cold_start(config.cold_start) if not config.model.folder else pathlib.Path(config.model.folder)
  with runs.Interrupts() as interrupts:
    summary = asyncio.run(session(config, folder, model_folder, train_tasks, questions[:config.eval.questions or None], interrupts))
  runs.write_json(folder.path / 'summary.json', summary)
  evaluation.finish(config, folder, summary, model_folder)
  print(folder.path)


def check(config: ConfigDict) -> None:
  """Refuses knobs out of range, before anything is made."""
  require(config.rollout.steps, 'at least 1', config.rollout.steps >= 1, 'rollout.steps')
  require(config.rollout.prompts, 'at least 1', config.rollout.prompts >= 1, 'rollout.prompts')
  require(config.rollout.group_size, 'at least 2 (a group of one has no advantage)', config.rollout.group_size >= 2, 'rollout.group_size')
  require(config.rollout.staleness, 'at least 0', config.rollout.staleness >= 0, 'rollout.staleness')
  require(config.agent.max_turns, 'at least 0', config.agent.max_turns >= 0, 'agent.max_turns')
  require(config.agent.max_parallel, 'at least 1', config.agent.max_parallel >= 1, 'agent.max_parallel')
  require(config.sampling.temperature, 'above 0 (RL must explore)', config.sampling.temperature > 0, 'sampling.temperature')
  exact = config.sampling.top_p == 1 and config.sampling.top_k == -1
  require((config.sampling.top_p, config.sampling.top_k), 'top_p=1 and top_k=-1: the learner scores the whole distribution', exact,
          'sampling.top_p, sampling.top_k')
  require(tuple(config.frames.budgets), 'positive frame budgets', all(k >= 1 for k in config.frames.budgets), 'frames.budgets')
  require(config.data.kind, "'world' or 'files'", config.data.kind in ('world', 'files'), 'data.kind')


async def session(config: ConfigDict, folder: runs.RunFolder, model_folder: pathlib.Path, train_tasks: Sequence[Task],
                  questions: Sequence[Task], interrupts: runs.Interrupts) -> dict[str, Any]:
  """Everything that needs learner and server at once: evaluation, training, evaluation. Returns the summary."""
  with folder.phase('start'):
    learner = Learner(config, model_folder, folder.path)
    host = learner.restore()
    opened = rollouts.opened(config, model_folder, learner.tok, learner.model_config.text.vocab, folder.path)
    server = await opened.__aenter__()
  try:
    if learner.version:
      await server.control.swap_weights(str(learner.publish().absolute()), learner.version)
    await evaluation.phase('before', config, folder, server, questions, interrupts)
    with folder.phase('rl'):
      await train(config, folder, learner, server, train_tasks, host, interrupts)
    await evaluation.phase('after', config, folder, server, questions, interrupts)
  finally:
    await opened.__aexit__(None, None, None)
  with folder.phase('export'):
    learner.export(folder.path / 'hf')
  return evaluation.summary(config, folder)


async def train(config: ConfigDict, folder: runs.RunFolder, learner: Learner, server: rollouts.Rollouts, tasks: Sequence[Task],
                host: dict[str, Any] | None, interrupts: runs.Interrupts) -> None:
  """Steps until the recipe's number: rollouts, update, publish, log, checkpoint. Rollouts may run ahead by `staleness` versions."""
  knobs = config.rollout
  group_options = build(groups.GroupOptions, config.frames, 'frames', size=knobs.group_size, max_concurrent=knobs.max_concurrent,
                        seed=config.seed)
  async with rollouts.rewards(config) as reward:
    queue = Queue(config, server, reward, group_options, EpochOrder(len(tasks), config.seed), tasks, host)
    wandb = wiring.wandb_options(config, folder.path)
    with (MetricsWriter(folder.path, tensorboard=config.run.tensorboard, wandb=wandb, start_step=learner.version) as writer,
          EpisodeLog(folder.path / 'episodes' / 'train.jsonl', start_step=learner.version) as log,
          wiring.bar(knobs.steps, config.name, learner.version) as progress):
      try:
        while learner.version < knobs.steps:
          number = learner.version
          clock = Clock()
          batch = await evaluation.unless_stopped(queue.next_batch(), interrupts, server)
          clock.lap('rollout')
          metrics = await asyncio.to_thread(learner.update, batch)
          clock.lap('learn')
          published = await asyncio.to_thread(learner.publish)
          clock.lap('publish')
          await server.control.swap_weights(str(published.absolute()), learner.version)
          queue.schedule.publish(learner.version)
          clock.lap('sync')
          for group in batch:
            for one in group.scored:
              log.append(number, one)
          if interrupts.asked or learner.version % config.run.checkpoint_every == 0 or learner.version == knobs.steps:
            learner.save(queue.state())
            clock.lap('checkpoint')
          writer.write(number, {**metrics, **clock.times(), **queue.metrics()})
          guard(metrics, knobs.gap_limit, number)
          progress.set_postfix_str(f'reward {metrics.get("reward/total", 0):.2f} accuracy {metrics.get("accuracy", 0):.2f} '
                                   f'calls {metrics.get("calls/executed", 0):.2f}', refresh=False)
          progress.update()
          interrupts.check()
      finally:
        await queue.close()


class Queue:
  """Groups on their way: started as the schedule allows, handed out in batches, counted for the checkpoint."""

  def __init__(self, config: ConfigDict, server: rollouts.Rollouts, reward: groups.Reward, options: groups.GroupOptions,
               order: EpochOrder, tasks: Sequence[Task], host: dict[str, Any] | None):
    knobs = config.rollout
    self.schedule = schedule.Schedule(schedule.ScheduleOptions(knobs.prompts, knobs.max_concurrent, knobs.staleness))
    if host is not None:
      self.schedule.restore(host['schedule'], lost=host['ready'])
    self._agent, self._reward, self._options, self._order, self._tasks = server.sampling, reward, options, order, tasks
    self._batch = knobs.prompts
    self._running: dict[asyncio.Task, int] = {}
    self._ready: list[tuple[int, Group]] = []
    self._lost = 0

  def _fill(self) -> None:
    """Starts as many groups as may run."""
    while (position := self.schedule.start()) is not None:
      epoch, index = self._order.at(position)
      prompt = groups.Prompt(self._tasks[index], epoch)
      self._running[asyncio.create_task(groups.run_group(self._agent, prompt, self._reward, self._options))] = position

  async def next_batch(self) -> list[Group]:
    """The next step's groups, in the order of their positions.

    Raises:
      RolloutError: group after group is lost whole.
    """
    while len(self._ready) < self._batch:
      self._fill()
      done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
      for task in sorted(done, key=self._running.__getitem__):
        self._take(self._running.pop(task), task.result())
    batch, self._ready = self._ready[:self._batch], self._ready[self._batch:]
    self._fill()                    # with staleness above 0 the next groups run while the learner steps
    return [group for _, group in sorted(batch, key=lambda pair: pair[0])]

  def _take(self, position: int, group: Group) -> None:
    if group.scored:
      self.schedule.accept(position)
      self._ready.append((position, group))
      self._lost = 0
      return
    self.schedule.reject(position)
    self._lost += 1
    if self._lost >= LOST_IN_A_ROW:
      raise RolloutError(f'{self._lost} groups in a row were lost whole (the last: {group.dropped[0]}); see the server\'s log, and check '
                         f'the media root')

  def state(self) -> dict[str, Any]:
    """For the checkpoint; groups that wait for a step run again."""
    return {'schedule': self.schedule.state(), 'ready': [position for position, _ in self._ready]}

  def metrics(self) -> dict[str, float]:
    """How full the queue is."""
    return {'rollout/running': float(len(self._running)), 'rollout/queued': float(len(self._ready)),
            'rollout/capacity': float(self.schedule.room), 'rollout/epoch': self.schedule.next_position / self._order.size}

  async def close(self) -> None:
    """Cancels what runs."""
    for task in self._running:
      task.cancel()
    await asyncio.gather(*self._running, return_exceptions=True)


class Clock:
  """Where a step's seconds went."""

  def __init__(self):
    self._start = self._last = time.monotonic()
    self._laps: dict[str, float] = {}

  def lap(self, stage: str) -> None:
    """The time since the last lap belongs to `stage`."""
    now = time.monotonic()
    self._laps[stage] = self._laps.get(stage, 0.0) + now - self._last
    self._last = now

  def times(self) -> dict[str, float]:
    """Seconds by stage, and of the whole step."""
    self.lap('other')
    return {**{f'time/{stage}': seconds for stage, seconds in self._laps.items()}, 'time/step': self._last - self._start}


def guard(metrics: dict[str, float], limit: float, number: int) -> None:
  """Raises SyncError when learner and server disagree about tokens of the current version."""
  gap = metrics.get('policy/gap_mean', 0.0)
  if metrics.get('staleness/max', 0.0) == 0 and gap > limit:
    raise SyncError(f'step {number}: mean |log-prob(learner) - log-prob(server)| is {gap:.2e}, wanted at most rollout.gap_limit={limit:g}: '
                    f'they do not run the same weights, images or temperature; see metrics.jsonl (policy/gap_*) and server.log')


if __name__ == '__main__':
  sys.exit(run(main))

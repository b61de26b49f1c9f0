"""The main job: `python -m experiments.rl --config=configs/para_grpo.py[:scale] [--config.knob=value]`.

corpus -> cold start (made if it does not exist) -> rollout server -> evaluation -> PARA-GRPO ->
evaluation -> report. The same command goes on where it was. The last line on standard output is the
run folder.
"""

import asyncio
import pathlib
import shutil
import sys
import time
from typing import Any

from ml_collections import ConfigDict

from experiments import crosschecks, evaluation, rollouts, runs, servers, sft, supply, wiring
from experiments.launch import build, require, require_recipe, run
from experiments.learner import Learner
from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import ConfigError, SyncError
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.report.episodes import EpisodeLog
from paravt_jax.rollout import groups


def main(config: ConfigDict) -> None:
  """Runs the recipe from wherever its folder stands to the report."""
  check(config)
  rollouts.check_judge(config)
  folder = runs.RunFolder.named(
    config, folder=config.run.folder, default=f'{config.name}_{config.scale}'
  )
  runs.announce(config, folder)
  reopen(config, folder)
  with folder.phase('world' if config.data.kind == 'world' else 'corpus'):
    corpus = wiring.rl_corpus(config)
    questions = wiring.rl_questions(config, corpus, folder.path)
  with folder.phase('cold_start'):
    model_folder = (
      pathlib.Path(config.model.folder) if config.model.folder else cold_start(config, folder)
    )
  with runs.Interrupts() as interrupts:
    summary = asyncio.run(session(config, folder, model_folder, questions, interrupts))
  runs.write_json(folder.path / 'summary.json', summary)
  evaluation.finish(config, folder, summary, model_folder)
  print(folder.path)


def reopen(config: ConfigDict, folder: runs.RunFolder) -> None:
  """Takes back what a finished run made at its end when more steps are asked for; it is made anew
  after them.
  """
  done = runs.steps_done(folder.path)
  if done is not None and done < config.rollout.steps:
    (folder.path / 'summary.json').unlink(missing_ok=True)
    folder.forget('after')
    shutil.rmtree(folder.path / 'hf', ignore_errors=True)


def cold_start(config: ConfigDict, folder: runs.RunFolder) -> pathlib.Path:
  """The recipe's cold start, trained if it does not exist yet; its curve is kept with the run, for
  the report.
  """
  if 'cold_start' not in config:
    raise ConfigError(
      '--config.model.folder is empty, and this scale has no cold start of its own: train '
      'one with experiments.sft'
    )
  model_folder = sft.cold_start(config.cold_start)
  curve = model_folder.parent / 'metrics.jsonl'
  if curve.is_file():
    (folder.path / 'sft').mkdir(exist_ok=True)
    shutil.copyfile(curve, folder.path / 'sft' / 'metrics.jsonl')
  return model_folder


def check(config: ConfigDict) -> None:
  """Refuses knobs out of range, before anything is made."""
  require_recipe(config, 'rollout', 'configs/para_grpo.py')
  exact = config.sampling.top_p == 1 and config.sampling.top_k == -1
  require(
    (config.sampling.top_p, config.sampling.top_k),
    'top_p=1 and top_k=-1: the learner scores the whole distribution',
    exact,
    'sampling.top_p, sampling.top_k',
  )
  crosschecks.require_rows(config)
  crosschecks.require_slots(config)
  crosschecks.require_schedule(config, config.rollout.steps, 'rollout.steps')
  crosschecks.require_world(config)
  if config.data.kind == 'world':
    require(
      config.world.corpus.rl_tasks,
      'at least 1',
      config.world.corpus.rl_tasks >= 1,
      'world.corpus.rl_tasks',
    )
  if 'cold_start' in config and not config.model.folder:
    try:
      sft.check(config.cold_start)
    except ConfigError as error:
      raise ConfigError(str(error).replace('--config.', '--config.cold_start.')) from error
  servers.check(config)


async def session(
  config: ConfigDict,
  folder: runs.RunFolder,
  model_folder: pathlib.Path,
  questions: wiring.Questions,
  interrupts: runs.Interrupts,
) -> dict[str, Any]:
  """Everything that needs learner and server at once: evaluation, training, evaluation. Returns the
  summary.
  """
  with folder.phase('start'):
    learner = Learner(config, model_folder, folder.path)
    base = learner.canary()
    host = learner.restore()
    opened = rollouts.opened(
      config, model_folder, learner.tok, learner.model_config.text.vocab, folder.path, base
    )
    server = await opened.__aenter__()
  try:
    # always: a server by URL may still hold what an earlier run published
    await server.deliver(learner.publish(), learner.version)
    await evaluation.phase('before', config, folder, server, questions.heldout, interrupts)
    with folder.phase('rl'):
      await train(config, folder, learner, server, questions, host, interrupts)
    await evaluation.phase('after', config, folder, server, questions.heldout, interrupts)
  finally:
    await opened.__aexit__(None, None, None)
  with folder.phase('export'):
    learner.export(folder.path / 'hf')
  return evaluation.summary(config, folder)


async def train(
  config: ConfigDict,
  folder: runs.RunFolder,
  learner: Learner,
  server: rollouts.Rollouts,
  questions: wiring.Questions,
  host: dict[str, Any] | None,
  interrupts: runs.Interrupts,
) -> None:
  """Steps until the recipe's number: rollouts, update, publish, log, checkpoint; rollouts may be
  `staleness` versions ahead.
  """
  knobs = config.rollout
  group_options = build(
    groups.GroupOptions,
    config.frames,
    'frames',
    size=knobs.group_size,
    max_concurrent=knobs.max_concurrent,
    seed=config.seed,
  )
  tasks, skipped = questions.train, questions.metrics()
  async with rollouts.rewards(config) as reward:
    queue = supply.Queue(
      config, server, reward, group_options, EpochOrder(len(tasks), config.seed), tasks, host
    )
    wandb = wiring.wandb_options(config, folder.path)
    with (
      MetricsWriter(
        folder.path, tensorboard=config.run.tensorboard, wandb=wandb, start_step=learner.version
      ) as writer,
      EpisodeLog(folder.path / 'episodes' / 'train.jsonl', start_step=learner.version) as log,
      wiring.bar(knobs.steps, config.name, learner.version) as progress,
    ):
      saved, clock = learner.version, Clock()
      try:
        while learner.version < knobs.steps:
          number = learner.version
          batch = await evaluation.unless_stopped(queue.next_batch(), interrupts, server)
          clock.lap('rollout')
          metrics = await asyncio.to_thread(learner.update, batch)
          queue.trained()
          clock.lap('learn')
          await queue.delivered()  # of the step before
          clock.lap('sync')
          pending = await asyncio.to_thread(learner.publish)
          clock.lap('publish')
          queue.deliver(server.deliver(pending, learner.version), learner.version)
          save = runs.saves(config.run.checkpoint_every, learner.version, knobs.steps)
          if (
            save or not knobs.staleness
          ):  # else it is written, converted and loaded beside the next groups
            await queue.delivered()
            clock.lap('sync')
          for group in batch:
            for one in group.scored:
              log.append(number, one)
          writer.write(
            number, {**metrics, **clock.times(), **queue.metrics(), **server.metrics(), **skipped}
          )
          guard(metrics, knobs.gap_limit, number)
          # saving counts towards the next step: a record that is on disk never lacks its line in
          # the log
          clock = Clock()
          if save:
            learner.save(queue.state())
            saved = learner.version
            clock.lap('checkpoint')
          progress.set_postfix_str(glance(metrics), refresh=False)
          progress.update()
          interrupts.check()
      except (
        KeyboardInterrupt
      ):  # a second Ctrl-C may fall inside a step: then the last record stands
        await queue.delivered()
        if learner.version == queue.schedule.version > saved:
          learner.save(queue.state())
        raise
      finally:
        await queue.close()


def glance(metrics: dict[str, float]) -> str:
  """What the progress bar shows of a step."""
  found = [metrics.get(name, 0.0) for name in ('reward/total', 'accuracy', 'calls/executed')]
  return 'reward {:.2f} accuracy {:.2f} calls {:.2f}'.format(*found)


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
    return {
      **{f'time/{stage}': seconds for stage, seconds in self._laps.items()},
      'time/step': self._last - self._start,
    }


def guard(metrics: dict[str, float], limit: float, number: int) -> None:
  """Raises SyncError when learner and server disagree about tokens of the current version."""
  gap = metrics.get('policy/gap_current_mean', 0.0)
  if not gap <= limit:  # nan is a disagreement too
    raise SyncError(
      f'step {number}: mean |log-prob(learner) - log-prob(server)| is {gap:.2e}, wanted at '
      f'most rollout.gap_limit={limit:g}: '
      'they do not run the same weights, images or temperature; see metrics.jsonl '
      '(policy/gap_*) and server*.log'
    )


if __name__ == '__main__':
  sys.exit(run(main))

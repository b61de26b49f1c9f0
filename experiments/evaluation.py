"""Evaluation before and after training, the run's summary and its closing table."""

import asyncio
import pathlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from experiments import rollouts, runs, wiring
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.eval import run as evaluations
from paravt_jax.report import build as report
from paravt_jax.report.episodes import EpisodeLog, read
from paravt_jax.rollout.agent import Agent
from paravt_jax.types import Task
from paravt_jax.video import sampling

T = TypeVar('T')


async def unless_stopped(work: Awaitable[T], interrupts: runs.Interrupts, server: rollouts.Rollouts) -> T:
  """The result of `work`; cancels it and raises KeyboardInterrupt on Ctrl-C, RolloutError when no server is left."""
  task = asyncio.ensure_future(work)
  try:
    while not task.done():
      await asyncio.wait({task}, timeout=0.2)
      interrupts.check()
      server.check()
    return task.result()
  finally:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def phase(
  name: str,
  config: ConfigDict,
  folder: runs.RunFolder,
  server: rollouts.Rollouts,
  questions: Sequence[Task],
  interrupts: runs.Interrupts,
) -> None:
  """Evaluates once per run: greedy for accuracy and calls, sampled at the training temperature for format compliance."""
  if folder.result(name) is not None or not questions:
    return
  with folder.phase(f'eval_{name}'):
    everywhere = {k: list(questions) for k in config.eval.budgets}
    records = await unless_stopped(measure(f'{name}: greedy', config, server.greedy, everywhere), interrupts, server)
    sampled = await unless_stopped(
      measure(f'{name}: sampled', config, server.sampling, _drawn(config, questions)), interrupts, server
    )
    path = folder.path / 'episodes' / f'{name}.jsonl'
    path.unlink(missing_ok=True)
    with EpisodeLog(path, start_step=None) as log:
      for record in records:
        if record.scored is not None:
          log.append(0, record.scored)
  summary, drawn = evaluations.summarize(records), evaluations.summarize(sampled)
  folder.finish(
    name,
    {
      **summary,
      'format_compliance': drawn['format_compliance'],
      'greedy_format_compliance': summary['format_compliance'],
      'sampled_accuracy': drawn['accuracy'],
      'sampled_episodes': drawn['episodes'],
      'calls_by_windows': by_windows(records),
    },
  )


def _drawn(config: ConfigDict, questions: Sequence[Task]) -> dict[int, list[Task]]:
  """Every question once, under the budget that training would draw for it."""
  found: dict[int, list[Task]] = {}
  for task in questions:
    found.setdefault(sampling.draw_budget(config.seed, task.id, -1, tuple(config.eval.budgets)), []).append(task)
  return found


async def measure(
  what: str, config: ConfigDict, agent: Agent, questions: Mapping[int, Sequence[Task]]
) -> list[evaluations.Record]:
  """Records of each budget's questions."""
  records = []
  with wiring.bar(sum(map(len, questions.values())), what) as progress:
    for budget, tasks in sorted(questions.items()):
      options = evaluations.EvalOptions((budget,), config.eval.concurrent, config.seed, -1)
      found, _ = await evaluations.evaluate(
        agent, tasks, rollouts.evaluation_reward(config), options, on_record=lambda _: progress.update()
      )
      records += found
  return records


def by_windows(records: Sequence[evaluations.Record]) -> dict[str, float]:
  """Executed calls per episode by the number of windows that a question needs, where the generator knows it."""
  rows: dict[str, list[int]] = {}
  for record in records:
    if record.scored is not None and 'windows' in record.task.facts:
      rows.setdefault(str(record.task.facts['windows']), []).append(record.scored.episode.executed)
  return {windows: sum(calls) / len(calls) for windows, calls in sorted(rows.items())}


def summary(config: ConfigDict, folder: runs.RunFolder) -> dict[str, Any]:
  """What summary.json holds."""
  before, after = folder.result('before'), folder.result('after')
  return {
    'name': config.name,
    'scale': config.scale,
    'seed': config.seed,
    'steps': config.rollout.steps,
    'before': before,
    'after': after,
    'gain': gain(config, folder),
    'minutes': folder.minutes,
  }


def gain(config: ConfigDict, folder: runs.RunFolder) -> dict[str, Any] | None:
  """The paired difference in greedy accuracy, after minus before, with its 95 % interval."""
  sides = []
  for name in ('before', 'after'):
    entries = list(read(folder.path / 'episodes' / f'{name}.jsonl'))
    sides.append([evaluations.Record(e.scored.episode.task, e.scored.episode.budget, e.scored) for e in entries])
  if not all(sides):
    return None
  return evaluations.compare(*sides, samples=config.eval.bootstrap, seed=config.seed)


def finish(config: ConfigDict, folder: runs.RunFolder, found: dict[str, Any], model_folder: pathlib.Path) -> None:
  """Writes the report and prints the table."""
  page = folder.path / 'report.html'
  tok = ChatTokenizer.load(model_folder)
  with folder.phase('report'), wiring.decode_pool(config) as pool:
    frames = lambda path, seconds: pool.frames_sync(path, seconds, config.video.min_pixels, config.video.max_pixels)
    report.build(folder.path, page, frames, tok.decode)
  print(table(found))
  print(f'report: {page}')


def table(found: dict[str, Any]) -> str:
  """The closing table: before, after, and the minutes of each phase."""
  before, after = found['before'], found['after']
  if before is None or after is None:
    return 'no evaluation: eval.questions is 0, or there are no held-out rows'
  rows = [('', 'before RL', 'after RL')]
  show = lambda value: '-' if value is None else f'{value:.3f}'
  spread = lambda side: f'{show(side["accuracy"])} [{side["interval"][0]:.3f}, {side["interval"][1]:.3f}]'
  rows.append(('accuracy (greedy)', spread(before), spread(after)))
  rows += [
    (f'  at K={k}', show(before['accuracy_by_k'][k]), show(after['accuracy_by_k'].get(k))) for k in before['accuracy_by_k']
  ]
  rows += [
    (f'  {kind}', show(value), show(after['accuracy_by_type'].get(kind))) for kind, value in before['accuracy_by_type'].items()
  ]
  rows.append(('format compliance (sampled)', show(before['format_compliance']), show(after['format_compliance'])))
  rows.append(('executed calls per episode', show(before['calls_per_episode']), show(after['calls_per_episode'])))
  rows += [(f'  at K={k}', show(before['calls_by_k'][k]), show(after['calls_by_k'].get(k))) for k in before['calls_by_k']]
  rows += [
    (f'  {n}-window questions', show(value), show(after['calls_by_windows'].get(n)))
    for n, value in before['calls_by_windows'].items()
  ]
  # folders from before calls of other forms ran do not say it
  rows.append(('calls of other forms per episode', *(show(side.get('calls_other')) for side in (before, after))))
  rows.append(('episodes', str(before['episodes']), str(after['episodes'])))
  if before['errors'] or after['errors']:
    rows.append(('  errors, which earn nothing', *(str(sum(side['errors'].values())) for side in (before, after))))
    rows.append(('  accuracy of those answered', show(before['accuracy_answered']), show(after['accuracy_answered'])))
  lines = [f'{left:32s}{middle:>24s}{right:>24s}' for left, middle, right in rows]
  lines.insert(1, '-' * 80)
  change = found['gain']
  if change:
    lines.append(
      f'gain in accuracy {change["difference"]:+.3f}, 95 % interval [{change["low"]:+.3f}, {change["high"]:+.3f}], '
      f'{change["pairs"]} pairs, drawn by question'
    )
  lines.append('minutes: ' + ', '.join(f'{name} {minutes:.1f}' for name, minutes in found['minutes'].items()))
  return '\n'.join(lines)

"""Evaluation before and after training: results folders in the run folder, and the summary.

eval_before/ and eval_after/ contain the same files that `experiments.eval` writes: plan.json,
results.jsonl, summary.json, table.md, report.html. They cover two suites. `heldout` puts each
question at each K, greedily. `sampled` puts each question once, at the training temperature, with a
K that training would draw for it.
"""

import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ParavtError
from paravt_jax.eval import numbers as numbers_
from paravt_jax.eval import protocols, results
from paravt_jax.eval.run import EvalOptions
from paravt_jax.eval.sample import Sample
from paravt_jax.options import to_dict
from paravt_jax.orchestrator import (
  eval_speed,
  evaluated_model,
  host_journal,
  parts,
  put,
  results_folders,
  rollouts,
  suites,
)
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.run_folder import Interrupts, RunFolder, write_json
from paravt_jax.report import account
from paravt_jax.report import build as report
from paravt_jax.report import run as run_files
from paravt_jax.types import Clip, Task
from paravt_jax.video import sampling

GREEDY, SAMPLED = 'heldout', 'sampled'
WHOLE = (1, 1)  # the whole evaluation as one shard


def folder_of(run: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the results folder of the evaluation `name`: 'before' or 'after'."""
  return run / f'eval_{name}'


async def phase(
  name: str,
  recipe: RLRecipe,
  folder: RunFolder,
  server: rollouts.Rollouts,
  questions: Sequence[Task],
  version: int,
  interrupts: Interrupts,
) -> None:
  """Evaluates once per run. After an interruption, only the open questions are put.

  Args:
    name: 'before' or 'after'.
    version: the version of the servers' weights.
  """
  if folder.result(name) is not None or not questions:
    return
  path, hosts = folder_of(folder.path, name), hosts_.current()
  with folder.phase(f'eval_{name}'):
    asked = _suites(recipe, questions)
    about = {suite.name: suite.about(WHOLE) for suite in asked}
    plan = results.Plan(_settings(recipe, folder, version), about, WHOLE)
    if hosts.is_first:
      plan = _open_folder(path, plan)
    again = {key for one in about.values() for key in one['keys']}
    with host_journal.opened(hosts, path, again) as log:
      await put.put(
        {GREEDY: server.greedy, SAMPLED: server.sampling},
        asked,
        put.list_unanswered(asked, host_journal.share(hosts, WHOLE), log),
        log,
        protocol=protocols.choose_protocol('tools', '', 'parallel'),
        options=EvalOptions(recipe.eval.concurrent, recipe.seed, -1),
        server=server,
        interrupts=interrupts,
        speed=eval_speed.Speed(),
        title=f'{name}: {{}}',
      )
    if not hosts.is_first:
      folder.finish(name, {})  # process 0 has the numbers
      return
    found, _ = results_folders.finish(path, plan, name, recipe.eval.bootstrap, recipe.seed)
    results_folders.report(recipe.video, recipe.eval, path)
  folder.finish(name, numbers(found, results.read(path / 'results.jsonl')))


def _open_folder(path: pathlib.Path, plan: results.Plan) -> results.Plan:
  """Creates the results folder, or continues it.

  The folder belongs to this run alone. If other code or questions began it, it is replaced.
  """
  changed = results.other_settings(path, plan)
  if changed:
    line = f'results folder {path} was begun with other settings ({changed}); it is made again'
    print(line, file=sys.stderr, flush=True)
    shutil.rmtree(path)
  path.mkdir(parents=True, exist_ok=True)
  return results.write_plan(path, plan)


def _suites(recipe: RLRecipe, questions: Sequence[Task]) -> list[suites.Suite]:
  options, budgets = rollouts.evaluation_options(recipe), recipe.eval.budgets
  rule = f'tvg at IoU {recipe.eval.grounding_threshold}'

  def draw(sample: Sample) -> int:
    return sampling.draw_budget(recipe.seed, sample.task.id, -1, budgets)

  temperature = recipe.sampling.temperature
  sampled = f'{rule}; K drawn by seed {recipe.seed}; temperature {temperature}'
  return [
    suites.heldout(GREEDY, questions, budgets, options, f'{rule}; greedy'),
    suites.heldout(SAMPLED, questions, budgets, options, sampled, draw),
  ]


def _settings(recipe: RLRecipe, folder: RunFolder, version: int) -> dict[str, Any]:
  """Returns all settings that determine the results, except the questions."""
  video = to_dict(recipe.video)
  return {
    'model': {'kind': 'run', 'run': folder.path.name, 'version': version},
    'server': {'kind': recipe.server.kind},
    'protocol': {'name': 'tools', 'dispatch': 'parallel'},
    'agent': to_dict(recipe.agent),
    'subagent': to_dict(recipe.subagent),
    'sampling': to_dict(recipe.sampling),
    'reward': to_dict(recipe.reward),
    'video': {name: video[name] for name in ('min_pixels', 'max_pixels', 'backend')},
    'seed': recipe.seed,
    'code': evaluated_model.code(),
  }


def numbers(
  found: Mapping[str, Mapping[str, Any]], outcomes: Sequence[results.Outcome]
) -> dict[str, Any]:
  """Returns the numbers of one evaluation for the run's summary.

  Accuracies, calls and intervals are from the greedy suite. format_compliance is from the sampled
  suite, because training samples.

  Args:
    found: the summary of a results folder.
    outcomes: the samples that it summarizes.
  """
  greedy, sampled = found[GREEDY], found[SAMPLED]
  mine = [one for one in outcomes if one.benchmark == GREEDY]
  by_k, by_type, by_windows = (
    _cells(greedy, mine, field) for field in ('k', 'question_type', 'windows')
  )
  return {
    'episodes': greedy['samples'],
    'errors': greedy['reasons'],
    'error_rate': greedy['errors'] / greedy['samples'] if greedy['samples'] else 0.0,
    'accuracy': greedy['score'],
    'interval': greedy['interval'],
    'accuracy_answered': greedy['score_answered'],
    'accuracy_by_k': {k: cell['score'] for k, cell in by_k.items()},
    'accuracy_by_type': {kind: cell['score'] for kind, cell in by_type.items()},
    'format_compliance': sampled['format_compliance'],
    'greedy_format_compliance': greedy['format_compliance'],
    'calls_per_episode': greedy['calls_per_sample'],
    'calls_by_k': {k: cell['calls_per_sample'] for k, cell in by_k.items()},
    'calls_by_windows': {n: cell['calls_per_sample'] for n, cell in by_windows.items()},
    'calls_failed': greedy['calls_failed'],
    'calls_well_formed': greedy['calls_well_formed'],
    'calls_other': greedy['calls_other'],
    'truncated': greedy['truncated'],
    'frames_repeated': greedy['frames_repeated'],
    'sampled_accuracy': sampled['score'],
    'sampled_episodes': sampled['samples'],
  }


def _cells(
  row: Mapping[str, Any], outcomes: Sequence[results.Outcome], field: str
) -> Mapping[str, Mapping[str, Any]]:
  """Returns a suite's breakdown. A breakdown with one value is left out: it equals the whole
  row.
  """
  found = row['breakdowns'].get(field)
  if found is not None:
    return found
  values = {str(one.k) if field == 'k' else one.fields.get(field) for one in outcomes}
  return {value: row for value in values if value is not None and len(values) == 1}


def summary(recipe: RLRecipe, folder: RunFolder) -> dict[str, Any]:
  """Returns the content of summary.json."""
  return {
    'name': recipe.name,
    'scale': recipe.scale,
    'seed': recipe.seed,
    'steps': recipe.rollout.steps,
    'before': folder.result('before'),
    'after': folder.result('after'),
    'gain': gain(recipe, folder),
    'minutes': folder.minutes,
  }


def gain(recipe: RLRecipe, folder: RunFolder) -> dict[str, Any] | None:
  """Compares both results folders. Returns None while one of them is missing.

  The result is the paired difference in greedy accuracy, after minus before, with its 95 %
  interval.
  """
  places = [folder_of(folder.path, name) for name in ('before', 'after')]
  first, second = (results.read(place / 'results.jsonl') for place in places)
  if not first or not second:
    return None
  keys = {GREEDY: {key for place in places for key in _keys(place)}}
  samples = recipe.eval.bootstrap
  metrics = {GREEDY: 'accuracy'}
  found = numbers_.compare(first, second, metrics, keys, samples=samples, seed=recipe.seed)[GREEDY]
  return {name: found[name] for name in ('difference', 'low', 'high', 'p', 'pairs', 'unpaired')}


def _keys(place: pathlib.Path) -> Sequence[str]:
  return results.read_plan(place).benchmarks[GREEDY]['keys']


def finish(
  recipe: RLRecipe, folder: RunFolder, found: dict[str, Any], model_folder: pathlib.Path
) -> None:
  """Writes the run's report, and prints the table and how the run went."""
  write_json(folder.path / 'summary.json', found)
  with folder.phase('report'):
    page = _page(recipe, folder, model_folder)
  print(table(found))
  print(account.paragraph(run_files.load(folder.path)))
  print(f'report: {page}')


def leave_page(recipe: RLRecipe, folder: RunFolder, model_folder: pathlib.Path) -> None:
  """Writes the report of a run that an error ended, and prints where it is and how the run went.

  Nothing without a finished step. What the page itself fails with is told, never raised: the error
  that ended the run matters more.
  """
  try:
    run = run_files.load(folder.path)
    if run.metrics:
      page = _page(recipe, folder, model_folder)
      print(account.paragraph(run), f'report: {page}', sep='\n', file=sys.stderr)
  except (ParavtError, OSError) as error:
    print(f'no report was written: {error}', file=sys.stderr)


def _page(recipe: RLRecipe, folder: RunFolder, model_folder: pathlib.Path) -> pathlib.Path:
  """Writes the report. Returns its file."""
  video, tok = recipe.video, ChatTokenizer.load(model_folder)
  with parts.decode_pool(video) as pool:

    def frames(path: str, seconds: Sequence[float]) -> Clip:
      return pool.frames_sync(path, seconds, video.min_pixels, video.max_pixels)

    return report.build(folder.path, folder.path / 'report.html', frames, tok.decode)


def table(found: Mapping[str, Any]) -> str:
  """Formats the final table: before, after, and the minutes of each phase."""
  before, after = found['before'], found['after']
  if before is None or after is None:
    return 'no evaluation: eval.questions is 0, or there are no held-out rows'
  rows = [('', 'before RL', 'after RL')]
  rows.append(('accuracy (greedy)', _spread(before), _spread(after)))
  rows += _rows(before, after, 'accuracy_by_k', '  at K={}')
  rows += _rows(before, after, 'accuracy_by_type', '  {}')
  for title, name in (
    ('format compliance (sampled)', 'format_compliance'),
    ('executed calls per episode', 'calls_per_episode'),
  ):
    rows.append((title, _format_number(before[name]), _format_number(after[name])))
  rows += _rows(before, after, 'calls_by_k', '  at K={}')
  rows += _rows(before, after, 'calls_by_windows', '  {}-window questions')
  # Rows that matter only in unusual runs.
  if before['calls_other'] or after['calls_other']:
    others = _format_number(before['calls_other']), _format_number(after['calls_other'])
    rows.append(('calls of another form', *others))
  rows.append(('episodes', str(before['episodes']), str(after['episodes'])))
  if before['errors'] or after['errors']:
    counts = [str(sum(side['errors'].values())) for side in (before, after)]
    rows.append(('  errors, which earn nothing', counts[0], counts[1]))
    answered = [_format_number(side['accuracy_answered']) for side in (before, after)]
    rows.append(('  accuracy of those answered', answered[0], answered[1]))
  lines = [f'{left:32s}{middle:>24s}{right:>24s}' for left, middle, right in rows]
  lines.insert(1, '-' * 80)
  change = found['gain']
  if change:
    lines.append(
      f'gain in accuracy {change["difference"]:+.3f}, 95 % interval [{change["low"]:+.3f}, '
      f'{change["high"]:+.3f}], {change["pairs"]} pairs, drawn by question'
    )
  minutes = ', '.join(f'{name} {minutes:.1f}' for name, minutes in found['minutes'].items())
  return '\n'.join([*lines, f'minutes: {minutes}'])


def _format_number(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def _spread(side: Mapping[str, Any]) -> str:
  low, high = side['interval']
  return f'{_format_number(side["accuracy"])} [{low:.3f}, {high:.3f}]'


def _rows(
  before: Mapping[str, Any], after: Mapping[str, Any], name: str, title: str
) -> list[tuple[str, str, str]]:
  """Returns one row per part of a breakdown."""
  cells = before[name], after[name]
  return [
    (title.format(part), _format_number(value), _format_number(cells[1].get(part)))
    for part, value in cells[0].items()
  ]

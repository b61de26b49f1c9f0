"""Creates summary, table and page of a results folder, compares two folders, and merges shards."""

import pathlib
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from paravt_jax.errors import ConfigError
from paravt_jax.eval import benchmarks, numbers, results, table
from paravt_jax.orchestrator import parts, saved
from paravt_jax.orchestrator.eval_options import PageOptions
from paravt_jax.orchestrator.options import VideoOptions
from paravt_jax.orchestrator.run_folder import write_json
from paravt_jax.report import evaluation as page
from paravt_jax.types import Clip

BOOTSTRAP, SEED = 2000, 0  # of comparisons
PUBLISHED = {name: about.published for name, about in benchmarks.BENCHMARKS.items()}
FLIPS = 20  # limit of printed flips per direction; the file lists all


def finish(
  folder: pathlib.Path, plan: results.Plan, name: str, samples: int, seed: int
) -> tuple[dict[str, Any], str]:
  """Writes summary.json and table.md of a complete results folder. Returns both."""
  found = numbers.summarize(
    plan, results.read(folder / 'results.jsonl'), samples=samples, seed=seed
  )
  write_json(folder / 'summary.json', found)
  text = table.markdown(found, name, PUBLISHED, benchmarks.RULES)
  (folder / 'table.md').write_text(text)
  return found, text


def error_rate(found: Mapping[str, Any]) -> float:
  """Returns the largest share of errors of any benchmark."""
  return max(
    (row['errors'] / row['samples'] for row in found.values() if row['samples']), default=0.0
  )


def report(video: VideoOptions, page_options: PageOptions, folder: pathlib.Path) -> pathlib.Path:
  """Writes the page of a results folder.

  It shows the frames that the samples saw, and the published scores next to ours.
  """
  with parts.decode_pool(video) as pool:

    def frames(path: str, seconds: Sequence[float]) -> Clip:
      return pool.frames_sync(path, seconds, video.min_pixels, video.max_pixels)

    return page.write(
      folder,
      folder / 'report.html',
      frames,
      published=PUBLISHED,
      rules=benchmarks.RULES,
      right=page_options.report_right,
      samples=page_options.report_samples,
      pictures=page_options.report_pictures,
      title=folder.name.removeprefix('.').removesuffix('.partial'),
    )


def compare(arguments: Sequence[str]) -> None:
  """Prints the comparison of two results folders. Writes all of it, with flips, into the second
  one.

  Raises:
    ConfigError: there are not two folders, or they have no benchmark in common.
    DataError: one is not a results folder, or their questions differ.
  """
  folders = [pathlib.Path(word) for word in arguments]
  if len(folders) != 2 or any(word.startswith('--') for word in arguments):
    raise ConfigError(
      f'--compare: got {" ".join(arguments) or "nothing"}, wanted two results folders'
    )
  plans = [results.read_plan(folder) for folder in folders]
  metrics = {
    name: about['metric']
    for name, about in plans[0].benchmarks.items()
    if name in plans[1].benchmarks
  }
  if not metrics:
    raise ConfigError(
      f'--compare: {folders[0]} has {sorted(plans[0].benchmarks)}, {folders[1]} has '
      f'{sorted(plans[1].benchmarks)}: wanted a '
      f'benchmark in both'
    )
  # Pair the samples of both folders by key; numbers.compare makes the paired differences.
  first, second = (results.read(folder / 'results.jsonl') for folder in folders)
  keys = {
    name: {key for plan in plans for key in plan.benchmarks[name]['keys']} for name in metrics
  }
  missing = [
    _missing(folder, plan, outcomes, metrics)
    for folder, plan, outcomes in zip(folders, plans, (first, second))
  ]
  if not first or not second:
    lines = '; '.join(one for some in missing for one in some)
    raise ConfigError(f'--compare: there is nothing to compare: {lines}')
  found = numbers.compare(first, second, metrics, keys, samples=BOOTSTRAP, seed=SEED)
  names = [folder.resolve().name for folder in folders]
  target = folders[1] / f'compare_{names[0]}.json'
  warnings = [*_set_differences(plans, names), *(f'{one}.' for some in missing for one in some)]
  about = {
    'first': str(folders[0]),
    'second': str(folders[1]),
    'warnings': warnings,
    'settings': results.differences(plans[0], plans[1]),
    'benchmarks': found,
  }
  write_json(target, about)
  print(table.comparison(found, names[0], names[1], FLIPS, warnings))
  print('settings that differ: ' + ('; '.join(about['settings']) or 'none'))
  print(target)


def _missing(
  folder: pathlib.Path,
  plan: results.Plan,
  outcomes: Sequence[results.Outcome],
  benchmarks: Collection[str],
) -> list[str]:
  """Describes the planned samples of a folder without a result, in one text per benchmark."""
  done = {outcome.key for outcome in outcomes}
  found = []
  for name in benchmarks:
    keys = plan.benchmarks[name]['keys']
    lacking = len(set(keys) - done)
    if lacking:
      found.append(
        f'{name}: {folder}/results.jsonl lacks {lacking:,} of {len(keys):,} samples (an unfinished '
        'run, or a damaged file: the same eval command adds them)'
      )
  return found


def _set_differences(plans: Sequence[results.Plan], names: Sequence[str]) -> list[str]:
  """Describes how the questions of two plans differ, in one sentence per benchmark that differs."""
  first, second = (plan.benchmarks for plan in plans)
  found = []
  for benchmark in [*first, *(one for one in second if one not in first)]:
    if benchmark not in first or benchmark not in second:
      name = names[0] if benchmark in first else names[1]
      found.append(f'{benchmark} is in {name} only and is left out.')
      continue
    a, b = (set(side[benchmark]['keys']) for side in (first, second))
    if a != b:
      found.append(
        f'{benchmark}: {len(a - b):,} samples are in {names[0]} only, {len(b - a):,} in '
        f'{names[1]} only; the {len(a & b):,} of both are compared.'
      )
    elif first[benchmark]['parts'].get('questions') != second[benchmark]['parts'].get('questions'):
      found.append(f'{benchmark}: the samples have the same names, but other texts or options.')
  return found


def merge(arguments: Sequence[str]) -> None:
  """Merges shards of one evaluation into one results folder, and prints its path.

  Raises:
    ConfigError: there are no folders, the target is not empty, or the shards do not make a whole
    (see `results.merge_shards`).
  """
  words = list(arguments)
  target = None
  if '--out' in words[:-1]:
    place = words.index('--out')
    target = pathlib.Path(words[place + 1])
    del words[place : place + 2]
  if not words or any(word.startswith('--') for word in words):
    raise ConfigError(
      f'--merge: got {" ".join(arguments) or "nothing"}, wanted results folders, and '
      'optionally --out DIR'
    )
  folders = [pathlib.Path(word) for word in words]
  plans = {folder: results.read_plan(folder) for folder in folders}
  plan, outcomes = results.merge_shards(
    plans, {folder: results.read(folder / 'results.jsonl') for folder in folders}
  )
  first = folders[0].resolve()
  name = re.sub(r'_shard\d+of\d+$', '', first.name)
  target = target or folders[0].parent / (name if name != first.name else f'{first.name}_merged')
  if target.exists() and any(target.iterdir()):
    raise ConfigError(f'--merge: {target} is not empty; name another folder with --out DIR')
  wanted = "wanted the recipe of experiments.eval; name that shard's own folder"
  recipe, whole = saved.read(saved.Evaluation, folders[0], wanted)
  partial = target.with_name(f'.{target.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)  # the remains of an interrupted merge
  partial.mkdir(parents=True)
  write_json(partial / 'config.json', {**whole, 'shard': ''})
  results.write_plan(partial, plan)
  with results.Journal(partial) as journal:
    for outcome in outcomes:
      journal.append(outcome)
  title, samples = name.removeprefix('eval_'), recipe.eval.bootstrap
  print(finish(partial, plan, title, samples, recipe.seed)[1])
  report(recipe.video, recipe.eval, partial)
  if target.exists():
    target.rmdir()
  partial.rename(target)
  print(target)

"""Ablations: runs of several sets of overrides and seeds, side by side: a table, its numbers as
JSON, and a page of curves.

Every number is the mean over a set's seeds with its 95 % interval (Student's t): the interval
measures variation over the few seeds, not over questions.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paravt_jax.errors import DataError
from paravt_jax.metrics import writer

# Student's t, 97.5 %, for 1 to 10 degrees of freedom; above, Cornish and Fisher's expansion is
# right to .003.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of a grid."""

  recipe: str
  common: Sequence[str]
  overrides: Mapping[str, Sequence[str]]  # of each set
  reference: str  # the set that others are compared with
  drawings: Mapping[str, Sequence[str]]  # which sets share a chart


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run."""

  summary: Mapping[str, Any]  # its summary.json
  metrics: Sequence[Mapping[str, float | None]]  # a record per step
  commit: str = ''  # that it was made by


Results = Mapping[str, Mapping[int, Result]]  # by set, by seed


@dataclasses.dataclass(frozen=True)
class Value:
  """A number over seeds."""

  mean: float | None  # None when no run has it
  low: float  # infinite with a single seed
  high: float  # infinite with a single seed
  seeds: int  # how many have it


def load(folders: Mapping[str, Mapping[int, Path]]) -> Results:
  """Returns the finished runs of the run folders. Unfinished runs, and sets without a finished run,
  are omitted.

  Raises:
    DataError: a summary.json is not valid JSON.
  """
  found = {
    name: {
      seed: _result(folder) for seed, folder in seeds.items() if (folder / 'summary.json').is_file()
    }
    for name, seeds in folders.items()
  }
  return {name: seeds for name, seeds in found.items() if seeds}


def _result(folder: Path) -> Result:
  try:
    git = folder / 'git.txt'
    return Result(
      json.loads((folder / 'summary.json').read_text()),
      writer.read(folder / 'metrics.jsonl'),
      git.read_text().strip() if git.is_file() else '',
    )
  except ValueError as error:
    raise DataError(
      f'{folder}/summary.json: not JSON ({error}); move the folder away, then the run is made again'
    ) from error


def interval(values: Sequence[float | None]) -> Value:
  """The mean of independent runs with its 95 % interval by Student's t; None values are ignored.

  >>> interval([0.5, 0.6, 0.7])
  Value(mean=0.6, low=0.3515..., high=0.8484..., seeds=3)
  """
  known = [float(value) for value in values if value is not None]
  if not known:
    return Value(None, -math.inf, math.inf, 0)
  mean, count = math.fsum(known) / len(known), len(known)
  if count == 1:
    return Value(mean, -math.inf, math.inf, 1)
  deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (count - 1))
  half = student(count - 1) * deviation / math.sqrt(count)
  return Value(mean, mean - half, mean + half, count)


def student(freedom: int) -> float:
  """The 97.5 % quantile of Student's t with that many degrees of freedom, at least 1."""
  if freedom <= len(_T):
    return _T[freedom - 1]
  return _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)


def measures(results: Results) -> dict[str, tuple[str, ...]]:
  """{column: path in summary.json}, as far as some run has it: format, calls, accuracy over all and
  by K, gain.
  """
  budgets = sorted(
    {
      int(k)
      for seeds in results.values()
      for run in seeds.values()
      for k in (_at(run.summary, ('after', 'accuracy_by_k')) or {})
    }
  )
  columns = {
    'format': ('after', 'format_compliance'),
    'calls': ('after', 'calls_per_episode'),
    'accuracy': ('after', 'accuracy'),
  }
  columns |= {f'acc K={k}': ('after', 'accuracy_by_k', str(k)) for k in budgets}
  columns |= {'gain': ('gain', 'difference')}
  columns |= {f'calls K={k}': ('after', 'calls_by_k', str(k)) for k in budgets}
  return columns | {'sampled acc': ('after', 'sampled_accuracy')}


def _at(value: Any, path: Sequence[str]) -> Any:
  """Returns the value at a path of keys; None if a key is missing."""
  for key in path:
    value = value.get(key) if isinstance(value, Mapping) else None
  return value


def numbers(results: Results, reference: str) -> dict[str, dict[str, Value]]:
  """Every column of every set over its seeds, and 'against <reference>': the difference in
  accuracy, paired by seed.

  The differences are of greedy accuracy after training, over the seeds that both have.
  """
  columns, table = measures(results), {}
  for name, seeds in results.items():
    table[name] = {
      column: interval([_at(run.summary, path) for run in seeds.values()])
      for column, path in columns.items()
    }
    others = results.get(reference, {})
    pairs = [
      (
        _at(seeds[seed].summary, columns['accuracy']),
        _at(others[seed].summary, columns['accuracy']),
      )
      for seed in seeds
      if seed in others
    ]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    table[name]['against'] = interval(differences)
  return table


def text(value: Value, signed: bool = False) -> str:
  """Returns a value as text: '0.612 ±.034', without an interval for one seed, '-' for none."""
  if value.mean is None:
    return '-'
  shown = f'{value.mean:+.3f}' if signed else f'{value.mean:.3f}'
  return (
    shown if value.seeds < 2 else f'{shown} ±{value.high - value.mean:.3f}'.replace('±0.', '±.')
  )


def table(results: Results, settings: Settings) -> str:
  """The closing table, in Markdown, and a note if different versions of the code made the runs."""
  found = numbers(results, settings.reference)
  columns = [*measures(results)]
  against = f'accuracy − {settings.reference}'
  rows = [['set', 'seeds', *columns, against], ['---', *('---:' for _ in range(len(columns) + 2))]]
  for name, values in found.items():
    cells = [text(values[column], column == 'gain') for column in columns]
    rows.append(
      [
        name,
        str(len(results[name])),
        *cells,
        '' if name == settings.reference else text(values['against'], True),
      ]
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  line = lambda row: '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |'

  def short(commit: str) -> str:
    return commit[:12] + ('+changes' if commit.endswith('+changes') else '')

  commits = collections.Counter(
    short(run.commit) for seeds in results.values() for run in seeds.values()
  )
  versions = ', '.join(f'{commit or "unknown"} ({count} runs)' for commit, count in commits.items())
  return '\n'.join(map(line, rows)) + (
    f'\n\nMade by different versions of the code: {versions}.' if len(commits) > 1 else ''
  )


def glance(folder: Path) -> str:
  """Returns a short summary of a finished run."""
  summary = _result(folder).summary
  before, after = (_at(summary, (side, 'accuracy')) for side in ('before', 'after'))
  if before is None or after is None:
    return 'not evaluated'
  return (
    f'accuracy {before:.3f} -> {after:.3f}, {summary["after"]["calls_per_episode"]:.2f} calls '
    f'per episode, format {summary["after"]["format_compliance"]:.3f}'
  )

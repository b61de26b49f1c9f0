"""A run folder as values. Whatever is missing or short becomes a note for the reader, never an
exception.

config.json  git.txt  metrics.jsonl  sft/metrics.jsonl  summary.json
timeline.json  episodes/train.jsonl  eval_{before,after}/results.jsonl
"""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paravt_jax import timeline
from paravt_jax.errors import DataError
from paravt_jax.metrics import writer
from paravt_jax.report import episodes
from paravt_jax.report.episodes import Entry

GREEDY = 'heldout'  # the suite of a run's evaluations whose answers the page shows
TRAIN_KEPT = 64  # entries of train.jsonl read from its beginning, and the same number from its end


@dataclasses.dataclass(frozen=True)
class Cell:
  """One frame budget in one evaluation. None: not known."""

  accuracy: float | None
  calls: float | None  # executed, per episode
  interval: tuple[float, float] | None  # 95 %, of the accuracy
  count: int  # episodes


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The numbers of an evaluation before or after training. None: not known."""

  episodes: int
  accuracy: float | None
  interval: tuple[float, float] | None  # 95 %, of the accuracy
  format_compliance: float | None
  calls: float | None  # executed, per episode
  by_k: Mapping[int, Cell]  # frame budgets, ascending
  by_type: Mapping[str, float | None]  # accuracy by question type


@dataclasses.dataclass(frozen=True)
class Run:
  """The contents of a run folder that a page needs."""

  name: str
  config: Mapping[str, Any]
  git: str
  metrics: Sequence[Mapping[str, float | None]]
  sft_metrics: Sequence[Mapping[str, float | None]]
  minutes: Mapping[str, float]  # by phase
  before: Evaluation | None
  after: Evaluation | None
  # (difference, low, high) over questions that both evaluations have
  gain: tuple[float, float, float] | None
  entries: Mapping[str, Sequence[Entry]]  # by 'before', 'after', 'train'
  notes: Sequence[str]  # lines for the page
  # lane -> spans, of `timeline.read`; empty without a timeline
  timeline: Mapping[str, Sequence[tuple[str, float, float]]] = dataclasses.field(
    default_factory=dict
  )


def load(folder: Path | str) -> Run:
  """Reads a run folder.

  Raises:
    DataError: the folder does not exist. Files inside that are missing or broken are named in
    `notes` instead.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise DataError(
      f'{folder}: no such folder; wanted a run folder (the last line that a run prints)'
    )
  notes: list[str] = []
  config, summary = (_json(folder / name, notes) for name in ('config.json', 'summary.json'))
  entries = {
    'before': _answers(folder / 'eval_before' / 'results.jsonl', notes),
    'after': _answers(folder / 'eval_after' / 'results.jsonl', notes),
    'train': _entries(folder / 'episodes' / 'train.jsonl', notes, True),
  }
  metrics = _metrics(folder / 'metrics.jsonl', notes)
  if len(metrics) == 1:
    notes.append('metrics.jsonl holds a single step: curves need two.')
  git = folder / 'git.txt'
  before, after = (
    _evaluation(summary.get(name), entries[name], name, notes) for name in ('before', 'after')
  )
  return Run(
    folder.resolve().name,
    config,
    git.read_text().strip() if git.is_file() else '',
    metrics,
    _metrics(folder / 'sft' / 'metrics.jsonl', None),
    _minutes(summary.get('minutes')),
    before,
    after,
    _saved_gain(summary.get('gain')) or paired_gain(entries['before'], entries['after']),
    entries,
    tuple(notes),
    timeline.read(spans) if (spans := folder / 'timeline.json').is_file() else {},
  )


def _saved_gain(gain: Any) -> tuple[float, float, float] | None:
  """Returns the gain from the run's own table, so that page and table agree; None if summary.json
  lacks it.
  """
  if not isinstance(gain, Mapping):
    return None
  names = ('difference', 'low', 'high')
  numbers = [n for n in map(gain.get, names) if isinstance(n, (int, float)) and math.isfinite(n)]
  if len(numbers) < len(names):
    return None
  difference, low, high = map(float, numbers)
  return difference, low, high


def paired_gain(
  before: Iterable[Entry], after: Iterable[Entry]
) -> tuple[float, float, float] | None:
  """Mean difference in accuracy over the (question, K) pairs in both evaluations, with its 95 %
  interval; None below two questions.

  Differences are averaged per question first, since the budgets of one question are not independent
  (normal approximation).
  """
  earlier = {entry.key: accuracy(entry) for entry in before}
  differences = collections.defaultdict(list)
  for entry in after:
    if entry.key in earlier:
      differences[entry.key[0]].append(accuracy(entry) - earlier[entry.key])
  if len(differences) < 2:
    return None
  mean = np.array([np.mean(values) for values in differences.values()])
  half = 1.96 * mean.std(ddof=1) / math.sqrt(len(mean))
  return float(mean.mean()), float(mean.mean() - half), float(mean.mean() + half)


def accuracy(entry: Entry) -> float:
  """The accuracy term of an episode's reward; 0 when it was not scored."""
  return entry.scored.parts.get('accuracy', 0.0)


def curve(metrics: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[int, float]]:
  """(step, value) where the metric was written and finite."""
  found = [(record.get('step'), record.get(name)) for record in metrics]
  return [(int(step), y) for step, y in found if step is not None and y is not None]


def flatten(config: Mapping[str, Any], prefix: str = '') -> list[tuple[str, str]]:
  """Returns (dotted name, value as text) of every setting, in the order of the file."""
  rows: list[tuple[str, str]] = []
  for key, value in config.items():
    name = f'{prefix}{key}'
    rows += (
      flatten(value, f'{name}.')
      if isinstance(value, Mapping) and value
      else [(name, json.dumps(value))]
    )
  return rows


def _json(path: Path, notes: list[str]) -> Mapping[str, Any]:
  if not path.is_file():
    notes.append(
      f'{path.name} is missing'
      + (': the run did not reach its end.' if path.name == 'summary.json' else '.')
    )
    return {}
  try:
    data = json.loads(path.read_text())
  except ValueError:
    data = None
  if not isinstance(data, dict):
    notes.append(f'{path.name} is no JSON object and was left out.')
    return {}
  return data


def _metrics(path: Path, notes: list[str] | None) -> list[dict]:
  try:
    records = writer.read(path)
  except DataError as error:
    records, message = [], str(error)
  else:
    message = 'metrics.jsonl is missing or empty: no step was finished.'
  if not records and notes is not None:
    notes.append(message)
  return records


def _entries(path: Path, notes: list[str], ends_only: bool) -> tuple[Entry, ...]:
  """Returns all entries, or the first and last few. Entries before a broken line are included."""
  head: list[Entry] = []
  tail: collections.deque[Entry] = collections.deque(maxlen=TRAIN_KEPT if ends_only else None)
  try:
    stream = episodes.read(path)
    head += itertools.islice(stream, TRAIN_KEPT if ends_only else 0)
    tail.extend(stream)
  except DataError as error:
    notes.append(str(error))
  if not head and not tail:
    notes.append(f'episodes/{path.name} is missing or empty.')
  return (*head, *tail)


def _answers(path: Path, notes: list[str]) -> tuple[Entry, ...]:
  """Returns the greedy answers of a results folder. Answers before a broken line are included."""
  found: list[Entry] = []
  lines = path.read_bytes().splitlines() if path.is_file() else []
  for number, line in enumerate(lines, 1):
    try:
      outcome = json.loads(line)
      if outcome['benchmark'] == GREEDY and outcome['episode'] is not None:
        found.append(episodes.from_json(outcome['episode'], f'{path} line {number}'))
    except (ValueError, KeyError, TypeError, DataError) as error:
      notes.append(f'{path.parent.name}/{path.name} line {number} is broken: {error}')
      break
  if not found:
    notes.append(f'{path.parent.name}/{path.name} is missing or empty.')
  return tuple(found)


def _minutes(raw: Any) -> dict[str, float]:
  if isinstance(raw, (int, float)):
    return {'total': float(raw)}
  return {
    name: float(value) for name, value in (raw or {}).items() if isinstance(value, (int, float))
  }


def _evaluation(
  raw: Any, entries: Sequence[Entry], name: str, notes: list[str]
) -> Evaluation | None:
  """Reads summary.json first; the episodes give the missing numbers."""
  if not isinstance(raw, Mapping) and not entries:
    return None
  raw = raw if isinstance(raw, Mapping) else {}
  if not raw:
    notes.append(
      f'The numbers "{name}" come from {len(entries)} logged episodes, for summary.json lacks them.'
    )
  cells = _cells(entries)
  given = {int(k): value for k, value in (raw.get('accuracy_by_k') or {}).items()}
  calls = {int(k): value for k, value in (raw.get('calls_by_k') or {}).items()}
  empty = Cell(None, None, None, 0)
  by_k = {}
  for k in sorted({*given, *cells}):
    cell = cells.get(k, empty)
    by_k[k] = dataclasses.replace(
      cell, accuracy=given.get(k, cell.accuracy), calls=calls.get(k, cell.calls)
    )
  scores = [accuracy(entry) for entry in entries]
  bounds = raw.get('interval') or interval(scores, len(scores))
  return Evaluation(
    int(raw.get('episodes', len(entries))),
    raw.get('accuracy', _mean(scores)),
    None if bounds is None else (bounds[0], bounds[1]),
    raw.get('format_compliance', _mean([entry.scored.parts.get('compliant') for entry in entries])),
    raw.get('calls_per_episode', _mean([entry.scored.episode.executed for entry in entries])),
    by_k,
    _by_type(entries),
  )


def _cells(entries: Sequence[Entry]) -> dict[int, Cell]:
  by_k = collections.defaultdict(list)
  for entry in entries:
    by_k[entry.scored.episode.budget].append(entry)
  cells = {}
  for k, group in by_k.items():
    scores = [accuracy(entry) for entry in group]
    cells[k] = Cell(
      _mean(scores),
      _mean([entry.scored.episode.executed for entry in group]),
      interval(scores, len(scores)),
      len(group),
    )
  return cells


def _by_type(entries: Sequence[Entry]) -> dict[str, float | None]:
  scores = collections.defaultdict(list)
  for entry in entries:
    scores[entry.scored.episode.task.question_type].append(accuracy(entry))
  return {kind: _mean(values) for kind, values in scores.items()}


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def interval(scores: Sequence[float], n: int) -> tuple[float, float] | None:
  """Returns Wilson's 95 % interval of a mean of scores in [0, 1]; None if n < 2.

  n is the number of independent scores.
  """
  if n < 2:
    return None
  p, z = sum(scores) / len(scores), 1.96
  center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  return max(0.0, (center - half) / (1 + z * z / n)), min(1.0, (center + half) / (1 + z * z / n))

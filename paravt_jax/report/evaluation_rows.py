"""An evaluation's lines and numbers, as the texts that its page shows."""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paravt_jax import files
from paravt_jax.errors import DataError
from paravt_jax.report.headline import percent
from paravt_jax.report.run import interval
from paravt_jax.types import ResultStatus

VALUES = 40  # of a field, in the table of its breakdown
# by which a published score may have been made, as shown
RULES = {'official': 'official', 'lmms_eval': 'lmms-eval'}
OUTCOMES = ('wrong', 'partial', 'error', 'right')


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of results.jsonl without its episode."""

  key: str
  benchmark: str
  id: str
  k: int
  outcome: str  # one of OUTCOMES; '' for a question without a gold answer
  reason: str
  error: str
  score: float | None  # in [0, 1]; None after an error
  metrics: Mapping[str, float]
  official: Mapping[str, float]
  lmms_eval: Mapping[str, float]
  answer: str
  gold: str
  question: str  # of a line without an episode; '' where the line does not say
  fields: Mapping[str, str]
  seconds: Mapping[str, float]
  tokens: Mapping[str, float]
  calls: int  # that were executed
  start: int  # where the line begins in the file


def read(path: Path | str, notes: list[str]) -> list[Row]:
  """The last line of every key, in order of writing; broken lines are named in `notes`, and a torn
  last line is skipped.
  """
  rows: dict[str, Row] = {}
  for count, line, end in files.read_lines(Path(path)):
    try:
      row = _row(line, end - len(line), f'{Path(path).name} line {count}')
      rows.pop(row.key, None)  # its place is that of its last line
      rows[row.key] = row
    except DataError as error:
      notes.append(f'{error}; left out')
  return list(rows.values())


def _row(line: bytes, start: int, where: str) -> Row:
  try:
    data = json.loads(line)
  except ValueError as error:
    raise DataError(f'{where}: got {line[:40]!r}, wanted a JSON object') from error
  kinds = {
    'key': str,
    'benchmark': str,
    'id': str,
    'k': int,
    'status': str,
    'fields': dict,
    'metrics': dict,
  }
  wrong = [
    name
    for name, kind in kinds.items()
    if not isinstance(data, dict) or not isinstance(data.get(name), kind)
  ]
  if wrong:
    raise DataError(
      f'{where}: {", ".join(wrong)} missing or of another type, wanted a line of an evaluation'
    )
  score, episode = data.get('score'), data.get('episode') or {}
  failed = data['status'] == 'error' or not isinstance(score, (int, float))
  points = None if failed else float(score or 0.0)
  results = [result for turn in episode.get('turns', ()) for result in turn.get('results', ())]

  def text(name: str) -> str:
    return '' if data.get(name) is None else str(data[name])

  return Row(
    key=data['key'],
    benchmark=data['benchmark'],
    id=data['id'],
    k=data['k'],
    outcome=_outcome(points),
    reason=text('reason'),
    error=text('error'),
    score=points,
    metrics=data['metrics'],
    official=data.get('official') or {},
    lmms_eval=data.get('lmms_eval') or {},
    answer=text('answer'),
    gold=text('gold'),
    question=text('question'),
    fields=data['fields'],
    seconds=data.get('seconds') or {},
    tokens=data.get('tokens') or {},
    calls=sum(result.get('status') == ResultStatus.EXECUTED for result in results),
    start=start,
  )


def _outcome(score: float | None) -> str:
  if score is None:
    return 'error'
  if score >= 1:
    return 'right'
  return 'wrong' if score <= 0 else 'partial'


def in_turn(rows: Iterable[Row]) -> Iterator[Row]:
  """Yields one row of each benchmark in turn. Rows that are not right come first."""
  groups: dict[tuple[bool, str], list[Row]] = collections.defaultdict(list)
  for row in rows:
    groups[row.outcome == 'right', row.benchmark].append(row)
  for late in (False, True):
    for turn in itertools.zip_longest(
      *(group for (right, _), group in groups.items() if right is late)
    ):
      yield from (row for row in turn if row is not None)


def read_summary(path: Path, rows: Sequence[Row], notes: list[str]) -> dict[str, Mapping[str, Any]]:
  """summary.json's benchmarks; missing ones are computed from the rows, and a note says so."""
  found: dict[str, Mapping[str, Any]] = {}
  if path.is_file():
    try:
      data = json.loads(path.read_text())
    except ValueError:
      data = {}
      notes.append(f'{path.name} is no JSON and was left out.')
    found = (
      {
        name: value
        for name, value in data.items()
        if isinstance(value, dict) and 'samples' in value
      }
      if isinstance(data, dict)
      else {}
    )
  missing = list(dict.fromkeys(row.benchmark for row in rows if row.benchmark not in found))
  if missing:
    notes.append(
      f'The numbers of {", ".join(missing)} come from the samples that are there: '
      f'{path.name} lacks them.'
    )
  for name in missing:
    own = [row for row in rows if row.benchmark == name]
    reasons = collections.Counter(row.reason for row in own if row.outcome == 'error')
    found[name] = {**_cell(own), 'reasons': reasons, 'breakdowns': _breakdowns(own)}
  return found


def _cell(rows: Sequence[Row]) -> dict[str, Any]:
  """The numbers of some rows as summary.json has them; the interval is over questions, whose
  budgets are not independent.
  """
  answered = [row for row in rows if row.score is not None]
  scores = [row.score or 0.0 for row in rows]
  return {
    'samples': len(rows),
    'answered': len(answered),
    'errors': len(rows) - len(answered),
    'score': _mean(scores),
    'interval': interval(scores, len({row.id for row in rows})),
    'score_answered': _mean([row.score or 0.0 for row in answered]),
    'calls_per_sample': _mean([row.calls for row in answered]),
  }


def _breakdowns(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
  """By field and value, and by k: `_cell`."""
  found: dict[str, dict[str, Any]] = {}
  for field in ('k', *dict.fromkeys(field for row in rows for field in row.fields)):
    groups: dict[Any, list[Row]] = collections.defaultdict(list)
    for row in rows:
      if field == 'k' or field in row.fields:
        for value in [row.k] if field == 'k' else str(row.fields[field]).split('; '):
          groups[value].append(row)
    if len(groups) > 1:
      found[field] = {str(value): _cell(groups[value]) for value in sorted(groups)}
  return found


def _mean(values: Sequence[float]) -> float | None:
  return sum(values) / len(values) if values else None


def score_table(
  summary: Mapping[str, Mapping[str, Any]],
  published: Mapping[str, Mapping[str, float]],
  rules: Mapping[str, str],
) -> list[dict[str, Any]]:
  """A row of texts per benchmark, its interval also as percent of the way from 0 to 1."""
  return [
    {
      'name': name,
      'metric': str(one.get('metric', 'score')),
      'score': percent(finite(one.get('score'))),
      'range': _range(one.get('interval')),
      'bar': _bar(one.get('score'), one.get('interval')),
      'official': percent(finite(one.get('score_official'))),
      'lmms_eval': percent(finite(one.get('score_lmms_eval'))),
      'answered': percent(finite(one.get('score_answered'))),
      'samples': one['samples'],
      'planned': one['samples'] + (one.get('missing') or 0),
      'errors': one.get('errors', 0),
      'calls': _rate(one, 'calls_per_sample'),
      'published': [
        (model, f'{value:.1f} %', RULES.get(rules.get(model, ''), 'unknown'))
        for model, value in published.get(name, {}).items()
        if not one.get('missing')
      ],
    }
    for name, one in summary.items()
  ]


def _rate(one: Mapping[str, Any], name: str) -> str:
  """A number per sample; '–' when unknown."""
  value = finite(one.get(name))
  return '–' if value is None else f'{value:.2f}'


def call_table(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A row of texts per benchmark whose summary counts calls: rates per answered sample, and how
  many did not run over all samples, by reason.
  """
  names = {'well': 'calls_well_formed', 'other': 'calls_other', 'ran': 'calls_per_sample'}
  return [
    {
      'name': benchmark,
      **{name: _rate(one, source) for name, source in names.items()},
      'failed': format_reasons(one.get('calls_failed_by_reason')) or 'none',
    }
    for benchmark, one in summary.items()
    if finite(one.get('calls_well_formed')) is not None
  ]


def format_reasons(reasons: Any) -> str:
  """{'call_timeout': 26, ...} as '26 call timeout, ...', the most frequent first; '' for none."""
  ordered = sorted((reasons or {}).items(), key=lambda pair: -pair[1])
  return ', '.join(f'{count:,} {reason_text(reason)}' for reason, count in ordered)


def reason_text(reason: str) -> str:
  """Returns a reason with spaces instead of underscores; 'error' for an empty one."""
  return reason.replace('_', ' ') or 'error'


def duration(seconds: float) -> str:
  """1.754 -> '1.75 s', 0.0091 -> '9.1 ms', 0.00002 -> 'under 0.1 ms'."""
  if seconds >= 1:
    return f'{seconds:.2f} s'
  if 0 < seconds < 0.0001:
    return 'under 0.1 ms'
  return f'{1000 * seconds:.1f}'.removesuffix('.0') + ' ms'


def broken_rows(name: str, counts: Mapping[str, int]) -> str:
  """Returns a note: how many rows of a benchmark are broken as published, and why."""
  reasons = ', '.join(f'{number} {fault}' for fault, number in counts.items() if fault != 'rows')
  return (
    f'Of the rows of {name}, {counts["rows"]} are broken as published ({reasons}); they were '
    'asked as they are.'
  )


def finite(value: Any) -> float | None:
  return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _range(bounds: Any) -> str:
  if not isinstance(bounds, Sequence) or len(bounds) != 2 or None in map(finite, bounds):
    return ''
  return f'[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]'


def _bar(score: Any, bounds: Any) -> dict[str, float] | None:
  """Where a score and its interval lie, in percent of 0 .. 1."""
  if finite(score) is None or not _range(bounds):
    return None
  low, high, at = (round(100 * min(max(value, 0.0), 1.0), 2) for value in (*bounds, score))
  return {'left': low, 'width': round(high - low, 2), 'at': at}


def breakdown_tables(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Small tables: the metrics of a benchmark where it has several, and its breakdowns."""
  found = []
  for name, one in summary.items():
    metrics = {
      metric: {**values, 'score': values.get('all')}
      for metric, values in (one.get('metrics') or {}).items()
    }
    tables = {'metric': metrics} if len(metrics) > 1 else {}
    for field, cells in {**tables, **(one.get('breakdowns') or {})}.items():
      found.append(
        {
          'benchmark': name,
          'field': 'K' if field == 'k' else field,
          'more': max(len(cells) - VALUES, 0),
          'cells': [
            {
              'name': value,
              'count': cell.get('samples'),
              'errors': cell.get('errors', 0),
              'score': percent(finite(cell.get('score'))),
              'range': _range(cell.get('interval')),
              'bar': _bar(cell.get('score'), cell.get('interval')),
            }
            for value, cell in itertools.islice(cells.items(), VALUES)
          ],
        }
      )
  return found

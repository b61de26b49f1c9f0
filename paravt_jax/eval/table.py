"""Formats an evaluation or a comparison as Markdown.

Scores have their intervals, and published numbers are marked as published.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from paravt_jax.eval.sample import describe_faults

# {scoring rule other than ours: its name in tables}
RULES = {'official': 'official', 'lmms_eval': 'lmms-eval'}
_WIDEST = 40  # most rows of a breakdown table


def markdown(
  summary: Mapping[str, Mapping[str, Any]],
  name: str,
  published: Mapping[str, Mapping[str, float]],
  rules: Mapping[str, str] = MappingProxyType({}),
) -> str:
  """Returns the tables of a summary (`numbers.summarize`) as Markdown.

  Args:
    name: name of the evaluated model.
    published: {benchmark: {model: score in per cent}}. Benchmarks outside the summary are ignored.
    rules: {model: rule of its published scores}, 'official' or 'lmms_eval'. A model without an
      entry has an unknown rule.

  Returns:
    Markdown that ends in a newline: scores, complete benchmarks next to published rows, errors by
      reason, calls, other metrics, breakdowns. Scores are in per cent with their 95 % interval.
  """
  parts = [f'# {name}', _scores(summary)]
  beside = _beside(summary, name, published, rules)
  if beside:
    parts.append(beside)
  errors = [
    [benchmark, reason, str(count)]
    for benchmark, row in summary.items()
    for reason, count in row['reasons'].items()
  ]
  if errors:
    parts.append(
      '## Errors\n\nThey earn nothing in the scores over all samples, and are tried again by '
      'the same command.\n\n' + table(('benchmark', 'reason', 'samples'), errors)
    )
  parts += [_calls(summary), _metrics(summary)]
  parts += [_breakdown(benchmark, row) for benchmark, row in summary.items() if row['breakdowns']]
  return '\n\n'.join(parts) + '\n'


def _scores(summary: Mapping[str, Mapping[str, Any]]) -> str:
  head = (
    'benchmark',
    'metric',
    'score, all samples',
    'score, answered',
    'official rule',
    'samples',
    'errors',
    'calls per sample',
    'format',
    'lmms-eval rule',
    'fingerprint',
  )
  rows = [
    [
      benchmark,
      row['metric'],
      with_interval(row['score'], row['interval']),
      with_interval(row['score_answered'], row['interval_answered']),
      _by(row, 'official'),
      _count(row),
      str(row['errors']),
      format_number(row['calls_per_sample'], 2),
      percent(row['format_compliance']),
      _by(row, 'lmms_eval'),
      row['fingerprint'],
    ]
    for benchmark, row in summary.items()
  ]
  partial = [benchmark for benchmark, row in summary.items() if row['missing']]
  note = ''.join(
    f'{benchmark}: {describe_faults(row["broken"])}.\n\n'
    for benchmark, row in summary.items()
    if row.get('broken')
  )
  note += (
    f'**Not complete: {", ".join(partial)}.** The same command with these benchmarks continues.\n\n'
    if partial
    else ''
  )
  return f'{note}Per cent [95 % interval].\n\n' + table(head, rows)


def _by(row: Mapping[str, Any], rule: str) -> str:
  """Returns the score by another rule than ours, '-' if missing, as in older summaries."""
  return with_interval(row.get(f'score_{rule}'), row.get(f'{rule}_interval'))


def _count(row: Mapping[str, Any]) -> str:
  return (
    f'{row["samples"]} of {row["samples"] + row["missing"]}'
    if row['missing']
    else str(row['samples'])
  )


def _beside(
  summary: Mapping[str, Mapping[str, Any]],
  name: str,
  published: Mapping[str, Mapping[str, float]],
  rules: Mapping[str, str],
) -> str:
  benchmarks = [
    benchmark
    for benchmark, row in summary.items()
    if published.get(benchmark) and not row['missing']
  ]
  if not benchmarks:
    return ''
  models = list(dict.fromkeys(model for benchmark in benchmarks for model in published[benchmark]))
  rows = [
    [
      name,
      'measured here',
      *(with_interval(summary[b]['score'], summary[b]['interval']) for b in benchmarks),
      'ours',
    ]
  ]
  rows += [
    [f'{name}, {shown} rule', 'measured here', *(_by(summary[b], rule) for b in benchmarks), shown]
    for rule, shown in RULES.items()
  ]
  rows += [
    [
      model,
      'published',
      *(format_number(published[b].get(model), 1) for b in benchmarks),
      RULES.get(rules.get(model, ''), 'unknown'),
    ]
    for model in models
  ]
  return (
    '## Beside published numbers\n\nRows marked "published" are quoted, not measured here: '
    'other frames, prompts and scoring; they enter no statistics. Compare one with the row of '
    'ours that was made by its rule.\n\n' + table(('model', 'source', *benchmarks, 'rule'), rows)
  )


def _calls(summary: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns a table of calls per answered sample: by form, executed, failed, and why they
  failed.
  """
  rows = [
    [
      benchmark,
      *(
        format_number(row[name], 2)
        for name in ('calls_well_formed', 'calls_other', 'calls_per_sample', 'calls_failed')
      ),
      ', '.join(f'{reason} {count}' for reason, count in row['calls_failed_by_reason'].items()),
    ]
    for benchmark, row in summary.items()
  ]
  return (
    '## Calls\n\nPer answered sample. Calls of another form than the one asked for run too. '
    'What did not run is counted by reason over all samples.\n\n'
    + table(('benchmark', 'well-formed', 'of another form', 'ran', 'did not run', 'reasons'), rows)
  )


def _metrics(summary: Mapping[str, Mapping[str, Any]]) -> str:
  rows = [
    [benchmark, name, rule, with_interval(cell['all'], cell['interval']), percent(cell['answered'])]
    for benchmark, row in summary.items()
    for which, rule in {'metrics': 'ours', **RULES}.items()
    for name, cell in row.get(which, {}).items()
  ]
  return '## Metrics\n\n' + table(('benchmark', 'metric', 'rule', 'all samples', 'answered'), rows)


def _breakdown(benchmark: str, row: Mapping[str, Any]) -> str:
  parts = []
  for field, cells in row['breakdowns'].items():
    rows = [
      [
        value,
        with_interval(cell['score'], cell['interval']),
        percent(cell['score_answered']),
        str(cell['samples']),
        str(cell['errors']),
        format_number(cell['calls_per_sample'], 2),
      ]
      for value, cell in list(cells.items())[:_WIDEST]
    ]
    more = (
      f'\n\n{len(cells) - _WIDEST} more values in summary.json.' if len(cells) > _WIDEST else ''
    )
    parts.append(
      table((field, row['metric'], 'answered', 'samples', 'errors', 'calls per sample'), rows)
      + more
    )
  return f'## {benchmark}\n\n' + '\n\n'.join(parts)


def comparison(
  found: Mapping[str, Mapping[str, Any]],
  first: str,
  second: str,
  flips: int,
  warnings: Sequence[str] = (),
) -> str:
  """Returns a comparison of two results folders (`numbers.compare`) as Markdown.

  Args:
    found: the result of `numbers.compare`.
    first, second: names of the folders.
    flips: most changed answers to list in each direction.
    warnings: differences between the questions of the two folders. They come first.
  """
  head = (
    'benchmark',
    'metric',
    first,
    second,
    'difference',
    'questions for the first',
    'for the second',
    'McNemar p',
    'pairs',
    'unpaired',
  )
  rows = [
    [
      benchmark,
      row['metric'],
      percent(row['first']),
      percent(row['second']),
      with_interval(row['difference'], (row['low'], row['high']), sign=True),
      str(row['only_first']),
      str(row['only_second']),
      f'{row["p"]:.4g}',
      str(row['pairs']),
      str(row['unpaired']),
    ]
    for benchmark, row in found.items()
  ]
  parts = [
    f'# {first} against {second}',
    *(['**Warning: not the same samples.** ' + ' '.join(warnings)] if warnings else []),
    'Per cent; differences are second minus first with a paired bootstrap 95 % interval, '
    'drawn by question. A pair with an error '
    "on either side is left out (unpaired). McNemar's test is exact, and counts a question "
    'that was put at several K once, for the '
    'side that is right more often; right means '
    + ', '.join(sorted({row['right'] for row in found.values()}))
    + '.',
    table(head, rows),
  ]
  for benchmark, row in found.items():
    parts += _list_flips(benchmark, row, flips)
  return '\n\n'.join(parts) + '\n'


def _list_flips(benchmark: str, row: Mapping[str, Any], flips: int) -> list[str]:
  """Returns lists of the samples that only one folder answers right, at most `flips` per list."""
  parts = []
  for way, title in (('lost', 'right in the first only'), ('won', 'right in the second only')):
    lines = [
      f'- `{flip["key"]}`: gold {short(flip["gold"])}, first {short(flip["first"])}, '
      f'second {short(flip["second"])}'
      for flip in row[way][:flips]
    ]
    if len(row[way]) > flips:
      lines.append(f'- {len(row[way]) - flips} more')
    if lines:
      parts.append(f'## {benchmark}: {title}\n\n' + '\n'.join(lines))
  return parts


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table. Bars in cells are escaped."""
  clean = lambda cell: cell.replace('|', '\\|').replace('\n', ' ')
  lines = [list(head), ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(clean, line)) + ' |' for line in lines)


def percent(value: float | None) -> str:
  """Returns a share in per cent, such as '62.1' for 0.621, '-' for None."""
  return '-' if value is None else f'{100 * value:.1f}'


def format_number(value: float | None, digits: int) -> str:
  """Returns a number as text, '-' for None."""
  return '-' if value is None else f'{value:.{digits}f}'


def with_interval(
  value: float | None, interval: Sequence[float] | None, *, sign: bool = False
) -> str:
  """Returns a share and its interval in per cent, such as '62.1 [60.2, 64.0]', '-' for None."""
  if value is None or interval is None:
    return '-'
  form = '{:+.1f}' if sign else '{:.1f}'
  return (
    f'{form.format(100 * value)} [{form.format(100 * interval[0])}, '
    f'{form.format(100 * interval[1])}]'
  )


def short(text: str) -> str:
  """Returns a quoted text on one line, cut to 60 characters."""
  line = ' '.join(text.split())
  return f'"{line[:60]}{"..." if len(line) > 60 else ""}"'

"""A results folder: what was asked and with what (plan.json), every finished sample
(results.jsonl), and the numbers of both.

plan.json      what the results are a function of, by benchmark the keys of all samples, and the shard
results.jsonl  an `Outcome` a line, on disk before the next one is begun
"""

import collections
import dataclasses
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from paravt_jax import files
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.eval import sample, scoring, statistics
from paravt_jax.metrics.writer import unwritable

ANSWERED, ERROR = 'answered', 'error'
SHOWN = 5  # names in a message
SHOWN_AS = {'iou': 'mIoU'}  # means of metrics that have a name of their own


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A sample that is finished: answered and scored, or an error, which is no wrong answer.

  key: 'videomme/<id>/k=64'. score: in [0, 1], None after an error, whose reason (a countable word)
  and text stand beside it. metrics: what the score is made of, and more of its kind; official: by
  the benchmark's own rule, None where it has none; lmms_eval: by that harness's, likewise (results
  of before it was known have none). fields: by which scores are broken down; a sample counts under
  each of several values, 'a; b'. seconds: 'wall' and its stages. tokens: 'prompt' (given, images
  expanded) and 'sampled', sub-agents included. episode: the JSON of report.episodes, None after an
  error.
  """

  key: str
  benchmark: str
  id: str
  k: int
  status: str
  reason: str
  error: str
  score: float | None
  metrics: Mapping[str, float]
  official: Mapping[str, float] | None
  answer: str
  gold: str
  fields: Mapping[str, str]
  seconds: Mapping[str, float]
  tokens: Mapping[str, int]
  episode: Mapping[str, Any] | None
  lmms_eval: Mapping[str, float] | None = None


FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))


def key_of(benchmark: str, sample: str, k: int) -> str:
  """What names a sample at a budget: 'videomme/<id>/k=64'."""
  return f'{benchmark}/{sample}/k={k}'


def digest(value: Any) -> str:
  """Sixteen hex digits that name a JSON value."""
  return files.digest_json(value, 8)


class Journal:
  """Appends outcomes to a folder's results.jsonl, a whole line each or nothing.

  A torn last line, and errors of an earlier run among the keys `again`, are taken out when it is
  opened: those samples are put again. `answered` holds the keys that need not be.

  Raises:
    DataError: an existing line breaks the schema. ParavtError: the folder cannot be written.
  """

  def __init__(self, folder: Path, again: Container[str] = ()):
    self.path = folder / 'results.jsonl'
    lines, whole = _lines(self.path)
    kept = [
      (outcome, line)
      for outcome, line in lines
      if outcome.status == ANSWERED or outcome.key not in again
    ]
    self.answered = {outcome.key for outcome, _ in kept if outcome.status == ANSWERED}
    try:
      if len(kept) < len(lines) or not whole:
        files.write(self.path, b''.join(line for _, line in kept), sync=False)
      self._file = files.LineWriter(self.path)
    except OSError as error:
      raise unwritable(self.path, 'open', error) from error

  def append(self, outcome: Outcome) -> None:
    """Writes one line. Raises ParavtError when the disk is full; the file then ends with the last
    whole line.
    """
    line = json.dumps(
      {name: getattr(outcome, name) for name in FIELDS}, separators=(',', ':'), allow_nan=False
    )
    try:
      self._file.append(line.encode() + b'\n')
    except OSError as error:
      raise unwritable(self.path, f'write the result of {outcome.key}', error) from error

  def close(self) -> None:
    """Closes the file; further appends fail."""
    self._file.close()

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: Path) -> list[Outcome]:
  """Outcomes of a results.jsonl in the order of writing; a missing file gives none, a torn last
  line is left out.

  Raises:
    DataError: a line breaks the schema.
  """
  return [outcome for outcome, _ in _lines(path)[0]]


def _lines(path: Path) -> tuple[list[tuple[Outcome, bytes]], bool]:
  """Outcomes with their lines, and whether the last line is whole."""
  found: list[tuple[Outcome, bytes]] = []
  end = 0
  for number, line, end in files.read_lines(path):  # noqa: B007 (end: of the last whole line)
    try:
      found.append((Outcome(**json.loads(line)), line))
    except (ValueError, TypeError) as error:
      raise DataError(
        f'{path} line {number}: got {line[:60]!r}, wanted an object with exactly {list(FIELDS)}; '
        'it was written by another version, or by hand: choose another folder'
      ) from error
  return found, not path.is_file() or path.stat().st_size == end


# What results are a function of


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a results folder is made with.

  common: model, protocol, limits, sampling, code, ..., in named JSON values. benchmarks: by name
  {'parts': what is its own (frames, questions), 'metric': which of the metrics is the score,
  'keys': of its samples, in order}. shard: (number from 1, count); (1, 1) is everything.
  """

  common: Mapping[str, Any]
  benchmarks: Mapping[str, Mapping[str, Any]]
  shard: tuple[int, int]

  def fingerprint(self, benchmark: str) -> str:
    """Names everything that the scores of a benchmark are a function of."""
    return digest([self.common, self.benchmarks[benchmark]['parts']])


def refuse_other(folder: Path, plan: Plan) -> None:
  """Raises ConfigError, naming the settings that differ, when a folder has results of others, or of
  another shard.
  """
  changed = other_settings(folder, plan)
  if changed:
    raise ConfigError(
      f'results folder {folder} was begun with other settings ({changed}); go on with the same, '
      'or choose another with --config.run.folder=DIR'
    )


def other_settings(folder: Path, plan: Plan) -> str:
  """The settings in which the results of a folder differ from a plan, the first few of them; ''
  where there are none, or no results.
  """
  changed = differences(read_plan(folder), plan) if _begun(folder) else []
  return ', '.join(changed[:SHOWN]) + (', ...' if len(changed) > SHOWN else '')


def _begun(folder: Path) -> bool:
  """Whether there are results; a start that was refused (no server, no model) leaves a plan that
  binds nobody.
  """
  results = folder / 'results.jsonl'
  return (folder / 'plan.json').exists() and results.exists() and results.stat().st_size > 0


def write_plan(folder: Path, plan: Plan) -> Plan:
  """Writes a folder's plan by rename, beside the benchmarks that it holds already, and returns the
  plan of all of them.

  Raises:
    ConfigError: as `refuse_other`. DataError: the folder's plan is broken. ParavtError: it cannot
    be written.
  """
  refuse_other(folder, plan)
  if _begun(folder):
    plan = dataclasses.replace(plan, benchmarks={**read_plan(folder).benchmarks, **plan.benchmarks})
  try:
    content = json.dumps(dataclasses.asdict(plan)).encode() + b'\n'
    files.write(folder / 'plan.json', content, sync=False)
  except OSError as error:
    raise unwritable(folder / 'plan.json', 'write', error) from error
  return plan


def read_plan(folder: Path) -> Plan:
  """The plan of a results folder. Raises DataError when there is none, or it is broken."""
  path = folder / 'plan.json'
  try:
    data = json.loads(path.read_text())
    return Plan(data['common'], data['benchmarks'], tuple(data['shard']))
  except FileNotFoundError as error:
    raise DataError(
      f'{folder}: got no plan.json, wanted a results folder of experiments.eval; check the path'
    ) from error
  except (ValueError, KeyError, TypeError, OSError) as error:
    raise DataError(
      f'{path}: got {type(error).__name__} ({error}), wanted a plan of experiments.eval; '
      'move the folder away'
    ) from error


def differences(before: Plan, now: Plan, *, shards: bool = True) -> list[str]:
  """'agent.max_turns: 3 -> 2' for each setting in which two plans differ, of benchmarks that both
  have; shards: the shard too.
  """
  rows = _differences(before.common, _plain(now.common), '')
  for name in before.benchmarks:
    if name in now.benchmarks:
      rows += _differences(
        before.benchmarks[name]['parts'], _plain(now.benchmarks[name]['parts']), f'{name}.'
      )
  if shards and before.shard != now.shard:
    rows.append('shard: {}/{} -> {}/{}'.format(*before.shard, *now.shard))
  return rows


def _plain(value: Any) -> Any:
  """As JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(value))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
  rows = []
  for name in sorted({*before, *now}):
    old, new = before.get(name), now.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
      rows += _differences(old, new, f'{prefix}{name}.')
    elif old != new:
      rows.append(f'{prefix}{name}: {old} -> {new}')
  return rows


# Numbers


def summarize(
  plan: Plan, outcomes: Iterable[Outcome], *, samples: int, seed: int
) -> dict[str, dict[str, Any]]:
  """The numbers of each benchmark of a plan, JSON-able: what summary.json holds.

  Args:
    plan: whose keys are the samples. outcomes: of any of them, in any order; a later one of a key
    replaces an earlier one. samples, seed: of bootstrap intervals.

  Returns:
    By benchmark: as `_numbers`, and its `metric`, `fingerprint`, and how many samples are `missing`
    (an evaluation that was cut off). Equal for equal outcomes, whatever their order.
  """
  by_key = {outcome.key: outcome for outcome in outcomes}
  found = {}
  for name, about in plan.benchmarks.items():
    mine = [by_key[key] for key in about['keys'] if key in by_key]
    found[name] = {
      **_numbers(mine, about['metric'], samples, seed),
      'missing': len(about['keys']) - len(mine),
      'breakdowns': _breakdowns(mine, samples, seed),
      'metric': SHOWN_AS.get(about['metric'], about['metric']),
      'fingerprint': plan.fingerprint(name),
    }
  return found


def _numbers(outcomes: Sequence[Outcome], metric: str, samples: int, seed: int) -> dict[str, Any]:
  """samples, answered, errors (how many), reasons (of errors).

  score and its 95 % `interval`: over all samples, where an error earns nothing; score_answered,
  interval_answered: over the answered ones. score_official, official_interval,
  score_official_answered: the same by the benchmark's own rule, None without one; score_lmms_eval,
  lmms_eval_interval, score_lmms_eval_answered: by that harness's. broken: how many of the rows are
  broken as published, and why. metrics, official, lmms_eval: every metric by name, over `all`
  samples (with the interval) and over the `answered` ones. Means over answered samples:
  calls_per_sample (executed), calls_well_formed and calls_other (of another form, run too),
  calls_failed, format_compliance, truncated, frames_repeated (left out, shown already);
  calls_failed_by_reason: how many. No samples give None.
  """
  answered = [outcome for outcome in outcomes if outcome.status == ANSWERED]
  scored = lambda some: _score(some, lambda outcome: outcome.score, samples, seed)
  (score, interval), (score_answered, interval_answered) = scored(outcomes), scored(answered)
  metrics, official, theirs = (
    {
      name: _metric(outcomes, which, name, name == metric, samples, seed)
      for name in _names(answered, which)
    }
    for which in ('metrics', 'official', 'lmms_eval')
  )
  return {
    'samples': len(outcomes),
    'answered': len(answered),
    'errors': len(outcomes) - len(answered),
    'reasons': dict(
      sorted(collections.Counter(o.reason for o in outcomes if o.status == ERROR).items())
    ),
    'score': score,
    'interval': interval,
    'score_answered': score_answered,
    'interval_answered': interval_answered,
    **_by_rule('official', official.get(metric, {})),
    **_by_rule('lmms_eval', theirs.get(metric, {})),
    'broken': sample.count({outcome.id: outcome.fields for outcome in outcomes}.values()),
    'metrics': metrics,
    'official': official,
    'lmms_eval': theirs,
    'calls_per_sample': _mean([_calls(outcome, True) for outcome in answered]),
    'calls_failed': _mean([_calls(outcome, False) for outcome in answered]),
    'calls_well_formed': _mean([_forms(outcome, True) for outcome in answered]),
    'calls_other': _mean([_forms(outcome, False) for outcome in answered]),
    'calls_failed_by_reason': dict(
      sorted(
        collections.Counter(
          result['status']
          for outcome in answered
          for result in _results(outcome)
          if result['status'] != 'executed'
        ).items()
      )
    ),
    'format_compliance': _mean(
      [float(outcome.episode['parts']['compliant']) for outcome in answered]
    ),
    'truncated': _mean(
      [any(turn['stop'] == 'length' for turn in outcome.episode['turns']) for outcome in answered]
    ),
    'frames_repeated': _mean([_repeated(outcome.episode) for outcome in answered]),
  }


def _by_rule(rule: str, score: Mapping[str, Any]) -> dict[str, Any]:
  """The score by another rule than ours, None without it."""
  return {
    f'score_{rule}': score.get('all'),
    f'score_{rule}_answered': score.get('answered'),
    f'{rule}_interval': score.get('interval'),
  }


def _score(
  outcomes: Sequence[Outcome], value, samples: int, seed: int
) -> tuple[float | None, list[float]]:
  """(mean, interval); what is None counts as nothing earned."""
  values = [value(outcome) or 0.0 for outcome in outcomes]
  return _mean(values), list(
    statistics.interval(values, [outcome.id for outcome in outcomes], samples=samples, seed=seed)
  )


def _metric(
  outcomes: Sequence[Outcome], which: str, name: str, score: bool, samples: int, seed: int
) -> dict[str, Any]:
  """One metric over the samples that have it, and the errors of their kinds of question (a letter
  has no F1); the one that is the score, over all errors.
  """
  kind = lambda outcome: outcome.fields.get('question_type')
  has = lambda outcome: name in (getattr(outcome, which) or {})
  kinds = {kind(o) for o in outcomes if has(o)}
  mine = [o for o in outcomes if has(o) or (o.status == ERROR and (score or kind(o) in kinds))]
  value = lambda outcome: (getattr(outcome, which) or {}).get(name)
  mean, interval = _score(mine, value, samples, seed)
  return {
    'all': mean,
    'interval': interval,
    'answered': _mean([value(o) for o in mine if o.status == ANSWERED]),
  }


def _names(outcomes: Sequence[Outcome], which: str) -> list[str]:
  """Metrics that occur, in order of appearance."""
  return list(
    dict.fromkeys(name for outcome in outcomes for name in (getattr(outcome, which) or {}))
  )


def _breakdowns(outcomes: Sequence[Outcome], samples: int, seed: int) -> dict[str, dict[str, Any]]:
  """By field and value, and by 'k', the counts, score and interval of those samples; fields with
  one value are left out.
  """
  table: dict[str, dict[str, list[Outcome]]] = {}
  for outcome in outcomes:
    for field, values in (('k', str(outcome.k)), *outcome.fields.items()):
      for value in values.split('; '):
        table.setdefault(field, {}).setdefault(value, []).append(outcome)
  order = lambda value: (0, int(value), '') if value.isdecimal() else (1, 0, value)
  return {
    field: {value: _cell(groups[value], samples, seed) for value in sorted(groups, key=order)}
    for field, groups in table.items()
    if len(groups) > 1
  }


def _cell(outcomes: Sequence[Outcome], samples: int, seed: int) -> dict[str, Any]:
  answered = [outcome for outcome in outcomes if outcome.status == ANSWERED]
  score, interval = _score(outcomes, lambda outcome: outcome.score, samples, seed)
  return {
    'samples': len(outcomes),
    'answered': len(answered),
    'errors': len(outcomes) - len(answered),
    'score': score,
    'interval': interval,
    'score_answered': _mean([outcome.score for outcome in answered]),
    'calls_per_sample': _mean([_calls(outcome, True) for outcome in answered]),
  }


def _calls(outcome: Outcome, executed: bool) -> int:
  """Calls of an episode that were executed, or that were not."""
  return sum((result['status'] == 'executed') is executed for result in _results(outcome))


def _forms(outcome: Outcome, well_formed: bool) -> int:
  """Calls of an episode that are well-formed, or that were read although they are not; lines that
  do not say are of the first.
  """
  calls = [result.get('call') or {} for result in _results(outcome)]
  return sum(call.get('well_formed', True) is well_formed for call in calls if 'name' in call)


def _results(outcome: Outcome) -> list[dict[str, Any]]:
  return [result for turn in outcome.episode['turns'] for result in turn['results']]


def _repeated(episode: Mapping[str, Any]) -> int:
  """Frames of an episode's overviews and crops that were left out because they were shown
  already.
  """
  results = (result for turn in episode['turns'] for result in turn['results'])
  return sum(seen.get('repeated', 0) for seen in (episode, *episode.get('others', ()), *results))


def _mean(values: Sequence[float]) -> float | None:
  return math.fsum(values) / len(values) if values else None


# Two folders


def compare(
  first: Iterable[Outcome],
  second: Iterable[Outcome],
  metrics: Mapping[str, str],
  keys: Mapping[str, Set[str]],
  *,
  samples: int,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Two evaluations of the same questions, by benchmark that both have; what is no answer on both
  sides counts as unpaired.

  Args:
    metrics: by benchmark, which metric is the score. keys: by benchmark, those planned in either
    evaluation. samples, seed: of the bootstrap, which draws questions (with all their budgets).

  Returns:
    By benchmark: metric; first, second: scores over the pairs; difference (second minus first),
    low, high; only_first, only_second (questions that speak for it) and McNemar's p; right: what
    that means; pairs, unpaired; lost, won: the flips, {key, gold, first, second}, by key.

  Raises:
    DataError: a key has another gold answer in each folder: they are not the same questions.
  """
  sides = [{outcome.key: outcome for outcome in side} for side in (first, second)]
  found = {}
  for name, metric in metrics.items():
    mine = [
      {key: outcome for key, outcome in side.items() if outcome.benchmark == name} for side in sides
    ]
    both = [
      key
      for key in sorted(mine[0])
      if key in mine[1] and all(side[key].status == ANSWERED for side in mine)
    ]
    pairs = [(mine[0][key], mine[1][key]) for key in both]
    unpaired = len({*keys[name], *mine[0], *mine[1]}) - len(pairs)
    found[name] = {
      'metric': SHOWN_AS.get(metric, metric),
      **_paired(pairs, metric, samples, seed),
      'unpaired': unpaired,
    }
  return found


def _paired(
  pairs: Sequence[tuple[Outcome, Outcome]], metric: str, samples: int, seed: int
) -> dict[str, Any]:
  """What `compare` says of a benchmark's pairs of answered outcomes."""
  for a, b in pairs:
    if a.gold != b.gold:
      raise DataError(
        f'{a.key}: got the gold answers {a.gold!r} and {b.gold!r}, wanted the same questions '
        'in both folders; evaluate '
        f'both on one snapshot'
      )
  scores = [[pair[side].score for pair in pairs] for side in (0, 1)]
  difference, low, high = scoring.paired_bootstrap(
    *scores, clusters=[a.id for a, _ in pairs], samples=samples, seed=seed
  )
  right = [[_right(pair[side], metric) for pair in pairs] for side in (0, 1)]
  test = statistics.mcnemar(*right, [a.id for a, _ in pairs])
  flips = lambda wanted: [
    {'key': a.key, 'gold': a.gold, 'first': a.answer, 'second': b.answer}
    for (a, b), was, became in zip(pairs, *right)
    if (was, became) == wanted
  ]
  return {
    'first': _mean(scores[0]),
    'second': _mean(scores[1]),
    'difference': difference if pairs else None,
    'low': low if pairs else None,
    'high': high if pairs else None,
    'p': test.p,
    'only_first': test.only_first,
    'only_second': test.only_second,
    'right': 'IoU at least 0.5' if metric == 'iou' else 'a full score',
    'pairs': len(pairs),
    'lost': flips((True, False)),
    'won': flips((False, True)),
  }


def _right(outcome: Outcome, metric: str) -> bool:
  return outcome.score >= (0.5 if metric == 'iou' else 1.0)


def merged(
  plans: Mapping[Path, Plan], outcomes: Mapping[Path, Sequence[Outcome]]
) -> tuple[Plan, list[Outcome]]:
  """The whole of which results folders are the shards: its plan and all its outcomes.

  Raises:
    ConfigError: they were made with different settings, or benchmarks; a shard is missing or there
    twice; samples of one are missing
      (its run did not end). The message names all that is missing.
  """
  (first, plan), *others = plans.items()
  for path, other in others:
    changed = differences(plan, other, shards=False)
    if set(plan.benchmarks) != set(other.benchmarks):
      changed.append(f'benchmarks: {sorted(plan.benchmarks)} -> {sorted(other.benchmarks)}')
    if plan.shard[1] != other.shard[1]:
      changed.append(f'shards: {plan.shard[1]} -> {other.shard[1]}')
    if changed:
      raise ConfigError(
        f'{path} was made with other settings than {first} ({", ".join(changed[:SHOWN])}); '
        'merge shards of one evaluation'
      )
  numbers = collections.Counter(plan.shard[0] for plan in plans.values())
  twice = sorted(number for number, count in numbers.items() if count > 1)
  if twice:
    raise ConfigError(f'shards {twice} of {plan.shard[1]} are given twice; name each folder once')
  faults = [
    f'shard {number}/{plan.shard[1]} is not among the folders'
    for number in range(1, plan.shard[1] + 1)
    if number not in numbers
  ]
  for path, other in plans.items():
    there = {outcome.key for outcome in outcomes[path]}
    missing = [
      key for about in other.benchmarks.values() for key in about['keys'] if key not in there
    ]
    if missing:
      faults.append(
        f'{path} lacks {len(missing)} samples '
        f'({", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""})'
      )
  if faults:
    raise ConfigError(f'not complete: {"; ".join(faults)}; finish those runs and merge again')
  ordered = sorted(plans.values(), key=lambda plan: plan.shard)
  whole = {
    name: {**about, 'keys': [key for plan in ordered for key in plan.benchmarks[name]['keys']]}
    for name, about in plan.benchmarks.items()
  }
  keys = {key for about in whole.values() for key in about['keys']}
  return dataclasses.replace(plan, benchmarks=whole, shard=(1, 1)), [
    o for some in outcomes.values() for o in some if o.key in keys
  ]

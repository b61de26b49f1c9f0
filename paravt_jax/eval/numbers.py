"""Computes the scores of an evaluation, overall and by field, and compares two evaluations."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from paravt_jax.errors import DataError
from paravt_jax.eval import sample, scoring, statistics
from paravt_jax.eval.results import ANSWERED, ERROR, Outcome, Plan

SHOWN_AS = {'iou': 'mIoU'}  # {metric: name of its mean}


def summarize(
  plan: Plan, outcomes: Iterable[Outcome], *, samples: int, seed: int
) -> dict[str, dict[str, Any]]:
  """Returns {benchmark: its numbers} for a plan, as in summary.json.

  Args:
    plan: the plan of the evaluation. Its keys define the samples.
    outcomes: outcomes of the samples. The order of the keys does not matter. A later outcome of a
      key replaces an earlier one.
    samples, seed: number of bootstrap samples, and seed of their draws.

  Returns:
    For each benchmark: the values of `_numbers`, `breakdowns`, `metric`, `fingerprint`, and how
      many samples are `missing` because the evaluation was interrupted.
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
  """Returns the numbers of one benchmark. Means and scores are None without samples.

  Counts:
    samples, answered, errors; reasons: {error: count}; broken: rows that are broken as published.
  Scores with their 95 % intervals:
    score, interval: over all samples, where an error scores 0.
    score_answered, interval_answered: over answered samples.
    score_official, official_interval, score_official_answered: by the benchmark's published rule.
    score_lmms_eval, lmms_eval_interval, score_lmms_eval_answered: by the rule of lmms-eval.
    Scores of a missing rule are None.
  Metrics by name (metrics, official, lmms_eval):
    `all` samples with `interval`, and `answered` samples.
  Means over answered samples:
    calls_per_sample: executed calls. calls_failed: the others.
    calls_well_formed; calls_other: calls of another form, which also run.
    format_compliance, truncated.
    frames_repeated: frames that were omitted because the model had already seen them.
  calls_failed_by_reason: {reason: count} over answered samples.
  """
  answered = [outcome for outcome in outcomes if outcome.status == ANSWERED]
  score, interval = _score(outcomes, lambda outcome: outcome.score, samples, seed)
  score_answered, interval_answered = _score(answered, lambda one: one.score, samples, seed)
  # all metrics by name, for each of the three rules
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
    **_conduct(answered),
  }


def _conduct(answered: Sequence[Outcome]) -> dict[str, Any]:
  """Returns statistics on the agent's calls, format and frames over the answered samples."""
  episodes = [outcome.episode or {} for outcome in answered]
  return {
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
    'format_compliance': _mean([float(episode['parts']['compliant']) for episode in episodes]),
    'truncated': _mean(
      [any(turn['stop'] == 'length' for turn in episode['turns']) for episode in episodes]
    ),
    'frames_repeated': _mean([_repeated(episode) for episode in episodes]),
  }


def _by_rule(rule: str, score: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the score and interval by another rule than ours, None without that rule."""
  return {
    f'score_{rule}': score.get('all'),
    f'score_{rule}_answered': score.get('answered'),
    f'{rule}_interval': score.get('interval'),
  }


def _score(
  outcomes: Sequence[Outcome], value, samples: int, seed: int
) -> tuple[float | None, list[float]]:
  """Returns (mean, interval) of the values. A value of None counts as 0."""
  values = [value(outcome) or 0.0 for outcome in outcomes]
  return _mean(values), list(
    statistics.interval(values, [outcome.id for outcome in outcomes], samples=samples, seed=seed)
  )


def _metric(
  outcomes: Sequence[Outcome], which: str, name: str, score: bool, samples: int, seed: int
) -> dict[str, Any]:
  """Returns one metric over the samples that have it and errors of the same question types.

  Some metrics apply only to some types. For example, a letter has no F1. If `score` is true, this
  is the main score, and all errors count.
  """
  kind = lambda outcome: outcome.fields.get('question_type')

  def values(outcome: Outcome) -> Mapping[str, float]:
    return getattr(outcome, which) or {}

  has = lambda outcome: name in values(outcome)
  kinds = {kind(o) for o in outcomes if has(o)}
  mine = [o for o in outcomes if has(o) or (o.status == ERROR and (score or kind(o) in kinds))]
  value = lambda outcome: values(outcome).get(name)
  mean, interval = _score(mine, value, samples, seed)
  return {
    'all': mean,
    'interval': interval,
    'answered': _mean([value(o) or 0.0 for o in mine if o.status == ANSWERED]),
  }


def _names(outcomes: Sequence[Outcome], which: str) -> list[str]:
  """Returns the names of the metrics in the outcomes, in order of appearance."""
  return list(
    dict.fromkeys(name for outcome in outcomes for name in (getattr(outcome, which) or {}))
  )


def _breakdowns(outcomes: Sequence[Outcome], samples: int, seed: int) -> dict[str, dict[str, Any]]:
  """Returns {field: {value: counts, score and interval}}, also for the frame budget 'k'.

  Fields with only one value are omitted.
  """
  table: dict[str, dict[str, list[Outcome]]] = {}
  for outcome in outcomes:
    for field, values in (('k', str(outcome.k)), *outcome.fields.items()):
      for value in values.split('; '):
        table.setdefault(field, {}).setdefault(value, []).append(outcome)

  def order(value: str) -> tuple[int, int, str]:
    return (0, int(value), '') if value.isdecimal() else (1, 0, value)

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
    'score_answered': _mean([outcome.score or 0.0 for outcome in answered]),
    'calls_per_sample': _mean([_calls(outcome, True) for outcome in answered]),
  }


def _calls(outcome: Outcome, executed: bool) -> int:
  """Returns how many calls of an episode were executed, or failed if `executed` is false."""
  return sum((result['status'] == 'executed') is executed for result in _results(outcome))


def _forms(outcome: Outcome, well_formed: bool) -> int:
  """Returns how many calls of an episode are well-formed, or are not if `well_formed` is false.

  Only calls with a readable name count. Results without the entry 'well_formed' count as
  well-formed.
  """
  calls = [result.get('call') or {} for result in _results(outcome)]
  return sum(call.get('well_formed', True) is well_formed for call in calls if 'name' in call)


def _results(outcome: Outcome) -> list[dict[str, Any]]:
  turns = outcome.episode['turns'] if outcome.episode else ()
  return [result for turn in turns for result in turn['results']]


def _repeated(episode: Mapping[str, Any]) -> int:
  """Returns how many frames of an episode's overviews and crops were omitted as repeats."""
  results = (result for turn in episode['turns'] for result in turn['results'])
  return sum(seen.get('repeated', 0) for seen in (episode, *episode.get('others', ()), *results))


def _mean(values: Sequence[float]) -> float | None:
  return math.fsum(values) / len(values) if values else None


def compare(
  first: Iterable[Outcome],
  second: Iterable[Outcome],
  metrics: Mapping[str, str],
  keys: Mapping[str, Set[str]],
  *,
  samples: int,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Returns {benchmark: comparison} of two evaluations of the same questions.

  Args:
    first, second: outcomes of the two evaluations.
    metrics: {benchmark: name of its score}. These benchmarks are compared.
    keys: {benchmark: keys that are planned in either evaluation}.
    samples, seed: of the bootstrap, which draws questions with all their budgets.

  Returns:
    For each benchmark:
      metric: name of the score.
      first, second: mean scores over the pairs.
      difference: second minus first, with its interval (low, high).
      only_first, only_second: questions that one side answers right more often.
      p: McNemar's p. right: which score counts as right.
      pairs, unpaired: counts. A pair with an error on either side is unpaired.
      lost, won: changed answers {key, gold, first, second}, sorted by key.

  Raises:
    DataError: the gold answers of a key differ, so the questions differ.
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
      **_paired_difference(pairs, metric, samples, seed),
      'unpaired': unpaired,
    }
  return found


def _paired_difference(
  pairs: Sequence[tuple[Outcome, Outcome]], metric: str, samples: int, seed: int
) -> dict[str, Any]:
  """Returns the comparison of one benchmark's pairs of answered outcomes, as in `compare`."""
  for a, b in pairs:
    if a.gold != b.gold:
      raise DataError(
        f'{a.key}: got the gold answers {a.gold!r} and {b.gold!r}, wanted the same questions in '
        'both folders; evaluate both on one snapshot'
      )
  questions = [a.id for a, _ in pairs]
  before, after = ([pair[side].score or 0.0 for pair in pairs] for side in (0, 1))
  difference, low, high = scoring.paired_bootstrap(
    before, after, clusters=questions, samples=samples, seed=seed
  )
  was_right, is_right = ([_right(pair[side], metric) for pair in pairs] for side in (0, 1))
  test = statistics.mcnemar(was_right, is_right, questions)

  def flips(wanted: tuple[bool, bool]) -> list[dict[str, str]]:
    return [
      {'key': a.key, 'gold': a.gold, 'first': a.answer, 'second': b.answer}
      for (a, b), *sides in zip(pairs, was_right, is_right)
      if tuple(sides) == wanted
    ]

  return {
    'first': _mean(before),
    'second': _mean(after),
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
  return (outcome.score or 0.0) >= (0.5 if metric == 'iou' else 1.0)

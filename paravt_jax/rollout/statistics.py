"""Metrics of rollouts, with the names of metrics/names.py."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from paravt_jax.chat.toolcalls import is_well_formed
from paravt_jax.rollout.groups import count_dropped
from paravt_jax.types import Episode, Group, ResultStatus, Scored, StopReason, ToolCall

REWARD_TERMS = {
  'reward/accuracy': 'accuracy',
  'reward/format': 'format',
  'reward/base': 'base',
  'reward/anchor': 'anchor',
  'reward/tool': 'tool',
  'accuracy': 'accuracy',
  'format_compliance': 'compliant',
}
BY_BUDGET = (
  'reward/total',
  'accuracy',
  'format_compliance',
  'calls/executed',
  'advantage',
  'advantage/abs',
)


def statistics(groups: Sequence[Group], advantage_E: np.ndarray) -> dict[str, float]:
  """Returns metrics of one step's episodes: means per episode, also by frame budget
  ('accuracy/k=4').

  Args:
    groups: the step's groups.
    advantage_E: the group advantage of each of their episodes, in order.

  Returns:
    name -> value. Without episodes, only the counts of dropped rollouts.
  """
  out = {
    f'episodes/dropped/reason={reason}': float(count)
    for reason, count in count_dropped(groups).items()
  }
  scored = [one for group in groups for one in group.scored]
  if not scored:
    return {**out, 'episodes/kept': 0.0}
  rows = [
    _episode(one, float(advantage)) for one, advantage in zip(scored, advantage_E, strict=True)
  ]
  by_budget: dict[int, list[Mapping[str, float]]] = collections.defaultdict(list)
  for one, row in zip(scored, rows):
    by_budget[one.episode.budget].append(row)
  out |= _means(rows)
  for budget, members in sorted(by_budget.items()):
    means = _means(members)
    out |= {f'{name}/k={budget}': means[name] for name in BY_BUDGET}
  lengths = [row['length/sampled'] for row in rows]
  stds = [float(np.std([one.reward for one in group.scored])) for group in groups if group.scored]
  return {
    **out,
    **_failures(scored),
    **_stops(scored),
    'episodes/kept': float(len(scored)),
    'groups/accepted': float(len(stds)),
    'groups/no_signal': float(np.mean([std < 1e-9 for std in stds])),
    'reward/std': float(np.mean(stds)),
    'length/turn_max': float(
      max((n for one in scored for n in _turn_lengths(one.episode)), default=0)
    ),
    'length/context_max': max(row['length/context'] for row in rows),
    'length/turn': float(sum(lengths) / max(sum(len(one.episode.turns) for one in scored), 1)),
  }


def _episode(one: Scored, advantage: float) -> dict[str, float]:
  """The numbers of one episode that are averaged."""
  episode, results = one.episode, one.episode.results
  executed = [result for result in results if result.status is ResultStatus.EXECUTED]
  trajectory = episode.trajectory
  row = {name: float(one.parts[part]) for name, part in REWARD_TERMS.items()}
  return {
    **row,
    'reward/total': one.reward,
    'advantage': advantage,
    'advantage/abs': abs(advantage),
    'calls/parsed': float(sum(is_well_formed(result.call) for result in results)),
    'calls/other': float(
      sum(isinstance(result.call, ToolCall) and not result.call.well_formed for result in results)
    ),
    'calls/executed': float(len(executed)),
    'calls/failed': float(len(results) - len(executed)),
    'calls/episodes_with': float(bool(executed)),
    'turns': float(len(episode.turns)),
    'frames/repeated': float(sum(seen.repeated for seen in (*episode.overviews, *results))),
    'budget': float(episode.budget),
    'truncated/turn': float(any(turn.stop is StopReason.LENGTH for turn in episode.turns)),
    'truncated/context': float(episode.stop is StopReason.CONTEXT),
    'length/sampled': float(sum(_turn_lengths(episode))),
    'length/context': float(
      len(trajectory.ids)
      + sum(image.shape[0] * image.shape[1] // 1024 - 1 for image in trajectory.images)
    ),
  }


def _turn_lengths(episode: Episode) -> list[int]:
  return [len(segment.ids) for segment in episode.trajectory.segments if segment.sampled]


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _failures(scored: Sequence[Scored]) -> dict[str, float]:
  """Calls per episode that did not run, by reason; seconds and tokens of those that did."""
  results = [result for one in scored for result in one.episode.results]
  failed = collections.Counter(
    str(result.status) for result in results if result.status is not ResultStatus.EXECUTED
  )
  out = {
    f'calls/failed/reason={reason}': count / len(scored) for reason, count in sorted(failed.items())
  }
  windows = [
    result.window.end - result.window.start for result in results if result.window is not None
  ]
  written = [
    len(segment.ids)
    for result in results
    if result.subagent is not None
    for segment in result.subagent.segments
    if segment.sampled
  ]
  if windows:
    out['calls/seconds'] = float(np.mean(windows))
  if written:
    out['length/subagent'] = float(np.mean(written))
  return out


def _stops(scored: Sequence[Scored]) -> dict[str, float]:
  """Share of episodes by the reason why they ended."""
  stops = collections.Counter(str(one.episode.stop) for one in scored)
  return {f'stop/reason={reason}': count / len(scored) for reason, count in sorted(stops.items())}

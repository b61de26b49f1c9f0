"""The sentence on top of a report: did the agent learn to crop, and does it pay? Computed from the
evaluations alone.
"""

import dataclasses

from paravt_jax.report.run import Evaluation, Run

CALLS_MOVED = 0.15  # executed calls per episode that count as a change
CALLS_MANY = 0.75  # ... and as a habit


@dataclasses.dataclass(frozen=True)
class Headline:
  """What a run shows, in words."""

  verdict: str  # good | mixed | bad | unknown: the colour of the mark
  title: str  # the answer
  detail: str  # the numbers behind it


def headline(run: Run) -> Headline:
  """Returns the headline of a run from the parts that exist."""
  if run.before is None or run.after is None:
    have = 'before' if run.before else 'after' if run.after else None
    detail = (
      f'Only the evaluation {have} training is there.'
      if have
      else f'{len(run.metrics)} training steps are logged.'
    )
    return Headline('unknown', 'This run cannot be compared yet: an evaluation is missing.', detail)
  low = min(set(run.before.by_k) & set(run.after.by_k), default=None)
  if low is None or None in (run.before.by_k[low].calls, run.after.by_k[low].calls):
    return Headline(
      'unknown',
      f'Accuracy went from {percent(run.before.accuracy)} to {percent(run.after.accuracy)}.',
      'Calls by frame budget are not known, so nothing can be said about cropping.',
    )
  return Headline(
    *_verdict(run.before, run.after, low, run.gain), _detail(run, run.before, run.after, low)
  )


def _verdict(
  before: Evaluation, after: Evaluation, low: int, gain: tuple[float, float, float] | None
) -> tuple[str, str]:
  calls = before.by_k[low].calls or 0.0, after.by_k[low].calls or 0.0
  better, worse = _sides(before, after, gain)
  if calls[1] < CALLS_MANY and calls[0] - calls[1] > CALLS_MOVED:
    return 'bad', 'The agent unlearned to crop: calls collapsed during training.'
  # where it learned to crop: at the smallest budget, or only at one that it began without calls
  newly, everywhere = _newly_cropped(before, after), calls[1] - calls[0] > CALLS_MOVED
  where = '' if everywhere else f' with {newly} frames{" too" if calls[0] >= CALLS_MANY else ""}'
  if everywhere or newly is not None:
    return (
      ('good', f'The agent learned to crop{where}, and it pays.')
      if better
      else (
        ('bad', f'The agent learned to crop{where}, but its answers got worse.')
        if worse
        else ('mixed', f'The agent learned to crop{where}, but accuracy did not clearly move.')
      )
    )
  if calls[1] >= CALLS_MANY:
    return (
      ('good', 'The agent cropped from the start and learned to use what it sees.')
      if better
      else (
        ('bad', 'The agent keeps cropping, but its answers got worse.')
        if worse
        else ('mixed', 'The agent cropped from the start; training changed little.')
      )
    )
  return (
    ('mixed', 'Accuracy rose, but not by cropping.')
    if better
    else ('bad', 'The agent did not learn to crop.')
  )


def _newly_cropped(before: Evaluation, after: Evaluation) -> int | None:
  """Returns the frame budget at which calls rose most from few; None if they rose at none."""
  rise = {}
  for k in set(before.by_k) & set(after.by_k):
    was, now = before.by_k[k].calls, after.by_k[k].calls
    if was is not None and now is not None and was < CALLS_MANY and now - was > CALLS_MOVED:
      rise[k] = now - was
  return max(sorted(rise), key=lambda k: rise[k], default=None)


def _sides(
  before: Evaluation, after: Evaluation, gain: tuple[float, float, float] | None
) -> tuple[bool, bool]:
  """Whether accuracy is clearly better, clearly worse: the paired interval excludes 0, else the two
  intervals are apart.
  """
  if gain is not None:
    return gain[1] > 0, gain[2] < 0
  if before.interval is None or after.interval is None:
    return False, False
  return after.interval[0] > before.interval[1], after.interval[1] < before.interval[0]


def _detail(run: Run, before: Evaluation, after: Evaluation, low: int) -> str:
  was, now = before.by_k[low], after.by_k[low]
  parts = [
    f'With only {low} overview frames it makes {now.calls:.2f} executed calls per episode '
    f'(before: {was.calls:.2f}) and answers {percent(now.accuracy)} right (before: '
    f'{percent(was.accuracy)}).'
  ]
  high = max(set(before.by_k) & set(after.by_k))
  if high != low and after.by_k[high].calls is not None:
    parts.append(
      f'With {high} frames it makes {after.by_k[high].calls:.2f} calls and answers '
      f'{percent(after.by_k[high].accuracy)} right.'
    )
  parts.append(
    f'Over all: {percent(before.accuracy)} → {percent(after.accuracy)}' + gain_text(run) + '.'
  )
  return ' '.join(parts)


def gain_text(run: Run) -> str:
  """', +17.0 points [+12.1, +21.9] on the same questions', or nothing when there are no pairs."""
  if run.gain is None:
    return ''
  mean, low, high = (100 * value for value in run.gain)
  return f', {mean:+.1f} points [{low:+.1f}, {high:+.1f}] on the same questions'


def percent(value: float | None) -> str:
  """0.615 -> '61.5 %'; '–' when unknown."""
  return '–' if value is None else f'{100 * value:.1f} %'


def budgets(*evaluations: Evaluation | None) -> list[int]:
  """Returns all frame budgets of the evaluations, in ascending order."""
  return sorted({k for evaluation in evaluations if evaluation for k in evaluation.by_k})

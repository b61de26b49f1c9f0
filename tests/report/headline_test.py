"""The sentence on top follows from the numbers, in every case."""

import dataclasses

import pytest

from paravt_jax.report.headline import headline, percent
from paravt_jax.report.run import Cell, Evaluation, Run


def _evaluation(accuracy: float, calls: float | None, half: float = 0.03) -> Evaluation:
  low = Cell(accuracy - 0.1, calls, None, 100)
  high = Cell(accuracy + 0.1, 0.1, None, 100)
  return Evaluation(
    200, accuracy, (accuracy - half, accuracy + half), 1.0, calls, {4: low, 64: high}, {}
  )


def _run(before: Evaluation | None, after: Evaluation | None, gain=None) -> Run:
  return Run('r', {}, '', [{'step': 0.0}], [], {}, before, after, gain, {}, ())


@pytest.mark.parametrize(
  ('before', 'after', 'verdict', 'title'),
  [
    ((0.60, 0.4), (0.80, 1.2), 'good', 'The agent learned to crop, and it pays.'),
    (
      (0.60, 0.4),
      (0.61, 1.2),
      'mixed',
      'The agent learned to crop, but accuracy did not clearly move.',
    ),
    ((0.60, 0.4), (0.40, 1.2), 'bad', 'The agent learned to crop, but its answers got worse.'),
    (
      (0.60, 1.1),
      (0.80, 1.1),
      'good',
      'The agent cropped from the start and learned to use what it sees.',
    ),
    (
      (0.60, 1.1),
      (0.60, 1.1),
      'mixed',
      'The agent cropped from the start; training changed little.',
    ),
    ((0.60, 1.1), (0.40, 1.1), 'bad', 'The agent keeps cropping, but its answers got worse.'),
    (
      (0.60, 1.1),
      (0.80, 0.1),
      'bad',
      'The agent unlearned to crop: calls collapsed during training.',
    ),
    ((0.60, 0.1), (0.80, 0.1), 'mixed', 'Accuracy rose, but not by cropping.'),
    ((0.60, 0.1), (0.60, 0.1), 'bad', 'The agent did not learn to crop.'),
  ],
)
def test_the_verdict_follows_from_calls_at_the_smallest_budget_and_from_accuracy(
  before, after, verdict, title
):
  head = headline(_run(_evaluation(*before), _evaluation(*after)))
  assert (head.verdict, head.title) == (verdict, title)


@pytest.mark.parametrize(
  ('accuracy', 'verdict', 'title'),
  [
    (0.80, 'good', 'The agent learned to crop with 64 frames too, and it pays.'),
    (
      0.60,
      'mixed',
      'The agent learned to crop with 64 frames too, but accuracy did not clearly move.',
    ),
    (0.40, 'bad', 'The agent learned to crop with 64 frames too, but its answers got worse.'),
  ],
)
def test_calls_that_began_at_a_larger_budget_are_not_called_a_habit_from_the_start(
  accuracy, verdict, title
):
  before, after = _evaluation(0.60, 1.1), _evaluation(accuracy, 1.1)
  cells = {**after.by_k, 64: dataclasses.replace(after.by_k[64], calls=1.0)}
  head = headline(_run(before, dataclasses.replace(after, by_k=cells)))
  assert (head.verdict, head.title) == (verdict, title)


def test_calls_that_rose_at_a_larger_budget_alone_are_said_of_that_budget():
  before, after = _evaluation(0.60, 0.1), _evaluation(0.80, 0.1)
  cells = {**after.by_k, 64: dataclasses.replace(after.by_k[64], calls=1.0)}
  head = headline(_run(before, dataclasses.replace(after, by_k=cells)))
  assert head.title == 'The agent learned to crop with 64 frames, and it pays.'


def test_a_paired_interval_decides_over_the_two_single_ones():
  pair = _evaluation(0.60, 0.4, half=0.2), _evaluation(0.70, 1.2, half=0.2)
  assert headline(_run(*pair)).verdict == 'mixed'
  assert headline(_run(*pair, gain=(0.10, 0.05, 0.15))).verdict == 'good'
  assert headline(_run(*pair, gain=(0.02, -0.05, 0.09))).verdict == 'mixed'


def test_the_numbers_behind_it_are_given():
  head = headline(_run(_evaluation(0.60, 0.4), _evaluation(0.80, 1.2), (0.2, 0.15, 0.25)))
  assert head.detail == (
    'With only 4 overview frames it makes 1.20 executed calls per episode (before: 0.40) and '
    'answers 70.0 % right '
    '(before: 50.0 %). '
    'With 64 frames it makes 0.10 calls and answers 90.0 % right. '
    'Over all: 60.0 % → 80.0 %, +20.0 points [+15.0, +25.0] on the same questions.'
  )


def test_a_missing_evaluation_is_said_and_not_guessed():
  assert headline(_run(None, None)).detail == '1 training steps are logged.'
  head = headline(_run(_evaluation(0.6, 0.4), None))
  assert (head.verdict, head.detail) == ('unknown', 'Only the evaluation before training is there.')


def test_without_calls_by_budget_nothing_is_said_about_cropping():
  head = headline(_run(_evaluation(0.6, None), _evaluation(0.8, None)))
  assert (head.verdict, head.title) == ('unknown', 'Accuracy went from 60.0 % to 80.0 %.')


def test_percent_of_nothing_is_a_dash():
  assert (percent(0.615), percent(None)) == ('61.5 %', '–')

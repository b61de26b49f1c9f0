"""Intervals against numbers worked out by hand."""

import math

import numpy as np
import pytest

from paravt_jax.eval.scoring import paired_bootstrap, share_interval, wilson


def test_the_order_of_questions_does_not_change_an_interval():
  rng = np.random.default_rng(0)
  values, questions = rng.integers(0, 2, 60).tolist(), [i // 3 for i in range(60)]
  shuffled = rng.permutation(60)
  first = share_interval(values, questions, samples=200, seed=0)
  assert first == share_interval(
    [values[i] for i in shuffled], [questions[i] for i in shuffled], samples=200, seed=0
  )
  assert first[0] < sum(values) / 60 < first[1]


def test_wilson_of_8_in_10():
  # z = 1.96, z2 = 3.8415: centre (.8 + .19207) / 1.38415 = .71675, half 1.96/1.38415 * sqrt(.016 +
  # .0096036) = .22657
  assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)


def test_wilson_stays_inside_0_and_1_and_knows_nothing_without_samples():
  assert wilson(0, 0) == (0.0, 1.0)
  assert wilson(5, 5)[1] == 1.0 and wilson(0, 5)[0] == 0.0


def test_paired_bootstrap_finds_the_difference_and_repeats_itself():
  rng = np.random.default_rng(0)
  before = (rng.random(400) < 0.5).astype(float)
  after = np.maximum(before, rng.random(400) < 0.3)
  first = paired_bootstrap(before, after, clusters=None, samples=2000, seed=3)
  assert first == paired_bootstrap(before, after, clusters=None, samples=2000, seed=3)
  assert first[0] == pytest.approx((after - before).mean())
  # a share p of ones has a standard error of sqrt(p (1 - p) / n)
  error = math.sqrt(first[0] * (1 - first[0]) / 400)
  assert first[2] - first[1] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_answers_of_one_question_are_drawn_together():
  before, after = np.zeros(100), np.repeat([0.0, 1.0], 50)
  clusters = ['a'] * 50 + ['b'] * 50
  alone = paired_bootstrap(before, after, clusters=None, samples=500, seed=0)
  together = paired_bootstrap(before, after, clusters=clusters, samples=500, seed=0)
  assert alone[0] == together[0] == 0.5
  assert alone[2] - alone[1] < 0.25 and together[1:] == (0.0, 1.0)


def test_no_pairs_know_nothing_and_unequal_lengths_are_refused():
  assert paired_bootstrap([], [], clusters=None, samples=10, seed=0)[1:] == (-math.inf, math.inf)
  with pytest.raises(ValueError, match='2 scores before and 1 after'):
    paired_bootstrap([1, 2], [1], clusters=None, samples=10, seed=0)


def test_a_share_over_questions_asked_at_several_budgets_is_as_wide_as_its_questions_allow():
  values, questions = [1.0] * 50 + [0.0] * 50, [f'q{i // 5}' for i in range(100)]
  low, high = share_interval(values, questions, samples=1000, seed=0)
  alone = wilson(50, 100)
  assert high - low > 1.5 * (alone[1] - alone[0]) and low < 0.5 < high
  assert share_interval([1.0] * 10, ['a', 'b'] * 5, samples=10, seed=0) == wilson(2, 2)
  assert share_interval([1.0, 0.0], ['a', 'b'], samples=10, seed=0) == wilson(1, 2)
  assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0

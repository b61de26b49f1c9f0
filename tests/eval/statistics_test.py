"""Intervals and tests, against numbers worked out by hand."""

import pytest

from paravt_jax.eval import scoring, statistics


def test_the_interval_of_a_share_is_wilsons():
  """8 of 10: centre (.8 + .192073) / 1.384146 = .716739, half .2267."""
  low, high = statistics.interval([1.0] * 8 + [0.0] * 2, range(10), samples=100, seed=0)
  assert (low, high) == pytest.approx((0.490162, 0.943318), abs=1e-5)


def test_the_interval_of_any_other_mean_is_a_bootstrap_even_with_one_value_per_question():
  values = [0.0, 0.25, 0.5, 0.75, 1.0] * 8
  got = statistics.interval(values, range(40), samples=500, seed=3)
  assert (
    got == scoring.paired_bootstrap([0.0] * 40, values, clusters=range(40), samples=500, seed=3)[1:]
  )
  assert got[0] < 0.5 < got[1] and got != scoring.wilson(20, 40)


def test_members_of_one_question_are_drawn_together():
  values, names = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], ['a', 'a', 'a', 'b', 'b', 'b']
  assert statistics.interval(values, names, samples=500, seed=0) == (
    0.0,
    1.0,
  )  # two questions: either may be drawn twice


def test_one_question_or_equal_values_never_look_certain():
  """Wilson, 1 of 1: (.2065, 1); .5 of 1: (.0546, .9454); 2 of 2: (.3424, 1)."""
  at = lambda values, names: pytest.approx(
    statistics.interval(values, names, samples=50, seed=0), abs=1e-3
  )
  assert at([1.0, 1.0], 'aa') == (0.2065, 1.0)
  assert at([1.0, 0.0], 'aa') == (0.0546, 0.9454)
  assert at([1.0, 1.0], 'ab') == (0.3424, 1.0)
  low, high = statistics.interval([0.5, 0.5], 'ab', samples=50, seed=0)
  assert low < 0.2 and high > 0.8


def test_nothing_is_known_of_no_values():
  assert statistics.interval([], [], samples=10, seed=0) == (0.0, 1.0)


@pytest.mark.parametrize(
  ('first', 'second', 'wanted'),
  [
    (10, 2, 2 * (1 + 12 + 66) / 2**12),  # 2 P(X <= 2), X ~ Binomial(12, 1/2)
    (0, 5, 2 / 2**5),
    (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 64 is above 1
    (0, 0, 1.0),
  ],
)
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(first, second, wanted):
  got = statistics.mcnemar(
    [True] * first + [False] * second + [True, False],
    [False] * first + [True] * second + [True, False],
    range(first + second + 2),
  )
  assert (got.only_first, got.only_second) == (first, second)
  assert got.p == pytest.approx(wanted)


def test_outcomes_of_other_questions_are_refused():
  with pytest.raises(ValueError, match='got 1 and 2 outcomes'):
    statistics.mcnemar([True], [True, False], 'a')


def test_a_question_put_at_several_budgets_is_one_observation():
  """Ten budgets of one question are not ten coins: p would be .002 if they were."""
  assert statistics.mcnemar([True] * 10, [False] * 10, ['a'] * 10) == statistics.McNemar(1, 0, 1.0)
  both = statistics.mcnemar(
    [True, False, True, True, False], [False, True, False, False, False], ['a', 'a', 'b', 'c', 'c']
  )
  assert both == statistics.McNemar(2, 0, 0.5)  # a: one each

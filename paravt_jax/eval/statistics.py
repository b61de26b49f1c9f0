"""Computes intervals of scores, and tests whether two scores differ.

All functions are pure, and all draws are seeded.
"""

import collections
import dataclasses
import math
from collections.abc import Hashable, Sequence

from paravt_jax.eval import scoring


def interval(
  values: Sequence[float], clusters: Sequence[Hashable], *, samples: int, seed: int
) -> tuple[float, float]:
  """Returns the 95 % interval of a mean of values in [0, 1].

  A share (all values 0 or 1, one value per cluster) gets Wilson's interval. Any other mean gets a
  bootstrap over clusters. With one cluster, or equal values, all bootstrap samples would be equal.
  The result is then Wilson's interval over the clusters, which is wider than that of any mean.

  Args:
    values: one score per sample.
    clusters: the cluster of each value. A bootstrap draws whole clusters, for example a question
      with all its frame budgets.
    samples: number of bootstrap samples.
    seed: seed of the draws.

  Returns:
    (low, high). No values give (0, 1).

  Raises:
    ValueError: the lengths differ.
  """
  if len(values) == 0:
    return 0.0, 1.0
  if len(set(clusters)) == 1:
    return scoring.wilson(sum(values) / len(values), 1)
  if len(set(values)) == 1 or all(value in (0, 1) for value in values):
    return scoring.share_interval(values, clusters, samples=samples, seed=seed)
  _, low, high = scoring.paired_bootstrap(
    [0.0] * len(values), values, clusters=clusters, samples=samples, seed=seed
  )
  return low, high


@dataclasses.dataclass(frozen=True)
class McNemar:
  """Result of McNemar's test of two systems."""

  only_first: int  # questions that the first answers right more often
  only_second: int  # questions that the second answers right more often
  p: float  # two-sided


def mcnemar(
  first: Sequence[bool], second: Sequence[bool], questions: Sequence[Hashable]
) -> McNemar:
  """Tests whether two systems are right equally often (McNemar 1947, exact binomial test).

  A question with several frame budgets is one observation. It counts for the system that is right
  more often. With one budget, the counts are McNemar's discordant pairs.

  Args:
    first, second: whether each system is right, for the same pairs in the same order.
    questions: the question of each pair.

  Returns:
    The counts of the n discordant questions and p = min(1, 2 P(X <= smaller count)) for
    X ~ Binomial(n, 1/2). Without discordant questions, p is 1.

  Raises:
    ValueError: the lengths differ.
  """
  if not len(first) == len(second) == len(questions):
    raise ValueError(
      f'mcnemar: got {len(first)} and {len(second)} outcomes of {len(questions)} questions, '
      'wanted as many of each'
    )
  balance: collections.Counter[Hashable] = collections.Counter()
  for a, b, question in zip(first, second, questions):
    balance[question] += bool(a) - bool(b)
  only_first = sum(count > 0 for count in balance.values())
  only_second = sum(count < 0 for count in balance.values())
  discordant, fewer = only_first + only_second, min(only_first, only_second)
  tail = sum(math.comb(discordant, i) for i in range(fewer + 1))
  return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**discordant))

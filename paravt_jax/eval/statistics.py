"""Intervals of scores, and tests whether two scores differ. Pure functions; every draw is
seeded.
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

  A share (all values 0 or 1, one per cluster) gets Wilson's interval, any other mean a bootstrap
  over clusters. Where a bootstrap could only repeat itself (one cluster, or all values equal), the
  result is Wilson's interval over the clusters. It is wider than that of any mean.

  Args:
    values: a score each.
    clusters: what is drawn together, such as a question that was put at several budgets.
    samples: bootstrap samples.
    seed: of the draws.

  Returns:
    (low, high). No values give (0, 1): nothing is known.

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
  """McNemar's test of two systems."""

  only_first: int  # questions that speak for the first
  only_second: int  # questions that speak for the second
  p: float  # two-sided


def mcnemar(
  first: Sequence[bool], second: Sequence[bool], questions: Sequence[Hashable]
) -> McNemar:
  """Tests whether two systems are right equally often (McNemar 1947, exact by the binomial
  distribution).

  A question that was put several times (at each frame budget) is one observation. It counts for the
  system that is right more often. If each question was put once, this is McNemar's count of
  discordant pairs.

  Args:
    first, second: whether each is right, on the same pairs in the same order.
    questions: the question of each pair.

  Returns:
    The discordant questions and p = min(1, 2 P(X <= min)) for X ~ Binomial(n, 1/2); 1 without
    discordant questions.

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

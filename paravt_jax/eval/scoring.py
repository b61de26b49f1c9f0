"""Computes intervals of scores with NumPy. All draws are seeded."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from paravt_jax import seeds

_Z95 = 1.959963984540054


def wilson(successes: float, count: int, z: float = _Z95) -> tuple[float, float]:
  """Returns the Wilson score interval of a share (Wilson 1927), 95 % by default.

  No samples give (0, 1).
  """
  if count == 0:
    return 0.0, 1.0
  share = successes / count
  centre = (share + z * z / (2 * count)) / (1 + z * z / count)
  half = (
    z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
  )
  return (max(0.0, centre - half) if successes > 0 else 0.0), (
    min(1.0, centre + half) if successes < count else 1.0
  )


def share_interval(
  values: Sequence[float], clusters: Sequence[Hashable], *, samples: int, seed: int
) -> tuple[float, float]:
  """Returns the 95 % interval of a mean of values in [0, 1] with dependence within clusters.

  A cluster is, for example, a question with all its frame budgets. If each cluster has one value,
  or all values are equal, this is Wilson's interval over the clusters. Otherwise it is a bootstrap
  over clusters.
  """
  count = len(set(clusters))
  if count == len(values) or len(set(values)) <= 1:
    return wilson(sum(values) / max(len(values), 1) * count, count)
  _, low, high = paired_bootstrap(
    [0.0] * len(values), values, clusters=clusters, samples=samples, seed=seed
  )
  return low, high


def paired_bootstrap(
  before: Sequence[float],
  after: Sequence[float],
  *,
  clusters: Sequence[Hashable] | None,
  samples: int,
  seed: int,
) -> tuple[float, float, float]:
  """Returns the mean of after - before with its 95 % percentile interval.

  Pairs are resampled (Efron and Tibshirani 1993, chapter 13).

  Args:
    before, after: scores of the same E questions, in the same order.
    clusters: the cluster of each pair. Whole clusters are drawn, for example a question with all
      its frame budgets. None draws single pairs.
    samples: number of bootstrap samples.
    seed: seed of the draws.

  Returns:
    (difference, low, high). No pairs give (nan, -inf, inf).

  Raises:
    ValueError: the lengths differ.
  """
  before_E, after_E = np.asarray(before, np.float64), np.asarray(after, np.float64)
  if before_E.shape != after_E.shape or (clusters is not None and len(clusters) != len(before_E)):
    raise ValueError(
      f'paired_bootstrap: got {len(before_E)} scores before and {len(after_E)} after'
      f'{"" if clusters is None else f" and {len(clusters)} clusters"}, wanted as many of each'
    )
  if len(before_E) == 0:
    return math.nan, -math.inf, math.inf
  # For each cluster: the sum of its differences (totals) and its number of pairs (counts).
  names = {
    name: index
    for index, name in enumerate(
      dict.fromkeys(range(len(before_E)) if clusters is None else clusters)
    )
  }
  index_E = np.asarray(
    [names[name] for name in (range(len(before_E)) if clusters is None else clusters)]
  )
  totals = np.bincount(index_E, weights=after_E - before_E, minlength=len(names))
  counts = np.bincount(index_E, minlength=len(names))
  # Sort the clusters, so that the order of the questions does not change the interval.
  order = np.lexsort((counts, totals))
  totals, counts = totals[order], counts[order]
  # Draw all resamples at once: an array (samples, clusters).
  draws = seeds.rng(seed, 'paired_bootstrap').integers(len(names), size=(samples, len(names)))
  means = totals[draws].sum(axis=1) / counts[draws].sum(axis=1)
  low, high = np.quantile(means, [0.025, 0.975])
  return float((after_E - before_E).mean()), float(low), float(high)

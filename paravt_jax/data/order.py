"""The order in which the rows of a data set are drawn.

It depends only on the seed and can be resumed from one integer.
"""

import functools
from collections.abc import Iterator

import numpy as np

from paravt_jax import seeds
from paravt_jax.errors import ConfigError


class EpochOrder:
  """An endless sequence of items. Every epoch contains each of `size` items once, in a new order.

  `position` (number of items drawn so far) is the whole state. A checkpoint stores it, and setting
  it continues the same sequence.

  Raises:
    ConfigError: the data set is empty.
  """

  def __init__(self, size: int, seed: int, position: int = 0):
    if size < 1:
      raise ConfigError(
        f'epoch order: got a data set of {size} items, wanted at least one; check the data '
        'files and filters'
      )
    self.size = size
    self.position = position
    self._permutation = functools.lru_cache(maxsize=2)(
      lambda epoch: seeds.rng(seed, 'order', epoch).permutation(size).astype(np.int64)
    )

  def at(self, position: int) -> tuple[int, int]:
    """Returns (epoch, item) at a position, without changing the current position."""
    epoch, place = divmod(position, self.size)
    return epoch, int(self._permutation(epoch)[place])

  def take(self, count: int) -> list[tuple[int, int]]:
    """Returns the next `count` pairs (epoch, item) and advances the position."""
    return [next(self) for _ in range(count)]

  def __iter__(self) -> Iterator[tuple[int, int]]:
    return self

  def __next__(self) -> tuple[int, int]:
    pair = self.at(self.position)
    self.position += 1
    return pair

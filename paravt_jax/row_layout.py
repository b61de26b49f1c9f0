"""Chooses the shape of a step's batch by its need, and which trees share a row.

A batch has M micro-batches of R rows with T tokens and N image slots each. R is the recipe's. Each
shape is a compiled program, so there are few of them (`Layouts.ladder`). With two shorter lengths
and eight shapes:

    T                 N    M
    6,144 or 20,480   its share of the recipe's slots    4
    32,768            the recipe's slots                 1, 2, 4, 8, 16 or 32

A step takes the length that pads least and holds its largest tree. A long row is 77 MB of image
slots, so M of long rows follows the need in powers of two. Only the micro-batches in use are run.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np

from paravt_jax import packing
from paravt_jax.options import COUNT, FLAG, Options, each

LENGTH = 128  # blocks of attention kernels: the lengths of shorter rows are multiples of it
# What a micro-batch costs beside its tokens (weights are gathered, gradients added), in tokens of a
# row. It decides between few long rows and many short ones that pad the same.
OVERHEAD = 1024
# Micro-batches of shorter rows. A step that needs more fills long rows well. Room for all four is
# always kept: at 8B it is at most 190 MB a device.
MOST_SHORT = 4
LENGTHS = each(
  f'different multiples of {LENGTH}',
  lambda one: type(one) is int and one > 0 and one % LENGTH == 0,
  differ=True,
)


@dataclasses.dataclass(frozen=True)
class LayoutOptions(Options):
  """How the trees of an RL step are laid out in rows."""

  # shorter lengths than train.row_tokens that the rows of a step may have; (): none
  row_lengths: Annotated[tuple[int, ...], LENGTHS]
  # trees are spread evenly over the rows of all micro-batches; else the first rows are filled first
  spread: Annotated[bool, FLAG]
  shapes: Annotated[int, COUNT]  # of batches, at most: one program each; 1: always the full shape

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.shapes <= len(self.row_lengths):
      self.refuse('shapes', f'at least {1 + len(self.row_lengths)}, one for each length of a row')

  @classmethod
  def published(cls) -> 'LayoutOptions':
    """The lengths that fill four kinds of step to .81 and more (tests/row_layout_test.py)."""
    return cls(row_lengths=(6144, 20480), spread=True, shapes=8)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a batch that a program is compiled for."""

  row_tokens: int  # T
  row_images: int  # N
  micro_batches: int  # M


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of a batch, and the trees of its rows."""

  shape: Shape
  # slots that the host allocates: those of the fullest row, rounded up to a power of two
  host_images: int
  bins: tuple[tuple[int, ...], ...]  # of each row in use, one micro-batch after the other: trees


def round_up(need: int, most: int) -> int:
  """Returns the least power of two that is not below `need`, at most `most`; 0 for no need."""
  return min(1 << (need - 1).bit_length(), most) if need > 0 else 0


def slots(need: int, most: int, shapes: int) -> int:
  """Returns how many slots to allocate for `need` of at most `most`.

  They are 0 or a power of two, so that there are at most `shapes` different results. 1: always
  `most`.
  """
  # the largest powers come first; 0 is a shape of its own
  rungs = sorted({0, *(round_up(1 << power, most) for power in range(most.bit_length() + 1))})
  return min(rung for rung in rungs[-shapes:] if rung >= need)


# by length of a row: micro-batches, and the image slots of the fullest row
Needs = dict[int, tuple[int, int]]


class Layouts:
  """Lays out the trees of a step. A layout depends on the step alone, not on those before it."""

  def __init__(self, options: LayoutOptions, full: Shape, rows: int):
    """Prepares the shapes.

    Args:
      options: lengths, and how many shapes.
      full: the largest shape, which the recipe states.
      rows: R, rows of a micro-batch.
    """
    self._options, self._full, self.rows = options, full, rows
    # a shorter row has its share of the slots
    self._short = [
      Shape(
        tokens,
        -(-full.row_images * tokens // full.row_tokens),
        min(MOST_SHORT, full.micro_batches),
      )
      for tokens in sorted(options.row_lengths)
    ]
    # long rows: the largest powers of two, as many as there are places
    counts = sorted({round_up(1 << n, full.micro_batches) for n in range(32)})
    places = options.shapes - len(self._short)
    self._long = [dataclasses.replace(full, micro_batches=count) for count in counts[-places:]]

  @property
  def ladder(self) -> tuple[Shape, ...]:
    """The shapes of all batches, shortest rows first: at most `options.shapes`."""
    return (*self._short, *self._long)

  def choose(
    self,
    sizes: Sequence[tuple[int, int]],
    loads: Sequence[int],
    exchange: Callable[[Needs], Sequence[Needs]] = lambda own: (own,),
  ) -> Layout:
    """Returns the layout of a step's trees.

    A step that needs more micro-batches than the recipe states gets them: their number doubles,
    and each doubling is one more shape.

    Args:
      sizes: tokens and images of each tree.
      loads: tokens of each tree that are scored; rows get an even share where they can.
      exchange: what this host needs -> what each host needs. They take one shape together, and
        rows that a host has no trees for are empty.

    Raises:
      DataError: a tree is larger than the longest row.
    """
    found = {shape.row_tokens: (shape, bins) for shape, bins in self._candidates(sizes, loads)}
    own = {
      length: (shape.micro_batches, _most_images(sizes, bins))
      for length, (shape, bins) in found.items()
    }
    everyone = exchange(own)
    # a length must do for all hosts, and the host that needs most decides
    shared = {
      length: tuple(map(max, *(needs[length] for needs in everyone), (0, 0)))
      for length in own
      if all(length in needs for needs in everyone)
    }
    candidates = [
      (dataclasses.replace(found[length][0], micro_batches=used), found[length][1])
      for length, (used, _) in shared.items()
    ]
    shape, bins = min(candidates, key=self._cost)
    images = shared[shape.row_tokens][1]
    host_images = min(round_up(max(images, 1), shape.row_images), shape.row_images)
    if len(everyone) > 1:
      bins = [*bins, *[[]] * (shape.micro_batches * self.rows - len(bins))]
    return Layout(self._rung(shape), host_images, tuple(map(tuple, bins)))

  def _rung(self, shape: Shape) -> Shape:
    """Returns the smallest shape with room for the micro-batches of `shape`."""
    used = shape.micro_batches
    for rung in self.ladder:
      if rung.row_tokens == shape.row_tokens and rung.micro_batches >= used:
        return rung
    most = self._full.micro_batches
    while most < used:
      most *= 2
    return dataclasses.replace(self._full, micro_batches=most)

  def _candidates(
    self, sizes: Sequence[tuple[int, int]], loads: Sequence[int]
  ) -> Iterator[tuple[Shape, list[list[int]]]]:
    """Yields (shape in use, bins) by length, shortest first; a length that does not do is left
    out.
    """
    for length in (*self._short, self._full):
      capacity = (length.row_tokens, length.row_images)
      fits = all(taken <= most for size in sizes for taken, most in zip(size, capacity))
      if not fits and length is not self._full:
        continue
      bins = self._bins(sizes, loads, capacity)
      used = max(1, -(-len(bins) // self.rows))
      if used <= length.micro_batches or length is self._full:
        yield dataclasses.replace(length, micro_batches=used), bins

  def _bins(
    self, sizes: Sequence[tuple[int, int]], loads: Sequence[int], capacity: tuple[int, int]
  ) -> list[list[int]]:
    """Returns the trees of each row, in as few micro-batches as possible."""
    fitted = packing.first_fit_decreasing(sizes, capacity)
    if not self._options.spread or not sizes:
      return fitted
    # as many rows as the totals need at least; first fit shows how many suffice
    totals = np.sum(np.asarray(sizes, np.int64), axis=0)
    needed = max(-(-int(total) // max(most, 1)) for total, most in zip(totals, capacity))
    for used in range(max(1, -(-needed // self.rows)), -(-len(fitted) // self.rows) + 1):
      found = spread(sizes, loads, used * self.rows, capacity)
      if found is not None:
        return found
    return fitted

  def _cost(self, candidate: tuple[Shape, list[list[int]]]) -> int:
    """Returns the tokens that a row of each micro-batch computes, with its overhead."""
    shape, _ = candidate
    return shape.micro_batches * (shape.row_tokens + OVERHEAD)


def _most_images(sizes: Sequence[tuple[int, int]], bins: Sequence[Sequence[int]]) -> int:
  return max((sum(sizes[tree][1] for tree in members) for members in bins), default=0)


def spread(
  sizes: Sequence[tuple[int, ...]],
  loads: Sequence[int],
  bins: int,
  capacity: tuple[int, ...],
) -> list[list[int]] | None:
  """Spreads items over a number of bins so that all bins are about equally full.

  Largest items come first. Each goes to the bin that has least of what the item has most of, in
  tokens, images and load. This may fail where first fit succeeds: then the bins are nearly full.

  Args:
    sizes: what an item takes of a bin's capacity, in each dimension.
    loads: a further size of each item, without a capacity.
    bins: the number of bins.
    capacity: of a bin, in each dimension.

  Returns:
    The items of each bin in ascending order, or None if an item finds no bin.
  """
  # [items, dimensions]; in `share` the load is the last one, and each dimension sums to 1
  taken = np.asarray(sizes, np.int64).reshape(len(sizes), len(capacity))
  share = np.column_stack([taken, np.asarray(loads, np.int64)]).astype(np.float64)
  share /= np.maximum(share.sum(axis=0), 1)
  # [bins, dimensions]
  free = np.tile(np.asarray(capacity, np.int64), (bins, 1))
  filled = np.zeros((bins, share.shape[1]))
  members: list[list[int]] = [[] for _ in range(bins)]
  for item in sorted(range(len(sizes)), key=lambda i: (-share[i].max(), i)):
    fits = (free >= taken[item]).all(axis=1)
    if not fits.any():
      return None
    place = int(np.where(fits, filled @ share[item], np.inf).argmin())
    members[place].append(item)
    free[place] -= taken[item]
    filled[place] += share[item]
  return [sorted(one) for one in members]

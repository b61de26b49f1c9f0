"""Chooses the rows of each batch from their lengths.

The plan is the same on every host and exactly resumable.

  draws   (source, row) pairs, a function of (seed, number of the draw): sources by weight, each with a new order per epoch
  plan    draws that together fill the rows of one batch; draws that do not fit wait and go first in the next batch

The state is a small dict: the number of draws, the waiting draws, the counts of broken rows, and
the identity of the data files.
"""

import collections
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paravt_jax import packing, seeds
from paravt_jax.data.conversations import Conversation
from paravt_jax.data.lengths import NO_TARGET, Lengths, Size
from paravt_jax.errors import DataError

TOO_LONG, TOO_MANY_IMAGES, MISJUDGED = 'too_long', 'too_many_images', 'misjudged'
NOT_BAD = (TOO_LONG, TOO_MANY_IMAGES, NO_TARGET, MISJUDGED)  # dropped, but the data are not broken
JUDGED = 100  # rows before the share of bad rows is checked

Item = tuple[str, int]  # (source, row)
_Draw = tuple[int, Item, tuple[int, int, int]]  # (age: 0 has waited longest, item, size)


@dataclasses.dataclass(frozen=True)
class Source:
  """Conversations that are drawn together in the batches first <= step < last."""

  name: str
  conversations: Sequence[Conversation]
  weight: float  # share of the draws
  first: int
  last: int | None  # None: no end
  # (file name, digest) of the data files; a run resumes only with the same files
  identity: tuple[tuple[str, str], ...] = ()

  def active(self, step: int) -> bool:
    """Returns whether the source is drawn from in batch `step`."""
    return self.first <= step and (self.last is None or step < self.last)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
  """How the draws of a batch are chosen."""

  bins: int  # rows of a batch, on all hosts
  capacity: tuple[int, int, int]  # tokens, frame slots, slots of large images of a row
  lookahead: int  # draws that may wait for the next batch; more draws fill rows better
  refill: bool  # rows are then topped up with the best two waiting draws
  max_bad_share: float  # share of broken rows among the draws above which the run ends


@dataclasses.dataclass(frozen=True)
class Plan:
  """The rows of one batch."""

  items: tuple[Item, ...]  # the (source, row) pairs
  # for each row of the batch, indices into items; rows after the last bin are empty
  bins: tuple[tuple[int, ...], ...]
  # for each item: tokens, frame slots, slots of large images
  sizes: tuple[tuple[int, int, int], ...]
  dropped: Mapping[str, int]  # draws left out, by reason
  examples: Mapping[str, str]  # a line for each reason

  @property
  def digest(self) -> int:
    """Returns a 63-bit digest of the plan: the data rows in each row of the batch."""
    return seeds.at(0, 'plan', repr(self.items), repr(self.bins))

  @property
  def tokens(self) -> int:
    """Returns the planned tokens of all rows on all hosts."""
    return sum(size[0] for size in self.sizes)


class _Draws:
  """The endless sequence of draws; `drawn` and `positions` are its state."""

  def __init__(self, sources: Mapping[str, Source], seed: int):
    self._sources, self._seed = sources, seed
    self._orders: dict[tuple[str, int], np.ndarray] = {}
    self.drawn = 0
    self.positions = dict.fromkeys(sources, 0)

  def next(self, step: int) -> Item:
    """Returns the next draw of batch `step`: a source by weight, then its next row.

    Raises:
      DataError: no source has rows at this step.
    """
    active = [
      s for s in self._sources.values() if s.active(step) and s.weight > 0 and len(s.conversations)
    ]
    if not active:
      raise DataError(
        f'SFT data: no source has rows at step {step}; give one a weight, or let it last longer'
      )
    # choose a source: a number in [0, sum of weights) by seed and draw number
    weights = np.cumsum([source.weight for source in active])
    spot = seeds.at(self._seed, 'mix', self.drawn) / 2**63 * weights[-1]
    source = active[int(np.searchsorted(weights, spot, side='right'))]
    # the source's next row, in the order of its current epoch
    epoch, offset = divmod(self.positions[source.name], len(source.conversations))
    self.positions[source.name] += 1
    self.drawn += 1
    return source.name, int(self._order(source, epoch)[offset])

  def follow(self, other: '_Draws') -> None:
    """Copies the position of another sequence with the same sources and seed."""
    self.drawn, self.positions = other.drawn, dict(other.positions)

  def _order(self, source: Source, epoch: int) -> np.ndarray:
    key = source.name, epoch
    if key not in self._orders:
      self._orders = {
        k: v for k, v in self._orders.items() if k[0] != source.name or k[1] == epoch - 1
      }
      self._orders[key] = seeds.rng(self._seed, 'order', source.name, epoch).permutation(
        len(source.conversations)
      )
    return self._orders[key]


class Planner:
  """Chooses the draws of each batch.

  Args:
    sources: the draws depend on their order.
    lengths: row sizes by source name.
    options: how a batch is filled.
    seed: of the draws and orders.
  """

  def __init__(
    self, sources: Sequence[Source], lengths: Mapping[str, Lengths], options: PlanOptions, seed: int
  ):
    self._sources = {source.name: source for source in sources}
    self._lengths, self._options = lengths, options
    self._draws, self._ahead = _Draws(self._sources, seed), _Draws(self._sources, seed)
    self._ahead_step = 0
    self.step = 0
    self.waiting: list[Item] = []
    self.bad: collections.Counter[str] = collections.Counter()

  def plan(self) -> Plan:
    """Returns the plan of the next batch.

    Draws are tried in order, waiting draws first. Each goes into the first row with enough space. A
    draw that fits no row waits, until more than `lookahead` draws wait. The first draw always fits,
    so no draw waits forever.

    Raises:
      DataError: no source is active, every row is dropped, or too many are broken.
    """
    options = self._options
    found, left, dropped, examples = self._first_fit()
    # packing from the longest on may need one more row; then the newest draws wait
    while (
      len(bins := packing.first_fit_decreasing([size for _, _, size in found], options.capacity))
      > options.bins
    ):
      left.insert(0, found.pop())
    # fill the rows further with waiting draws
    if options.refill:
      bins = bins + [[] for _ in range(options.bins - len(bins))]
      found, bins, left = _refill(found, bins, left, options.capacity)
    self.waiting = [*(item for _, item, _ in left), *self.waiting]
    self.step += 1
    self._refuse_bad(examples)
    return Plan(
      tuple(item for _, item, _ in found),
      tuple(map(tuple, bins)),
      tuple(size for _, _, size in found),
      dict(dropped),
      examples,
    )

  def _first_fit(self) -> 'tuple[list[_Draw], list[_Draw], collections.Counter, dict[str, str]]':
    """Returns (draws that fit, draws that must wait, dropped by reason, examples).

    Draws that were not tried stay in `waiting`.
    """
    free = [self._options.capacity] * self._options.bins
    fitting: list[_Draw] = []
    left: list[_Draw] = []
    dropped: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    queue, age = collections.deque(self.waiting), 0
    while len(left) <= self._options.lookahead:
      item = queue.popleft() if queue else self._draw()
      size, reason, fault = self._size(item)
      if reason:
        dropped[reason] += 1
        examples.setdefault(
          reason, f'{item[0]}\t{self._lengths[item[0]].name(item[1])}\t{reason}\t{fault}'
        )
        self._give_up(dropped)
        if reason not in NOT_BAD:
          self.bad[reason] += 1
          self._refuse_bad(examples)
        continue
      place = next(
        (b for b, free_size in enumerate(free) if all(map(operator.ge, free_size, size))), None
      )
      if place is None:
        left.append((age, item, size))
      else:
        tokens, images, large_images = map(operator.sub, free[place], size)
        free[place] = (tokens, images, large_images)
        fitting.append((age, item, size))
      age += 1
    self.waiting = list(queue)
    return fitting, left, dropped, examples

  def _draw(self) -> Item:
    if self._ahead.drawn - self._draws.drawn < max(self._options.lookahead, self._options.bins):
      self._measure_ahead()
    return self._draws.next(self.step)

  def _measure_ahead(self) -> None:
    """Starts to measure the rows of the next draws, as many as one batch may need.

    After a change of active sources the predicted draws may differ from the real ones.
    """
    active = lambda step: [source.active(step) for source in self._sources.values()]
    if self._ahead.drawn < self._draws.drawn or active(self._ahead_step) != active(self.step):
      self._ahead.follow(self._draws)
    self._ahead_step = self.step
    rows = collections.defaultdict(list)
    for _ in range(self._options.lookahead + 4 * self._options.bins):
      name, row = self._ahead.next(self.step)
      rows[name].append(row)
    for name, numbers in rows.items():
      self._lengths[name].ask(numbers)

  def _size(self, item: Item) -> tuple[tuple[int, int, int], str, str]:
    """Returns (size, reason to drop the row or '', error message) of a row."""
    found: Size = self._lengths[item[0]].size(item[1])
    size, capacity = (found.tokens, found.frames, found.large_images), self._options.capacity
    if found.reason:
      return size, found.reason, found.fault
    if size[0] > capacity[0]:
      return size, TOO_LONG, f'{size[0]} tokens, a row holds {capacity[0]}'
    if size[1] > capacity[1] or size[2] > capacity[2]:
      return (
        size,
        TOO_MANY_IMAGES,
        f'{size[1]} frames and {size[2]} large images, a row holds {capacity[1]} and {capacity[2]}',
      )
    return size, '', ''

  def _give_up(self, dropped: collections.Counter) -> None:
    """Raises DataError when every drawn row is dropped."""
    total = sum(len(source.conversations) for source in self._sources.values())
    if dropped.total() > 2 * total + JUDGED:
      raise DataError(
        f'SFT data: every row drawn was dropped ({dict(dropped)}), wanted some that fit; raise '
        'row_tokens or row_images, or check the media root'
      )

  def _refuse_bad(self, examples: Mapping[str, str]) -> None:
    """Raises DataError when too large a share of all draws so far was broken."""
    drawn, bad = self._draws.drawn, self.bad.total()
    if drawn >= JUDGED and bad > self._options.max_bad_share * drawn:
      raise too_many_bad(bad, drawn, self.bad, self._options.max_bad_share, examples)

  def get_state(self) -> dict[str, Any]:
    """Returns the state as plain numbers and lists."""
    return {
      'step': self.step,
      'drawn': self._draws.drawn,
      'positions': dict(self._draws.positions),
      'waiting': [list(item) for item in self.waiting],
      'bad': dict(self.bad),
      'sources': [
        [name, [list(file) for file in source.identity]] for name, source in self._sources.items()
      ],
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Resumes from `state`.

    Raises:
      DataError: the state is of other sources or other files.
    """
    if 'sources' not in state:
      raise DataError(
        'SFT data: the checkpoint does not say what it was drawn from (an older version '
        'wrote it); start a new run'
      )
    before = {name: [tuple(file) for file in files] for name, files in state['sources']}
    if list(before) != list(self._sources):
      raise DataError(
        f'SFT data: the checkpoint has sources {list(before)}, wanted {list(self._sources)} in '
        'this order; use the same recipe, or start a new run'
      )
    for name, source in self._sources.items():
      _refuse_other_files(name, before[name], list(source.identity))
    self.step = int(state['step'])
    self._draws.drawn = int(state['drawn'])
    self._draws.positions = {name: int(state['positions'][name]) for name in self._sources}
    self._ahead.follow(self._draws)
    self.waiting = [(name, int(row)) for name, row in state['waiting']]
    self.bad = collections.Counter({reason: int(count) for reason, count in state['bad'].items()})


def _refill(
  found: list[_Draw], bins: list[list[int]], left: list[_Draw], capacity: tuple[int, ...]
) -> tuple[list[_Draw], list[list[int]], list[_Draw]]:
  """Exchanges draws between rows and the waiting list to fill the rows better.

  Each row returns its newest draws (two at most, never its oldest), then takes the best one or two
  waiting draws. No row becomes emptier, because its own two draws are among the candidates.

  Returns:
    (draws, rows as indices into them, waiting draws in order of age).
  """
  # the draws of each row, oldest first
  rows = [sorted(found[i] for i in members) for members in bins]
  waiting = list(left)
  for row in rows:
    kept = max(1, len(row) - 2) if row else 0
    waiting += row[kept:]
    del row[kept:]
    waiting.sort(key=operator.itemgetter(0))
    free_size = np.array(capacity) - sum(
      (np.array(size) for _, _, size in row), np.zeros(len(capacity), np.int64)
    )
    picked = _best_two(
      free_size, np.array([size for _, _, size in waiting], np.int64).reshape(-1, len(capacity))
    )
    row += [waiting[i] for i in picked]
    waiting = [draw for i, draw in enumerate(waiting) if i not in picked]
  # rows as indices into all draws, one row after the other
  firsts = np.cumsum([0, *map(len, rows)]).tolist()
  whole = [list(range(first, first + len(row))) for first, row in zip(firsts, rows) if row]
  return [draw for row in rows for draw in row], whole, waiting


def _best_two(free_size: np.ndarray, sizes: np.ndarray) -> tuple[int, ...]:
  """Returns the indices of the one or two sizes [n, 3] that fill `free_size` [3] best in tokens.

  Ties go to the first; () when no size fits.
  """
  places = np.flatnonzero((sizes <= free_size).all(1))
  if not len(places):
    return ()
  # sums [m, m, 3] of all pairs of the m sizes that fit alone
  sizes = sizes[places]
  both = sizes[:, None] + sizes[None]
  both[np.arange(len(places)), np.arange(len(places))] = sizes  # the diagonal: one size alone
  # tokens [m, m] of the pairs that fit; argmax takes the first of equal maxima
  tokens = np.where((both <= free_size).all(2), both[..., 0], -1)
  one, other = divmod(int(tokens.argmax()), len(places))
  return tuple(sorted({int(places[one]), int(places[other])}))


def too_many_bad(
  bad: int, drawn: int, reasons: Mapping[str, int], share: float, examples: Mapping[str, str]
) -> DataError:
  """Returns the error for data with too large a share of broken rows."""
  words = ', '.join(f'{reason} {count}' for reason, count in reasons.items())
  example = ' '.join(next(iter(examples.values()), '').split('\t'))
  return DataError(
    f'SFT data: {bad} of {drawn} rows drawn are broken '
    f'({words}{"; such as " * bool(example)}{example}), wanted a share of at most {share:g}; '
    'fix the data (skipped_rows.txt has an example of each reason), or raise data.max_bad_share'
  )


def _refuse_other_files(
  name: str, before: list[tuple[str, str]], now: list[tuple[str, str]]
) -> None:
  """Raises DataError when a source's files differ from those of the checkpoint.

  With other files, the row numbers would refer to other rows.
  """
  if before == now:
    return
  old, new = dict(before), dict(now)
  words = [f'{file} is new' for file in new if file not in old] + [
    f'{file} is gone' for file in old if file not in new
  ]
  words += [f'{file} has changed' for file in new if file in old and new[file] != old[file]]
  raise DataError(
    f'SFT data: source {name!r} is not what the checkpoint was drawn from '
    f'({"; ".join(words) or "another order"}), wanted '
    'the same files; put them back, or start a new run'
  )

"""Which rows make up each batch, decided on lengths alone; the same on every host, and exactly
resumable.

  draws   (source, row) pairs, a function of (seed, number of the draw): sources by weight, each in an order of its own per epoch
  plan    draws that together fill the rows of one batch; what does not fit waits, and goes first in the next one

The state is a small dict: what was drawn, what waits, what was refused, and which files it was
drawn from.
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
NOT_BAD = (TOO_LONG, TOO_MANY_IMAGES, NO_TARGET, MISJUDGED)  # dropped, but no fault of the data's
JUDGED = 100  # rows after which a share of bad ones says something

Item = tuple[str, int]  # (source, row)
_Draw = tuple[int, Item, tuple[int, int, int]]  # (age: 0 has waited longest, item, size)


@dataclasses.dataclass(frozen=True)
class Source:
  """Conversations that are drawn together in the batches first <= step < last."""

  name: str
  conversations: Sequence[Conversation]
  weight: float  # share of the draws
  first: int
  last: int | None  # None: for ever
  # (file name, digest) of what they are read from; a run goes on with the same only
  identity: tuple[tuple[str, str], ...] = ()

  def active(self, step: int) -> bool:
    """Whether it takes part in batch `step`."""
    return self.first <= step and (self.last is None or step < self.last)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
  """bins: rows of a batch, on all hosts. capacity: (tokens, frame slots, slots of large images) of
  a row.

  lookahead: draws that may wait for the next batch; more fill rows better. refill: whether rows are
  then filled with the best two of those that wait. max_bad_share: of the draws, above which broken
  rows end the run.
  """

  bins: int
  capacity: tuple[int, int, int]
  lookahead: int
  refill: bool
  max_bad_share: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """One batch."""

  items: tuple[Item, ...]  # its rows of data
  # of each row of the batch: indices into items; rows beyond the last bin are empty
  bins: tuple[tuple[int, ...], ...]
  # of each item: tokens, frame slots, slots of large images
  sizes: tuple[tuple[int, int, int], ...]
  dropped: Mapping[str, int]  # draws left out, by reason
  examples: Mapping[str, str]  # a line for each reason

  @property
  def digest(self) -> int:
    """A number of 63 bits that names the plan: which rows of data lie in which rows of the
    batch.
    """
    return seeds.at(0, 'plan', repr(self.items), repr(self.bins))

  @property
  def tokens(self) -> int:
    """Tokens of all rows on all hosts, as planned."""
    return sum(size[0] for size in self.sizes)


class _Draws:
  """The endless sequence of draws; `drawn` and `positions` are its state."""

  def __init__(self, sources: Mapping[str, Source], seed: int):
    self._sources, self._seed = sources, seed
    self._orders: dict[tuple[str, int], np.ndarray] = {}
    self.drawn = 0
    self.positions = dict.fromkeys(sources, 0)

  def next(self, step: int) -> Item:
    """The next draw of batch `step`: a source by weight, then its next row in this epoch's order.
    Raises DataError.
    """
    active = [
      s for s in self._sources.values() if s.active(step) and s.weight > 0 and len(s.conversations)
    ]
    if not active:
      raise DataError(
        f'SFT data: no source has rows at step {step}; give one a weight, or let it last longer'
      )
    weights = np.cumsum([source.weight for source in active])
    spot = seeds.at(self._seed, 'mix', self.drawn) / 2**63 * weights[-1]
    source = active[int(np.searchsorted(weights, spot, side='right'))]
    epoch, offset = divmod(self.positions[source.name], len(source.conversations))
    self.positions[source.name] += 1
    self.drawn += 1
    return source.name, int(self._order(source, epoch)[offset])

  def follow(self, other: '_Draws') -> None:
    """Goes to where another sequence of the same sources and seed is."""
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
    sources: in an order that is part of what the draws are a function of.
    lengths: by source. seed: of the draws and orders.
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
    """The next batch.

    Every draw is tried in turn, those that waited first, each in the first row that holds it; what
    fits nowhere waits, until `lookahead` draws do. The first one tried always goes in, so that
    nothing waits for ever.

    Raises:
      DataError: no source is active, every row is dropped, or too many are broken.
    """
    options = self._options
    found, left, dropped, examples = self._first_fit()
    # packed from the longest on, they may need one row more; the youngest then wait
    while (
      len(bins := packing.first_fit_decreasing([size for _, _, size in found], options.capacity))
      > options.bins
    ):
      left.insert(0, found.pop())
    # fuller rows, from what waits
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
    """(draws that fit, draws that must wait, dropped by reason, examples); what was not looked at
    stays in `waiting`.
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
    """Lets the rows of the next draws be measured, as many as one batch may need. Only a guess
    across a change of sources.
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
    """(size, reason to drop it or '', the reason in words) of a row."""
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
    """Raises DataError when nothing but dropped rows comes."""
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
    """Plain numbers and lists."""
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
    """Goes on where `state` was taken. Raises DataError when it is of other sources or other
    files.
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
  """Fuller rows: each gives back its youngest draws, two at most and never its oldest, and takes
  the best two that wait.

  No row gets emptier, for its own two are among those that wait. Returns what
  `_first_fit_decreasing` had: draws, rows, and the rest in order of age.
  """
  # of each row the oldest draw first
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
  """Indices of the one or two sizes [n, 3] that fill a room [3] best in tokens; of equals the
  first. () when none fits.
  """
  places = np.flatnonzero((sizes <= free_size).all(1))
  if not len(places):
    return ()
  # every pair at once: sums [m, m, 3] of the m that fit alone
  sizes = sizes[places]
  both = sizes[:, None] + sizes[None]
  both[np.arange(len(places)), np.arange(len(places))] = sizes  # with itself: alone
  # most tokens among the pairs that fit; argmax takes the first of equals
  tokens = np.where((both <= free_size).all(2), both[..., 0], -1)
  one, other = divmod(int(tokens.argmax()), len(places))
  return tuple(sorted({int(places[one]), int(places[other])}))


def too_many_bad(
  bad: int, drawn: int, reasons: Mapping[str, int], share: float, examples: Mapping[str, str]
) -> DataError:
  """The refusal of data of which too large a share is broken."""
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
  """Raises DataError when a source's files are not those of the checkpoint: row numbers would mean
  other rows.
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

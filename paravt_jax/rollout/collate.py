"""Packs groups of episodes into the learner's rows.

A group becomes one tree. Its prompt is the shared prefix, and each rollout is a suffix. A
sub-agent's trajectory is a separate document. Only sampled tokens are trained. Given tokens
(prompts, pinned prefixes, results, closings) have mask 0:

    prefix (given)     | turn 1 (sampled) | results, header, pinned prefix (given) | turn 2 (sampled)
    mask  0 0 0 0 0 0  | 1 1 1 1 1        | 0 0 0 0 0 0 0 0                        | 1 1 1 1
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from paravt_jax import packing, row_layout
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.types import Episode, Group, Segment, Trajectory

EXTRAS = {
  'mask': np.float32,
  'advantage': np.float32,
  'behavior': np.float32,
  'token_class': np.int32,
  'version': np.int32,
}
SUBAGENT_CREDIT = ('episode', 'off')


@dataclasses.dataclass(frozen=True)
class CollateOptions:
  """Sizes of the learner's rows, and the credit of sub-agents."""

  row_tokens: int  # T, tokens of a row with images expanded
  row_images: int  # image slots of a row
  image_patches: int  # patches of an image slot
  # Allowed numbers of rows, ascending, or multiples of the last; few shapes mean few compilations.
  row_counts: tuple[int, ...]
  # 'episode' trains sub-agents on their episode's advantage; 'off' skips them, as the release does.
  subagent_credit: str


@dataclasses.dataclass(frozen=True)
class Batch:
  """The training data of one step."""

  packed: packing.Packed  # rows whose extras are `EXTRAS`
  counters: dict[str, float]  # sums over the batch, by name; see `collate`


def collate(
  groups: Sequence[Group],
  advantage_E: np.ndarray,
  *,
  options: CollateOptions,
  image_id: int,
  version: int,
) -> Batch:
  """Packs the episodes of a step.

  Args:
    groups: the collected groups. Groups and episodes keep this order, regardless of when they
      finished.
    advantage_E: the group advantage of each episode, over `group.scored` of all groups in order.
    options: sizes and credit.
    image_id: the image placeholder.
    version: the learner's weight version, for staleness.

  Returns:
    A batch. Extras: mask 1 on trained tokens; advantage and behavior (log-probs at sampling),
    token_class, version, current (1 if `version` sampled it) on them, else 0. Counters: episodes,
    subagents, trees, images, trained_tokens (of them subagent_tokens), given_tokens,
    dropped_episodes and dropped_subagents (which do not fit a row), staleness_sum (over trained
    tokens), staleness_max. Without groups, all rows are padding.

  Raises:
    ConfigError: an unknown subagent_credit.
    DataError: advantages do not match the episodes, or a group's prefixes differ.
  """
  trees, counters = _trees(groups, advantage_E, options)
  packed = _pack(trees, options, image_id)
  packed.extras['current'] = _current(packed, version)
  return Batch(packed, _count_tokens(trees, counters, version))


@dataclasses.dataclass(frozen=True)
class MicroBatches:
  """The training data of one step, whose arrays are written one micro-batch at a time.

  So the host holds two of them at most: one that goes to the devices while the next is written.
  """

  layout: row_layout.Layout
  rows: int  # R, rows of a micro-batch
  counters: dict[str, float]  # as in `Batch`
  _trees: tuple[packing.Tree, ...]
  _image_patches: int
  _image_id: int
  _version: int

  @property
  def used(self) -> int:
    """Number of micro-batches, at least 1. Without groups it is one of padding."""
    return max(1, -(-len(self.layout.bins) // self.rows))

  @property
  def fill(self) -> float:
    """Share of the rows' tokens that are not padding."""
    tokens = self.counters['trained_tokens'] + self.counters['given_tokens']
    return tokens / (self.used * self.rows * self.layout.shape.row_tokens)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Writes and yields the arrays [R, ...] of each micro-batch, with layout.host_images slots."""
    for first in range(0, self.used * self.rows, self.rows):
      bins = self.layout.bins[first : first + self.rows]
      # trees are numbered anew, in the order of their rows
      ends = np.cumsum([0, *map(len, bins)]).tolist()
      packed = packing.pack(
        [self._trees[tree] for members in bins for tree in members],
        row_tokens=self.layout.shape.row_tokens,
        row_images=self.layout.host_images,
        image_patches=self._image_patches,
        image_id=self._image_id,
        rows_multiple=self.rows,
        extras=EXTRAS,
        bins=[range(start, stop) for start, stop in itertools.pairwise(ends)],
      )
      packed.extras['current'] = _current(packed, self._version)
      yield packed.arrays()


def micro_batches(
  groups: Sequence[Group],
  advantage_E: np.ndarray,
  *,
  options: CollateOptions,
  image_id: int,
  version: int,
  layouts: row_layout.Layouts,
  exchange: Callable[[row_layout.Needs], Sequence[row_layout.Needs]] = lambda own: (own,),
) -> MicroBatches:
  """Lays the episodes of a step out in rows whose number and sizes are what the step needs.

  Args:
    groups, advantage_E, options, image_id, version: as in `collate`. No episode is longer than
      `options.row_tokens`, the longest row of `layouts`.
    layouts: chooses the rows' length and slots, and the trees of each row.
    exchange: how several hosts agree on them (`row_layout.Layouts.choose`).

  Raises:
    ConfigError, DataError: as in `collate`.
  """
  trees, counters = _trees(groups, advantage_E, options)
  trained = [
    sum(int((part.extras['mask'] > 0).sum()) for part in (tree.prefix, *tree.suffixes))
    for tree in trees
  ]
  layout = layouts.choose([packing.tree_size(tree) for tree in trees], trained, exchange)
  return MicroBatches(
    layout=layout,
    rows=layouts.rows,
    counters=_count_tokens(trees, counters, version),
    _trees=tuple(trees),
    _image_patches=options.image_patches,
    _image_id=image_id,
    _version=version,
  )


def _current(packed: packing.Packed, version: int) -> np.ndarray:
  """Returns 1 on the trained tokens that `version` sampled, else 0."""
  return packed.extras['mask'] * (packed.extras['version'] == version)


def _trees(
  groups: Sequence[Group], advantage_E: np.ndarray, options: CollateOptions
) -> tuple[list[packing.Tree], collections.Counter]:
  """Returns the trees of a step in the order of its groups, and what was counted on the way."""
  if options.subagent_credit not in SUBAGENT_CREDIT:
    raise ConfigError(
      f'rollout.subagent_credit: got {options.subagent_credit!r}, wanted one of {SUBAGENT_CREDIT}'
    )
  # One advantage per surviving episode, in the order of the groups.
  advantage_E = np.asarray(advantage_E, np.float32)
  count = sum(len(group.scored) for group in groups)
  if advantage_E.shape != (count,):
    raise DataError(
      f'collate: got advantages of shape {advantage_E.shape}, wanted ({count},), one per '
      'surviving episode'
    )
  counters: collections.Counter[str] = collections.Counter(
    dict.fromkeys(
      ('episodes', 'subagents', 'dropped_episodes', 'dropped_subagents', 'subagent_tokens'), 0
    )
  )
  # Each group takes its slice of advantage_E; its sub-agents share those advantages.
  trees: list[packing.Tree] = []
  first = 0
  for group in groups:
    episodes = [scored.episode for scored in group.scored]
    advantages = advantage_E[first : first + len(episodes)]
    first += len(episodes)
    trees += _group_trees(group.id, episodes, advantages, options, counters)
    if options.subagent_credit == 'episode':
      trees += _subagent_trees(episodes, advantages, options, counters)
  return trees, counters


def _group_trees(
  name: str,
  episodes: Sequence[Episode],
  advantages: np.ndarray,
  options: CollateOptions,
  counters: collections.Counter,
) -> list[packing.Tree]:
  """Returns the group as one tree, or as several if its suffixes do not fit one row.

  Each tree repeats the prefix.
  """
  if not episodes:
    return []
  # The prefix is stored once, so all rollouts must have the same prompt tokens and images.
  opening = episodes[0].trajectory.segments[0]
  for episode in episodes:
    other = episode.trajectory.segments[0]
    if (
      other.sampled
      or not np.array_equal(other.ids, opening.ids)
      or len(other.images) != len(opening.images)
    ):
      raise DataError(
        f'collate: group {name}: rollout {episode.rollout} has another prompt than '
        f'{episodes[0].rollout}; '
        'a group is one prompt with one frame budget'
      )
  prefix = sample((opening,), 0.0)
  prefix_size = _size(prefix)
  batches: list[
    tuple[list[packing.Sample], list[int]]
  ] = []  # suffixes, and [tokens, images] with the prefix
  for episode, advantage in zip(episodes, advantages):
    suffix = sample(episode.trajectory.segments[1:], float(advantage))
    tokens, images = _size(suffix)
    if prefix_size[0] + tokens > options.row_tokens or prefix_size[1] + images > options.row_images:
      counters['dropped_episodes'] += 1
      continue
    counters['episodes'] += 1
    # First fit: the first tree whose row still has enough tokens and image slots.
    fits = [
      b
      for b in batches
      if b[1][0] + tokens <= options.row_tokens and b[1][1] + images <= options.row_images
    ]
    if not fits:
      fits = [([], list(prefix_size))]
      batches += fits
    suffixes, used = fits[0]
    suffixes.append(suffix)
    used[0] += tokens
    used[1] += images
  return [packing.Tree(prefix, tuple(suffixes)) for suffixes, _ in batches]


def _subagent_trees(
  episodes: Sequence[Episode],
  advantages: np.ndarray,
  options: CollateOptions,
  counters: collections.Counter,
) -> list[packing.Tree]:
  """Returns a document for each sub-agent that sampled tokens, with its episode's advantage."""
  trees = []
  for episode, advantage in zip(episodes, advantages):
    for trajectory in subagents(episode):
      document = sample(trajectory.segments, float(advantage))
      tokens, images = _size(document)
      if tokens > options.row_tokens or images > options.row_images:
        counters['dropped_subagents'] += 1
        continue
      counters['subagents'] += 1
      counters['subagent_tokens'] += int(document.extras['mask'].sum())
      trees.append(packing.Tree(document))
  return trees


def subagents(episode: Episode) -> list[Trajectory]:
  """Returns the sub-agents' trajectories that have sampled tokens, in call order.

  Trajectories of failed calls are included.
  """
  found = [result.subagent for result in episode.results if result.subagent is not None]
  return [
    trajectory
    for trajectory in found
    if any(segment.sampled and len(segment.ids) for segment in trajectory.segments)
  ]


def sample(segments: Sequence[Segment], advantage: float) -> packing.Sample:
  """Joins segments into one token sequence with the learner's extras.

  The ids are exactly those sent and received, with one unexpanded placeholder per image.
  """
  ids = [np.zeros(0, np.int32)]
  columns: dict[str, list[np.ndarray]] = {
    name: [np.zeros(0, dtype)] for name, dtype in EXTRAS.items()
  }
  for segment in segments:
    ids.append(np.asarray(segment.ids, np.int32))
    # Given tokens (on = 0) have mask 0 and no advantage, behavior log-prob, class or version.
    n, on = len(segment.ids), float(segment.sampled)
    columns['mask'].append(np.full(n, on, np.float32))
    columns['advantage'].append(np.full(n, advantage * on, np.float32))
    columns['behavior'].append(segment.logprobs if segment.sampled else np.zeros(n, np.float32))
    columns['token_class'].append(
      np.full(n, int(segment.token_class) if segment.sampled else 0, np.int32)
    )
    columns['version'].append(segment.versions if segment.sampled else np.zeros(n, np.int32))
  extras = {name: np.concatenate(column).astype(EXTRAS[name]) for name, column in columns.items()}
  images = tuple(image for segment in segments for image in segment.images)
  return packing.Sample(np.concatenate(ids), images, extras)


def _size(part: packing.Sample) -> tuple[int, int]:
  return packing.expanded_length(part), len(part.images)


def _pack(trees: Sequence[packing.Tree], options: CollateOptions, image_id: int) -> packing.Packed:
  """Packs the trees into the smallest allowed number of rows."""
  limits = (options.row_tokens, options.row_images)
  needed = len(packing.first_fit_decreasing([packing.tree_size(tree) for tree in trees], limits))
  multiple = next((rows for rows in options.row_counts if rows >= needed), options.row_counts[-1])
  return packing.pack(
    trees,
    row_tokens=options.row_tokens,
    row_images=options.row_images,
    image_patches=options.image_patches,
    image_id=image_id,
    rows_multiple=multiple,
    extras=EXTRAS,
  )


def _count_tokens(
  trees: Sequence[packing.Tree], counters: collections.Counter, version: int
) -> dict[str, float]:
  trained = given = 0
  behind_sum, behind_max = 0.0, 0
  for tree in trees:
    for part in (tree.prefix, *tree.suffixes):
      # Staleness of the trained tokens, in weight versions.
      mask = part.extras['mask'] > 0
      behind = version - part.extras['version'][mask]
      trained += int(mask.sum())
      given += packing.expanded_length(part) - int(mask.sum())
      behind_sum += float(behind.sum())
      behind_max = max(behind_max, int(behind.max(initial=0)))
  images = sum(packing.tree_size(tree)[1] for tree in trees)
  return {
    **counters,
    'trees': len(trees),
    'images': images,
    'trained_tokens': trained,
    'given_tokens': given,
    'staleness_sum': behind_sum,
    'staleness_max': behind_max,
  }

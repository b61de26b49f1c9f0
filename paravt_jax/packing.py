"""Packs documents into rows and defines the learner's arrays.

This is the only place where image placeholders are expanded.

A `Tree` is a shared prefix and the suffixes that follow it (a group's prompt and its rollouts); a
plain document is a tree without suffixes. Several trees share a row; trees do not attend to each
other (segments). A suffix attends to its prefix and to itself (branches):

    tokens     a b c | d e | f g h | p q r | . .   two trees and padding: prefix abc with
    segments   1 1 1   1 1   1 1 1   2 2 2   0 0   suffixes de and fgh; document pqr
    branches   0 0 0   1 1   2 2 2   0 0 0   0 0
    predecessor -1 0 1   2 3   2 5 6  -1 8 9  -1-1   row index of the hidden state that predicts this
    positions  0 1 2   3 4   3 4 5   0 1 2   0 0   a suffix continues after its prefix
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import positions as mrope
from paravt_jax.video import patches as pixels
from paravt_jax.video.patches import MERGE, PATCH, SIDE


@dataclasses.dataclass(frozen=True)
class Sample:
  """A run of tokens, with images and further values per token."""

  ids: np.ndarray  # int32[n], one placeholder per image
  images: tuple[np.ndarray, ...] = ()  # uint8[H, W, 3] each, in the order of their placeholders
  # name -> array[n]
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tree:
  """A prefix and the suffixes that each continue it. Without suffixes it is a plain document."""

  prefix: Sample
  suffixes: tuple[Sample, ...] = ()


@dataclasses.dataclass(frozen=True)
class Span:
  """The row and the token range of a sample."""

  row: int
  start: int  # the first token, image placeholders expanded
  stop: int  # one past the last token


@dataclasses.dataclass(frozen=True)
class Packed:
  """Rows of documents; see the drawing above."""

  tokens_RT: np.ndarray  # int32; padding is 0
  positions_ART: np.ndarray  # int32, M-RoPE
  segments_RT: np.ndarray  # int32; 0 padding, 1.. trees of the row
  branches_RT: np.ndarray  # int32; 0 prefix, 1.. its suffixes
  # int32, index into the row's own merged image tokens: those of the frame slots, X/4 each, then
  # those of the large images; -1 for text
  visual_index_RT: np.ndarray
  predecessor_RT: np.ndarray  # int32, row index of the hidden state that predicts this token, or -1
  patches_RNXPC: np.ndarray  # uint8, one slot per frame
  grids_RN2: np.ndarray  # int32, patches high and wide; 0, 0 is an empty slot
  # uint8, fewer and larger slots for images that do not fit a frame slot
  large_images_RNXPC: np.ndarray
  large_image_grids_RN2: np.ndarray  # int32, as grids_RN2
  extras: dict[str, np.ndarray]  # name -> [R, T]; padding is 0
  spans: tuple[tuple[Span, ...], ...]  # of each tree: its prefix, then its suffixes

  @property
  def rows(self) -> int:
    """Number of rows, padding rows included."""
    return self.tokens_RT.shape[0]

  @property
  def fill(self) -> float:
    """Share of the rows' tokens that are not padding."""
    return float((self.segments_RT > 0).mean()) if self.segments_RT.size else 0.0

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the learner's arrays by name, row axis first (positions: [R, A, T]).

    Large images are included only when rows have slots for them. Extras keep their names.
    """
    named = {
      'tokens': self.tokens_RT,
      'positions': np.moveaxis(self.positions_ART, 0, 1),
      'segments': self.segments_RT,
      'branches': self.branches_RT,
      'visual_index': self.visual_index_RT,
      'predecessor': self.predecessor_RT,
      'patches': self.patches_RNXPC,
      'grids': self.grids_RN2,
    }
    if self.large_images_RNXPC.shape[1]:
      named |= {
        'large_images': self.large_images_RNXPC,
        'large_image_grids': self.large_image_grids_RN2,
      }
    return {**named, **self.extras}

  def micro_batches(
    self, rows: int, capacity: int | None = None
  ) -> tuple[dict[str, np.ndarray], int]:
    """Splits into micro-batches of `rows` rows.

    Args:
      rows: rows per micro-batch; a last incomplete one is filled with padding rows.
      capacity: M, number of micro-batches in the arrays; None for as many as needed.

    Returns:
      arrays() with leading axes [M, rows] and the number of micro-batches in use (at least 1).

    Raises:
      DataError: more micro-batches are needed than `capacity`.
    """
    used = max(1, -(-self.rows // rows))
    capacity = used if capacity is None else capacity
    if used > capacity:
      raise DataError(
        f'packing: {self.rows} rows need {used} micro-batches of {rows}, but there is room '
        f'for {capacity}; raise train.micro_batches or take fewer samples per step'
      )
    # pad to [capacity * rows, ...], then fold to [M, rows, ...]
    missing = capacity * rows - self.rows
    split = {}
    for name, array in self.arrays().items():
      if missing:
        fill = -1 if name in ('visual_index', 'predecessor') else 0
        array = np.concatenate([array, np.full((missing,) + array.shape[1:], fill, array.dtype)])
      split[name] = array.reshape((capacity, rows) + array.shape[1:])
    return split, used


@dataclasses.dataclass(frozen=True)
class _Expanded:
  """A sample with expanded placeholders; each array has one entry per expanded token."""

  ids: np.ndarray  # int32
  image: np.ndarray  # the sample's image of this token, -1 for text
  inner: np.ndarray  # the token's place in its image, -1 for text
  source: np.ndarray  # index into the unexpanded ids
  grids: tuple[tuple[int, int], ...]  # patches high and wide of each image


def image_grid(image: np.ndarray) -> tuple[int, int]:
  """Returns patches (high, wide) of an image uint8[H, W, 3].

  Raises:
    DataError: a side is not a multiple of 32.
  """
  if not pixels.is_whole(image):
    raise DataError(
      f'packing: got an image of shape {image.shape}, wanted [H, W, 3] with sides multiples '
      f'of {SIDE}; resize it first'
    )
  return image.shape[0] // PATCH, image.shape[1] // PATCH


def expanded_length(sample: Sample) -> int:
  """Returns the number of tokens of a sample after its image placeholders are expanded."""
  grids = [image_grid(image) for image in sample.images]
  return len(sample.ids) + sum(h * w // MERGE**2 - 1 for h, w in grids)


def tree_size(tree: Tree) -> tuple[int, int]:
  """Returns (tokens, images) that a tree takes in a row."""
  samples = (tree.prefix, *tree.suffixes)
  return sum(map(expanded_length, samples)), sum(len(sample.images) for sample in samples)


def sizes(tree: Tree, image_patches: int) -> tuple[int, int, int]:
  """Returns (tokens, frame slots, slots of large images) that a tree takes in a row.

  A frame slot holds `image_patches` patches; a larger image takes a slot for large images.
  """
  tokens, images = tree_size(tree)
  grids = [image_grid(image) for sample in (tree.prefix, *tree.suffixes) for image in sample.images]
  large_images = sum(h * w > image_patches for h, w in grids)
  return tokens, images - large_images, large_images


def expand(sample: Sample, image_id: int) -> _Expanded:
  """Repeats each image placeholder as often as its image has merged tokens.

  Raises:
    DataError: the number of placeholders is not the number of images.
  """
  ids = np.asarray(sample.ids, np.int32)
  is_image = ids == image_id
  if is_image.sum() != len(sample.images):
    raise DataError(
      f'packing: got {is_image.sum()} image placeholders and {len(sample.images)} images, '
      'wanted as many of each'
    )
  # how often each id occurs in the expanded stream
  grids = tuple(image_grid(image) for image in sample.images)
  repeats = np.ones(len(ids), np.int64)
  repeats[is_image] = [h * w // MERGE**2 for h, w in grids]
  # [expanded tokens]: the source index of each token, and its place in its image
  source = np.repeat(np.arange(len(ids)), repeats)
  inner = np.arange(len(source)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
  image = np.where(is_image, np.cumsum(is_image) - 1, -1)[source]
  return _Expanded(ids[source], image, np.where(image >= 0, inner, -1), source, grids)


def _per_token(name: str, sample: Sample) -> np.ndarray:
  values = np.asarray(sample.extras[name])
  if values.shape != (len(sample.ids),):
    raise DataError(
      f'packing: extra {name!r} has shape {values.shape}, wanted one value per unexpanded token, '
      f'({len(sample.ids)},)'
    )
  return values


def first_fit_decreasing(
  sizes: Sequence[tuple[int, ...]], capacity: tuple[int, ...]
) -> list[list[int]]:
  """Groups items into bins; returns the indices into `sizes` of each bin.

  No bin exceeds `capacity` in any dimension. Items are placed largest first, each in the first
  bin that has enough space.

  Raises:
    DataError: one item is larger than a bin.
  """
  for index, size in enumerate(sizes):
    if any(taken > most for taken, most in zip(size, capacity, strict=True)):
      raise DataError(
        f'packing: tree {index} takes {_format_sizes(size)}, a row holds '
        f'{_format_sizes(capacity)}; drop it, '
        'or raise row_tokens, row_images or row_large_images'
      )
  # an item's size is its largest share of a bin over all dimensions
  share = [max(taken / max(most, 1) for taken, most in zip(size, capacity)) for size in sizes]
  bins: list[list[int]] = []
  free: list[list[int]] = []
  for index in sorted(range(len(sizes)), key=lambda i: -share[i]):
    size = sizes[index]
    place = next(
      (b for b, free_size in enumerate(free) if all(map(operator.ge, free_size, size))), len(bins)
    )
    if place == len(bins):
      bins.append([])
      free.append(list(capacity))
    bins[place].append(index)
    free[place] = list(map(operator.sub, free[place], size))
  return bins


def _format_sizes(size: tuple[int, ...]) -> str:
  """Formats a size: '9 tokens and 2 images', '9 tokens, 2 images and 1 large images'."""
  words = [f'{count} {name}' for count, name in zip(size, ('tokens', 'images', 'large images'))]
  return ' and '.join([', '.join(words[:-1]), words[-1]] if words[1:] else words)


@dataclasses.dataclass(frozen=True)
class _Slots:
  """Image slots of one size in every row, and how many of each row are taken."""

  patches: np.ndarray  # uint8[R, N, X, 1, C]
  grids: np.ndarray  # int32[R, N, 2]
  taken: list[int]
  first: int  # index of the first slot's first merged token in a row

  @classmethod
  def empty(cls, rows: int, count: int, size: int, first: int) -> '_Slots':
    channels = 3 * PATCH * PATCH
    return cls(
      np.zeros((rows, count, size, 1, channels), np.uint8),
      np.zeros((rows, count, 2), np.int32),
      [0] * rows,
      first,
    )

  @property
  def merged(self) -> int:
    """Merged tokens of a slot."""
    return self.patches.shape[2] // MERGE**2

  def put(self, row: int, values: np.ndarray, grid: tuple[int, int]) -> int:
    """Fills the row's next slot; returns the index of its first merged token."""
    slot = self.taken[row]
    self.patches[row, slot, : len(values), 0] = values
    self.grids[row, slot] = grid
    self.taken[row] += 1
    return self.first + slot * self.merged


class _Writer:
  """Fills the arrays of `Packed`, sample by sample."""

  def __init__(
    self,
    rows: int,
    row_tokens: int,
    frames: _Slots,
    large_images: _Slots,
    image_id: int,
    extras: Mapping[str, type],
  ):
    shape = (rows, row_tokens)
    self.frames = frames
    self.large_images = large_images
    self.image_id = image_id
    self.tokens = np.zeros(shape, np.int32)
    self.segments = np.zeros(shape, np.int32)
    self.branches = np.zeros(shape, np.int32)
    self.visual_index = np.full(shape, -1, np.int32)
    self.predecessor = np.full(shape, -1, np.int32)
    # in memory [R, A, T], as the learner takes it
    self.positions = np.moveaxis(np.zeros((rows, 3, row_tokens), np.int32), 1, 0)
    self.extras = {name: np.zeros(shape, dtype) for name, dtype in extras.items()}
    self.next_token = [0] * rows

  def packed(self, spans: tuple[tuple[Span, ...], ...]) -> Packed:
    """The arrays as they are now."""
    return Packed(
      tokens_RT=self.tokens,
      positions_ART=self.positions,
      segments_RT=self.segments,
      branches_RT=self.branches,
      visual_index_RT=self.visual_index,
      predecessor_RT=self.predecessor,
      patches_RNXPC=self.frames.patches,
      grids_RN2=self.frames.grids,
      large_images_RNXPC=self.large_images.patches,
      large_image_grids_RN2=self.large_images.grids,
      extras=self.extras,
      spans=spans,
    )

  def tree(self, row: int, segment: int, tree: Tree) -> tuple[Span, ...]:
    """Writes prefix and suffixes; returns their spans."""
    prefix, end = self.sample(row, segment, 0, tree.prefix, 0, -1)
    last = prefix.stop - 1 if prefix.stop > prefix.start else -1
    suffixes = [
      self.sample(row, segment, branch, s, end, last)[0]
      for branch, s in enumerate(tree.suffixes, start=1)
    ]
    return (prefix, *suffixes)

  def sample(
    self, row: int, segment: int, branch: int, sample: Sample, first: int, predecessor: int
  ) -> tuple[Span, int]:
    """Writes one sample whose positions begin at `first`; returns its span and the position that
    follows it.
    """
    expanded = expand(sample, self.image_id)
    start = self.next_token[row]
    stop = start + len(expanded.ids)
    at = (row, slice(start, stop))
    self.tokens[at] = expanded.ids
    self.segments[at] = segment
    self.branches[at] = branch

    # positions_3T continue after the prefix
    merged = [(h // MERGE, w // MERGE) for h, w in expanded.grids]
    positions, end = mrope.mrope_positions(expanded.ids, self.image_id, merged, start=first)
    self.positions[:, row, start:stop] = positions

    # each token is predicted by the token before it; the first one by the prefix's last token
    self.predecessor[at] = np.arange(start - 1, stop - 1)
    if stop > start:
      self.predecessor[row, start] = predecessor

    # index of a merged token: start of its image in the row's slots, plus its place in the
    # image. The extra last 0 is for text, whose image is -1.
    begins = np.array([*self.images(row, sample), 0], np.int64)
    self.visual_index[at] = np.where(
      expanded.image >= 0, begins[expanded.image] + expanded.inner, -1
    )

    for name, array in self.extras.items():
      if name in sample.extras:
        array[at] = _per_token(name, sample)[expanded.source]
    self.next_token[row] = stop
    return Span(row, start, stop), end

  def images(self, row: int, sample: Sample) -> list[int]:
    """Writes the patches of a sample's images into the row's next slots.

    Returns:
      The index of each image's first merged token.
    """
    starts = []
    for image in sample.images:
      values, grid = pixels.patchify(image)
      slots = self.frames if len(values) <= self.frames.patches.shape[2] else self.large_images
      if len(values) > slots.patches.shape[2]:
        raise DataError(
          f'packing: got an image of {len(values)} patches, wanted at most '
          f'{max(self.frames.patches.shape[2], slots.patches.shape[2])}; raise image_patches or '
          'large_image_patches, or lower the pixels per image'
        )
      starts.append(slots.put(row, values, grid))
    return starts


def pack(
  trees: Sequence[Tree],
  *,
  row_tokens: int,
  row_images: int,
  image_patches: int,
  image_id: int,
  rows_multiple: int,
  extras: Mapping[str, type],
  row_large_images: int = 0,
  large_image_patches: int = 0,
  bins: Sequence[Sequence[int]] | None = None,
) -> Packed:
  """Packs trees into rows by first-fit-decreasing on tokens and images.

  A tree is never split over rows.

  Args:
    trees: what to pack; an empty sequence gives `rows_multiple` rows of padding.
    row_tokens: T, tokens per row, image placeholders expanded.
    row_images: N, frame slots per row; may be 0.
    image_patches: X, patches per frame slot, a multiple of 4.
    image_id: the placeholder's token id.
    rows_multiple: the number of rows is padded to a multiple of it (the mesh's data axes times rows
      per device).
    extras: dtype of each per-token array to carry; samples that lack one get 0. A placeholder's
      value repeats on its image's tokens.
    row_large_images: slots per row for images of more than image_patches patches.
    large_image_patches: patches per such slot, a multiple of 4.
    bins: the trees (indices) of each row, if a planner has chosen them; a row may be empty.

  Raises:
    DataError: a tree or a bin is larger than a row, an image is larger than a slot, or the
      numbers of images and placeholders differ.
  """
  # which tree goes to which row
  capacity = (
    (row_tokens, row_images, row_large_images) if row_large_images else (row_tokens, row_images)
  )
  taken = [sizes(tree, image_patches) if row_large_images else tree_size(tree) for tree in trees]
  if bins is None:
    bins = first_fit_decreasing(taken, capacity)
  else:
    _check_bins(bins, taken, capacity)

  # the arrays of all rows, filled tree by tree
  rows = max(1, -(-len(bins) // rows_multiple)) * rows_multiple
  frames = _Slots.empty(rows, row_images, image_patches, 0)
  large_images = _Slots.empty(
    rows, row_large_images, large_image_patches, row_images * frames.merged
  )
  writer = _Writer(rows, row_tokens, frames, large_images, image_id, extras)
  spans: list[tuple[Span, ...]] = [()] * len(trees)
  for row, members in enumerate(bins):
    for segment, index in enumerate(members, start=1):
      spans[index] = writer.tree(row, segment, trees[index])
  return writer.packed(tuple(spans))


def _check_bins(
  bins: Sequence[Sequence[int]], taken: Sequence[tuple[int, ...]], capacity: tuple[int, ...]
) -> None:
  """Raises DataError unless every tree is in exactly one bin and every bin fits a row."""
  if sorted(index for members in bins for index in members) != list(range(len(taken))):
    raise DataError(
      f'packing: got bins {[list(members) for members in bins]} for {len(taken)} trees, '
      'wanted each tree in one bin'
    )
  for row, members in enumerate(bins):
    total = (
      tuple(map(sum, zip(*(taken[index] for index in members))))
      if members
      else (0,) * len(capacity)
    )
    if any(map(operator.gt, total, capacity)):
      raise DataError(
        f'packing: row {row} takes {_format_sizes(total)}, it holds '
        f'{_format_sizes(capacity)}; plan it again'
      )

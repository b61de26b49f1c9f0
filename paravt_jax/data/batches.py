"""The stream of SFT batches: sources mixed by weight, shuffled by address, packed on lengths, then decoded; exactly resumable.

  draws     (source, row) pairs, a function of (seed, number of the draw)
  plan      the draws of one batch, chosen on lengths so that they fill its rows; what does not fit waits for the next one
  assemble  frames from memory or the decoder, packing into arrays [M, R, T], in a thread of its own

The iterator is grain's: `get_state()` is a small dict (it goes into the step's checkpoint), `set_state` goes on exactly there.
"""

import asyncio
import collections
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from paravt_jax import packing, seeds
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import sft
from paravt_jax.data.conversations import Conversation
from paravt_jax.errors import DataError, MediaError
from paravt_jax.types import Clip
from paravt_jax.video.readers import VideoInfo

EXTRAS = {sft.MASK: np.float32}
TOO_LONG, TOO_MANY_IMAGES, NO_TARGET, MISJUDGED = 'too_long', 'too_many_images', 'no_target', 'misjudged'


@dataclasses.dataclass(frozen=True)
class Source:
  """Conversations that are drawn together, share `weight` of the draws of batches `first` <= step (< `last`, None for ever)."""
  name: str
  conversations: Sequence[Conversation]
  weight: float
  first: int
  last: int | None

  def active(self, step: int) -> bool:
    """Whether it takes part in batch `step`."""
    return self.first <= step and (self.last is None or step < self.last)


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """Sizes of a batch: M micro-batches of R rows of T tokens with N images of X patches each.

  lookahead: draws that may wait for the next batch; more fill rows better. prefetch: batches made ahead.
  """
  micro_batches: int
  rows: int
  row_tokens: int
  row_images: int
  image_patches: int
  lookahead: int
  prefetch: int


@dataclasses.dataclass(frozen=True)
class Batch:
  """One step's arrays. arrays: packing's names with leading axes [M, R]; used: micro-batches in use; samples by source;
  tokens: not padding; targets: tokens with mask 1; dropped: draws left out, by reason; fill: share of the rows in use."""
  arrays: dict[str, np.ndarray]
  used: int
  samples: dict[str, int]
  tokens: int
  targets: int
  dropped: dict[str, int]
  fill: float


class FrameBank:
  """Frames in memory, decoded once: every `step` seconds of each video, from t = 0 on. Times off this grid go to the decoder.

  A drop-in for DecodePool, and for FrameStore in rollouts; safe to use from several threads.
  """

  def __init__(self, frames: sft.Frames, step: float, min_pixels: int, max_pixels: int):
    self._frames, self._step, self._pixels = frames, step, (min_pixels, max_pixels)
    self._clips: dict[str, Clip] = {}
    self._infos: dict[str, VideoInfo] = {}
    self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)

  @property
  def bytes(self) -> int:
    """Bytes of pixels held."""
    return sum(clip.frames.nbytes for clip in self._clips.values())

  def probe_sync(self, path: str) -> VideoInfo:
    """As DecodePool.probe_sync, asked once per video."""
    if path not in self._infos:
      self._infos[path] = self._frames.probe_sync(path)
    return self._infos[path]

  def load(self, path: str) -> None:
    """Decodes a video's grid unless it is held. Raises MediaError."""
    with self._locks[path]:
      if path not in self._clips:
        times = np.arange(0, self.probe_sync(path).duration - 1e-6, self._step)
        self._clips[path] = self._frames.frames_sync(path, times, *self._pixels)

  def frames_sync(self, path: str, seconds: Sequence[float], min_pixels: int, max_pixels: int) -> Clip:
    """As DecodePool.frames_sync."""
    index = np.asarray(seconds) / self._step
    whole = np.round(index).astype(int)
    if (min_pixels, max_pixels) != self._pixels or np.abs(index - whole).max() > 1e-6:
      return self._frames.frames_sync(path, seconds, min_pixels, max_pixels)
    self.load(path)
    clip = self._clips[path]
    if whole.max() >= len(clip.frames):
      return self._frames.frames_sync(path, seconds, min_pixels, max_pixels)
    return Clip(clip.frames[whole], clip.seconds[whole], clip.duration)

  async def frames(self, path: str, seconds: Sequence[float], min_pixels: int, max_pixels: int) -> Clip:
    """As frames_sync, off the event loop."""
    return await asyncio.to_thread(self.frames_sync, path, seconds, min_pixels, max_pixels)

  async def probe(self, path: str) -> VideoInfo:
    """As probe_sync, off the event loop."""
    return await asyncio.to_thread(self.probe_sync, path)


class _Planner:
  """Chooses the draws of each batch; its state is all there is to remember."""

  def __init__(self, sources: Sequence[Source], tok: ChatTokenizer, frames: sft.Frames, frame_options: sft.FrameOptions,
               options: BatchOptions, seed: int):
    self._sources = {source.name: source for source in sources}
    self._tok, self._options, self._frame_options, self._seed = tok, options, frame_options, seed
    self._media = sft.sized(frames, frame_options)
    self._sizes: dict[tuple[str, int], tuple[int, int] | str] = {}
    self._orders: dict[str, tuple[int, np.ndarray]] = {}
    self.step, self.drawn = 0, 0
    self.positions = dict.fromkeys(self._sources, 0)
    self.waiting: list[tuple[str, int]] = []

  def plan(self) -> tuple[list[tuple[str, int]], collections.Counter]:
    """The (source, row) pairs of the next batch and the draws dropped while choosing them, by reason."""
    bins = self._options.micro_batches * self._options.rows
    capacity = (self._options.row_tokens, self._options.row_images)
    free = [list(capacity) for _ in range(bins)]
    chosen, left, dropped, refused = [], [], collections.Counter(), 0
    queue = collections.deque(self.waiting)
    while len(left) <= self._options.lookahead:
      item = queue.popleft() if queue else self._draw()
      size = self._size(item)
      if isinstance(size, str):
        dropped[size] += 1
        refused += 1
        self._give_up(refused, dropped)
        continue
      place = next((room for room in free if room[0] >= size[0] and room[1] >= size[1]), None)
      if place is None:
        left.append(item)
        continue
      place[0], place[1] = place[0] - size[0], place[1] - size[1]
      chosen.append(item)
    while len(packing.first_fit_decreasing([self._size(item) for item in chosen], capacity)) > bins:
      left.insert(0, chosen.pop())
    self.waiting = [*left, *queue]
    self.step += 1
    return chosen, dropped

  def _give_up(self, refused: int, dropped: collections.Counter) -> None:
    total = sum(len(source.conversations) for source in self._sources.values())
    if refused > 2 * total + 100:
      raise DataError(f'SFT data: every row drawn was dropped ({dict(dropped)}), wanted some that fit; raise row_tokens or '
                      f'row_images, or check the media root')

  def _draw(self) -> tuple[str, int]:
    """The next draw: a source by weight, then its next row in this epoch's order."""
    active = [s for s in self._sources.values() if s.active(self.step) and s.weight > 0 and len(s.conversations)]
    if not active:
      raise DataError(f'SFT data: no source has rows at step {self.step}; give one a weight, or let it last longer')
    weights = np.cumsum([source.weight for source in active])
    spot = seeds.at(self._seed, 'mix', self.drawn) / 2**63 * weights[-1]
    source = active[int(np.searchsorted(weights, spot, side='right'))]
    epoch, offset = divmod(self.positions[source.name], len(source.conversations))
    if self._orders.get(source.name, (None,))[0] != epoch:
      order = seeds.rng(self._seed, 'order', source.name, epoch).permutation(len(source.conversations))
      self._orders[source.name] = epoch, order
    self.positions[source.name] += 1
    self.drawn += 1
    return source.name, int(self._orders[source.name][1][offset])

  def _size(self, item: tuple[str, int]) -> tuple[int, int] | str:
    """(tokens, images) of a row, or why it is dropped; remembered."""
    if item not in self._sizes:
      self._sizes[item] = self._measure(self._sources[item[0]].conversations[item[1]])
    return self._sizes[item]

  def _measure(self, conversation: Conversation) -> tuple[int, int] | str:
    try:
      sample = sft.sample(self._tok, conversation, self._media, self._frame_options)
    except MediaError as error:
      return f'media_{error.reason}'
    tokens, images = packing.tree_size(packing.Tree(sample))
    if tokens > self._options.row_tokens:
      return TOO_LONG
    if images > self._options.row_images:
      return TOO_MANY_IMAGES
    return (tokens, images) if sample.extras[sft.MASK].any() else NO_TARGET

  def get_state(self) -> dict[str, Any]:
    """Plain numbers and lists."""
    return {'step': self.step, 'drawn': self.drawn, 'positions': dict(self.positions),
            'waiting': [list(item) for item in self.waiting]}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `state` was taken. Raises DataError when it is of other sources."""
    if set(state['positions']) != set(self._sources):
      raise DataError(f'SFT data: the checkpoint has sources {sorted(state["positions"])}, wanted {sorted(self._sources)}; '
                      f'use the same recipe, or start a new run')
    self.step, self.drawn = int(state['step']), int(state['drawn'])
    self.positions = {name: int(position) for name, position in state['positions'].items()}
    self.waiting = [(name, int(row)) for name, row in state['waiting']]


class _PlanIterator(grain.DatasetIterator):
  """grain's face of a planner."""

  def __init__(self, planner: _Planner):
    super().__init__()
    self._planner = planner

  def __next__(self):
    return self._planner.plan()

  def get_state(self) -> dict[str, Any]:
    return self._planner.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self._planner.set_state(state)


class _Plans(grain.IterDataset):
  """An endless data set of plans."""

  def __init__(self, make):
    super().__init__()
    self._make = make

  def __iter__(self) -> _PlanIterator:
    return _PlanIterator(self._make())


def batches(sources: Sequence[Source], tok: ChatTokenizer, frames: sft.Frames, frame_options: sft.FrameOptions,
            options: BatchOptions, seed: int) -> grain.DatasetIterator:
  """An endless iterator of `Batch`, made ahead in a thread; the same arguments give the same batches.

  Its get_state() belongs to the batches returned so far, whatever was made ahead; close() ends the thread.

  Raises (from next()):
    DataError: no source is active, or every row is dropped.
  """
  assembler = Assembler(sources, tok, frames, frame_options, options)
  plans = _Plans(lambda: _Planner(sources, tok, frames, frame_options, options, seed))
  made = plans.map(lambda plan: assembler.batch(*plan))
  return iter(grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=options.prefetch))


class Assembler:
  """Plans to arrays."""

  def __init__(self, sources: Sequence[Source], tok: ChatTokenizer, frames: sft.Frames, frame_options: sft.FrameOptions,
               options: BatchOptions):
    self._rows = {source.name: source.conversations for source in sources}
    self._tok, self._frame_options, self._options = tok, frame_options, options
    self._media = sft.decoded(frames, frame_options)

  def batch(self, items: Sequence[tuple[str, int]], dropped: collections.Counter) -> Batch:
    """Decodes and packs; a row whose media fail, or that turns out longer than its plan, is dropped and counted."""
    dropped, kept, samples = collections.Counter(dropped), [], []
    for name, row in items:
      try:
        samples.append(sft.sample(self._tok, self._rows[name][row], self._media, self._frame_options))
        kept.append(name)
      except MediaError as error:
        dropped[f'media_{error.reason}'] += 1
    self._fit(samples, kept, dropped)
    packed = packing.pack([packing.Tree(sample) for sample in samples], row_tokens=self._options.row_tokens,
                          row_images=self._options.row_images, image_patches=self._options.image_patches,
                          image_id=self._tok.image_pad, rows_multiple=self._options.rows, extras=EXTRAS)
    arrays, used = packed.micro_batches(self._options.rows, self._options.micro_batches)
    return Batch(arrays, used, dict(collections.Counter(kept)), int((packed.segments_RT > 0).sum()),
                 int(packed.extras[sft.MASK].sum()), dict(dropped), packed.fill)

  def _fit(self, samples: list[packing.Sample], kept: list[str], dropped: collections.Counter) -> None:
    """Drops the last samples until the rest fits (a video of varying frame rate may be longer than planned)."""
    capacity = (self._options.row_tokens, self._options.row_images)
    sizes = [packing.tree_size(packing.Tree(sample)) for sample in samples]
    for index in reversed(range(len(samples))):
      if sizes[index][0] > capacity[0] or sizes[index][1] > capacity[1]:
        del samples[index], kept[index], sizes[index]
        dropped[MISJUDGED] += 1
    while len(packing.first_fit_decreasing(sizes, capacity)) > self._options.micro_batches * self._options.rows:
      samples.pop(), kept.pop(), sizes.pop()
      dropped[MISJUDGED] += 1

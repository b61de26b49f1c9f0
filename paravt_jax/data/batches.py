"""The stream of SFT batches: mixes sources by weight, shuffles, packs by length, then decodes.

  draws     (source, row) pairs, a function of (seed, number of the draw)                                      planner.py
  plan      the draws of one batch, chosen on lengths so that they fill its rows: the same plan on every host  planner.py
  assemble  this host's rows only: threads decode frames ahead, then rows are packed to arrays [M,
  R, T]

The stream is exactly resumable. Every host plans all batches and decodes only its own share. So the
state (`get_state()`, a small dict, part of the step's checkpoint) is the same on all hosts, and a
run may resume with another number of hosts.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import grain
import numpy as np

from paravt_jax import packing, row_layout
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import fields, lengths, sft
from paravt_jax.data.frame_bank import FrameBank
from paravt_jax.data.lengths import NO_TARGET, Cache, Lengths
from paravt_jax.data.planner import (
  JUDGED,
  MISJUDGED,
  TOO_LONG,
  TOO_MANY_IMAGES,
  Item,
  Plan,
  Planner,
  PlanOptions,
  Source,
  too_many_bad,
)
from paravt_jax.errors import ChatError, ConfigError, DataError, MediaError
from paravt_jax.options import COUNT, FLAG, Options

__all__ = [
  'EXTRAS',
  'MISJUDGED',
  'NO_TARGET',
  'TOO_LONG',
  'TOO_MANY_IMAGES',
  'Batch',
  'BatchOptions',
  'Batches',
  'Cache',
  'FrameBank',
  'Source',
  'batches',
  'make_planner',
]
EXTRAS = {sft.MASK: np.float32}


@dataclasses.dataclass(frozen=True)
class FillOptions(Options):
  """How the rows of a batch are filled."""

  lookahead: Annotated[int, COUNT]  # draws that may wait for the next batch; more fill rows better
  refill: Annotated[bool, FLAG]  # rows are topped up with the best two of the draws that wait
  prefetch: Annotated[int, COUNT]  # batches whose frames are decoded ahead
  # numbers of large-image slots that batches may have, at most: one program each; 1: always all
  shapes: Annotated[int, COUNT]

  @classmethod
  def published(cls) -> 'FillOptions':
    """The numbers that fill rows of 8,192 tokens to .9995 (`experiments.bench`, suite data)."""
    return FillOptions(lookahead=64, refill=True, prefetch=2, shapes=8)


@dataclasses.dataclass(frozen=True)
class BatchOptions(FillOptions):
  """Sizes of a batch: M micro-batches of R rows (on all hosts) of T tokens."""

  micro_batches: int  # M
  rows: int  # R
  row_tokens: int  # T, images expanded
  row_images: int  # N, frame slots of a row, for images of up to image_patches patches
  image_patches: int  # X, patches of a frame slot
  row_large_images: int  # slots of a row for larger images
  large_image_patches: int  # patches of such a slot
  workers: int  # threads that ask for frames
  skip_bad_rows: bool  # rows that break the schema are skipped and counted instead of raising
  max_bad_share: float  # share of broken rows (schema or media) above which the run ends


@dataclasses.dataclass(frozen=True)
class Batch:
  """The arrays of one step, for this host's rows."""

  arrays: dict[str, np.ndarray]  # packing's names, with leading axes [M, R]
  used: int  # micro-batches in use
  plan: int  # digest of the batch's plan; the same on all hosts
  samples: dict[str, int]  # number of samples, by source
  tokens: int  # tokens that are not padding
  targets: int  # tokens with mask 1
  # skipped draws, by reason; those of the plan count on the first host alone, so that sums over the
  # hosts are those of one host
  dropped: dict[str, int]
  examples: dict[str, str]  # by reason, a line 'source, row, reason, fault' with tabs between
  fill: float  # share of the rows' tokens that are not padding
  repeated: int  # repeated frames that were removed


class _PlanIterator(grain.DatasetIterator):
  """Adapts a planner to grain's iterator interface."""

  def __init__(self, planner: Planner):
    super().__init__()
    self._planner = planner

  def __next__(self) -> Plan:
    return self._planner.plan()

  def get_state(self) -> dict[str, Any]:
    return self._planner.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self._planner.set_state(state)


class _Plans(grain.IterDataset):
  """An endless data set of plans."""

  def __init__(self, planner: Planner):
    super().__init__()
    self._planner = planner

  def __iter__(self) -> _PlanIterator:
    return _PlanIterator(self._planner)


class Batches:
  """An endless iterator of `Batch`, returned by `batches`.

  Close it, or use it as a context manager, to end its threads. An iterator that is not closed can
  hang the process: the garbage collector may then end its threads from a thread that holds a lock
  they wait for.
  """

  def __init__(
    self,
    plans: _Plans,
    assembler: 'Assembler',
    measured: Mapping[str, Lengths],
    pools: Sequence[concurrent.futures.ThreadPoolExecutor],
    options: BatchOptions,
  ):
    self._lengths, self._pools, self._share = measured, pools, options.max_bad_share
    begun = grain.experimental.ThreadPrefetchIterDataset(
      plans.map(assembler.begin), prefetch_buffer_size=options.prefetch
    )
    self._made = iter(
      grain.experimental.ThreadPrefetchIterDataset(
        begun.map(assembler.finish), prefetch_buffer_size=1
      )
    )
    self._assembled, self._failed = 0, collections.Counter()

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    """Returns the next batch.

    Raises:
      DataError: no source is active, every row is dropped, a row breaks the schema and such rows
        are not skipped, or too many rows are broken (among all draws so far, or among the samples
        that this process has decoded).
    """
    batch, failed = next(self._made)
    self._failed.update(failed)
    self._assembled += sum(batch.samples.values()) + failed.total()
    if self._assembled >= JUDGED and self._failed.total() > self._share * self._assembled:
      raise too_many_bad(
        self._failed.total(), self._assembled, self._failed, self._share, batch.examples
      )
    return batch

  def get_state(self) -> dict[str, Any]:
    """Returns the state after the last returned batch; the same on every host.

    Batches prepared ahead do not change it.
    """
    return self._made.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Resumes exactly from `state`.

    Raises:
      DataError: the state is of other sources, or files have changed since.
    """
    self._made.set_state(state)

  def close(self) -> None:
    """Ends the threads and writes the measured lengths. May be called twice."""
    self._made.close()
    for pool in self._pools:
      pool.shutdown(wait=True, cancel_futures=True)
    for measured in self._lengths.values():
      measured.close()


def batches(
  sources: Sequence[Source],
  tok: ChatTokenizer,
  frames: sft.Frames,
  frame_options: sft.FrameOptions,
  options: BatchOptions,
  seed: int,
  *,
  shard: tuple[int, int] = (0, 1),
  cache: Cache | None = None,
) -> Batches:
  """Returns this host's stream of batches, prepared ahead in threads.

  The same arguments give the same batches.

  Args:
    sources: the conversations to draw from.
    tok: the tokenizer.
    frames: decodes frames, and gives durations and sizes.
    frame_options: how frames are sampled and resized.
    options: sizes of a batch.
    seed: of the draws and orders.
    shard: (index, count): this host's rows are [index*R/count, (index+1)*R/count) of each
      micro-batch. The rows of all hosts in order are the batch of a single host.
    cache: the cache of lengths between runs; None for no cache.

  Raises:
    ConfigError: the number of hosts does not divide the rows, or slots are too small for the
      pixel limits of frames or images.
  """
  check(options, frame_options, shard)
  measuring = concurrent.futures.ThreadPoolExecutor(options.workers, 'lengths')
  decoding = concurrent.futures.ThreadPoolExecutor(options.workers, 'samples')
  planner, measured = make_planner(
    sources, tok, frames, frame_options, options, seed, measuring, cache, alone=shard[1] == 1
  )
  assembler = Assembler(sources, tok, frames, frame_options, options, shard, decoding)
  return Batches(_Plans(planner), assembler, measured, (measuring, decoding), options)


def make_planner(
  sources: Sequence[Source],
  tok: ChatTokenizer,
  frames: sft.Frames,
  frame_options: sft.FrameOptions,
  options: BatchOptions,
  seed: int,
  pool: concurrent.futures.Executor,
  cache: Cache | None,
  *,
  alone: bool = True,
) -> tuple[Planner, dict[str, Lengths]]:
  """Returns the planner of `batches` and its row lengths by source.

  `pool` measures rows ahead; for `alone` see Lengths.
  """
  measured = {
    source.name: Lengths(
      source.conversations,
      tok,
      frames,
      frame_options,
      options.image_patches,
      options.skip_bad_rows,
      pool,
      cache,
      alone,
    )
    for source in sources
  }
  capacity = (options.row_tokens, options.row_images, options.row_large_images)
  plan = PlanOptions(
    options.micro_batches * options.rows,
    capacity,
    options.lookahead,
    options.refill,
    options.max_bad_share,
  )
  return Planner(sources, measured, plan, seed), measured


def check(options: BatchOptions, frame_options: sft.FrameOptions, shard: tuple[int, int]) -> None:
  """Raises ConfigError for incompatible sizes."""
  if options.rows % shard[1]:
    raise ConfigError(
      f'train.rows: got {options.rows}, wanted a multiple of {shard[1]}, the number of hosts'
    )
  largest = max(
    options.image_patches, options.large_image_patches if options.row_large_images else 0
  )
  for name, pixels, slot_patches in (
    ('video.max_pixels', frame_options.max_pixels, options.image_patches),
    ('frames.image_max_pixels', frame_options.image_max_pixels, largest),
  ):
    if pixels > slot_patches * packing.PATCH**2:
      raise ConfigError(
        f'{name}: got {pixels}, wanted at most {slot_patches * packing.PATCH**2}, what a '
        f'slot of {slot_patches} '
        'patches holds; raise train.image_patches or train.large_image_patches (with '
        'train.row_large_images), or lower it'
      )


@dataclasses.dataclass(frozen=True)
class _PendingBatch:
  """A plan and this host's share of it."""

  plan: Plan
  bins: tuple[tuple[int, ...], ...]  # of this host's rows: indices into the plan's items
  # index of an item -> its sample, or why it is dropped
  samples: dict[int, concurrent.futures.Future]


class Assembler:
  """Turns plans into arrays.

  `begin` starts to decode this host's samples. `finish` waits for them and packs them.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    tok: ChatTokenizer,
    frames: sft.Frames,
    frame_options: sft.FrameOptions,
    options: BatchOptions,
    shard: tuple[int, int],
    pool: concurrent.futures.Executor,
  ):
    self._rows = {source.name: source.conversations for source in sources}
    self._tok, self._frame_options, self._options = tok, frame_options, options
    self._frames, self._pool = frames, pool
    self._here = options.rows // shard[1]  # rows of a micro-batch on this host
    self._first = shard[0] * self._here

  def begin(self, plan: Plan) -> _PendingBatch:
    """Starts to decode this host's rows of a plan."""
    rows, at = self._options.rows, range(self._first, self._first + self._here)
    bins = (*plan.bins, *[()] * (self._options.micro_batches * rows - len(plan.bins)))
    bins = tuple(
      bins[micro * rows + row] for micro in range(self._options.micro_batches) for row in at
    )
    return _PendingBatch(
      plan,
      bins,
      {i: self._pool.submit(self._sample, plan.items[i]) for members in bins for i in members},
    )

  def finish(self, begun: _PendingBatch) -> tuple[Batch, collections.Counter]:
    """Returns (the batch, failed samples by reason).

    A sample is left out if its media fail, or if it is longer than planned and does not fit.
    """
    plan = begun.plan
    failed = collections.Counter()
    misjudged = 0
    repeated = 0
    examples = dict(plan.examples)
    samples = []
    kept = collections.Counter()
    bins = []
    # for each row: wait for its samples, drop those that failed, then those that do not fit
    for members in begun.bins:
      row: list[tuple[Item, packing.Sample]] = []
      for i in members:
        sample, reason, fault, left_out = begun.samples[i].result()
        repeated += left_out
        if sample is not None:
          row.append((plan.items[i], sample))
          continue
        failed[reason] += 1
        examples.setdefault(reason, self._line(plan.items[i], reason, fault))
      for item in self._fit(row):
        misjudged += 1
        examples.setdefault(
          MISJUDGED,
          self._line(item, MISJUDGED, 'longer than its header promises (its frame rate varies)'),
        )
      bins.append(range(len(samples), len(samples) + len(row)))
      samples += [packing.Tree(sample) for _, sample in row]
      kept.update(item[0] for item, _ in row)
    planned = collections.Counter(plan.dropped if self._first == 0 else {})
    dropped = planned + failed + collections.Counter({MISJUDGED: misjudged})
    return self._batch(plan, samples, bins, kept, dropped, examples, repeated), failed

  def _batch(
    self,
    plan: Plan,
    trees: list[packing.Tree],
    bins: list[Sequence[int]],
    kept: collections.Counter,
    dropped: collections.Counter,
    examples: dict[str, str],
    repeated: int,
  ) -> Batch:
    options = self._options
    packed = packing.pack(
      trees,
      row_tokens=options.row_tokens,
      row_images=options.row_images,
      image_patches=options.image_patches,
      row_large_images=self._large_images(plan),
      large_image_patches=options.large_image_patches,
      image_id=self._tok.image_pad,
      rows_multiple=self._here,
      extras=EXTRAS,
      bins=bins,
    )
    # [rows, T, ...] -> [M, R, T, ...]
    arrays, _ = packed.micro_batches(self._here, options.micro_batches)
    used = max(1, -(-len(plan.bins) // options.rows))
    tokens = int((packed.segments_RT > 0).sum())
    return Batch(
      arrays,
      used,
      plan.digest,
      dict(kept),
      tokens,
      int(packed.extras[sft.MASK].sum()),
      dict(dropped),
      examples,
      tokens / (used * self._here * options.row_tokens),
      repeated,
    )

  def _large_images(self, plan: Plan) -> int:
    """Returns the slots for large images that the rows of a plan need, the same on all hosts.

    Most videos need none, and such a slot is as large as twenty frames.
    """
    options = self._options
    need = max((sum(plan.sizes[i][2] for i in members) for members in plan.bins), default=0)
    return row_layout.slots(need, options.row_large_images, options.shapes)

  def _sample(self, item: Item) -> tuple[packing.Sample | None, str, str, int]:
    """Returns (sample, '', '', repeated frames removed) or (None, reason, fault, 0)."""
    repeated: list[int] = []
    media = sft.decoded(self._frames, self._frame_options, repeated.append)
    try:
      return (
        sft.sample(self._tok, self._rows[item[0]][item[1]], media, self._frame_options),
        '',
        '',
        sum(repeated),
      )
    except MediaError as error:
      return None, f'media_{error.reason}', str(error), 0
    except (fields.Broken, DataError) as error:
      # the row was readable when it was planned, so its media were deleted since
      return None, fields.reason_of(error), str(error), 0
    except ChatError as error:
      return None, 'chat', str(error), 0

  def _fit(self, row: list[tuple[Item, packing.Sample]]) -> list[Item]:
    """Removes the last samples of a row until the rest fits; returns the removed items.

    A video of varying frame rate may be longer than planned.
    """
    capacity = (self._options.row_tokens, self._options.row_images, self._options.row_large_images)
    sizes = [packing.sizes(packing.Tree(sample), self._options.image_patches) for _, sample in row]
    out = []
    while any(sum(size[k] for size in sizes) > capacity[k] for k in range(3)):
      sizes.pop()
      out.append(row.pop()[0])
    return out

  def _line(self, item: Item, reason: str, fault: str) -> str:
    return f'{item[0]}\t{lengths.name(self._rows[item[0]], item[1])}\t{reason}\t{fault}'

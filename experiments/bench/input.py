"""The SFT input pipeline of the 8B recipe, one device's share: how full packs are, samples/s by
stage, how long a step waits.
"""

import concurrent.futures
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.bench import media as bench_media
from experiments.bench.recipe import BenchRecipe
from paravt_jax import packing
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, sft
from paravt_jax.orchestrator import parts, sft_data
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.types import Clip
from paravt_jax.video.readers import VideoInfo
from paravt_jax.video.store import FrameStore

Say = Callable[[str], None]


class SquareVideos:
  """Videos that are only asked for their size: 224 x 224 pixels, 49 tokens a frame."""

  SECONDS = 120.0

  def probe_sync(self, path: str) -> VideoInfo:
    """Two minutes at 30 frames a second."""
    return VideoInfo(self.SECONDS, 30.0, 3600, 224, 224)

  def frames_sync(
    self, path: str, seconds: Sequence[float], min_pixels: int, max_pixels: int
  ) -> Clip:
    """Nothing is decoded here."""
    raise NotImplementedError(path)


def step_seconds(config: BenchRecipe) -> float:
  """How long one device takes for its packs, by the accelerator's estimate: 6 * parameters * tokens
  / (peak FLOP/s * share).
  """
  step, train = config.data.step, config.data.sft.train
  tokens = train.micro_batches * train.rows * train.row_tokens
  return 6 * step.parameters * tokens / (step.peak_flops * step.share)


def packing_efficiency(config: BenchRecipe, folder: pathlib.Path) -> float:
  """Share of the rows' tokens that are not padding, over many plans of the stated mix, by the
  recipe's own planner.
  """
  mix, knobs, media = config.data.mix, config.data.packing, folder / 'packing'
  images = [image.name for image in bench_media.make_images(media, mix.images, mix.image_tokens)]
  rows = bench_media.mixed_rows(
    knobs.rows, mix, lambda n: f'{n}.mp4', images, SquareVideos.SECONDS, config.seed
  )
  file = bench_media.parquet(media / 'paravt_sft_bench.parquet', rows)
  recipe = _of(config.data.sft, file, media)
  train, sources = recipe.train, sft_data.sources(recipe)
  with concurrent.futures.ThreadPoolExecutor(recipe.video.workers) as pool:
    planner, _ = batches.make_planner(
      sources,
      _tokenizer(config),
      SquareVideos(),
      sft_data.frame_options(recipe),
      sft_data.batch_options(recipe),
      config.seed,
      pool,
      None,
    )
    used = sum(planner.plan().tokens for _ in range(knobs.batches))
  return used / (knobs.batches * train.micro_batches * train.rows * train.row_tokens)


def measure(
  config: BenchRecipe, folder: pathlib.Path, clip: pathlib.Path, say: Say
) -> dict[str, Any]:
  """{'input_wait_share', 'first_epoch_wait_share', 'input', 'stages'}: the real pipeline in its
  first epoch and in its second.

  A step is a sleep of `step_seconds`; the share is that of the time waited for batches, after the
  first one of each epoch, which comes while a run compiles. The second epoch makes the same
  batches once more, from the store that the first filled.
  """
  knobs, recipe = config.data.input, _corpus(config, folder / 'corpus', clip)
  tok, seconds = _tokenizer(config), step_seconds(config)
  recipe = recipe.replace(
    video=recipe.video.replace(cache_folder=str(folder / 'frames')),
    data=recipe.data.replace(cache_folder=''),
  )
  shutil.rmtree(folder / 'frames', ignore_errors=True)
  report, details = {}, {'step_seconds': seconds, 'steps': knobs.steps}
  for epoch in ('first', 'second'):
    say(f'{knobs.steps} steps of {seconds:.2f} s, {epoch} epoch')
    with parts.decode_pool(recipe.video) as pool:
      found = _epoch(recipe, tok, sft_data.frame_source(recipe, pool), knobs.steps, seconds)
    report[epoch] = found['waited_seconds'] / (found['waited_seconds'] + knobs.steps * seconds)
    details |= {f'{epoch}_{name}': value for name, value in found.items()}
  say('the stages one by one')
  return {
    'input_wait_share': report['second'],
    'first_epoch_wait_share': report['first'],
    'input': details,
    'stages': _stages(config, recipe, tok, folder / 'stage_frames'),
  }


def _tokenizer(config: BenchRecipe) -> ChatTokenizer:
  return ChatTokenizer.load(config.model.folder or parts.tiny_model(config.seed))


def _of(recipe: SFTRecipe, file: pathlib.Path, media_root: pathlib.Path) -> SFTRecipe:
  return recipe.replace(data=recipe.data.replace(train=(str(file),), media_root=str(media_root)))


def _corpus(config: BenchRecipe, folder: pathlib.Path, clip: pathlib.Path) -> SFTRecipe:
  """The recipe on a parquet file of the stated mix and its media: every row has a video of its own
  (a link).
  """
  knobs, mix, media = config.data.input, config.data.mix, folder / bench_media.BUCKET
  media.mkdir(parents=True, exist_ok=True)
  images = [
    f'{bench_media.BUCKET}/{image.name}'
    for image in bench_media.make_images(media, mix.images, mix.image_tokens)
  ]

  def video(n: int) -> str:
    link = media / f'{clip.stem}-{n}.mp4'
    if not link.exists():
      os.link(clip, link)
    return f'{bench_media.BUCKET}/{link.name}'

  rows = bench_media.mixed_rows(
    knobs.rows, mix, video, images, config.data.clip.seconds, config.seed
  )
  file = bench_media.parquet(folder / 'paravt_sft_bench.parquet', rows)
  return _of(config.data.sft, file, folder)


def _epoch(
  recipe: SFTRecipe, tok: ChatTokenizer, frames: sft.Frames, steps: int, seconds: float
) -> dict[str, Any]:
  """The seconds waited in `steps` steps after the first batch, and what the batches held."""
  data = sft_data.make_batches(recipe, sft_data.sources(recipe), tok, frames)
  waited, found = 0.0, [next(data)]
  try:
    for _ in range(steps):
      time.sleep(seconds)
      start = time.perf_counter()
      found.append(next(data))
      waited += time.perf_counter() - start
  finally:
    data.close()
  return {
    'waited_seconds': waited,
    'samples': sum(sum(batch.samples.values()) for batch in found),
    'dropped': sum(sum(batch.dropped.values()) for batch in found),
    'pack_fill': float(np.mean([batch.fill for batch in found])),
  }


def _stages(
  config: BenchRecipe, recipe: SFTRecipe, tok: ChatTokenizer, cache: pathlib.Path
) -> dict[str, float]:
  """Samples per second of each stage alone: read a row, tokenise and size it, decode it, read it
  from the store, pack.
  """
  options = sft_data.frame_options(recipe)
  (source,) = sft_data.sources(recipe)
  count = min(config.data.input.stage_rows, len(source.conversations))
  rates: dict[str, float] = {}

  def timed(name: str, work: Callable[[], Sequence]) -> Sequence:
    start = time.perf_counter()
    made = work()
    rates[f'{name}_samples_per_second'] = len(made) / (time.perf_counter() - start)
    return made

  rows = timed('read_row', lambda: [source.conversations[n] for n in range(count)])
  shutil.rmtree(cache, ignore_errors=True)
  with (
    parts.decode_pool(recipe.video) as pool,
    concurrent.futures.ThreadPoolExecutor(recipe.video.workers) as threads,
  ):

    def whole(frames: FrameStore) -> list[packing.Sample]:
      return list(
        threads.map(lambda row: sft.sample(tok, row, sft.decoded(frames, options), options), rows)
      )

    timed(
      'plan',
      lambda: [sft.sample(tok, row, sft.media_sizes(pool, options), options) for row in rows],
    )
    timed('decode', lambda: whole(FrameStore(cache, pool, 0)))
    samples = timed('store_read', lambda: whole(FrameStore(cache, pool, 0)))
  train = recipe.train
  timed(
    'pack',
    lambda: (
      packing.pack(
        [packing.Tree(sample) for sample in samples],
        row_tokens=train.row_tokens,
        row_images=train.row_images,
        image_patches=train.image_patches,
        row_large_images=train.row_large_images,
        large_image_patches=train.large_image_patches,
        image_id=tok.image_pad,
        rows_multiple=1,
        extras=batches.EXTRAS,
      ).spans
    ),
  )
  return rates

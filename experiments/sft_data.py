"""The data of an SFT recipe: its sources, how frames are sampled and kept, and the batches; used by
training, preview and bench.
"""

import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments import wiring
from experiments.launch import build
from paravt_jax.chat import slow
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, fields, manifest, provenance, sft, table
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore


def sources(config: ConfigDict) -> list[batches.Source]:
  """The sources of the recipe: its world, its manifest's, or a source per file; their rows are
  parsed when they are drawn.
  """
  section = config.data
  if section.kind == 'world':
    world, root = wiring.make_world(config)
    entries = manifest.of_files(world.sft)
  else:
    root = pathlib.Path(section.media_root)
    entries = (
      manifest.read(section.manifest)
      if section.manifest
      else manifest.of_files(wiring.existing(section.train, 'data.train'))
    )
  options = fields.RowOptions(skip_bad_rows=section.skip_bad_rows, require_media=False)
  tables = {
    entry.name: table.Table(entry.files, root, options, section.cache_folder or None)
    for entry in entries
  }
  chosen = {name: tuple(value) for name, value in config.sources.items()}
  unknown = sorted(set(chosen) - set(tables))
  if unknown and section.kind == 'files':  # the tiny recipe names the world's, which is no fault
    print(
      f'sources: no data is named {", ".join(unknown)} (there is {", ".join(tables)}); left out',
      file=sys.stderr,
    )
  found = manifest.weighted(entries, chosen, {name: len(rows) for name, rows in tables.items()})
  return [
    batches.Source(
      entry.name, tables[entry.name], weight, entry.first, entry.last, tables[entry.name].identity
    )
    for entry, weight in found
  ]


def frame_options(config: ConfigDict) -> sft.FrameOptions:
  """How frames are sampled."""
  return build(
    sft.FrameOptions,
    config.frames,
    'frames',
    min_pixels=config.video.min_pixels,
    max_pixels=config.video.max_pixels,
  )


def batch_options(config: ConfigDict) -> batches.BatchOptions:
  """The sizes of a batch, on all hosts, and how it is made."""
  section = config.train
  return build(
    batches.BatchOptions,
    config.batches,
    'batches',
    micro_batches=section.micro_batches,
    rows=section.rows,
    row_tokens=section.row_tokens,
    row_images=section.row_images,
    image_patches=section.image_patches,
    row_stills=section.row_stills,
    still_patches=section.still_patches,
    workers=config.video.workers,
    skip_bad_rows=config.data.skip_bad_rows,
    max_bad_share=config.data.max_bad_share,
  )


def frame_source(config: ConfigDict, pool: DecodePool) -> sft.Frames:
  """Where frames come from: the synthetic videos from memory, others from the store of frames,
  decoded once.
  """
  video = config.video
  if config.data.kind == 'world':
    return batches.FrameBank(pool, 1.0, video.min_pixels, video.max_pixels)
  return FrameStore(
    video.cache_folder or None, pool, video.cache_mb << 20, video.cache_gb << 30 or None
  )


def make_batches(
  config: ConfigDict,
  rows: Sequence[batches.Source],
  tok: ChatTokenizer,
  frames: sft.Frames,
  *,
  base: str = '',
  shard: tuple[int, int] = (0, 1),
) -> batches.Batches:
  """The endless iterator of packed batches. base: the folder of the tokenizer, for lengths to be
  kept between runs.
  """
  cache = None
  if config.data.cache_folder and base:
    cache = batches.Cache(pathlib.Path(config.data.cache_folder), _tokenizer(pathlib.Path(base)))
  return batches.batches(
    rows,
    tok,
    frames,
    frame_options(config),
    batch_options(config),
    config.seed,
    shard=shard,
    cache=cache,
  )


def _tokenizer(base: pathlib.Path) -> str:
  """A digest of the files of a tokenizer."""
  names = (
    ('tokenizer.json',)
    if (base / 'tokenizer.json').exists()
    else (*slow.FILES, 'tokenizer_config.json', 'added_tokens.json')
  )
  return '-'.join(provenance.digest(base / name) for name in names if (base / name).exists())


def identities(found: Sequence[batches.Source]) -> dict[str, list[list[str]]]:
  """[[file, digest of its content], ...] by source."""
  return {source.name: [list(file) for file in source.identity] for source in found}

"""The data of an SFT recipe: its sources, how frames are sampled and cached, and the batches."""

import pathlib
import sys
from collections.abc import Sequence

from paravt_jax.chat import slow
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, fields, manifest, provenance, sft, table
from paravt_jax.options import extended
from paravt_jax.orchestrator import corpus
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore


def sources(recipe: SFTRecipe) -> list[batches.Source]:
  """Returns the recipe's sources: its world, its manifest's sources, or one source per file.

  Rows are parsed when they are drawn.
  """
  section = recipe.data
  if section.kind == 'world' and recipe.world is not None:
    world, root = corpus.make_world(recipe.world)
    entries = manifest.of_files(world.sft)
  else:
    root = pathlib.Path(section.media_root)
    entries = (
      manifest.read(section.manifest)
      if section.manifest
      else manifest.of_files(corpus.existing(section.train, 'data.train'))
    )
  options = fields.RowOptions(
    section.skip_bad_rows, require_media=False, follow_links=section.follow_links
  )
  tables = {
    entry.name: table.Table(entry.files, root, options, section.cache_folder or None)
    for entry in entries
  }
  chosen = dict(recipe.sources)
  unknown = sorted(set(chosen) - set(tables))
  if unknown and section.kind == 'files':  # no error: the tiny recipe names the world's sources
    print(
      f'sources: no data is named {", ".join(unknown)} (there is {", ".join(tables)}); left out',
      file=sys.stderr,
    )
  found = manifest.with_weights(entries, chosen, {name: len(rows) for name, rows in tables.items()})
  return [
    batches.Source(
      entry.name, tables[entry.name], weight, entry.first, entry.last, tables[entry.name].identity
    )
    for entry, weight in found
  ]


def frame_options(recipe: SFTRecipe) -> sft.FrameOptions:
  """Returns how frames are sampled."""
  video = recipe.video
  return extended(
    sft.FrameOptions, recipe.frames, min_pixels=video.min_pixels, max_pixels=video.max_pixels
  )


def batch_options(recipe: SFTRecipe) -> batches.BatchOptions:
  """Returns the sizes of a batch over all hosts, and how it is made."""
  section = recipe.train
  return extended(
    batches.BatchOptions,
    recipe.batches,
    micro_batches=section.micro_batches,
    rows=section.rows,
    row_tokens=section.row_tokens,
    row_images=section.row_images,
    image_patches=section.image_patches,
    row_large_images=section.row_large_images,
    large_image_patches=section.large_image_patches,
    workers=recipe.video.workers,
    skip_bad_rows=recipe.data.skip_bad_rows,
    max_bad_share=recipe.data.max_bad_share,
  )


def frame_source(recipe: SFTRecipe, pool: DecodePool) -> sft.Frames:
  """Returns the source of frames.

  Synthetic videos come from memory. Other frames come from the frame store, which decodes them
  once.
  """
  video = recipe.video
  if recipe.data.kind == 'world':
    return batches.FrameBank(pool, 1.0, video.min_pixels, video.max_pixels)
  limit = video.cache_gb << 30 or None
  return FrameStore(video.cache_folder or None, pool, video.cache_mb << 20, limit)


def make_batches(
  recipe: SFTRecipe,
  rows: Sequence[batches.Source],
  tok: ChatTokenizer,
  frames: sft.Frames,
  *,
  base: str = '',
  shard: tuple[int, int] = (0, 1),
) -> batches.Batches:
  """Returns the endless iterator of packed batches.

  base: the folder of the tokenizer. It identifies the lengths that are cached between runs.
  """
  cache = None
  if recipe.data.cache_folder and base:
    cache = batches.Cache(pathlib.Path(recipe.data.cache_folder), _tokenizer(pathlib.Path(base)))
  return batches.batches(
    rows,
    tok,
    frames,
    frame_options(recipe),
    batch_options(recipe),
    recipe.seed,
    shard=shard,
    cache=cache,
  )


def _tokenizer(base: pathlib.Path) -> str:
  """Returns a digest of a tokenizer's files."""
  names = (
    ('tokenizer.json',)
    if (base / 'tokenizer.json').exists()
    else (*slow.FILES, 'tokenizer_config.json', 'added_tokens.json')
  )
  return '-'.join(provenance.digest(base / name) for name in names if (base / name).exists())


def identities(found: Sequence[batches.Source]) -> dict[str, list[list[str]]]:
  """Returns [[file, digest of its content], ...] by source."""
  return {source.name: [list(file) for file in source.identity] for source in found}

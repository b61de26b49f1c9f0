"""Arrays of one call of a program, made on the host from images, chunks of contexts, and jobs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paravt_jax.serving.embedded import programs
from paravt_jax.serving.embedded.images import ImagePatches
from paravt_jax.serving.embedded.jobs import Chunk, Job, Lane
from paravt_jax.serving.embedded.prompts import Prompt

PlaceOf = Callable[[bytes], int]  # from the digest of an image to the place of its features


def of_images(
  s: programs.Shapes, images: Sequence[ImagePatches], place: PlaceOf
) -> tuple[np.ndarray, ...]:
  """Returns pixels, grids and slots of at most `image_batch` images, for `programs.encode`.

  Padding images have zero grids and write to the extra slot `image_slots`.
  """
  pixels = np.zeros((s.image_batch, s.patches, 3 * s.config.vision.patch**2), np.uint8)
  grids = np.zeros((s.image_batch, 2), np.int32)
  slots = np.full(s.image_batch, s.image_slots, np.int32)
  for n, image in enumerate(images):
    pixels[n, : len(image.patches_XC)] = image.patches_XC
    grids[n] = image.grid
    slots[n] = place(image.digest)
  return pixels, grids, slots


def of_chunks(
  s: programs.Shapes, chunks: Sequence[Chunk], place: PlaceOf
) -> tuple[np.ndarray, ...]:
  """Returns the arrays of at most `rows` chunks, for `programs.prefill`.

  Padding rows point at the extra page `pages` and have one token.
  """
  token, visual_index = np.zeros((s.rows, s.chunk), np.int32), np.full((s.rows, s.chunk), -1)
  position = np.zeros((3, s.rows, s.chunk), np.int32)
  table = np.full((s.rows, s.context // s.chunk), s.pages, np.int32)
  index, count = np.zeros(s.rows, np.int32), np.ones(s.rows, np.int32)
  for r, chunk in enumerate(chunks):
    part = slice(chunk.index * s.chunk, (chunk.index + 1) * s.chunk)
    ids = chunk.context.ids_T[part]
    n = len(ids)
    token[r, :n], position[:, r, :n] = ids, chunk.context.positions_AT[:, part]
    table[r, : chunk.index + 1] = chunk.table[: chunk.index + 1]
    index[r], count[r] = chunk.index, n
    if chunk.digests:
      visual_index[r, :n] = _feature_places(s, chunk.context, part, place)
  return token, position, visual_index.astype(np.int32), table, index, count


def _feature_places(s: programs.Shapes, context: Prompt, part: slice, place: PlaceOf) -> np.ndarray:
  """Returns, per token, the index of its image feature, -1 for text."""
  image_T = context.image_T[part]
  slots = {int(i): place(context.images[i].digest) for i in np.unique(image_T) if i >= 0}
  slot_T = np.array([slots.get(int(i), 0) for i in image_T], np.int32)
  return np.where(image_T >= 0, slot_T * s.merged + context.offset_T[part], -1)


def of_jobs(
  shapes: programs.Shapes,
  lane: Lane,
  batch: Sequence[tuple[int, Job]],
  bias_row: Callable[[Job], int],
) -> dict[str, Any]:
  """Returns the arrays of `programs.admission` for (slot, job) pairs.

  bias_row: returns the row of the bias table for a job's logit bias.
  """
  rows = programs.admission(shapes, lane.context // shapes.chunk)
  sampling = rows['sampling']
  for a, (slot, job) in enumerate(batch):
    request = job.request
    # The place of the context in the cache.
    rows['slot'][a] = slot
    full, rest = divmod(len(job.context), shapes.chunk)
    last = len(job.context.keys) - 1
    rows['last'][a] = job.table[last]
    rows['length'][a] = len(job.context)
    rows['position'][a] = job.context.next_position
    table = job.table
    if shapes.layout.paged:
      # the slot writes to pages of its own: after the full ones comes a copy of the last one
      own = job.table[last + 1 :]
      table = np.concatenate([job.table[:full], own])
      if rest:
        rows['copied'][a] = job.table[last], own[0]
    rows['table'][a, : len(table)] = table
    # The sampling parameters.
    sampling['count'][a] = len(job.ids)
    sampling['budget'][a] = request.max_new_tokens
    sampling['seed'][a] = job.seed >> 32, job.seed & 0xFFFFFFFF
    sampling['temperature'][a] = request.temperature
    sampling['top_p'][a] = request.top_p
    sampling['top_k'][a] = max(request.top_k, 0)
    sampling['stop'][a, : len(job.stops)] = sorted(job.stops)
    sampling['bias'][a] = bias_row(job)
  return rows

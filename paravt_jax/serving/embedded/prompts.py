"""Converts the ids of a request to the inputs of the prefill program.

It expands images, and computes positions and the hashes of chunks.
"""

import dataclasses

import numpy as np

from paravt_jax.models.qwen3_vl.positions import mrope_positions
from paravt_jax.serving.embedded.cache import chain_keys
from paravt_jax.serving.embedded.images import ImagePatches
from paravt_jax.serving.fields import RequestError
from paravt_jax.video import patches


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A context of n tokens, images expanded."""

  ids_T: np.ndarray  # int32[n]
  positions_AT: np.ndarray  # int32[3, n]: time, height, width
  image_T: np.ndarray  # index into `images` per token, -1 for text
  offset_T: np.ndarray  # index of the token within its image
  images: tuple[ImagePatches, ...]
  next_position: int  # position of the first sampled token
  keys: list[bytes]  # of its pages in the cache

  def __len__(self) -> int:
    return len(self.ids_T)


def expand(ids: list[int], images: tuple[ImagePatches, ...], image_id: int, chunk: int) -> Prompt:
  """Repeats every image pad once per merged token. Computes positions and hashes.

  Raises:
    RequestError: the numbers of pads and images differ.
  """
  raw = np.asarray(ids, np.int32)
  pads = np.flatnonzero(raw == image_id)
  if len(pads) != len(images):
    raise RequestError(
      f'input_ids hold {len(pads)} image placeholders (id {image_id}), image_data holds '
      f'{len(images)} '
      'images; send exactly one unexpanded placeholder per image'
    )
  repeats = np.ones(len(raw), np.int64)
  repeats[pads] = [image.tokens for image in images]
  image_of = np.full(len(raw), -1, np.int32)
  image_of[pads] = np.arange(len(pads))
  ids_T, image_T = np.repeat(raw, repeats), np.repeat(image_of, repeats)
  starts = np.repeat(np.cumsum(repeats) - repeats, repeats)
  offset_T = np.where(image_T >= 0, np.arange(len(ids_T)) - starts, 0).astype(np.int32)
  grids = [(p.grid[0] // patches.MERGE, p.grid[1] // patches.MERGE) for p in images]
  positions_AT, following = mrope_positions(ids_T, image_id, grids)
  keys = chain_keys(_content(ids_T, image_T, offset_T, images), chunk)
  return Prompt(ids_T, positions_AT, image_T, offset_T, images, following, keys)


def _content(
  ids_T: np.ndarray, image_T: np.ndarray, offset_T: np.ndarray, images: tuple[ImagePatches, ...]
) -> np.ndarray:
  """Returns int64[n]: per token, a number that identifies the model's input there.

  It is negative for image tokens.
  """
  if not images:
    return ids_T.astype(np.int64)
  names = np.array([int.from_bytes(p.digest[:8], 'little') >> 2 for p in images], np.int64)
  return np.where(image_T >= 0, -1 - names[image_T] - offset_T, ids_T)


def extend(prompt: Prompt, generated: list[int], chunk: int) -> Prompt:
  """Returns the prompt followed by generated text tokens.

  A retracted request restarts from the tokens that it has sampled.
  """
  n = len(generated)
  if not n:
    return prompt
  ids_T = np.concatenate([prompt.ids_T, np.asarray(generated, np.int32)])
  places = np.arange(prompt.next_position, prompt.next_position + n, dtype=np.int32)
  positions_AT = np.concatenate([prompt.positions_AT, np.broadcast_to(places, (3, n))], axis=1)
  image_T = np.concatenate([prompt.image_T, np.full(n, -1, np.int32)])
  offset_T = np.concatenate([prompt.offset_T, np.zeros(n, np.int32)])
  keys = chain_keys(_content(ids_T, image_T, offset_T, prompt.images), chunk)
  return Prompt(
    ids_T, positions_AT, image_T, offset_T, prompt.images, prompt.next_position + n, keys
  )

"""From the ids of a request to what the prefill program reads: images expanded, positions, hashes
of chunks.
"""

import dataclasses
import hashlib
from collections import OrderedDict

import numpy as np

from paravt_jax.models.qwen3_vl.positions import mrope_positions
from paravt_jax.serving.embedded.cache import chain_keys
from paravt_jax.serving.protocol import RequestError, decode_image
from paravt_jax.video import patches


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image of a request."""

  digest: bytes  # of its pixels and shape
  patches_XC: np.ndarray  # uint8[patches, 3 * 16 * 16]
  grid: tuple[int, int]  # (rows, columns) of patches
  tokens: int  # merged tokens it expands to


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A context of n tokens, images expanded."""

  ids_T: np.ndarray  # int32[n]
  positions_AT: np.ndarray  # int32[3, n]: time, height, width
  picture_T: np.ndarray  # index into `pictures` per token, -1 for text
  offset_T: np.ndarray  # place of the token in its picture
  pictures: tuple[Picture, ...]
  next_position: int  # of the first token that is sampled
  keys: list[bytes]  # of its pages in the cache

  def __len__(self) -> int:
    return len(self.ids_T)


class PictureStore:
  """Decoded images by the text they came in (a group sends the same frames eight times), newest
  `capacity` kept.
  """

  def __init__(self, capacity: int, max_patches: int):
    self._capacity, self._max_patches = capacity, max_patches
    self._pictures: OrderedDict[bytes, Picture] = OrderedDict()

  def get(self, text: str) -> Picture:
    """The picture behind a base64 string.

    Raises:
      RequestError: it is no image, of wrong sides, or larger than this server was started for.
    """
    name = hashlib.blake2b(text.encode(), digest_size=16).digest()
    picture = self._pictures.pop(name, None) or self._decode(text)
    self._pictures[name] = picture
    if len(self._pictures) > self._capacity:
      self._pictures.popitem(last=False)
    return picture

  def _decode(self, text: str) -> Picture:
    image = decode_image(text, self._max_patches)
    rows, grid = patches.patchify(image)
    digest = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
    return Picture(digest, rows, grid, patches.merged_tokens(grid))


def expand(ids: list[int], pictures: tuple[Picture, ...], image_id: int, chunk: int) -> Prompt:
  """Repeats every image pad once per merged token and lays out positions and hashes.

  Raises:
    RequestError: pads and pictures disagree in number.
  """
  raw = np.asarray(ids, np.int32)
  pads = np.flatnonzero(raw == image_id)
  if len(pads) != len(pictures):
    raise RequestError(
      f'input_ids hold {len(pads)} image placeholders (id {image_id}), image_data holds '
      f'{len(pictures)} '
      'images; send exactly one unexpanded placeholder per image'
    )
  repeats = np.ones(len(raw), np.int64)
  repeats[pads] = [picture.tokens for picture in pictures]
  picture_of = np.full(len(raw), -1, np.int32)
  picture_of[pads] = np.arange(len(pads))
  ids_T, picture_T = np.repeat(raw, repeats), np.repeat(picture_of, repeats)
  starts = np.repeat(np.cumsum(repeats) - repeats, repeats)
  offset_T = np.where(picture_T >= 0, np.arange(len(ids_T)) - starts, 0).astype(np.int32)
  grids = [(p.grid[0] // patches.MERGE, p.grid[1] // patches.MERGE) for p in pictures]
  positions_AT, following = mrope_positions(ids_T, image_id, grids)
  keys = chain_keys(_content(ids_T, picture_T, offset_T, pictures), chunk)
  return Prompt(ids_T, positions_AT, picture_T, offset_T, pictures, following, keys)


def _content(
  ids_T: np.ndarray, picture_T: np.ndarray, offset_T: np.ndarray, pictures: tuple[Picture, ...]
) -> np.ndarray:
  """int64[n]: a number per token that stands for all that the model sees there; negative for image
  tokens.
  """
  if not pictures:
    return ids_T.astype(np.int64)
  names = np.array([int.from_bytes(p.digest[:8], 'little') >> 2 for p in pictures], np.int64)
  return np.where(picture_T >= 0, -1 - names[picture_T] - offset_T, ids_T)


def extend(prompt: Prompt, generated: list[int], chunk: int) -> Prompt:
  """The prompt followed by generated text tokens (a retracted request starts again from its own
  tokens).
  """
  n = len(generated)
  if not n:
    return prompt
  ids_T = np.concatenate([prompt.ids_T, np.asarray(generated, np.int32)])
  places = np.arange(prompt.next_position, prompt.next_position + n, dtype=np.int32)
  positions_AT = np.concatenate([prompt.positions_AT, np.broadcast_to(places, (3, n))], axis=1)
  picture_T = np.concatenate([prompt.picture_T, np.full(n, -1, np.int32)])
  offset_T = np.concatenate([prompt.offset_T, np.zeros(n, np.int32)])
  keys = chain_keys(_content(ids_T, picture_T, offset_T, prompt.pictures), chunk)
  return Prompt(
    ids_T, positions_AT, picture_T, offset_T, prompt.pictures, prompt.next_position + n, keys
  )

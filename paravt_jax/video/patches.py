"""Frames to patches: one target size, one resize, and the order in which Qwen3-VL reads patches.

A patch is 16x16 pixels; 2x2 neighbouring patches are merged into one token, so sides are multiples
of 32. Patches are listed merge block by merge block (2x2 order): four consecutive ones make one
token. The channels of a patch are ordered by colour, row, column.
"""

import math

import numpy as np
from PIL import Image

from paravt_jax.errors import ConfigError

PATCH = 16  # pixels of a patch's side; fixed by the model family
MERGE = 2  # patches of a merged token's side
SIDE = PATCH * MERGE


def target_size(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
  """Returns the size (height, width) that frames of the given size are resized to.

  The sides are the nearest multiples of 32 that roughly keep the aspect ratio, with min_pixels <=
  area <= max_pixels. This is Qwen's `smart_resize`, except for very long strips, where
  `smart_resize` exceeds max_pixels. The function is idempotent, so a server does not resize again.

  Raises:
    ConfigError: max_pixels is below 1024 (32 x 32), or min_pixels is above max_pixels.
    ValueError: a side is not positive.
  """
  if height < 1 or width < 1:
    raise ValueError(f'target_size: got {height}x{width}, wanted positive sides')
  if max_pixels < SIDE * SIDE or min_pixels > max_pixels:
    raise ConfigError(
      f'pixel limits: got [{min_pixels}, {max_pixels}], wanted min <= max and max >= {SIDE * SIDE}'
    )
  h, w = (max(SIDE, round(side / SIDE) * SIDE) for side in (height, width))
  if h * w > max_pixels:
    scale = math.sqrt(height * width / max_pixels)
    h, w = (max(SIDE, math.floor(side / scale / SIDE) * SIDE) for side in (height, width))
  elif h * w < min_pixels:
    scale = math.sqrt(min_pixels / (height * width))
    h, w = (math.ceil(side * scale / SIDE) * SIDE for side in (height, width))
  return _within(h, w, max_pixels)


def _within(h: int, w: int, max_pixels: int) -> tuple[int, int]:
  """Shortens the longer side until the area fits.

  Rounding the short side of a strip up to 32 can make the area too large.
  """
  if h * w <= max_pixels:
    return h, w
  longer = max(SIDE, max_pixels // min(h, w) // SIDE * SIDE)
  return (longer, w) if h > w else (h, longer)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes uint8[N, H, W, 3] to uint8[N, h, w, 3] with PIL's bicubic filter.

  Frames that already have that size are returned unchanged.
  """
  height, width = size
  if frames.shape[1:3] == (height, width):
    return frames
  out = np.empty((len(frames), height, width, 3), np.uint8)
  for i, frame in enumerate(frames):
    out[i] = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
  return out


def is_whole(image: np.ndarray, side: int = SIDE) -> bool:
  """Returns whether an image is [H, W, 3] with sides that are positive multiples of `side`."""
  if image.ndim != 3 or image.shape[2] != 3 or not image.size:
    return False
  return image.shape[0] % side == 0 and image.shape[1] % side == 0


def patchify(
  frame: np.ndarray, patch: int = PATCH, merge: int = MERGE
) -> tuple[np.ndarray, tuple[int, int]]:
  """Cuts one frame into patches.

  Args:
    frame: uint8[H, W, 3], sides multiples of patch * merge.
    patch: pixels of a patch's side.
    merge: patches of a merged token's side.

  Returns:
    (patches uint8[X, C] with X = H/16 * W/16 in 2x2 merge order and C = 3*16*16, grid (H/16,
    W/16)).

  Raises:
    ValueError: the frame has another shape.
  """
  if not is_whole(frame, patch * merge):
    raise ValueError(
      f'patchify: got shape {frame.shape}, wanted [H, W, 3] with sides multiples of {patch * merge}'
    )
  h, w = frame.shape[0] // patch, frame.shape[1] // patch
  # (block row, row in block, pixel row, block column, column in block, pixel column, colour)
  pixels = frame.reshape(h // merge, merge, patch, w // merge, merge, patch, 3)
  # blocks, then the patches of a block, then colour before the pixels
  return pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(h * w, 3 * patch * patch), (h, w)


def merged_tokens(grid: tuple[int, int]) -> int:
  """Returns the number of merged tokens of an image with this patch grid."""
  return (grid[0] // MERGE) * (grid[1] // MERGE)

"""Reads image files of every Pillow mode as upright 8-bit RGB.

Images with more than 8 bits are scaled. Transparent images are composited over white. Rotated
images are turned upright. Of an animation, only the first image is read.
"""

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms

from paravt_jax.errors import MediaError

# The exceptions that Pillow raises for damaged images and for files that are not images.
FAULTS = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  LookupError,
  TypeError,
  AttributeError,
  ArithmeticError,
  RuntimeError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
  Image.DecompressionBombWarning,
)
_DEEP = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N', 'F')
_ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # a TIFF's tags
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def read(path: str) -> np.ndarray:
  """Returns uint8[H, W, 3] of an image file, converted by `rgb`.

  Raises:
    MediaError: 'missing', or 'decode' for a file that is not an image, is damaged or cut short, or
      has too many pixels.
  """
  with _open_image(path) as image:
    try:
      return rgb(image)
    except FAULTS as error:
      raise _image_error(path, error) from error


def size(path: str) -> tuple[int, int]:
  """Returns the (height, width) that `read` would return, from the file's header.

  Raises the errors of `read` that the header reveals. A PNG's header does not contain the
  orientation, so the size of a rotated PNG is returned as stored. Its area is still right.
  """
  with _open_image(path) as image:
    # Pillow turns a TIFF upright itself
    sideways = image.format not in ('PNG', 'TIFF') and _orientation(image) >= 5
    return (image.width, image.height) if sideways else (image.height, image.width)


def rgb(image: Image.Image) -> np.ndarray:
  """Returns uint8[H, W, 3] of an open image of any mode.

  The image is turned upright by its EXIF orientation and composited over white. Deep modes are
  scaled to 0..255:

    16-bit  from 0..65535; a TIFF with 9 to 15 bits from the range of its bits
    I       values within 0..255 stay, values within 0..65535 are scaled as 16-bit
    F       values within 0..1 are scaled from 0..1, values within 0..255 stay
    other   I and F values in any other range are scaled from their minimum to their maximum

  NaN becomes black. Colour profiles are ignored.

  Raises: one of FAULTS if the file of the image is damaged.
  """
  image.load()
  turn = _UPRIGHT.get(_orientation(image))
  image = _to_rgb(image)
  return np.array(image.transpose(turn) if turn is not None else image)


def _to_rgb(image: Image.Image) -> Image.Image:
  """Returns the image as RGB, without turning it upright."""
  clear = image.info.get('transparency')
  if image.mode in _DEEP:
    values = np.asarray(image)
    levels = _grey(values, _white(image))
    # a TIFF in which zero is white: Pillow inverts only 8-bit ones
    if getattr(image, 'tag_v2', {}).get(_PHOTOMETRIC) == 0:
      levels = 255 - levels
    grey = Image.fromarray(levels)
    if not isinstance(clear, int):
      return grey.convert('RGB')
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return _over_white(Image.merge('LA', (grey, Image.fromarray(alpha))))
  if image.mode == 'LAB':
    profiles = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    turned = ImageCms.profileToProfile(image, *profiles, outputMode='RGB')
    return image if turned is None else turned  # None: Pillow changed the image in place
  if image.mode in _ALPHA:
    return _over_white(image)
  if clear is not None and image.mode in ('1', 'L', 'P', 'RGB'):
    # a 16-bit transparent colour of a PNG, whose pixels Pillow reduces to 8 bits
    if isinstance(clear, tuple) and max(clear) > 255:
      image = image.copy()
      image.info['transparency'] = tuple(value >> 8 for value in clear)
    return _over_white(image)
  return image.convert('RGB')


def _over_white(image: Image.Image) -> Image.Image:
  if image.mode == 'La':
    image = image.convert('LA')
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, (255, 255, 255, 255))
  return Image.alpha_composite(white, image).convert('RGB')


def _white(image: Image.Image) -> int:
  """Returns the value of white in a 16-bit image."""
  bits = getattr(image, 'tag_v2', {}).get(_BITS_PER_SAMPLE, (16,))[0]
  return 2**bits - 1 if 8 < bits < 16 else 65535


def _grey(values: np.ndarray, white: int) -> np.ndarray:
  """Returns uint8[H, W] of deep values, scaled as `rgb` describes.

  white: the value of white if `values` are unsigned.
  """
  known = values[np.isfinite(values)].astype(np.float64)
  low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
  if values.dtype.kind == 'u':
    low, high = 0.0, float(white)
  elif low >= 0 and high <= (1 if values.dtype.kind == 'f' else 255):
    low, high = 0.0, 1.0 if values.dtype.kind == 'f' else 255.0
  elif low >= 0 and high <= (255 if values.dtype.kind == 'f' else 65535):
    low, high = 0.0, 255.0 if values.dtype.kind == 'f' else 65535.0
  finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
  return np.clip((finite - low) * (255 / max(high - low, 1e-30)) + 0.5, 0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation, 1 to 8; 1 (upright) if it is missing or unreadable."""
  try:
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
  except FAULTS:
    return 1
  return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _open_image(path: str) -> Image.Image:
  try:
    return Image.open(path)
  except FileNotFoundError:
    raise MediaError(
      f'{path}: no such file, wanted an image; unpack the media, or fix the row', 'missing'
    ) from None
  except FAULTS as error:
    raise _image_error(path, error) from error


def _image_error(path: str, error: BaseException) -> MediaError:
  return MediaError(
    f'{path}: cannot be read as an image ({error}); copy it again, or drop the row', 'decode'
  )

"""Still images of any kind to upright 8-bit RGB: one function for every mode of Pillow.

Deep images are scaled, transparent ones laid over white, rotated ones turned upright; of an
animation the first image counts.
"""

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms

from paravt_jax.errors import MediaError

# What Pillow raises for files that are no images, or damaged ones.
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
  """uint8[H, W, 3] of an image file, as `rgb`.

  Raises:
    MediaError: 'missing', or 'decode' for a file that is no image, is damaged or cut short, or has
    too many pixels.
  """
  with _open_image(path) as image:
    try:
      return rgb(image)
    except FAULTS as error:
      raise _image_error(path, error) from error


def size(path: str) -> tuple[int, int]:
  """(height, width) of an image file as `read` returns it, from its header. Raises as `read` for
  what the header tells.

  The header of a PNG does not hold its orientation, so that one lying on its side is told as
  stored: the area is the same.
  """
  with _open_image(path) as image:
    # Pillow itself turns a TIFF
    sideways = image.format not in ('PNG', 'TIFF') and _orientation(image) >= 5
    return (image.width, image.height) if sideways else (image.height, image.width)


def rgb(image: Image.Image) -> np.ndarray:
  """uint8[H, W, 3] of an open image of any mode: upright by its EXIF orientation, over white where
  it is transparent.

  16-bit values 0..65535 become 0..255 (of a TIFF that says it has 9 to 15 bits: those). Mode I
  within 0..255 is taken as it is, within 0..65535 as 16-bit; F within 0..1 as shares of white,
  within 0..255 as it is; any other I or F is stretched from its least value to its greatest. What
  is no number is black. Colour profiles are left alone.

  Raises: one of FAULTS where the file behind the image is damaged.
  """
  image.load()
  turn = _UPRIGHT.get(_orientation(image))
  image = _to_rgb(image)
  return np.array(image.transpose(turn) if turn is not None else image)


def _to_rgb(image: Image.Image) -> Image.Image:
  """The image as RGB, as it is stored."""
  clear = image.info.get('transparency')
  if image.mode in _DEEP:
    values = np.asarray(image)
    levels = _grey(values, _white(image))
    # where white is zero, Pillow turns only 8 bits
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
    return image if turned is None else turned  # None: it was changed in place
  if image.mode in _ALPHA:
    return _over_white(image)
  if clear is not None and image.mode in ('1', 'L', 'P', 'RGB'):
    # of a 16-bit PNG, whose pixels Pillow gives as 8 bits
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
  """The value of white of a 16-bit image."""
  bits = getattr(image, 'tag_v2', {}).get(_BITS_PER_SAMPLE, (16,))[0]
  return 2**bits - 1 if 8 < bits < 16 else 65535


def _grey(values: np.ndarray, white: int) -> np.ndarray:
  """uint8[H, W] of deep values; see `rgb`. white: the value of white where they are uint16."""
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
  """1 to 8 as EXIF has it; 1 where the image does not say, or says it in a block that is broken."""
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

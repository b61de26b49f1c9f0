"""Images by content: their names, and how their pixels travel once.

A request may name an image instead of holding it: `blake2b:` and 64 hex digits, a hash over
'<height>x<width>\\n' and the pixels. A server that has no such image says which ones are missing,
and gets these as one array in NumPy's .npy format.
"""

import ast
import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from paravt_jax.serving import fields
from paravt_jax.serving.fields import RequestError

PATH = '/images'  # POST: pixels for later requests that name them
MISSING_STATUS = 409  # of /generate when the server lacks named images
_MISSING_TYPE = 'missing_images'
_KIND = 'blake2b:'
_NAME = re.compile(r'blake2b:[0-9a-f]{64}')
_MAGIC = b'\x93NUMPY\x01\x00'  # of version 1.0, which writes all arrays of bytes
_MAX_HEADER = 4096  # bytes


class MissingImages(RequestError):
  """A request names images that the server does not have."""

  def __init__(self, names: Sequence[str]):
    super().__init__(
      f'image_data: {len(names)} of the named images are not here, such as {names[0]}; send them '
      f'to {PATH}, or as base64, and repeat the request'
    )
    self.names = tuple(names)  # each once, in order

  def to_json(self) -> dict[str, Any]:
    """Returns the body of the reply, whose status is MISSING_STATUS."""
    return {'error': {'message': str(self), 'type': _MISSING_TYPE, 'images': list(self.names)}}


def content_digest(image: np.ndarray) -> bytes:
  """Returns 32 bytes that identify the pixels and sides of uint8[H, W, 3]."""
  hashed = hashlib.blake2b(b'%dx%d\n' % image.shape[:2], digest_size=32)
  hashed.update(np.ascontiguousarray(image).data)
  return hashed.digest()


def name_of(digest: bytes) -> str:
  """Returns the name in requests of the image with this `content_digest`."""
  return _KIND + digest.hex()


def content_name(image: np.ndarray) -> str:
  """Returns the name in requests of uint8[H, W, 3]."""
  return name_of(content_digest(image))


def is_name(text: str) -> bool:
  """Returns whether an entry of image_data is a name. No base64 text is one."""
  return _NAME.fullmatch(text) is not None


def missing_names(status: int, reply: bytes) -> list[str]:
  """Returns the images that a server lacks, by its reply to /generate. Empty for other replies."""
  if status != MISSING_STATUS:
    return []
  try:
    error = orjson.loads(reply)['error']
    names = error['images'] if error['type'] == _MISSING_TYPE else []
  except (orjson.JSONDecodeError, KeyError, TypeError):
    return []
  right = isinstance(names, list) and all(isinstance(name, str) for name in names)
  return names if right else []


def pack(images: np.ndarray) -> bytes:
  """Returns uint8[N, H, W, 3] as a .npy file."""
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.ascontiguousarray(images), allow_pickle=False)
  return buffer.getvalue()


def unpack(raw: bytes, max_patches: int) -> np.ndarray:
  """Reads the output of `pack`. Returns uint8[N, H, W, 3], a view of `raw`.

  Raises:
    RequestError: it is no such file, holds other bytes than its header says, or has images of a
    wrong size: sides that are no multiples of 32, or more than `max_patches` patches of 16x16.
  """
  shape, start = _header(raw)
  if len(shape) != 4 or shape[3] != 3 or not all(type(side) is int for side in shape):
    raise RequestError(f'{PATH}: got uint8{fields.short_repr(shape)}, wanted uint8[N, H, W, 3]')
  count, height, width, _ = shape
  check_size(PATH, height, width, max_patches)
  if count < 0 or count * height * width * 3 != len(raw) - start:
    raise RequestError(
      f'{PATH}: got {len(raw) - start} bytes of pixels, wanted those of '
      f'uint8{fields.short_repr(shape)}; was it cut off?'
    )
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _header(raw: bytes) -> tuple[tuple[Any, ...], int]:
  """Returns the shape that a .npy header states, and where the pixels begin.

  NumPy's own reader takes any dtype, and raises many kinds of errors.
  """
  start = len(_MAGIC) + 2 + int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 2], 'little')
  try:
    if not raw.startswith(_MAGIC) or not len(_MAGIC) + 2 <= start <= min(len(raw), _MAX_HEADER):
      raise ValueError('no header of version 1.0')
    header = ast.literal_eval(raw[len(_MAGIC) + 2 : start].decode('latin1').strip())
    if set(header) != {'descr', 'fortran_order', 'shape'}:
      raise ValueError('other keys')
    kind, shape = (header['descr'], header['fortran_order']), header['shape']
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
    raise RequestError(
      f'{PATH}: the body is no .npy file ({type(error).__name__}), wanted uint8[N, H, W, 3]'
    ) from error
  if kind != ('|u1', False) or not isinstance(shape, tuple):
    got = fields.short_repr((*kind, shape))
    raise RequestError(f'{PATH}: got (descr, fortran_order, shape) {got}, wanted uint8[N, H, W, 3]')
  return shape, start


def check_size(where: str, height: int, width: int, max_patches: int) -> None:
  """Raises RequestError for an image that the model cannot take as it is. Nothing is resized."""
  if height % 32 or width % 32 or height <= 0 or width <= 0:
    raise RequestError(
      f'{where}: got an image of {height}x{width}, wanted sides that are multiples of 32; '
      'resize it first'
    )
  if height * width // 256 > max_patches:
    raise RequestError(
      f'{where}: got an image of {height}x{width} ({height * width // 256} patches), this '
      f'server takes up to {max_patches}; send it smaller or raise max_image_patches'
    )

"""The images that a server keeps, by content. They are bounded in bytes."""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from paravt_jax.serving import images, protocol
from paravt_jax.video import patches


@dataclasses.dataclass(frozen=True)
class ImagePatches:
  """One image of a request."""

  digest: bytes  # of its pixels and sides
  patches_XC: np.ndarray  # uint8[patches, 3 * 16 * 16]
  grid: tuple[int, int]  # (rows, columns) of patches
  tokens: int  # merged tokens it expands to

  @property
  def name(self) -> str:
    """Returns its name in requests."""
    return images.name_of(self.digest)


def cut(image: np.ndarray) -> ImagePatches:
  """Returns uint8[H, W, 3] as patches. The digest is computed from these pixels."""
  rows, grid = patches.patchify(image)
  return ImagePatches(images.content_digest(image), rows, grid, patches.merged_tokens(grid))


class ImageStore:
  """The newest images, up to `max_bytes` of pixels.

  An image is found by its name, or by the base64 text that it was last decoded from. Names are
  computed here, from pixels. So nobody can store an image under the name of another.

  `counts` are sums since the start: found, missing, decoded (from base64), received (as pixels),
  evicted.
  """

  def __init__(self, max_bytes: int, max_patches: int):
    self._max_bytes, self._max_patches = max_bytes, max_patches
    self._images: OrderedDict[str, ImagePatches] = OrderedDict()
    self._bytes = 0
    self._texts: dict[bytes, str] = {}  # hash of a base64 text -> name
    self._text_of: dict[str, bytes] = {}  # the reverse: one text per image
    self.counts = dict.fromkeys(('found', 'missing', 'decoded', 'received', 'evicted'), 0)

  @property
  def size(self) -> dict[str, int]:
    """Returns how much is kept: {'images': ..., 'bytes': ...}."""
    return {'images': len(self._images), 'bytes': self._bytes}

  def get_all(self, image_data: Sequence[str]) -> tuple[ImagePatches, ...]:
    """Returns the images of a request, which holds names and base64 texts.

    Raises:
      MissingImages: some names are not here. Nothing is decoded then.
      RequestError: a text is no image, or a size is wrong.
    """
    named = {text: self._images.get(text) for text in image_data if images.is_name(text)}
    missing = [name for name, image in named.items() if image is None]
    self.counts['found'] += len(named) - len(missing)
    self.counts['missing'] += len(missing)
    if missing:
      raise images.MissingImages(missing)
    # Hold all named images first, because decoding the others may evict them.
    for name in named:
      self._images.move_to_end(name)
    return tuple(named.get(text) or self._decoded(text) for text in image_data)

  def add(self, image: ImagePatches) -> None:
    """Keeps an image that arrived as pixels. The oldest ones make place."""
    self.counts['received'] += 1
    self._keep(image)

  def _decoded(self, text: str) -> ImagePatches:
    key = hashlib.blake2b(text.encode(), digest_size=32).digest()
    image = self._images.get(self._texts.get(key, ''))
    if image is None:
      image = cut(protocol.decode_image(text, self._max_patches))
      self.counts['decoded'] += 1
    self._keep(image)
    if image.name in self._images:
      self._texts.pop(self._text_of.get(image.name, b''), None)
      self._texts[key], self._text_of[image.name] = image.name, key
    return image

  def _keep(self, image: ImagePatches) -> None:
    if image.name not in self._images:
      self._bytes += image.patches_XC.nbytes
    self._images[image.name] = image
    self._images.move_to_end(image.name)
    while self._bytes > self._max_bytes:
      name, oldest = self._images.popitem(last=False)
      self._bytes -= oldest.patches_XC.nbytes
      self._texts.pop(self._text_of.pop(name, b''), None)
      self.counts['evicted'] += 1

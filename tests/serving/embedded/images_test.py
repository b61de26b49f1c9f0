"""What a server keeps of images: bounded bytes, found by name or by text, never another picture."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from paravt_jax.serving import images
from paravt_jax.serving.embedded.images import ImageStore, cut
from paravt_jax.serving.fields import RequestError
from paravt_jax.serving.protocol import encode_image

BYTES = 32 * 32 * 3


def frame(value: int, height: int = 32) -> np.ndarray:
  return np.full((height, 32, 3), value, np.uint8)


def name(value: int) -> str:
  return images.content_name(frame(value))


def test_an_image_is_found_by_its_name_and_by_its_text_and_decoded_once():
  store, text = ImageStore(9 * BYTES, 4), encode_image(frame(1))
  [first] = store.get_all([text])
  assert store.get_all([text, name(1)]) == (first, first)
  assert store.counts == {'found': 1, 'missing': 0, 'decoded': 1, 'received': 0, 'evicted': 0}


def test_a_text_of_other_bytes_and_the_same_pixels_is_the_same_image():
  buffer, store = io.BytesIO(), ImageStore(9 * BYTES, 4)
  Image.fromarray(frame(1)).save(buffer, 'PNG', compress_level=0)
  store.add(cut(frame(1)))
  [image] = store.get_all([base64.b64encode(buffer.getvalue()).decode()])
  assert image.name == name(1) and store.size == {'images': 1, 'bytes': BYTES}


def test_all_missing_names_are_told_at_once_each_once_and_nothing_is_decoded():
  store = ImageStore(9 * BYTES, 4)
  store.add(cut(frame(1)))
  with pytest.raises(images.MissingImages) as caught:
    store.get_all([name(2), encode_image(frame(4)), name(1), name(3), name(2)])
  assert caught.value.names == (name(2), name(3)) and store.counts['decoded'] == 0
  assert images.missing_names(409, images.orjson.dumps(caught.value.to_json())) == [
    name(2),
    name(3),
  ]


def test_the_oldest_images_leave_when_the_bytes_are_full():
  store = ImageStore(3 * BYTES, 8)
  for value in (1, 2, 3):
    store.add(cut(frame(value)))
  store.get_all([name(1)])  # now 2 is the oldest
  store.add(cut(frame(4, height=64)))  # of two frames' bytes
  assert store.size == {'images': 2, 'bytes': 3 * BYTES} and store.counts['evicted'] == 2
  store.get_all([name(1)])
  with pytest.raises(images.MissingImages, match='2 of the named'):
    store.get_all([name(2), name(3)])


def test_an_image_larger_than_the_store_serves_its_request_and_is_not_kept():
  store = ImageStore(BYTES - 1, 4)
  assert store.get_all([encode_image(frame(1))])[0].name == name(1)
  assert store.size == {'images': 0, 'bytes': 0}
  assert store.get_all([encode_image(frame(1))])[0].name == name(1)


def test_texts_do_not_evict_the_named_images_of_their_own_request():
  store = ImageStore(BYTES, 4)
  store.add(cut(frame(1)))
  found = store.get_all([encode_image(frame(2)), name(1)])
  assert [image.name for image in found] == [name(2), name(1)]


def test_what_is_kept_about_texts_leaves_with_its_image():
  store = ImageStore(2 * BYTES, 4)
  for value in range(20):
    store.get_all([encode_image(frame(value))])
  assert len(store._texts) == len(store._text_of) == 2


def test_an_image_too_large_for_the_server_is_refused():
  with pytest.raises(RequestError, match='24 patches'):
    ImageStore(10**6, 16).get_all([encode_image(np.zeros((64, 96, 3), np.uint8))])

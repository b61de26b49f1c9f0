"""Expansion of images, positions, and what makes two prompts the same."""

import numpy as np
import pytest

from paravt_jax.serving.embedded.images import cut
from paravt_jax.serving.embedded.prompts import expand, extend
from paravt_jax.serving.protocol import RequestError

PAD = 9


def image(value: int, height: int = 32, width: int = 32):
  return cut(np.full((height, width, 3), value, np.uint8))


def test_each_pad_becomes_its_images_tokens():
  prompt = expand([1, PAD, 2, PAD], (image(0, 64, 32), image(1)), PAD, 4)
  assert prompt.ids_T.tolist() == [1, 9, 9, 2, 9]
  assert prompt.image_T.tolist() == [-1, 0, 0, -1, 1]
  assert prompt.offset_T.tolist() == [0, 0, 1, 0, 0]
  assert prompt.positions_AT.tolist() == [[0, 1, 1, 3, 4], [0, 1, 2, 3, 4], [0, 1, 1, 3, 4]]
  assert prompt.next_position == 5


def test_keys_tell_images_apart_by_their_pixels_not_by_their_ids():
  one, other = (expand([1, PAD, 2, 3, 4], (image(value),), PAD, 2) for value in (5, 6))
  assert one.keys[0] != other.keys[0]
  assert one.keys == expand([1, PAD, 2, 3, 4], (image(5),), PAD, 2).keys


def test_an_extended_prompt_is_the_prompt_of_all_its_ids():
  start = expand([1, PAD, 2], (image(0, 32, 64),), PAD, 2)
  long = extend(start, [7, 8], 2)
  whole = expand([1, PAD, 2, 7, 8], (image(0, 32, 64),), PAD, 2)
  assert long.keys == whole.keys and long.next_position == whole.next_position
  np.testing.assert_array_equal(long.positions_AT, whole.positions_AT)
  assert extend(start, [], 2) is start


def test_a_generated_placeholder_is_text_when_a_request_is_continued():
  long = extend(expand([1], (), PAD, 2), [PAD, 3], 2)
  assert (
    long.ids_T.tolist() == [1, 9, 3]
    and long.positions_AT[0].tolist() == [0, 1, 2]
    and (long.image_T == -1).all()
  )


def test_other_numbers_of_pads_and_images_are_refused():
  with pytest.raises(RequestError, match='hold 2 image placeholders'):
    expand([PAD, PAD], (image(0),), PAD, 4)

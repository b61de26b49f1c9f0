"""One size, one resize, one order of patches."""

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import ConfigError
from paravt_jax.video import patches


def _frame(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
  ('source', 'want'),
  [
    ((224, 224), (224, 224)),
    ((360, 640), (160, 288)),
    ((1080, 1920), (160, 288)),
    ((640, 360), (288, 160)),
    ((64, 64), (64, 64)),
    ((32, 32), (32, 32)),
    ((16, 16), (32, 32)),
    ((10, 1900), (32, 1568)),
  ],
)
def test_target_sizes(source, want):
  assert patches.target_size(*source, 1024, 50176) == want


def test_every_target_is_a_multiple_of_32_within_the_limits_and_stays_as_it_is():
  rng = np.random.default_rng(0)
  for height, width in rng.integers(1, 3000, (500, 2)).tolist():
    h, w = patches.target_size(height, width, 1024, 50176)
    assert h % 32 == w % 32 == 0
    assert 1024 <= h * w <= 50176
    assert patches.target_size(h, w, 1024, 50176) == (h, w)


def test_target_sizes_equal_those_of_the_published_processor():
  smart_resize = pytest.importorskip(
    'transformers.models.qwen2_vl.image_processing_pil_qwen2_vl'
  ).smart_resize
  for height, width in np.random.default_rng(1).integers(60, 2000, (300, 2)).tolist():
    if max(height, width) < 20 * min(height, width):
      assert patches.target_size(height, width, 1024, 50176) == smart_resize(
        height, width, 32, 1024, 50176
      )


@pytest.mark.parametrize('limits', [(1024, 1000), (2000, 1024)])
def test_limits_without_a_size_are_refused(limits):
  with pytest.raises(ConfigError, match='pixel limits'):
    patches.target_size(64, 64, *limits)


def test_resize_is_pils_bicubic():
  frame = _frame(90, 120)
  want = np.asarray(Image.fromarray(frame).resize((64, 32), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(patches.resize(frame[None], (32, 64))[0], want)


def test_frames_of_the_right_size_are_not_touched():
  frames = _frame(64, 64)[None]
  assert patches.resize(frames, (64, 64)) is frames


def test_patches_are_listed_by_merge_blocks_and_hold_colour_row_column():
  frame = np.zeros((64, 96, 3), np.uint8)
  frame[:, :, 0] = (
    np.arange(4).repeat(16)[:, None] * 6 + np.arange(6).repeat(16)[None]
  )  # number of the 16x16 cell, in red
  frame[5, 7, 2] = 200
  got, grid = patches.patchify(frame)
  assert grid == (4, 6)
  assert got.shape == (24, 768)
  assert got[:, 0].tolist() == [
    0,
    1,
    6,
    7,
    2,
    3,
    8,
    9,
    4,
    5,
    10,
    11,
    12,
    13,
    18,
    19,
    14,
    15,
    20,
    21,
    16,
    17,
    22,
    23,
  ]
  assert np.flatnonzero(got[0]).tolist() == [2 * 256 + 5 * 16 + 7]


def test_patches_equal_those_of_the_published_processor():
  module = pytest.importorskip('transformers.models.qwen2_vl.image_processing_pil_qwen2_vl')
  processor = module.Qwen2VLImageProcessorPil(
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    do_resize=False,
    do_rescale=False,
    do_normalize=False,
    do_convert_rgb=False,
  )
  frame = _frame(64, 96)
  want = np.asarray(processor(images=[frame], return_tensors='np')['pixel_values']).reshape(
    24, 3, 2, 256
  )
  got, _ = patches.patchify(frame)
  np.testing.assert_array_equal(got.reshape(24, 3, 256), want[:, :, 0])
  np.testing.assert_array_equal(got.reshape(24, 3, 256), want[:, :, 1])


def test_four_patches_make_a_merged_token():
  _, grid = patches.patchify(_frame(96, 32))
  assert grid == (6, 2)
  assert patches.merged_tokens(grid) == 3


def test_patches_of_other_sizes_keep_the_same_order():
  frame = np.arange(8 * 4 * 3, dtype=np.uint8).reshape(8, 4, 3)
  got, grid = patches.patchify(frame, patch=2, merge=2)
  assert grid == (4, 2)
  # the red of each patch's first pixel, by its place: 4 pixels of 3 colours make a row
  places = [(0, 0), (0, 2), (2, 0), (2, 2), (4, 0), (4, 2), (6, 0), (6, 2)]
  assert got[:, 0].tolist() == [12 * row + 3 * column for row, column in places]


@pytest.mark.parametrize('shape', [(64, 48, 3), (64, 64), (64, 64, 1), (0, 64, 3)])
def test_frames_that_cannot_be_cut_are_refused(shape):
  with pytest.raises(ValueError, match='multiples of 32'):
    patches.patchify(np.zeros(shape, np.uint8))

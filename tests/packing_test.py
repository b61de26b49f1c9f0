"""Documents to rows: the drawing of packing.py, and what is refused."""

import numpy as np
import pytest

from paravt_jax.errors import DataError
from paravt_jax.packing import (
  Sample,
  Tree,
  expanded_length,
  first_fit_decreasing,
  pack,
  sizes,
  tree_size,
)

PAD = 99
OPTIONS = {
  'row_tokens': 12,
  'row_images': 2,
  'image_patches': 8,
  'image_id': PAD,
  'rows_multiple': 1,
  'extras': {},
}


def sample(*ids, images=(), **extras):
  return Sample(
    np.array(ids, np.int32), images, {name: np.array(value) for name, value in extras.items()}
  )


def picture(height, width, value=7):
  return np.full((height, width, 3), value, np.uint8)


def test_the_drawing():
  packed = pack(
    [Tree(sample(1, 2, 3), (sample(4, 5), sample(6, 7, 8))), Tree(sample(11, 12, 13))], **OPTIONS
  )
  assert packed.tokens_RT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 0]]
  assert packed.segments_RT.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0]]
  assert packed.branches_RT.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 0]]
  assert packed.predecessor_RT.tolist() == [[-1, 0, 1, 2, 3, 2, 5, 6, -1, 8, 9, -1]]
  assert packed.positions_ART[0].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 0]]
  assert packed.visual_index_RT.tolist() == [[-1] * 12]
  assert packed.fill == pytest.approx(11 / 12)
  assert [(s.row, s.start, s.stop) for s in packed.spans[0]] == [(0, 0, 3), (0, 3, 5), (0, 5, 8)]


def test_an_image_takes_its_merged_tokens_and_its_slot_of_the_row():
  # 32 x 64 pixels: grid 2 x 4 patches, 1 x 2 merged tokens; a slot has 8 patches = 2 merged tokens
  tree = Tree(
    sample(1, PAD, 2, images=(picture(32, 64),)), (sample(PAD, 3, images=(picture(32, 32, 9),)),)
  )
  packed = pack([tree], **OPTIONS)
  assert packed.tokens_RT[0, :6].tolist() == [1, PAD, PAD, 2, PAD, 3]
  assert packed.visual_index_RT[0, :6].tolist() == [-1, 0, 1, -1, 2, -1]
  assert packed.grids_RN2[0].tolist() == [[2, 4], [2, 2]]
  assert packed.patches_RNXPC.shape == (1, 2, 8, 1, 768)
  assert (packed.patches_RNXPC[0, 0] == 7).all() and (packed.patches_RNXPC[0, 1, :4] == 9).all()
  assert (packed.patches_RNXPC[0, 1, 4:] == 0).all()
  # an image advances by max(1, 2) = 2: token 2 at 3; the suffix's image at 4, its text at 5
  assert packed.positions_ART[:, 0, :6].tolist() == [
    [0, 1, 1, 3, 4, 5],
    [0, 1, 1, 3, 4, 5],
    [0, 1, 2, 3, 4, 5],
  ]


def test_extras_follow_their_tokens_and_default_to_zero():
  tree = Tree(sample(1, PAD, 2, images=(picture(32, 64),), mask=[0, 0, 1]), (sample(3, 4),))
  packed = pack([tree], **{**OPTIONS, 'extras': {'mask': np.float32}})
  assert packed.extras['mask'].dtype == np.float32
  assert packed.extras['mask'][0].tolist() == [0, 0, 0, 1, 0, 0] + [0] * 6


def test_largest_trees_are_placed_first_and_small_ones_fill_the_gaps():
  assert first_fit_decreasing([(3, 0), (9, 0), (8, 0), (4, 0)], (12, 1)) == [[1, 0], [2, 3]]


def test_images_limit_a_row_as_tokens_do():
  assert first_fit_decreasing([(1, 2), (1, 1), (1, 1)], (12, 2)) == [[0], [1, 2]]


def test_rows_are_padded_to_a_multiple_and_nothing_gives_padding():
  packed = pack([], **{**OPTIONS, 'rows_multiple': 4})
  assert (
    packed.rows == 4
    and packed.fill == 0
    and (packed.segments_RT == 0).all()
    and (packed.predecessor_RT == -1).all()
  )


def test_sizes_count_expanded_tokens():
  tree = Tree(sample(1, PAD, images=(picture(64, 64),)), (sample(2),))
  assert expanded_length(tree.prefix) == 5 and tree_size(tree) == (6, 1)


LARGE_IMAGES = {**OPTIONS, 'image_patches': 4, 'row_large_images': 1, 'large_image_patches': 8}


def test_an_image_too_large_for_a_frame_slot_lies_in_a_still_slot_whose_tokens_come_after_the_frames():
  # frame slots of 4 patches = 1 merged token, two of them; then one still slot of 8 patches = 2
  # merged tokens
  images = (picture(32, 32, 1), picture(64, 32, 2), picture(32, 32, 3))
  packed = pack([Tree(sample(PAD, PAD, PAD, 8, images=images))], **LARGE_IMAGES)
  assert packed.tokens_RT[0, :5].tolist() == [PAD, PAD, PAD, PAD, 8]
  assert packed.visual_index_RT[0, :5].tolist() == [0, 2, 3, 1, -1]
  assert packed.grids_RN2[0].tolist() == [[2, 2], [2, 2]] and packed.large_image_grids_RN2[
    0
  ].tolist() == [[4, 2]]
  assert (packed.patches_RNXPC[0, 1] == 3).all() and (packed.large_images_RNXPC[0, 0] == 2).all()
  assert packed.arrays()['large_images'].shape == (1, 1, 8, 1, 768)


def test_without_still_slots_there_are_no_such_arrays():
  assert (
    not {'large_images', 'large_image_grids'} & pack([Tree(sample(1))], **OPTIONS).arrays().keys()
  )


def test_still_slots_limit_a_row_as_frame_slots_do():
  large, small = (
    Tree(sample(PAD, images=(picture(64, 32),))),
    Tree(sample(PAD, images=(picture(32, 32),))),
  )
  assert sizes(large, 4) == (2, 0, 1) and sizes(small, 4) == (1, 1, 0)
  packed = pack([large, large, small], **LARGE_IMAGES)
  assert packed.large_image_grids_RN2.tolist() == [[[4, 2]], [[4, 2]]]
  with pytest.raises(
    DataError,
    match='takes 4 tokens, 0 images and 2 large images, a row holds 12 tokens, 2 images and 1 '
    'large images',
  ):
    pack([Tree(sample(PAD, PAD, images=(picture(64, 32),) * 2))], **LARGE_IMAGES)


def test_rows_that_were_planned_before_are_kept_and_may_be_empty():
  trees = [Tree(sample(1)), Tree(sample(2)), Tree(sample(3))]
  packed = pack(trees, **{**OPTIONS, 'bins': [[2], [], [1, 0]]})
  assert packed.tokens_RT[:, :2].tolist() == [[3, 0], [0, 0], [2, 1]]
  assert [spans[0].row for spans in packed.spans] == [2, 2, 0]


@pytest.mark.parametrize(
  ('bins', 'message'),
  [
    ([[0]], 'wanted each tree in one bin'),
    ([[0, 1], [1]], 'wanted each tree in one bin'),
    ([[0, 1]], 'row 0 takes 14 tokens and 0 images, it holds 12 tokens and 2 images'),
  ],
)
def test_a_plan_that_does_not_hold_is_refused(bins, message):
  with pytest.raises(DataError, match=message):
    pack([Tree(sample(*range(7))), Tree(sample(*range(7)))], **{**OPTIONS, 'bins': bins})


def test_micro_batches_have_room_for_more_than_are_used():
  packed = pack([Tree(sample(*range(1, 13))) for _ in range(3)], **OPTIONS)
  arrays, used = packed.micro_batches(2, 4)
  assert (
    used == 2
    and arrays['tokens'].shape == (4, 2, 12)
    and arrays['positions'].shape == (4, 2, 3, 12)
  )
  assert (
    (arrays['tokens'][0] > 0).all()
    and (arrays['segments'][1, 1] == 0).all()
    and (arrays['predecessor'][1, 1] == -1).all()
  )
  assert (arrays['visual_index'][3] == -1).all()


@pytest.mark.parametrize(
  ('trees', 'message'),
  [
    (
      [Tree(sample(*range(13)))],
      'tree 0 takes 13 tokens and 0 images, a row holds 12 tokens and 2 images',
    ),
    ([Tree(sample(1, PAD))], 'got 1 image placeholders and 0 images'),
    (
      [Tree(sample(PAD, images=(picture(64, 64),)))],
      'got an image of 16 patches, wanted at most 8',
    ),
    ([Tree(sample(PAD, images=(picture(30, 32),)))], 'sides multiples of 32'),
  ],
)
def test_what_does_not_fit_is_refused(trees, message):
  with pytest.raises(DataError, match=message):
    pack(trees, **OPTIONS)


def test_an_extra_of_another_length_is_refused():
  with pytest.raises(DataError, match="extra 'mask' has shape"):
    pack([Tree(sample(1, 2, mask=[1]))], **{**OPTIONS, 'extras': {'mask': np.float32}})


def test_too_many_micro_batches_are_refused():
  packed = pack([Tree(sample(*range(12))) for _ in range(3)], **OPTIONS)
  with pytest.raises(DataError, match='3 rows need 3 micro-batches of 1, but there is room for 2'):
    packed.micro_batches(1, 2)

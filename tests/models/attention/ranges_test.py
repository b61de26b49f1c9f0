"""The two ranges of a query are the mask of packed rows."""

import numpy as np
import pytest

from paravt_jax.models.attention import plain, ranges
from paravt_jax.packing import Sample, Tree, pack
from tests.models.attention import layouts


def test_the_ranges_of_a_prefix_two_branches_a_document_and_padding_are_those_drawn():
  segments, branches = layouts.rows([(3, 2, 2), (2,)], length=10)
  got = np.asarray(ranges.packed_rows(segments, branches))[0]
  seen = [[u for a, b in (row[:2], row[2:]) for u in range(a, b)] for row in got.tolist()]
  assert seen == [
    [0],
    [0, 1],
    [0, 1, 2],
    [0, 1, 2, 3],
    [0, 1, 2, 3, 4],
    [0, 1, 2, 5],
    [0, 1, 2, 5, 6],
    [7],
    [7, 8],
    [],
  ]


def test_the_mask_of_the_ranges_is_that_of_segments_and_branches():
  segments, branches = layouts.MIXED
  got = ranges.mask(ranges.packed_rows(segments, branches), segments.shape[1])
  np.testing.assert_array_equal(got, plain.visible(segments, branches, segments, branches))


def test_rows_of_the_packer_have_ranges_that_are_their_mask():
  # prefixes and suffixes of every length down to 0, drawn at random
  rng = np.random.default_rng(0)
  text = lambda most: Sample(np.zeros(rng.integers(0, most + 1), np.int32))
  trees = [Tree(text(20), tuple(text(9) for _ in range(rng.integers(0, 5)))) for _ in range(60)]
  packed = pack(
    trees,
    row_tokens=96,
    row_images=0,
    image_patches=4,
    image_id=99,
    rows_multiple=4,
    extras={},
  )
  segments, branches = packed.segments_RT, packed.branches_RT
  assert branches.max() == 4 and (segments == 0).any()
  got = ranges.mask(ranges.packed_rows(segments, branches), segments.shape[1])
  np.testing.assert_array_equal(got, plain.visible(segments, branches, segments, branches))


def test_every_patch_of_an_image_sees_its_valid_patches():
  exists = np.arange(6) < np.array([[4], [0], [6]])
  got = ranges.mask(ranges.valid_keys(exists), 6)
  np.testing.assert_array_equal(got, np.broadcast_to(exists[:, None], (3, 6, 6)))


@pytest.mark.parametrize('tile', [20, 60, 100])
def test_visible_tiles_are_those_that_hold_a_visible_pair(tile):
  segments, branches = layouts.MIXED
  mask = np.asarray(plain.visible(segments, branches, segments, branches))
  count = 300 // tile
  want = mask.reshape(4, count, tile, count, tile).any((2, 4))
  got = ranges.visible_tiles(ranges.packed_rows(segments, branches), tile)
  np.testing.assert_array_equal(got, want)
  assert ranges.count_tile_pairs(segments, branches, tile) == want.sum()
  assert ranges.count_visible_pairs(segments, branches) == mask.sum()


@pytest.mark.parametrize('tile', [128, 256, 512])
def test_the_published_packed_step_multiplies_at_most_twice_its_visible_pairs(tile):
  # 4200 * 4201 / 2 + 8 * (900 * 4200 + 900 * 901 / 2) pairs see each other
  assert ranges.count_visible_pairs(*layouts.PACKED_STEP) == 42_305_700
  ratio = ranges.count_tile_pairs(*layouts.PACKED_STEP, tile) * tile**2 / 42_305_700
  assert 1 < ratio < {128: 1.08, 256: 1.15, 512: 1.35}[tile]

"""M-RoPE positions: by hand, and exactly transformers' on 1,000 random layouts."""

import numpy as np
import pytest
import torch

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import positions
from tests.models.qwen3_vl import oracle


def test_an_image_takes_one_time_step_and_pushes_the_next_token_by_its_longer_side():
  got, after = positions.mrope_positions(np.array([1, 9, 9, 9, 9, 9, 9, 2]), 9, [(2, 3)], start=10)
  assert got.tolist() == [
    [10, 11, 11, 11, 11, 11, 11, 14],
    [10, 11, 11, 11, 12, 12, 12, 14],
    [10, 11, 12, 13, 11, 12, 13, 14],
  ]
  assert after == 15 and got.dtype == np.int32


def test_no_tokens_give_no_positions_and_the_start_back():
  got, after = positions.mrope_positions(np.zeros(0, np.int32), 9, [], start=4)
  assert got.shape == (3, 0) and after == 4


def test_a_suffix_continues_where_its_prefix_ended():
  ids = np.array([1, 9, 9, 2, 9, 3])
  whole, _ = positions.mrope_positions(ids, 9, [(1, 2), (1, 1)])
  prefix, after = positions.mrope_positions(ids[:4], 9, [(1, 2)])
  suffix, _ = positions.mrope_positions(ids[4:], 9, [(1, 1)], start=after)
  np.testing.assert_array_equal(whole, np.concatenate([prefix, suffix], axis=1))


@pytest.mark.parametrize(
  'ids, grids, message',
  [
    ([1, 9], [], 'token 1: placeholder 9 has no image left'),
    ([1, 9, 9], [(1, 3)], 'token 1: an image of 1 x 3'),
    ([9, 9, 1], [(2, 2)], 'token 0: an image of 2 x 2'),
    ([1], [(1, 1)], '1 more grids than runs'),
  ],
)
def test_placeholders_that_do_not_match_their_grids_are_refused(ids, grids, message):
  with pytest.raises(DataError, match=message):
    positions.mrope_positions(np.array(ids), 9, grids)


def test_a_thousand_random_layouts_have_exactly_the_positions_of_transformers():
  model, rng = oracle.torch_model(layers=2, depth=2, taps=(0,)).model, np.random.default_rng(0)
  for _ in range(1000):
    ids, images, videos = list(rng.integers(0, 50, rng.integers(1, 9))), [], []
    for _ in range(rng.integers(0, 5)):
      h, w = (int(x) for x in rng.integers(1, 6, 2))
      if rng.random() < 0.6:
        images.append((1, 2 * h, 2 * w))
        ids += [oracle.START, *[oracle.IMAGE] * (h * w), oracle.END]
      else:
        t = int(rng.integers(1, 4))
        videos.append((t, 2 * h, 2 * w))
        for _ in range(t):
          ids += [*rng.integers(0, 50, 3), oracle.START, *[oracle.VIDEO] * (h * w), oracle.END]
      ids += list(rng.integers(0, 50, rng.integers(0, 4)))
    ids = np.array(ids)
    types = torch.tensor((ids == oracle.IMAGE) + 2 * (ids == oracle.VIDEO))[None].int()
    grids = lambda g: torch.tensor(g) if g else None
    want, delta = model.get_rope_index(torch.tensor(ids)[None], types, grids(images), grids(videos))
    got, after = positions.mrope_positions(
      ids,
      oracle.IMAGE,
      [(h // 2, w // 2) for _, h, w in images],
      video_id=oracle.VIDEO,
      video_grids=[(h // 2, w // 2) for t, h, w in videos for _ in range(t)],
    )
    np.testing.assert_array_equal(got, want[:, 0].numpy())
    assert after == len(ids) + int(delta)

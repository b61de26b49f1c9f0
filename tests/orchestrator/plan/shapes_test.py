"""Stated episodes: their documents, rows, fill, and the pairs that attention multiplies."""

import numpy as np
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan import shapes
from paravt_jax.orchestrator.plan.shapes import Document
from tests.orchestrator.plan.requests import request


def test_a_published_episode_has_five_calls_of_sixteen_frames():
  shape = request('rl:8b').shape
  assert (shape.calls, shape.call_frames) == (5, 16)
  # 420 words of text, and 64 frames of 9 tokens beside 49 of pixels
  assert shapes.opening_tokens(shape, 64, 50176) == 420 + 64 * 58
  # 120 thought, five calls of 30, 180 of the answer; five results of 80 and 15 tokens
  assert shapes.rollout_tokens(shape) == (120 + 150 + 180 + 5 * 95, 450)
  assert shapes.subagent_tokens(shape, 50176) == 120 + 16 * 58 + 80


def test_parts_of_a_shape_can_be_stated():
  shape = request('rl:8b', shape='calls=2,think=300').shape
  assert (shape.calls, shape.think, shape.answer) == (2, 300, 180)
  for wrong in ('cals=2', 'calls', 'calls=many', 'calls=-1'):
    with pytest.raises(ConfigError, match='--shape'):
      request('rl:8b', shape=wrong)


def test_a_step_has_a_tree_per_group_and_a_document_per_sub_agent():
  asked = request('rl:8b')
  documents = shapes.documents_of_rl(asked.recipe, asked.shape)
  trees = [one for one in documents if one.suffixes]
  assert len(trees) == 8 and all(len(one.suffixes) == 8 for one in trees)
  assert len(documents) - len(trees) == 8 * 8 * 5
  off = request('rl:8b', rollout__subagent_credit='off')
  assert len(shapes.documents_of_rl(off.recipe, off.shape)) == 8


def test_a_group_that_does_not_fit_a_row_becomes_several_trees_with_the_prompt_each():
  asked = request('rl:8b', train__row_tokens=6500)
  trees = [one for one in shapes.documents_of_rl(asked.recipe, asked.shape) if one.suffixes]
  # (6500 - 4132) // 925 = 2 rollouts beside a prompt
  assert len(trees) == 8 * 4 and {len(one.suffixes) for one in trees} == {2}
  assert all(one.prefix == 4132 and one.size[0] <= 6500 for one in trees)


def test_visible_pairs_are_those_of_the_mask():
  row = [Document(5, (3, 4), 0, 7), Document(6, (), 0, 1)]
  segments = np.repeat([1, 1, 1, 2], [5, 3, 4, 6])
  branches = np.repeat([0, 1, 2, 0], [5, 3, 4, 6])
  at = np.arange(18)
  mask = (segments[:, None] == segments) & (at <= at[:, None])
  mask &= (branches == 0) | (branches == branches[:, None])
  assert sum(one.visible for one in row) == mask.sum()
  # tiles of one token are the mask itself
  assert shapes.visited_tiles(row, 24, 1) == mask.sum()


@pytest.mark.parametrize('tile', [2, 4, 8])
def test_visited_tiles_hold_every_visible_pair_and_few_others(tile):
  row = [Document(5, (3, 4), 0, 7), Document(6, (), 0, 1)]
  segments = np.repeat([1, 1, 1, 2, 0], [5, 3, 4, 6, 6])
  branches = np.repeat([0, 1, 2, 0, 0], [5, 3, 4, 6, 6])
  at = np.arange(24)
  mask = (segments[:, None] == segments) & (at <= at[:, None]) & (segments[:, None] > 0)
  mask &= (branches == 0) | (branches == branches[:, None])
  blocks = mask.reshape(24 // tile, tile, 24 // tile, tile).any((1, 3)).sum()
  found = shapes.visited_tiles(row, 24, tile)
  assert blocks <= found <= blocks + 24 // tile


def test_fill_and_padding_are_those_of_the_packed_rows():
  asked = request('rl:8b')
  documents = shapes.documents_of_rl(asked.recipe, asked.shape)
  load = shapes.pack(asked.job, documents)
  assert load.tokens == sum(one.size[0] for one in documents) == 453_216
  # the middle length of the ladder pads least: three micro-batches of 20,480, of the four in memory
  assert (load.shape.row_tokens, load.micro_batches, load.shape.micro_batches) == (20480, 3, 4)
  assert load.fill == pytest.approx(load.tokens / (3 * 8 * 20480))
  # in full rows these documents would fill two
  assert load.full_micro_batches == 2
  assert load.images == 8 * 64 + 320 * 16
  assert load.limit == 'tokens'


def test_sft_fills_the_rows_of_its_micro_batches():
  asked = request('sft:8b')
  load = shapes.pack(asked.job, shapes.documents_of_sft(asked.recipe, asked.shape))
  assert load.rows <= 32 and load.micro_batches == 4
  assert 0.8 < load.fill <= 1


def test_the_head_scores_whole_chunks_of_tokens_that_its_devices_share():
  asked = request('sft:8b', train__rows=8, train__micro_batches=1, train__head_chunk=256)
  load = shapes.pack(asked.job, [Document(8000, (), 0, 2000), Document(8000, (), 0, 300)])
  # 2,300 tokens in chunks of 8 rows x 256
  assert load.scored == 2 * 256 * 8


def test_frames_take_a_token_per_32_by_32_pixels():
  assert shapes.frame_tokens(50176) == 49
  assert shapes.frame_tokens(1024) == 1

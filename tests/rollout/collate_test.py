"""Groups to rows: literal masks, whole trajectories, one advantage per episode."""

import dataclasses

import numpy as np
import pytest

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.rollout.collate import CollateOptions, collate, micro_batches, sample
from paravt_jax.row_layout import LayoutOptions, Layouts, Shape
from paravt_jax.types import (
  Episode,
  Group,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  TokenClass,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
)

PAD = 9  # the image placeholder
TASK = Task('t', ('v.mp4',), 'q?', 'oe', 'red')
FRAME = np.full((32, 64, 3), 5, np.uint8)  # 2 merged tokens
OPTIONS = CollateOptions(
  row_tokens=32, row_images=4, image_patches=8, row_counts=(1, 2, 4), subagent_credit='episode'
)


def given(*ids, images=()):
  return Segment(np.asarray(ids, np.int32), sampled=False, images=images)


def written(*ids, version=3, token_class=TokenClass.AFTER_FRAME):
  n = len(ids)
  return Segment(
    np.asarray(ids, np.int32),
    True,
    (),
    np.full(n, -0.5, np.float32),
    np.full(n, version, np.int32),
    token_class,
  )


OPENING = given(1, PAD, 2, images=(FRAME,))


def scored(*segments, rollout=0, subagents=(), opening=OPENING):
  trajectory = Trajectory((opening, *segments), StopReason.ANSWER)
  results = tuple(
    ToolResult(ToolCall('crop_video', {}), ResultStatus.EXECUTED, 'x', subagent=s)
    for s in subagents
  )
  episode = Episode(
    TASK, rollout, 1, (0.0,), 64.0, (Turn('', results),), trajectory, StopReason.ANSWER
  )
  return Scored(episode, 1.0, {})


def group(*members):
  return Group('t', 0, members)


def run(groups, advantages, **options):
  return collate(
    groups,
    np.asarray(advantages),
    options=dataclasses.replace(OPTIONS, **options),
    image_id=PAD,
    version=4,
  )


def spans(packed, tree):
  """Per span of a tree: (tokens, mask)."""
  cut = lambda array, span: array[span.row, span.start : span.stop].tolist()
  return [
    (cut(packed.tokens_RT, span), cut(packed.extras['mask'], span)) for span in packed.spans[tree]
  ]


def test_a_group_is_one_tree_whose_prefix_is_stored_once_and_only_sampled_tokens_are_trained():
  first = scored(written(10, 11), given(20, 21), written(12, 99, token_class=TokenClass.AFTER_TOOL))
  batch = run([group(first, scored(written(13, 99), rollout=1))], [1.5, -1.5])
  packed = batch.packed
  assert spans(packed, 0) == [
    ([1, PAD, PAD, 2], [0, 0, 0, 0]),
    ([10, 11, 20, 21, 12, 99], [1, 1, 0, 0, 1, 1]),
    ([13, 99], [1, 1]),
  ]
  assert packed.extras['advantage'][0, 4:12].tolist() == [1.5, 1.5, 0, 0, 1.5, 1.5, -1.5, -1.5]
  assert packed.extras['behavior'][0, 4:12].tolist() == [-0.5, -0.5, 0, 0, -0.5, -0.5, -0.5, -0.5]
  assert packed.extras['token_class'][0, 4:12].tolist() == [1, 1, 0, 0, 2, 2, 1, 1]
  assert packed.branches_RT[0, :12].tolist() == [0] * 4 + [1] * 6 + [2] * 2
  assert packed.rows == 1


def test_the_trained_ids_are_those_sent_and_received():
  one = scored(written(10, 11), given(20), written(12))
  part = sample(one.episode.trajectory.segments, 1.0)
  np.testing.assert_array_equal(part.ids, one.episode.trajectory.ids)
  assert part.images == one.episode.trajectory.images


def test_deviation_9_a_trajectory_that_ends_on_an_observation_keeps_its_reward():
  """The release put the reward on the last token and masked it away when that was an
  observation.
  """
  batch = run([group(scored(written(10, 11), given(20, 21)))], [1.5])
  packed = batch.packed
  assert packed.extras['mask'][0, 4:8].tolist() == [1, 1, 0, 0]
  assert packed.extras['advantage'][0, 4:8].tolist() == [1.5, 1.5, 0, 0]


def subagent(*ids):
  return Trajectory((given(1, PAD, images=(FRAME,)), written(*ids)), StopReason.STOP)


def test_deviation_10_subagents_are_trained_on_their_episodes_advantage():
  """The release never trained them; 'off' does as it did."""
  one = scored(written(10), subagents=(subagent(50, 51), subagent(52)))
  batch = run([group(one, scored(written(11), rollout=1))], [0.7, -0.7])
  assert spans(batch.packed, 1) == [([1, PAD, PAD, 50, 51], [0, 0, 0, 1, 1])]
  assert spans(batch.packed, 2) == [([1, PAD, PAD, 52], [0, 0, 0, 1])]
  span = batch.packed.spans[1][0]
  np.testing.assert_allclose(
    batch.packed.extras['advantage'][span.row, span.stop - 2 : span.stop], 0.7
  )
  assert (
    batch.counters['subagents'],
    batch.counters['subagent_tokens'],
    batch.counters['trained_tokens'],
  ) == (2, 3, 5)
  off = run([group(one, scored(written(11), rollout=1))], [0.7, -0.7], subagent_credit='off')
  assert (
    len(off.packed.spans) == 1
    and off.counters['subagents'] == 0
    and off.counters['trained_tokens'] == 2
  )


def test_a_subagent_that_sampled_nothing_is_no_document():
  empty = Trajectory((given(1),), StopReason.LENGTH)
  assert run([group(scored(written(10), subagents=(empty,)))], [1.0]).counters['trees'] == 1


def test_a_group_too_long_for_a_row_repeats_its_prefix():
  members = [
    scored(written(*range(10, 20)), rollout=i) for i in range(4)
  ]  # prefix 4, suffixes of 10
  batch = run([group(*members)], [1, 2, 3, 4])
  assert [[len(tokens) for tokens, _ in spans(batch.packed, tree)] for tree in (0, 1)] == [
    [4, 10, 10],
    [4, 10, 10],
  ]
  assert batch.counters['episodes'] == 4 and batch.counters['trees'] == 2
  advantages = batch.packed.extras['advantage']
  assert sorted(set(advantages[advantages != 0].tolist())) == [1, 2, 3, 4]


def test_what_is_longer_than_a_row_is_dropped_and_counted():
  long = scored(written(*range(30)), rollout=1, subagents=(subagent(*range(40)),))
  batch = run([group(scored(written(10)), long)], [1, 2])
  assert (
    batch.counters['episodes'],
    batch.counters['dropped_episodes'],
    batch.counters['dropped_subagents'],
  ) == (1, 1, 1)
  wide = scored(written(10), opening=given(*[PAD] * 5, images=(FRAME,) * 5))
  assert run([group(wide)], [1]).counters['dropped_episodes'] == 1


def test_rows_come_in_few_counts():
  alone = lambda n: [Group(str(i), 0, (scored(written(*range(10, 30))),)) for i in range(n)]
  assert [run(alone(n), [1.0] * n).packed.rows for n in (0, 1, 2, 3, 4, 5)] == [1, 1, 2, 4, 4, 8]


def test_order_of_arrival_changes_nothing_and_staleness_is_counted_per_token():
  old, new = scored(written(10, 11, version=2)), scored(written(12, version=4), rollout=1)
  batch = run([group(old, new)], [1, -1])
  assert (batch.counters['staleness_sum'], batch.counters['staleness_max']) == (4.0, 2)
  assert batch.packed.extras['version'][0, 4:7].tolist() == [2, 2, 4]
  assert batch.packed.extras['current'].sum() == 1 and batch.packed.extras['current'][
    0, 4:7
  ].tolist() == [0, 0, 1]


def test_no_groups_give_padding():
  batch = run([], [])
  assert batch.packed.fill == 0 and batch.counters['trained_tokens'] == 0 and batch.packed.rows == 1


def test_wrong_arguments_are_refused():
  with pytest.raises(DataError, match=r'shape \(2,\), wanted \(1,\)'):
    run([group(scored(written(10)))], [1, 2])
  with pytest.raises(DataError, match='another prompt'):
    run([group(scored(written(10)), scored(written(10), rollout=1, opening=given(1, 3)))], [1, 2])
  with pytest.raises(ConfigError, match=r"rollout\.subagent_credit: got 'some'"):
    run([], [], subagent_credit='some')


def test_a_text_only_group_is_a_tree_without_images():
  opening = given(1, 2)
  packed = run(
    [
      group(
        scored(written(10, 99, token_class=TokenClass.TEXT), opening=opening),
        scored(written(13, 99, token_class=TokenClass.TEXT), rollout=1, opening=opening),
      )
    ],
    [1.5, -1.5],
  ).packed
  assert spans(packed, 0) == [([1, 2], [0, 0]), ([10, 99], [1, 1]), ([13, 99], [1, 1])]


def test_one_shape_without_spreading_is_the_layout_of_first_fit_at_full_capacity():
  """The tiny recipe: arrays equal those of rows filled one after the other."""
  groups = [
    group(*(scored(written(*range(10, 10 + 2 * n + r)), rollout=r) for r in range(1, 3)))
    for n in range(1, 6)
  ]
  layouts = Layouts(LayoutOptions((), spread=False, shapes=1), Shape(32, 4, 8), 2)
  found = micro_batches(
    groups, np.arange(10.0), options=OPTIONS, image_id=PAD, version=3, layouts=layouts
  )
  plain = collate(
    groups,
    np.arange(10.0),
    options=dataclasses.replace(OPTIONS, row_counts=(2,)),
    image_id=PAD,
    version=3,
  )
  arrays, used = plain.packed.micro_batches(2)
  assert found.used == used >= 2 and found.layout.shape == Shape(32, 4, 8)
  parts = list(found)
  assert parts[0].keys() == arrays.keys() and len(parts) == used
  slots = found.layout.host_images
  for name, array in arrays.items():
    wanted = array[:, :, :slots] if name in ('patches', 'grids') else array
    assert np.array_equal(np.stack([part[name] for part in parts]), wanted), name
  assert found.counters == plain.counters and found.fill == plain.packed.fill


def test_spreading_changes_the_rows_and_neither_tokens_nor_counts():
  groups = [group(scored(written(*range(10, 11 + n)), rollout=n)) for n in range(4)]
  layouts = Layouts(LayoutOptions((), spread=True, shapes=4), Shape(32, 4, 8), 4)
  found = micro_batches(
    groups, np.arange(4.0), options=OPTIONS, image_id=PAD, version=3, layouts=layouts
  )
  (part,) = found
  plain = run(groups, np.arange(4.0)).packed
  assert (part['segments'] > 0).any(axis=1).all() and plain.rows < 4
  for name in ('tokens', 'advantage'):
    assert np.array_equal(
      np.sort(part[name][part['mask'] > 0]),
      np.sort(plain.arrays()[name][plain.extras['mask'] > 0]),
    )
  assert found.counters['trees'] == 4


def test_without_groups_there_is_one_micro_batch_of_padding():
  layouts = Layouts(LayoutOptions((128,), spread=True, shapes=4), Shape(256, 4, 8), 2)
  found = micro_batches([], np.zeros(0), options=OPTIONS, image_id=PAD, version=0, layouts=layouts)
  (part,) = found
  assert part['tokens'].shape == (2, 128) and not part['segments'].any() and found.fill == 0

"""Micro-batches on the mesh: written one by one, in few shapes, with the loss of the plain layout."""

import dataclasses
import itertools

import numpy as np
import pytest

from paravt_jax.errors import DataError
from paravt_jax.packing import pack, tree_size
from paravt_jax.row_layout import LayoutOptions, Layouts, Shape
from paravt_jax.train import metric_sums, placement, step
from tests.train import common


def groups(count, seed=0):
  """Groups with frames; their lengths differ."""
  rng = np.random.default_rng(seed)
  return [common.group(rng, suffixes=(7, 5, 9)[: 1 + n % 3]) for n in range(count)]


def parts(trees, layout, rows=2):
  """The arrays of each micro-batch of a layout."""
  for first in range(0, len(layout.bins), rows):
    bins = layout.bins[first : first + rows]
    chosen = [trees[tree] for members in bins for tree in members]
    ends = np.cumsum([0, *map(len, bins)])
    yield pack(
      chosen,
      row_tokens=layout.shape.row_tokens,
      row_images=layout.host_images,
      image_patches=4,
      image_id=common.PAD,
      rows_multiple=rows,
      extras=step.RL_EXTRAS,
      bins=[range(a, b) for a, b in itertools.pairwise(ends)],
    ).arrays()


def layouts(spread=True, lengths=(128,), shapes=4):
  return Layouts(LayoutOptions(lengths, spread=spread, shapes=shapes), Shape(256, 64, 8), 2)


def sizes_of(trees):
  sizes = [tree_size(tree) for tree in trees]
  return sizes, [1] * len(sizes)


@pytest.mark.parametrize('devices', [1, 2])
def test_micro_batches_written_one_by_one_are_the_batch_of_all_of_them(devices):
  mesh = common.mesh_of(data=devices)
  trees = groups(60)
  layout = layouts().choose(*sizes_of(trees))
  micro = list(parts(trees, layout))
  used, shape = len(micro), layout.shape
  assert layout.host_images < shape.row_images and used < shape.micro_batches
  found = placement.put_micro_batches(mesh, iter(micro), shape.micro_batches, shape.row_images)
  assert int(found.pop('used')) == used
  for name, array in found.items():
    rows = np.asarray(array)
    assert len(array.sharding.device_set) == devices
    assert not rows[used:].any()
    # [M, R, N, ...] of image slots have room for more than was written
    filled = rows[:, :, : layout.host_images] if name in placement.SLOTS else rows
    assert np.array_equal(filled[:used], np.stack([one[name] for one in micro]))
    assert not rows[:, :, filled.shape[2] :].any() or name not in placement.SLOTS


def test_more_micro_batches_than_there_is_room_for_are_refused():
  trees = groups(9)
  micro = list(parts(trees, layouts().choose(*sizes_of(trees))))
  with pytest.raises(DataError, match=r'more than 1 micro-batches; raise train.micro_batches'):
    placement.put_micro_batches(common.mesh_of(), micro * 2, 1, 32)


@pytest.mark.slow  # three programs are compiled
def test_layouts_by_need_train_as_the_plain_one_and_compile_one_program_for_each_shape():
  """First fit at full capacity is the oracle. Only the order of float sums differs."""
  mesh, optimizer = common.mesh_of(), common.sgd()
  rl = dataclasses.replace(common.RL, beta=0.0)
  update = step.make_rl_step(common.CONFIG, optimizer, mesh, common.RL_MODEL, rl)
  plain = layouts(spread=False, lengths=(), shapes=1)
  before, shapes = common.params(), set()

  def train(trees, laid_out):
    layout = laid_out.choose(*sizes_of(trees))
    shapes.add(layout.shape)
    batch = placement.put_micro_batches(
      mesh, parts(trees, layout), layout.shape.micro_batches, layout.shape.row_images
    )
    state, found = update(common.fresh(optimizer, mesh), batch)
    return common.change(before, state.params), metric_sums.reduce(found), layout.shape

  for count, tokens, capacity in ((3, 128, 4), (4, 128, 4), (80, 256, 4)):
    trees = groups(count, seed=count)
    change, metrics, shape = train(trees, layouts())
    expected_change, expected, full = train(trees, plain)
    assert (shape.row_tokens, shape.micro_batches) == (tokens, capacity)
    assert full == Shape(256, 64, 8)
    assert common.relative(change, expected_change) < 1e-5
    assert metrics['policy/loss'] == pytest.approx(expected['policy/loss'], abs=1e-6)
    assert metrics['policy/tokens'] == expected['policy/tokens']
  assert update.jitted._cache_size() == len(shapes) == 3

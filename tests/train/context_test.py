"""A context axis: the tokens of a row on several devices give what one device does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.train import metric_sums, placement, state, step
from tests.train import common

# six layers, which are scanned, and two DeepStack features
DEEP = dataclasses.replace(
  common.CONFIG,
  text=dataclasses.replace(common.CONFIG.text, layers=6),
  vision=dataclasses.replace(common.CONFIG.vision, depth=2, taps=(0, 1)),
)
MESHES = [(1, 1, 1, 8), (1, 2, 1, 4), (2, 1, 2, 2)]
RL = dataclasses.replace(common.RL, updates_per_batch=2)


def rows():
  """Rows of 64 tokens, whose trees cross slices of 8 to 32 tokens, with up to 8 images."""
  rng = np.random.default_rng(0)
  trees = [common.group(rng, 21, (9, 3, 14), images=7) for _ in range(5)]
  trees += [common.group(rng, 4, (30, 1), images=1), common.group(rng, 15, (), images=3)]
  return common.pack(
    trees,
    row_tokens=64,
    row_images=8,
    image_patches=4,
    image_id=common.PAD,
    rows_multiple=2,
    extras=step.RL_EXTRAS,
  )


def batch_of(mesh):
  """Four micro-batches of two rows, put one after the other; one more is not used."""
  arrays, used = rows().micro_batches(2)
  assert used == 3
  parts = [{name: array[i] for name, array in arrays.items()} for i in range(used)]
  return placement.put_micro_batches(mesh, parts, used + 1, 8)


def changed(kind, shape):
  """(the parameters' change, the loss) of one step."""
  mesh, rl = common.mesh_of(*shape), kind == 'rl'
  optimizer = common.sgd(0.05, ('visual',) if rl else ())
  values = jax.tree.map(np.asarray, model.init(DEEP, jax.random.key(0)))
  start = state.from_params(DEEP, optimizer, mesh, values)
  options = dataclasses.replace(
    common.RL_MODEL if rl else common.MODEL, backend='tiled', remat='layers'
  )
  if rl:
    made, args = step.make_rl_step(DEEP, optimizer, mesh, options, RL), (values,)
  else:
    made, args = step.make_sft_step(DEEP, optimizer, mesh, options), ()
  after, totals = made(start, batch_of(mesh), *args)
  metrics = metric_sums.reduce(totals)
  loss = metrics['policy/loss' if rl else 'sft/loss']
  return common.change(values, after.params), loss


@functools.cache
def alone(kind):
  """What one device finds."""
  return changed(kind, (1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sft', 'rl'])
@pytest.mark.parametrize('shape', MESHES)
def test_slices_of_rows_on_eight_devices_have_the_gradient_of_one_device(kind, shape):
  # sft trains the tower; rl adds gradients in place and keeps the features for two updates
  change, loss = changed(kind, shape)
  want, want_loss = alone(kind)
  assert loss == pytest.approx(want_loss, rel=1e-5)
  assert np.linalg.norm(want) > 0 and common.relative(change, want) <= 1e-5


@pytest.mark.slow
def test_a_token_is_scored_by_its_predecessor_in_another_slice():
  options = dataclasses.replace(common.MODEL, backend='tiled')
  packed = rows()
  arrays, used = packed.micro_batches(packed.rows)

  def scored(mesh):
    def run(values, batch):
      micro = step._micro_batch(batch, 0)
      wanted_RT = micro['segments'] > 0
      args = (common.CONFIG, common.sgd(), mesh, options, values, micro, wanted_RT)
      return step._scores(*args).logprob_RT

    return np.asarray(jax.jit(run)(common.params(), step.put_batch(mesh, arrays, used)))

  # suffixes begin in another slice than their prefix ends
  first = (packed.predecessor_RT >= 0) & (packed.predecessor_RT // 8 < np.arange(64) // 8 - 1)
  assert first.any()
  want = scored(common.mesh_of())
  assert (want[first] < 0).all()
  np.testing.assert_allclose(scored(common.mesh_of(1, 1, 1, 8)), want, atol=1e-5)


def test_images_lie_on_the_devices_of_a_row_and_its_tables_are_whole():
  mesh = common.mesh_of(1, 2, 1, 4)
  batch = batch_of(mesh)
  assert batch['patches'].sharding.shard_shape(batch['patches'].shape)[1:3] == (1, 2)
  assert batch['positions'].sharding.shard_shape(batch['positions'].shape)[1:] == (1, 3, 64)
  plain = batch_of(common.mesh_of())
  for name, array in batch.items():
    np.testing.assert_array_equal(array, plain[name])


def test_slots_that_the_context_does_not_divide_are_not_split():
  place = sharding.slots(common.mesh_of(1, 2, 1, 4), 0, 6)
  assert place.spec == PartitionSpec(('data', 'fsdp'), None)


def test_an_activation_has_its_own_tokens_and_a_parameter_its_part_of_the_width():
  mesh = common.mesh_of(1, 2, 1, 4)
  place = sharding.activations(mesh)
  lies = jax.jit(lambda x: place(x, 'rows', 'tokens', None))(np.zeros((2, 64, 8)))
  assert lies.sharding.shard_shape((2, 64, 8)) == (1, 16, 8)
  assert place.splits(64, 'tokens') and not place.splits(63, 'tokens')
  assert sharding.spec(('embed', 'mlp')) == PartitionSpec(('fsdp', 'context'), 'tensor')

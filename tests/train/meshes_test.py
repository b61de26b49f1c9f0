"""One device's loss and gradient on every kind of mesh, with the vision tower trained inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import sharding
from paravt_jax.train import metric_sums, step
from tests.train import common

# by rows over one axis or both, by heads, hidden units and vocabulary, and mixes
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 1, 8), (1, 4, 2), (4, 1, 2), (2, 2, 2)]


def changed(kind, shape):
  """(the parameters' change, the loss) of one step on 8 rows of frames and text."""
  mesh, optimizer = common.mesh_of(*shape), common.sgd()
  rng = np.random.default_rng(0)
  rows = common.packed([common.group(rng) for _ in range(8)], rows_multiple=8)
  arrays, used = rows.micro_batches(8)
  batch, start = step.put_batch(mesh, arrays, used), common.fresh(optimizer, mesh)
  if kind == 'sft':
    made, args = step.make_sft_step(common.CONFIG, optimizer, mesh, common.MODEL), ()
  else:
    made = step.make_rl_step(common.CONFIG, optimizer, mesh, common.RL_MODEL, common.RL)
    args = (common.params(1),)
  after, totals = made(start, batch, *args)
  change = jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, common.params())
  metrics = metric_sums.reduce(totals)
  return change, metrics['sft/loss' if kind == 'sft' else 'policy/loss']


@functools.cache
def alone(kind):
  """What one device finds."""
  return changed(kind, (1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sft', 'rl'])
@pytest.mark.parametrize('shape', MESHES)
def test_rows_heads_and_copies_on_eight_devices_give_what_one_device_does(kind, shape):
  change, loss = changed(kind, shape)
  assert loss == pytest.approx(alone(kind)[1], rel=1e-5)
  # the trained tower and the text decoder alike, not only their sum
  for part, found in change.items():
    one, eight = (
      np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
      for tree in (alone(kind)[0][part], found)
    )
    assert np.linalg.norm(one) > 0 and common.relative(eight, one) <= 1e-5, part


def test_an_activation_lies_by_the_table_and_what_does_not_divide_is_not_split():
  place = sharding.activations(common.mesh_of(2, 2, 2))

  def lies(size, *axes):
    return jax.jit(lambda x: place(x, *axes))(jnp.zeros(size)).sharding.shard_shape(size)

  assert lies((8, 6, 4), 'rows', None, 'heads') == (2, 6, 2)
  assert lies((1, 6, 4), 'rows', None, 'heads') == (1, 6, 2)  # the one row of a canary
  assert lies((8, 6, 3), 'rows', None, 'kv_heads') == (2, 6, 3)


def test_one_device_gets_no_constraint():
  assert 'sharding_constraint' not in str(
    jax.make_jaxpr(lambda x: sharding.activations(common.mesh_of())(x, 'rows'))(jnp.zeros(2))
  )

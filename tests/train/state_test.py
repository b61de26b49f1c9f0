"""The learner's state: read onto any mesh, with its frozen part beside its records."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.train import checkpoint, metric_sums, state, step
from paravt_jax.train.optimizer import Optimizer
from tests.train import common, hosts_test

FROZEN = ('visual',)


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
  """A folder with the parameters of common.params()."""
  folder = tmp_path_factory.mktemp('model')
  (folder / 'tokenizer.json').write_text('{}')
  weights.save_hf(folder / 'm', common.CONFIG, common.params(), folder, shard_bytes=20_000)
  assert len(list((folder / 'm').glob('*.safetensors'))) > 2
  return folder / 'm'


def momentum():
  """Gradient descent with a state, in which rounding does not grow as under Adam."""
  return Optimizer(optax.sgd(0.1, momentum=0.9), optax.constant_schedule(0.1), FROZEN)


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_a_folder_and_the_same_parameters_in_memory_give_the_same_state(model_folder, sizes):
  optimizer, mesh = common.adam(), common.mesh_of(*sizes)
  read = state.from_folder(model_folder, common.CONFIG, optimizer, mesh, seed=0)
  want = common.fresh(optimizer, mesh)
  places = jax.tree.leaves(state.shardings(common.CONFIG, optimizer, mesh))
  for got, other, place in zip(*map(jax.tree.leaves, (read, want)), places, strict=True):
    assert got.dtype == other.dtype and got.sharding == other.sharding == place
    np.testing.assert_array_equal(got, other)


def test_a_donated_state_leaves_the_callers_arrays_alone():
  host = jax.tree.map(np.array, common.params())
  begun = state.from_params(common.CONFIG, common.sgd(), common.mesh_of(2, 2, 2), host)
  spoil = jax.jit(lambda full: jax.tree.map(lambda x: x * 0 + 7, full), donate_argnums=0)
  jax.block_until_ready(spoil(begun))
  jax.tree.map(np.testing.assert_array_equal, host, common.params())


def test_the_fingerprint_is_of_the_values_and_of_no_mesh():
  optimizer = momentum()
  one, eight = (
    common.fresh(optimizer, common.mesh_of(*sizes)).params['visual']
    for sizes in ((1, 1, 1), (2, 2, 2))
  )
  found = state.fingerprint(one)
  assert state.fingerprint(eight) == found
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), one)
  assert state.fingerprint(half) != found
  assert state.fingerprint(jax.tree.map(lambda x: x.astype(jnp.float32), half)) == (
    state.fingerprint(half)
  )
  table = one['pos_embed']['embedding']
  swapped = table.at[0, :2].set(table[0, 1::-1])
  assert table[0, 0] != table[0, 1]
  other = {**one, 'pos_embed': {'embedding': swapped}}
  assert state.fingerprint(other) != found


def test_what_is_frozen_leaves_the_state_and_comes_back():
  optimizer = momentum()
  full = common.fresh(optimizer, common.mesh_of())
  part = state.without_frozen(full, optimizer)
  assert set(full.params) - set(part.params) == {'visual'}
  again = state.with_frozen(part, {'visual': full.params['visual']})
  assert jax.tree.structure(again) == jax.tree.structure(full)
  jax.tree.map(np.testing.assert_array_equal, again, full)


@pytest.mark.slow
def test_a_run_goes_on_from_eight_devices_to_four_to_one_with_the_losses_of_eight(
  model_folder, tmp_path
):
  optimizer = momentum()
  arrays, used = hosts_test.batch()

  @functools.cache
  def updates(mesh):
    return step.make_sft_step(common.CONFIG, optimizer, mesh, common.MODEL)

  def steps(current, mesh, count):
    losses = []
    for _ in range(count):
      current, totals = updates(mesh)(current, step.put_batch(mesh, arrays, used))
      losses.append(float(metric_sums.reduce(totals)['sft/loss']))
    return current, losses

  eight = common.mesh_of(2, 2, 2)
  begin = lambda mesh: state.from_folder(model_folder, common.CONFIG, optimizer, mesh, seed=0)
  _, whole = steps(begin(eight), eight, 6)
  assert len(set(whole)) == 6  # it learns, so a lost update would show

  current, losses = steps(begin(eight), eight, 2)
  with checkpoint.Writer(tmp_path, keep=3) as writer:
    for number, mesh in ((2, common.mesh_of(1, 2, 2)), (4, common.mesh_of())):
      writer.save(number, state.without_frozen(current, optimizer), {})
      # the next update donates the arrays that are being written
      steps(current, (eight if number == 2 else common.mesh_of(1, 2, 2)), 1)
      writer.wait()
      template = state.abstract(common.CONFIG, optimizer, mesh)
      record = checkpoint.restore(tmp_path, state.without_frozen(template, optimizer))
      frozen = {'visual': begin(mesh).params['visual']}
      current, more = steps(state.with_frozen(record.state, frozen), mesh, 2)
      losses += more
  assert losses == pytest.approx(whole, rel=1e-6)

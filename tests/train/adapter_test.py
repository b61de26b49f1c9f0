"""Training an adapter: its gradients, what stays as it is, and the base as the reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.train import checkpoint, metric_sums, state, step
from paravt_jax.train.optimizer import Optimizer
from tests.models import lora_test
from tests.train import common

CONFIG = lora_test.CONFIG
FROZEN = ('visual', 'text')


def optimizer(dtype='float32'):
  """Gradient descent on the adapter, so that a step's change is its gradient."""
  return Optimizer(optax.sgd(1.0), optax.constant_schedule(1.0), FROZEN, dtype)


def params():
  return {**common.params(), lora.PART: lora_test.random_adapter()}


def batch(mesh, rows=4):
  rng = np.random.default_rng(0)
  packed = common.packed([common.group(rng) for _ in range(rows)], rows_multiple=rows)
  arrays, used = packed.micro_batches(rows)
  return step.put_batch(mesh, arrays, used)


@functools.cache
def changed(kind, shape=(1, 1, 1), rows=4, remat='none'):
  """(the adapter's change, metrics, the state after it) of one step."""
  mesh = common.mesh_of(*shape)
  start = state.from_params(CONFIG, optimizer(), mesh, params())
  if kind == 'sft':
    options = dataclasses.replace(common.MODEL, remat=remat)
    made, args = step.make_sft_step(CONFIG, optimizer(), mesh, options), ()
  else:
    options = dataclasses.replace(common.RL_MODEL, remat=remat)
    made = step.make_rl_step(CONFIG, optimizer(), mesh, options, common.RL)
    args = (state.reference(start, optimizer(), 'float32'),)
  after, totals = made(start, batch(mesh, rows), *args)
  change = jax.tree.map(
    lambda a, b: np.asarray(a) - b, after.params[lora.PART], params()['adapter']
  )
  return change, metric_sums.reduce(totals), after


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_the_gradients_are_those_of_the_folded_kernels_times_the_other_matrix():
  """d A = s dW B^T and d B = s A^T dW, with dW the gradient of the kernel W + s A B."""
  change, _, _ = changed('sft')
  folded = jax.tree.map(np.asarray, lora.fold(CONFIG.adapter, params()))
  whole = common.sgd(frozen=('visual',))
  mesh = common.mesh_of()
  start = state.from_params(CONFIG.base, whole, mesh, folded)
  made = step.make_sft_step(CONFIG.base, whole, mesh, common.MODEL)
  after, _ = made(start, batch(mesh))
  scale = CONFIG.adapter.scale
  for product, pair in params()[lora.PART]['layers'].items():
    name = ('text', 'layers', product, 'kernel')
    d_kernel = functools.reduce(lambda node, key: node[key], name, after.params) - (
      functools.reduce(lambda node, key: node[key], name, folded)
    )
    want = {
      lora.A: scale * np.einsum('Lio,Lro->Lir', d_kernel, pair[lora.B]),
      lora.B: scale * np.einsum('Lir,Lio->Lro', pair[lora.A], d_kernel),
    }
    for matrix, found in change['layers'][product].items():
      assert np.linalg.norm(want[matrix]) > 0
      assert common.relative(found, want[matrix]) < 1e-3, (product, matrix)


@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_a_step_changes_the_adapter_alone(kind):
  change, metrics, after = changed(kind)
  for name in FROZEN:
    jax.tree.map(np.testing.assert_array_equal, after.params[name], common.params()[name])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(change))
  assert metrics['optim/grad_norm'] == pytest.approx(np.linalg.norm(flat(change)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['layers', 'attention'])
def test_layers_that_are_computed_again_give_the_same_gradients(remat):
  assert common.relative(flat(changed('rl', remat=remat)[0]), flat(changed('rl')[0])) < 1e-5


def test_the_reference_is_the_base_and_copies_nothing():
  start = state.from_params(CONFIG, optimizer(), common.mesh_of(), params())
  reference = state.reference(start, optimizer(), 'bfloat16')
  assert jax.tree.leaves(reference) == []
  assert reference == state.abstract_reference(CONFIG, optimizer(), common.mesh_of(), 'bfloat16')
  # the KL is that of the policy to the base, as two whole models give it
  mesh, whole = common.mesh_of(), common.sgd(frozen=('visual',))
  folded = jax.tree.map(np.asarray, lora.fold(CONFIG.adapter, params()))
  made = step.make_rl_step(CONFIG.base, whole, mesh, common.RL_MODEL, common.RL)
  begun = state.from_params(CONFIG.base, whole, mesh, folded)
  _, totals = made(begun, batch(mesh), common.params())
  want = metric_sums.reduce(totals)['policy/kl_reference']
  assert (
    changed('rl')[1]['policy/kl_reference'] == pytest.approx(want, rel=1e-4) and abs(want) > 1e-3
  )


@pytest.mark.slow
def test_a_new_adapter_has_no_kl():
  mesh = common.mesh_of()
  new = {**common.params(), lora.PART: model.init(CONFIG, jax.random.key(0))[lora.PART]}
  made = step.make_rl_step(CONFIG, optimizer(), mesh, common.RL_MODEL, common.RL)
  _, totals = made(state.from_params(CONFIG, optimizer(), mesh, new), batch(mesh), {})
  assert abs(metric_sums.reduce(totals)['policy/kl_reference']) < 1e-6


def test_the_base_is_kept_in_the_dtype_of_the_products_and_the_adapter_in_float32(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  weights.save_hf(tmp_path / 'm', CONFIG.base, common.params(), tmp_path)
  begun = [
    state.from_folder(tmp_path / 'm', CONFIG, optimizer('bfloat16'), common.mesh_of(*shape), seed=4)
    for shape in ((1, 1, 1), (2, 2, 2))
  ]
  for one in begun:
    assert {leaf.dtype for leaf in jax.tree.leaves(one.params['text'])} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(one.params['adapter'])} == {jnp.dtype('float32')}
  # the adapter of a seed is the same on every mesh
  jax.tree.map(np.testing.assert_array_equal, begun[0].params, begun[1].params)
  template = state.abstract(CONFIG, optimizer('bfloat16'), common.mesh_of())
  assert jax.tree.map(lambda x: x.dtype, begun[0]) == jax.tree.map(lambda x: x.dtype, template)


def test_a_record_holds_the_adapter_alone(tmp_path):
  mesh, one = common.mesh_of(), optimizer('bfloat16')
  full = state.from_params(CONFIG, one, mesh, params())
  checkpoint.save(tmp_path, 1, state.without_frozen(full, one), {}, keep=1)
  template = state.without_frozen(state.abstract(CONFIG, one, mesh), one)
  back = checkpoint.restore(tmp_path, template, step=1).state
  assert set(back.params) == {lora.PART}
  jax.tree.map(np.testing.assert_array_equal, back.params[lora.PART], params()[lora.PART])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sft', 'rl'])
@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_eight_devices_give_the_adapters_gradient_of_one(kind, shape):
  one, eight = changed(kind, rows=8), changed(kind, shape, rows=8)
  assert common.relative(flat(eight[0]), flat(one[0])) <= 1e-5

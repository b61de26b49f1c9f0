"""States and reference models on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.train import state
from tests.train import common


def test_host_arrays_become_float32_copies_of_which_a_device_holds_its_slice():
  values = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), common.params())
  made = state.from_params(common.CONFIG, common.adam(), common.mesh_of(1, 4, 2), values)
  gate = made.params['text']['layers']['gate']['kernel']
  assert gate.dtype == jnp.float32
  assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 32 // 4, 48 // 2)}
  np.testing.assert_array_equal(gate, values['text']['layers']['gate']['kernel'].astype(np.float32))


def test_a_state_keeps_nothing_of_the_arrays_that_it_was_made_of():
  values = jax.tree.map(np.copy, common.params())
  made = state.from_params(common.CONFIG, common.sgd(), common.mesh_of(), values)
  values['text']['norm']['scale'][:] = 7
  assert not (np.asarray(made.params['text']['norm']['scale']) == 7).any()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_reference_is_what_is_trained_in_the_dtype_of_products_and_nothing_else(dtype):
  mesh, optimizer = common.mesh_of(1, 4, 2), common.sgd(1.0, ('visual',))
  policy = common.fresh(optimizer, mesh)
  found = state.reference(policy, optimizer, dtype)
  wanted = state.abstract_reference(common.CONFIG, optimizer, mesh, dtype)
  assert found.keys() == wanted.keys() == {'text'}
  for leaf, abstract in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert (leaf.shape, leaf.dtype) == (abstract.shape, abstract.dtype) and leaf.dtype == dtype
    assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)


def test_a_reference_outlives_the_policy_that_a_step_consumes():
  optimizer = common.sgd()
  policy = common.fresh(optimizer, common.mesh_of())
  found = state.reference(policy, optimizer, 'float32')
  for leaf in jax.tree.leaves(policy.params):
    leaf.delete()
  np.testing.assert_array_equal(
    found['text']['norm']['scale'], common.params()['text']['norm']['scale']
  )

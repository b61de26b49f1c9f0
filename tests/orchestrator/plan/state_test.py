"""Weights, optimizer, gradients and reference: the bytes of the arrays that the learner makes."""

import jax
import numpy as np
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.models.qwen3_vl import model
from paravt_jax.orchestrator import parts
from paravt_jax.orchestrator.plan import state
from paravt_jax.train import state as states
from tests.orchestrator.plan.requests import request


def on_first_device(tree):
  """Bytes of the shards that device 0 holds."""
  device = jax.devices()[0]
  return sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
    if shard.device == device
  )


@pytest.mark.parametrize('mesh', [(1, 8, 1), (2, 2, 2)], ids=['fsdp', 'mixed'])
def test_weights_and_optimizer_are_the_bytes_that_a_device_holds(mesh):
  data, fsdp, tensor = mesh
  changes = {'mesh__data': data, 'mesh__fsdp': fsdp, 'mesh__tensor': tensor, 'train__rows': 8}
  job = request('rl:tiny', 'cpu:8', **changes).job
  made = parts.make_mesh(job.mesh)
  optimizer = state.optimizer_of(job)
  params = model.init(job.model, jax.random.key(0))
  real = states.from_params(job.model, optimizer, made, params)
  found = state.state_of(job)
  assert found.weights == on_first_device(real.params)
  assert found.optimizer == on_first_device(real.opt_state)
  trained = {name: leaf for name, leaf in real.params.items() if name not in optimizer.frozen}
  assert found.gradients == on_first_device(trained)
  assert found.parameters == sum(x.size for x in jax.tree.leaves(params))
  assert found.checkpoint == sum(
    x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves((trained, real.opt_state))
  )


def test_8b_has_the_parameters_and_bytes_of_its_published_checkpoint():
  found = state.state_of(request('rl:8b').job)
  assert found.parameters == 8_767_123_696
  assert 2 * found.parameters == 17_534_247_392
  # float32 over eight devices, Adam's two moments of what is trained, a reference in bfloat16
  assert found.weights == 8_767_123_696 * 4 // 8 + replicated(found) * 4 * 7 // 8
  assert found.optimizer - 2 * found.gradients in range(64)
  assert found.reference == found.gradients // 2


def replicated(found):
  """Parameters that every device holds whole: norms and biases. From the bytes of a device."""
  return (found.weights * 8 - found.parameters * 4) // 28


def test_a_model_that_trains_its_tower_has_gradients_of_all_parameters():
  frozen, trained = (
    state.state_of(request('rl:8b', train__freeze_vision=value).job) for value in (True, False)
  )
  assert trained.gradients == trained.weights
  assert frozen.gradients < trained.gradients
  assert frozen.weights == trained.weights


def test_without_a_kl_term_there_is_no_reference():
  assert state.state_of(request('rl:8b', rl__beta=0.0).job).reference == 0
  assert state.state_of(request('sft:8b').job).reference == 0


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mesh__tensor': 16}, 'wanted a divisor of 8, the key heads'),
    ({'mesh__fsdp': 3}, 'has embed=4096, wanted a multiple of 3'),
    ({'mesh__fsdp': 256}, 'wanted a multiple of 256'),
  ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    state.refuse_indivisible(request('rl:8b', 'h100:1024', **changes).job)

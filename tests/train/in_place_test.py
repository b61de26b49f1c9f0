"""Deep models add the gradients of their layers to the sums in place: the same step as without."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from paravt_jax.models.qwen3_vl import model
from paravt_jax.train import metric_sums, state, step
from tests.train import common

DEEP = dataclasses.replace(common.CONFIG, text=dataclasses.replace(common.CONFIG.text, layers=5))
FROZEN = common.sgd(1.0, ('visual',))
TRAINED = common.sgd(1.0)


@functools.cache
def weights():
  return jax.tree.map(lambda x: np.asarray(x) * 1.5, model.init(DEEP, jax.random.key(0)))


@functools.cache
def one_step(kind, remat, shape=(1, 1, 1), optimizer=FROZEN):
  """(change of the parameters, metrics) of one step over two micro-batches."""
  rng = np.random.default_rng(0)
  arrays, used = common.packed([common.group(rng) for _ in range(6)]).micro_batches(4)
  assert used == 2
  mesh = common.mesh_of(*shape)
  start = state.from_params(DEEP, optimizer, mesh, weights())
  options = dataclasses.replace(common.MODEL if kind == 'sft' else common.RL_MODEL, remat=remat)
  batch = step.put_batch(mesh, arrays, used)
  if kind == 'sft':
    after, totals = step.make_sft_step(DEEP, optimizer, mesh, options)(start, batch)
  else:
    made = step.make_rl_step(DEEP, optimizer, mesh, options, common.RL)
    after, totals = made(start, batch, state.reference(start, optimizer, 'float32'))
  return common.change(weights(), jax.device_get(after.params)), metric_sums.reduce(totals)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_gradients_in_place_are_those_of_a_plain_backward_pass(kind):
  plain, metrics = one_step(kind, remat='none')
  deep, deep_metrics = one_step(kind, remat='layers')
  assert np.linalg.norm(plain) > 0
  assert common.relative(deep, plain) <= 1e-5
  for name, value in metrics.items():
    assert deep_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_on_a_mesh_too():
  plain, _ = one_step('rl', remat='none', shape=(1, 2, 2))
  deep, _ = one_step('rl', remat='layers', shape=(1, 2, 2))
  assert common.relative(deep, plain) <= 1e-5


@pytest.mark.slow
def test_a_trained_tower_keeps_the_plain_backward_pass():
  plain, _ = one_step('sft', remat='none', optimizer=TRAINED)
  deep, _ = one_step('sft', remat='layers', optimizer=TRAINED)
  assert common.relative(deep, plain) <= 1e-5
  assert not model.adds_to_sums(DEEP, remat='layers', freeze_vision=False)
  assert model.adds_to_sums(DEEP, remat='layers', freeze_vision=True)
  assert not model.adds_to_sums(common.CONFIG, remat='layers', freeze_vision=True)

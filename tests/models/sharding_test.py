"""One table: every parameter of every published size has a place on a mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec

from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import PUBLISHED
from paravt_jax.train import state
from paravt_jax.train.optimizer import OptimizerOptions, make_optimizer
from tests.train import common

ADAMW = OptimizerOptions(
  name='adamw',
  learning_rate=2e-6,
  matrix_learning_rate=0.0,
  schedule='constant',
  warmup_steps=0,
  total_steps=1,
  final_scale=0.0,
  weight_decay=0.01,
  beta1=0.9,
  beta2=0.999,
  epsilon=1e-8,
  momentum=0.95,
  clip_norm=1.0,
)


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8), (1, 2, 1, 4)])
@pytest.mark.parametrize('size', ['2b', '8b'])
def test_every_parameter_of_a_published_model_matches_a_rule_and_divides(size, shape):
  config = PUBLISHED[size]()
  shapes = model.abstract_params(config)
  places = sharding.parameter_shardings(model.logical_axes(config), shapes, common.mesh_of(*shape))
  assert jax.tree.structure(shapes) == jax.tree.structure(places)
  total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  per_device = sum(
    int(jax.numpy.prod(jax.numpy.array(place.shard_shape(leaf.shape), dtype=float)))
    for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(places))
  )
  split = 8 // shape[0]
  # all that is large is split over fsdp, context and tensor
  assert per_device < 1.02 * total / split


def test_the_state_of_8b_fits_its_mesh_and_optimizer_moments_lie_with_their_parameters():
  config, mesh = PUBLISHED['8b'](), common.mesh_of(1, 4, 2)
  optimizer = make_optimizer(ADAMW, model.logical_axes(config), ('visual',))
  full = state.abstract(config, optimizer, mesh)
  adam = full.opt_state[1][0]
  gate = lambda tree: tree['text']['layers']['gate']['kernel'].sharding.spec
  assert gate(adam.mu) == gate(full.params)
  assert adam.nu['text']['layers']['gate']['kernel'].sharding.spec == PartitionSpec(
    None, ('fsdp', 'context'), 'tensor'
  )
  assert 'visual' not in adam.mu and adam.count.sharding.spec == PartitionSpec()


def test_an_axis_without_a_rule_is_refused():
  with pytest.raises(ConfigError, match="no rule for logical axis 'experts'"):
    sharding.spec(('layers', 'experts', 'mlp'))


def test_two_axes_on_one_mesh_axis_are_refused():
  with pytest.raises(ConfigError, match='puts two axes on one mesh axis'):
    sharding.spec(('heads', 'mlp'))


def test_a_dimension_that_does_not_divide_is_named():
  with pytest.raises(ConfigError, match='wte has vocab=7, wanted a multiple of 2'):
    shape = jax.ShapeDtypeStruct((7, 4), 'float32')
    sharding.parameter_shardings(
      {'wte': ('vocab', 'embed')}, {'wte': shape}, common.mesh_of(1, 1, 2)
    )


def test_a_mesh_that_is_not_the_number_of_devices_is_refused():
  with pytest.raises(ConfigError, match='data 3 x fsdp 1 x context 1 x tensor 1 = 3, wanted 8'):
    sharding.make_mesh(3, 1, 1)

"""The learner's records: one atomic record per step, and a checkpoint of another model is
refused.
"""

import dataclasses

import jax
import numpy as np
import pytest

from configs import para_grpo
from paravt_jax.errors import CheckpointError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.orchestrator.learner import Learner
from paravt_jax.serving import manifest, publish
from paravt_jax.serving.canary import Canary
from paravt_jax.testing import tiny
from tests.recipes import typed


def model_folder(folder, width):
  """A checkpoint of that width, its numbers drawn by numpy (cheaper than model.init)."""
  config = tiny.tiny_config(
    tiny.build_tokenizer(folder.with_name(folder.name + '_files')), layers=2, width=width
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), model.abstract_params(config)
  )
  weights.save_hf(folder, config, params, folder.with_name(folder.name + '_files'))
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Model folders of width 64 and 96."""
  place = tmp_path_factory.mktemp('models')
  return [model_folder(place / f'w{width}', width) for width in (64, 96)]


def recipe_with(**changes):
  return typed(para_grpo.get_config(), **{'rl__beta': 0.0, **changes})


@pytest.fixture
def recipe():
  return recipe_with()


def test_a_record_brings_back_parameters_version_and_the_hosts_counters(recipe, folders, tmp_path):
  first = Learner(recipe, folders[0], tmp_path)
  assert first.restore() is None and first.version == 0
  first.version = 7
  first.save({'schedule': {'accepted': 56}, 'ready': []})
  again = Learner(recipe, folders[0], tmp_path)
  assert again.restore() == {'schedule': {'accepted': 56}, 'ready': []} and again.version == 7
  assert all(map(np.array_equal, jax.tree.leaves(first.state), jax.tree.leaves(again.state)))


def test_a_checkpoint_of_another_shape_is_one_clear_error(recipe, folders, tmp_path):
  Learner(recipe, folders[0], tmp_path).save({})
  with pytest.raises(CheckpointError) as caught:
    Learner(recipe, folders[1], tmp_path).restore()
  message = str(caught.value)
  assert (
    'checkpoints/00000000: leaf ' in message
    and 'wanted' in message
    and 'belongs to another model' in message
  )
  assert '\n' not in message


def test_the_published_version_is_the_learners(recipe, folders, tmp_path):
  learner = Learner(recipe, folders[0], tmp_path)
  learner.version = 3
  folder = learner.publish().result()
  frozen = {
    name: array
    for name, array in manifest.leaves(learner.state.params).items()
    if name.startswith('visual/')
  }
  version, params = publish.load(folder, model.abstract_params(learner.model_config), frozen)
  trained = {name: value for name, value in learner.state.params.items() if name != 'visual'}
  assert version == 3 and params.keys() == trained.keys()  # the frozen tower stays where it is
  assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(trained)))


def test_the_canary_that_goes_out_is_what_the_published_weights_say(recipe, folders, tmp_path):
  learner = Learner(recipe, folders[0], tmp_path)
  canary = Canary.from_json(publish.read_manifest(learner.publish().result()).canary)
  (one,) = canary.continuations
  assert one.sampled_ids == () and len(one.output_ids) == recipe.publish.canary_tokens
  assert canary.to_json() == learner.canary().to_json()
  assert canary.rounding == learner.rounding == 0.0  # float32 on a CPU
  first = np.asarray(
    model.logits(learner.model_config, learner.state.params, canary.input_ids, (canary.image,))
  )[-1]
  assert not set(one.output_ids) & set(learner.tok.vision_ids)
  allowed = np.delete(first, learner.tok.vision_ids).astype(np.float64)
  np.testing.assert_allclose(
    one.logprobs[0], allowed.max() - np.log(np.exp(allowed).sum()), atol=1e-4
  )


def test_an_export_is_the_parameters_and_replaces_an_older_one(recipe, folders, tmp_path):
  learner = Learner(recipe, folders[0], tmp_path)
  for shift in (0.0, 1.0):
    moved = jax.tree.map(lambda leaf, by=shift: leaf + by, learner.state.params)
    learner.state = dataclasses.replace(learner.state, params=moved)
    learner.export(tmp_path / 'hf')
    _, params = weights.load_hf(tmp_path / 'hf')
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(moved)))


def test_the_reference_is_kept_only_when_it_is_asked_for(recipe, folders, tmp_path):
  assert Learner(recipe, folders[0], tmp_path)._reference is None
  asked = recipe_with(rl__beta=0.01)
  assert Learner(asked, folders[0], tmp_path)._reference is not None


def test_micro_batches_double_until_the_rows_fit(folders, tmp_path):
  asked = recipe_with(train__rows=4, train__micro_batches=2)
  learner = Learner(asked, folders[0], tmp_path)
  assert [learner._capacity(rows) for rows in (1, 8, 9, 33)] == [2, 2, 4, 16]

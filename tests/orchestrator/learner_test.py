"""The learner's records: one atomic record per step, and a checkpoint of another model is
refused.
"""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

from configs import para_grpo
from paravt_jax.errors import CheckpointError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.orchestrator.learner import Learner
from paravt_jax.rollout.statistics import REWARD_TERMS
from paravt_jax.serving import manifest, publish, reading
from paravt_jax.serving.canary import Canary
from paravt_jax.testing import tiny
from paravt_jax.train import checkpoint
from paravt_jax.types import (
  Episode,
  Group,
  Scored,
  Segment,
  StopReason,
  Task,
  TokenClass,
  Trajectory,
  Turn,
)
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
  with first:
    first.save({'schedule': {'accepted': 56}, 'ready': []})
  again = Learner(recipe, folders[0], tmp_path)
  assert again.restore() == {'schedule': {'accepted': 56}, 'ready': []} and again.version == 7
  assert all(map(np.array_equal, jax.tree.leaves(first.state), jax.tree.leaves(again.state)))


def test_a_checkpoint_of_another_shape_is_one_clear_error(recipe, folders, tmp_path):
  with Learner(recipe, folders[0], tmp_path) as learner:
    learner.save({})
  with pytest.raises(CheckpointError) as caught:
    Learner(recipe, folders[1], tmp_path).restore()
  message = str(caught.value)
  assert (
    'checkpoints/00000000: leaf ' in message
    and 'wanted' in message
    and 'belongs to another model' in message
  )
  assert '\n' not in message


def test_frozen_parameters_are_left_out_of_records_and_come_from_the_model_folder(
  recipe, folders, tmp_path
):
  assert recipe.train.freeze_vision
  with Learner(recipe, folders[0], tmp_path) as learner:
    moved = jax.tree.map(lambda leaf: leaf + 1, learner.state.params['text'])
    learner.state = dataclasses.replace(
      learner.state, params={**learner.state.params, 'text': moved}
    )
    learner.version = 2
    learner.save({})
  records = tmp_path / 'checkpoints'
  base = checkpoint.base(records, 2)
  assert base is not None and base.folder == str(folders[0]) and base.names == ('visual',)
  names = orbax.checkpointables_metadata(str(records / '00000002' / 'arrays')).metadata['state']
  assert names and not [name for name in names if name.startswith('params/visual')]
  again = Learner(recipe, folders[0], tmp_path)
  assert again.restore() == {} and again.version == 2
  jax.tree.map(np.testing.assert_array_equal, again.state, learner.state)
  jax.tree.map(np.testing.assert_array_equal, again.frozen(), learner.frozen())


def test_a_record_with_the_frozen_parameters_as_older_versions_wrote_it_is_read(
  recipe, folders, tmp_path
):
  learner = Learner(recipe, folders[0], tmp_path)
  whole = jax.tree.map(lambda leaf: leaf + 1, learner.state)
  checkpoint.save(tmp_path / 'checkpoints', 5, whole, {'old': True}, keep=1)
  assert learner.restore() == {'old': True} and learner.version == 5
  jax.tree.map(np.testing.assert_array_equal, learner.state, whole)


def test_a_model_folder_with_another_tower_is_refused_by_name(recipe, folders, tmp_path):
  with Learner(recipe, folders[0], tmp_path) as learner:
    learner.save({})
  config, params = weights.load_hf(folders[0])
  params['visual']['pos_embed']['embedding'] += 1
  weights.save_hf(tmp_path / 'other', config, params, folders[0])
  with pytest.raises(
    CheckpointError,
    match=rf'visual of {tmp_path}/other is not what .* trained with \(that of {folders[0]}\)',
  ):
    Learner(recipe, tmp_path / 'other', tmp_path).restore()


def test_a_model_in_bfloat16_is_exported_in_bfloat16(recipe, folders, tmp_path):
  config, params = weights.load_hf(folders[0])
  half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
  weights.save_hf(tmp_path / 'half', config, half, folders[0])
  Learner(recipe, tmp_path / 'half', tmp_path).export(tmp_path / 'hf')
  _, found = weights.load_hf(tmp_path / 'hf')
  jax.tree.map(np.testing.assert_array_equal, found, half)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {'bfloat16'}
  assert json.loads((tmp_path / 'hf' / 'config.json').read_text())['dtype'] == 'bfloat16'


def test_the_published_version_is_the_learners(recipe, folders, tmp_path):
  learner = Learner(recipe, folders[0], tmp_path)
  learner.version = 3
  folder = learner.publish().result()
  frozen = {
    name: array
    for name, array in manifest.leaves(learner.state.params).items()
    if name.startswith('visual/')
  }
  version, params = reading.load(folder, model.abstract_params(learner.model_config), frozen)
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


def test_a_model_in_several_files_is_exported_in_several_files(recipe, folders, tmp_path):
  config, params = weights.load_hf(folders[0])
  weights.save_hf(tmp_path / 'cut', config, params, folders[0], shard_bytes=500_000)
  Learner(recipe, tmp_path / 'cut', tmp_path).export(tmp_path / 'hf')
  given, made = (list((tmp_path / name).glob('*.safetensors')) for name in ('cut', 'hf'))
  assert len(given) > 1 and len(made) > 1
  assert max(file.stat().st_size for file in made) <= max(file.stat().st_size for file in given)
  assert weights.stored_shard_bytes(folders[0]) == 5_000_000_000  # one file says nothing


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


def groups_of(count, versions):
  """Groups of two rollouts without images; every token of version `versions`."""

  def scored(prompt, rollout):
    written = Segment(
      np.array([10, 11, 12], np.int32),
      True,
      logprobs=np.full(3, -1.0, np.float32),
      versions=np.full(3, versions, np.int32),
      token_class=TokenClass.TEXT,
    )
    opening = Segment(np.array([20, 21], np.int32), False)
    trajectory = Trajectory((opening, written), StopReason.ANSWER)
    task = Task(prompt, ('v.mp4',), 'q?', 'oe', 'red')
    turns = (Turn(''),)
    episode = Episode(task, rollout, 4, (), 8.0, turns, trajectory, StopReason.ANSWER)
    return Scored(episode, float(rollout), dict.fromkeys(REWARD_TERMS.values(), 0.0))

  return [Group(str(n), 0, tuple(scored(str(n), r) for r in range(2))) for n in range(count)]


def test_a_batch_is_prepared_by_need_beside_the_step_before(folders, tmp_path):
  """Its staleness counts from the version that its own step begins with."""
  asked = recipe_with(
    train__row_tokens=256,
    train__row_images=8,
    train__rows=2,
    train__micro_batches=4,
    batches__row_lengths=(128,),
    batches__spread=True,
    batches__shapes=8,
  )
  learner = Learner(asked, folders[0], tmp_path)
  before = jax.tree.map(np.asarray, learner.state.params)
  found = learner.prepare(groups_of(3, versions=2), version=3)
  assert found.inputs['tokens'].shape == (4, 2, 128) and int(found.inputs['used']) == 1
  assert found.inputs['patches'].shape[:3] == (4, 2, 4)
  segments = np.asarray(found.inputs['segments'])
  assert segments[0].any(axis=1).all() and not segments[1:].any()
  assert found.packed['staleness'] == 1 and found.packed['pack/micro_batches'] == 1
  assert not np.asarray(found.inputs['current']).any()
  now = learner.prepare(groups_of(3, versions=3), version=3)
  assert np.array_equal(now.inputs['current'], now.inputs['mask'])
  assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(learner.state.params)))
  with pytest.raises(RuntimeError, match='got a batch for version 3, wanted 0; prepare it anew'):
    learner.train_on(found)

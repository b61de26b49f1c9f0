"""The model of an evaluation: named by its files, exactly one, and one that is there."""

import jax
import numpy as np
import pytest

from configs import eval as recipe
from paravt_jax.errors import CheckpointError, ConfigError, DataError
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.orchestrator import evaluated_model, run_folder
from paravt_jax.orchestrator.learner import Learner
from tests import recipes
from tests.orchestrator import learner_test

FILES = {
  'config.json': '{}',
  'model.safetensors': 'weights',
  'tokenizer.json': '{}',
  'README.md': 'about',
}


def model_folder(folder, **changed):
  folder.mkdir(parents=True)
  for name, text in {**FILES, **changed}.items():
    (folder / name).write_text(text)
  return folder


def named(**section):
  config = recipe.get_config()
  config.model.update(section)
  return recipes.typed(config)


def test_a_model_is_named_by_its_files_wherever_they_lie(tmp_path):
  one = evaluated_model.identify(named(folder=str(model_folder(tmp_path / 'run' / 'hf'))))
  same = evaluated_model.identify(named(run=str(tmp_path / 'run')))
  other = evaluated_model.identify(
    named(folder=str(model_folder(tmp_path / 'b', **{'model.safetensors': 'other'})))
  )
  reworded = evaluated_model.identify(
    named(folder=str(model_folder(tmp_path / 'c', **{'README.md': 'more'})))
  )
  assert (one.name, other.name) == ('run', 'b') and one == same
  assert one.parts == reworded.parts != other.parts


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({}, 'got nothing, wanted one of model.folder=DIR'),
    ({'folder': 'a', 'url': 'http://b/v1'}, 'got folder, url, wanted one of'),
    ({'url': 'http://x/v1'}, 'wanted model.name and model.tokenizer'),
  ],
)
def test_not_exactly_one_model_is_refused(section, message):
  with pytest.raises(ConfigError, match=message):
    evaluated_model.identify(named(**section))


def test_folders_that_hold_no_model_are_refused(tmp_path):
  with pytest.raises(DataError, match=r'--config.model.folder: .*config.json does not exist'):
    evaluated_model.identify(named(folder=str(tmp_path)))
  with pytest.raises(
    DataError, match=r'--config.model.run: .* holds neither hf/ nor config.json with a record'
  ):
    evaluated_model.identify(named(run=str(tmp_path)))
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(DataError, match=r'holds no \*.safetensors'):
    evaluated_model.identify(named(folder=str(tmp_path)))
  with pytest.raises(DataError, match=r'--config.model.tokenizer: .*tokenizer.json does not exist'):
    evaluated_model.identify(named(url='http://x/v1', name='m', tokenizer=str(tmp_path)))


def test_a_record_without_its_tower_becomes_a_whole_folder_again(tmp_path):
  base, run = learner_test.model_folder(tmp_path / 'base', 64), tmp_path / 'run'
  recipe = learner_test.recipe_with(model__folder=str(base))
  with Learner(recipe, base, run) as learner:
    learner.version = 3
    learner.save({})
  run_folder.write_json(run / 'config.json', run_folder.to_json(recipe))
  model = evaluated_model.identify(named(run=str(run)))
  assert model.step == 3
  found = evaluated_model.hf_folder(model, tmp_path)
  _, params = weights.load_hf(found)
  jax.tree.map(np.testing.assert_array_equal, params, weights.load_hf(base)[1])
  base.rename(tmp_path / 'moved')
  recipe = learner_test.recipe_with(model__folder=str(tmp_path / 'moved'))
  run_folder.write_json(run / 'config.json', run_folder.to_json(recipe))
  (tmp_path / 'again').mkdir()
  with pytest.raises(CheckpointError, match=rf'leaves out visual, which is in {base}; that folder'):
    evaluated_model.hf_folder(model, tmp_path / 'again')

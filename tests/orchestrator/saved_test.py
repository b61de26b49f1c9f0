"""A folder of another version: what is used of its recipe is read, the rest is not looked at."""

import json

import pytest

from configs import eval as eval_config
from configs import para_grpo, sft
from paravt_jax.errors import DataError
from paravt_jax.orchestrator import saved
from paravt_jax.orchestrator.run_folder import to_json
from tests import recipes

WANTED = 'wanted the recipe of experiments.rl or experiments.sft'


def folder_of(tmp_path, recipe, change=lambda values: None):
  """A folder made with a recipe, its saved values changed."""
  values = to_json(recipes.typed(recipe))
  change(values)
  (tmp_path / saved.FILE).write_text(json.dumps(values))
  return tmp_path


def another_version(values):
  """Knobs and a section that came, and others that went, where nothing is used."""
  values['agent']['of_tomorrow'] = 1
  del values['agent']['max_turns']
  del values['client']
  values['new'] = {'knob': 2}


def test_a_run_of_another_version_is_read_by_the_sections_that_its_records_need(tmp_path):
  config = para_grpo.get_config('tiny')
  made, _ = saved.read(saved.TrainedModel, folder_of(tmp_path, config, another_version), WANTED)
  assert (made.optimizer.learning_rate, made.train.freeze_vision) == (
    config.optimizer.learning_rate,
    config.train.freeze_vision,
  )


def test_a_run_began_with_its_own_folder_else_with_that_of_its_cold_start(tmp_path):
  def first(recipe, change=lambda values: None):
    return saved.read(saved.TrainedModel, folder_of(tmp_path, recipe, change), WANTED)[0].first

  def own_folder(values):
    values['model']['folder'] = 'given'

  def older_cold_start(values):
    values['cold_start']['seed'] = 17
    del values['cold_start']['batches']

  assert first(para_grpo.get_config('tiny'), older_cold_start).seed == 17
  assert first(para_grpo.get_config('tiny'), own_folder).model.folder == 'given'
  assert first(sft.get_config('tiny')).seed == sft.get_config('tiny').seed


def test_an_evaluation_of_another_version_is_read_by_what_its_page_needs_and_kept_whole(tmp_path):
  def change(values):
    another_version(values)
    del values['eval']['limit']  # of a used section, but no part of the page

  folder = folder_of(tmp_path, eval_config.get_config('tiny'), change)
  made, whole = saved.read(saved.Evaluation, folder, WANTED)
  assert (made.seed, made.eval.bootstrap) == (whole['seed'], whole['eval']['bootstrap'])
  assert whole['agent']['of_tomorrow'] == 1 and whole['new'] == {'knob': 2}


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda values: values.pop('optimizer'), 'config: optimizer is missing'),
    (lambda values: values['optimizer'].pop('beta2'), 'config.optimizer: beta2 is missing'),
    (lambda values: values['optimizer'].update(beta2=2.0), 'optimizer.beta2=2.0: wanted'),
    (lambda values: values.update(model='x'), "config.model='x': wanted a section"),
  ],
)
def test_damage_in_what_is_used_is_one_line_that_names_the_knob(tmp_path, change, said):
  with pytest.raises(DataError) as caught:
    saved.read(saved.TrainedModel, folder_of(tmp_path, sft.get_config('tiny'), change), WANTED)
  message = str(caught.value)
  assert message.startswith(f'{tmp_path}/config.json: ') and message.endswith(WANTED)
  assert said in message and '\n' not in message


@pytest.mark.parametrize('text', ['', '[1]', '"x"', '[' * 100_000, '{"seed": 0}'])
def test_a_file_that_is_no_recipe_is_one_line(tmp_path, text):
  (tmp_path / saved.FILE).write_text(text)
  with pytest.raises(DataError, match=r'config.json: .*wanted the recipe of'):
    saved.read(saved.TrainedModel, tmp_path, WANTED)
  with pytest.raises(DataError, match='No such file'):
    saved.read(saved.TrainedModel, tmp_path / 'nowhere', WANTED)

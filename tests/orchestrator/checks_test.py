"""What two knobs must be to each other is checked before a world, a folder or a server is made."""

import pytest

from configs import para_grpo, sft
from experiments import rl
from experiments import sft as sft_entry
from paravt_jax.errors import ConfigError


def refused(entry, config, **knobs):
  """The message about a recipe with these knobs, '__' for dots."""
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in knobs.items()}
  )
  with pytest.raises(ConfigError) as caught:
    entry.check(config)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_steps_behind_a_cosine_that_ends_at_zero_are_refused_with_the_way_out():
  said = refused(sft_entry, sft.get_config('8b'), steps=1501)
  assert said.startswith(
    '--config.steps=1501: wanted at most optimizer.total_steps=1500, where the cosine ends '
    'at a learning rate of 0'
  )
  assert '--config.model.folder=RUN/hf' in said
  said = refused(rl, para_grpo.get_config('8b'), optimizer__schedule='cosine', rollout__steps=55)
  assert said.startswith('--config.rollout.steps=55: wanted at most optimizer.total_steps=54')
  said = refused(
    rl, para_grpo.get_config(), cold_start__optimizer__final_scale=0.0, cold_start__steps=500
  )
  assert said.startswith('--config.cold_start.steps=500: wanted at most optimizer.total_steps=400')


@pytest.mark.parametrize(
  'knobs',
  [
    {'steps': 1500},
    {'steps': 2000, 'optimizer.final_scale': 0.1},
    {'steps': 2000, 'optimizer.schedule': 'constant'},
  ],
)
def test_steps_with_a_rate_above_zero_are_let_in(knobs):
  config = sft.get_config('8b')
  config.update_from_flattened_dict(knobs)
  sft_entry.check(config)


def test_a_frame_that_fits_no_slot_is_refused():
  assert refused(rl, para_grpo.get_config('8b'), video__max_pixels=100352) == (
    '--config.video.max_pixels=100352: wanted at most 50176, what train.image_patches=196 hold'
  )
  assert refused(rl, para_grpo.get_config(), video__max_pixels=2048, train__image_patches=8) == (
    '--config.server.embedded.max_image_patches=4: wanted at least 8, '
    'what video.max_pixels=2048 may need'
  )
  assert 'video.max_pixels: got 100352, wanted at most 50176' in refused(
    sft_entry, sft.get_config('8b'), video__max_pixels=100352
  )


@pytest.mark.parametrize(
  ('knobs', 'said'),
  [
    ({'world__scene__gap': 30}, 'world.scene: 9 events of 4 s with gaps of 30 s'),
    ({'world__questions__choices': 9}, 'world.questions.choices: got 9, wanted 2..8'),
    ({'world__corpus__heldout_videos': 0}, 'world.corpus: got videos=300'),
    ({'world__corpus__rl_tasks': 0}, '--config.world.corpus.rl_tasks=0: wanted at least 1'),
  ],
)
def test_a_world_that_cannot_be_made_is_refused_before_it_is_begun(knobs, said):
  assert refused(rl, para_grpo.get_config(), **knobs).startswith(said)


@pytest.mark.parametrize(('entry', 'recipe'), [(rl, para_grpo), (sft_entry, sft)])
def test_a_scale_without_a_world_has_none(entry, recipe):
  assert refused(entry, recipe.get_config('8b'), data__kind='world') == (
    "--config.data.kind='world': wanted 'files': this scale has no world"
  )


def test_without_held_out_questions_there_is_no_evaluation():
  config = para_grpo.get_config()
  config.world.corpus.update({'heldout_videos': 0, 'heldout_tasks': 0})
  rl.check(config)

"""What two knobs must be to each other is checked before a world, a folder or a server is made."""

import pytest

from configs import eval as evaluation
from configs import para_grpo, sft
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.checks import check_eval_servers, check_heldout, check_rl, check_sft
from tests.recipes import typed


def refused(check, config, **knobs):
  """The message about a recipe with these knobs, '__' for dots."""
  recipe = typed(config, **knobs)  # each knob by itself is good
  with pytest.raises(ConfigError) as caught:
    check(recipe)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_steps_behind_a_cosine_that_ends_at_zero_are_refused_with_the_way_out():
  said = refused(check_sft, sft.get_config('8b'), steps=1501)
  assert said.startswith(
    '--config.steps=1501: wanted at most optimizer.total_steps=1500, where the cosine ends '
    'at a learning rate of 0'
  )
  assert '--config.model.folder=RUN/hf' in said
  said = refused(
    check_rl, para_grpo.get_config('8b'), optimizer__schedule='cosine', rollout__steps=55
  )
  assert said.startswith('--config.rollout.steps=55: wanted at most optimizer.total_steps=54')
  said = refused(
    check_rl, para_grpo.get_config(), cold_start__optimizer__final_scale=0.0, cold_start__steps=500
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
  check_sft(typed(config))


def test_a_shorter_row_that_is_not_shorter_is_refused():
  said = refused(check_rl, para_grpo.get_config('8b'), train__row_tokens=16384)
  assert said == (
    '--config.batches.row_lengths=(6144, 20480): wanted lengths below train.row_tokens=16384, '
    'or () for none'
  )


def test_a_frame_that_fits_no_slot_is_refused():
  assert refused(check_rl, para_grpo.get_config('8b'), video__max_pixels=100352) == (
    '--config.video.max_pixels=100352: wanted at most 50176, what train.image_patches=196 hold'
  )
  assert refused(
    check_rl, para_grpo.get_config(), video__max_pixels=2048, train__image_patches=8
  ) == (
    '--config.server.embedded.max_image_patches=4: wanted at least 8, '
    'what video.max_pixels=2048 may need'
  )
  assert 'video.max_pixels: got 100352, wanted at most 50176' in refused(
    check_sft, sft.get_config('8b'), video__max_pixels=100352
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
  assert refused(check_rl, para_grpo.get_config(), **knobs).startswith(said)


@pytest.mark.parametrize(('check', 'recipe'), [(check_rl, para_grpo), (check_sft, sft)])
def test_a_scale_without_a_world_has_none(check, recipe):
  assert refused(check, recipe.get_config('8b'), data__kind='world') == (
    "--config.data.kind='world': wanted 'files': this scale has no world"
  )


def test_without_held_out_questions_there_is_no_evaluation():
  config = para_grpo.get_config()
  config.world.corpus.update({'heldout_videos': 0, 'heldout_tasks': 0})
  check_rl(typed(config))


@pytest.mark.parametrize(('recipe', 'check'), [(para_grpo, check_rl), (sft, check_sft)])
def test_rows_that_do_not_divide_over_the_mesh_are_refused_before_anything_is_made(recipe, check):
  check(typed(recipe.get_config('8b')))
  assert refused(check, recipe.get_config('8b'), train__rows=12) == (
    '--config.train.rows=12: wanted a multiple of 8 (mesh.data x mesh.fsdp), at least that'
  )


@pytest.mark.parametrize(('recipe', 'check'), [(para_grpo, check_rl), (sft, check_sft)])
def test_rows_that_do_not_divide_into_slices_are_refused(recipe, check):
  config = recipe.get_config('8b_long')
  check(typed(config))
  assert refused(check, config, train__row_tokens=262148) == (
    '--config.train.row_tokens=262148: wanted a multiple of 8 (mesh.context)'
  )


def test_shorter_rows_that_do_not_divide_into_slices_are_refused():
  said = refused(
    check_rl,
    para_grpo.get_config('8b'),
    mesh__context=3,
    batches__row_lengths=(6144, 12800),
    train__row_tokens=32769,
  )
  assert said == '--config.batches.row_lengths=(6144, 12800): wanted multiples of 3 (mesh.context)'


@pytest.mark.parametrize('knob', [{'sampling__top_p': 0.9}, {'sampling__top_k': 50}])
def test_rl_samples_from_the_whole_distribution(knob):
  said = refused(check_rl, para_grpo.get_config(), **knob)
  assert said.startswith('--config.sampling.top_p, sampling.top_k=(')
  assert said.endswith(': wanted top_p=1 and top_k=-1: the learner scores the whole distribution')


def test_a_manifest_and_files_are_not_both_given():
  said = refused(
    check_sft, sft.get_config('8b'), data__manifest='mix.json', data__train=('a.parquet',)
  )
  assert said == "--config.data.manifest='mix.json': wanted empty where data.train names files"


def test_a_cold_start_that_is_not_made_is_not_checked():
  wrong = {'cold_start__optimizer__final_scale': 0.0, 'cold_start__steps': 500}
  check_rl(typed(para_grpo.get_config(), model__folder='given', **wrong))
  assert 'cold_start.steps=500' in refused(check_rl, para_grpo.get_config(), **wrong)


def test_the_world_as_a_benchmark_wants_questions():
  recipe = typed(evaluation.get_config())
  check_heldout(recipe.world)
  none = recipe.world.replace(corpus=recipe.world.corpus.replace(heldout_tasks=0))
  with pytest.raises(
    ConfigError, match=r'--config\.world\.corpus\.heldout_tasks=0: wanted at least 1'
  ):
    check_heldout(none)


def test_an_evaluation_wants_a_server_that_it_can_reach_or_start():
  check_eval_servers(typed(evaluation.get_config()))
  assert refused(check_eval_servers, evaluation.get_config(), server__kind='url') == (
    "--config.server.urls=(): wanted a server's address, or server.router, or server.kind=embedded "
    'or sglang'
  )
  by_router = {'server__kind': 'url', 'server__router': 'http://a:1'}
  check_eval_servers(typed(evaluation.get_config(), **by_router))


def test_a_router_stands_in_front_of_servers_that_run_already():
  said = refused(check_rl, para_grpo.get_config(), server__router='http://a:1')
  assert said == (
    "--config.server.router='http://a:1': wanted '' where the run starts its servers: a router needs "
    'server.kind=url'
  )

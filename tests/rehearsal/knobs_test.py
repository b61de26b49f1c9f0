"""The rehearsal's recipes are those of the 8B scale but for places and counts."""

import pathlib

from configs import eval as eval_recipe
from configs import para_grpo
from paravt_jax import options
from tests import recipes
from tests.rehearsal import job, knobs

# Where files and servers are.
PLACES = {
  *('data.eval', 'data.media_root', 'data.train', 'model.folder', 'run.folder'),
  *('server.sglang.staging', 'server.urls'),
}
# How many or how large: tokens, frames, pixels, rollouts, steps, processes.
COUNTS = {
  *('agent.max_new_tokens', 'batches.row_lengths', 'batches.shapes', 'eval.budgets'),
  *('eval.questions', 'frames.budgets', 'frames.frames', 'rollout.group_size'),
  *('rollout.prompts', 'rollout.steps', 'run.checkpoint_every', 'sampling.context'),
  *('subagent.max_frames', 'subagent.max_new_tokens', 'subagent.summary_tokens'),
  *('train.head_chunk', 'train.image_patches', 'train.micro_batches', 'train.row_images'),
  *('train.row_tokens', 'video.max_pixels', 'video.workers'),
}
HERE, URLS = pathlib.Path('/rehearsal'), ('http://127.0.0.1:1', 'http://127.0.0.1:2')


def flat(recipe, prefix=''):
  """{knob: value} of a typed recipe's plain form."""
  found = {}
  for name, value in recipe.items():
    found |= flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
  return found


def differing(published, given):
  """The knobs whose values differ between two typed recipes."""
  ours, theirs = flat(options.to_dict(given)), flat(options.to_dict(published))
  assert ours.keys() == theirs.keys()
  return {name for name in ours if ours[name] != theirs[name]}


def typed(get_config, given):
  changes = {name.replace('.', '__'): value for name, value in given.items()}
  return recipes.typed(get_config('8b'), **changes)


def test_only_places_and_counts_differ_from_the_recipe_of_the_8b_scale():
  given = typed(para_grpo.get_config, knobs.rl(HERE, URLS))
  assert differing(recipes.typed(para_grpo.get_config('8b')), given) == PLACES | COUNTS
  assert set(knobs.COUNTS) == COUNTS


def test_a_knob_of_the_method_or_of_the_path_would_be_seen():
  for name, value in (
    ('rollout.staleness', 0),
    ('train.dtype', 'float32'),
    ('train.backend', 'chunked'),
    ('mesh.fsdp', 4),
    ('publish.dtype', 'float32'),
    ('rl.beta', 0.0),
  ):
    given = typed(para_grpo.get_config, {**knobs.rl(HERE, URLS), name: value})
    published = recipes.typed(para_grpo.get_config('8b'))
    assert differing(published, given) == PLACES | COUNTS | {name}


def test_the_evaluation_differs_in_what_it_names_and_the_same_counts():
  given = typed(eval_recipe.get_config, knobs.evaluation(HERE, URLS, HERE / 'snapshot'))
  changed = differing(recipes.typed(eval_recipe.get_config('8b')), given)
  names = {'benchmarks', 'data.cache', 'model.folder', 'paths.videomme', 'run.folder'}
  assert changed == names | {'server.urls'} | (COUNTS & set(knobs.EVALUATED))


def test_counts_of_tokens_and_images_are_the_published_ones_divided_by_eight():
  published = flat(options.to_dict(recipes.typed(para_grpo.get_config('8b'))))
  for name in ('train.row_tokens', 'train.row_images', 'train.head_chunk', 'sampling.context'):
    assert knobs.COUNTS[name] * 8 == published[name], name
  assert (
    tuple(8 * one for one in knobs.COUNTS['batches.row_lengths'])
    == (published['batches.row_lengths'])
  )


def test_the_run_has_as_many_devices_as_the_mesh_of_the_8b_scale():
  mesh = recipes.typed(para_grpo.get_config('8b')).mesh
  assert job.DEVICES['XLA_FLAGS'].endswith(f'={mesh.data * mesh.fsdp * mesh.tensor}')

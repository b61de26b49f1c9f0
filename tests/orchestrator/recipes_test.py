"""What the knobs of every recipe may be; the published numbers stand with their options."""

import dataclasses
import importlib
import math

import pytest

from configs import base, para_grpo
from paravt_jax import options
from paravt_jax.data import rows
from paravt_jax.errors import ConfigError
from paravt_jax.eval import protocols
from paravt_jax.models import attention
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.serving import manifest
from paravt_jax.video.readers import READERS
from tests.recipes import typed

SCALES = {
  'para_grpo': ('tiny', '2b', '8b', '8b_split', '8b_long'),
  'grpo': ('tiny', '2b', '8b', '8b_split'),
  'sft': ('tiny', '2b', '8b', '8b_long'),
  'eval': ('tiny', '2b', '8b'),
  'ask': ('tiny', '2b', '8b'),
  'serve': ('tiny', '2b', '8b'),
  'ablations': (None,),
  'bench': (None,),
  'longvideo_reason': (None,),
}
CASES = [(name, scale) for name, scales in SCALES.items() for scale in scales]


def config_of(name, scale):
  made = importlib.import_module(f'configs.{name}')
  return made.get_config(scale) if scale else made.get_config()


def sections(recipe, where=''):
  """(its place, options) of a recipe and all below it."""
  yield where, recipe
  for field in dataclasses.fields(recipe):
    value = getattr(recipe, field.name)
    if dataclasses.is_dataclass(value):
      yield from sections(value, f'{where}.{field.name}'.lstrip('.'))


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_every_knob_has_a_rule_and_every_section_checks_itself(name, scale):
  recipe = typed(config_of(name, scale))
  rules = options.schema(type(recipe))
  assert [knob for knob, _ in options.leaves(recipe) if options.rule_of(rules, knob) is None] == []
  assert [where for where, one in sections(recipe) if not isinstance(one, options.Options)] == []


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_a_recipe_turned_to_plain_sections_and_back_is_the_same(name, scale):
  config = config_of(name, scale)
  recipe = typed(config)
  assert typed(config.__class__(options.to_dict(recipe))) == recipe
  assert options.to_dict(recipe) == config.to_dict()


def test_the_published_numbers_are_the_8b_recipes():
  assert typed(base.rl('8b')) == RLRecipe.published()
  assert typed(base.sft('8b')) == SFTRecipe.published()


# What 0 and a negative number mean, by the end of a knob's path. Everywhere else they are refused.
ZERO = {
  'checkpoint_every': 'only the last record',
  'rank': 'no adapter',
  'profile.steps': 'no trace',
  'hosts.count': 'as JAX finds',
  'hosts.index': 'the first',
  'max_bad_share': 'not one',
  'max_rows': 'all',
  'min_pixels': 'no lower bound',
  'cache_mb': 'none in memory',
  'cache_gb': 'no bound',
  'retries': 'once',
  'seed': 'a seed',
  'max_turns': 'the closing turn alone',
  'format_weight': 'none',
  'anchor_weight': 'no anchor',
  'unclosed_penalty': 'none',
  'tool_threshold': 'any right answer',
  'staleness': 'synchronous',
  'beta': 'no reference',
  'learning_rate': 'nothing changes',
  'matrix_learning_rate': 'nothing changes',
  'warmup_steps': 'none',
  'final_scale': 'the cosine ends at 0',
  'weight_decay': 'none',
  'beta1': 'no momentum',
  'beta2': 'the square of the gradient alone',
  'momentum': 'none',
  'clip_norm': 'no clipping',
  'image_cache': 'none is kept',
  'eval.questions': 'no evaluation',
  'threads': 'as many as it likes',
  'restarts': 'none',
  'memory_mb': 'no limit',
  'drain_s': 'at once',
  'vision_cache_mb': 'none',
  'world.workers': 'in this process',
  'gap': 'events may touch',
  'margin': 'none',
  'noise': 'none',
  'nothing': 'no such question',
  'clearance': 'none',
  'tolerance': 'the very second',
  'always_call': 'never',
  'recovery': 'never',
  'loose': 'none',
  'stray': 'none',
  'heldout_videos': 'none',
  'heldout_tasks': 'no evaluation',
  'rl_tasks': 'none, for SFT alone',
  'row_images': 'text only, for SFT',
  'row_large_images': 'none',
  'large_image_patches': 'none',
  'limit': 'all',
  'canary_tokens': 'believed',
  'max_error_rate': 'not one',
  'report_samples': 'none',
  'report_pictures': 'none',
  'quality': 'PNG',
  'temperature': 'greedy',
  'image_share': 'none',
  'snap_seconds': 'never',
  'min_seconds': 'none',
  'crf': 'lossless',
  'min_chars': 'any text',
  'max_missing': 'not one',
  'port': 'a free one',
}
ZERO_GROUPS = ('sft_rows', 'weights')  # sections whose members may be 0
NEGATIVE = {'top_k': 'all', 'index': 'as JAX finds'}


def said(recipe, knob, value):
  """What a recipe says of a value of one of its knobs; None: nothing."""
  path, _, last = knob.rpartition('.')
  places = dict(sections(recipe))
  try:
    if path in places:
      places[path].replace(**{last: value})
    else:  # a name of one's own
      above, _, name = path.rpartition('.')
      path, members = above, getattr(places[above], name)
      places[above].replace(**{name: {**members, last: value}})
    return None
  except options.KnobError as error:
    return str(error.at(path))


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_a_number_is_let_in_with_a_meaning_or_refused_in_one_line(name, scale):
  recipe = typed(config_of(name, scale))
  numeric = [
    knob for knob, value in options.leaves(recipe) if type(value) in (int, float) or value is None
  ]
  assert numeric
  for knob in numeric:
    two = '.'.join(knob.split('.')[-2:])
    section, _, last = two.rpartition('.')
    for value in (0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf):
      message = said(recipe, knob, value)
      if message is None:
        means = value == 0 and (last in ZERO or section in ZERO_GROUPS or two in ZERO)
        assert means or (value == -1 and last in NEGATIVE), f'{knob}={value}: what does it mean?'
      else:
        assert message.startswith(f'--config.{knob}={value!r}: wanted ') and '\n' not in message


@pytest.mark.parametrize(
  ('name', 'knob'),
  [
    ('para_grpo', 'server.watch.tolerance'),
    ('para_grpo', 'publish.canary_tokens'),
    ('para_grpo', 'sampling.temperature'),
    ('para_grpo', 'train.row_images'),
    ('para_grpo', 'rollout.gap_limit'),
    ('para_grpo', 'optimizer.epsilon'),
    ('bench', 'threads'),
    ('para_grpo', 'server.sglang.threads'),
    ('sft', 'optimizer.learning_rate'),
    ('sft', 'optimizer.matrix_learning_rate'),
    ('longvideo_reason', 'caption.quality'),
    ('para_grpo', 'run.keep'),
    ('sft', 'optimizer.total_steps'),
    ('para_grpo', 'mesh.data'),
    ('para_grpo', 'reward.grounding_threshold'),
    ('ask', 'frames'),
    ('eval', 'eval.bootstrap'),
  ],
)
def test_zero_is_refused_where_it_has_no_meaning(name, knob):
  recipe = typed(config_of(name, SCALES[name][0]))
  assert said(recipe, knob, 0).startswith(f'--config.{knob}=0: wanted ')


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_a_number_that_is_too_large_for_any_use_is_refused_in_one_line(name, scale):
  recipe = typed(config_of(name, scale))
  for knob, value in options.leaves(recipe):
    if type(value) in (int, float) and not knob.endswith(('peak_flops', 'step.parameters')):
      for huge in (10**18, 1e30):
        assert (said(recipe, knob, huge) or '').startswith(f'--config.{knob}={huge!r}: wanted ')


@pytest.mark.parametrize(
  ('name', 'knob', 'value', 'wanted'),
  [
    ('sft', 'optimizer.warmup_steps', 10**18, 'at most 2147483647'),
    ('para_grpo', 'frames.budgets', (4, 10**20), 'at most 2147483647'),
    ('sft', 'video.workers', 100_000, 'at least 1, at most 1024'),
    ('para_grpo', 'server.count', 5000, 'at least 1, at most 1024'),
    ('para_grpo', 'judge.retries', 5000, 'at least 0, at most 100'),
    ('eval', 'sampling.temperature', 101.0, 'at least 0, at most 100 (0: greedy)'),
    ('para_grpo', 'sampling.temperature', 101.0, 'above 0 (RL must explore), at most 100'),
    ('eval', 'sampling.top_p', 1e-9, 'a share above 0, up to 1 (at least 1e-06)'),
  ],
)
def test_the_largest_value_is_said(name, knob, value, wanted):
  recipe = typed(config_of(name, SCALES[name][0]))
  assert said(recipe, knob, value) == f'--config.{knob}={value!r}: wanted {wanted}'


def test_zero_is_no_bound_of_the_folder_of_frames():
  assert said(typed(config_of('sft', 'tiny')), 'video.cache_gb', 0) is None


def test_a_whole_number_is_neither_a_float_nor_a_boolean():
  recipe = typed(para_grpo.get_config())
  assert said(recipe, 'agent.max_turns', 2.5) == '--config.agent.max_turns=2.5: wanted at least 0'
  assert said(recipe, 'agent.max_turns', True) == '--config.agent.max_turns=True: wanted at least 0'
  assert said(recipe, 'frames.gating', 1) == '--config.frames.gating=1: wanted True or False'
  assert said(recipe, 'optimizer.learning_rate', 1) is None


@pytest.mark.parametrize(
  ('knob', 'value', 'wanted'),
  [
    ('frames.budgets', (), 'positive frame budgets'),
    ('frames.budgets', (4, 0), 'positive frame budgets'),
    ('frames.budgets', 4, 'positive frame budgets'),
    ('server.ports', (80, 80), 'different ports'),
    ('server.ports', (0,), 'different ports'),
    ('server.sglang.devices', (0, 0), 'different numbers of GPUs'),
    ('server.sglang.devices', (-1,), 'different numbers of GPUs'),
    ('server.urls', ('localhost:1',), 'addresses, as in'),
    ('server.router', 'localhost:1', 'an address, such as http://127.0.0.1:30000'),
    ('server.embedded.lanes', ((128, 0),), '(context, slots) pairs'),
    ('world.scene.events', (9, 6), '(low, high) with 1 <= low <= high'),
    ('data.question_types', ('mc',), 'some of mcq, tvg, oe, or () for all'),
    ('cold_start.sources.trace', (1.0, 5, 2), 'a weight, a first step'),
    ('cold_start.sources.trace', (math.nan, 0, None), 'a weight'),
    ('judge.url', 'ftp://a', 'the address of an OpenAI-compatible server'),
    ('run.folder', 'None', "text (for none: '', nothing behind the =)"),
    ('run.wandb_mode', 'on', 'one of online, offline, disabled, shared'),
    ('optimizer.name', 'lion', 'one of adam, adamw, muon'),
    ('train.dtype', 'float16', 'one of bfloat16, float32'),
    ('data.kind', 'wrld', "'world' or 'files'"),
    ('reward.open_ended', None, 'one of f1, exact, judge'),
    ('server.host', '', 'a name'),
    ('train.image_patches', 6, 'a multiple of 4'),
  ],
)
def test_tuples_words_and_addresses_have_rules_too(knob, value, wanted):
  assert said(typed(para_grpo.get_config()), knob, value).startswith(
    f'--config.{knob}={value!r}: wanted {wanted}'
  )


@pytest.mark.parametrize(
  ('name', 'knob', 'value', 'other'),
  [
    ('para_grpo', 'video.min_pixels', 2048, 'video.max_pixels=1024'),
    ('para_grpo', 'subagent.min_frames', 17, 'subagent.max_frames=16'),
    ('sft', 'frames.min_frames', 65, 'frames.max_frames=64'),
    ('ask', 'decode.min_pixels', 2048, 'decode.max_pixels=1024'),
    ('para_grpo', 'cold_start.frames.min_frames', 65, 'cold_start.frames.max_frames=64'),
    ('longvideo_reason', 'caption.min_pixels', 10**6, 'caption.max_pixels=200704'),
  ],
)
def test_the_least_is_not_above_the_most(name, knob, value, other):
  config = config_of(name, SCALES[name][0])
  config.update_from_flattened_dict({knob: value})
  with pytest.raises(ConfigError) as caught:
    typed(config)
  assert str(caught.value) == f'--config.{knob}={value}: wanted at most {other}'


def test_the_words_of_a_rule_are_those_that_the_library_knows():
  rl, evaluation = options.schema(RLRecipe), options.schema(EvalRecipe)
  words = lambda rule, names: (
    all(rule.holds(name) for name in names) and rule.wanted.endswith(', '.join(names))
  )
  assert words(rl['video.backend'], READERS)
  assert words(rl['train.backend'], sorted(attention.BACKENDS))
  assert words(rl['rl.batch_norm'], advantages.BATCH_NORMS)
  assert words(rl['rollout.subagent_credit'], collate.SUBAGENT_CREDIT)
  assert words(rl['publish.dtype'], manifest.DTYPES)
  assert words(evaluation['protocol.dispatch'], protocols.DISPATCHES)
  assert rl['data.question_types'].holds(rows.TYPES)


def test_options_of_the_published_numbers_can_be_changed_by_hand():
  recipe = RLRecipe.published()
  fewer = recipe.replace(agent=recipe.agent.replace(max_turns=2))
  assert (fewer.agent.max_turns, recipe.agent.max_turns) == (2, 3)
  assert fewer.replace(agent=recipe.agent) == recipe

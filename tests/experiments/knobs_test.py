"""Every knob of every recipe has a rule, and one door checks it before anything is made."""

import importlib
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import ablations, allowed, ask, bench, longvideo_reason, para_grpo, sft
from configs import eval as evaluation
from experiments import ablate, eval_data, knobs, preview, rl, servers
from experiments import ask as ask_entry
from experiments import bench as bench_entry
from experiments import eval as eval_entry
from experiments import longvideo_reason as longvideo_entry
from experiments import sft as sft_entry
from paravt_jax.data import rows
from paravt_jax.errors import ConfigError
from paravt_jax.eval import protocols
from paravt_jax.models import attention
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.serving import manifest
from paravt_jax.video.readers import READERS

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCALES = {
  'para_grpo': ('tiny', '2b', '8b', '8b_split'),
  'grpo': ('tiny', '2b', '8b', '8b_split'),
  'sft': ('tiny', '2b', '8b'),
  'eval': ('tiny', '2b', '8b'),
  'ask': ('tiny', '2b', '8b'),
  'ablations': (None,),
  'bench': (None,),
  'longvideo_reason': (None,),
}
CASES = [(name, scale) for name, scales in SCALES.items() for scale in scales]


def recipe(name, scale):
  made = importlib.import_module(f'configs.{name}')
  return made.get_config(scale) if scale else made.get_config()


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_every_knob_has_a_rule_and_every_recipe_keeps_them(name, scale):
  config = recipe(name, scale)
  table = knobs.rules(config)
  assert [knob for knob, _ in knobs.leaves(config) if knobs.rule(table, knob) is None] == []
  knobs.check(config)


# What 0 and a negative number mean, by the end of a knob's path. Everywhere else they are refused.
ZERO = {
  'checkpoint_every': 'only the last record',
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
  'row_stills': 'none',
  'still_patches': 'none',
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
}
ZERO_GROUPS = ('sft_rows', 'weights')  # sections whose members may be 0
NEGATIVE = {'top_k': 'all'}


def said(config, knob, value):
  """What the door says of a value, in a recipe of its kind without other knobs; None: nothing."""
  (kind,) = [section for section in knobs.KINDS if section in config]
  made = {}
  *path, last = knob.split('.')
  inner = made
  for part in path:
    inner = inner.setdefault(part, {})
  inner[last] = value
  try:
    knobs.check(ConfigDict({kind: {}, **made}))
    return None
  except ConfigError as error:
    return str(error)


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_a_number_is_let_in_with_a_meaning_or_refused_in_one_line(name, scale):
  config = recipe(name, scale)
  numeric = [
    knob for knob, value in knobs.leaves(config) if type(value) in (int, float) or value is None
  ]
  assert numeric
  for knob in numeric:
    two = '.'.join(knob.split('.')[-2:])
    section, _, last = two.rpartition('.')
    for value in (0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf):
      message = said(config, knob, value)
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
    ('sft', 'cache_gb'),
  ],
)
def test_zero_is_refused_where_it_has_no_meaning(name, knob):
  config = recipe(name, SCALES[name][0])
  if knob == 'cache_gb':
    assert said(config, 'video.cache_gb', 0) is None  # the other way round: no bound
  else:
    assert said(config, knob, 0).startswith(f'--config.{knob}=0: wanted ')


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_a_number_that_is_too_large_for_any_use_is_refused_in_one_line(name, scale):
  config = recipe(name, scale)
  for knob, value in knobs.leaves(config):
    if type(value) in (int, float) and not knob.endswith(('peak_flops', 'step.parameters')):
      for huge in (10**18, 1e30):
        assert (said(config, knob, huge) or '').startswith(f'--config.{knob}={huge!r}: wanted ')


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
  config = recipe(name, SCALES[name][0])
  assert said(config, knob, value) == f'--config.{knob}={value!r}: wanted {wanted}'


def test_a_whole_number_is_neither_a_float_nor_a_boolean():
  config = para_grpo.get_config()
  assert said(config, 'agent.max_turns', 2.5) == '--config.agent.max_turns=2.5: wanted at least 0'
  assert said(config, 'agent.max_turns', True) == '--config.agent.max_turns=True: wanted at least 0'
  assert said(config, 'frames.gating', 1) == '--config.frames.gating=1: wanted True or False'
  assert said(config, 'optimizer.learning_rate', 1) is None


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
  assert said(para_grpo.get_config(), knob, value).startswith(
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
  config = recipe(name, SCALES[name][0])
  config.update_from_flattened_dict({knob: value})
  with pytest.raises(ConfigError) as caught:
    knobs.check(config)
  assert str(caught.value) == f'--config.{knob}={value}: wanted at most {other}'


def test_the_words_of_a_rule_are_those_that_the_library_knows():
  words = lambda rule, names: (
    all(rule.holds(name) for name in names) and rule.wanted.endswith(', '.join(names))
  )
  assert words(allowed.VIDEO['backend'], READERS) and words(
    allowed.TRAIN['backend'], sorted(attention.BACKENDS)
  )
  assert words(allowed.RL['rl']['batch_norm'], advantages.BATCH_NORMS)
  assert words(allowed.RL['rollout']['subagent_credit'], collate.SUBAGENT_CREDIT)
  assert words(allowed.RL['publish']['dtype'], manifest.DTYPES)
  assert words(allowed.EVAL['protocol']['dispatch'], protocols.DISPATCHES)
  assert allowed.RL['data']['question_types'].holds(rows.TYPES)
  assert words(allowed.SERVER['kind'], servers.KINDS)


def test_a_knob_of_ones_own_without_a_rule_is_left_to_who_reads_it():
  config = para_grpo.get_config()
  with config.unlocked():
    config.agent.mine = -1
  knobs.check(config)
  knobs.check(ConfigDict({'x': -1}))


@pytest.mark.parametrize(
  ('entry', 'config', 'knob'),
  [
    (rl.main, para_grpo.get_config, 'optimizer.learning_rate'),
    (rl.main, para_grpo.get_config, 'cold_start.optimizer.weight_decay'),
    (sft_entry.main, sft.get_config, 'optimizer.learning_rate'),
    (eval_entry.main, evaluation.get_config, 'eval.bootstrap'),
    (ask_entry.main, ask.get_config, 'subagent.rate'),
    (bench_entry.main, bench.get_config, 'threads'),
    (ablate.main, ablations.get_config, 'jobs'),
    (longvideo_entry.main, longvideo_reason.get_config, 'split.max_fps'),
    (lambda config: preview.page(config, ['trace:0'], None), sft.get_config, 'video.deadline_s'),
  ],
)
def test_every_entry_point_has_the_same_door_and_makes_nothing_before_it(
  tmp_path, monkeypatch, entry, config, knob
):
  monkeypatch.chdir(tmp_path)
  made = config()
  made.update_from_flattened_dict({knob: -1})
  with pytest.raises(ConfigError, match=rf'^--config\.{knob}=-1(\.0)?: wanted '):
    entry(made)
  assert list(tmp_path.iterdir()) == []


def test_a_grid_refuses_a_knob_of_one_of_its_sets_before_anything_starts(tmp_path, monkeypatch):
  config = ablations.get_config()
  config.recipe = f'{ROOT}/configs/para_grpo.py:tiny'
  config.overrides.grpo = ('rl.clip=nan',)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ConfigError, match=r'--config\.overrides\.grpo: --config\.rl\.clip=nan: wanted between 0 and 1'
  ):
    ablate.main(config)
  assert list(tmp_path.iterdir()) == []


def test_the_world_as_a_benchmark_wants_questions():
  config = evaluation.get_config()
  config.world.corpus.heldout_tasks = 0
  assert eval_data.WORLD in config.benchmarks
  with pytest.raises(
    ConfigError, match=r'--config\.world\.corpus\.heldout_tasks=0: wanted at least 1'
  ):
    eval_entry.check(config)

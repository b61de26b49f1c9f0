"""Recipes: the published numbers, that each builds what it stands for at every scale, and that no
knob is dead.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import ablations, ask, base, bench, grpo, longvideo_reason, para_grpo, sft
from configs import eval as evaluation
from experiments import ablate, knobs, preview, rl
from experiments import ask as ask_entry
from experiments import eval as eval_entry
from experiments import longvideo_reason as longvideo_entry
from experiments import sft as sft_entry
from experiments.bench import __main__ as bench_entry
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import checks
from paravt_jax.rollout.agent import AgentOptions
from tests import patience, reads
from tests.recipes import typed

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = {'para_grpo': para_grpo, 'grpo': grpo, 'sft': sft}
SCALES = ('tiny', '2b', '8b')
CASES = [(name, scale) for name in RECIPES for scale in SCALES]

# Numbers


def leaves(config, prefix=''):
  """{'agent.max_turns': 3, ...}."""
  out = {}
  for key, value in config.items():
    out |= (
      leaves(value, f'{prefix}{key}.')
      if isinstance(value, ConfigDict)
      else {f'{prefix}{key}': value}
    )
  return out


def numbers(config, knobs):
  """The values of some knobs of a section, in the order asked for."""
  return tuple(config[knob] for knob in knobs.split())


def test_8b_holds_the_published_numbers_of_frames_prompts_and_tools():
  config = para_grpo.get_config('8b')
  assert numbers(config.frames, 'gating budgets frames') == (True, (4, 8, 16, 32, 64), 64)
  assert numbers(config.video, 'min_pixels max_pixels') == (1024, 50176)
  assert numbers(config.agent, 'think_prefix max_turns max_parallel max_new_tokens') == (
    '<think>\n',
    3,
    5,
    2048,
  )
  assert numbers(config.subagent, 'rate min_frames max_frames see_question summary_tokens') == (
    1.0,
    2,
    16,
    True,
    512,
  )
  assert numbers(config.sampling, 'temperature top_p top_k context') == (0.7, 1.0, -1, 32768)


def test_8b_holds_the_published_numbers_of_the_reward():
  config = para_grpo.get_config('8b').reward
  assert numbers(
    config, 'format_weight anchor_weight answer_suffix tool tool_threshold tool_bonus'
  ) == (1.0, 0.5, True, True, 0.0, 'call')
  assert numbers(config, 'unclosed_penalty open_ended grounding_threshold') == (0.3, 'f1', None)


def test_8b_holds_the_published_numbers_of_the_loss_and_its_optimizer():
  config = para_grpo.get_config('8b')
  assert config.rl.to_dict() == {
    'clip': 0.2,
    'weight_cap': 5.0,
    'beta': 0.01,
    'kl_limit': 10.0,
    'batch_norm': 'std',
    'updates_per_batch': 1,
  }
  assert numbers(config.optimizer, 'name learning_rate schedule') == ('adamw', 2e-6, 'constant')
  assert numbers(config.optimizer, 'warmup_steps weight_decay clip_norm') == (0, 0.01, 1.0)
  assert numbers(config.train, 'dtype freeze_vision') == ('bfloat16', True)


def test_8b_holds_the_published_numbers_of_the_schedule():
  config = para_grpo.get_config('8b')
  assert numbers(
    config.rollout, 'steps prompts group_size staleness max_concurrent subagent_credit'
  ) == (54, 8, 8, 2, 64, 'episode')
  assert (
    config.rollout.prompts % (config.mesh.data * config.mesh.fsdp) == 0
  )  # the release's 7 does not divide


def test_8b_holds_the_published_numbers_of_the_cold_start():
  config = sft.get_config('8b')
  assert config.steps == 500
  assert numbers(config.optimizer, 'name learning_rate schedule total_steps') == (
    'adamw',
    2e-5,
    'cosine',
    1500,
  )
  assert numbers(config.optimizer, 'warmup_steps weight_decay clip_norm') == (75, 0.01, 1.0)
  assert numbers(config.train, 'row_tokens dtype') == (8192, 'bfloat16')
  devices = config.mesh.data * config.mesh.fsdp
  assert config.train.rows * config.train.micro_batches == 4 * devices
  assert numbers(config.frames, 'rate max_frames think_prefix') == (1.0, 64, '<think>\n')


def test_2b_differs_from_8b_in_sizes_and_placement_only():
  changed = lambda small, large: {
    knob for knob, value in leaves(large).items() if leaves(small).get(knob) != value
  }
  placement = {'scale', 'mesh.fsdp', 'train.rows'}
  names = ('devices', 'mem_fraction', 'max_total_tokens', 'vision_cache_mb')
  shared = {'device.memory_fraction', 'server.kind', 'server.embedded.memory_fraction'}
  shared |= {f'server.sglang.{name}' for name in names}
  assert changed(para_grpo.get_config('2b'), para_grpo.get_config('8b')) == placement | shared
  assert changed(sft.get_config('2b'), sft.get_config('8b')) == {*placement, 'train.micro_batches'}
  small, large = sft.get_config('2b'), sft.get_config('8b')
  assert (
    small.train.rows * small.train.micro_batches == large.train.rows * large.train.micro_batches
  )


def test_8b_split_is_8b_on_one_machine_half_for_the_learner_half_for_servers():
  split, large = leaves(para_grpo.get_config('8b_split')), leaves(para_grpo.get_config('8b'))
  assert {knob: value for knob, value in split.items() if value != large[knob]} == {
    'scale': '8b_split',
    'mesh.fsdp': 4,
    'train.rows': 4,
    'train.micro_batches': 64,
    'server.kind': 'sglang',
    'server.count': 4,
    'server.sglang.devices': (4, 5, 6, 7),
  }


@pytest.mark.parametrize('get_config', [para_grpo.get_config, sft.get_config])
@pytest.mark.parametrize('scale', ['2b', '8b'])
def test_long_video_changes_frames_rows_and_placement_only(get_config, scale):
  long, short = leaves(get_config(f'{scale}_long')), leaves(get_config(scale))
  changed = {knob for knob, value in long.items() if value != short[knob]}
  assert changed <= {
    'scale',
    'frames.budgets',
    'frames.frames',
    'frames.max_frames',
    'sampling.context',
    'train.row_tokens',
    'train.row_images',
    'train.rows',
    'train.micro_batches',
    'train.head_chunk',
    'batches.row_lengths',
    'mesh.fsdp',
    'mesh.context',
    'video.deadline_s',
  }


@pytest.mark.parametrize(('scale', 'frames', 'sliced'), [('2b_long', 512, 1), ('8b_long', 3600, 8)])
def test_a_row_of_a_long_scale_holds_its_frames_and_a_step_of_sft_its_tokens(scale, frames, sliced):
  rl, cold = para_grpo.get_config(scale), sft.get_config(scale)
  assert max(rl.frames.budgets) == rl.frames.frames == cold.frames.max_frames == frames
  assert rl.mesh.context == cold.mesh.context == sliced
  for config in (rl, cold):
    # a frame of 7 x 7 tokens, its time and delimiters
    assert config.train.row_tokens >= 58 * frames and config.train.row_images >= frames
    assert config.train.row_tokens % (2 * config.mesh.context) == 0
  published = sft.get_config('8b').train
  tokens = lambda train: train.rows * train.micro_batches * train.row_tokens
  assert tokens(cold.train) == tokens(published)


def test_tiny_keeps_the_method_and_changes_sizes():
  """Sections that are the method's, not the machine's, stay as published."""
  small, large = para_grpo.get_config('tiny'), para_grpo.get_config('8b')
  for section in ('frames', 'rl'):
    assert small[section].to_dict() == large[section].to_dict()
  assert small.reward.to_dict() == {**large.reward.to_dict(), 'open_ended': 'exact'}
  assert numbers(small.agent, 'think_prefix max_turns max_parallel') == numbers(
    large.agent, 'think_prefix max_turns max_parallel'
  )
  assert numbers(small.sampling, 'temperature top_p top_k') == (0.7, 1.0, -1)
  assert numbers(small.rollout, 'prompts group_size staleness subagent_credit') == (
    8,
    8,
    0,
    'episode',
  )


@pytest.mark.parametrize('scale', SCALES)
def test_grpo_is_para_grpo_without_prefix_suffix_anchor_and_gating(scale):
  ours, vanilla = leaves(para_grpo.get_config(scale)), leaves(grpo.get_config(scale))
  assert ours.keys() == vanilla.keys()
  assert {knob: value for knob, value in vanilla.items() if value != ours[knob]} == {
    'name': 'grpo',
    'agent.think_prefix': '',
    'reward.answer_suffix': False,
    'reward.anchor_weight': 0.0,
    'frames.gating': False,
  }
  assert vanilla['reward.tool'] is True


def test_the_world_of_a_run_is_the_world_of_its_cold_start():
  config = para_grpo.get_config()
  config.world.scene.noise = 3.0
  assert config.cold_start.world.scene.noise == 3.0


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_a_recipe_is_locked_and_a_stray_knob_in_one_is_refused(name, scale):
  config = RECIPES[name].get_config(scale)
  assert config.is_locked and config.scale == scale and config.name == name
  with pytest.raises(AttributeError):
    config.run.foldr = 'x'
  with pytest.raises(AttributeError):
    (base.sft if name == 'sft' else base.rl)(scale).train.gating = False


@pytest.mark.parametrize('make', [base.rl, base.sft])
def test_an_unknown_scale_is_refused_with_the_known_ones(make):
  with pytest.raises(ValueError, match="scale '3b': wanted one of tiny, 2b, 8b"):
    make('3b')


# Knobs reach the code: by the types that the sources give to what they read.


@pytest.mark.parametrize('name', knobs.KINDS)
def test_every_recipe_builds_its_typed_tree_at_each_scale(name):
  kind = knobs.KINDS[name]
  for scale, make in kind.configs.items():
    recipe = typed(make())
    assert type(recipe) is kind.recipe
    assert not scale or recipe.scale == scale


@pytest.mark.parametrize(
  ('name', 'scale'), [*CASES, ('para_grpo', '8b_split'), ('grpo', '8b_split')]
)
def test_the_recipes_of_training_build_their_trees_too(name, scale):
  recipe = typed(RECIPES[name].get_config(scale))
  assert (recipe.name, recipe.scale) == (name, scale)


@pytest.fixture(scope='module')
def found():
  return reads.fields_read()


@pytest.mark.parametrize('name', knobs.KINDS)
def test_every_knob_is_read(name, found):
  """As a field of its options class, by code that knows it as such."""
  kinds = reads.knobs_of(knobs.KINDS[name].recipe)
  assert [
    knob for knob, (kind, field) in kinds.items() if not reads.is_read(kind, field, found)
  ] == []


def test_a_knob_that_nobody_reads_is_found(found):
  @dataclasses.dataclass(frozen=True)
  class More(AgentOptions):
    dead: int

  kinds = reads.knobs_of(More)
  assert set(kinds) == {'think_prefix', 'max_turns', 'max_parallel', 'max_new_tokens', 'dead'}
  assert [field for kind, field in kinds.values() if not reads.is_read(kind, field, found)] == [
    'dead'
  ]
  without = {one for one in found if one[1] != 'max_turns'}
  assert not reads.is_read(AgentOptions, 'max_turns', without)


def test_the_cold_start_of_the_main_job_is_the_tiny_sft_recipe():
  assert leaves(para_grpo.get_config().cold_start) == leaves(sft.get_config())


# Wrong input at the door


def started(*arguments, main='print("ran", recipe.agent.max_turns)', cwd=ROOT):
  """(status, stdout, stderr) of an entry point of RL around `main`."""
  code = (
    'from experiments import launch\nfrom paravt_jax.orchestrator.recipes import RLRecipe\n'
    f'def main(recipe): {main}\nlaunch.run(main, RLRecipe)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    timeout=patience.seconds(300),
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  return done.returncode, done.stdout, done.stderr


RECIPE = '--config=configs/para_grpo.py'


def test_a_knob_on_the_command_line_changes_the_recipe():
  assert started(RECIPE, '--config.agent.max_turns=2') == (0, 'ran 2\n', '')


def test_a_scale_is_chosen_behind_the_recipes_name():
  status, out, err = started(f'{RECIPE}:8b', main='print(recipe.scale)')
  assert (status, out) == (0, '8b\n')
  # the scale's own settings of the accelerator
  assert err.startswith('settings  XLA_PYTHON_CLIENT_MEM_FRACTION=0.92') and err.count('\n') == 1
  status, _, err = started('--config=configs/para_grp.py:8b')
  assert status == 2 and err.startswith(
    'error: --config=configs/para_grp.py:8b: there is no such recipe; usage: '
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      (RECIPE, '--config.agent.max_turn=2'),
      "no knob 'max_turn' in this recipe: did you mean max_turns?",
    ),
    ((RECIPE, '--config.agnt.max_turns=2'), "no knob 'agnt' in this recipe: did you mean agent?"),
    ((RECIPE, '--config.zzz.qqq=2'), 'a knob that this recipe does not have'),
    (
      (RECIPE, '--config.agent.max_turns=two'),
      '--config.agent.max_turns=two: wanted a whole number',
    ),
    (
      (RECIPE, '--config.frames.gating=perhaps'),
      '--config.frames.gating=perhaps: wanted True or False',
    ),
    (
      (RECIPE, '--config.rollout=3'),
      '--config.rollout=3: rollout is a section, wanted one of its knobs, as in '
      '--config.rollout.knob=value',
    ),
    (('--config=configs/para_grp.py',), '--config=configs/para_grp.py: there is no such recipe'),
    (
      (f'{RECIPE}:3b',),
      "scale '3b': wanted one of tiny, 2b, 8b, 2b_lora, 8b_lora, 8b_split, 8b_tpu, 2b_long, 8b_long, as in --config=configs/para_grpo.py:tiny",
    ),
    ((), 'Flag --config must have a value'),
    ((RECIPE, 'more'), "'more' was not understood; knobs are given as --config.some.knob=value"),
  ],
)
def test_wrong_input_ends_in_one_line_with_status_2(arguments, message):
  status, out, err = started(*arguments)
  assert (status, out) == (2, '')
  assert err.startswith('error: ') and message in err and err.count('\n') == 1
  assert 'Traceback' not in err and (
    'wanted' in err or 'did you mean' in err or 'usage' in err or 'knob' in err
  )


def test_an_interrupt_ends_with_status_130_and_says_how_to_go_on():
  status, _, err = started(RECIPE, main='raise KeyboardInterrupt')
  assert (
    status == 130
    and err.strip() == 'interrupted; the same command continues from the last checkpoint'
  )


def test_a_full_disk_anywhere_is_one_line_and_another_fault_of_the_system_is_no_input_error():
  status, _, err = started(
    RECIPE, main='raise OSError(28, "No space left on device", "runs/x/progress.json")'
  )
  assert status == 2 and err == (
    'error: runs/x/progress.json: No space left on device; free space, then run the same '
    'command again: '
    'it continues where it stopped\n'
  )
  status, _, err = started(RECIPE, main='raise OSError(5, "Input/output error")')
  assert status == 1 and 'Traceback' in err


@pytest.mark.parametrize(
  ('knob', 'value', 'message'),
  [
    ('rollout.steps', 0, '--config.rollout.steps=0: wanted at least 1'),
    ('rollout.prompts', 0, 'rollout.prompts=0: wanted at least 1'),
    ('rollout.group_size', 1, 'rollout.group_size=1: wanted at least 2'),
    ('rollout.max_concurrent', 0, 'rollout.max_concurrent=0: wanted at least 1'),
    ('eval.questions', -1, 'eval.questions=-1: wanted at least 0'),
    ('train.rows', 0, 'train.rows=0: wanted at least 1'),
    ('rollout.staleness', -1, 'rollout.staleness=-1: wanted at least 0'),
    ('agent.max_turns', -1, 'agent.max_turns=-1: wanted at least 0'),
    ('agent.max_parallel', 0, 'agent.max_parallel=0: wanted at least 1'),
    ('sampling.temperature', 0.0, 'sampling.temperature=0.0: wanted above 0'),
    ('sampling.top_p', 0.9, 'wanted top_p=1 and top_k=-1'),
    ('sampling.top_k', 50, 'wanted top_p=1 and top_k=-1'),
    ('frames.budgets', (4, 0), 'frames.budgets=(4, 0): wanted positive frame budgets'),
    ('frames.budgets', (4, 'a'), 'wanted positive frame budgets'),
    ('frames.budgets', (), 'wanted positive frame budgets'),
    ('eval.budgets', (0,), 'eval.budgets=(0,): wanted positive frame budgets'),
    ('data.kind', 'wrld', "data.kind='wrld': wanted 'world' or 'files'"),
    ('data.max_bad_share', 1.5, 'data.max_bad_share=1.5: wanted a share, 0 to 1'),
    ('data.max_rows', -1, 'data.max_rows=-1: wanted at least 0'),
    ('data.question_types', ('mc',), "data.question_types=('mc',): wanted some of mcq, tvg, oe"),
    ('data.sources', (1,), 'data.sources=(1,): wanted names'),
    ('publish.keep', 0, 'publish.keep=0: wanted at least 1'),
    ('publish.canary_tokens', 0, 'publish.canary_tokens=0: wanted at least 1'),
    ('publish.dtype', 'float16', "publish.dtype='float16': wanted one of bfloat16, float32"),
  ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_made(knob, value, message):
  config = para_grpo.get_config()
  config.update_from_flattened_dict({knob: value})
  with pytest.raises(ConfigError) as caught:
    checks.check_rl(typed(config))
  assert message in str(caught.value)


@pytest.mark.parametrize(
  ('knob', 'value'),
  [('steps', 0), ('train.rows', 0), ('data.kind', 'wrld'), ('optimizer.learning_rate', 0.0)],
)
def test_a_cold_start_out_of_range_is_refused(knob, value):
  for config, where in ((sft.get_config(), ''), (para_grpo.get_config(), 'cold_start.')):
    config.update_from_flattened_dict({f'{where}{knob}': value})
    with pytest.raises(ConfigError, match=f'^--config.{where}{knob}='):
      typed(config)


@pytest.mark.parametrize(
  ('config', 'knob'),
  [
    (para_grpo.get_config, 'optimizer.learning_rate'),
    (para_grpo.get_config, 'cold_start.optimizer.weight_decay'),
    (sft.get_config, 'video.deadline_s'),
    (evaluation.get_config, 'eval.bootstrap'),
    (ask.get_config, 'subagent.rate'),
    (bench.get_config, 'threads'),
    (bench.get_config, 'data.sft.train.rows'),
    (ablations.get_config, 'jobs'),
    (longvideo_reason.get_config, 'split.max_fps'),
  ],
)
def test_every_recipe_has_the_same_door(config, knob):
  made = config()
  made.update_from_flattened_dict({knob: -1})
  with pytest.raises(ConfigError, match=rf'^--config\.{knob}=-1(\.0)?: wanted '):
    typed(made)


@pytest.mark.parametrize(
  ('entry', 'config', 'changes', 'said'),
  [
    (rl.main, para_grpo.get_config, {'train__rows': 3, 'mesh__fsdp': 2}, 'train.rows=3'),
    (sft_entry.main, sft.get_config, {'train__rows': 3, 'mesh__fsdp': 2}, 'train.rows=3'),
    (
      lambda recipe: preview.page(recipe, ['trace:0'], pathlib.Path('x.html')),
      sft.get_config,
      {'train__rows': 3, 'mesh__fsdp': 2},
      'train.rows=3',
    ),
    (eval_entry.main, evaluation.get_config, {'shard': '3/2'}, "shard='3/2'"),
    (ask_entry.main, ask.get_config, {'question': 'What?'}, 'video is empty'),
    (bench_entry.main, bench.get_config, {'suite': 'x'}, "suite='x': wanted one of data, gaps"),
    (
      ablate.main,
      ablations.get_config,
      {'recipe': f'{ROOT}/configs/para_grpo.py:tiny', 'jobs': 10**6},
      'jobs=1000000',
    ),
    (longvideo_entry.main, longvideo_reason.get_config, {'videos': 'none'}, "videos='none'"),
  ],
)
def test_what_does_not_fit_is_refused_by_every_entry_point_before_anything_is_made(
  tmp_path, monkeypatch, entry, config, changes, said
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError) as caught:
    entry(typed(config(), **changes))
  assert str(caught.value).startswith(f'--config.{said}') and '\n' not in str(caught.value)
  assert list(tmp_path.iterdir()) == []


def test_a_grid_refuses_a_knob_of_one_of_its_sets_before_anything_starts(tmp_path, monkeypatch):
  config = ablations.get_config()
  config.recipe = f'{ROOT}/configs/para_grpo.py:tiny'
  config.overrides.grpo = ('rl.clip=nan',)
  monkeypatch.chdir(tmp_path)
  wanted = r'--config\.overrides\.grpo: --config\.rl\.clip=nan: wanted above 0 and below 1'
  with pytest.raises(ConfigError, match=wanted):
    ablate.main(typed(config))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('name', 'recipe', 'said'),
  [
    ('rl', 'para_grpo', '--config.agent.max_parallel=0: wanted at least 1'),
    ('eval', 'eval', '--config.agent.max_parallel=0: wanted at least 1'),
    (
      'sft',
      'para_grpo',
      "--config: this recipe has no 'sources', so it is one of another entry point; wanted one "
      'such as configs/sft.py',
    ),
  ],
)
def test_the_real_entry_point_refuses_in_one_line_and_makes_no_folder(tmp_path, name, recipe, said):
  command = [
    sys.executable,
    '-m',
    f'experiments.{name}',
    f'--config={ROOT}/configs/{recipe}.py',
    '--config.agent.max_parallel=0',
  ]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    cwd=tmp_path,
    timeout=patience.seconds(120),
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 2 and done.stderr == f'error: {said}\n'
  assert list(tmp_path.iterdir()) == []

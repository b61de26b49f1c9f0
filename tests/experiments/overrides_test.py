"""Knobs on the command line: what is written becomes a value of the knob's type, or one line."""

import subprocess

import pytest
from absl import flags

from configs import ablations, para_grpo
from experiments import ablate, launch, overrides
from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.recipes import RLRecipe
from tests.experiments import small_job
from tests.recipes import typed

RECIPE = f'{small_job.ROOT}/configs/para_grpo.py'
RULES = options.schema(RLRecipe)


def configured(*words, recipe=RECIPE):
  """(the recipe with these arguments, notes on them), as `launch.read_config` reads them."""
  values = flags.FlagValues()
  launch.define(values)
  _, config, notes = launch.read_config(('x', f'--config={recipe}', *words), values, {}, RULES)
  return config, notes


def given(*words):
  """The recipe with these arguments, before it is typed."""
  return configured(*words)[0]


def value(knob, text):
  config = given(f'--config.{knob}={text}')
  for part in knob.split('.'):
    config = config[part]
  return config


@pytest.mark.parametrize(
  ('knob', 'text', 'wanted'),
  [
    ('agent.max_turns', '2', 2),
    ('agent.max_turns', ' 2 ', 2),
    ('agent.max_turns', '8.0', 8),
    ('rollout.steps', '1e3', 1000),
    ('agent.max_turns', '0x10', 16),
    ('rollout.steps', '1_000', 1000),
    ('sampling.top_k', '-1', -1),
    ('optimizer.learning_rate', '1', 1.0),
    ('optimizer.learning_rate', ' 1e-4', 1e-4),
    ('optimizer.learning_rate', '.5', 0.5),
    ('frames.gating', 'False', False),
    ('frames.gating', 'false', False),
    ('frames.gating', '0', False),
    ('frames.gating', '1', True),
    ('frames.budgets', '(4,8)', (4, 8)),
    ('frames.budgets', '4,8', (4, 8)),
    ('frames.budgets', '[4, 8]', (4, 8)),
    ('frames.budgets', '4', (4,)),
    ('frames.budgets', '4,,8', (4, 8)),
    ('frames.budgets', '', ()),
    ('data.sources', 'a,b', ('a', 'b')),
    ('data.sources', "('a,b',)", ('a,b',)),
    ('data.train', 'rows/*.parquet', ('rows/*.parquet',)),
    ('server.urls', 'http://a:1,http://b:2', ('http://a:1', 'http://b:2')),
    ('cold_start.sources.trace', '(2.0, 0, None)', (2.0, 0, None)),
    ('run.folder', 'a b', 'a b'),
    ('run.folder', '', ''),
    ('video.cache_folder', '/a=b', '/a=b'),
  ],
)
def test_a_value_is_read_by_the_type_of_its_knob(knob, text, wanted):
  found = value(knob, text)
  assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    (r'<think>\n', '<think>\n'),
    ('<think>\n', '<think>\n'),
    (r'a\tb', 'a\tb'),
    (r'a\\nb', r'a\nb'),
    ('a\\\\', 'a\\'),
    (r'\d', r'\d'),
    (r'C:\x', r'C:\x'),
    ('', ''),
    ('None', 'None'),
  ],
)
def test_a_newline_a_tab_and_a_backslash_are_written_as_in_python(text, wanted):
  assert value('agent.think_prefix', text) == wanted


@pytest.mark.parametrize('text', ['None', 'none', 'null', ' None '])
def test_none_is_given_where_the_knob_allows_it(text):
  assert value('reward.grounding_threshold', text) is None
  config = given(
    '--config.reward.grounding_threshold=0.5', f'--config.reward.grounding_threshold={text}'
  )
  assert config.reward.grounding_threshold is None
  config.reward.grounding_threshold = 0.5  # it keeps its type
  assert (
    given(
      '--config.reward.grounding_threshold=None', '--config.reward.grounding_threshold=.5'
    ).reward.grounding_threshold
    == 0.5
  )


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (
      '--config.optimizer.learning_rate=None',
      '--config.optimizer.learning_rate=None: wanted at least 0',
    ),
    ('--config.agent.max_turns=None', '--config.agent.max_turns=None: wanted at least 0'),
    ('--config.frames.gating=None', '--config.frames.gating=None: wanted True or False'),
    ('--config.frames.gating=', '--config.frames.gating=: wanted True or False'),
    ('--config.optimizer.learning_rate=', '--config.optimizer.learning_rate=: wanted a number'),
    (
      '--config.optimizer.learning_rate=1,5',
      '--config.optimizer.learning_rate=1,5: wanted a number',
    ),
    ('--config.agent.max_turns=8.5', '--config.agent.max_turns=8.5: wanted a whole number'),
    ('--config.agent.max_turns=nan', '--config.agent.max_turns=nan: wanted a whole number'),
    ('--config.agent.max_turns=', '--config.agent.max_turns=: wanted a whole number'),
    (
      '--config.agent.max_turns',
      '--config.agent.max_turns: wanted a value, as in --config.agent.max_turns=3',
    ),
    (
      '--noconfig.agent.max_turns',
      '--noconfig.agent.max_turns: wanted --config.agent.max_turns=value',
    ),
    (
      '--noconfig.frames.gating=1',
      '--noconfig.frames.gating=1: wanted --config.frames.gating=value',
    ),
    ('--config.frames.budgets=(4,', '--config.frames.budgets=(4,: cannot be read'),
    (
      '--config.frames.budgets=(4,x)',
      '--config.frames.budgets=(4,x): cannot be read (a word without quotes); wanted Python values',
    ),
    (
      '--config.frames.budgets=4,8,x',
      "--config.frames.budgets=4,8,x: member 3 is 'x', wanted a whole number, "
      'as in --config.frames.budgets=4,8,16,32,64',
    ),
    ('--config.rollout=3', '--config.rollout=3: rollout is a section, wanted one of its knobs'),
    ('--config.rollout', '--config.rollout: cannot be read'),
    (
      '--config.scale=8b',
      '--config.scale=8b: a scale stands behind the name of its recipe, as in --config=',
    ),
  ],
)
def test_what_cannot_be_read_is_one_line(words, message):
  with pytest.raises(ConfigError) as caught:
    given(words)
  assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'word',
  [
    '--config.agent.max_turns.x=3',
    '--config.items=3',
    '--config.frames.budgets[0]=4',
    '--config.agnt.x=1',
  ],
)
def test_what_is_no_knob_is_said_in_one_line(word):
  with pytest.raises((AttributeError, KeyError)) as caught:
    given(word)
  said = launch.complaint(caught.value)
  assert 'knob' in said and '\n' not in said


def test_a_value_may_be_the_next_argument_and_a_flag_may_stand_alone():
  config = given(
    '--config.agent.max_turns',
    '2',
    '--config.sampling.top_k',
    '-1',
    '--noconfig.frames.gating',
    '--config.reward.tool',
  )
  assert (
    config.agent.max_turns,
    config.sampling.top_k,
    config.frames.gating,
    config.reward.tool,
  ) == (2, -1, False, True)


def test_knobs_may_stand_before_the_recipe_and_other_flags_between_them():
  words = [
    '--config.seed=3',
    '--json',
    '--config',
    '--config.py',
    '--config.frames.gating',
    '--row',
    'a:1',
    '--',
    '--config.seed=4',
  ]
  rest, found = overrides.split(words)
  assert rest == ['--json', '--config', '--config.py', '--row', 'a:1', '--', '--config.seed=4']
  assert list(map(str, found)) == ['--config.seed=3', '--config.frames.gating']


def test_of_a_knob_that_is_given_twice_the_last_one_counts_and_is_told_and_tuples_add_up():
  words = (
    '--config.agent.max_turns=1',
    '--config.frames.budgets=4',
    '--config.agent.max_turns=2',
    '--config.frames.budgets=8,16',
  )
  config, notes = configured(*words)
  assert config.agent.max_turns == 2 and config.frames.budgets == (4, 8, 16)
  assert notes == [
    '--config.agent.max_turns is given more than once: --config.agent.max_turns=2 counts'
  ]


def test_several_knobs_of_a_section_are_given_at_once_and_only_a_section_of_own_names_is_replaced():
  config = given(
    "--config.frames={'budgets': (4,), 'gating': False}",
    "--config.cold_start.sources={'mine': (2.0, 0, None)}",
  )
  assert config.frames.to_dict() == {'budgets': (4,), 'gating': False, 'frames': 64}
  assert config.cold_start.sources.to_dict() == {'mine': (2.0, 0, None)}
  assert config.is_locked and config.cold_start.sources.is_locked
  with pytest.raises(KeyError, match='Did you mean "steps" instead of "step"'):
    given("--config.rollout={'step': 3}")
  with pytest.raises(ConfigError, match=r'--config\.rollout\.steps=x: wanted a whole number'):
    given("--config.rollout={'steps': 'x'}")


def test_the_world_of_a_run_stays_the_world_of_its_cold_start():
  config = given('--config.world.scene.noise=3')
  assert config.world.scene.noise == config.cold_start.world.scene.noise == 3.0


def test_what_a_set_of_a_grid_overrides_reaches_its_run_through_the_command_line():
  """A newline, None, a backslash and a tuple: the run gets what the grid was checked with."""
  config = ablations.get_config()
  config.recipe = f'{RECIPE}:tiny'
  config.overrides.grpo = (
    'agent.think_prefix=<think>\n\\\\',
    'reward.grounding_threshold=None',
    'frames.budgets=(4,8)',
  )
  cell = ablate.cell(typed(config), 'grpo', 0)
  assert cell.recipe.agent.think_prefix == '<think>\n\\'
  assert cell.recipe.reward.grounding_threshold is None
  assert cell.recipe.frames.budgets == (4, 8)
  recipe, *words = cell.arguments
  assert typed(configured(*words, recipe=recipe.removeprefix('--config='))[0]) == cell.recipe


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (
      ['--config.reward.grounding_threshold=nan'],
      '--config.reward.grounding_threshold=nan: wanted a share above 0, up to 1, or None',
    ),
    (
      ['--config.run.checkpoint_every=-1'],
      '--config.run.checkpoint_every=-1: wanted at least 0 (0: only the last record)',
    ),
    (
      ['--flagfile=/nowhere'],
      "Unable to open flagfile: [Errno 2] No such file or directory: '/nowhere'; usage: ",
    ),
    (
      ['--config.run.folder=None'],
      "--config.run.folder='None': wanted text (for none: '', nothing behind the =)",
    ),
  ],
)
def test_the_real_command_refuses_in_one_line_and_makes_nothing(tmp_path, words, message):
  command = [*small_job.command('x')[:3], f'--config={RECIPE}', *words]
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=small_job.environment()
  )
  assert (
    done.returncode == 2
    and done.stderr.startswith('error: ')
    and message in done.stderr
    and done.stderr.count('\n') == 1
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('scale', ['tiny', '8b'])
def test_the_published_recipe_can_be_written_on_the_command_line(scale):
  """Every knob, as its value is written, gives the recipe back."""
  config = para_grpo.get_config(scale)
  words = [
    f'--config.{knob}={one}'
    for knob, one in options.leaves(typed(config))
    if knob.rpartition('.')[2] != 'scale' and not isinstance(one, str)
  ]
  assert len(words) > 100
  assert configured(*words, recipe=f'{RECIPE}:{scale}')[0].to_dict() == config.to_dict()


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('--config.reward.grounding_threshold=nan', 'reward.grounding_threshold=nan: wanted a share'),
    ('--config.frames.budgets=', 'frames.budgets=(): wanted positive frame budgets'),
    ('--config.rl.clip=2', 'rl.clip=2.0: wanted above 0 and below 1'),
    ("--config.cold_start.sources={'mine': (2.0, 0)}", 'cold_start.sources.mine=(2.0, 0): wanted'),
    ("--config.frames={'gating': 'x'}", 'frames.gating=x: wanted True or False'),
  ],
)
def test_what_is_read_well_and_breaks_its_rule_is_one_line(word, message):
  with pytest.raises(ConfigError) as caught:
    typed(given(word))
  assert str(caught.value).startswith(f'--config.{message}') and '\n' not in str(caught.value)

"""The command that says what each knob means: it knows every knob of every recipe."""

import dataclasses
import re
import subprocess
import sys
from typing import Annotated

import pytest

from experiments import knobs, launch
from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.options import COUNT, FLAG, POSITIVE, Options
from paravt_jax.orchestrator import knob_reference
from tests import patience
from tests.experiments import small_job

INNER = {'rl': 'cold_start.', 'bench': 'data.sft.'}  # the cold start, which stands once


@pytest.mark.parametrize('name', knobs.KINDS)
def test_every_knob_of_every_recipe_has_a_rule_and_a_meaning(name):
  kind = knobs.KINDS[name]
  found = kind.knobs()
  inner = INNER.get(name, '-')
  known = [path for path in options.schema(kind.recipe) if not path.startswith(inner)]
  assert sorted(one.path for one in found) == sorted(known)
  assert [one.path for one in found if not one.wanted or len(one.meaning) < 3] == []
  assert [one.path for one in found if '\n' in one.meaning + one.wanted] == []


@pytest.mark.parametrize('name', knobs.KINDS)
def test_a_knob_is_shown_with_its_value_at_each_scale(name):
  kind, found = knobs.KINDS[name], {one.path: one for one in knobs.KINDS[name].knobs()}
  for scale, make in kind.configs.items():
    recipe = launch.typed(kind.recipe, make())
    for path, value in options.leaves(recipe):
      if path.startswith(INNER.get(name, '-')):
        continue
      if path in found:
        assert found[path].values[scale] == value
      else:  # a name of one's own
        above, _, member = path.rpartition('.')
        assert member in found[f'{above}.*'].values['']


def test_what_is_alike_at_all_scales_is_shown_once_and_most_of_them_are_else():
  found = {one.path: one for one in knobs.KINDS['rl'].knobs()}
  assert knob_reference.format_value(found['agent.max_turns']) == '3'
  assert knob_reference.format_value(found['reward.open_ended']) == "'exact' at :tiny, else 'f1'"
  assert (
    knob_reference.format_value(found['mesh.fsdp']) == '8 at :8b, 4 at :8b_split :8b_tpu, else 1'
  )
  two = dataclasses.replace(found['mesh.fsdp'], values={'tiny': 1, '2b': 2})
  assert knob_reference.format_value(two) == '2 at :2b, else 1'
  assert (
    knob_reference.format_value(found['world.scene.fps']) == '4'
  )  # the other scales have no world
  assert (
    knob_reference.format_value(dataclasses.replace(found['world.scene.fps'], values={})) == '-'
  )


@dataclasses.dataclass(frozen=True)
class Base(Options):
  steps: Annotated[int, COUNT]  # that it makes
  # a meaning that needs
  # two lines
  rate: Annotated[float, POSITIVE]
  # first above
  on: Annotated[bool, FLAG]  # then behind
  wrapped: Annotated[int, COUNT]  # behind the last line


@dataclasses.dataclass(frozen=True)
class Derived(Base):
  steps: Annotated[int, COUNT]
  rate: Annotated[float, options.from_(0)]  # another meaning
  more: Annotated[int, COUNT]  # its own


@dataclasses.dataclass(frozen=True)
class Plain(Derived):
  pass


def test_the_comment_on_a_field_is_its_meaning_and_a_subclass_may_leave_it():
  assert knob_reference.comments(Base) == {
    'steps': 'that it makes',
    'rate': 'a meaning that needs two lines',
    'on': 'first above then behind',
    'wrapped': 'behind the last line',
  }
  assert (
    knob_reference.comments(Derived)
    == knob_reference.comments(Plain)
    == {
      'steps': 'that it makes',
      'rate': 'another meaning',
      'on': 'first above then behind',
      'wrapped': 'behind the last line',
      'more': 'its own',
    }
  )


def test_sections_and_single_knobs_are_chosen_however_they_are_written():
  found = knobs.KINDS['rl'].knobs()
  paths = lambda *sections: [one.path for one in knob_reference.select_knobs(found, sections)]
  assert paths() == [one.path for one in found]
  assert paths('publish') == [
    'publish.dtype',
    'publish.keep',
    'publish.form',
    'publish.delta',
    'publish.canary_tokens',
    'publish.canary_continuations',
  ]
  assert paths('--config.publish.keep', 'config.seed') == ['publish.keep', 'seed']
  assert len(paths('server.watch')) == 7 and 'server.watch.every_s' in paths('server')


@pytest.mark.parametrize(
  ('section', 'hint'),
  [
    ('nothing', ''),
    ('publis', 'did you mean publish? '),
    ('publish.kee', 'did you mean publish.keep? '),
    ('publish.keep.x', 'did you mean publish.keep? '),
  ],
)
def test_a_section_that_there_is_not_is_refused_with_those_that_there_are(section, hint):
  with pytest.raises(ConfigError) as caught:
    knob_reference.select_knobs(knobs.KINDS['rl'].knobs(), [section])
  names = 'name, scale, seed, run, profile, model, data, '
  said = f'{section}: no such section or knob; {hint}wanted one of {names}'
  assert str(caught.value).startswith(said) and '\n' not in str(caught.value)


def test_a_cold_start_is_described_by_the_recipe_of_sft():
  with pytest.raises(ConfigError, match=r'; a cold start has the knobs of --recipe=sft$'):
    knob_reference.select_knobs(knobs.KINDS['rl'].knobs(), ['cold_start.steps'])


def test_the_reference_has_a_row_of_four_cells_for_every_knob_and_what_is_shared_once():
  lines = knobs.markdown().splitlines()
  rows = [line for line in lines if line.startswith('| `')]
  assert {len(re.findall(r'(?<!\\)\|', row)) for row in rows} == {5}
  assert [row for row in rows if row.endswith('|  |')] == []
  files = [line for line in lines if line.startswith('### ')]
  assert files == [
    '### `configs/para_grpo.py`',
    '### `configs/sft.py`',
    '### `configs/eval.py`',
    '### `configs/ask.py`',
    '### `configs/serve.py`',
    '### `configs/ablations.py`',
    '### `configs/longvideo_reason.py`',
  ]
  names = [row.split('`')[1] for row in rows]
  assert names.count('agent.max_turns') == 1 and names.count('steps') == 2
  assert names.count('world.scene.fps') == 1 and 'scale' not in names
  assert (
    '| `agent.max_turns` | `3` | at least 0 | rounds of tools before the answer is asked for'
    in ('\n'.join(rows))
  )


def test_the_reference_has_a_table_for_each_section_with_what_it_is_about():
  text = knobs.markdown()
  assert (
    '\n#### `server.watch`\n\nHow servers are watched.\n\n| knob | default | may be | meaning |\n'
    in text
  )
  assert '\n#### `world`\n\nThe synthetic corpus. Only at `:tiny`.\n' in text
  assert (
    '\n#### `reasoner`\n\nA server behind the OpenAI protocol.\n\nThe knobs of `vision`.\n' in text
  )
  assert 'Not in this recipe: `data.eval`' in text.replace('\n', ' ')


def test_what_markdown_would_take_for_its_own_is_escaped_in_a_cell():
  knob = knob_reference.Knob(
    'a.b', {'': '<a|b>'}, "text (for none: '', nothing behind the =)", '<x> `y*` |*'
  )
  assert knob_reference._row(knob) == "| `a.b` | `'<a\\|b>'` | text | \\<x\\> `y*` \\|\\* |"


def test_configs_readme_holds_the_reference_as_it_is_now():
  text = knobs.GUIDE.read_text()
  assert knobs.renew_guide(text) == text, (
    'configs/README.md is not what the recipes say; run: python -m experiments.knobs --write'
  )
  with pytest.raises(ConfigError, match='the line that begins the reference is missing'):
    knobs.renew_guide('# Recipes\n')


def test_a_section_fits_a_terminal_of_100_columns():
  kind = knobs.KINDS['rl']
  lines = knob_reference.list_lines(
    knob_reference.select_knobs(kind.knobs(), ['server']), knob_reference.abouts(kind.recipe)
  )
  assert lines[0] == 'server: The rollout servers of a run.'
  assert '' in lines and 'server.watch: How servers are watched.' in lines
  assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
  ('words', 'status', 'out', 'err'),
  [
    (
      ['agent.max_turns'],
      0,
      "agent: Limits of an episode's main agent.\n"
      '  --config.agent.max_turns = 3\n'
      '      rounds of tools before the answer is asked for. Wanted: at least 0\n',
      '',
    ),
    (
      ['agnt'],
      2,
      '',
      'error: agnt: no such section or knob; did you mean agent? wanted one of name, scale, ',
    ),
    (['--recipe=foo'], 2, '', 'error: flag --recipe=foo: value should be one of'),
    (['reward', '--markdown'], 2, '', 'error: reward: --markdown and --write take the whole'),
  ],
)
def test_the_command(words, status, out, err):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.knobs', *words],
    capture_output=True,
    text=True,
    cwd=small_job.ROOT,
    timeout=patience.seconds(120),
    env=small_job.environment(),
  )
  assert (done.returncode, done.stdout) == (status, out)
  assert done.stderr.startswith(err) and done.stderr.count('\n') == (1 if err else 0)


def test_a_reader_that_has_enough_gets_no_traceback():
  done = subprocess.run(
    f'{sys.executable} -m experiments.knobs | head -n 1',
    shell=True,
    capture_output=True,
    text=True,
    cwd=small_job.ROOT,
    timeout=patience.seconds(120),
    env=small_job.environment(),
  )
  assert (done.stdout, done.stderr) == ("  --config.name = 'para_grpo'\n", '')

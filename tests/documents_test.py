"""Documents stay true: links lead somewhere, and commands, knobs, modules and files exist."""

import functools
import os
import pathlib
import re
import shlex

import pytest
from absl import flags

from experiments import knobs, launch
from paravt_jax import options
from paravt_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
UNREAD = {'runs', 'build', 'dist'}  # as the folders whose names begin with a dot


def documents():
  """The paths of all documents of the repository."""
  found = []
  for folder, inner, files in os.walk(ROOT):
    inner[:] = [one for one in inner if one not in UNREAD and not one.startswith('.')]
    here = pathlib.Path(folder).relative_to(ROOT)
    found += [str(here / file) for file in files if file.endswith('.md')]
  return sorted(found)


DOCUMENTS = documents()
PLACEHOLDERS = {'knob', 'any.knob', 'some.knob'}  # as in --config.knob=value
# The recipe of a command: by its file, or by the target of make that runs it.
FILES = {kind.recipe.EXAMPLE: name for name, kind in knobs.KINDS.items()} | {
  'configs/grpo.py': 'rl',
  'configs/bench.py': 'bench',
}
TARGETS = {'make rl': 'configs/para_grpo.py', 'make eval': 'configs/eval.py'}
SHORT = {'eval': {'model': 'model.folder'}}
PACKAGES = 'paravt_jax|experiments|configs'
FOLDERS = f'{PACKAGES}|tests|third_party'


def text(name):
  return (ROOT / name).read_text()


def lines_of(name):
  """The lines of a document; one that ends in a backslash continues in the next."""
  return text(name).replace('\\\n', ' ').splitlines()


@functools.cache
def rules(kind):
  return options.schema(knobs.KINDS[kind].recipe)


def is_knob(kind, knob):
  """Whether a recipe has the knob, or a section of that name."""
  knob = SHORT.get(kind, {}).get(knob, knob)
  inside = any(one.startswith(f'{knob}.') for one in rules(kind))
  return inside or options.rule_of(rules(kind), knob) is not None


def flags_of(line):
  """The knobs that are given on a line."""
  found = re.findall(r'--(?:no)?config\.([a-z][\w]*(?:\.\w+)*)', line)
  return [one for one in found if one not in PLACEHOLDERS]


def recipe_of(line):
  """(recipe file, scale) that a line names, or ('', '')."""
  named = re.search(r'(configs/\w+\.py)(?::(\w+))?', line)
  if named:
    return named[1], named[2] or ''
  return next((file for target, file in TARGETS.items() if target in line), ''), ''


def is_wrong_on_purpose(line):
  return 'did you mean' in line


def wrong_knobs(name):
  """Lines of a document that give a knob which their recipe (without one: every recipe) lacks."""
  wrong = []
  lines = lines_of(name)
  for line, after in zip(lines, [*lines[1:], '']):
    if is_wrong_on_purpose(line + after):
      continue
    file, _ = recipe_of(line)
    kinds = [FILES[file]] if file in FILES else list(knobs.KINDS)
    wrong += [
      f'{knob}: {line.strip()}'
      for knob in flags_of(line)
      if not any(is_knob(kind, knob) for kind in kinds)
    ]
  return wrong


def resolved(kind, words):
  """Builds the typed recipe of a command's arguments. Raises as the command would."""
  values = flags.FlagValues()
  launch.define(values)
  kept = [word for word in words if re.match(r'--(no)?config\b', word)]
  try:
    config = launch.read_config(['x', *kept], values, SHORT.get(kind, {}), rules(kind))[1]
  except (AttributeError, KeyError, OSError, flags.Error) as error:
    raise ConfigError(launch.complaint(error)) from error
  return launch.typed(knobs.KINDS[kind].recipe, config)


def commands_of(name):
  """(kind, arguments, the line after) of each whole command of a document."""
  found = []
  lines = lines_of(name)
  for line, after in zip(lines, [*lines[1:], '']):
    command = re.match(r'(?:\$ )?((?:\w+=\S+ )*python -m experiments\.\w+ --config=.*)', line)
    made = re.match(r'(make \w+) ARGS="([^"]*)"', line)
    if command:
      words = shlex.split(command[1], comments=True)
    elif made:
      words = [f'--config={TARGETS[made[1]]}', *shlex.split(made[2])]
    else:
      continue
    file, _ = recipe_of(' '.join(words))
    if file in FILES:  # the others are recipes of one's own
      found.append((FILES[file], words, after))
  return found


def slugs(name):
  """The anchors that a document's headings have."""
  titles = re.findall(r'^#+ (.+)$', text(name), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def dead_links(name):
  dead = []
  for target in re.findall(r'\]\(([^)\s]+)\)', text(name)):
    if re.match(r'[a-z]+:', target):
      continue
    path, _, anchor = target.partition('#')
    place = (ROOT / name).parent / path if path else ROOT / name
    inside = place.exists() and place.resolve().is_relative_to(ROOT)
    if not inside or (anchor and anchor not in slugs(place.resolve().relative_to(ROOT))):
      dead.append(target)
  return dead


def module_file(parts):
  """The file that a dotted name imports, None where there is none."""
  path = ROOT.joinpath(*parts)
  found = (path.with_suffix('.py'), path / '__init__.py')
  return next((file for file in found if file.is_file()), None)


def is_name(dotted):
  """Whether a dotted name is a module, or what one of at most two more parts names in it."""
  parts = dotted.split('.')
  for count in range(len(parts), max(len(parts) - 3, 0), -1):
    file = module_file(parts[:count])
    if file is not None:
      source = file.read_text()
      return all(re.search(rf'\b{re.escape(part)}\b', source) for part in parts[count:])
  return False


def is_runnable(module):
  if not re.match(rf'({PACKAGES})\b', module):
    return True  # of another project, as pytest
  parts = module.split('.')
  file = module_file([*parts, '__main__']) or module_file(parts)
  return file is not None and file.name != '__init__.py'


def test_a_newcomer_reads_at_most_150_lines():
  assert len(text('README.md').splitlines()) <= 150


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_relative_link_leads_to_a_file_and_its_heading(name):
  assert dead_links(name) == []


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_module_that_a_document_runs_can_be_run(name):
  modules = {one.rstrip('.') for one in re.findall(r'python -m ([\w.]+)', text(name))}
  assert [one for one in sorted(modules) if not is_runnable(one)] == []


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_name_of_the_code_in_a_document_is_there(name):
  dotted = set(re.findall(rf'(?<![\w./-])((?:{PACKAGES})(?:\.\w+)+)', text(name)))
  assert [one for one in sorted(dotted) if not is_name(one)] == []


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_file_of_the_repository_in_a_document_is_there(name):
  paths = set(re.findall(rf'`((?:{FOLDERS})/[\w./-]*)(?::\w+)?`', text(name)))
  assert [one for one in sorted(paths) if not (ROOT / one).exists()] == []


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_target_of_make_in_a_document_is_there(name):
  told = set(re.findall(r'(?:^|`)make ([a-z][a-z-]*)', text(name), re.MULTILINE))
  targets = set(re.findall(r'^([a-z-]+):', text('Makefile'), re.MULTILINE))
  assert told - targets == set()


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_knob_that_a_document_sets_is_one_of_the_recipe_on_that_line(name):
  assert wrong_knobs(name) == []


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_knob_that_a_document_names_is_one_of_some_recipe(name):
  tops = {path.partition('.')[0] for kind in knobs.KINDS for path in rules(kind)}
  wrong = []
  for knob in set(re.findall(r'`([a-z]\w*(?:\.\w+)+)(?:=[^`]*)?`', text(name))):
    top, _, rest = knob.partition('.')
    other = [*ROOT.glob(f'paravt_jax/**/{top}.py')]  # a module of the same name
    named = any(re.search(rf'\b{rest}\b', file.read_text()) for file in other)
    is_file = re.search(r'\.(py|md|jsonl?|html|log|txt|parquet|bin|tar|zip)\b', knob)
    if top in tops and not is_file and not named:
      wrong += [] if any(is_knob(kind, knob) for kind in knobs.KINDS) else [knob]
  assert sorted(wrong) == []


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_whole_command_of_a_document_builds_its_recipe_or_fails_as_it_says(name):
  for kind, words, after in commands_of(name):
    if after.startswith('error: '):
      with pytest.raises(ConfigError) as caught:
        resolved(kind, words)
      assert str(caught.value).startswith(after.removeprefix('error: ').removesuffix('; [...]'))
    else:
      resolved(kind, words)


# That the checks find what is stale


@pytest.mark.parametrize(
  ('line', 'wrong'),
  [
    ('python -m experiments.rl --config=configs/para_grpo.py --config.agent.max_turn=2', True),
    ('python -m experiments.rl --config=configs/para_grpo.py --config.agent.max_turns=2', False),
    ('python -m experiments.sft --config=configs/sft.py --config.agent.max_turns=2', True),
    ('`--config.agent.max_turn=2` answers *did you mean max_turns?*', False),
    ('make eval ARGS="--config.rollout.steps=2"', True),
    ('python -m experiments.eval --config=configs/eval.py --config.model=DIR', False),
    ('--config.cold_start.sources.mine=x --config.knob=value', False),
  ],
)
def test_a_knob_of_another_recipe_is_found(tmp_path, monkeypatch, line, wrong):
  (tmp_path / 'x.md').write_text(line)
  monkeypatch.setattr(f'{__name__}.ROOT', tmp_path)
  assert bool(wrong_knobs('x.md')) == wrong


def test_a_dead_link_and_a_dead_anchor_are_found(tmp_path, monkeypatch):
  (tmp_path / 'x.md').write_text('# One `two`\n[a](#one-two) [b](#three) [c](y.md) [d](https://e)')
  monkeypatch.setattr(f'{__name__}.ROOT', tmp_path)
  assert dead_links('x.md') == ['#three', 'y.md']


def test_names_that_the_code_lacks_are_found():
  assert is_name('paravt_jax.data.unpack.main') and is_name('experiments.rl')
  assert not is_name('paravt_jax.data.unpakc') and not is_name('experiments.rl.no_such')
  assert is_runnable('experiments.bench') and not is_runnable('experiments.tutorials')

"""The house rules that a machine can check: layers, heavy imports, environment, broad excepts,
sizes.
"""

import ast
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / 'paravt_jax'
CODE = (LIBRARY, ROOT / 'experiments', ROOT / 'configs')

# Layers: what a room may import of paravt_jax, besides itself and GROUND. Imports go down only.
GROUND = {
  'types',
  'shapes',
  'seeds',
  'errors',
  'files',
  'options',
  'lazy',
  'children',
  'apart',
  'timeline',
  'wire',
}
_BELOW_L4 = {
  'chat',
  'video',
  'models',
  'rl',
  'metrics',
  'packing',
  'row_layout',
  'rewards',
  'data',
  'train',
  'serving',
  'rollout',
}
ALLOWED: dict[str, set[str]] = {
  **{room: set() for room in GROUND},
  'chat': set(),
  'video': set(),
  'models': {'video'},
  'rl': set(),
  'metrics': set(),
  'packing': {'models', 'video'},
  'row_layout': {'packing'},
  'rewards': {'chat'},
  'data': {'chat', 'video', 'packing', 'row_layout'},
  'train': {'models', 'rl', 'packing'},
  'serving': {'chat', 'models', 'video'},
  'rollout': {'chat', 'video', 'rewards', 'serving', 'packing', 'row_layout'},
  'eval': _BELOW_L4,
  'report': _BELOW_L4,
  'testing': {*_BELOW_L4, 'report'},  # kills compare the logs of runs
  'longvideo_reason': _BELOW_L4,
  'orchestrator': {*_BELOW_L4, 'eval', 'report', 'testing'},
}
# What an entry point may import of experiments: how it starts. `knobs` describes all recipes.
START = {'launch', 'overrides', 'keys'}
DESCRIBES_ALL = 'experiments/knobs.py'
NEVER_IMPORTED = {'experiments', 'configs', 'tests'}
CORE = ('models', 'rl', 'train')
HEAVY = ('grain', 'av', 'decord', 'torch')

# Sizes (style.md): a function fits a screen, an entry point reads on one page. Lines are counted
# from `def` to the last one.
FILE_LINES = 500
ENTRY_POINT_LINES = 250
FUNCTION_LINES = 60
DOCSTRING_SHARE = 0.9


def _modules(*folders: Path) -> list[tuple[str, ast.Module]]:
  paths = sorted(path for folder in folders for path in folder.rglob('*.py'))
  return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(), str(path))) for path in paths]


def _room(path: str) -> str:
  return Path(path).parts[1].removesuffix('.py')


def _imports(path: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
  """Every absolute dotted name a module imports, 'a.b' for both `import a.b` and `from a import b`,
  and its line.
  """
  package = Path(path).parts[:-1]
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = list(package[: len(package) - node.level + 1]) if node.level else []
      base += node.module.split('.') if node.module else []
      yield from (('.'.join([*base, alias.name]), node.lineno) for alias in node.names)


def layer_faults(path: str, tree: ast.Module) -> list[str]:
  """Imports of one library file that go up, sideways, or out of the house."""
  room, faults = _room(path), []
  for name, line in _imports(path, tree):
    top, *rest = name.split('.')
    if top in NEVER_IMPORTED:
      faults.append(f'{path}:{line} imports {name}')
    if top == 'paravt_jax' and rest and rest[0] not in {room} | GROUND | ALLOWED.get(room, set()):
      faults.append(
        f'{path}:{line} imports {name}; {room} may import '
        f'{sorted(GROUND | ALLOWED.get(room, set()))}'
      )
    if room in CORE and top in HEAVY:
      faults.append(f'{path}:{line} imports {name}')
  return faults


def environment_faults(path: str, tree: ast.Module) -> list[str]:
  """Places that read or change the process environment."""
  names = {'environ', 'environb', 'getenv', 'getenvb', 'putenv', 'unsetenv'}
  faults = []
  for node in ast.walk(tree):
    looked = (
      isinstance(node, ast.Attribute)
      and node.attr in names
      and getattr(node.value, 'id', '') == 'os'
    )
    imported = (
      isinstance(node, ast.ImportFrom)
      and node.module == 'os'
      and names & {alias.name for alias in node.names}
    )
    if looked or imported:
      faults.append(f'{path}:{node.lineno}')
  return faults


def except_faults(path: str, tree: ast.Module) -> list[str]:
  """Bare and broad handlers, `suppress(Exception)` too. `except BaseException` passes if it ends in
  a bare `raise`.
  """
  faults = []
  for node in ast.walk(tree):
    if isinstance(node, ast.ExceptHandler):
      kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
      caught = {getattr(kind, 'id', None) for kind in kinds}
      raises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
      if node.type is None or 'Exception' in caught or ('BaseException' in caught and not raises):
        faults.append(f'{path}:{node.lineno}')
    if (
      isinstance(node, ast.Call)
      and getattr(node.func, 'attr', getattr(node.func, 'id', '')) == 'suppress'
    ):
      faults += [
        f'{path}:{node.lineno}'
        for kind in node.args
        if getattr(kind, 'id', '') in ('Exception', 'BaseException')
      ]
  return faults


# What tells a tool to be silent: it names its rules, and says why in brackets.
_SILENCED = re.compile(r'#\s*((?:\w+:\s*)?noqa|type:\s*ignore|(?:based)?pyright:\s*\w+)')
_WITH_REASON = re.compile(
  r'#\s*(?:noqa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|pyright: ignore\[\w+(?:, \w+)*\]) \(.+\)'
)


def silence_faults(path: str, source: str) -> list[str]:
  """Comments that silence the linter or the type checker for a whole file, for all rules, or
  without a reason.
  """
  return [
    f'{path}:{token.start[0]} {token.string}'
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
    and _SILENCED.search(token.string)
    and not _WITH_REASON.search(token.string)
  ]


def assert_faults(path: str, tree: ast.Module) -> list[str]:
  """Assertions, which `python -O` drops: outside of tests an error has a type and says what is
  wanted.
  """
  return [f'{path}:{node.lineno}' for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def _functions(modules) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, int]]:
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
  return [
    (f'{path}:{node.lineno} {node.name}', node, node.end_lineno - node.lineno + 1)
    for path, tree in modules
    for node in ast.walk(tree)
    if isinstance(node, kinds)
  ]


def _public_functions(modules) -> list[tuple[str, ast.AST]]:
  """Functions of modules and methods of public classes whose names do not begin with an
  underscore.
  """
  found = []
  for path, tree in modules:
    scopes = [
      tree,
      *(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
      ),
    ]
    found += [
      (f'{path}:{node.lineno} {node.name}', node)
      for scope in scopes
      for node in scope.body
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith('_')
    ]
  return found


def test_imports_go_down_only_and_the_core_imports_nothing_heavy():
  faults = [fault for path, tree in _modules(LIBRARY) for fault in layer_faults(path, tree)]
  assert not faults, '\n'.join(faults)


def experiment_faults(path: str, tree: ast.Module) -> list[str]:
  """Imports of one experiment by another: what two share belongs into the library.

  A package's modules, such as those of experiments/bench, may import each other.
  """
  own = '.'.join(Path(path).parts[1:2]).removesuffix('.py')
  faults = []
  for name, line in _imports(path, tree):
    top, *rest = name.split('.')
    if top == 'experiments' and rest and rest[0] not in {own, *START} and path != DESCRIBES_ALL:
      faults.append(f'{path}:{line} imports {name}')
  return faults


def test_an_experiment_imports_the_library_and_launch_and_no_other_experiment():
  modules = _modules(ROOT / 'experiments')
  faults = [fault for path, tree in modules for fault in experiment_faults(path, tree)]
  assert not faults, '\n'.join(faults)
  for code, path, wrong in (
    ('from experiments import sft', 'experiments/rl.py', 1),
    ('from experiments.bench import media', 'experiments/bench/data.py', 0),
    ('from experiments.bench import media', 'experiments/rl.py', 2),
    ('from experiments import launch', 'experiments/rl.py', 0),
  ):
    assert bool(experiment_faults(path, ast.parse(code))) is bool(wrong)


def test_no_modules_import_each_other_in_a_circle():
  modules = _modules(*CODE)
  known = {path.removesuffix('.py').replace('/', '.') for path, _ in modules}
  graph: dict[str, set[str]] = {}
  for path, tree in modules:
    if not path.endswith('__init__.py'):  # these import on demand (paravt_jax.lazy)
      one = path.removesuffix('.py').replace('/', '.')
      found = {name for name, _ in _imports(path, tree)}
      graph[one] = {*found, *(name.rpartition('.')[0] for name in found)} & known - {one}
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_an_import_within_a_function_says_why_it_stands_there():
  silent = []
  for path, tree in _modules(*CODE):
    lines = (ROOT / path).read_text().splitlines()
    for _, node, _ in _functions([(path, tree)]):
      inner = [one for one in ast.walk(node) if isinstance(one, ast.Import | ast.ImportFrom)]
      first = min((one.lineno for one in inner), default=None)
      if first and not any('#' in line for line in lines[first - 2 : first]):
        silent.append(f'{path}:{first}')
  assert not silent, '\n'.join(silent)


def test_no_recipe_is_a_config_dict_below_the_door():
  modules = _modules(LIBRARY, ROOT / 'experiments')
  door = tuple(f'experiments/{name}.py' for name in ('launch', 'overrides', 'keys', 'knobs'))
  users = {
    path
    for path, tree in modules
    for name, _ in _imports(path, tree)
    if name.split('.')[0] == 'ml_collections'
  }
  assert users <= set(door)


def test_every_room_stands_in_the_table():
  rooms = {
    path.stem
    for path in LIBRARY.iterdir()
    if path.suffix == '.py' or (path / '__init__.py').is_file()
  }
  assert rooms - {'__init__'} <= set(ALLOWED)


def test_the_core_can_be_imported_where_grain_av_decord_and_torch_are_missing():
  code = f"""
import importlib, pkgutil, sys
class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {HEAVY!r}:
      raise ModuleNotFoundError(f'blocked: {{name}}', name=name)
sys.meta_path.insert(0, Blocker())
for room in {CORE!r}:
  package = importlib.import_module('paravt_jax.' + room)
  for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
    importlib.import_module(module.name)
assert not set({HEAVY!r}) & set(sys.modules)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]


def test_the_library_never_touches_the_environment():
  faults = [fault for path, tree in _modules(LIBRARY) for fault in environment_faults(path, tree)]
  assert not faults, '\n'.join(faults)


def test_nobody_catches_everything():
  faults = [fault for path, tree in _modules(*CODE) for fault in except_faults(path, tree)]
  assert not faults, '\n'.join(faults)


def test_no_tool_is_silenced_without_a_rule_and_a_reason():
  paths = [path for folder in CODE for path in folder.rglob('*.py')]
  faults = [
    fault
    for path in paths
    for fault in silence_faults(str(path.relative_to(ROOT)), path.read_text())
  ]
  assert not faults, '\n'.join(faults)


def test_nothing_but_tests_asserts():
  faults = [fault for path, tree in _modules(*CODE) for fault in assert_faults(path, tree)]
  assert not faults, '\n'.join(faults)


def test_files_stay_within_their_size():
  limits = {
    'paravt_jax': FILE_LINES,
    'configs': FILE_LINES,
    'tests': FILE_LINES,
    'experiments': ENTRY_POINT_LINES,
  }
  sizes = [
    (path, len(path.read_text().splitlines()), limit)
    for name, limit in limits.items()
    for path in (ROOT / name).rglob('*.py')
  ]
  faults = [
    f'{path.relative_to(ROOT)}: {size} lines, at most {limit}'
    for path, size, limit in sizes
    if size > limit
  ]
  assert not faults, '\n'.join(faults)


def test_functions_fit_a_screen():
  functions = _functions(_modules(*CODE))
  over = [f'{place}: {lines} lines' for place, _, lines in functions if lines > FUNCTION_LINES]
  assert not over, '\n'.join(sorted(over))


def test_public_functions_say_what_they_promise():
  functions = _public_functions(_modules(LIBRARY))
  silent = [place for place, node in functions if not ast.get_docstring(node)]
  assert len(silent) <= (1 - DOCSTRING_SHARE) * len(functions), '\n'.join(silent)


@pytest.mark.parametrize(
  ('code', 'fault'),
  [
    (
      'from paravt_jax.train import step',
      'imports paravt_jax.train.step',
    ),  # rollout and train never meet
    ('from paravt_jax import report', 'imports paravt_jax.report'),
    ('from ..train import step', 'imports paravt_jax.train.step'),  # relative imports are seen too
    ('import experiments.rl', 'imports experiments.rl'),
    ('def f():\n  import tests', 'imports tests'),
  ],
)
def test_a_forbidden_import_is_found(code, fault):
  assert [
    fault in found for found in layer_faults('paravt_jax/rollout/agent.py', ast.parse(code))
  ] == [True]


def test_an_allowed_import_is_no_fault():
  code = (
    'import numpy\nfrom paravt_jax import seeds\nfrom paravt_jax.chat import template\nfrom . '
    'import groups'
  )
  assert layer_faults('paravt_jax/rollout/agent.py', ast.parse(code)) == []


@pytest.mark.parametrize(
  ('code', 'found'),
  [
    ('try:\n  f()\nexcept Exception:\n  g()', 1),
    ('try:\n  f()\nexcept:\n  g()', 1),
    ('try:\n  f()\nexcept (OSError, Exception):\n  g()', 1),
    ('try:\n  f()\nexcept BaseException:\n  g()\n  raise', 0),
    ('try:\n  f()\nexcept OSError:\n  g()', 0),
    ('with contextlib.suppress(Exception):\n  f()', 1),
  ],
)
def test_a_broad_except_is_found(code, found):
  assert len(except_faults('x.py', ast.parse(code))) == found


@pytest.mark.parametrize(
  'code', ['import os\nos.environ["A"]', 'import os\nos.getenv("A")', 'from os import environ']
)
def test_a_look_into_the_environment_is_found(code):
  assert len(environment_faults('x.py', ast.parse(code))) == 1


@pytest.mark.parametrize(
  ('comment', 'found'),
  [
    ('# noqa', 1),
    ('# noqa: B007', 1),
    ('# noqa: B007 (the loop only counts)', 0),
    ('# type: ignore', 1),
    ('# pyright: ignore', 1),
    ('# pyright: basic', 1),
    ('# ruff: noqa', 1),
    ('# pyright: ignore[reportAttributeAccessIssue] (made at run time)', 0),
  ],
)
def test_a_silenced_tool_is_found(comment, found):
  assert len(silence_faults('x.py', f'x = 1  {comment}\n')) == found


def test_an_assertion_is_found():
  assert len(assert_faults('x.py', ast.parse('def f(x):\n  assert x'))) == 1

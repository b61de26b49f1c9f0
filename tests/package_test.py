"""The package: what pyproject.toml promises, and that a wheel of it needs no checkout.

The wheel is built and installed without its dependencies: they are 1.8 GB, and those of the
environment that runs this test are the tested ones. The new environment sees them through a .pth
file, after its own packages. pyproject.toml's bounds are compared with the lock instead.
"""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import paravt_jax
from tests import patience
from tests.report import made_run

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = ROOT / 'paravt_jax'
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
COMMANDS = ('unpack', 'materialize', 'sanitize')
# What a distribution is imported as, where the two differ.
IMPORTED_AS = {
  'pillow': 'PIL',
  'orbax-checkpoint': 'orbax',
  'ml-dtypes': 'ml_dtypes',
  'tensorboardx': 'tensorboardX',
}


def call(*command, cwd, env=None):
  """Its standard output; the test fails with what it wrote on stderr."""
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def locked():
  """{name: version} of requirements.txt."""
  lines = [line.partition('#')[0].strip() for line in (ROOT / 'requirements.txt').open()]
  pairs = [line.split('==') for line in lines if line]
  return {canonicalize_name(name): version for name, version in pairs}


def imported(folder):
  """Top-level names of other projects that a folder's files import, anywhere in them."""
  names = set()
  for path in folder.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name.partition('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and not node.level:
        names.add(node.module.partition('.')[0])
  return names - set(sys.stdlib_module_names) - {'paravt_jax'}


def requirements(lines):
  return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


def test_the_dependencies_are_what_the_library_imports():
  names = {IMPORTED_AS.get(name, name) for name in requirements(PROJECT['dependencies'])}
  assert names == imported(LIBRARY)


def test_the_compilers_of_other_devices_are_those_of_the_locked_jax():
  lines = (ROOT / 'third_party' / 'compilers' / 'requirements.txt').read_text().splitlines()
  pins = dict(line.split('==') for line in lines if not line.startswith('#'))
  assert pins['jax-cuda13-plugin'] == pins['jax-cuda13-pjrt'] == locked()['jax']
  assert 'libtpu' in pins


def test_the_lock_lies_within_the_bounds_and_pins_each_of_them():
  extras = PROJECT['optional-dependencies']
  wanted = requirements(PROJECT['dependencies']) | requirements(extras['dev'])
  pins = locked()
  outside = [str(each) for name, each in wanted.items() if not each.specifier.contains(pins[name])]
  assert not outside


def test_the_extras_leave_the_choice_of_plug_ins_to_jax():
  extras = PROJECT['optional-dependencies']
  assert set(extras) == {'cuda13', 'tpu', 'aot', 'dev'}
  assert extras['cuda13'] == ['jax[cuda13]'] and extras['tpu'] == ['jax[tpu]']
  assert Requirement(extras['aot'][0]).extras == {'cuda13-local', 'tpu'}


def test_the_version_has_one_source():
  assert 'version' in PROJECT['dynamic'] and 'version' not in PROJECT
  assert re.fullmatch(r'\d+\.\d+\.\d+', paravt_jax.__version__)
  assert f'version: {paravt_jax.__version__}' in (ROOT / 'CITATION.cff').read_text()


def test_the_library_reaches_nothing_outside_its_own_folder():
  climbs = re.compile(r'__file__.*(parents\[|parent\.parent)')
  found = [
    f'{path.relative_to(ROOT)}:{number}'
    for path in LIBRARY.rglob('*.py')
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if climbs.search(line)
  ]
  # children.py: the folder that holds paravt_jax, for a child's import path
  # run_folder.py: the checkout whose commit a run writes down, where there is one
  assert {place.partition(':')[0] for place in found} == {
    'paravt_jax/children.py',
    'paravt_jax/orchestrator/run_folder.py',
  }


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel, built from a copy: building leaves folders in the sources."""
  folder = tmp_path_factory.mktemp('build')
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, folder)
  shutil.copytree(LIBRARY, folder / 'paravt_jax', ignore=shutil.ignore_patterns('__pycache__'))
  options = ('--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir', 'dist')
  call(sys.executable, '-m', 'pip', 'wheel', '-q', *options, '.', cwd=folder)
  (made,) = (folder / 'dist').iterdir()
  assert made.name == f'paravt_jax-{paravt_jax.__version__}-py3-none-any.whl'
  return made


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """(bin folder of a new environment with the wheel, an empty folder, the variables to run with)."""
  home = tmp_path_factory.mktemp('venv')
  venv.create(home, with_pip=False)
  python = home / 'bin' / 'python'
  options = ('--no-deps', '--no-index', '--no-cache-dir')
  call(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', *options, wheel, cwd=home)
  site = call(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=home)
  pathlib.Path(site.strip(), 'tested.pth').write_text(sysconfig.get_path('purelib') + '\n')
  outer = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
  env = {name: value for name, value in os.environ.items() if name not in outer}
  return home / 'bin', tmp_path_factory.mktemp('empty'), env


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_every_file_that_it_reads(wheel):
  with zipfile.ZipFile(wheel) as archive:
    inside = {name for name in archive.namelist() if '.dist-info/' not in name}
    facts = {name.rpartition('/')[2] for name in archive.namelist()} - inside
  read = {'.py', '.typed', '.css', '.js', '.j2'}
  assert inside == {
    str(path.relative_to(ROOT)) for path in LIBRARY.rglob('*') if path.suffix in read
  }
  assert {'LICENSE', 'METADATA', 'entry_points.txt'} <= facts


@pytest.mark.slow
def test_from_an_empty_folder_every_module_comes_from_the_wheel(installed):
  home, empty, env = installed
  code = """
import importlib, json, pkgutil, sys
import paravt_jax
names = [module.name for module in pkgutil.walk_packages(paravt_jax.__path__, 'paravt_jax.')]
print(json.dumps([importlib.import_module(name).__file__ for name in names]))
"""
  files = json.loads(call(home / 'python', '-c', code, cwd=empty, env=env))
  assert len(files) > 150
  assert all(pathlib.Path(file).is_relative_to(home.parent) for file in files)


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS)
def test_the_console_commands_run(installed, command):
  home, empty, env = installed
  usage = call(home / f'paravt-{command}', '--help', cwd=empty, env=env)
  assert usage.startswith(f'usage: paravt-{command} ')
  module = call(home / 'python', '-m', f'paravt_jax.data.{command}', '--help', cwd=empty, env=env)
  assert module.startswith(f'usage: python -m paravt_jax.data.{command} ')


@pytest.mark.slow
def test_a_report_is_built_from_the_wheels_own_files(installed, tmp_path):
  home, empty, env = installed
  folder = made_run.write_run(tmp_path / 'run', questions=2, steps=3, seed=0)
  code = 'import sys; from paravt_jax.report import build; print(build.build(*sys.argv[1:]))'
  page = tmp_path / 'page.html'
  call(home / 'python', '-c', code, folder, page, cwd=empty, env=env)
  assert (LIBRARY / 'report' / 'page.css').read_text().splitlines()[0] in page.read_text()


@pytest.mark.slow
def test_children_of_an_installed_library_start(installed):
  home, empty, env = installed
  code = """
from paravt_jax import video
from paravt_jax.testing import clips
path = clips.make_clip('clip.mp4', 2.0, 10, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 10)
pool = video.DecodePool(1, 60.0, 'pyav')
try:
  print(len(pool.frames_sync(str(path), [0.0, 1.0], 1024, 1 << 20).frames))
finally:
  pool.close()
"""
  assert call(home / 'python', '-c', code, cwd=empty, env=env) == '2\n'


@pytest.mark.slow
def test_a_type_checker_finds_the_types_of_the_installed_library(installed):
  home, empty, env = installed
  checker = pathlib.Path(sys.executable).with_name('basedpyright')
  if not checker.exists():
    pytest.skip('basedpyright is not installed here; make setup')
  (empty / 'mine.py').write_text(
    'import paravt_jax\nfrom paravt_jax.rl import group_normalize\n'
    'reveal_type(group_normalize)\nparavt_jax.Task.no_such\nparavt_jax.no_such\n'
  )
  options = ('--outputjson', '--pythonpath', home / 'python')
  done = subprocess.run(
    [str(part) for part in (checker, *options, 'mine.py')],
    cwd=empty,
    env=env,
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )
  report = json.loads(done.stdout)['generalDiagnostics']
  found = {(each['severity'], each['range']['start']['line'], each.get('rule')) for each in report}
  wanted = {('error', 3, 'reportAttributeAccessIssue'), ('error', 4, 'reportAttributeAccessIssue')}
  assert wanted <= found
  (revealed,) = (each['message'] for each in report if each['severity'] == 'information')
  assert 'ndarray' in revealed

"""What each package offers by `__all__`, and what importing it costs."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import paravt_jax
from paravt_jax import lazy
from tests import patience

PACKAGES = sorted(
  ['paravt_jax']
  + [
    module.name
    for module in pkgutil.walk_packages(paravt_jax.__path__, 'paravt_jax.')
    if module.ispkg
  ]
)


def typed_imports(package):
  """{name: module} of the imports that a package's `__init__` makes for type checkers."""
  module = importlib.import_module(package)
  tree = ast.parse(pathlib.Path(module.__file__).read_text())
  blocks = [
    node
    for node in tree.body
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
  ]
  assert len(blocks) == 1, package
  return {alias.name: node.module for node in blocks[0].body for alias in node.names}


def run(code, **kwargs):
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
    timeout=patience.seconds(120),
    check=False,
    **kwargs,
  )


def test_every_class_with_published_numbers_hands_them_out():
  found = set()
  for module in pkgutil.walk_packages(paravt_jax.__path__, 'paravt_jax.'):
    for kind in vars(importlib.import_module(module.name)).values():
      if inspect.isclass(kind) and hasattr(kind, 'published'):
        # a class that adds fields hands out the section that has the numbers
        assert issubclass(kind, type(kind.published())), kind
        found.add(kind)
  assert len(found) > 40


@pytest.mark.parametrize('package', PACKAGES)
def test_every_public_name_resolves_to_what_a_type_checker_sees(package):
  module = importlib.import_module(package)
  typed = typed_imports(package)
  assert set(module.__all__) - {'__version__'} == set(typed)
  for name, source in typed.items():
    assert getattr(module, name) is getattr(importlib.import_module(source), name)
    assert name in dir(module)


@pytest.mark.parametrize('package', PACKAGES)
def test_a_package_has_three_to_eight_public_names_and_a_sentence(package):
  module = importlib.import_module(package)
  assert 3 <= len([name for name in module.__all__ if name != '__version__']) <= 8
  assert module.__doc__


@pytest.mark.parametrize('package', PACKAGES)
def test_no_public_name_is_that_of_a_module(package):
  module = importlib.import_module(package)
  modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
  assert not modules & set(module.__all__)


def test_importing_the_packages_loads_no_library():
  heavy = ('jax', 'flax', 'torch', 'numpy', 'grain', 'av', 'decord', 'pyarrow', 'aiohttp', 'orbax')
  done = run(
    f'import sys\n{chr(10).join(f"import {package}" for package in PACKAGES)}\n'
    f'print(sorted(set({heavy!r}) & set(sys.modules)))'
  )
  assert (done.stdout.strip(), done.stderr) == ('[]', '')


def test_the_public_names_of_models_rl_and_train_load_neither_grain_av_decord_nor_torch():
  done = run(
    'import sys\n'
    'from paravt_jax.models import *\nfrom paravt_jax.models.qwen3_vl import *\n'
    'from paravt_jax.rl import *\nfrom paravt_jax.train import *\n'
    'assert State and decoupled_policy_loss and load_hf and attend\n'
    "print(sorted({'grain', 'av', 'decord', 'torch'} & set(sys.modules)))"
  )
  assert done.stdout.strip() == '[]', done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error_with_a_suggestion():
  done = run('import paravt_jax\nparavt_jax.Episod')
  assert "module 'paravt_jax' has no attribute 'Episod'. Did you mean: 'Episode'?" in done.stderr
  with pytest.raises(ImportError, match="cannot import name 'Episod'"):
    exec('from paravt_jax import Episod')


def test_a_name_is_looked_up_once():
  get, listed = lazy.names('paravt_jax.rl', advantages=('group_normalize',))
  assert 'group_normalize' in listed()
  from paravt_jax import rl
  from paravt_jax.rl import advantages

  try:
    assert get('group_normalize') is advantages.group_normalize is vars(rl)['group_normalize']
  finally:
    del rl.group_normalize

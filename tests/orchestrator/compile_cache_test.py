"""Compiled programs are kept: the second start of an entry point compiles none."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from paravt_jax.orchestrator import compile_cache
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENTRIES = {'para_grpo': RLRecipe, 'sft': SFTRecipe, 'eval': EvalRecipe}
START = """
import sys
import jax
from experiments import launch
from paravt_jax.orchestrator import recipes

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))

def main(recipe):
  step = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c @ c, c.sum()), x, None, length=3))
  step(jax.numpy.ones((8, 8)))
  hits, misses = (
    events.count(f'/jax/compilation_cache/cache_{kind}') for kind in ('hits', 'misses')
  )
  print('FOUND', jax.config.values['jax_compilation_cache_dir'], hits, misses)

launch.run(main, getattr(recipes, sys.argv.pop(1)))
"""


def start(cwd, entry, **changed):
  """(folder, hits, misses) of one start in a working directory."""
  env = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  env |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', **changed}
  env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  config = f'--config={ROOT}/configs/{entry}.py'
  done = subprocess.run(
    [sys.executable, '-c', START, ENTRIES[entry].__name__, config],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
  )
  assert 'FOUND' in done.stdout, done.stderr
  folder, hits, misses = done.stdout.split('FOUND')[1].split()
  return folder, int(hits), int(misses)


@pytest.mark.parametrize('entry', ENTRIES)
def test_the_second_start_of_learner_sft_and_evaluation_compiles_nothing(tmp_path, entry):
  kept = str(tmp_path / 'runs' / 'compile_cache')
  folder, hits, misses = start(tmp_path, entry)
  assert folder == kept and hits == 0 and misses > 0
  assert start(tmp_path, entry) == (kept, misses, 0)


def test_a_folder_that_the_user_chose_stays(tmp_path):
  chosen = str(tmp_path / 'chosen')
  assert start(tmp_path, 'sft', JAX_COMPILATION_CACHE_DIR=chosen)[0] == chosen
  assert not (tmp_path / 'runs').exists()


def test_use_names_the_folder_in_use(tmp_path):
  before = jax.config.values['jax_compilation_cache_dir']
  assert before and compile_cache.use(tmp_path) == pathlib.Path(before)

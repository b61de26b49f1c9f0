"""The commands of the Makefile that choose something themselves."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tests import patience

ROOT = pathlib.Path(__file__).parents[1]


def make(cwd, *arguments):
  """(status, stdout, stderr) of a target, its environment taken as set up and its Python replaced
  by echo.
  """
  outer = (
    'MAKEFLAGS',
    'MFLAGS',
    'MAKELEVEL',
    'MAKEOVERRIDES',
    'ARGS',
    'MODEL',
  )  # of the `make test` that this may run in
  env = {name: value for name, value in os.environ.items() if name not in outer}
  done = subprocess.run(
    ['make', '-f', str(ROOT / 'Makefile'), '-o', 'setup', 'RUN=echo', *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=patience.seconds(120),
    env=env,
  )
  return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
def test_eval_takes_the_newest_runs_model_or_the_one_named(tmp_path):
  status, out, err = make(tmp_path, 'eval')
  assert (
    status == 2
    and out == ''
    and 'there is no runs/*/hf; train a model with make rl, or name one' in err
  )
  for age, name in enumerate(('newest', 'older')):
    file = tmp_path / 'runs' / name / 'hf' / 'config.json'
    file.parent.mkdir(parents=True)
    file.write_text('{}')
    os.utime(file, (1000 - age, 1000 - age))
  command = '-m experiments.eval --config=configs/eval.py --config.model='
  assert make(tmp_path, 'eval')[:2] == (0, f'{command}runs/newest/hf')
  assert make(tmp_path, 'eval', 'MODEL=/a b/m', 'ARGS=--config.seed=1')[:2] == (
    0,
    f'{command}/a b/m --config.seed=1',
  )

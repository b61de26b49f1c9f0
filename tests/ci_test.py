"""`.ci/run`: which stages it runs, and the minutes that it prints at the end."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ['lint', 'test', 'test-aot', 'test-slow', 'test-hosts', 'test-sglang']
FAKE = """#!/bin/sh
echo "made $1"
test "$1" != "$FAILS" || exit 3
test "$1" != "$SLEEPS" || sleep 3
"""


def run(folder, fails='', sleeps=''):
  """(status, lines) of .ci/run in a folder whose `make` does nothing."""
  for name in ('.ci', 'bin'):
    (folder / name).mkdir()
  shutil.copy(ROOT / '.ci' / 'run', folder / '.ci' / 'run')
  (folder / 'bin' / 'make').write_text(FAKE)
  (folder / 'bin' / 'make').chmod(0o755)
  path = f'{folder / "bin"}{os.pathsep}{os.environ["PATH"]}'
  done = subprocess.run(
    [folder / '.ci' / 'run'],
    env={**os.environ, 'PATH': path, 'FAILS': fails, 'SLEEPS': sleeps},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  return done.returncode, done.stdout.splitlines()


pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')


def test_every_stage_runs_in_order_and_the_minutes_stand_at_the_end(tmp_path):
  status, lines = run(tmp_path, sleeps='test-aot')
  assert status == 0
  assert lines[: len(STAGES)] == [f'made {stage}' for stage in STAGES]
  table = lines[lines.index('minutes per stage') + 1 :]
  rows = [re.fullmatch(r'(\S+) +(\d+\.\d)', line).groups() for line in table]
  assert [name for name, _ in rows] == [*STAGES, 'total']
  found = {name: float(value) for name, value in rows}
  assert found['test-aot'] >= 0.1 > found['lint']
  assert found['total'] >= found['test-aot']


def test_a_stage_that_fails_is_the_last_and_keeps_its_status_and_its_minutes(tmp_path):
  status, lines = run(tmp_path, fails='test')
  assert status == 3
  assert [line for line in lines if line.startswith('made')] == ['made lint', 'made test']
  table = lines[lines.index('minutes per stage') + 1 :]
  assert re.fullmatch(r'lint +0\.\d', table[0])
  assert re.fullmatch(r'test +0\.\d  failed with status 3', table[1])
  assert table[2].startswith('total') and len(table) == 3

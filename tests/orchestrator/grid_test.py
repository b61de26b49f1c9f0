"""The processes of a grid: what is there already, which cores each gets, what a run said last; that
each gets the command and the environment that it was handed.
"""

import json
import os
import pathlib
import sys

import pytest

from configs import para_grpo
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import grid, run_folder
from paravt_jax.orchestrator.run_folder import Interrupts
from tests import recipes

RECIPE = recipes.typed(para_grpo.get_config())


def test_cores_are_dealt_out_to_the_jobs():
  may = sorted(os.sched_getaffinity(0))
  assert grid.deal((), 1) == [may]
  two = tuple(may[:2]) if len(may) > 1 else tuple(may)
  assert grid.deal(two, len(two)) == [[core] for core in two]
  for cores, jobs, message in (
    ((), 0, 'jobs=0: wanted 1 to'),
    ((), len(may) + 1, 'a core each'),
    ((-1,), 1, 'cores='),
  ):
    with pytest.raises(ConfigError, match=message):
      grid.deal(cores, jobs)


def made(tmp_path, monkeypatch, **values):
  """A run of the grid, its folder as a run that went to its end under these further values leaves
  it.
  """
  monkeypatch.chdir(tmp_path)
  one = grid.Cell('grpo', 0, pathlib.Path('runs/ablations/grpo-seed0'), (), RECIPE)
  one.folder.mkdir(parents=True)
  shown = run_folder.to_json(one.recipe)
  changed = {
    key: {**shown[key], **value} if isinstance(value, dict) else value
    for key, value in values.items()
  }
  (one.folder / 'config.json').write_text(json.dumps({**shown, **changed}))
  for name in ('summary.json', 'report.html'):
    (one.folder / name).write_text('{}')
  return one


def test_a_run_is_finished_when_it_has_summary_and_report(tmp_path, monkeypatch):
  one = made(tmp_path, monkeypatch)
  assert grid.finished(one)
  (one.folder / 'report.html').unlink()
  assert not grid.finished(one)
  (one.folder / 'config.json').unlink()
  assert not grid.finished(one)


def test_a_finished_run_may_differ_in_placement_but_not_in_what_it_measured(tmp_path, monkeypatch):
  assert grid.finished(made(tmp_path, monkeypatch, server={'kind': 'sglang'}, run={'keep': 9}))
  (tmp_path / 'runs').rename(tmp_path / 'before')
  one = made(tmp_path, monkeypatch, eval={'questions': 7})
  with pytest.raises(
    ConfigError,
    match=r'grpo-seed0 was made with other settings \(eval.questions: 7 -> 300\); choose another',
  ):
    grid.finished(one)


def test_a_finished_run_is_begun_again_for_more_steps_and_not_for_fewer(tmp_path, monkeypatch):
  one = made(tmp_path, monkeypatch, rollout={'steps': 100})
  assert not grid.finished(one)  # the recipe asks for 120
  (tmp_path / 'runs').rename(tmp_path / 'before')
  one = made(tmp_path, monkeypatch, rollout={'steps': 130})
  with pytest.raises(
    ConfigError, match=r'was made with other settings \(rollout.steps: 130 -> 120\)'
  ):
    grid.finished(one)


def test_settings_bind_only_once_there_are_results(tmp_path, monkeypatch):
  one = made(tmp_path, monkeypatch, seed=9)
  for name in ('summary.json', 'report.html'):
    (one.folder / name).unlink()
  assert not grid.finished(one)
  (one.folder / 'metrics.jsonl').touch()
  with pytest.raises(ConfigError, match='seed: 9 -> 0'):
    grid.finished(one)


def test_the_last_line_of_a_log_is_what_a_run_said_last(tmp_path):
  log = tmp_path / 'a.log'
  log.write_text('one\nbar 1\rbar 2\r\n\n')
  assert grid.last_line(log) == 'bar 2'
  log.write_text('')
  assert grid.last_line(log) == 'it said nothing'


# Runs

# a run that leaves a summary, unless it is told to fail
SCRIPT = """
import json, os, pathlib, sys
print('says', os.environ.get('MARK'), len(os.sched_getaffinity(0)))
folder = pathlib.Path(sys.argv[1])
if sys.argv[2] == 'fail':
  sys.exit('broke')
folder.mkdir()
folder.joinpath('summary.json').write_text('{}')
folder.joinpath('metrics.jsonl').touch()
"""


def test_runs_get_their_command_environment_and_cores_and_one_that_breaks_stops_no_other(tmp_path):
  cells = [
    grid.Cell(name, 0, tmp_path / f'{name}-seed0', (str(tmp_path / f'{name}-seed0'), name), RECIPE)
    for name in ('fail', 'go')
  ]
  said, core = [], min(os.sched_getaffinity(0))
  command = (sys.executable, '-c', SCRIPT)
  how = grid.Started(command, {**os.environ, 'MARK': 'ours'}, [[core]], said.append)
  with Interrupts() as interrupts:
    failed = grid.execute(cells, how, interrupts)
  assert [cell.name for cell in failed] == ['fail']
  assert [line.partition(':')[0] for line in said] == ['fail, seed 0'] * 2 + ['go, seed 0'] * 2
  assert said[1].endswith('FAILED with status 1: broke') and 'done: not evaluated' in said[3]
  assert 'says ours 1' in cells[0].log.read_text() and 'says ours 1' in cells[1].log.read_text()

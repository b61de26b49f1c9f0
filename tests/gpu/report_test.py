"""The report of `make test-gpu`, on a CPU: its format, verdicts, and why checks are skipped."""

import json
import os
import subprocess
import sys

import pytest

from tests import patience
from tests.gpu import __main__ as command
from tests.gpu import kernels, report, sglang_step

KEYS = {'name', 'status', 'reason', 'figures', 'at_most', 'at_least', 'seconds'}
DEVICE = {'platform': 'gpu', 'kind': 'NVIDIA H100', 'count': 1, 'memory_gib': 79.1, 'jax': '0.10.2'}


def run(folder, *arguments):
  """(status, text, the report's JSON object) of the command on the CPU."""
  file = folder / 'out' / 'gpu.json'
  done = subprocess.run(
    [sys.executable, '-m', 'tests.gpu', f'--json={file}', *arguments],
    cwd=command.ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=patience.seconds(1200),
    check=False,
  )
  return done.returncode, done.stdout, json.loads(file.read_text())


def check_format(found):
  assert found.keys() == {'format', 'size', 'device', 'passed', 'checks'}
  assert found['format'] == report.FORMAT
  assert found['device'].keys() == DEVICE.keys()
  for check in found['checks']:
    assert check.keys() == KEYS and check['status'] in report.STATUSES
    assert {*check['at_most'], *check['at_least']} <= check['figures'].keys()
    assert all(isinstance(value, int | float) for value in check['figures'].values())
    assert (check['status'] == 'pass') == (not check['reason'])


def test_without_a_gpu_every_check_is_skipped_with_the_way_out(tmp_path):
  status, text, found = run(tmp_path)
  check_format(found)
  assert status == 0 and found['passed']
  assert [check['name'] for check in found['checks']] == list(command.CHECKS)
  assert {check['status'] for check in found['checks']} == {'skip'}
  for check in found['checks']:
    assert 'JAX sees no GPU (cpu: cpu)' in check['reason']
    assert 'make setup ACCELERATOR=cuda13' in check['reason']
  assert text.splitlines()[1].startswith('attention   skip')


@pytest.mark.nightly
def test_the_same_code_measures_at_a_tiny_size_on_the_cpu(tmp_path):
  status, text, found = run(tmp_path, '--size=tiny')
  check_format(found)
  by_name = {check['name']: check for check in found['checks']}
  assert {name: check['status'] for name, check in by_name.items()} == {
    'attention': 'pass', 'sft_2b': 'pass', 'rl_2b': 'pass', 'sglang': 'skip'
  }, found  # fmt: skip
  assert status == 0 and text.splitlines()[-1] == 'passed'
  assert by_name['attention']['figures'].keys() >= kernels.AT_MOST.keys()
  for name in ('sft_2b', 'rl_2b'):
    figures = by_name[name]['figures']
    assert {'seconds_per_step', 'mfu', 'compiled_gib', 'peak_gib', 'loss'} <= figures.keys()
    assert 0 < figures['mfu'] < 1 and figures['gradient_norm'] > 0


def test_a_bound_that_is_broken_fails_the_check_and_says_which():
  figures = {'mfu': 0.2, 'peak_gib': 50.0, 'seconds': 3.0}
  found = report.judge('step', figures, {'peak_gib': 45}, {'mfu': 0.3}, 1.0)
  assert found.status == 'fail'
  assert found.reason == ('peak_gib is 50, wanted at most 45; mfu is 0.2, wanted at least 0.3')
  assert report.judge('step', figures, {'peak_gib': 50}, {'mfu': 0.2}, 1.0).status == 'pass'


def test_a_figure_that_is_no_number_breaks_its_bounds():
  figures = {'error': float('nan')}
  assert report.judge('x', figures, {'error': 1}, {}, 0).status == 'fail'
  assert report.judge('x', figures, {}, {'error': 0}, 0).status == 'fail'


def test_text_and_json_hold_the_same_and_one_failure_fails_the_report():
  good = report.judge('attention', {'error': 0.001}, {'error': 0.01}, {}, 12.0)
  bad = report.unmeasured('sft_2b', 'fail', 'took more than\n 150 s', 150.0)
  found = report.to_json('full', DEVICE, [good, bad])
  check_format(found)
  assert not found['passed'] and report.to_json('full', DEVICE, [good])['passed']
  assert json.loads(report.dumps(found)) == found
  assert report.to_text(found).splitlines() == [
    'NVIDIA H100 x 1, 79.1 GiB each, jax 0.10.2, size full',
    'attention   pass      12 s',
    '  error                                      0.001  at most 0.01',
    'sft_2b      fail     150 s  took more than 150 s',
    'FAILED',
  ]


def test_a_check_that_breaks_is_one_line_and_stops_no_other(monkeypatch):
  monkeypatch.setattr(command.sys, 'executable', '/bin/false')
  broken = command.run_check('attention', 'tiny', 10.0)
  assert (broken.status, broken.reason) == ('fail', 'no message')


def test_all_checks_have_ten_minutes_and_each_a_part_of_them():
  assert command.SECONDS == 600
  assert command.LIMITS.keys() == command.CHECKS.keys()
  assert all(limit < command.SECONDS for limit in command.LIMITS.values())


def test_the_figures_of_a_step_with_sglang_are_those_of_its_log():
  rows = [
    {'policy/version': 1, 'policy/gap_current_mean': 2e-4, 'server/lost': 0, 'time/step': 4.0},
    {'policy/version': 2, 'policy/gap_current_mean': 1e-4, 'server/lost': 1, 'time/step': 2.0},
  ]
  assert sglang_step.figures(rows) == {
    'steps': 2, 'versions': 2, 'gap_current_mean': 2e-4, 'servers_lost': 1, 'seconds_per_step': 4.0
  }  # fmt: skip


def test_without_sglang_its_check_is_skipped(monkeypatch, tmp_path):
  monkeypatch.setattr(sglang_step, 'PYTHON', tmp_path / 'python')
  assert sglang_step.reason_to_skip().endswith('run: make sglang SGLANG=gpu')

"""The main job on two devices of one process: the learner on the first, its server on the second."""

import subprocess

import pytest

from tests import patience, xla
from tests.experiments import small_job

STEPS = 3
KNOBS = {
  'rollout__steps': STEPS,
  'rollout__group_size': 2,
  'agent__max_new_tokens': 24,
  'agent__max_turns': 1,
  'subagent__max_new_tokens': 16,
  'subagent__summary_tokens': 16,
  'frames__budgets': (4,),
  'eval__budgets': (4,),
  'eval__questions': 4,
  'train__micro_batches': 2,
  'train__backend': 'xla',
  'run__tensorboard': False,
}
# of clocks, and of where servers are
OWN = ('time/', 'sync/', 'wall', 'rollout/', 'server/speed/')


def run(place, folder, devices, **knobs):
  """(status, standard error) of the job on virtual devices of one process."""
  done = subprocess.run(
    small_job.command(folder, **{**KNOBS, **knobs}),
    cwd=place,
    env={**small_job.environment(), 'XLA_FLAGS': xla.devices(devices), 'NPROC': '32'},
    capture_output=True,
    text=True,
    timeout=patience.seconds(1200),
    check=False,
  )
  return done.returncode, done.stderr


def logged(place, folder):
  """The records of metrics.jsonl without what a clock decides."""
  return [
    {name: value for name, value in record.items() if not name.startswith(OWN)}
    for record in small_job.records(place, folder)
  ]


@pytest.mark.nightly
def test_learner_and_server_in_one_process_train_as_apart(tmp_path):
  status, err = run(tmp_path, 'apart', 2)
  assert status == 0, err[-4000:]
  status, err = run(tmp_path, 'together', 2, server__embedded__in_process=True)
  assert status == 0, err[-4000:]
  apart, together = logged(tmp_path, 'apart'), logged(tmp_path, 'together')
  assert len(together) == STEPS
  for mine, other in zip(together, apart, strict=True):
    assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
  # each step's tokens are of its own weights, which the server got from the learner
  assert small_job.versions(tmp_path, 'together') == {(step, step) for step in range(STEPS)}
  log = (tmp_path / 'runs' / 'together' / 'server0.log').read_text()
  assert 'listening on http://127.0.0.1:' in log
  assert small_job.nobody_is_left(tmp_path)


def test_too_few_devices_end_the_job_before_it_makes_anything(tmp_path):
  status, err = run(tmp_path, 'short', 1, server__embedded__in_process=True)
  assert status == 2
  line = err.strip().splitlines()[-1]
  assert line.startswith('error: --config.server.embedded.in_process: host 0 has 1 devices, wanted')
  assert '2: 1 for its share of the mesh and 1 behind them' in line
  assert (
    not list(tmp_path.glob('runs/*/server0.log')) and not (tmp_path / 'runs' / 'short').exists()
  )

"""SFT on several hosts trains as on one; a host that dies ends the others, and other hosts go on."""

import pytest

from paravt_jax.orchestrator import native_errors
from paravt_jax.train import checkpoint
from tests import patience
from tests.experiments import small_job
from tests.hosts import job

pytestmark = pytest.mark.hosts
STEPS, KNOBS = job.SFT_STEPS, job.SFT
# what the lines of metrics.jsonl say beside times
COUNTED = ('sft/documents', 'pack/fill', 'data/')


def losses(place, folder):
  """The losses by step, and what was counted."""
  records = small_job.records(place, folder)
  counted = {
    (record['step'], name): value
    for record in records
    for name, value in record.items()
    if name.startswith(COUNTED)
  }
  return {record['step']: record['sft/loss'] for record in records}, counted


def test_two_hosts_then_four_train_as_one(place, cold_start):
  killed = job.start(place, 2, 'sft', 'parts', steps=200, **KNOBS)
  records = place / 'runs' / 'parts' / 'checkpoints'
  try:
    patience.until(
      lambda: checkpoint.latest(records) or job.any_ended(killed), 'a record', 420.0, 0.05
    )
    killed.processes[1].kill()
    codes = killed.wait(6 * job.HEARTBEAT_S)
  finally:
    killed.kill()
  assert codes[1] == -9 and codes[0] not in (0, None)
  # the deadline that hosts.heartbeat_s states, then one line
  wanted = native_errors.line(b'unhealthy:\n1\n').decode().strip()
  patience.until(lambda: killed.last_line(0) == wanted, 'the line', 30.0)
  done = checkpoint.latest(records)
  assert done is not None and done < STEPS, killed.said(0)
  job.run(place, 4, 'sft', 'parts', steps=STEPS, **KNOBS)
  found, counted = losses(place, 'parts')
  losses_alone, counted_alone = losses(place, cold_start)
  assert found == pytest.approx(losses_alone, rel=1e-6)
  assert counted == pytest.approx(counted_alone)
  assert list(found) == list(range(STEPS)) and checkpoint.latest(records) == STEPS


def test_a_folder_that_a_host_does_not_see_is_refused_at_the_start(place, tmp_path):
  apart = [tmp_path / 'a', tmp_path / 'b']
  for cwd in apart:
    cwd.mkdir()
  started = job.start(place, 2, 'sft', 'apart', cwds=apart, steps=STEPS, **KNOBS)
  assert started.wait() == [2, 2]
  for index in (0, 1):
    said = started.last_line(index)
    assert said.startswith('error: run folder runs/apart: host 1 does not see what host 0 writes')
    assert said.endswith('share with --config.run.folder=DIR')
  assert not (apart[0] / 'runs' / 'apart' / 'config.json').exists()

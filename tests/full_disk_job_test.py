"""The disk of a run fills at random moments: the run ends in one line, and once there is room the
same command trains every group once.
"""

import contextlib
import os
import random
import subprocess
import time

import pytest

from paravt_jax.testing import kills
from tests import patience
from tests.experiments import small_job

pytestmark = pytest.mark.nightly
MOMENTS, STEPS = 6, 8
KNOBS = {'rollout__steps': STEPS, 'eval__questions': 0, 'run__checkpoint_every': 1}
DISK_MB = 256  # a run folder of this job takes about a third of it


@pytest.fixture
def disk(tmp_path):
  """A file system of its own, in memory."""
  place = tmp_path / 'disk'
  place.mkdir()
  options = ['mount', '-t', 'tmpfs', '-o', f'size={DISK_MB}m', 'tmpfs', str(place)]
  if subprocess.run(options, capture_output=True).returncode:
    pytest.skip('only root may mount a file system')
  yield place
  subprocess.run(['umount', '-l', str(place)], check=True)


def fill(disk):
  """Leaves no byte free."""
  with (disk / 'ballast').open('ab', buffering=0) as out, contextlib.suppress(OSError):
    while True:
      out.write(bytes(1 << 16))
  with (disk / 'ballast').open('ab', buffering=0) as out, contextlib.suppress(OSError):
    while True:
      out.write(b'0')


def free(disk):
  (disk / 'ballast').unlink(missing_ok=True)


def test_a_disk_that_fills_at_random_moments_loses_nothing(tmp_path, disk):
  command = small_job.command(None, 'rl', **KNOBS)
  job = kills.Job(
    command,
    tmp_path / 'runs_of_kills',
    cwd=tmp_path,
    env=small_job.environment(),
    limit_s=patience.seconds(1200),
  )
  pace = job.unbroken()
  draw, run = random.Random(12), disk / 'run'
  ends, said = [], []
  while True:
    moment = draw.uniform(0.0, pace.start_s + STEPS / 2 * pace.step_s)
    status, err = attempt(tmp_path, disk, run, command, moment if len(ends) < MOMENTS else None)
    free(disk)
    if status == 0:
      break
    ends.append(status)
    said.append(err.strip().splitlines()[-1])
  print(said)
  assert 2 <= len(ends) <= MOMENTS and set(ends) == {2}
  for line in said:
    assert line.startswith('error: '), line
    assert 'space' in line or 'disk' in line, line
  found = kills.compare(tmp_path / 'runs_of_kills' / kills.WHOLE, run)
  print(found)
  assert (found.lost, found.doubled, found.bit_equal) == (0, 0, True)
  assert small_job.nobody_is_left(tmp_path)


def attempt(place, disk, run, command, moment):
  """(status, stderr) of the job, on a disk that fills after so many seconds; None: it does not."""
  begin = time.monotonic()
  log = place / f'attempt{len(os.listdir(place))}.err'
  with log.open('wb') as out:
    process = subprocess.Popen(
      [*command, f'--config.run.folder={run}'],
      cwd=place,
      env=small_job.environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=out,
    )
    if moment is not None:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
      if process.poll() is None:
        fill(disk)
    process.wait(patience.seconds(1200) - (time.monotonic() - begin))
  err = log.read_text()
  assert 'Traceback' not in err, err[-3000:]
  return process.returncode, err

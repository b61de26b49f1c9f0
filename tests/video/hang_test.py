"""A decoder that hangs is killed at its deadline, every time, and nothing of it remains."""

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from paravt_jax.errors import MediaError
from paravt_jax.video.decode import DecodePool
from tests import patience

pytestmark = pytest.mark.nightly

HANGS, WORKERS, DEADLINE_S = 100, 2, 0.2


def _left() -> tuple[int, int, int]:
  """Returns this process's children (zombies included), open files and threads."""
  me = psutil.Process()
  return len(me.children()), me.num_fds(), threading.active_count()


def test_a_hundred_hanging_decoders_of_a_hundred_are_killed_at_their_deadline(tmp_path):
  """Opening a pipe that nobody writes hangs, as a dead network disk does."""
  hang = str(tmp_path / 'hang.mp4')
  os.mkfifo(hang)
  subprocess.run(['true'], check=True)  # whatever the first child opens is open
  before = _left()
  with DecodePool(WORKERS, DEADLINE_S, 'pyav') as pool, ThreadPoolExecutor(WORKERS) as threads:

    def decode(number: int) -> str:
      with pytest.raises(MediaError) as error:
        pool.probe_sync(hang) if number % 2 else pool.frames_sync(hang, [0.0], 1024, 50176)
      return error.value.reason

    start = time.monotonic()
    reasons = list(threads.map(decode, range(HANGS)))
    took = time.monotonic() - start
    during = _left()
  assert reasons == ['timeout'] * HANGS and pool.counts['timeout'] == HANGS
  # a deadline and the start of a new worker each, on so many workers
  assert took < HANGS / WORKERS * (DEADLINE_S + patience.seconds(3.0)), took
  assert during[0] - before[0] <= WORKERS  # the workers that wait; no zombies beside them
  assert during[1] - before[1] <= 4 * WORKERS
  patience.until(lambda: all(now <= then for now, then in zip(_left(), before, strict=True)))

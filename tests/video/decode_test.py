"""The pool: every request ends within its deadline, the loop is never blocked, no worker stays
behind.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from paravt_jax.errors import ConfigError, MediaError
from paravt_jax.testing import clips
from paravt_jax.video import decode, sampling
from paravt_jax.video.decode import DecodePool
from tests import patience

SIZE = (64, 64)
PIXELS = (1024, 50176)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('clips') / 'a.mp4'
  return str(clips.make_clip(path, 32, 4, SIZE, lambda i: clips.counting_frame(i, SIZE), 8))


@pytest.fixture(scope='module')
def pool():
  with DecodePool(2, 20.0, 'pyav') as pool:
    yield pool


@pytest.fixture
def fifo(tmp_path):
  """A path whose opening hangs, as a dead network disk does."""
  os.mkfifo(tmp_path / 'hang.mp4')
  return str(tmp_path / 'hang.mp4')


def _gone(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  with open(f'/proc/{pid}/stat') as file:
    return file.read().rsplit(')', 1)[1].split()[0] == 'Z'


def _pids(pool):
  return [worker.process.pid for worker in pool._workers]


def test_frames_come_in_the_order_of_the_times_with_their_own_seconds(pool, clip):
  got = pool.frames_sync(clip, [20.3, 0.0, 7.25, 7.3], *PIXELS)
  assert got.frames.dtype == np.uint8 and got.frames.shape == (4, 64, 64, 3)
  assert [clips.read_count(frame) for frame in got.frames] == [81, 0, 29, 29]
  assert got.seconds.tolist() == [20.25, 0.0, 7.25, 7.25]
  assert got.duration == 32.0


def test_frames_are_resized_once_inside_the_worker(pool, clip):
  assert pool.frames_sync(clip, [1.0], 128 * 128, 50176).frames.shape == (1, 128, 128, 3)
  assert pool.frames_sync(clip, [1.0], 1024, 1024).frames.shape == (1, 32, 32, 3)


def test_async_and_sync_agree_and_probe_tells_the_header(pool, clip):
  async def both():
    return await pool.frames(clip, [3.0], *PIXELS), await pool.probe(clip)

  got, info = asyncio.run(both())
  np.testing.assert_array_equal(got.frames, pool.frames_sync(clip, [3.0], *PIXELS).frames)
  assert (info.duration, info.fps, info.num_frames) == (32.0, 4.0, 128) and info == pool.probe_sync(
    clip
  )


def test_many_requests_at_once_get_each_their_own_frames(pool, clip):
  async def one(i):
    got = await pool.frames(clip, [i / 4, (i + 40) / 4], *PIXELS)
    return [clips.read_count(frame) for frame in got.frames]

  async def many():
    return await asyncio.gather(*[one(i) for i in range(80)])

  assert asyncio.run(many()) == [[i, i + 40] for i in range(80)]


def test_decord_gives_the_same_frames(clip):
  with DecodePool(1, 20.0, 'decord') as pool:
    got = pool.frames_sync(clip, [20.3, 0.0, 7.25], *PIXELS)
  assert [clips.read_count(frame) for frame in got.frames] == [81, 0, 29]


def test_decord_says_once_what_it_is_known_to_get_wrong(clip, caplog):
  with DecodePool(1, 20.0, 'decord') as pool:
    pool.probe_sync(str(clip))
    pool.probe_sync(str(clip))
  (warning,) = [record.message for record in caplog.records if record.levelname == 'WARNING']
  for known in ('transport streams', 'AVI', 'VP8 and VP9', 'edit list', '84 of 351'):
    assert known in warning
  assert '\n' not in warning
  with DecodePool(1, 20.0, 'pyav'):
    assert len(caplog.records) == 1


def test_a_file_that_hangs_is_a_timeout_within_its_deadline_and_the_pool_goes_on(fifo, clip):
  with DecodePool(1, 2.0, 'pyav') as pool:
    pool.frames_sync(clip, [1.0], *PIXELS)
    hung = _pids(pool)[0]
    with pytest.raises(MediaError, match=r'wanted one within 2\.0 s') as error:
      pool.frames_sync(fifo, [1.0], *PIXELS)
    assert error.value.reason == 'timeout'
    patience.until(lambda: _gone(hung))
    assert clips.read_count(pool.frames_sync(clip, [1.0], *PIXELS).frames[0]) == 4
    assert pool.counts['timeout'] == 1


def test_more_hanging_files_than_workers_do_not_block_the_loop_or_the_pool(fifo, clip):
  async def run(pool):
    ticks = 0

    async def tick():
      nonlocal ticks
      while True:
        ticks += 1
        await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    requests = [pool.frames(path, [1.0], *PIXELS) for path in [fifo] * 3 + [clip]]
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    ticking.cancel()
    return outcomes, ticks

  with DecodePool(2, 2.0, 'pyav') as pool:
    pool.probe_sync(clip)
    outcomes, ticks = asyncio.run(run(pool))
  assert [getattr(outcome, 'reason', 'frames') for outcome in outcomes] == ['timeout'] * 3 + [
    'frames'
  ]
  assert ticks > 15


def test_workers_that_are_killed_while_idle_cost_no_request(clip):
  with DecodePool(3, patience.seconds(5.0), 'pyav') as pool:
    for _ in range(2):
      for pid in _pids(pool):
        os.kill(pid, signal.SIGKILL)
      for _ in range(6):
        assert pool.probe_sync(clip).num_frames == 128
    assert not pool.counts['crashed']


def test_workers_are_replaced_after_many_requests_and_none_of_these_is_lost(clip, monkeypatch):
  monkeypatch.setattr(decode, '_REQUESTS', 3)
  with DecodePool(2, 60.0, 'pyav') as pool:
    first = set(_pids(pool))
    found = [pool.frames_sync(clip, [1.0], 32 * 32, 64 * 64).frames for _ in range(6)]
    patience.until(lambda: all(map(_gone, first)))
    assert not first & set(_pids(pool)) and len(_pids(pool)) == 2
    found.append(pool.frames_sync(clip, [1.0], 32 * 32, 64 * 64).frames)
    assert pool.counts == {'requests': 7, 'frames': 7}
  assert all((frames == found[0]).all() for frames in found)


@pytest.fixture
def dying(tmp_path, monkeypatch):
  """`dying(times, when)`: of the workers started from now on, `times` kill themselves with a request
  whose path contains `when`, or at their start for '<start>'. Returns what counts them.
  """
  dead = tmp_path / 'dead'
  dead.write_text('')

  def make(times, when):
    program = f"""
import os, pathlib, signal, sys
from paravt_jax.video import worker
dead, answer = pathlib.Path({str(dead)!r}), worker.answer
def die(path):
  if {when!r} in path and len(dead.read_text()) < {times}:
    with dead.open('a') as file:
      file.write('x')
    os.kill(os.getpid(), signal.SIGKILL)
worker.answer = lambda files, request: die(request[1]) or answer(files, request)
die('<start>')
worker.main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
"""
    monkeypatch.setattr(decode, '_PROGRAM', program)
    return lambda: len(dead.read_text())

  return make


@pytest.mark.parametrize(('times', 'when'), [(decode._DEATHS - 1, 'a.mp4'), (8, '<start>')])
def test_the_request_of_workers_that_are_killed_is_made_again(clip, dying, times, when):
  died = dying(times, when)
  with DecodePool(1, patience.seconds(20.0), 'pyav') as pool:
    got = pool.frames_sync(clip, [20.3, 7.25], *PIXELS)
    assert [clips.read_count(frame) for frame in got.frames] == [81, 29]
    assert died() == times == pool.counts['retried'] and not pool.counts['crashed']


@pytest.mark.parametrize(('when', 'most'), [('a.mp4', decode._DEATHS), ('<start>', decode._STARTS)])
def test_a_request_whose_workers_all_die_is_a_crash(clip, tmp_path, dying, when, most):
  other = shutil.copy(clip, tmp_path / 'other.mp4')
  died = dying(most, when)
  with DecodePool(1, patience.seconds(20.0), 'pyav') as pool:
    with pytest.raises(MediaError, match='ended with code -9') as error:
      pool.probe_sync(clip)
    assert error.value.reason == 'crashed'
    assert (pool.counts['retried'], pool.counts['crashed'], died()) == (most - 1, 1, most)
    assert pool.probe_sync(other).num_frames == 128
    assert pool.counts['retried'] == most - 1


def test_workers_that_die_slowly_share_one_deadline(clip, monkeypatch):
  limit = patience.seconds(3.0)
  monkeypatch.setattr(
    decode,
    '_PROGRAM',
    'import os, sys, time; from paravt_jax.video import worker; '
    f'worker.answer = lambda *_: (time.sleep({limit * 2 / 3}), os._exit(3)); '
    'worker.main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))',
  )
  with DecodePool(1, limit, 'pyav') as pool:
    with pytest.raises(MediaError, match='no answer after'):
      pool.probe_sync(clip)
    assert pool.counts['retried'] == 1


@pytest.mark.parametrize(
  ('make', 'reason'),
  [
    (lambda path: None, 'missing'),
    (lambda path: path.write_bytes(b''), 'not_video'),
    (lambda path: path.write_text('text ' * 99), 'not_video'),
  ],
)
def test_bad_files_are_typed_counted_and_leave_the_worker_alive(pool, tmp_path, make, reason):
  path = tmp_path / 'bad.mp4'
  make(path)
  before, counted = sorted(_pids(pool)), pool.counts[reason]
  with pytest.raises(MediaError, match=r'bad\.mp4') as error:
    pool.frames_sync(str(path), [0.0], *PIXELS)
  assert error.value.reason == reason
  assert pool.counts[reason] == counted + 1
  assert sorted(_pids(pool)) == before


def test_a_file_that_was_replaced_is_opened_anew(pool, tmp_path):
  path = tmp_path / 'b.mp4'
  for first in (3, 500):
    clips.make_clip(
      path, 1, 4, SIZE, lambda i, first=first: clips.counting_frame(first + i, SIZE), 8
    )
    for _ in range(4):  # both workers
      assert clips.read_count(pool.frames_sync(str(path), [0.0], *PIXELS).frames[0]) == first


@pytest.mark.parametrize('seconds', [[], [float('nan')]])
def test_no_times_are_refused(pool, clip, seconds):
  with pytest.raises(ValueError, match='wanted one or more finite seconds'):
    pool.frames_sync(clip, seconds, *PIXELS)


@pytest.mark.parametrize('changes', [{'backend': 'torchcodec'}, {'workers': 0}, {'deadline_s': 0}])
def test_knobs_without_sense_are_refused(changes):
  with pytest.raises(ConfigError, match='wanted'):
    DecodePool(**{'workers': 1, 'deadline_s': 1.0, 'backend': 'pyav', **changes})


def test_closing_ends_the_workers_and_fails_what_is_under_way(fifo):
  async def run():
    pool = DecodePool(1, 30.0, 'pyav')
    pids = _pids(pool)
    waiting = asyncio.create_task(pool.probe(fifo))
    await asyncio.sleep(1.0)
    pool.close()
    with pytest.raises(MediaError, match='closed'):
      await waiting
    return pids

  for pid in asyncio.run(run()):
    patience.until(lambda pid=pid: _gone(pid), 'a worker that was to end')


@pytest.mark.parametrize('hanging', [False, True])
def test_workers_end_when_their_parent_is_killed(tmp_path, fifo, clip, hanging):
  """Even one that hangs in a system call: its own alarm ends it, a little after the deadline."""
  program = (
    f'import threading, time\nfrom paravt_jax.video.decode import DecodePool\n'
    f'pool = DecodePool(2, 1.0, "pyav")\npool.probe_sync({clip!r}); pool.probe_sync({clip!r})\n'
    f'for _ in range({2 * hanging}): threading.Thread(target=pool.probe_sync, '
    f'args=({fifo!r},), daemon=True).start()\n'
    f'time.sleep(.3)\n'
    f'print(*[w.process.pid for w in pool._workers], flush=True)\ntime.sleep(60)\n'
  )
  parent = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
  pids = [int(pid) for pid in parent.stdout.readline().split()]
  parent.kill()
  parent.wait()
  assert len(pids) == 2
  for pid in pids:
    patience.until(lambda pid=pid: _gone(pid), 'a worker that was to end')


def slides(path):
  """Frames 0..7 at 4 frames/s from 0 to 1.75 s, 8 at 10 s, 9 at 20 s, then 10..17 at 4 frames/s
  from 30 s on.
  """
  pts = [*range(8), 40, 80, *range(120, 128)]
  return str(
    clips.make_clip(
      path,
      18 / 4,
      4,
      (64, 64),
      lambda i: clips.counting_frame(i, (64, 64)),
      4,
      pts=pts,
      options={'bf': '0'},
    )
  )


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_a_frame_that_stays_on_screen_carries_the_time_looked_at_and_tells_its_own(
  backend, tmp_path
):
  with DecodePool(1, 20.0, backend) as pool:
    got = pool.frames_sync(slides(tmp_path / 'a.mp4'), [5.0, 0.3, 12.0, 29.0, 1.9, 10.0], *PIXELS)
  assert [clips.read_count(frame) for frame in got.frames] == [7, 1, 8, 9, 7, 8]
  np.testing.assert_allclose(got.own, [1.75, 0.25, 10, 20, 1.75, 10], atol=1e-3)
  np.testing.assert_allclose(got.seconds, [5, 0.25, 12, 29, 1.75, 10], atol=1e-3)


def test_a_label_lies_inside_the_video_however_late_the_time_asked_for(pool, tmp_path):
  got = pool.frames_sync(slides(tmp_path / 'a.mp4'), [-3.0, 500.0], *PIXELS)
  assert got.seconds[0] == 0.0 and 30.0 <= got.seconds[1] <= got.duration


def test_labels_lead_back_to_the_same_frames(pool, tmp_path):
  path = slides(tmp_path / 'a.mp4')
  first = pool.frames_sync(path, [5.0, 0.3, 12.0, 29.0], *PIXELS)
  again = pool.frames_sync(path, first.seconds, *PIXELS)
  assert (
    again.own.tolist() == first.own.tolist() and again.seconds.tolist() == first.seconds.tolist()
  )


def test_an_overview_of_few_slides_shows_each_of_them_once(pool, tmp_path):
  path = slides(tmp_path / 'a.mp4')
  info = pool.probe_sync(path)
  times = sampling.overview_times(info.duration, 64, info.fps)
  got, repeated = sampling.once(pool.frames_sync(path, times, *PIXELS), times)
  shown = [clips.read_count(frame) for frame in got.frames]
  assert {7, 8, 9} <= set(shown) and len(shown) == len(set(shown)) == 64 - repeated


def test_a_worker_that_answers_with_a_pickle_is_a_crash_and_runs_nothing(
  tmp_path, clip, monkeypatch
):
  """A file that takes a decoder over gets no further: its bytes are read as plain values."""
  ran = tmp_path / 'ran'
  code = (
    'import os, sys\nfrom multiprocessing.connection import Connection\n'
    'class Evil:\n  def __reduce__(self):\n'
    f'    return os.mkdir, ({str(ran)!r},)\n'
    'to = Connection(int(sys.argv[1]))\nto.send(("ready",))\nto.recv_bytes()\nto.send(Evil())\n'
    'to.recv_bytes()'
  )
  monkeypatch.setattr(decode, '_PROGRAM', code)
  with DecodePool(1, patience.seconds(30.0), 'pyav') as pool, pytest.raises(MediaError) as error:
    pool.probe_sync(clip)
  assert error.value.reason == 'crashed' and not ran.exists()

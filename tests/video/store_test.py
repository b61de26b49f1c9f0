"""Frames are decoded once: in memory, in the folder, and among concurrent requests; a full disk
costs no run.
"""

import asyncio
import errno
import fcntl
import os
import shutil

import numpy as np
import pytest

from paravt_jax.errors import MediaError
from paravt_jax.testing import clips
from paravt_jax.video import store as store_module
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore

SIZE = (32, 32)
PIXELS = (1024, 50176)
FRAME_BYTES = 32 * 32 * 3


@pytest.fixture(scope='module')
def pool():
  with DecodePool(1, 20.0, 'pyav') as pool:
    yield pool


@pytest.fixture
def clip(tmp_path):
  return str(
    clips.make_clip(tmp_path / 'a.mp4', 8, 4, SIZE, lambda i: clips.counting_frame(i, SIZE), 8)
  )


def _get(store, path, *many):
  async def run():
    return await asyncio.gather(*[store.frames(path, seconds, *PIXELS) for seconds in many])

  return asyncio.run(run())


def test_the_same_request_is_decoded_once_and_shared_while_it_runs(pool, clip):
  store = FrameStore(None, pool, 1 << 20)
  got = _get(store, clip, [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
  assert all(other is got[0] for other in got)
  assert store.counts == {'decoded': 1, 'shared': 2}
  assert _get(store, clip, [1.0, 2.0])[0] is got[0]
  assert store.counts['memory'] == 1
  assert [clips.read_count(frame) for frame in got[0].frames] == [4, 8]


def test_other_seconds_pixels_or_bytes_of_the_file_are_other_frames(pool, clip):
  store = FrameStore(None, pool, 1 << 20)
  assert _get(store, clip, [1.0])[0].frames.shape == (1, 32, 32, 3)
  assert asyncio.run(store.frames(clip, [1.0], 64 * 64, 50176)).frames.shape == (1, 64, 64, 3)
  clips.make_clip(clip, 9, 4, SIZE, lambda i: clips.counting_frame(i + 700, SIZE), 8)
  (got,) = _get(store, clip, [1.0])
  assert (clips.read_count(got.frames[0]), got.duration) == (704, 9.0)
  assert store.counts == {'decoded': 3}


def test_shared_frames_cannot_be_written_to(pool, clip):
  (got,) = _get(FrameStore(None, pool, 1 << 20), clip, [1.0])
  with pytest.raises(ValueError, match='read-only'):
    got.frames[0, 0, 0, 0] = 1


def test_memory_holds_at_most_its_bytes_and_the_least_recently_used_leave(pool, clip):
  store = FrameStore(None, pool, 2 * FRAME_BYTES)
  for seconds in ([1.0], [2.0], [1.0], [3.0], [1.0], [2.0]):
    _get(store, clip, seconds)
  assert store.counts == {'decoded': 4, 'memory': 2}
  _get(store, clip, [1.0, 2.0, 3.0])
  _get(store, clip, [1.0, 2.0, 3.0])  # larger than the memory: never kept
  assert store.counts['decoded'] == 6


def test_a_folder_serves_another_store_without_decoding(pool, clip, tmp_path):
  first, second = (FrameStore(tmp_path / 'frames', pool, 1 << 20) for _ in range(2))
  (want,) = _get(first, clip, [1.0, 2.0])
  (got,) = _get(second, clip, [1.0, 2.0])
  assert (first.counts, second.counts) == ({'decoded': 1}, {'disk': 1})
  np.testing.assert_array_equal(got.frames, want.frames)
  assert (got.seconds.tolist(), got.duration) == (want.seconds.tolist(), want.duration)


def test_a_damaged_file_in_the_folder_is_decoded_again_and_mended(pool, clip, tmp_path):
  folder = tmp_path / 'frames'
  _get(FrameStore(folder, pool, 1 << 20), clip, [1.0])
  (file,) = folder.rglob('*.npz')
  file.write_bytes(file.read_bytes()[:100])
  store = FrameStore(folder, pool, 1 << 20)
  _get(store, clip, [1.0])
  assert store.counts == {'disk_unreadable': 1, 'decoded': 1}
  again = FrameStore(folder, pool, 1 << 20)
  _get(again, clip, [1.0])
  assert again.counts == {'disk': 1}


def test_a_full_disk_is_one_clear_warning_counted_and_leaves_no_half_file(
  pool, clip, tmp_path, monkeypatch, caplog
):
  def full(file, **arrays):
    file.write(b'half')
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(store_module.np, 'savez', full)
  store = FrameStore(tmp_path / 'frames', pool, 1 << 20)
  got = _get(store, clip, [1.0], [2.0])
  assert [clips.read_count(clip.frames[0]) for clip in got] == [4, 8]
  assert store.counts == {'decoded': 2, 'disk_write_failed': 2}
  assert len(caplog.records) == 1
  assert 'No space left on device' in caplog.text and 'video.cache_folder' in caplog.text
  assert [path for path in (tmp_path / 'frames').rglob('*') if path.is_file()] == []


def test_errors_reach_every_caller_and_are_not_kept(pool, tmp_path, clip):
  path = str(tmp_path / 'later.mp4')
  with open(path, 'w') as file:
    file.write('not yet')
  store = FrameStore(None, pool, 1 << 20)

  async def both():
    return await asyncio.gather(
      *[store.frames(path, [1.0], *PIXELS) for _ in range(2)], return_exceptions=True
    )

  assert [error.reason for error in asyncio.run(both())] == ['not_video', 'not_video']
  os.replace(clip, path)
  assert clips.read_count(_get(store, path, [1.0])[0].frames[0]) == 4
  with pytest.raises(MediaError) as error:
    asyncio.run(store.frames(str(tmp_path / 'none.mp4'), [1.0], *PIXELS))
  assert error.value.reason == 'missing'


def test_a_caller_that_gives_up_does_not_take_the_frames_from_the_others(pool, clip):
  async def run():
    store = FrameStore(None, pool, 1 << 20)
    first, second = (asyncio.create_task(store.frames(clip, [1.0], *PIXELS)) for _ in range(2))
    while not store._running:
      await asyncio.sleep(0)
    first.cancel()
    return clips.read_count((await second).frames[0])

  assert asyncio.run(run()) == 4


def test_a_file_is_probed_once(pool, clip):
  store = FrameStore(None, pool, 1 << 20)
  before = pool.counts['requests']
  assert asyncio.run(store.probe(clip)) == asyncio.run(store.probe(clip)) == store.probe_sync(clip)
  assert pool.counts['requests'] == before + 1


def test_the_sync_twin_shares_memory_and_folder(pool, clip, tmp_path):
  store = FrameStore(tmp_path / 'frames', pool, 1 << 20)
  got = store.frames_sync(clip, [1.0], *PIXELS)
  assert _get(store, clip, [1.0])[0] is got
  other = FrameStore(tmp_path / 'frames', pool, 1 << 20)
  other.frames_sync(clip, [1.0], *PIXELS)
  assert other.counts == {'disk': 1}


FILE_BYTES = 2 * FRAME_BYTES + 900  # of two frames in the folder, about


def _held(folder):
  """The seconds of the clips in a folder."""
  return {tuple(np.load(file)['seconds'].tolist()) for file in folder.rglob('*.npz')}


def _ages(folder, *order):
  """Makes the files' times of last use follow `order`, first the one that was used least
  recently.
  """
  files = {tuple(np.load(file)['seconds'].tolist()): file for file in folder.rglob('*.npz')}
  for age, seconds in enumerate(order):
    os.utime(files[seconds], (age, age))


def test_the_folder_holds_at_most_its_bytes_and_the_least_recently_used_of_earlier_runs_leave(
  pool, clip, tmp_path
):
  folder = tmp_path / 'frames'
  store = FrameStore(folder, pool, 0, 4 * FILE_BYTES)
  for second in (1.0, 2.0, 3.0):
    store.frames_sync(clip, [second, second + 0.25], *PIXELS)
  _ages(folder, (2.0, 2.25), (1.0, 1.25), (3.0, 3.25))
  store.frames_sync(clip, [2.0, 2.25], *PIXELS)  # read: used last of all
  for second in (4.0, 5.0):
    store.frames_sync(clip, [second, second + 0.25], *PIXELS)
  assert (1.0, 1.25) not in _held(folder) and {(2.0, 2.25), (5.0, 5.25)} <= _held(folder)
  assert sum(file.stat().st_size for file in folder.rglob('*.npz')) <= 4 * FILE_BYTES
  assert (
    store.counts['disk_dropped'] >= 1 and store.counts['decoded'] == 5 and store.counts['disk'] == 1
  )


def test_what_this_run_uses_stays_and_is_found_again_in_every_epoch_when_the_corpus_is_larger_than_the_folder(
  pool, clip, tmp_path
):
  store = FrameStore(tmp_path / 'frames', pool, 0, 4 * FILE_BYTES)
  found = []
  for _ in range(3):
    before = store.counts['disk']
    for second in range(8):
      store.frames_sync(clip, [second, second + 0.25], *PIXELS)
    found.append(store.counts['disk'] - before)
  held = len(_held(tmp_path / 'frames'))
  assert 3 <= held <= 4 and found == [0, held, held]
  assert (store.counts['disk_dropped'], store.counts['disk_full']) == (0, 3 * (8 - held))


def test_stores_that_share_a_folder_stay_within_its_bytes_together(pool, clip, tmp_path):
  stores = [FrameStore(tmp_path / 'frames', pool, 0, 6 * FILE_BYTES) for _ in range(3)]
  for turn in range(24):
    stores[turn % 3].frames_sync(clip, [turn * 0.25, turn * 0.25 + 0.25], *PIXELS)
    assert (
      sum(file.stat().st_size for file in (tmp_path / 'frames').rglob('*.npz')) <= 6 * FILE_BYTES
    )
  assert sum(store.counts['disk_full'] for store in stores) >= 18
  assert sum(store.counts['disk_write_failed'] for store in stores) == 0


def test_a_clip_larger_than_the_folder_may_be_is_decoded_and_not_written(pool, clip, tmp_path):
  store = FrameStore(tmp_path / 'frames', pool, 0, FRAME_BYTES)
  assert len(store.frames_sync(clip, [1.0, 2.0], *PIXELS).frames) == 2
  assert not list(tmp_path.rglob('*.npz')) and store.counts == {'decoded': 1}


def test_without_a_bound_nothing_leaves(pool, clip, tmp_path):
  store = FrameStore(tmp_path / 'frames', pool, 0)
  for second in range(6):
    store.frames_sync(clip, [float(second)], *PIXELS)
  assert len(_held(tmp_path / 'frames')) == 6 and store.counts == {'decoded': 6}


@pytest.mark.parametrize('bound', [None, 1 << 20])
def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_is_not(
  pool, clip, tmp_path, bound
):
  folder = tmp_path / 'frames' / '00'
  folder.mkdir(parents=True)
  left, written = folder / 'a.part', folder / 'b.part'
  left.write_bytes(b'half')
  os.utime(left, (1, 1))
  with written.open('wb') as writer:
    fcntl.flock(writer, fcntl.LOCK_EX)
    FrameStore(tmp_path / 'frames', pool, 0, bound).frames_sync(clip, [1.0], *PIXELS)
    assert written.exists() and not left.exists()


def test_a_disk_that_is_nearly_full_is_left_to_others(pool, clip, tmp_path, monkeypatch):
  store = FrameStore(tmp_path / 'frames', pool, 0)
  disk = shutil.disk_usage(tmp_path)
  for free, files in (
    (1 << 20, 0),
    (1 << 30, 1),
  ):  # of a disk of 4 GiB: a twentieth of it stays free
    monkeypatch.setattr(
      store_module.shutil,
      'disk_usage',
      lambda _, free=free: disk._replace(total=4 << 30, free=free),
    )
    assert len(store.frames_sync(clip, [1.0], *PIXELS).frames) == 1
    assert len(list(tmp_path.rglob('*.npz'))) == files
  assert (store.counts['disk_full'], store.counts['decoded']) == (1, 2)


def test_the_frames_own_times_come_back_from_the_folder(pool, tmp_path):
  pts = [*range(8), *range(80, 88)]
  path = str(
    clips.make_clip(
      tmp_path / 'slide.mp4',
      4,
      4,
      (64, 64),
      lambda i: clips.counting_frame(i, (64, 64)),
      4,
      pts=pts,
      options={'bf': '0'},
    )
  )
  first = FrameStore(tmp_path / 'frames', pool, 0).frames_sync(path, [1.1, 5.0], *PIXELS)
  store = FrameStore(tmp_path / 'frames', pool, 0)
  again = store.frames_sync(path, [1.1, 5.0], *PIXELS)
  assert store.counts['disk'] == 1 and again.own.tolist() == first.own.tolist() == [1.0, 1.75]
  assert again.seconds.tolist() == first.seconds.tolist() == [1.0, 5.0]
  assert not again.own.flags.writeable

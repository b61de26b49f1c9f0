"""Frames are decoded once: in memory, in the folder, and among concurrent requests; a full disk costs no run."""

import asyncio
import errno
import os

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
  return str(clips.make_clip(tmp_path / 'a.mp4', 8, 4, SIZE, lambda i: clips.counting_frame(i, SIZE), 8))


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
  got, = _get(store, clip, [1.0])
  assert (clips.read_count(got.frames[0]), got.duration) == (704, 9.0)
  assert store.counts == {'decoded': 3}


def test_shared_frames_cannot_be_written_to(pool, clip):
  got, = _get(FrameStore(None, pool, 1 << 20), clip, [1.0])
  with pytest.raises(ValueError, match='read-only'):
    got.frames[0, 0, 0, 0] = 1


def test_memory_holds_at_most_its_bytes_and_the_least_recently_used_leave(pool, clip):
  store = FrameStore(None, pool, 2 * FRAME_BYTES)
  for seconds in ([1.0], [2.0], [1.0], [3.0], [1.0], [2.0]):
    _get(store, clip, seconds)
  assert store.counts == {'decoded': 4, 'memory': 2}
  _get(store, clip, [1.0, 2.0, 3.0])
  _get(store, clip, [1.0, 2.0, 3.0])                                  # larger than the memory: never kept
  assert store.counts['decoded'] == 6


def test_a_folder_serves_another_store_without_decoding(pool, clip, tmp_path):
  first, second = (FrameStore(tmp_path / 'frames', pool, 1 << 20) for _ in range(2))
  want, = _get(first, clip, [1.0, 2.0])
  got, = _get(second, clip, [1.0, 2.0])
  assert (first.counts, second.counts) == ({'decoded': 1}, {'disk': 1})
  np.testing.assert_array_equal(got.frames, want.frames)
  assert (got.seconds.tolist(), got.duration) == (want.seconds.tolist(), want.duration)


def test_a_damaged_file_in_the_folder_is_decoded_again_and_mended(pool, clip, tmp_path):
  folder = tmp_path / 'frames'
  _get(FrameStore(folder, pool, 1 << 20), clip, [1.0])
  file, = folder.rglob('*.npz')
  file.write_bytes(file.read_bytes()[:100])
  store = FrameStore(folder, pool, 1 << 20)
  _get(store, clip, [1.0])
  assert store.counts == {'disk_unreadable': 1, 'decoded': 1}
  again = FrameStore(folder, pool, 1 << 20)
  _get(again, clip, [1.0])
  assert again.counts == {'disk': 1}


def test_a_full_disk_is_one_clear_warning_counted_and_leaves_no_half_file(pool, clip, tmp_path, monkeypatch, caplog):
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
    return await asyncio.gather(*[store.frames(path, [1.0], *PIXELS) for _ in range(2)], return_exceptions=True)
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

"""Which frame is shown at a time, and what a broken file becomes. Frames spell their own number, so a wrong one is seen."""

import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from paravt_jax.errors import MediaError
from paravt_jax.testing import clips
from paravt_jax.video import readers

SIZE = (64, 96)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('clips')


def _clip(folder, name, **changes):
  options = {'seconds': 10, 'fps': 10, 'size': SIZE, 'frames_fn': lambda i: clips.counting_frame(i, SIZE), 'gop': 25} | changes
  path = folder / name
  return str(path if path.exists() else clips.make_clip(path, **options))


def _read(reader, times):
  out = sorted(reader.read(times), key=lambda item: item[0])
  return [clips.read_count(image) for _, _, image in out], [seconds for _, seconds, _ in out]


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_the_header_is_told(folder, backend):
  info = readers.READERS[backend](_clip(folder, 'plain.mp4')).info
  assert (info.num_frames, info.width, info.height) == (100, 96, 64)
  assert (info.duration, info.fps) == (pytest.approx(10), pytest.approx(10))


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
@pytest.mark.parametrize('gop', [1, 8, 250])
def test_the_frame_is_the_last_one_shown_at_or_before_the_time(folder, backend, gop):
  reader = readers.READERS[backend](_clip(folder, f'gop{gop}.mp4', gop=gop))
  times = [0, .05, .1, 3.14, 3.2, 3.29, 7.7, 9.95]
  assert _read(reader, times)[0] == [0, 0, 1, 31, 32, 32, 77, 99]


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_every_frame_of_its_own_time_is_itself_in_any_order_and_twice(folder, backend):
  reader = readers.READERS[backend](_clip(folder, 'plain.mp4'))
  order = np.random.default_rng(0).permutation(100).tolist() + [5, 5]
  counts, seconds = _read(reader, [i / 10 for i in order])
  assert counts == order
  np.testing.assert_allclose(seconds, np.asarray(order) / 10, atol=1e-4)


def test_without_the_shortcut_over_cheap_key_frames_the_frames_are_the_same(folder, monkeypatch):
  reader = readers.PyavReader(_clip(folder, 'gop8.mp4', gop=8))
  times = np.random.default_rng(0).uniform(0, 10, 40)
  with_it = _read(reader, times)
  assert len(reader._runs([round(t * 10 / reader._base / 10) for t in times])) < 10
  monkeypatch.setattr(readers, '_SEEK_PIXELS', -1)
  assert _read(reader, times) == with_it
  assert with_it[0] == [int(t * 10) for t in times]


def test_nothing_before_the_key_frame_or_after_the_frame_is_read(folder):
  reader = readers.PyavReader(_clip(folder, 'fixed.mp4', options={'sc_threshold': '0'}))
  target = reader._start + round(6.0 / reader._base)
  packets = reader._from(reader._key(target - reader._delay), target)
  assert packets[0].is_keyframe and packets[0].pts == reader._start + round(5.0 / reader._base)
  assert len(packets) <= 16


def test_times_outside_the_video_are_its_first_and_last_frame(folder):
  assert _read(readers.PyavReader(_clip(folder, 'plain.mp4')), [-3, 10.0, 99])[0] == [0, 99, 99]


def test_at_a_variable_frame_rate_a_frame_is_shown_until_the_next(folder):
  pts = [0, 1, 2, 3, 20, 21, 40, 60, 61, 62]
  reader = readers.PyavReader(_clip(folder, 'variable.mp4', seconds=1, pts=pts))
  counts, seconds = _read(reader, [.25, 1.5, 2.0, 3.9, 4.0, 5.9, 6.15])
  assert counts == [2, 3, 4, 5, 6, 6, 8]
  np.testing.assert_allclose(seconds, [.2, .3, 2.0, 2.1, 4.0, 4.0, 6.1], atol=1e-6)


def test_seconds_count_from_the_streams_own_start(folder):
  reader = readers.PyavReader(_clip(folder, 'late.mp4', pts=[30 + i for i in range(100)]))
  assert _read(reader, [0, .1, 5.0]) == ([0, 1, 50], pytest.approx([0, .1, 5.0]))


def _encode(path, codec, count=100, options=None, codec_options=None):
  with av.open(str(path), 'w', options=options or {}) as out:
    stream = out.add_stream(codec, rate=10, options=codec_options or {})
    stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
    for i in range(count):
      out.mux(stream.encode(av.VideoFrame.from_ndarray(clips.counting_frame(i, SIZE), format='rgb24')))
    out.mux(stream.encode(None))
  return path


@pytest.mark.parametrize(('name', 'codec'), [('a.mkv', 'libx264'), ('a.ts', 'libx264'), ('a.mov', 'libx264'),
                                             ('a.avi', 'mpeg4'), ('a.webm', 'libvpx-vp9')])
def test_other_containers_are_read_too(folder, name, codec):
  reader = readers.PyavReader(str(_encode(folder / name, codec, 40)))
  assert (reader.info.num_frames, reader.info.duration) == (40, pytest.approx(4, abs=.11))
  assert _read(reader, [0, 1.55, 3.85])[0] == [0, 15, 38]


def test_an_avi_without_presentation_times_is_refused_rather_than_read_wrongly(folder):
  path = str(_encode(folder / 'order.avi', 'libx264', 40))
  with pytest.raises(MediaError, match='remux it to mp4'):
    readers.PyavReader(path)


def test_a_rotated_recording_comes_upright(folder):
  path = str(folder / 'rotated.mp4')
  with av.open(path, 'w') as out:
    stream = out.add_stream('libx264', rate=10)
    stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
    stream.set_display_rotation(90)
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, 48:] = 255
    for _ in range(3):
      out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    out.mux(stream.encode(None))
  (_, _, got), = readers.PyavReader(path).read([0])
  assert got.shape == (96, 64, 3)
  assert {round(got[:40].mean(), -2), round(got[56:].mean(), -2)} == {0, 300}


def _bytes(folder, name, data):
  (folder / name).write_bytes(data)
  return str(folder / name)


def _audio(folder):
  path = str(folder / 'sound.mp4')
  with av.open(path, 'w') as out:
    stream = out.add_stream('aac', rate=16000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format='fltp', layout='mono')
    frame.sample_rate = 16000
    out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return path


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_what_is_no_video_is_a_media_error_with_a_reason(folder, backend):
  head = pathlib.Path(_clip(folder, 'plain.mp4')).read_bytes()[:3000]                    # its index comes last
  files = {
      'missing': [str(folder / 'none.mp4')],
      'not_video': [_bytes(folder, 'empty.mp4', b''), _bytes(folder, 'text.mp4', b'no video\n' * 99), str(folder),
                    _audio(folder), _bytes(folder, 'head.mp4', head)],
  }
  for reason, paths in files.items():
    for path in paths:
      with pytest.raises(MediaError, match='wanted') as error:
        readers.READERS[backend](path)
      assert (error.value.reason, path in str(error.value)) == (reason, True)


def test_a_playlist_under_a_videos_name_is_not_followed(folder):
  other = _clip(folder, 'plain.mp4')
  text = f'#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{other}\n#EXT-X-ENDLIST\n'
  for data in (text, f"ffconcat version 1.0\nfile '{other}'\n"):
    with pytest.raises(MediaError, match='wanted a video'):
      readers.PyavReader(_bytes(folder, 'list.mp4', data.encode()))


def _front_header(folder):
  """A clip whose header comes first, so that cutting its end leaves a file that opens."""
  path = folder / 'front.mp4'
  return path if path.exists() else _encode(path, 'libx264', 100, {'movflags': 'faststart'}, {'g': '10'})


def test_of_a_truncated_file_what_is_there_is_read_and_what_is_not_is_an_error(folder):
  whole = _front_header(folder).read_bytes()
  reader = readers.PyavReader(_bytes(folder, 'cut.mp4', whole[:len(whole) * 8 // 10]))
  assert _read(reader, [0, 1.5, 2.0])[0] == [0, 15, 20]
  with pytest.raises(MediaError, match='fetch it again') as error:
    list(reader.read([0, 9.5]))
  assert error.value.reason == 'decode'


def test_a_header_that_promises_more_than_there_is_is_an_error_not_a_repeated_frame(folder):
  """10 s that say 1000 s, and 100 frames that say 10000: the media header, the edit list and the table of times lie."""
  data = bytearray(_front_header(folder).read_bytes())
  for box, offset in ((b'mdhd', 20), (b'elst', 12), (b'stts', 12)):
    at = data.index(box) + offset
    data[at:at + 4] = (int.from_bytes(data[at:at + 4], 'big') * 100).to_bytes(4, 'big')
  reader = readers.PyavReader(_bytes(folder, 'lying.mp4', bytes(data)))
  assert reader.info.num_frames == 100
  assert reader.info.duration == pytest.approx(1000)
  assert _read(reader, [5.0])[0] == [50]
  with pytest.raises(MediaError, match=r'ends at 10\.\d+ s, but the header promises 1000') as error:
    list(reader.read([500.0]))
  assert error.value.reason == 'decode'


def test_a_damaged_middle_never_gives_a_frame_of_another_time(folder):
  data = bytearray(_front_header(folder).read_bytes())
  middle = len(data) * 3 // 4
  data[middle:middle + 400] = bytes(400)
  reader = readers.PyavReader(_bytes(folder, 'hole.mp4', bytes(data)))
  outcomes = set()
  for i in range(100):
    try:
      (_, seconds, _), = reader.read([i / 10])
      outcomes.add(round(seconds * 10) == i)
    except MediaError as error:
      outcomes.add(error.reason)
  assert outcomes <= {True, 'decode'} and True in outcomes


def test_a_reader_imports_neither_jax_nor_torch():
  program = ('import sys; from paravt_jax.video import worker; '
             'print([name for name in ("jax", "torch", "decord", "pyarrow") if name in sys.modules])')
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'

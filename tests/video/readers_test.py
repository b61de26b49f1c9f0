"""Which frame is shown at a time, and what a broken file becomes. Frames spell their own number, so
a wrong one is seen.
"""

import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from paravt_jax.errors import MediaError
from paravt_jax.testing import clips, films
from paravt_jax.video import pyav_reader, readers

SIZE = (64, 96)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('clips')


def _clip(folder, name, **changes):
  options = {
    'seconds': 10,
    'fps': 10,
    'size': SIZE,
    'frames_fn': lambda i: clips.counting_frame(i, SIZE),
    'gop': 25,
  } | changes
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
  times = [0, 0.05, 0.1, 3.14, 3.2, 3.29, 7.7, 9.95]
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
  assert len(reader._runs([round(t / reader._base) for t in times])) < 10
  monkeypatch.setattr(pyav_reader, '_SEEK_PIXELS', -1)
  assert _read(reader, times) == with_it
  assert with_it[0] == [int(t * 10) for t in times]


def test_nothing_before_the_key_frame_and_little_after_the_frame_is_read(folder):
  reader = readers.PyavReader(_clip(folder, 'fixed.mp4', options={'sc_threshold': '0'}))
  packets = []
  demux = reader._packets
  reader._packets = lambda: (packets.append(packet) or packet for packet in demux())
  assert _read(reader, [6.0])[0] == [60]
  assert packets[0].is_keyframe and packets[0].pts == reader._start + round(5.0 / reader._base)
  assert len(packets) <= 18


def test_times_outside_the_video_are_its_first_and_last_frame(folder):
  assert _read(readers.PyavReader(_clip(folder, 'plain.mp4')), [-3, 10.0, 99])[0] == [0, 99, 99]


def test_at_a_variable_frame_rate_a_frame_is_shown_until_the_next(folder):
  pts = [0, 1, 2, 3, 20, 21, 40, 60, 61, 62]
  reader = readers.PyavReader(_clip(folder, 'variable.mp4', seconds=1, pts=pts))
  counts, seconds = _read(reader, [0.25, 1.5, 2.0, 3.9, 4.0, 5.9, 6.15])
  assert counts == [2, 3, 4, 5, 6, 6, 8]
  np.testing.assert_allclose(seconds, [0.2, 0.3, 2.0, 2.1, 4.0, 4.0, 6.1], atol=1e-6)


def test_seconds_count_from_the_streams_own_start(folder):
  reader = readers.PyavReader(_clip(folder, 'late.mp4', pts=[30 + i for i in range(100)]))
  assert _read(reader, [0, 0.1, 5.0]) == ([0, 1, 50], pytest.approx([0, 0.1, 5.0]))


def _encode(path, codec, count=100, options=None, codec_options=None, format=None, title=None):
  with av.open(str(path), 'w', format=format, options=options or {}) as out:
    if title:
      out.metadata['title'] = title
    stream = out.add_stream(codec, rate=10, options=codec_options or {})
    stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
    for i in range(count):
      out.mux(
        stream.encode(av.VideoFrame.from_ndarray(clips.counting_frame(i, SIZE), format='rgb24'))
      )
    out.mux(stream.encode(None))
  return path


@pytest.mark.parametrize(
  ('name', 'codec'),
  [
    ('a.mkv', 'libx264'),
    ('a.ts', 'libx264'),
    ('a.mov', 'libx264'),
    ('a.avi', 'mpeg4'),
    ('a.webm', 'libvpx-vp9'),
  ],
)
def test_other_containers_are_read_too(folder, name, codec):
  reader = readers.PyavReader(str(_encode(folder / name, codec, 40)))
  assert (reader.info.num_frames, reader.info.duration) == (40, pytest.approx(4, abs=0.11))
  assert _read(reader, [0, 1.55, 3.85])[0] == [0, 15, 38]


def test_an_avi_without_presentation_times_shows_frames_in_the_order_of_the_decoder(folder):
  reader = readers.PyavReader(str(_encode(folder / 'order.avi', 'libx264', 40)))
  assert _read(reader, [2.05]) == ([20], pytest.approx([2.0]))
  assert _read(reader, [3.95, 0, 1.55])[0] == [39, 0, 15]


@pytest.mark.parametrize('codec', ['libx264', 'libx265', 'mpeg4'])
def test_a_bare_stream_of_pictures_has_frames_at_its_rate(folder, codec):
  name, format = {
    'libx264': ('bare.h264', 'h264'),
    'libx265': ('bare.hevc', 'hevc'),
    'mpeg4': ('bare.m4v', 'm4v'),
  }[codec]
  path = str(_encode(folder / name, codec, 50, format=format))
  if format == 'm4v':  # not among the containers that are opened
    with pytest.raises(MediaError, match='wanted a video file'):
      readers.PyavReader(path)
    return
  reader = readers.PyavReader(path)
  count = reader.info.num_frames
  counts, times = _read(reader, [reader.info.duration * (i + 0.5) / count for i in range(count)])
  assert (count, counts) == (50, list(range(50)))
  np.testing.assert_allclose(np.diff(times), reader.interval, atol=1e-6)


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_the_interval_is_the_usual_distance_of_frames_not_the_average(folder, backend):
  pts = [i if i < 20 else i + 100 * (i - 19) for i in range(30)]
  reader = readers.READERS[backend](_clip(folder, 'slides.mp4', seconds=3, pts=pts))
  assert reader.interval == pytest.approx(0.1, abs=1e-4)


def test_of_a_video_of_one_frame_that_frame_is_shown(folder):
  for name, codec in (
    ('one.mp4', 'libx264'),
    ('one.mkv', 'libx264'),
    ('one.webm', 'libvpx-vp9'),
    ('one.avi', 'mpeg4'),
  ):
    reader = readers.PyavReader(str(_encode(folder / name, codec, 1)))
    assert reader.info.num_frames == 1 and reader.info.duration > 0 and reader.interval > 0
    assert _read(reader, [0, reader.info.duration])[0] == [0, 0]


def test_a_title_that_is_not_utf8_does_no_harm(folder):
  path = pathlib.Path(str(_encode(folder / 'title.mp4', 'libx264', 10, title='mark')))
  path.write_bytes(path.read_bytes().replace(b'mark', b'\xbb\xd8\xbb\xd8'))
  assert _read(readers.PyavReader(str(path)), [0.5])[0] == [5]


def test_a_codec_that_is_not_known_is_named_and_the_file_is_not_blamed(folder):
  path = folder / 'strange.mp4'
  path.write_bytes(
    _encode(folder / 'known.mp4', 'libx264', 10).read_bytes().replace(b'avc1', b'zzz1')
  )
  with pytest.raises(MediaError, match=r'codec .*zzz1.*convert it') as error:
    readers.PyavReader(str(path))
  assert error.value.reason == 'not_video' and 'fetch' not in str(error.value)


def test_samples_in_fragments_are_counted(folder):
  """The first samples are in `moov`, whose count is 10; the others are in fragments."""
  codec_options = {'g': '10', 'bf': '0', 'sc_threshold': '0'}
  path = str(
    _encode(folder / 'partly.mp4', 'libx264', 60, {'movflags': 'frag_keyframe'}, codec_options)
  )
  with av.open(path) as container:
    assert container.streams.video[0].frames == 10
  reader = readers.PyavReader(path)
  assert (reader.info.num_frames, reader.info.duration) == (60, pytest.approx(6))
  assert _read(reader, [3.05, 5.95, 0])[0] == [30, 59, 0]


def test_a_packet_that_the_end_of_an_edit_list_hides_is_still_decoded(folder):
  """B-frames before the cut refer to the frame behind it, which is hidden and not counted."""
  path = pathlib.Path(
    str(
      _encode(
        folder / 'end.mp4', 'libx264', 40, codec_options={'bf': '3', 'b_strategy': '0', 'g': '100'}
      )
    )
  )
  data = bytearray(path.read_bytes())
  at = data.index(b'elst') + 12
  length = int.from_bytes(data[at : at + 4], 'big')
  data[at : at + 4] = (length * 38 // 40).to_bytes(4, 'big')
  path.write_bytes(data)
  with av.open(str(path)) as container:
    right = [
      clips.read_count(frame.to_ndarray(format='rgb24')) for frame in container.decode(video=0)
    ]
    assert any(packet.is_discard for packet in av.open(str(path)).demux(video=0))
  reader = readers.PyavReader(str(path))
  assert reader.info.num_frames == len(right) == 38
  assert _read(reader, [i / 10 + 0.01 for i in range(38)])[0] == right == list(range(38))


def _marks(reader, monkeypatch, marked):
  """The decoder marks frames: `marked` is given whether the decode began at the first packet."""
  first, whole = [False], reader._from_first

  def from_first():
    first[0] = True
    return whole()

  monkeypatch.setattr(reader, '_from_first', from_first)
  monkeypatch.setattr(pyav_reader, '_is_damaged', lambda frame: marked(first[0], frame))


def test_a_frame_that_is_marked_damaged_is_read_again_from_the_first_packet(folder, monkeypatch):
  """Decoders learn from the first packets what they need later: 4:4:4 files of older x264 are
  such.
  """
  reader = readers.PyavReader(_clip(folder, 'plain.mp4'))
  _marks(reader, monkeypatch, lambda first, frame: not first)
  assert _read(reader, [7.7, 8.0])[0] == [77, 80]


def test_a_frame_that_is_marked_damaged_even_so_is_named_with_its_second(folder, monkeypatch):
  reader = readers.PyavReader(_clip(folder, 'plain.mp4'))
  _marks(
    reader, monkeypatch, lambda first, frame: frame.pts == reader._start + round(7.7 / reader._base)
  )
  assert _read(reader, [7.65, 7.8])[0] == [76, 78]
  with pytest.raises(MediaError, match=r'the frame at 7\.700 s is damaged') as error:
    list(reader.read([1.0, 7.75]))
  assert error.value.reason == 'decode' and 'fetch it again' not in str(error.value)


def test_a_stream_that_is_marked_damaged_from_its_first_frame_on_shows_what_it_shows(
  folder, monkeypatch
):
  reader = readers.PyavReader(_clip(folder, 'plain.mp4'))
  _marks(reader, monkeypatch, lambda first, frame: True)
  assert _read(reader, [7.7])[0] == [77]


def test_a_header_that_overstates_by_a_moment_is_no_damage_where_every_sample_is_there(folder):
  path = _encode(folder / 'moment.mp4', 'libx264', 40)
  data = bytearray(path.read_bytes())
  for box, offset in ((b'mdhd', 20), (b'elst', 12), (b'stts', 12)):
    at = data.index(box) + offset
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], 'big') * 47 // 40).to_bytes(4, 'big')
  path.write_bytes(data)
  reader = readers.PyavReader(str(path))
  assert reader.info.duration == pytest.approx(4.7)
  assert _read(reader, [4.65])[0] == [39]


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
  ((_, _, got),) = readers.PyavReader(path).read([0])
  assert got.shape == (96, 64, 3)
  assert {round(got[:40].mean(), -2), round(got[56:].mean(), -2)} == {0, 300}


def _bytes(folder, name, data):
  (folder / name).write_bytes(data)
  return str(folder / name)


def _audio(folder):
  path = str(folder / 'sound.mp4')
  with av.open(path, 'w') as out:
    stream = out.add_stream('aac', rate=16000)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 16000), np.float32), format='fltp', layout='mono'
    )
    frame.sample_rate = 16000
    out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return path


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_what_is_no_video_is_a_media_error_with_a_reason(folder, backend):
  head = pathlib.Path(_clip(folder, 'plain.mp4')).read_bytes()[:3000]  # its index comes last
  files = {
    'missing': [str(folder / 'none.mp4')],
    'not_video': [
      _bytes(folder, 'empty.mp4', b''),
      _bytes(folder, 'text.mp4', b'no video\n' * 99),
      str(folder),
      _audio(folder),
      _bytes(folder, 'head.mp4', head),
    ],
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
  return (
    path if path.exists() else _encode(path, 'libx264', 100, {'movflags': 'faststart'}, {'g': '10'})
  )


def test_of_a_truncated_file_what_is_there_is_read_and_what_is_not_is_an_error(folder):
  whole = _front_header(folder).read_bytes()
  reader = readers.PyavReader(_bytes(folder, 'cut.mp4', whole[: len(whole) * 8 // 10]))
  assert _read(reader, [0, 1.5, 2.0])[0] == [0, 15, 20]
  with pytest.raises(MediaError, match=r'ends at \d\.\d+ s, but the header promises 10') as error:
    list(reader.read([0, 9.5]))
  assert error.value.reason == 'decode' and 'fetch it again' not in str(error.value)


def test_a_header_that_promises_more_than_there_is_is_an_error_not_a_repeated_frame(folder):
  """10 s that say 1000 s, and 100 frames that say 10000: the media header, the edit list and the
  table of times lie.
  """
  data = bytearray(_front_header(folder).read_bytes())
  for box, offset in ((b'mdhd', 20), (b'elst', 12), (b'stts', 12)):
    at = data.index(box) + offset
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], 'big') * 100).to_bytes(4, 'big')
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
  data[middle : middle + 400] = bytes(400)
  reader = readers.PyavReader(_bytes(folder, 'hole.mp4', bytes(data)))
  outcomes = set()
  for i in range(100):
    try:
      ((_, seconds, _),) = reader.read([i / 10])
      outcomes.add(round(seconds * 10) == i)
    except MediaError as error:
      outcomes.add(error.reason)
  assert outcomes <= {True, 'decode'} and True in outcomes


def _set_time(data: bytearray, number: int, ticks: int) -> None:
  """Sets the presentation time of a packet of an MPEG transport stream, in 1/90000 s."""
  at = -1
  for _ in range(number + 1):
    at = data.index(b'\0\0\1\xe0', at + 1)
  marked = data[at + 9] & 0xF0
  data[at + 9 : at + 14] = bytes(
    [
      marked | (ticks >> 29 & 0xE) | 1,
      ticks >> 22 & 0xFF,
      (ticks >> 14 & 0xFE) | 1,
      ticks >> 7 & 0xFF,
      (ticks << 1 & 0xFE) | 1,
    ]
  )


def test_a_frame_whose_time_goes_back_is_not_shown_in_place_of_a_later_one(folder):
  path = films.write(folder / 'back.ts', 'mpeg2video', 24, format='mpegts')
  whole = readers.READERS['pyav'](str(path))
  times = [number / 24 for number in range(24)]
  own = [seconds for _, seconds, _ in whole.read(times)]
  data = bytearray(path.read_bytes())
  first = round(float(whole._start * whole._base) * 90_000)
  _set_time(data, 10, first + 90_000 // 24 * 3 + 1000)  # between the frames 3 and 4
  path.write_bytes(data)
  found = [seconds for _, seconds, _ in readers.READERS['pyav'](str(path)).read(times)]
  assert found == sorted(found) and len(set(found)) >= 20
  assert all(abs(a - b) < 2 / 24 for a, b in zip(found, own, strict=True))


def test_what_decord_cannot_read_is_a_typed_error_that_names_the_other_backend(folder, monkeypatch):
  reader = readers.DecordReader(_clip(folder, 'plain.mp4'))
  for fault in (RuntimeError, IndexError, ValueError, reader._faults[0]):

    def fail(*_, fault=fault):
      raise fault('inside\nmore')

    monkeypatch.setattr(reader._reader, 'get_batch', fail)
    with pytest.raises(
      MediaError, match=r"decord cannot read it \(inside\); video.backend='pyav' may"
    ) as error:
      list(reader.read([1.0]))
    assert error.value.reason == 'decode' and '\n' not in str(error.value)


@pytest.mark.parametrize('method', ['get_frame_timestamp', 'get_avg_fps', '__len__'])
def test_what_decord_raises_while_it_measures_is_typed_too(folder, monkeypatch, method):
  import decord

  def fail(*_):
    raise IndexError('out of range')

  monkeypatch.setattr(decord.VideoReader, method, fail)
  with pytest.raises(MediaError, match='decord cannot read it') as error:
    readers.DecordReader(_clip(folder, 'plain.mp4'))
  assert error.value.reason == 'decode'


def test_a_reader_imports_neither_jax_nor_torch():
  program = (
    'import sys; from paravt_jax.video import worker; '
    'print([name for name in ("jax", "torch", "decord", "pyarrow") if name in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'

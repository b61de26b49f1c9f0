"""Codec x container x what happens to files: every answer is what a plain decode shows."""

import pathlib
import random

import av
import numpy as np
import pytest

from paravt_jax.errors import MediaError
from paravt_jax.testing import films
from paravt_jax.video.readers import PyavReader

CONTAINERS = {
  'mp4': ('mp4', {}), 'mov': ('mov', {}), 'mkv': ('matroska', {}), 'webm': ('webm', {}), 'ts': ('mpegts', {}), 'avi': ('avi', {}),
  'fragmented': ('mp4', {'movflags': 'frag_keyframe+empty_moov+default_base_moof'}),
}  # fmt: skip
HELD_BY = {
  'libx264': ['mp4', 'mov', 'mkv', 'ts', 'avi', 'fragmented'], 'libx265': ['mp4', 'mov', 'mkv', 'ts', 'fragmented'],
  'libvpx': ['mkv', 'webm', 'avi'], 'libvpx-vp9': ['mp4', 'mkv', 'webm', 'fragmented'],
  'libsvtav1': ['mp4', 'mkv', 'webm', 'fragmented'], 'mpeg4': ['mp4', 'mov', 'mkv', 'ts', 'avi', 'fragmented'],
}  # fmt: skip
PAIRS = [(codec, container) for codec, containers in HELD_BY.items() for container in containers]
MIRRORS = {
  (-1, 0, 0, 1): lambda a: a[:, ::-1],
  (1, 0, 0, -1): lambda a: a[::-1],
  (-1, 0, 0, -1): lambda a: a[::-1, ::-1],
  (0, 1, 1, 0): lambda a: a.transpose(1, 0, 2),
  (0, 1, -1, 0): lambda a: np.rot90(a, -1),
  (0, -1, 1, 0): lambda a: np.rot90(a),
  (0, -1, -1, 0): lambda a: np.rot90(a, 2).transpose(1, 0, 2),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('matrix')


def _made(folder: pathlib.Path, codec: str, container: str, name: str, **changes) -> pathlib.Path:
  path = folder / f'{codec}-{container}-{name}.{container}'
  format, options = CONTAINERS[container]
  return (
    path
    if path.exists()
    else films.write(path, codec, format=format, container_options=options, **changes)
  )


def _plain_decode(path: pathlib.Path) -> list[tuple[float, np.ndarray]]:
  """[(seconds from the start, rgb)] of a decode of the whole file. AVI orders times by frame."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    found = [(frame.pts, frame.to_ndarray(format='rgb24')) for frame in container.decode(stream)]
    start, base, kind = stream.start_time, float(stream.time_base), container.format.name
  times = sorted(pts for pts, _ in found) if kind == 'avi' else [pts for pts, _ in found]
  first = start if start is not None and start > times[0] else times[0]
  return [((pts - first) * base, image) for pts, (_, image) in zip(times, found)]


def _check(path: pathlib.Path, turn=lambda image: image) -> list[tuple[float, np.ndarray]]:
  """Fresh readers, asked for the middle first, then for others; returns the plain decode."""
  shown = _plain_decode(path)
  duration = PyavReader(str(path)).info.duration
  some = random.Random(0)
  requests = [
    [duration / 2],
    [duration * (i + 0.5) / 6 for i in range(6)],
    [0.0],
    [some.uniform(0, duration) for _ in range(5)],
  ]
  for first in (0, 1):
    reader = PyavReader(str(path))
    for asked in requests[first:]:
      answers = list(reader.read(asked))
      assert sorted(i for i, _, _ in answers) == list(range(len(asked)))
      assert [time for _, time, _ in answers] == sorted(time for _, time, _ in answers)
      for i, time, image in answers:
        right_time, right = [frame for frame in shown if frame[0] <= asked[i] + 1e-6][-1]
        assert time == pytest.approx(right_time, abs=2e-3)
        np.testing.assert_array_equal(image, turn(right))
    reader.close()
  return shown


def _outcomes(path: pathlib.Path, right: list[tuple[float, np.ndarray]]) -> list[bool | str]:
  """For each frame of the whole file, asked of a fresh reader: is it right, or the error's
  reason.
  """
  outcomes: list[bool | str] = []
  for seconds, image in right:
    reader = PyavReader(str(path))
    try:
      ((_, _, got),) = reader.read([seconds + 1e-3])
      outcomes.append(bool((got == image).all()))
    except MediaError as error:
      outcomes.append(error.reason)
    reader.close()
  return outcomes


@pytest.mark.parametrize(('codec', 'container'), PAIRS)
def test_plain_files(folder, codec, container):
  path = _made(folder, codec, container, 'plain')
  assert len(_check(path)) == 48
  reader = PyavReader(str(path))
  assert (reader.info.num_frames, reader.info.duration) == (48, pytest.approx(2, abs=0.06))
  assert reader.info.fps == pytest.approx(24, abs=0.8)
  assert reader.interval == pytest.approx(1 / 24, abs=1e-3)


@pytest.mark.parametrize(
  ('codec', 'container'), [pair for pair in PAIRS if pair[0] in films.B_FRAMES]
)
def test_frames_stored_out_of_order_and_hidden_ones(folder, codec, container):
  path = _made(folder, codec, container, 'order', options=films.B_FRAMES[codec])
  assert len(_check(path)) == 48
  assert PyavReader(str(path)).info.num_frames == 48


@pytest.mark.parametrize(('codec', 'container'), [pair for pair in PAIRS if pair[1] != 'avi'])
def test_cut_by_copying_packets(folder, codec, container):
  """12 frames lie between two key frames; the cut lies in the middle of such a group."""
  options = films.B_FRAMES[codec] if codec in ('libx264', 'libx265') else None
  source = _made(folder, codec, container, 'order' if options else 'plain', options=options)
  format, _ = CONTAINERS[container]
  path = folder / f'cut-{codec}-{container}.{container}'
  shown = _check(films.copy_from(source, path, 0.8, format))
  info = PyavReader(str(path)).info
  assert info.num_frames == len([time for time, _ in shown if time >= 0])
  assert info.fps == pytest.approx(24, abs=1.5)


@pytest.mark.parametrize(('codec', 'container'), [pair for pair in PAIRS if pair[1] != 'avi'])
def test_a_variable_rate(folder, codec, container):
  path = _made(folder, codec, container, 'variable', pts=lambda i: i + 30 * (i // 10))
  assert len(_check(path)) == 48
  assert PyavReader(str(path)).interval == pytest.approx(1 / 24, abs=2e-3)


@pytest.mark.parametrize('container', ['mp4', 'mov'])
@pytest.mark.parametrize('matrix', list(MIRRORS))
def test_rotated_and_mirrored_recordings(folder, container, matrix):
  path = folder / f'turned{"".join(map(str, matrix))}.{container}'
  films.set_matrix(films.write(path, 'libx264', 24), matrix)
  _check(path, MIRRORS[matrix])
  info = PyavReader(str(path)).info
  assert (info.height, info.width) == ((64, 48) if matrix[1] else (48, 64))


@pytest.mark.parametrize(('codec', 'container'), [pair for pair in PAIRS if pair[1] != 'ts'])
def test_half_a_download_is_refused_or_keeps_the_length_it_claims(folder, codec, container):
  path = folder / f'half-{codec}-{container}.{container}'
  format, options = CONTAINERS[container]
  front = {'movflags': 'faststart'} if container in ('mp4', 'mov') else options
  whole = films.write(
    folder / f'front-{path.name}', codec, format=format, container_options=front
  ).read_bytes()
  # an AVI's header is long
  path.write_bytes(whole[: len(whole) * 7 // 10 if container == 'avi' else len(whole) // 2])
  if container == 'fragmented':  # its header claims nothing
    with pytest.raises(MediaError, match=r'ends inside a fragment, after .* s') as error:
      PyavReader(str(path))
    assert error.value.reason == 'decode'
    return
  reader = PyavReader(str(path))
  assert reader.info.duration == pytest.approx(2, abs=0.06)
  assert len(list(reader.read([0, 0.2]))) == 2
  with pytest.raises(MediaError, match=r' s') as error:
    list(reader.read([0.2, 1.9]))
  assert error.value.reason == 'decode' and 'fetch it again' not in str(error.value)
  # up to the break all is right, and from there on all is an error, also close behind it
  outcomes = _outcomes(path, _plain_decode(folder / f'front-{path.name}'))
  refused = outcomes.index('decode')
  assert refused > 4 and set(outcomes[:refused]) == {True} and set(outcomes[refused:]) == {'decode'}


@pytest.mark.parametrize('codec', ['libx264', 'libx265', 'mpeg4'])
@pytest.mark.parametrize('offset', [0.0, 7000.0])
def test_two_transport_streams_in_a_row_follow_each_other(folder, codec, offset):
  """The clock starts again, from a time before (or long before) where it had come to."""
  first = films.write(
    folder / f'first{offset}-{codec}.ts', codec, container_options={'initial_offset': str(offset)}
  )
  second = films.write(folder / f'second{offset}-{codec}.ts', codec, offset=60)
  joined = folder / f'joined{offset}-{codec}.ts'
  joined.write_bytes(first.read_bytes() + second.read_bytes())
  right = [image for part in (first, second) for _, image in _plain_decode(part)]
  for asked in ([3.0], [0.0, 0.5, 1.5, 2.5, 3.9]):
    reader = PyavReader(str(joined))
    assert (reader.info.num_frames, reader.info.duration) == (96, pytest.approx(4, abs=0.1))
    for i, time, image in reader.read(asked):
      assert time == pytest.approx(asked[i], abs=0.07)
      np.testing.assert_array_equal(image, right[round(time * 24)])


@pytest.mark.parametrize('codec', ['libx264', 'libx265', 'mpeg2video'])
@pytest.mark.parametrize('offset', ['0', '2.0'])
def test_no_frame_beside_a_joint_of_transport_streams_counts_as_damaged(folder, codec, offset):
  """The counters of packets break there, so that the demuxer marks a packet before the joint."""
  options = films.B_FRAMES.get(codec, {'bf': '2'})
  first = films.write(folder / f'beside-{codec}.ts', codec, options=options)
  second = films.write(
    folder / f'beside2-{codec}{offset}.ts', codec, options=options, offset=60,
    container_options={'initial_offset': offset},
  )  # fmt: skip
  joined = folder / f'besides-{codec}{offset}.ts'
  joined.write_bytes(first.read_bytes() + second.read_bytes())
  later = [(2 + seconds, image) for seconds, image in _plain_decode(second)]
  assert _outcomes(joined, _plain_decode(first) + later) == [True] * 96


def test_a_transport_stream_whose_clock_wraps_goes_on(folder):
  path = films.write(
    folder / 'wrap.ts', 'libx264', container_options={'initial_offset': str(2**33 / 90000 - 1)}
  )
  assert len(_check(path)) == 48
  assert PyavReader(str(path)).info.duration == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize('codec', ['mpeg1video', 'mpeg2video'])
def test_a_program_stream_whose_times_are_wrong_behind_a_seek(folder, codec):
  path = films.write(
    folder / f'{codec}.mpg', codec, options={'bf': '2'} if codec == 'mpeg2video' else {}
  )
  assert len(_check(path)) == 48
  shown = _plain_decode(path)
  for i in range(48):
    ((_, time, image),) = PyavReader(str(path)).read([i / 24 + 0.01])
    assert time == pytest.approx(i / 24, abs=1e-3)
    np.testing.assert_array_equal(image, shown[i][1])


def test_joined_streams_of_two_sizes_keep_each_frames_own(folder):
  parts = [
    films.write(folder / f'{side}.ts', 'libx264', 24, size=(side, side)) for side in (48, 80)
  ]
  path = folder / 'sizes.ts'
  path.write_bytes(b''.join(part.read_bytes() for part in parts))
  assert [image.shape for _, _, image in PyavReader(str(path)).read([0.5, 1.5])] == [
    (48, 48, 3),
    (80, 80, 3),
  ]


@pytest.mark.parametrize('container', ['ts', 'mkv', 'flv'])
def test_damage_in_the_middle_is_named_with_its_second_and_the_rest_is_read(folder, container):
  format = {'ts': 'mpegts', 'mkv': 'matroska', 'flv': 'flv'}[container]
  # behind damage, mkv goes on at the next cluster
  options = {'cluster_time_limit': '400'} if container == 'mkv' else {}
  whole = films.write(
    folder / f'whole.{container}', 'libx264', format=format, container_options=options
  )
  data = bytearray(whole.read_bytes())
  middle = len(data) * 4 // 10
  data[middle : middle + 600] = bytes(600)
  path = folder / f'damaged.{container}'
  path.write_bytes(data)
  outcomes = _outcomes(path, _plain_decode(whole))
  assert outcomes[:12] == [True] * 12 and outcomes[-12:] == [True] * 12
  if container != 'ts':  # a transport stream may say nothing of what it lost
    assert 'decode' in outcomes and set(outcomes) == {True, 'decode'}
    with pytest.raises(
      MediaError, match=r'lost or damaged between \d\.\d+ s and \d\.\d+ s'
    ) as error:
      list(PyavReader(str(path)).read([outcomes.index('decode') / 24 + 0.01]))
    assert 'fetch it again' not in str(error.value)


@pytest.mark.parametrize('container', ['mp4', 'fragmented'])
def test_frames_that_refer_to_a_damaged_one_are_errors(folder, container):
  """B-frames come before the frame that they refer to, and behind it in the file."""
  format, options = CONTAINERS[container]
  codec_options = {'preset': 'medium', 'bf': '3', 'b_strategy': '0', 'g': '12'}
  whole = films.write(
    folder / f'refer.{container}', 'libx264', format=format, container_options=options,
    options=codec_options,
  )  # fmt: skip
  with av.open(str(whole)) as found:
    packets = [packet for packet in found.demux(video=0) if packet.size]
  lost = next(i for i in range(14, 24) if packets[i].pts > packets[i + 1].pts)
  data = bytearray(whole.read_bytes())
  at = packets[lost].pos
  data[at : at + packets[lost].size] = bytes(packets[lost].size)
  path = folder / f'referred.{container}'
  path.write_bytes(data)
  outcomes = _outcomes(path, _plain_decode(whole))
  assert outcomes[:12] == [True] * 12 and outcomes[24:] == [True] * 24
  assert 'decode' in outcomes and set(outcomes) == {True, 'decode'}


@pytest.mark.parametrize('late', [0, 480])
@pytest.mark.parametrize('container', ['mp4', 'mov', 'mkv', 'ts', 'flv'])
def test_images_that_stay_for_long_keep_their_times(folder, container, late):
  """The first one stays for 20 s; the last one comes at once, or 20 s later."""
  format, _ = {'flv': ('flv', {})}.get(container) or CONTAINERS[container]
  path = films.write(
    folder / f'stay{late}.{container}', 'libx264', 30, format=format, options=films.B_FRAMES['libx264'],
    pts=lambda i: 0 if i == 0 else 480 + i + (late if i == 29 else 0),
  )  # fmt: skip
  shown = [time for time, _ in _check(path)]
  assert shown[1] - shown[0] == pytest.approx(481 / 24, abs=2e-3)
  info = PyavReader(str(path)).info
  assert (info.num_frames, info.duration) == (30, pytest.approx(shown[-1], abs=0.2))


def test_a_start_that_the_demuxer_guesses_while_it_reads_is_not_believed(folder):
  """In mkv it guesses decoding times, and of ten seconds a frame a start that is too late."""
  path = films.write(
    folder / 'rare.mkv', 'libx264', 8, options={'preset': 'veryfast', 'bf': '3'},
    pts=lambda i: 240 * i,
  )  # fmt: skip
  reader = PyavReader(str(path))
  times = [time for _, time, _ in reader.read([0.0, 15.0, 71.0])]
  assert times == pytest.approx([0, 10, 70], abs=2e-3)
  assert (reader.info.num_frames, reader.info.duration) == (8, pytest.approx(80, abs=10))


@pytest.mark.parametrize('container', ['mp4', 'mov'])
def test_a_last_frame_that_comes_late_is_seen_behind_an_index(folder, container):
  """The index and the header of mp4 hold decoding times, which B-frames put two frames earlier."""
  path = films.write(
    folder / f'late.{container}', 'libx264', 30, options={'preset': 'medium', 'bf': '3'},
    pts=lambda i: i if i < 29 else 480,
  )  # fmt: skip
  info = PyavReader(str(path)).info
  assert (info.num_frames, info.duration) == (30, pytest.approx(20, abs=0.1))
  shown = [time for time, _ in _check(path)]
  assert [time for _, time, _ in PyavReader(str(path)).read([10.0, 20.02])] == pytest.approx(
    [shown[28], 20], abs=1e-3
  )

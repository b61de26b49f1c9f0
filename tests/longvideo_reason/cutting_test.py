"""Cutting: windows without gaps, copies where key frames allow, and clips that show exactly their
window.
"""

from fractions import Fraction

import av
import numpy as np
import pytest

from paravt_jax.errors import MediaError
from paravt_jax.longvideo_reason.cutting import CutOptions, cut, packets, windows
from paravt_jax.testing import clips, films
from paravt_jax.video.readers import PyavReader
from tests import patience

SIZE = (64, 64)
OPTIONS = CutOptions(
  clip_seconds=2.0,
  snap_seconds=0.25,
  min_seconds=0.5,
  max_fps=30.0,
  crf=18,
  deadline_s=patience.seconds(120.0),
)


def frame(index):
  return clips.counting_frame(index, SIZE)


def written(path, codec, container, pixels='yuv420p', gop=10, rotation=0, **options):
  """Five seconds at 10 frames/s, numbered."""
  with av.open(str(path), 'w', format=container) as out:
    stream = out.add_stream(
      codec, rate=10, options={key.replace('_', '-'): value for key, value in options.items()}
    )
    (stream.height, stream.width), stream.pix_fmt, stream.gop_size = SIZE, pixels, gop
    if rotation:
      stream.set_display_rotation(rotation)
    for i in range(50):
      image = av.VideoFrame.from_ndarray(frame(i), format='rgb24').reformat(format=pixels)
      image.pts, image.time_base = i, Fraction(1, 10)
      out.mux(stream.encode(image))
    out.mux(stream.encode(None))
  return path


def cut_up(path, folder, options=OPTIONS):
  """[(start, end, copied, frames the clip shows)] of a video."""
  folder.mkdir(exist_ok=True)
  found = []
  for clip in cut(str(path), folder, options):
    reader = PyavReader(str(folder / clip.file))
    times = (np.arange(reader.info.num_frames) + 0.5) / reader.info.fps
    found.append(
      (
        clip.start,
        clip.end,
        clip.copied,
        [clips.read_count(image) for _, _, image in reader.read(times)],
      )
    )
  return found


def expected(copied):
  return [
    (0.0, 2.0, copied, list(range(20))),
    (2.0, 4.0, copied, list(range(20, 40))),
    (4.0, 5.0, copied, list(range(40, 50))),
  ]


@pytest.mark.parametrize(
  'duration, keys, wanted',
  [
    (5.0, [], [(0, 2), (2, 4), (4, 5)]),
    (4.0, [], [(0, 2), (2, 4)]),
    (4.3, [], [(0, 2), (2, 4.3)]),
    (1.0, [], [(0, 1)]),
    (0.3, [], [(0, 0.3)]),
    (5.0, [0, 1.9, 3.5, 4.2], [(0, 1.9), (1.9, 4.2), (4.2, 5)]),
    (5.0, [0, 1.7, 2.3], [(0, 2), (2, 4), (4, 5)]),
  ],
)
def test_windows_cover_the_video_and_move_to_near_key_frames(duration, keys, wanted):
  assert windows(duration, keys, OPTIONS) == wanted


@pytest.mark.parametrize(
  'name, codec, container, pixels, options',
  [
    ('plain.mp4', 'libx264', 'mp4', 'yuv420p', {}),
    ('b_frames.mp4', 'libx264', 'mp4', 'yuv420p', {'bf': '3', 'b_adapt': '0'}),
    ('matroska.mkv', 'libx264', 'matroska', 'yuv420p', {}),
    ('vp9.webm', 'libvpx-vp9', 'webm', 'yuv420p', {'deadline': 'realtime'}),
    ('ten_bit.mp4', 'libx264', 'mp4', 'yuv420p10le', {}),
  ],
)
def test_what_lies_between_key_frames_is_copied(tmp_path, name, codec, container, pixels, options):
  assert cut_up(
    written(tmp_path / name, codec, container, pixels, **options), tmp_path / 'clips'
  ) == expected(True)


@pytest.mark.parametrize(
  'name, codec, container, options',
  [
    ('no_key_there.mp4', 'libx264', 'mp4', {'gop': 37}),
    ('transport.ts', 'libx264', 'mpegts', {}),
    ('old.avi', 'mpeg4', 'avi', {}),
    (
      'open_groups.mp4',
      'libx264',
      'mp4',
      {'bf': '3', 'b_adapt': '0', 'x264_params': 'open-gop=1:scenecut=0'},
    ),
  ],
)
def test_anything_else_is_encoded_again_and_shows_the_same(
  tmp_path, name, codec, container, options
):
  assert cut_up(
    written(tmp_path / name, codec, container, **options), tmp_path / 'clips'
  ) == expected(False)


def test_one_video_may_be_copied_here_and_encoded_there(tmp_path):
  path = clips.make_clip(tmp_path / 'a.mp4', 5, 10, SIZE, frame, 1000)
  assert [copied for _, _, copied, _ in cut_up(path, tmp_path / 'clips')] == [False, False, False]
  path = clips.make_clip(tmp_path / 'b.mp4', 5, 10, SIZE, frame, 20)
  options = CutOptions(**{**vars(OPTIONS), 'clip_seconds': 3.0})
  found = cut_up(path, tmp_path / 'clips', options)
  assert [each[:3] for each in found] == [(0.0, 3.0, False), (3.0, 5.0, False)] and found[1][
    3
  ] == list(range(30, 50))
  found = cut_up(path, tmp_path / 'clips', CutOptions(**{**vars(OPTIONS), 'clip_seconds': 4.0}))
  assert found == [(0.0, 4.0, True, list(range(40))), (4.0, 5.0, True, list(range(40, 50)))]


def test_a_variable_rate_is_cut_at_the_right_times(tmp_path):
  pts = [
    2 * i if i < 20 else 3 * i - 20 for i in range(50)
  ]  # 5 frames/s, then 3.3: no key frame after the second cut
  found = cut_up(
    clips.make_clip(tmp_path / 'a.mp4', 5, 10, SIZE, frame, 10, pts=pts), tmp_path / 'clips'
  )
  assert [each[:3] for each in found[:3]] == [(0.0, 2.0, True), (2.0, 4.0, True), (4.0, 6.0, False)]
  assert (
    [each[3] for each in found[:2]] == [list(range(10)), list(range(10, 20))]
    and found[2][3][0] == 20
    and found[-1][3][-1] >= 48
  )


def test_a_rotated_recording_is_cut_into_upright_clips(tmp_path):
  path = written(tmp_path / 'a.mp4', 'libx264', 'mp4', rotation=90)
  source = PyavReader(str(path))
  upright = [clips.read_count(image) for _, _, image in source.read(np.arange(50) / 10 + 0.05)]
  found = cut_up(path, tmp_path / 'clips')
  assert [copied for _, _, copied, _ in found] == [False] * 3
  assert [count for *_, shown in found for count in shown] == upright != list(range(50))


@pytest.mark.parametrize('matrix', [(-1, 0, 0, 1), (1, 0, 0, -1)])
def test_a_mirrored_recording_is_cut_into_clips_as_it_is_shown(tmp_path, matrix):
  path = films.set_matrix(written(tmp_path / 'a.mp4', 'libx264', 'mp4'), matrix)
  source = PyavReader(str(path))
  shown = [clips.read_count(image) for _, _, image in source.read(np.arange(50) / 10 + 0.05)]
  found = cut_up(path, tmp_path / 'clips')
  assert [copied for _, _, copied, _ in found] == [False] * 3
  assert [count for *_, counts in found for count in counts] == shown != list(range(50))


def test_odd_sides_and_high_rates_are_brought_to_what_an_encoder_takes(tmp_path):
  path = tmp_path / 'odd.avi'
  with av.open(str(path), 'w') as out:
    stream = out.add_stream('ffv1', rate=50)
    stream.height, stream.width, stream.pix_fmt = 31, 65, 'bgr0'
    for i in range(60):
      image = av.VideoFrame.from_ndarray(
        np.full((31, 65, 3), i, np.uint8), format='rgb24'
      ).reformat(format='bgr0')
      image.pts, image.time_base = i, Fraction(1, 50)
      out.mux(stream.encode(image))
    out.mux(stream.encode(None))
  found = list(cut(str(path), tmp_path, CutOptions(**{**vars(OPTIONS), 'max_fps': 10.0})))
  info = PyavReader(str(tmp_path / found[0].file)).info
  assert [clip.copied for clip in found] == [False] and (
    info.height,
    info.width,
    info.num_frames,
  ) == (30, 64, 12)


def test_no_video_is_a_typed_error_and_leaves_no_clip(tmp_path):
  with av.open(str(tmp_path / 'sound.mp4'), 'w') as out:
    stream = out.add_stream('aac', rate=8000, layout='mono')
    sound = av.AudioFrame.from_ndarray(
      np.zeros((1, 8000), np.float32), format='fltp', layout='mono'
    )
    sound.sample_rate = 8000
    out.mux(stream.encode(sound))
    out.mux(stream.encode(None))
  (tmp_path / 'empty.mp4').write_bytes(b'')
  (tmp_path / 'text.mp4').write_text('#EXTM3U\nfile:///etc/hosts')
  for name in ('sound.mp4', 'empty.mp4', 'text.mp4'):
    with pytest.raises(MediaError) as caught:
      cut_up(tmp_path / name, tmp_path / 'clips')
    assert caught.value.reason == 'not_video' and packets(str(tmp_path / name)) is None
  assert list((tmp_path / 'clips').iterdir()) == []

"""Splitting in a process of its own: it answers in lines, and what happens to it is a value."""

import asyncio
import errno
import os

import pytest

from paravt_jax.data import provenance
from paravt_jax.longvideo_reason import split as module
from paravt_jax.longvideo_reason.cutting import CutOptions
from paravt_jax.longvideo_reason.items import Failed, Rejected, Video
from paravt_jax.longvideo_reason.split import Split, find, split
from paravt_jax.testing import clips
from tests import patience

OPTIONS = CutOptions(
  clip_seconds=2.0,
  snap_seconds=0.25,
  min_seconds=0.5,
  max_fps=30.0,
  crf=18,
  deadline_s=patience.seconds(120.0),
)


def clip(path, seconds=4):
  path.parent.mkdir(parents=True, exist_ok=True)
  return clips.make_clip(
    path, seconds, 10, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 10
  )


def run(path, folder, options=OPTIONS):
  return asyncio.run(split(Video(path.name, str(path)), folder, options))


def test_a_split_gives_the_videos_identity_and_clips_that_are_there(tmp_path):
  path = clip(tmp_path / 'ä b.mp4')
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'left_over.mp4').write_bytes(b'x')
  identity, found = run(path, tmp_path / 'out')
  assert (
    isinstance(found, Split)
    and identity == found.identity == provenance.identity(path)
    and found.duration == 4.0
  )
  assert [(each.start, each.end, each.copied) for each in found.clips] == [
    (0.0, 2.0, True),
    (2.0, 4.0, True),
  ]
  assert (
    sorted(os.listdir(tmp_path / 'out'))
    == [each.file for each in found.clips]
    == ['00000.mp4', '00001.mp4']
  )


def test_what_is_no_video_is_rejected_and_what_is_gone_may_come_back(tmp_path):
  (tmp_path / 'empty.mp4').write_bytes(b'')
  identity, found = run(tmp_path / 'empty.mp4', tmp_path / 'out')
  assert identity['bytes'] == 0 and isinstance(found, Rejected) and found.reason == 'not_video'
  identity, found = run(tmp_path / 'gone.mp4', tmp_path / 'out')
  assert identity is None and isinstance(found, Failed) and found.reason == 'missing'


@pytest.mark.parametrize(
  'program, deadline_s, outcome',
  [
    (
      'import sys; print(\'{"identity": {}}\', flush=True); sys.exit(7)',
      60.0,
      ('crashed', 'ended with code 7 after clip 0'),
    ),
    (
      'import time; print(\'{"identity": {}}\', flush=True); time.sleep(600)',
      0.2,
      ('timeout', 'nothing for 0 s after clip 0'),
    ),
  ],
)
def test_a_process_that_dies_or_hangs_is_a_failure(
  tmp_path, monkeypatch, program, deadline_s, outcome
):
  monkeypatch.setattr(module, '_PROGRAM', program)
  _, found = run(
    clip(tmp_path / 'a.mp4'),
    tmp_path / 'out',
    CutOptions(**{**vars(OPTIONS), 'deadline_s': deadline_s}),
  )
  assert isinstance(found, Failed) and found.reason == outcome[0] and outcome[1] in found.detail


def test_a_full_disk_is_no_fault_of_the_video(tmp_path, monkeypatch):
  monkeypatch.setattr(
    module, '_PROGRAM', 'print(\'{"error": "x", "reason": "disk", "errno": 28}\', flush=True)'
  )
  with pytest.raises(OSError) as caught:
    run(clip(tmp_path / 'a.mp4'), tmp_path / 'out')
  assert caught.value.errno == errno.ENOSPC


def test_videos_are_found_at_any_depth_by_name_and_hidden_files_are_passed_over(tmp_path):
  for name in ('b.MP4', 'a/ü x.mkv', 'a/notes.txt', '.hidden.mp4', '.cache/c.mp4', 'b.webm'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  with open(os.fsencode(tmp_path) + b'/bad\xff.mp4', 'wb'):
    pass
  videos, bad = find(tmp_path)
  assert [video.id for video in videos] == ['a/ü x.mkv', 'b.MP4', 'b.webm'] and bad == [
    'bad\ufffd.mp4'
  ]
  assert videos[0].path == str(tmp_path / 'a' / 'ü x.mkv')

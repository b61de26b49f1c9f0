"""Videos whose groups are lost again and again, or whose file changed, cost a bounded number of
attempts.
"""

import json
import logging

import pytest

from paravt_jax.rollout.quarantine import CHANGED, LEFT_OUT, Quarantine


@pytest.fixture
def video(tmp_path):
  path = tmp_path / 'a.mp4'
  path.write_bytes(b'frames')
  return (str(path),)


def made(tmp_path, *videos, state=None):
  return Quarantine(str(tmp_path), videos, state)


def test_three_lost_groups_in_a_row_leave_a_video_out_for_the_epoch_with_one_line(
  tmp_path, video, caplog
):
  it = made(tmp_path, video)
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      it.record(video, 0, 'media_decode')
      assert it.refuse(video, 0) is None and it.count(0) == 0
    for _ in range(4):  # groups that were under way already
      it.record(video, 0, 'media_timeout')
  assert it.refuse(video, 0) == LEFT_OUT and it.count(0) == 1
  [line] = caplog.messages
  assert line.startswith(f'{video[0]}: got 3 groups in a row that were lost (the last: media_time')
  assert it.refuse((video[0], 'b.mp4'), 0) is None  # other questions


def test_the_next_epoch_tries_once_more_and_an_episode_ends_the_quarantine(tmp_path, video):
  it = made(tmp_path, video)
  for _ in range(3):
    it.record(video, 0, 'media_missing')
  it.record(video, 0, LEFT_OUT)
  assert it.refuse(video, 1) is None and it.count(1) == 0
  it.record(video, 1, 'media_missing')
  assert it.refuse(video, 1) == LEFT_OUT
  it.record(video, 2, None)
  it.record(video, 2, 'media_missing')
  assert it.refuse(video, 2) is None


def test_only_failures_of_the_video_count_and_only_in_a_row(tmp_path, video):
  it = made(tmp_path, video)
  for reason in ('media_decode', 'media_decode', None, 'media_decode', 'server', 'abort', 'judge'):
    it.record(video, 0, reason)
  assert it.refuse(video, 0) is None


def test_a_file_of_another_size_is_refused_until_it_is_restored_and_a_touched_one_is_not(
  tmp_path, video
):
  it, path = made(tmp_path, video), tmp_path / 'a.mp4'
  path.write_bytes(b'frames')
  assert it.refuse(video, 0) is None
  path.write_bytes(b'other frames')
  assert it.refuse(video, 0) == CHANGED
  path.unlink()
  assert it.refuse(video, 0) is None  # the decoder says that it is missing
  path.write_bytes(b'frames')
  assert it.refuse(video, 0) is None


def test_a_file_that_was_not_there_at_the_start_may_have_any_size(tmp_path):
  it = made(tmp_path, (str(tmp_path / 'late.mp4'),))
  (tmp_path / 'late.mp4').write_bytes(b'x')
  assert it.refuse((str(tmp_path / 'late.mp4'),), 0) is None


def test_a_run_that_is_continued_leaves_out_the_same_questions_wherever_the_media_are(
  tmp_path, video
):
  it = made(tmp_path, video)
  for _ in range(3):
    it.record(video, 1, 'media_missing')
  state = json.loads(json.dumps(it.state()))
  (tmp_path / 'moved').mkdir()
  moved = (str(tmp_path / 'moved' / 'a.mp4'),)
  again = Quarantine(str(tmp_path / 'moved'), [moved], state)
  assert again.state() == it.state() and again.refuse(moved, 1) == LEFT_OUT
  (tmp_path / 'moved' / 'a.mp4').write_bytes(b'changed since')
  assert again.refuse(moved, 2) == CHANGED

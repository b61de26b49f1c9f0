"""The files of a snapshot: videos, archives, and all that is missing."""

import json
import pathlib
import shutil

import pytest

from paravt_jax.errors import DataError
from paravt_jax.eval import benchmarks
from tests.eval import fixtures


@pytest.mark.parametrize('path', ['../secret.mp4', '/home/secret.mp4', 'x/../../secret.mp4'])
def test_a_video_outside_of_the_snapshot_is_refused(tmp_path: pathlib.Path, path: str):
  (tmp_path / 'test.json').write_text(
    json.dumps([{'video': path, 'caption': 'x', 'timestamp': [1, 2]}])
  )
  with pytest.raises(DataError, match=r'charades: row 0 of .*wanted a path inside the snapshot'):
    benchmarks.load('charades', tmp_path, tmp_path / 'cache')


def test_a_row_that_comes_twice_is_refused(tmp_path: pathlib.Path):
  row = {'uid': '7', 'question': 'Which?\n(A) x\n(B) y', 'answer': 'A', 'video_path': 'a.mp4'}
  (tmp_path / 'train.json').write_text(json.dumps([row, row]))
  with pytest.raises(DataError, match=r"row 1 of .*got the id '7' again"):
    benchmarks.load('lvbench', tmp_path, tmp_path / 'cache')


def test_an_id_that_two_questions_share_is_told_apart_and_marked(tmp_path: pathlib.Path):
  row = {'uid': '7', 'question': 'Which?\n(A) x\n(B) y', 'answer': 'A', 'video_path': 'a.mp4'}
  (tmp_path / 'train.json').write_text(json.dumps([row, {**row, 'question': 'Who?\n(A) x\n(B) y'}]))
  first, second = benchmarks.load('lvbench', tmp_path, tmp_path / 'cache')
  assert (first.task.id, first.fields) == ('7', {})
  assert (second.task.id, second.fields['broken']) == ('7-1', 'id twice')


def test_videos_that_are_extracted_already_need_no_archive(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'videomme')
  for at, name in enumerate(fixtures.VIDEOS['videomme']):
    (root / 'data').mkdir(exist_ok=True)
    (root / 'data' / f'{name}.mp4').write_bytes(fixtures.video(4 + at))
  samples = benchmarks.load('videomme', root, tmp_path / 'cache')
  assert {pathlib.Path(s.task.video).parent for s in samples} == {root / 'data'} and not (
    tmp_path / 'cache'
  ).exists()


def test_only_archives_that_hold_a_missing_video_are_unpacked(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'videomme')
  (root / 'data').mkdir()
  (root / 'data/fFjv93ACGo8.mkv').write_bytes(fixtures.video(4))
  samples = benchmarks.load('videomme', root, tmp_path / 'cache')
  assert samples[0].task.video == str(root / 'data/fFjv93ACGo8.mkv')
  assert [path.name for path in (tmp_path / 'cache').rglob('*.mp4')] == ['N1cdUjctpG8.mp4']


def test_subtitle_archives_are_not_unpacked_for_videos(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'longvideobench')
  (root / 'subtitles.tar.gz').write_bytes(
    fixtures.tarred({'subtitles/86CxyhFV9MI.json': b'[]'}, 'w:gz')
  )
  benchmarks.load('longvideobench', root, tmp_path / 'cache')
  assert sorted(
    path.name
    for path in (tmp_path / 'cache').rglob('*')
    if path.is_file() and path.suffix == '.json'
  ) == ['videos.tar.part.aa.json']


def test_benchmarks_on_the_same_data_share_what_is_unpacked(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'videomme')
  plain, subtitled = (
    benchmarks.load(name, root, tmp_path / 'cache') for name in ('videomme', 'videomme_wsub')
  )
  assert [s.task.video for s in plain] == [s.task.video for s in subtitled]


def test_a_missing_video_is_told_beforehand_and_keeps_its_question(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'mmvu')
  shutil.rmtree(root / 'videos/Art')
  assert benchmarks.problems({'mmvu': root}, cache=tmp_path / 'cache') == (
    [],
    [
      f'mmvu: 1 of 2 videos missing below {root}; put videos/<subject>/<number>.mp4 into that '
      'folder, as it is or unpacked:\n    videos/Art/0.mp4'
    ],
  )
  first, second = benchmarks.load('mmvu', root, tmp_path / 'cache')
  assert first.task.video == str(root / 'videos/Art/0.mp4') and second.task.video == str(
    root / 'videos/Biology/0.mp4'
  )


def test_all_that_is_missing_is_told_at_once(tmp_path: pathlib.Path):
  (tmp_path / 'empty').mkdir()
  odd = tmp_path / 'odd'
  fixtures.parquet(odd / 'data/test-0.parquet', [{'video': 'a.mp4', 'caption': 'x'}])
  seven = tmp_path / 'seven'
  seven.mkdir()
  row = {'uid': '', 'question': 'Which?\n(A) x\n(B) y', 'answer': 'A', 'video_path': ''}
  (seven / 'train.jsonl').write_text(
    '\n'.join(json.dumps({**row, 'uid': str(i), 'video_path': f'{i}.mp4'}) for i in range(7))
  )
  (seven / '3.mp4').write_bytes(b'')
  good = fixtures.snapshot(tmp_path, 'videomme')
  videoless = tmp_path / 'videoless'
  videoless.mkdir()
  (videoless / 'train.jsonl').write_text(json.dumps({**row, 'uid': '0', 'video_path': 'x.mp4'}))
  found, partly = benchmarks.problems(
    {
      'mlvu': tmp_path / 'none',
      'mmvu': tmp_path / 'empty',
      'charades': odd,
      'lvbench': seven,
      'videomme': good,
    },
    cache=tmp_path / 'cache',
  )
  assert [line.split(':')[0] for line in found] == ['mlvu', 'mmvu', 'charades'] and len(partly) == 1
  assert (
    '1 of 1 videos missing' in benchmarks.problems({'lvbench': videoless})[0][0]
  )  # nothing to go on with
  assert (
    'no such folder' in found[0]
    and 'no row file' in found[1]
    and "missing: ['timestamp']" in found[2]
  )
  assert '6 of 7 videos missing' in partly[0] and partly[0].splitlines()[1:] == [
    '    0.mp4',
    '    1.mp4',
    '    2.mp4',
    '    … 3 more',
  ]
  assert not (tmp_path / 'cache').exists()  # nothing is unpacked for a run that cannot start


def test_a_video_inside_an_archive_is_not_missing(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'charades')
  assert benchmarks.problems({'charades': root}) == ([], [])
  (root / 'Charades_v1_480_part_2.zip').unlink()
  (line,) = benchmarks.problems({'charades': root})[1]
  assert '1 of 2 videos missing' in line and 'X5YFO.mp4' in line


def test_a_packed_tar_is_taken_on_trust_until_it_may_be_unpacked(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'longvideo_reason')
  (root / 'longvideo_eval_videos/longvideo_eval_subset1.tar.gz').unlink()
  assert benchmarks.problems({'longvideo_reason': root}) == ([], [])
  assert (
    'longvila_videos/c3d4.webm'
    in benchmarks.problems({'longvideo_reason': root}, cache=tmp_path / 'cache')[1][0]
  )

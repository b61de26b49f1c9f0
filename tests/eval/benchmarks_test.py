"""Benchmarks from snapshots in their published schemas: fields, gold answers, videos, scores, and
what is missing.
"""

import fnmatch
import json
import pathlib
import re

import pyarrow.parquet
import pytest

from configs import eval as recipe
from paravt_jax.chat import prompts
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.eval import benchmarks, subtitles
from paravt_jax.eval.benchmarks import BENCHMARKS
from paravt_jax.eval.sample import Sample, describe_faults
from paravt_jax.video.readers import PyavReader
from tests.eval import fixtures

NAMES = tuple(BENCHMARKS)


def _load(tmp_path: pathlib.Path, name: str, limit: int = 0) -> list[Sample]:
  return benchmarks.load(name, fixtures.snapshot(tmp_path, name), tmp_path / 'cache', limit)


@pytest.mark.parametrize('name', NAMES)
def test_a_snapshot_of_the_published_schema_is_read(tmp_path: pathlib.Path, name: str):
  samples = _load(tmp_path, name)
  found = [(s.task.id, s.task.answer, len(s.task.options), s.task.question_type) for s in samples]
  assert found == fixtures.GOLD[name]
  assert {s.benchmark for s in samples} == {s.task.source for s in samples} == {name}
  for sample in samples:
    assert set(sample.fields) == set(BENCHMARKS[name].breakdowns) and all(
      isinstance(v, str) for v in sample.fields.values()
    )


@pytest.mark.parametrize('name', NAMES)
def test_every_row_gets_its_own_video(tmp_path: pathlib.Path, name: str):
  samples = _load(tmp_path, name)
  wanted = [fixtures.VIDEOS[name.removesuffix('_wsub')].index(_short(name, s)) + 4 for s in samples]
  assert [round(PyavReader(s.task.video).info.duration) for s in samples] == wanted


def _short(name: str, sample: Sample) -> str:
  path = pathlib.PurePosixPath(sample.task.video)
  return (
    f'{path.parent.name}/{path.name}'
    if name == 'mmvu'
    else path.stem
    if name.startswith('videomme')
    else path.name
  )


def test_the_published_rows_are_those_of_the_paper():
  rows = {
    model: [BENCHMARKS[name].published[model] for name in NAMES[:7]]
    for model in BENCHMARKS['mmvu'].published
  }
  order = ('videomme', 'videomme_wsub', 'longvideobench', 'lvbench', 'mlvu', 'mmvu', 'charades')
  assert (*order, 'longvideo_reason') == NAMES
  assert rows == {
    'ParaVT-8B': [62.1, 69.4, 60.4, 39.8, 65.0, 68.6, 50.1],
    'Qwen3-VL-8B with tool': [59.9, 68.4, 52.2, 33.1, 58.3, 68.0, 49.3],
    'LongVT-RFT-7B': [59.5, 66.0, 54.7, 37.9, 59.4, 63.4, 23.4],
  }
  assert BENCHMARKS['longvideo_reason'].published == {}


@pytest.mark.parametrize('name', NAMES)
def test_files_are_called_what_their_publishers_call_them(tmp_path: pathlib.Path, name: str):
  about, root = BENCHMARKS[name], fixtures.snapshot(tmp_path, name)
  files = [str(path.relative_to(root)) for path in root.rglob('*')]
  videos, _, other = about.videos.partition(' of ')
  pattern = re.sub('<.*?>', '*', videos)
  assert fnmatch.filter(files, f'*/{pattern}' if other else pattern), about.videos
  assert [str(path.relative_to(root)) for path in root.glob(about.rows[0])]
  (entry,) = [
    block
    for block in re.split(r'\n  (?=\w)', recipe.__doc__)
    if re.match(rf'(.*, )?{name}[, ]', block)
  ]
  entry = ' '.join(entry.split())
  assert about.hub in entry and about.videos in entry


def test_grounding_gold_is_in_the_tenths_that_half_precision_stands_for(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'charades')
  file = root / 'data/test-00000-of-00001.parquet'
  assert str(pyarrow.parquet.read_schema(file).field('timestamp').type.value_type) == 'halffloat'
  first, second = benchmarks.load('charades', root, tmp_path / 'cache')
  assert first.task.answer == '24.296875,30.40625' and second.task.answer == '0,3.5'


def test_options_are_lettered_once_whatever_the_file_does(tmp_path: pathlib.Path):
  videomme, lvbench = _load(tmp_path, 'videomme'), _load(tmp_path, 'lvbench')
  assert videomme[1].task.question == (
    'What is the genre of this video?\nA. It is a news report.\nB. It is a documentary.\nC. '
    'It is a film.\nD. It is an advert.'
  )
  assert (
    lvbench[0].task.question
    == 'What year appears in the opening caption of the video?\nA. 1636\nB. 1366\nC. 1363\nD. 1633'
  )
  assert lvbench[0].task.options == ('1636', '1366', '1363', '1633')


def test_an_option_that_is_not_applicable_is_skipped(tmp_path: pathlib.Path):
  assert _load(tmp_path, 'longvideobench')[0].task.options == (
    'a hat',
    'a scarf',
    'a coat',
    'gloves',
  )


@pytest.mark.parametrize('name', NAMES)
def test_a_question_is_told_one_shape_of_its_answer_and_not_two(tmp_path: pathlib.Path, name: str):
  own = 'Say it like this: The event happens in the X - Y seconds.'
  for sample in _load(tmp_path, name):
    (text,) = prompts.user(sample.task, [[]])
    wanted = own if name == 'charades' else prompts.FORMAT_HINTS[sample.task.question_type]
    assert [shape for shape in (*prompts.FORMAT_HINTS.values(), own) if shape in text] == [
      wanted
    ] and text.endswith(wanted)


def test_charades_asks_for_the_shape_of_its_answer(tmp_path: pathlib.Path):
  question = _load(tmp_path, 'charades')[0].task.question
  assert (
    '"person turn a light on."' in question and 'The event happens in the X - Y seconds' in question
  )


def test_subtitles_stand_before_the_question_where_there_are_some(tmp_path: pathlib.Path):
  samples = _load(tmp_path, 'videomme_wsub')
  assert (
    samples[0].subtitles
    == samples[1].subtitles
    == '0.5 --> 2.0 hello there\n2.0 --> 3.2 all of you'
  )
  assert samples[1].task.question.startswith(
    'Subtitles (seconds):\n0.5 --> 2.0 hello there\n2.0 --> 3.2 all of you\n\nWhat is the genre'
  )
  assert samples[2].subtitles == '' and samples[2].task.question.startswith('Which is not held up?')
  assert not any(sample.subtitles for sample in _load(tmp_path, 'videomme'))


def test_the_question_without_subtitles_stands_beside_the_one_with_them(tmp_path: pathlib.Path):
  plain, subtitled = _load(tmp_path, 'videomme'), _load(tmp_path, 'videomme_wsub')
  assert (
    subtitled[0].task.facts == {'asked': plain[0].task.question} and subtitled[2].task.facts == {}
  )
  assert prompts.question_text(subtitled[0].task) == plain[0].task.question
  assert 'hello there' in prompts.user(subtitled[0].task, [[]])[0]  # the main agent is shown them


def test_subtitles_are_bounded(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'videomme_wsub')
  (root / 'subtitle').mkdir()
  cues = (
    f'{i}\n00:{i // 60:02}:{i % 60:02},000 --> 00:{i // 60:02}:{i % 60:02},900\nline {i} '
    f'{"word " * 20}\n'
    for i in range(600)
  )
  (root / 'subtitle/fFjv93ACGo8.srt').write_text('\n'.join(cues))
  sample = benchmarks.load('videomme_wsub', root, tmp_path / 'cache')[0]
  assert 23_000 < len(sample.subtitles) <= 24_000
  assert sample.subtitles.startswith('0.0 --> 0.9 line 0 ') and '\n59' in sample.subtitles


def test_subtitles_of_wide_characters_are_bounded_by_their_bytes(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'videomme_wsub')
  (root / 'subtitle').mkdir()
  cues = (
    f'{i}\n00:00:{i:02},000 --> 00:00:{i:02},900\n{i}{"字" * 200}\n' for i in range(60)
  )  # 12,000 characters, 36,000 bytes
  (root / 'subtitle/fFjv93ACGo8.srt').write_text('\n'.join(cues))
  sample = benchmarks.load('videomme_wsub', root, tmp_path / 'cache')[0]
  assert 23_000 < len(sample.subtitles.encode()) <= 24_000


def test_a_subtitle_file_without_a_cue_is_an_error_of_its_videos_questions_and_a_guess_is_told(
  tmp_path: pathlib.Path,
):
  root = fixtures.snapshot(tmp_path, 'videomme_wsub')
  (root / 'subtitle').mkdir()
  (root / 'subtitle/fFjv93ACGo8.srt').write_bytes(b'')
  (root / 'subtitle/N1cdUjctpG8.vtt').write_bytes(
    'WEBVTT\n\n00:01.000 --> 00:02.000\ncafé\n'.encode('cp1252')
  )
  first, second, third = benchmarks.load('videomme_wsub', root, tmp_path / 'cache')
  assert [sample.fields['subtitles'] for sample in (first, second, third)] == [
    'unreadable',
    'unreadable',
    'shown, read as cp1252',
  ]
  assert (first.subtitles, third.subtitles) == ('', '1.0 --> 2.0 café')
  assert (
    'fFjv93ACGo8.srt: got an empty file, wanted srt or vtt' in first.task.facts[subtitles.BROKEN]
  )
  assert subtitles.BROKEN not in third.task.facts and third.task.question.startswith(
    'Subtitles (seconds):\n1.0 --> 2.0 café\n'
  )
  assert benchmarks.subtitle_notes([first, second, third]) == (
    'subtitle files: 1 are no clean Unicode and were read as cp1252 (1); 1 give no cue, and '
    'their questions are errors'
  )
  assert [sample.fields['subtitles'] for sample in _load(tmp_path / 'other', 'videomme_wsub')] == [
    'shown',
    'shown',
    'none',
  ]
  assert benchmarks.subtitle_notes(_load(tmp_path / 'third', 'videomme')) == ''


def test_an_archive_that_is_not_read_is_named_where_videos_are_missing(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'charades')
  (root / 'Charades_v1_480_part_2.zip').rename(root / 'Charades_v1_480_part_2.7z')
  (root / 'Charades_v1_480_part_2.7z').write_bytes(b"7z\xbc\xaf'\x1c")
  (line,) = benchmarks.problems({'charades': root})[1]
  assert (
    '1 of 2 videos missing' in line
    and 'part_2.7z: not read: a kind of archive (.7z) that is not read' in line
  )


def test_no_subtitles_at_all_are_refused(tmp_path: pathlib.Path):
  root = fixtures.snapshot(tmp_path, 'videomme_wsub')
  (root / 'subtitle.zip').unlink()
  with pytest.raises(DataError, match=r'^videomme_wsub: no subtitle file below'):
    benchmarks.load('videomme_wsub', root, tmp_path / 'cache')
  assert benchmarks.problems({'videomme_wsub': root})[0] != [] and benchmarks.problems(
    {'videomme': root}
  ) == ([], [])


def _published(tmp_path: pathlib.Path) -> list[Sample]:
  """A whole row, one whose gold text stands twice, one whose gold is nowhere, one with empty
  options.
  """
  good = {
    'video_name': 'a.mp4',
    'question': 'Which?',
    'candidates': ['x', 'y', 'z'],
    'answer': 'x',
    'task_type': 'order',
  }
  rows = [
    good,
    {**good, 'candidates': ['x', 'y', 'y'], 'answer': 'y'},
    {**good, 'answer': 'E'},
    {**good, 'candidates': ['', 'y', 'x']},
  ]
  (tmp_path / 'test.json').write_text(json.dumps(rows))
  return benchmarks.load('mlvu', tmp_path, tmp_path / 'cache')


def test_rows_that_are_broken_as_published_are_kept_marked_and_counted(tmp_path: pathlib.Path):
  samples = _published(tmp_path)
  broken = {'task_type': 'order', 'options': 'broken', 'broken': ''}
  assert [sample.fields for sample in samples] == [
    {'task_type': 'order'},
    {**broken, 'broken': 'gold twice'},
    {**broken, 'broken': 'gold nowhere'},
    {**broken, 'broken': 'option empty'},
  ]
  assert [sample.gold for sample in samples] == ['A', 'B or C', 'E', 'C']
  assert benchmarks.faults(samples) == {
    'rows': 3,
    'gold nowhere': 1,
    'gold twice': 1,
    'option empty': 1,
  }
  assert (
    describe_faults(benchmarks.faults(samples))
    == '3 rows are broken as published: 1 gold nowhere, 1 gold twice, 1 option empty'
  )
  assert benchmarks.faults(samples[:1]) == {} and describe_faults({}) == ''


def test_a_gold_that_stands_twice_is_right_under_either_letter_and_one_that_is_nowhere_under_none(
  tmp_path: pathlib.Path,
):
  about, (_, twice, nowhere, _) = BENCHMARKS['mlvu'], _published(tmp_path)
  said = lambda letter: f'<think>\nlong enough</think>\n<answer>{letter}</answer>'
  rules = (benchmarks.scores, about.official, about.lmms_eval)
  assert [[rule(twice, said(letter))['accuracy'] for letter in 'ABC'] for rule in rules] == [
    [0.0, 1.0, 1.0],
    [0.0, 1.0, 0.0],
    [0.0, 1.0, 1.0],
  ]  # the driver takes the first
  assert {rule(nowhere, said(letter))['accuracy'] for rule in rules for letter in 'ABCDE'} == {0.0}


def test_a_window_that_is_none_can_be_asked_and_not_be_right(tmp_path: pathlib.Path):
  (tmp_path / 'test.json').write_text(
    json.dumps([{'video': 'a.mp4', 'caption': 'x', 'timestamp': [5, 2]}])
  )
  about = BENCHMARKS['charades']
  (sample,) = benchmarks.load('charades', tmp_path, tmp_path / 'cache')
  text = '<answer>The event happens in the 2 - 5 seconds.</answer>'
  assert sample.fields['broken'] == 'gold nowhere' and sample.unanswerable
  assert [
    rule(sample, text)['iou'] for rule in (benchmarks.scores, about.official, about.lmms_eval)
  ] == [0.0, 0.0, 0.0]


def test_a_row_without_options_is_asked_as_it_is_and_marked(tmp_path: pathlib.Path):
  whole, broken = _load(tmp_path, 'longvideo_reason')
  assert whole.fields == {'problem_type': 'goal', 'options': 'four'}
  assert broken.fields == {'problem_type': 'plot', 'options': 'broken'}
  assert (
    broken.task.question == 'Who is the man interacting with the car?' and broken.task.answer == 'C'
  )
  assert benchmarks.scores(broken, '<answer>C</answer>')['accuracy'] == 1.0


# Videos, limits, what is missing.


def test_a_limit_draws_the_same_samples_everywhere_and_a_larger_one_only_adds(
  tmp_path: pathlib.Path,
):
  row = {'uid': '', 'question': 'Which?\n(A) x\n(B) y', 'answer': 'A', 'video_path': 'a.mp4'}
  (tmp_path / 'train.json').write_text(json.dumps([{**row, 'uid': f'q{i}'} for i in range(40)]))
  ids = lambda limit: [
    sample.task.id for sample in benchmarks.load('lvbench', tmp_path, tmp_path / 'cache', limit)
  ]
  every = ids(0)
  assert every == [f'q{i}' for i in range(40)] == ids(99)
  assert (
    ids(4) == sorted(ids(4), key=every.index) and len(ids(4)) == 4 and set(ids(4)) < set(ids(9))
  )
  assert ids(4) != every[:4]


def test_an_unknown_benchmark_is_refused():
  with pytest.raises(
    ConfigError, match="benchmark 'videome': no such benchmark; wanted one of videomme,"
  ):
    benchmarks.load('videome', '.', '.')


# Scores.


@pytest.mark.parametrize('name', NAMES)
def test_both_rules_agree_on_a_plain_right_answer(tmp_path: pathlib.Path, name: str):
  about = BENCHMARKS[name]
  for sample in _load(tmp_path, name):
    gold = (
      sample.task.answer.replace(',', ' - ')
      if sample.task.question_type == 'tvg'
      else sample.task.answer
    )
    text = f'<think>\nlong enough</think>\n<answer>{gold}</answer>'
    assert benchmarks.scores(sample, text)[about.metric] == pytest.approx(1.0)
    expected = (
      0.0 if sample.task.question_type == 'oe' else 1.0
    )  # the published driver knows no open-ended rows
    assert about.official(sample, text)[about.metric] == pytest.approx(expected)

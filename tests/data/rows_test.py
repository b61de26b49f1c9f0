"""Rows of the published RL schema, and every way in which one can be broken."""

import collections
import json

import pyarrow
import pyarrow.parquet
import pytest

from paravt_jax.data import rows
from paravt_jax.data.fields import RowOptions
from paravt_jax.errors import DataError
from paravt_jax.types import Task

STRICT = RowOptions(skip_bad_rows=False, require_media=False)
SKIP = RowOptions(skip_bad_rows=True, require_media=False)
MCQ = '<video>\nWhat appears at 41?\nA. red\nB. a blue car\nC. green'


def _rl(question=MCQ, video='selfqa/a.mp4', **info):
  return {'prompt': [{'role': 'user', 'content': question}], 'videos': [{'video': video}],
          'extra_info': json.dumps({'answer': 'B', 'question_type': 'mcq'} | info)}


def _write(path, *table):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table)), path)
  return path


def _tasks(tmp_path, *table, options=STRICT, counts=None):
  file = _write(tmp_path / 'paravt_rl_x.parquet', *table)
  return rows.rl_tasks([file], tmp_path / 'media', options, collections.Counter() if counts is None else counts)


def test_an_rl_row_becomes_a_task(tmp_path):
  task, = _tasks(tmp_path, _rl(id='q7', facts={'windows': [[39, 43]]}) | {'data_source': 'charades_tvg'})
  assert task == Task(id='q7', video=str(tmp_path / 'media/selfqa/a.mp4'),
                      question='What appears at 41?\nA. red\nB. a blue car\nC. green', question_type='mcq', answer='B',
                      options=('red', 'a blue car', 'green'), source='charades_tvg', facts={'windows': [[39, 43]]})


def test_a_row_without_an_id_is_named_by_file_and_row(tmp_path):
  assert [task.id for task in _tasks(tmp_path, _rl(), _rl())] == ['paravt_rl_x.parquet:0', 'paravt_rl_x.parquet:1']


def test_zero_is_an_id_too(tmp_path):
  assert _tasks(tmp_path, _rl(id=0))[0].id == '0'


def test_a_system_message_of_the_row_is_kept(tmp_path):
  row = _rl()
  row['prompt'] = [{'role': 'system', 'content': '<tools>theirs</tools>'}, *row['prompt']]
  assert _tasks(tmp_path, row)[0].facts == {'system': '<tools>theirs</tools>'}


@pytest.mark.parametrize(('question', 'options', 'asked', 'want'), [
    ('<video>What?', ['red', 'blue'], 'What?\nA. red\nB. blue', ('red', 'blue')),
    ('<video>What?', ['A. red', 'B. blue'], 'What?\nA. red\nB. blue', ('red', 'blue')),
    ('<video>What?\nA. red\nB. blue', ['red', 'blue'], 'What?\nA. red\nB. blue', ('red', 'blue')),
    ('What?\n(A) red\n(B) blue\n<video>', None, 'What?\n(A) red\n(B) blue', ('red', 'blue')),
    ('<video>A. Smith asks: what?\nA) red\nB) blue', None, 'A. Smith asks: what?\nA) red\nB) blue', ('red', 'blue')),
])
def test_options_come_from_the_row_or_from_the_questions_lines_and_are_asked_once(tmp_path, question, options, asked, want):
  task, = _tasks(tmp_path, _rl(question, **({'options': options} if options else {})))
  assert (task.question, task.options) == (asked, want)


@pytest.mark.parametrize(('kind', 'answer', 'want'), [
    ('mcq', ' B ', 'B'), ('mcq', '(B)', 'B'), ('mcq', 'B. a blue car', 'B'),
    ('tvg', [3.5, 7], '3.5,7'), ('tvg', '3.5, 7', '3.5,7'), ('tvg', '[3.5, 7.25]', '3.5,7.25'), ('tvg', '3 to 7', '3,7'),
    ('oe', ' the red car ', 'the red car'), ('oe', 3, '3'),
])
def test_answers_are_brought_to_one_form(tmp_path, kind, answer, want):
  task, = _tasks(tmp_path, _rl(question_type=kind, answer=answer))
  assert task.answer == want
  assert bool(task.options) == (kind == 'mcq')


BROKEN_RL = {
    "answer: 'E' is not one of 3 options": _rl(answer='E'),
    "answer: 'b' is not one of 3 options": _rl(answer='b'),
    'answer: None is not one of 3 options': _rl(answer=None),
    "question_type: got 'mc', wanted mcq, tvg or oe": _rl(question_type='mc'),
    'got 0 options, wanted two or more': _rl('<video>What?'),
    'options: got 3, wanted a list': _rl(options=3),
    r"answer: got '7, 3', wanted \[start, end\]": _rl(question_type='tvg', answer='7, 3'),
    r'answer: got \[1, 2, 3\], wanted': _rl(question_type='tvg', answer=[1, 2, 3]),
    r"answer: got \['a', 2\]|answer: got 'a', wanted a number": _rl(question_type='tvg', answer=['a', 2]),
    'answer: got NaN|answer: got nan': _rl(question_type='tvg', answer=[float('nan'), 2]),
    "answer: got ' ', wanted a text": _rl(question_type='oe', answer=' '),
    'answer: got True, wanted a text': _rl(question_type='oe', answer=True),
    'prompt: got 1 user messages with 0 <video>': _rl('What?'),
    'prompt: got 1 user messages with 2 <video>': _rl('<video><video>What?'),
    'wanted a question': _rl('<video>', question_type='oe'),
    "prompt: got role 'assistant'": _rl() | {'prompt': [{'role': 'assistant', 'content': 'x'}]},
    'prompt: got None, wanted a non-empty list': _rl() | {'prompt': None},
    'videos: got 2, wanted one': _rl() | {'videos': [{'video': 'selfqa/a.mp4'}] * 2},
    'videos: got None, wanted a media path': _rl(video=None),
    'media root': _rl(video='../a.mp4'),
    "extra_info: got '{broken', wanted JSON": _rl() | {'extra_info': '{broken'},
    r"extra_info: got \[1\], wanted a JSON object": _rl() | {'extra_info': '[1]'},
    r'facts: got \[1\], wanted an object': _rl(facts=[1]),
    r"facts: got \{'system': 5\}, wanted an object": _rl(facts={'system': 5}),
}


@pytest.mark.parametrize('message', BROKEN_RL)
def test_a_broken_rl_row_names_file_row_what_it_got_and_the_way_out(tmp_path, message):
  with pytest.raises(DataError, match=message) as error:
    _tasks(tmp_path, BROKEN_RL[message])
  assert str(error.value).startswith(f'row 0 of {tmp_path}/paravt_rl_x.parquet: ')
  assert str(error.value).endswith('fix the row or set data.skip_bad_rows=True (counted in data/skipped)')


@pytest.mark.parametrize('message', BROKEN_RL)
def test_with_the_option_a_broken_row_is_skipped_and_counted(tmp_path, message):
  counts = collections.Counter()
  broken = _write(tmp_path / 'broken.parquet', BROKEN_RL[message])
  whole = _write(tmp_path / 'whole.parquet', _rl())
  assert [task.id for task in rows.rl_tasks([broken, whole], tmp_path, SKIP, counts)] == ['whole.parquet:0']
  assert counts == {'data/skipped': 1}


def test_an_id_may_come_once_only(tmp_path):
  with pytest.raises(DataError, match=r"row 1 .*got 'q' again \(first in paravt_rl_x.parquet:0\)"):
    _tasks(tmp_path, _rl(id='q'), _rl(id='q'))


def test_a_missing_video_breaks_the_row_when_media_are_required(tmp_path):
  strict = RowOptions(skip_bad_rows=False, require_media=True)
  with pytest.raises(DataError, match=r"no file at .*/media/selfqa/a.mp4.*unpack the archives"):
    _tasks(tmp_path, _rl(), options=strict)
  (tmp_path / 'media/selfqa').mkdir(parents=True)
  (tmp_path / 'media/selfqa/a.mp4').touch()
  assert len(_tasks(tmp_path, _rl(), options=strict)) == 1


def test_files_that_are_missing_no_parquet_or_of_another_schema_are_errors_even_when_rows_may_be_skipped(tmp_path):
  (tmp_path / 'text.parquet').write_text('not parquet')
  _write(tmp_path / 'other.parquet', {'messages': '[]'})
  for name, message in (('none', 'no such file'), ('text', 'not a readable parquet file'), ('other', r"missing: \['prompt'")):
    with pytest.raises(DataError, match=message):
      rows.rl_tasks([tmp_path / f'{name}.parquet'], tmp_path, SKIP, collections.Counter())


def test_a_file_with_no_usable_row_is_an_error(tmp_path):
  with pytest.raises(DataError, match=r'no usable row \(2 skipped\)'):
    _tasks(tmp_path, _rl(answer='E'), _rl(answer='E'), options=SKIP)

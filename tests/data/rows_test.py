"""Rows of the published RL schema, and every way in which one can be broken."""

import collections
import dataclasses
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
  return {
    'prompt': [{'role': 'user', 'content': question}],
    'videos': [{'video': video}],
    'extra_info': json.dumps({'answer': 'B', 'question_type': 'mcq'} | info),
  }


def _write(path, *table):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table)), path)
  return path


def _tasks(tmp_path, *table, options=STRICT, counts=None):
  file = _write(tmp_path / 'paravt_rl_x.parquet', *table)
  return rows.rl_tasks(
    [file], tmp_path / 'media', options, collections.Counter() if counts is None else counts
  )


def test_an_rl_row_becomes_a_task(tmp_path):
  (task,) = _tasks(
    tmp_path, _rl(id='q7', facts={'windows': [[39, 43]]}) | {'data_source': 'charades_tvg'}
  )
  assert task == Task(
    id='q7',
    videos=(str(tmp_path / 'media/selfqa/a.mp4'),),
    question='What appears at 41?\nA. red\nB. a blue car\nC. green',
    question_type='mcq',
    answer='B',
    options=('red', 'a blue car', 'green'),
    source='charades_tvg',
    facts={'windows': [[39, 43]]},
  )


def test_a_row_without_an_id_is_named_by_file_and_row(tmp_path):
  assert [task.id for task in _tasks(tmp_path, _rl(), _rl())] == [
    'paravt_rl_x.parquet:0',
    'paravt_rl_x.parquet:1',
  ]


def test_zero_is_an_id_too(tmp_path):
  assert _tasks(tmp_path, _rl(id=0))[0].id == '0'


def test_a_system_message_of_the_row_is_kept(tmp_path):
  row = _rl()
  row['prompt'] = [{'role': 'system', 'content': '<tools>theirs</tools>'}, *row['prompt']]
  assert _tasks(tmp_path, row)[0].facts == {'system': '<tools>theirs</tools>'}


@pytest.mark.parametrize(
  ('question', 'options', 'asked', 'want'),
  [
    ('<video>What?', ['red', 'blue'], 'What?\nA. red\nB. blue', ('red', 'blue')),
    ('<video>What?', ['A. red', 'B. blue'], 'What?\nA. red\nB. blue', ('red', 'blue')),
    ('<video>What?\nA. red\nB. blue', ['red', 'blue'], 'What?\nA. red\nB. blue', ('red', 'blue')),
    ('What?\n(A) red\n(B) blue\n<video>', None, 'What?\n(A) red\n(B) blue', ('red', 'blue')),
    (
      '<video>A. Smith asks: what?\nA) red\nB) blue',
      None,
      'A. Smith asks: what?\nA) red\nB) blue',
      ('red', 'blue'),
    ),
  ],
)
def test_options_come_from_the_row_or_from_the_questions_lines_and_are_asked_once(
  tmp_path, question, options, asked, want
):
  (task,) = _tasks(tmp_path, _rl(question, **({'options': options} if options else {})))
  assert (task.question, task.options) == (asked, want)


@pytest.mark.parametrize(
  ('kind', 'answer', 'want'),
  [
    ('mcq', ' B ', 'B'),
    ('mcq', '(B)', 'B'),
    ('mcq', 'B. a blue car', 'B'),
    ('tvg', [3.5, 7], '3.5,7'),
    ('tvg', '3.5, 7', '3.5,7'),
    ('tvg', '[3.5, 7.25]', '3.5,7.25'),
    ('tvg', '3 to 7', '3,7'),
    ('oe', ' the red car ', 'the red car'),
    ('oe', 3, '3'),
  ],
)
def test_answers_are_brought_to_one_form(tmp_path, kind, answer, want):
  (task,) = _tasks(tmp_path, _rl(question_type=kind, answer=answer))
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
  r"answer: got \['a', 2\]|answer: got 'a', wanted a number": _rl(
    question_type='tvg', answer=['a', 2]
  ),
  'answer: got NaN|answer: got nan': _rl(question_type='tvg', answer=[float('nan'), 2]),
  "answer: got ' ', wanted a text": _rl(question_type='oe', answer=' '),
  'answer: got True, wanted a text': _rl(question_type='oe', answer=True),
  'prompt: got 1 user messages with 0 <video>, wanted one message with 1': _rl('What?'),
  'prompt: got 1 user messages with 2 <video>, wanted one message with 1': _rl(
    '<video><video>What?'
  ),
  'prompt: got 2 user messages': _rl() | {'prompt': _rl()['prompt'] * 2},
  'prompt: got 1 user messages with 1 <video>, wanted one message with 0': _rl() | {'videos': None},
  'wanted a question': _rl('<video>', question_type='oe'),
  "prompt: got role 'assistant'": _rl() | {'prompt': [{'role': 'assistant', 'content': 'x'}]},
  'extra_info.answer: got 1000.*, wanted a number': _rl(
    '<video>When?', question_type='tvg', answer=[3, 10**400]
  ),
  'prompt: got role {': _rl() | {'prompt': [{'role': {'a': 'b'}, 'content': 'x'}]},
  'prompt: got None, wanted a non-empty list': _rl() | {'prompt': None},
  'prompt: got 1 user messages with 1 <video>, wanted one message with 2': _rl()
  | {'videos': [{'video': 'selfqa/a.mp4'}] * 2},
  'videos: got .*, wanted a non-empty list': _rl() | {'videos': [['selfqa/a.mp4']]},
  'videos: got None, wanted a media path': _rl(video=None),
  'media root': _rl(video='../a.mp4'),
  'images: got .*i.png.*, wanted none': _rl() | {'images': [{'image': 'selfqa/i.png'}]},
  "extra_info: got '{broken', wanted JSON": _rl() | {'extra_info': '{broken'},
  r'extra_info: got \[1\], wanted a JSON object': _rl() | {'extra_info': '[1]'},
  r'facts: got \[1\], wanted an object': _rl(facts=[1]),
  r'facts: got .*nan.*, wanted an object of finite numbers': _rl(facts={'x': float('nan')}),
  'extra_info: got .*surrogates not allowed': _rl(id='\ud800'),
  'extra_info: got .*recursion': _rl() | {'extra_info': '[' * 100_000},
  r"facts: got \{'system': 5\}, wanted an object": _rl(facts={'system': 5}),
}


@pytest.mark.parametrize('message', BROKEN_RL)
def test_a_broken_rl_row_names_file_row_what_it_got_and_the_way_out(tmp_path, message):
  with pytest.raises(DataError, match=message) as error:
    _tasks(tmp_path, BROKEN_RL[message])
  assert str(error.value).startswith(f'row 0 of {tmp_path}/paravt_rl_x.parquet: ')
  assert str(error.value).endswith(
    'fix the row or set data.skip_bad_rows=True (counted in data/skipped)'
  )


@pytest.mark.parametrize('message', BROKEN_RL)
def test_with_the_option_a_broken_row_is_skipped_and_counted(tmp_path, message):
  counts = collections.Counter()
  broken = _write(tmp_path / 'broken.parquet', BROKEN_RL[message])
  whole = _write(tmp_path / 'whole.parquet', _rl())
  assert [task.id for task in rows.rl_tasks([broken, whole], tmp_path, SKIP, counts)] == [
    'whole.parquet:0'
  ]
  assert counts.total() == 1


def test_an_id_may_come_once_only(tmp_path):
  with pytest.raises(DataError, match=r"row 1 .*got 'q' again \(first in paravt_rl_x.parquet:0\)"):
    _tasks(tmp_path, _rl(id='q'), _rl(id='q'))


def test_a_missing_video_breaks_the_row_when_media_are_required(tmp_path):
  strict = RowOptions(skip_bad_rows=False, require_media=True)
  with pytest.raises(DataError, match=r'no file at .*/media/selfqa/a.mp4.*unpack the archives'):
    _tasks(tmp_path, _rl(), options=strict)
  (tmp_path / 'media/selfqa').mkdir(parents=True)
  (tmp_path / 'media/selfqa/a.mp4').touch()
  assert len(_tasks(tmp_path, _rl(), options=strict)) == 1


def test_files_that_are_missing_no_parquet_or_of_another_schema_are_errors_even_when_rows_may_be_skipped(
  tmp_path,
):
  (tmp_path / 'text.parquet').write_text('not parquet')
  _write(tmp_path / 'other.parquet', {'messages': '[]'})
  for name, message in (
    ('none', 'no such file'),
    ('text', 'not a readable parquet file'),
    ('other', r"missing: \['prompt'"),
  ):
    with pytest.raises(DataError, match=message):
      rows.rl_tasks([tmp_path / f'{name}.parquet'], tmp_path, SKIP, collections.Counter())


def test_a_file_with_no_usable_row_is_an_error(tmp_path):
  with pytest.raises(
    DataError, match=r'no usable row \(2 skipped by reason: answer 2\), wanted at least one'
  ):
    _tasks(tmp_path, _rl(answer='E'), _rl(answer='E'), options=SKIP)


# Videos and their slots


def _many(content, *videos, **info):
  return _rl(content, question_type='oe', **info) | {
    'videos': [{'video': video} for video in videos]
  }


@pytest.mark.parametrize(
  ('content', 'count', 'asked', 'slots'),
  [
    ('<video>\nWhat?', 1, 'What?', ()),
    (' <video> <video>\n<video>What?', 3, 'What?', ()),
    ('What?\n<video>', 1, 'What?', (5,)),
    ('See <video>: what?', 1, 'See : what?', (4,)),
    ('First: <video>\nSecond: <video>\nWhat?', 2, 'First: \nSecond: \nWhat?', (7, 16)),
    ('<video>Then? <video>', 2, 'Then?', (0, 5)),
    ('What is 2 + 2?', 0, 'What is 2 + 2?', ()),
  ],
)
def test_videos_stand_where_their_slots_stood_and_the_question_is_told_without_them(
  tmp_path, content, count, asked, slots
):
  names = [f'selfqa/{i}.mp4' for i in range(count)]
  (task,) = _tasks(tmp_path, _many(content, *names))
  assert (task.question, task.slots) == (asked, slots)
  assert task.videos == tuple(str(tmp_path / 'media' / name) for name in names)
  assert task.video == (str(tmp_path / 'media/selfqa/0.mp4') if count else '')


def test_options_that_are_videos_go_by_their_labels(tmp_path):
  row = _rl('Which shows a cat?\nA. <video>\nB. <video>') | {
    'videos': [{'video': 'selfqa/a.mp4'}, {'video': 'selfqa/b.mp4'}]
  }
  (task,) = _tasks(tmp_path, row)
  assert (task.options, task.question) == (('Video 1', 'Video 2'), 'Which shows a cat?\nA. \nB.')
  assert task.slots == (22, 25)


def test_windows_line_ends_are_read_as_line_ends(tmp_path):
  unix, windows = _rl(id='u'), _rl(MCQ.replace('\n', '\r\n'), id='w')
  first, second = _tasks(tmp_path, unix, windows)
  assert (first.question, first.options) == (second.question, second.options)


def test_extra_columns_in_any_order_and_empty_shards_are_no_matter(tmp_path):
  row = _rl(id='q')
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist(
      [{'reward_model': {'x': 1}, **dict(reversed(row.items())), 'zz': b'?'}]
    ),
    tmp_path / 'other.parquet',
  )
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row])[:0], tmp_path / 'empty.parquet')
  found = rows.rl_tasks(
    [tmp_path / 'empty.parquet', tmp_path / 'other.parquet'],
    tmp_path / 'media',
    STRICT,
    collections.Counter(),
  )
  assert found == _tasks(tmp_path, row)
  with pytest.raises(DataError, match=r'no usable row \(0 skipped\)'):
    rows.rl_tasks([tmp_path / 'empty.parquet'], tmp_path, STRICT, collections.Counter())


# Which rows are asked for


def _typed(number, kind, source, **changes):
  content = '<video>What?\nA. red\nB. blue' if kind == 'mcq' else '<video>What?'
  answer = {'mcq': 'B', 'tvg': [1, 2], 'oe': 'red'}[kind]
  return _rl(content, question_type=kind, answer=answer, id=f'{source}{number}', **changes) | {
    'data_source': source
  }


TABLE = [
  _typed(i, kind, source)
  for i in range(5)
  for kind, source in (('mcq', 'hacs'), ('tvg', 'charades'), ('oe', 'ego'))
]


def _wanted(tmp_path, table=TABLE, options=STRICT, counts=None, seed=0, **wanted):
  file = _write(tmp_path / 'paravt_rl_x.parquet', *table)
  found = rows.rl_tasks(
    [file],
    tmp_path,
    options,
    collections.Counter() if counts is None else counts,
    None,
    dataclasses.replace(rows.EVERY, **wanted),
    seed,
  )
  return [task.id for task in found]


def test_types_and_sources_choose_among_the_rows(tmp_path):
  assert (
    _wanted(tmp_path) == [task.id for task in _tasks(tmp_path, *TABLE)]
    and len(_wanted(tmp_path)) == 15
  )
  assert _wanted(tmp_path, question_types=('oe',)) == ['ego0', 'ego1', 'ego2', 'ego3', 'ego4']
  assert {name[:-1] for name in _wanted(tmp_path, sources=('hacs', 'ego'))} == {'hacs', 'ego'}
  assert len(_wanted(tmp_path, sources=('hacs', 'ego'), question_types=('oe', 'tvg'))) == 5


def test_of_a_row_that_is_not_asked_for_nothing_else_is_looked_at(tmp_path):
  counts = collections.Counter()
  table = [
    *TABLE,
    _rl('<video>What?', question_type='oe', answer='x', video='museg/charades/absent.mp4')
    | {'data_source': 'far'},
  ]
  options = RowOptions(skip_bad_rows=False, require_media=True)
  (tmp_path / 'selfqa').mkdir()
  (tmp_path / 'selfqa/a.mp4').touch()
  assert (
    len(_wanted(tmp_path, table, options, counts, sources=('hacs', 'charades'))) == 10
    and not counts
  )
  with pytest.raises(DataError, match='no file at'):
    _wanted(tmp_path, table, options)


def test_filters_that_leave_nothing_say_what_each_removed(tmp_path):
  with pytest.raises(
    DataError,
    match=r"of 15, data.question_types=\('tvg',\) 5 and data.sources=\('hacs',\) 10 were removed; "
    r'widen',
  ):
    _wanted(tmp_path, sources=('hacs',), question_types=('tvg',))


def test_a_source_that_no_row_has_is_an_error_with_those_there_are(tmp_path):
  with pytest.raises(
    DataError, match=r"data.sources: got 'hcas', wanted .*'hacs' 5, 'charades' 5, 'ego' 5"
  ):
    _wanted(tmp_path, sources=('hacs', 'hcas'))


def test_a_sub_sample_keeps_the_order_depends_on_seed_and_ids_alone_and_only_grows(tmp_path):
  every, few, more = _wanted(tmp_path), _wanted(tmp_path, max_rows=4), _wanted(tmp_path, max_rows=9)
  assert few == ['charades0', 'ego0', 'charades4', 'ego4']  # the same on every machine
  assert (
    set(few) < set(more) and len(more) == 9 and more == [name for name in every if name in more]
  )
  assert (
    set(_wanted(tmp_path, TABLE[::-1], max_rows=4))
    == set(few)
    != set(_wanted(tmp_path, max_rows=4, seed=1))
  )
  assert _wanted(tmp_path, max_rows=15) == _wanted(tmp_path, max_rows=99) == every


def test_a_sub_sample_is_taken_of_the_rows_that_passed(tmp_path):
  assert {name[:-1] for name in _wanted(tmp_path, max_rows=3, sources=('ego',))} == {'ego'}


def test_too_many_broken_rows_are_refused_even_where_they_may_be_skipped(tmp_path):
  table = [*TABLE, _rl(answer='E', id='x'), _rl('What?', id='y')]
  assert len(_wanted(tmp_path, table, SKIP, max_bad_share=2 / 17)) == 15
  with pytest.raises(
    DataError,
    match=r'2 of 17 rows are broken \(answer 1, slots 1\), wanted a share of at most 0.1; '
    r'.*data.max_bad_share',
  ):
    _wanted(tmp_path, table, SKIP, max_bad_share=0.1)


def test_skipped_rows_are_counted_by_reason_and_listed_by_file_and_number(tmp_path):
  counts, listed = collections.Counter(), []
  file = _write(
    tmp_path / 'a.parquet',
    _rl(id='a'),
    _rl(answer='E'),
    _rl(question_type='mc'),
    _rl(id='a'),
    _rl(video='../a'),
    _rl('<video>?'),
  )
  assert len(rows.rl_tasks([file], tmp_path, SKIP, counts, listed)) == 1
  assert counts == {
    'answer': 1,
    'question_type': 1,
    'duplicate_id': 1,
    'media_path': 1,
    'options': 1,
  }
  assert [line.split('\t')[:2] for line in listed] == [
    [f'{file}:1', 'answer'],
    [f'{file}:2', 'question_type'],
    [f'{file}:3', 'duplicate_id'],
    [f'{file}:4', 'media_path'],
    [f'{file}:5', 'options'],
  ]
  assert listed[0].endswith("extra_info.answer: 'E' is not one of 3 options")


def test_a_character_that_json_spells_as_a_pair_is_one_character(tmp_path):
  (task,) = _tasks(tmp_path, _rl('<video>What?', question_type='oe', answer='\U0001f600'))
  assert task.answer == '\U0001f600'


ELEVEN = [f'colour {letter}' for letter in 'ABCDEFGHIJK']


@pytest.mark.parametrize(
  ('row', 'says'),
  [
    (_rl('<video>What?', options=ELEVEN), 'got 11 options, wanted 10 at most'),
    (
      _rl('<video>What?\n' + '\n'.join(f'{c[-1]}. {c}' for c in ELEVEN)),
      'got more than 10 options',
    ),
    (
      _rl('<video>What?', options=['red', 'blue', 'red'], answer='red'),
      "'red' stands among the options twice",
    ),
    (
      _rl('<video>What?', options=['red', 'blue', 'red'], answer='C'),
      "'C' stands among the options twice",
    ),
    (_rl('<video>What?', options=['red', 'blue', 'Red']), 'A and C differ only in case'),
    (
      _rl('<video>What?', options=['red', 'blue'], answer='A. blue'),
      'the letter of one option and the text of another',
    ),
    (_rl('<video>What?', options={'A': 'red', 'C': 'blue'}), r"got the keys \['A', 'C'\]"),
    (_rl('<video>What?', question_type='oe', answer=float('nan')), 'got nan, wanted a text'),
  ],
)
def test_options_and_golds_that_mean_two_things_are_refused_with_the_row(tmp_path, row, says):
  with pytest.raises(DataError, match=f'row 0 of .*{says}'):
    _tasks(tmp_path, row)


@pytest.mark.parametrize(
  ('options', 'answer', 'want'),
  [
    (['red', 'blue'], 'Blue', 'B'),
    (['A. red', 'B. blue'], 'red', 'A'),
    ({'A': 'red', 'B': 'blue', 'C': None}, 'B', 'B'),
    ('["red", "blue"]', 'A', 'A'),
    (['red', 'red', 'blue'], 'C', 'C'),
  ],
)
def test_a_gold_may_be_an_options_text_and_options_an_object_or_json(
  tmp_path, options, answer, want
):
  (task,) = _tasks(tmp_path, _rl('<video>What?', options=options, answer=answer))
  assert task.answer == want


def _untyped(question, answer, **info):
  row = _rl(question, answer=answer, **info)
  held = json.loads(row['extra_info'])
  del held['question_type']
  return row | {'extra_info': json.dumps(held)}


def test_a_row_without_a_type_is_of_the_type_that_it_holds_and_is_counted(tmp_path, caplog):
  table = [
    _untyped(MCQ, 'B'),
    _untyped('<video>What?', 'red', options=['red', 'blue']),
    _untyped('<video>When?', [3.5, 7]),
    _untyped('<video>When?', '3.5 - 7'),
    _untyped('<video>What does he wave?', 'A red flag.', video_segment=[10.0, 20.0]),
  ]
  assert [task.question_type for task in _tasks(tmp_path, *table)] == [
    'mcq',
    'mcq',
    'tvg',
    'tvg',
    'oe',
  ]
  assert [record.getMessage().partition(': ')[2] for record in caplog.records] == [
    '5 rows have no question_type; by what they hold they are mcq 2, tvg 2, oe 1'
  ]
  with pytest.raises(
    DataError, match=r'row 0 of .*options and the span \[1, 2\], wanted question_type'
  ):
    _tasks(tmp_path, _untyped(MCQ, [1, 2]))

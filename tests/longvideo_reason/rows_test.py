"""The files that come out: read back by the very code that trains on them."""

import collections
import json

import pyarrow.parquet as pq

from paravt_jax.chat import prompts, toolcalls
from paravt_jax.data import conversations, provenance
from paravt_jax.data import rows as data_rows
from paravt_jax.data.fields import RowOptions
from paravt_jax.longvideo_reason.items import Caption, Question, Step
from paravt_jax.longvideo_reason.rows import (
  Result,
  TraceOptions,
  parquet_bytes,
  reason_json,
  rl_row,
  rounds,
  sft_row,
)
from paravt_jax.types import ToolCall

QUESTION = Question(
  'E. coli grows: warum?',
  ('It rains', 'A. b', 'ü <x>', '{"a": 1}'),
  'C',
  (
    Step(12.0, 18.0, ('First.', 'Then.')),
    Step(10.0, 12.0, ('Again.',)),
    Step(29.97, 41.0, ('So.',)),
  ),
)
CAPTIONS = tuple(Caption(10.0 * i, 10.0 * i + 10, f'Clip {i}.') for i in (0, 1, 2, 3, 5))
RESULT = Result('a/ä.mp4', 'a/ä.mp4', QUESTION, CAPTIONS)
TRACE = TraceOptions(calls=True, max_parallel=5, max_rounds=3)
OPTIONS = RowOptions(skip_bad_rows=False, require_media=False)


def written(tmp_path, rows, kind):
  path = tmp_path / f'{kind}.parquet'
  path.write_bytes(parquet_bytes(rows, kind, {'tool': 'x'}))
  return path


def turns(result, options=TRACE):
  """[(role, text)] of an SFT row's messages."""
  return [
    (message['role'], ''.join(part.get('text', '') for part in message['content']))
    for message in json.loads(sft_row(result, options)['messages'])
  ]


def test_an_rl_row_is_read_back_as_the_task_with_its_options_in_the_problem(tmp_path):
  path = written(tmp_path, [rl_row(RESULT)], 'rl')
  (task,) = data_rows.rl_tasks([path], tmp_path, OPTIONS, collections.Counter())
  assert (task.id, task.question_type, task.answer, task.source) == (
    'longvideoreason/a/ä.mp4',
    'mcq',
    'C',
    'longvideoreason',
  )
  assert task.options == QUESTION.options and task.video == str(tmp_path / 'a/ä.mp4')
  assert task.question == 'E. coli grows: warum?\nA. It rains\nB. A. b\nC. ü <x>\nD. {"a": 1}'


def test_an_sft_row_is_read_back_as_a_conversation_about_the_video(tmp_path):
  path = written(tmp_path, [sft_row(RESULT, TRACE)], 'sft')
  (found,) = conversations.sft_conversations([path], tmp_path, OPTIONS, collections.Counter())
  assert [message.role for message in found.messages] == [
    'system',
    'user',
    'assistant',
    'user',
    'user',
    'assistant',
  ]
  assert found.messages[0].parts == (prompts.system(),)
  assert found.messages[1].parts == (
    conversations.VideoRef(str(tmp_path / 'a/ä.mp4'), None, None, None),
    f'{QUESTION.question}\nA. It rains\nB. A. b\nC. ü <x>\nD. {{"a": 1}}\nAnswer with the letter.',
  )


def test_the_teacher_crops_the_cited_clips_and_is_told_what_was_seen_in_just_those():
  found = turns(RESULT)
  assert toolcalls.parse(found[2][1]) == tuple(
    ToolCall('crop_video', {'start_time': start, 'end_time': start + 10}) for start in (10.0, 30.0)
  )
  assert found[2][1].startswith(
    '<think>\nLook closer at 10 to 20, 30 to 40 seconds.\n</think>\n<tool_call>'
  )
  assert found[3:5] == [
    ('user', '<tool_response>\nClip 1.\n</tool_response>'),
    ('user', '<tool_response>\nClip 3.\n</tool_response>'),
  ]
  assert found[5] == (
    'assistant',
    '<think>\n[12 to 18] First. Then.\n[10 to 12] Again.\n[29.97 to 41] '
    'So.\n</think>\n<answer>C</answer>',
  )


def test_calls_come_in_rounds_and_beyond_the_agents_limits_there_are_none():
  many = Result(
    'a', 'a', Question('Q', ('a', 'b', 'c', 'd'), 'A', (Step(0.0, 60.0, ('x',)),)), CAPTIONS
  )
  assert [len(each) for each in rounds(many, TraceOptions(True, 2, 3))] == [2, 2, 1]
  assert rounds(many, TraceOptions(True, 2, 2)) == [] == rounds(many, TraceOptions(False, 5, 3))
  assert [role for role, _ in turns(many, TraceOptions(False, 5, 3))] == [
    'system',
    'user',
    'assistant',
  ]


def test_the_json_holds_the_published_keys_and_the_rewritten_reasons_where_there_are_some():
  fluent = Result(
    'b',
    'b',
    Question('Q', ('a', 'b', 'c', 'd'), 'A', (Step(0.0, 10.0, ('x',)),), 'As I see.'),
    CAPTIONS,
  )
  assert (
    reason_json([RESULT], rewritten=True)
    == reason_json([RESULT], rewritten=False)
    == [
      {
        'QUESTION': QUESTION.question,
        'OPTIONS': {'A': 'It rains', 'B': 'A. b', 'C': 'ü <x>', 'D': '{"a": 1}'},
        'ANSWER': 'C',
        'REASONS': {
          'Step 1': {'timestamp': '12 to 18', 'reasons': ['First.', 'Then.']},
          'Step 2': {'timestamp': '10 to 12', 'reasons': ['Again.']},
          'Step 3': {'timestamp': '29.97 to 41', 'reasons': ['So.']},
        },
        'video_name': 'a/ä.mp4',
      }
    ]
  )
  assert [each['REASONS'] for each in reason_json([fluent], rewritten=True)] == ['As I see.']
  assert turns(fluent)[-1][1] == '<think>\nAs I see.\n</think>\n<answer>A</answer>'


def test_a_file_says_what_it_was_made_from_and_may_be_empty(tmp_path):
  path = written(tmp_path, [], 'sft')
  assert (
    json.loads(pq.read_schema(path).metadata[provenance.KEY]) == {'tool': 'x'}
    and pq.read_table(path).num_rows == 0
  )

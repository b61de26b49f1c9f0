"""Rows of the published SFT schema, and every way in which one can be broken."""

import collections
import json

import pyarrow
import pyarrow.parquet
import pytest

from paravt_jax.data import conversations
from paravt_jax.data.conversations import Conversation, ImageRef, Message, VideoRef
from paravt_jax.data.fields import Broken, RowOptions
from paravt_jax.errors import DataError

STRICT = RowOptions(skip_bad_rows=False, require_media=False)


def _write(path, *table):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table)), path)
  return path


CALL = '<think>\nlook closer\n</think>\n<tool_call>{}</tool_call>'
MESSAGES = [
  {'role': 'system', 'content': 'You see.'},
  {
    'role': 'user',
    'content': [
      {'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4', 'nframes': 8, 'video_start': 2.5}},
      {'type': 'text', 'text': 'What?'},
      {'type': 'image_url', 'image_url': {'url': 'selfqa/i.png'}},
    ],
  },
  {'role': 'assistant', 'content': [{'type': 'text', 'text': CALL}]},
  {'role': 'user', 'content': '<tool_response>\nred\n</tool_response>'},
  {'role': 'assistant', 'content': '<think>\nit is red\n</think>\n<answer>red</answer>'},
]


def _conversations(tmp_path, messages, options=STRICT):
  file = _write(tmp_path / 'paravt_sft_x.parquet', {'messages': messages})
  return conversations.sft_conversations([file], tmp_path, options, collections.Counter())


def test_an_sft_row_becomes_a_conversation(tmp_path):
  (got,) = _conversations(tmp_path, json.dumps(MESSAGES))
  assert got == Conversation(
    'paravt_sft_x.parquet:0',
    (
      Message('system', ('You see.',)),
      Message(
        'user',
        (
          VideoRef(f'{tmp_path}/selfqa/a.mp4', 8, 2.5, None),
          'What?',
          ImageRef(f'{tmp_path}/selfqa/i.png'),
        ),
      ),
      Message('assistant', (CALL,)),
      Message('user', ('<tool_response>\nred\n</tool_response>',)),
      Message('assistant', ('<think>\nit is red\n</think>\n<answer>red</answer>',)),
    ),
  )


def test_messages_may_be_lists_whose_absent_keys_parquet_filled_with_nulls(tmp_path):
  messages = [
    {
      'role': m['role'],
      'content': m['content']
      if isinstance(m['content'], list)
      else [{'type': 'text', 'text': m['content']}],
    }
    for m in MESSAGES
  ]
  assert _conversations(tmp_path, messages) == _conversations(tmp_path, json.dumps(MESSAGES))


USER, DONE = {'role': 'user', 'content': 'What?'}, {'role': 'assistant', 'content': 'red'}


def _video(**value):
  return [
    {
      'role': 'user',
      'content': [{'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4'} | value}],
    },
    DONE,
  ]


BROKEN_SFT = {
  'messages: got .*, wanted JSON': '{broken',
  r'messages: got \[\], wanted a non-empty list': '[]',
  r"messages\[0\].role: got 'tool', wanted system, user or assistant": json.dumps(
    [{'role': 'tool', 'content': 'x'}, DONE]
  ),
  r'messages\[1\].role: got a system message in the middle': json.dumps(
    [USER, {'role': 'system', 'content': 'x'}, DONE]
  ),
  r'wanted a user and, last, an assistant': json.dumps([USER, DONE, USER]),
  r"got roles \['assistant'\]": json.dumps([DONE]),
  r'messages\[1\].content: got media in a assistant message': json.dumps(
    [USER, _video()[0] | {'role': 'assistant'}]
  ),
  r'messages\[0\].content: got 3, wanted a non-empty list': json.dumps(
    [{'role': 'user', 'content': 3}, DONE]
  ),
  r'messages\[0\].content\[0\]: got .*, wanted text, video_url': json.dumps(
    [{'role': 'user', 'content': [{'type': 'a'}]}, DONE]
  ),
  r'video_url.url: got None, wanted a media path': json.dumps(_video(url=None)),
  r"media path 'file:///etc/passwd'": json.dumps(_video(url='file:///etc/passwd')),
  r'nframes: got 0, wanted a positive integer': json.dumps(_video(nframes=0)),
  r'nframes: got 2.5, wanted a positive integer': json.dumps(_video(nframes=2.5)),
  r"video_start: got 'x', wanted a number": json.dumps(_video(video_start='x')),
  r'got video_start 5.0 and video_end 5.0, wanted start < end': json.dumps(
    _video(video_start=5, video_end=5)
  ),
}


@pytest.mark.parametrize('message', BROKEN_SFT)
def test_a_broken_sft_row_names_file_row_what_it_got_and_the_way_out(tmp_path, message):
  with pytest.raises(DataError, match=message) as error:
    _conversations(tmp_path, BROKEN_SFT[message])
  assert str(error.value).startswith(f'row 0 of {tmp_path}/paravt_sft_x.parquet: ')
  assert 'set data.skip_bad_rows=True' in str(error.value)


def test_line_ends_of_windows_are_line_ends(tmp_path):
  rows = [
    {'role': 'user', 'content': [{'type': 'text', 'text': 'a\r\nb'}]},
    {'role': 'assistant', 'content': '<think>\r\nab\r\n</think>\r\nc'},
  ]
  (found,) = _conversations(tmp_path, json.dumps(rows))
  assert [message.parts for message in found.messages] == [('a\nb',), ('<think>\nab\n</think>\nc',)]


CALLED = {
  'type': 'function',
  'id': 'c1',
  'function': {'name': 'crop_video', 'arguments': {'start_time': 1, 'end_time': 5}},
}
WRITTEN = (
  '<tool_call>\n{"name": "crop_video", "arguments": {"start_time": 1, "end_time": 5}}\n</tool_call>'
)
AS_TEXT = {'name': 'crop_video', 'arguments': '{"start_time": 1, "end_time": 5}'}
FILLED = {
  'name': 'crop_video',
  'arguments': {'start_time': 1, 'end_time': 5, 'query': None},
  'id': None,
}


def _turn(tmp_path, **message):
  (found,) = _conversations(tmp_path, json.dumps([USER, {'role': 'assistant'} | message]))
  return found.messages[1].parts[0]


@pytest.mark.parametrize(
  ('message', 'want'),
  [
    (
      {'content': '<think>\nx\n</think>\n', 'tool_calls': [CALLED]},
      f'<think>\nx\n</think>\n{WRITTEN}',
    ),
    ({'content': 'Look.', 'tool_calls': [CALLED, AS_TEXT]}, f'Look.\n{WRITTEN}\n{WRITTEN}'),
    ({'content': None, 'tool_calls': json.dumps([FILLED])}, WRITTEN),
    ({'content': 'red', 'reasoning_content': 'it is red\n'}, '<think>\nit is red\n</think>\n\nred'),
    (
      {'content': '', 'reasoning_content': 'x', 'tool_calls': [CALLED]},
      f'<think>\nx\n</think>\n\n{WRITTEN}',
    ),
    ({'content': 'red', 'reasoning_content': None, 'tool_calls': []}, 'red'),
  ],
)
def test_calls_and_reasoning_of_published_sets_become_what_the_model_writes(
  tmp_path, message, want
):
  assert _turn(tmp_path, **message) == want


def test_results_of_calls_are_shown_as_a_rollout_shows_them(tmp_path):
  calls = {'role': 'assistant', 'content': None, 'tool_calls': [CALLED, CALLED | {'id': 'c2'}]}
  results = [
    {'role': 'tool', 'content': 'red', 'tool_call_id': 'c1', 'name': 'crop_video'},
    {'role': 'tool', 'content': '<tool_response>\nblue\n</tool_response>', 'tool_call_id': 'c2'},
  ]
  (found,) = _conversations(tmp_path, json.dumps([USER, calls, *results, DONE]))
  assert found.messages[2:4] == (
    Message('user', ('<tool_response>\nred\n</tool_response>',)),
    Message('user', ('<tool_response>\nblue\n</tool_response>',)),
  )
  with pytest.raises(DataError, match=r"messages\[2\].tool_call_id: got 'c2', wanted 'c1'"):
    _conversations(tmp_path, json.dumps([USER, calls, *reversed(results), DONE]))


@pytest.mark.parametrize(
  'mask', [{'loss': False}, {'weight': 0}, {'loss_mask': 0.0}, {'train': False, 'loss': 0}]
)
def test_a_masked_turn_is_kept_and_not_trained_on(tmp_path, mask):
  (found,) = _conversations(
    tmp_path, json.dumps([USER | {'weight': 1}, DONE | mask, USER, DONE | {'loss': True}])
  )
  assert [message.is_target for message in found.messages] == [True, False, True, True]


def test_a_row_whose_every_turn_is_masked_is_broken(tmp_path):
  with pytest.raises(DataError, match='every assistant turn is masked'):
    _conversations(tmp_path, json.dumps([USER, DONE | {'loss': False}]))


@pytest.mark.parametrize(
  'content',
  [
    [{'type': 'video', 'video': 'selfqa/a.mp4', 'nframes': 4}, {'type': 'text', 'text': 'What?'}],
    [
      {'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4', 'nframes': 4}, 'text': None},
      {'type': 'text', 'text': 'What?'},
    ],
  ],
)
@pytest.mark.parametrize('written', [json.dumps, lambda parts: parts])
def test_parts_may_be_written_as_json_text_and_in_qwens_form(tmp_path, content, written):
  (found,) = _conversations(
    tmp_path, json.dumps([{'role': 'user', 'content': written(content)}, DONE])
  )
  assert found.messages[0].parts == (VideoRef(f'{tmp_path}/selfqa/a.mp4', 4, None, None), 'What?')


@pytest.mark.parametrize('text', ['[1, 2]', '[red]', '{"type": "car"}', '[{"box": [1, 2]}]'])
def test_other_text_that_looks_like_json_stays_text(tmp_path, text):
  assert _turn(tmp_path, content=text) == text


@pytest.mark.parametrize(
  ('message', 'says', 'reason'),
  [
    ({'content': 'x', 'refusal': ''}, "got the key 'refusal'", 'unknown_key'),
    (
      {'content': [{'type': 'text', 'text': 'x', 'cache_control': {}}]},
      "got the key 'cache_control'",
      'unknown_key',
    ),
    ({'content': 'x', 'tool_calls': [CALLED | {'extra': 1}]}, "got the key 'extra'", 'unknown_key'),
    (
      {'content': 'x', 'tool_calls': [{'name': 'crop_video', 'arguments': '{broken'}]},
      'wanted JSON',
      'not_json',
    ),
    (
      {'content': 'x', 'tool_calls': [{'name': 'crop_video'}]},
      'wanted a name and arguments',
      'tool_calls',
    ),
    (
      {'content': WRITTEN, 'tool_calls': [CALLED]},
      'tool_calls and a call in the content',
      'tool_calls',
    ),
    (
      {'content': '<think>\ny\n</think>', 'reasoning_content': 'x'},
      'wanted one of them',
      'reasoning',
    ),
    ({'content': 'x', 'weight': 0.5}, 'weight: got 0.5, wanted 0 or 1', 'loss'),
    ({'content': 'x', 'weight': 1, 'loss': False}, 'wanted masks that agree', 'loss'),
    ({'content': ' \n'}, 'empty assistant turn', 'empty_turn'),
    ({'content': None}, 'empty assistant turn', 'empty_turn'),
  ],
)
def test_what_a_message_says_beside_its_text_is_read_or_breaks_the_row(message, says, reason):
  with pytest.raises(Broken, match=says) as error:
    conversations.conversation([USER, {'role': 'assistant'} | message], 'x', '.', STRICT)
  assert error.value.reason == reason


@pytest.mark.parametrize(
  ('user', 'key'),
  [
    ({'role': 'user', 'content': 'x', 'tool_calls': [CALLED]}, 'tool_calls'),
    ({'role': 'user', 'content': [{'type': 'video', 'video': 'selfqa/a.mp4', 'fps': 2}]}, 'fps'),
    (
      {
        'role': 'user',
        'content': [{'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4', 'fps': 2}}],
      },
      'fps',
    ),
    (
      {
        'role': 'user',
        'content': [{'type': 'image_url', 'image_url': {'url': 'selfqa/a.png', 'detail': 'low'}}],
      },
      'detail',
    ),
  ],
)
def test_keys_that_would_change_the_sample_break_the_row(user, key):
  with pytest.raises(Broken, match=f"got the key '{key}'") as error:
    conversations.conversation([user, DONE], 'x', '.', STRICT)
  assert error.value.reason == 'unknown_key'

"""Rows of the published SFT schema, and every way in which one can be broken."""

import collections
import json

import pyarrow
import pyarrow.parquet
import pytest

from paravt_jax.data import conversations
from paravt_jax.data.conversations import Conversation, ImageRef, Message, VideoRef
from paravt_jax.data.fields import RowOptions
from paravt_jax.errors import DataError

STRICT = RowOptions(skip_bad_rows=False, require_media=False)


def _write(path, *table):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table)), path)
  return path


CALL = '<think>\nlook closer\n</think>\n<tool_call>{}</tool_call>'
MESSAGES = [
    {'role': 'system', 'content': 'You see.'},
    {'role': 'user', 'content': [
        {'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4', 'nframes': 8, 'video_start': 2.5}},
        {'type': 'text', 'text': 'What?'}, {'type': 'image_url', 'image_url': {'url': 'selfqa/i.png'}}]},
    {'role': 'assistant', 'content': [{'type': 'text', 'text': CALL}]},
    {'role': 'user', 'content': '<tool_response>\nred\n</tool_response>'},
    {'role': 'assistant', 'content': '<think>\nit is red\n</think>\n<answer>red</answer>'},
]


def _conversations(tmp_path, messages, options=STRICT):
  file = _write(tmp_path / 'paravt_sft_x.parquet', {'messages': messages})
  return conversations.sft_conversations([file], tmp_path, options, collections.Counter())


def test_an_sft_row_becomes_a_conversation(tmp_path):
  got, = _conversations(tmp_path, json.dumps(MESSAGES))
  assert got == Conversation('paravt_sft_x.parquet:0', (
      Message('system', ('You see.',)),
      Message('user', (VideoRef(f'{tmp_path}/selfqa/a.mp4', 8, 2.5, None), 'What?', ImageRef(f'{tmp_path}/selfqa/i.png'))),
      Message('assistant', (CALL,)),
      Message('user', ('<tool_response>\nred\n</tool_response>',)),
      Message('assistant', ('<think>\nit is red\n</think>\n<answer>red</answer>',))))


def test_messages_may_be_lists_whose_absent_keys_parquet_filled_with_nulls(tmp_path):
  messages = [{'role': m['role'], 'content': m['content'] if isinstance(m['content'], list) else
               [{'type': 'text', 'text': m['content']}]} for m in MESSAGES]
  assert _conversations(tmp_path, messages) == _conversations(tmp_path, json.dumps(MESSAGES))


USER, DONE = {'role': 'user', 'content': 'What?'}, {'role': 'assistant', 'content': 'red'}


def _video(**value):
  return [{'role': 'user', 'content': [{'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4'} | value}]}, DONE]


BROKEN_SFT = {
    'messages: got .*, wanted JSON': '{broken',
    r'messages: got \[\], wanted a non-empty list': '[]',
    r"messages\[0\].role: got 'tool', wanted system, user or assistant": json.dumps([{'role': 'tool', 'content': 'x'}, DONE]),
    r'messages\[1\].role: got a system message in the middle': json.dumps([USER, {'role': 'system', 'content': 'x'}, DONE]),
    r'wanted a user and, last, an assistant': json.dumps([USER, DONE, USER]),
    r"got roles \['assistant'\]": json.dumps([DONE]),
    r'messages\[1\].content: got media in a assistant message': json.dumps([USER, _video()[0] | {'role': 'assistant'}]),
    r'messages\[0\].content: got 3, wanted a non-empty list': json.dumps([{'role': 'user', 'content': 3}, DONE]),
    r'messages\[0\].content\[0\]: got .*, wanted text, video_url':
        json.dumps([{'role': 'user', 'content': [{'type': 'a'}]}, DONE]),
    r'video_url.url: got None, wanted a media path': json.dumps(_video(url=None)),
    r"media path 'file:///etc/passwd'": json.dumps(_video(url='file:///etc/passwd')),
    r'nframes: got 0, wanted a positive integer': json.dumps(_video(nframes=0)),
    r'nframes: got 2.5, wanted a positive integer': json.dumps(_video(nframes=2.5)),
    r"video_start: got 'x', wanted a number": json.dumps(_video(video_start='x')),
    r'got video_start 5.0 and video_end 5.0, wanted start < end': json.dumps(_video(video_start=5, video_end=5)),
}


@pytest.mark.parametrize('message', BROKEN_SFT)
def test_a_broken_sft_row_names_file_row_what_it_got_and_the_way_out(tmp_path, message):
  with pytest.raises(DataError, match=message) as error:
    _conversations(tmp_path, BROKEN_SFT[message])
  assert str(error.value).startswith(f'row 0 of {tmp_path}/paravt_sft_x.parquet: ')
  assert 'set data.skip_bad_rows=True' in str(error.value)


def test_line_ends_of_windows_are_line_ends(tmp_path):
  rows = [{'role': 'user', 'content': [{'type': 'text', 'text': 'a\r\nb'}]}, {'role': 'assistant', 'content': '<think>\r\nab\r\n</think>\r\nc'}]
  found, = _conversations(tmp_path, json.dumps(rows))
  assert [message.parts for message in found.messages] == [('a\nb',), ('<think>\nab\n</think>\nc',)]

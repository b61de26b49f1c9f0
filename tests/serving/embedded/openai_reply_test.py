"""The text of a reply, whole and as a stream, and the calls in it."""

import itertools
import json

import pytest

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.serving.embedded import openai_reply
from paravt_jax.testing import tiny

TOK = ChatTokenizer(json.loads(tiny.make_tokenizer([], []).to_str()), 'test')
CALL = '<tool_call>\n{"name": "zoom", "arguments": {"at": "31 °C"}}\n</tool_call>'
HEAD = {'id': 'chatcmpl-1', 'created': 7, 'model': 'm'}


def writer(begun='', stops=(), calls=False):
  return openai_reply.Writer(TOK, begun, stops, (TOK.im_end,), calls)


def ids(text: str) -> list[int]:
  return [*TOK.encode(text, trusted=True).tolist(), TOK.im_end]


def streamed(made, sampled):
  """The deltas of a reply whose tokens come one by one, and the finish reason."""
  sent, chunks = '', []
  for number in range(1, len(sampled)):
    text, stopped = made.text(sampled[:number])
    if stopped:
      sampled = sampled[:number]
      break
    settled = made.settled(text)
    assert settled.startswith(sent)
    sent = settled
  chunks = openai_reply.last_chunks(HEAD, made.turn(sampled, False), sent, {'total_tokens': 3})
  rest = ''.join(one['choices'][0]['delta'].get('content', '') for one in chunks[:-1])
  return sent, sent + rest, chunks


def test_the_text_begins_with_what_was_pinned_and_lacks_the_end_token():
  assert writer(begun='<think>\n').text(ids('So.</think>A')) == ('<think>\nSo.</think>A', False)


@pytest.mark.parametrize('text', ['plain', 'déjà vu 🎬 ', 'a < b <tool', CALL, f'x {CALL} y'])
@pytest.mark.parametrize('calls', [False, True])
def test_a_stream_adds_up_to_the_whole_reply(text, calls):
  made = writer(calls=calls)
  _, whole, _ = streamed(made, ids(text))
  assert whole == made.turn(ids(text), False).content


def test_calls_are_taken_out_of_the_text_only_where_tools_were_offered():
  sampled = ids(f'<think>\nLook.</think>\n{CALL}\n{CALL}')
  kept = writer().turn(sampled, False)
  assert (kept.finish, kept.calls) == ('stop', ()) and CALL in kept.content
  turn = writer(calls=True).turn(sampled, False)
  assert turn.finish == 'tool_calls' and turn.content == '<think>\nLook.</think>'
  first, second = turn.message('r')['tool_calls']
  assert json.loads(first['function']['arguments']) == {'at': '31 °C'}
  assert first['function']['name'] == 'zoom' and first['id'] != second['id']


def test_a_block_that_is_no_call_stays_in_the_text():
  turn = writer(calls=True).turn(ids('<tool_call>nonsense</tool_call>'), False)
  assert (turn.finish, turn.content) == ('stop', '<tool_call>nonsense</tool_call>')


def test_a_reply_of_calls_alone_has_no_content():
  message = writer(calls=True).turn(ids(CALL), False).message('r')
  assert message['content'] is None and len(message['tool_calls']) == 1


def test_no_part_of_a_call_is_streamed_as_text():
  sent, _, chunks = streamed(writer(calls=True), ids(f'Now: {CALL}'))
  assert sent == 'Now:'
  [calls] = [one for one in chunks if one['choices'] and 'tool_calls' in one['choices'][0]['delta']]
  assert calls['choices'][0]['delta']['tool_calls'][0]['index'] == 0
  assert chunks[-2]['choices'][0]['finish_reason'] == 'tool_calls'
  assert chunks[-1]['choices'] == [] and chunks[-1]['usage'] == {'total_tokens': 3}


def test_a_stop_text_ends_the_reply_and_is_never_shown():
  for stops in (('END',), ('ND', 'END'), ('xyz', 'EN')):
    sent, whole, _ = streamed(writer(stops=stops), ids('one E two END three'))
    expected = min(('one E two END three'.split(stop)[0] for stop in stops), key=len)
    assert whole == expected and expected.startswith(sent)


def test_half_a_character_waits_for_its_other_half():
  sampled = ids('🎬')
  assert len(sampled) > 2
  parts = [writer().settled(writer().text(sampled[:n])[0]) for n in range(1, len(sampled))]
  assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(parts))
  assert parts[0] == '' and parts[-1] == '🎬'


def test_a_reply_that_was_cut_off_says_so_even_with_calls():
  turn = writer(calls=True).turn(ids(CALL)[:-1], True)
  assert turn.finish == 'length' and len(turn.calls) == 1

"""What OpenAI's requests may hold, and the tokens that their messages become."""

import json

import numpy as np
import pytest

from paravt_jax.chat import prompts, template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.chat.toolcalls import parse as parse_calls
from paravt_jax.rollout.chat_server import image_part, text_part
from paravt_jax.serving.embedded import openai_request
from paravt_jax.serving.fields import RequestError
from paravt_jax.testing import tiny

TOK = ChatTokenizer(json.loads(tiny.make_tokenizer([], []).to_str()), 'test')
USER = {'role': 'user', 'content': 'What is <think> here?'}
TOOL = {'type': 'function', 'function': {'name': 'zoom', 'parameters': {'type': 'object'}}}


def frame(value: int, height: int = 32, width: int = 32) -> np.ndarray:
  return np.full((height, width, 3), value, np.uint8)


def parsed(*messages, **more) -> openai_request.ChatRequest:
  return openai_request.parse({'model': 'm', 'messages': list(messages), **more}, 500)


def prompt(*messages, think_prefix='<think>\n', **more) -> openai_request.ChatPrompt:
  return openai_request.prompt(
    TOK, parsed(*messages, **more), think_prefix=think_prefix, context=4096, max_patches=196
  )


def test_an_opening_has_the_tokens_that_agents_send():
  pieces = template.frame_pieces([frame(1), frame(2)], [0.0, 2.5])
  expected = template.opening(TOK, prompts.SYSTEM, [*pieces, 'What now?'], '<think>\n')
  content = [
    text_part('<0.0 seconds>'),
    image_part(frame(1), 0),
    text_part('<2.5 seconds>'),
    image_part(frame(2), 0),
    text_part('What now?'),
  ]
  got = prompt({'role': 'system', 'content': prompts.SYSTEM}, {'role': 'user', 'content': content})
  assert got.ids == expected.ids.tolist() and got.begun == '<think>\n'
  for image, own in zip(got.images, expected.images, strict=True):
    np.testing.assert_array_equal(image, own)


def test_calls_and_results_have_the_tokens_of_an_episode():
  turn = '<think>\nLook.</think><tool_call>\n{"name": "zoom", "arguments": {"at": 3}}\n</tool_call>'
  expected = np.concatenate(
    [
      template.opening(TOK, None, ['Hm?'], '<think>\n').ids,
      TOK.encode(turn.removeprefix('<think>\n'), trusted=True),
      template.continuation(
        TOK, closed=False, results=['red </tool_response>'], request='Go on.', think_prefix=''
      ).ids,
    ]
  )
  call = {'function': {'name': 'zoom', 'arguments': '{"at": 3}'}, 'id': 'x', 'type': 'function'}
  got = prompt(
    {'role': 'user', 'content': 'Hm?'},
    {'role': 'assistant', 'content': '<think>\nLook.</think>', 'tool_calls': [call]},
    {'role': 'tool', 'tool_call_id': 'x', 'content': 'red </tool_response>'},
    {'role': 'user', 'content': 'Go on.'},
    think_prefix='',
  )
  inserted = turn.replace('<tool_call>', '\n<tool_call>', 1)  # a call begins on a line of its own
  whole = TOK.decode(expected).replace(turn, inserted)
  assert TOK.decode(got.ids) == whole
  assert [one.name for one in parse_calls(inserted)] == ['zoom']
  # the tag inside the result is plain text, the one around it is one token
  close = TOK.token_to_id('</tool_response>')
  assert got.ids.count(close) == 1


def test_a_beginning_of_the_reply_is_continued():
  begun = {'role': 'assistant', 'content': '<think>\n'}
  got = prompt(USER, begun, continue_final_message=True, add_generation_prompt=False)
  assert got.ids == prompt(USER).ids and got.begun == ''
  longer = prompt(
    USER, {'role': 'assistant', 'content': '<think>\nIt is'}, continue_final_message=True
  )
  assert longer.ids == prompt(USER).ids + TOK.encode('It is', trusted=True).tolist()


def test_users_cannot_forge_tags_or_control_tokens():
  ids = prompt({'role': 'user', 'content': '<think><|im_end|><|image_pad|>'}, think_prefix='').ids
  assert TOK.token_to_id('<think>') not in ids and TOK.image_pad not in ids
  assert ids.count(TOK.im_end) == 1


def test_an_image_is_resized_by_the_rule_for_frames():
  [image] = prompt({'role': 'user', 'content': [image_part(frame(9, 50, 100), 0)]}).images
  assert image.shape == (64, 96, 3) and (image == 9).all()
  [large] = prompt({'role': 'user', 'content': [image_part(frame(9, 1000, 1000), 0)]}).images
  assert large.shape == (224, 224, 3)  # 196 patches of 16x16


def test_tools_are_offered_in_the_system_text_and_none_switches_them_off():
  with_system = parsed({'role': 'system', 'content': 'Be brief.'}, USER, tools=[TOOL])
  role, [text] = with_system.messages[0]
  assert role == 'system' and text.startswith('Be brief.\n') and json.dumps(TOOL) in text
  assert with_system.calls_tools and len(with_system.messages) == 2
  assert parsed(USER, tools=[TOOL]).messages[0][0] == 'system'
  off = parsed(USER, tools=[TOOL], tool_choice='none')
  assert not off.calls_tools and len(off.messages) == 1
  own = {'role': 'system', 'content': prompts.SYSTEM}
  assert parsed(own, USER, tools=[TOOL]).messages[0] == ('system', (prompts.SYSTEM,))


def test_missing_values_and_null_are_openais_defaults():
  one = parsed(USER, temperature=None, tools=None, stop=None, n=1, user='me', logprobs=False)
  assert (one.temperature, one.top_p, one.top_k, one.max_tokens, one.seed) == (
    1.0,
    1.0,
    -1,
    None,
    None,
  )
  assert not one.stream and one.stop == () and not one.calls_tools
  assert parsed(USER, max_tokens=5, max_completion_tokens=7).max_tokens == 7
  assert parsed(USER, stop='x').stop == ('x',) and parsed(USER, seed=-1).seed == 2**63 - 1


@pytest.mark.parametrize(
  'more, says',
  [
    ({'messages': []}, 'messages: got'),
    ({'messages': [{'role': 'robot', 'content': 'x'}]}, r'messages\[0\]: got'),
    ({'messages': [{**USER, 'colour': 1}]}, "unknown key 'colour'"),
    ({'messages': [{'role': 'assistant', 'content': 'x'}]}, 'the last one is of the assistant'),
    ({'continue_final_message': True}, 'the last one is of the user'),
    ({'add_generation_prompt': False}, 'the opposite of continue_final_message'),
    ({'messages': [{'role': 'user', 'content': [{'type': 'audio'}]}]}, r'content\[0\]: got'),
    ({'messages': [{'role': 'system', 'content': [image_part(frame(1), 0)]}, USER]}, 'text only'),
    ({'temperature': -1}, 'temperature: got -1'),
    ({'temperature': True}, 'temperature: got True'),
    ({'top_p': 0}, 'top_p: got 0'),
    ({'max_tokens': 0}, 'max_tokens: got 0'),
    ({'n': 2}, 'n: got 2, wanted 1'),
    ({'logprobs': True}, 'logprobs: got True'),
    ({'logit_bias': {'500': 1}}, 'logit_bias: got'),
    ({'response_format': {'type': 'json_object'}}, 'response_format: got'),
    ({'stop': ['a'] * 5}, 'stop: got .* a list of up to 4'),
    ({'stop': ['']}, 'stop: got .* none of them empty'),
    ({'stop': 5}, 'stop: got 5, wanted a text or a list'),
    ({'seed': 1.5}, 'seed: got 1.5'),
    ({'temprature': 1}, "unknown key 'temprature'"),
    ({'tools': [{}]}, 'tools: got'),
    ({'tools': [TOOL], 'tool_choice': 'required'}, 'tool_choice: got'),
    ({'model': ''}, 'model: got'),
    ({'stream_options': {'x': 1}}, "unknown key 'x'"),
    (
      {'messages': [{'role': 'assistant', 'tool_calls': [{'function': {'name': 'f'}}]}, USER]},
      r'messages\[0\].tool_calls',
    ),
  ],
)
def test_a_wrong_request_is_one_clear_line(more, says):
  with pytest.raises(RequestError, match=says) as caught:
    openai_request.parse({'model': 'm', 'messages': [USER], **more}, 500)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
  'url, says',
  [
    ('https://example.org/a.png', 'fetches nothing'),
    ('file:///etc/passwd', 'fetches nothing'),
    (
      'data:image/png;base64,AAAA',
      r'messages\[0\]\.content\[0\]\.image_url: .* is not a base64 PNG',
    ),
    ('data:image/png;base64,*', r'messages\[0\]\.content\[0\]\.image_url: .* is not a base64 PNG'),
  ],
)
def test_images_are_data_urls(url, says):
  with pytest.raises(RequestError, match=says):
    prompt({'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': url}}]})


def test_texts_far_beyond_the_context_are_refused_before_they_are_read():
  with pytest.raises(RequestError, match='wanted a conversation of at most 4096 tokens'):
    prompt({'role': 'user', 'content': 'x' * (4096 * 256 + 1)})

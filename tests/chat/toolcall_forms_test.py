"""Executed leniently, credited strictly: which forms are calls, and which of them are well-formed."""

import pytest

from paravt_jax.chat import lenient, toolcalls
from paravt_jax.types import Window
from tests.chat.calls import GOOD, OBJECT, TIMES, XML, block, reasons


@pytest.mark.parametrize(
  'text',
  [
    block(f'[{OBJECT}, {OBJECT}]'),
    block(f'{OBJECT}\n{OBJECT}'),
    block(f'{OBJECT}, {OBJECT}'),
    block(OBJECT + OBJECT),
    block(f'```json\n{OBJECT}\n{OBJECT}\n```'),
    block(XML + XML),
  ],
)
def test_two_objects_in_a_block_are_two_calls_that_are_not_well_formed(text):
  found = toolcalls.parse(text)
  assert [toolcalls.resolve_window(call, 100.0) for call in found] == [Window(1, 2)] * 2
  assert [call.well_formed for call in found] == [False, False]


@pytest.mark.parametrize(
  'text',
  [
    block('{"name": "crop_video", "arguments": "{\\"start_time\\": 1, \\"end_time\\": 2}"}'),
    block(
      '"{\\"name\\": \\"crop_video\\", \\"arguments\\": {\\"start_time\\": 1, \\"end_time\\": 2}}"'
    ),
    block(f'\n```json\n{OBJECT}\n```\n'),
    block(f'```{OBJECT}```'),
    block(f'~~~\n{OBJECT}\n~~~'),
    '<tool_call>\n```json\n' + OBJECT + '\n```',
    block(OBJECT.replace('"', "'")),
    block(
      "{'name': 'crop_video', 'arguments': {'video_path': None, 'ok': True, 'start_time': 1, "
      "'end_time': 2}}"
    ),
    block(OBJECT.replace('"start', '"video_path": "a\nb\tc\x01", "start')),
    block(OBJECT.replace('2}}', '2,},}')),
    block(OBJECT + '}'),
    block(OBJECT[:-1]),
    block(OBJECT[:-2]),
    block('{' + OBJECT + '}'),
    block(OBJECT.replace(', "arg', ' "arg')),
    block(OBJECT.replace('{"name"', '{// look\n"name"')),
    block(OBJECT.replace('"name"', '“name”')),
    block('{name: "crop_video", arguments: {start_time: 1, end_time: 2}}'),
    block(OBJECT.replace('"start', '"why": "the "red" car", "start')),
    block(f'I look: {OBJECT} and go on'),
    block(f'{{"type": "function", "function": {OBJECT}}}'),
    block(f'{{"function": "crop_video", "arguments": {TIMES}}}'),
    block(f'{{"tool_calls": [{{"function": {OBJECT}}}]}}'),
    block(OBJECT.replace('arguments', 'parameters')),
    block(f'{{"crop_video": {TIMES}}}'),
    block('{"name": "crop_video", "start_time": 1, "end_time": 2}'),
    block(f'crop_video\n{TIMES}'),
    block(f'<function>crop_video</function>\n{TIMES}'),
    block('crop_video(start_time=1, end_time=2)'),
    block(f'\n{XML}\n'),
    XML,
    XML + '\n</tool_call>',
    '<tool_call>\n' + XML,
    f'<function=crop_video>{TIMES}</function>',
    GOOD.replace('tool_call', 'TOOL_CALL'),
    GOOD.replace('<tool_call>', '<tool_call >'),
    GOOD.replace('tool_call', 'tool_calls'),
    GOOD.removesuffix('</tool_call>'),
    GOOD.removesuffix('call>'),
    '<tool_code>crop_video("v", 1, 2)</tool_code>',
    '<tool_code>\n```python\ncrop_video("v", 1, 2)\n```\n</tool_code>',
  ],
)
def test_a_form_that_published_models_write_is_a_call_that_is_not_well_formed(text):
  (call,) = toolcalls.parse(f'<think>\nhm</think>\n{text}')
  assert toolcalls.resolve_window(call, 100.0) == Window(1, 2) and call.well_formed is False
  assert toolcalls.without_blocks(f'a{text}') == 'a'


@pytest.mark.parametrize(
  'body',
  [
    OBJECT,
    f'\n {OBJECT}\n',
    OBJECT.replace('1', '"1.0"'),
    OBJECT.replace('1', '"0:01"'),
    OBJECT.replace('1', '"00:00:01"'),
    OBJECT.replace('crop', 'zoom'),
    OBJECT.replace('1', '"soon"'),
  ],
)
def test_one_json_object_in_a_closed_block_is_well_formed_whatever_its_arguments_are(body):
  (call,) = toolcalls.parse(block(body))
  assert call.well_formed is True


@pytest.mark.parametrize(
  'written, seconds',
  [
    ('12.5s', 12.5),
    ('12.5 seconds', 12.5),
    ('<12.0 seconds>', 12.0),
    ('00:01:10,500', 70.5),
    ('1:10.5s', 70.5),
    ('1m10s', 70.0),
    ('1 minute 10 seconds', 70.0),
    ('1 hour, 2 min', 3720.0),
    ('[12 sec]', 12.0),
  ],
)
def test_times_as_the_overview_writes_them_are_run_and_are_not_well_formed(written, seconds):
  (call,) = toolcalls.parse(
    block(f'{{"name": "crop_video", "arguments": {{"start_time": "{written}", "end_time": 5000}}}}')
  )
  assert (
    toolcalls.resolve_window(call, 9000.0) == Window(seconds, 5000) and call.well_formed is False
  )
  bare = written.replace(', ', ' ').replace(',', '.')
  (bare,) = toolcalls.parse(
    block(f'{{"name": "crop_video", "arguments": {{"start_time": {bare}, "end_time": 5000}}}}')
  )
  assert bare.well_formed is False


@pytest.mark.parametrize(
  'written',
  [
    '',
    's',
    '<>',
    'h m s',
    '1.2.3s',
    '1:75s',
    'nan s',
    '12 apples',
    '1' * 100_000 + 's',
    '-',
    '12,5',
  ],
)
def test_what_is_no_time_is_none_even_with_units(written):
  assert lenient.seconds(written) is None


def test_what_cannot_be_read_in_a_block_is_one_failure_beside_its_calls():
  assert reasons(block(f'{OBJECT} {{"name": oops oops')) == ['crop_video', 'not_json']
  assert reasons(block('oops') + block(f'```{OBJECT}```') + block('{') + GOOD) == [
    'not_json',
    'crop_video',
    'not_json',
    'crop_video',
  ]
  assert reasons(XML + GOOD + '<function=crop_video>\n<parameter=start_time>\n1') == [
    'crop_video',
    'crop_video',
    'unclosed',
  ]
  assert reasons(f'<tool_call>{OBJECT}\n{OBJECT[:-9]}') == ['unclosed']

"""The one parser: calls and failures in order, one bad block never voids the others, nothing the
policy writes raises.
"""

import warnings

import pytest

from paravt_jax.chat import toolcalls
from paravt_jax.types import ParseFailure, ToolCall
from tests.chat.calls import CALL, GOOD, SLOPPY, crop, reasons


def test_a_turn_without_blocks_holds_nothing():
  assert (
    toolcalls.parse('')
    == toolcalls.parse('<think>\nred</think> <answer>B</answer> </tool_call>')
    == ()
  )


def test_several_calls_come_back_in_order():
  text = GOOD + '\n' + GOOD.replace('1', '"00:10"').replace('crop_video', 'zoom')
  assert toolcalls.parse(text) == (CALL, ToolCall('zoom', {'start_time': '00:10', 'end_time': 2}))


def test_white_space_and_braces_and_tags_inside_strings_belong_to_the_call():
  body = (
    '\n {"name": "crop_video", "note": 1, "arguments": {"video_path": '
    '"}{</tool_call><tool_call>", "start_time": 1}} \n'
  )
  assert toolcalls.parse(f'<tool_call>{body}</tool_call>{GOOD}') == (
    crop(video_path='}{</tool_call><tool_call>', start_time=1),
    CALL,
  )


def test_calls_inside_a_closed_think_are_ignored():
  assert toolcalls.parse(f'<think>\n{GOOD}</think>') == ()
  assert toolcalls.parse(f'<think>\n{GOOD}</think>{GOOD}') == (CALL,)
  assert toolcalls.parse(f'{GOOD}<think>a</think><think>b</think>{GOOD}') == (CALL,)


def test_the_whole_turn_is_read_when_the_think_is_never_closed():
  assert toolcalls.parse(f'<think>\nhm {GOOD} hm') == (CALL,)
  assert toolcalls.parse(f'<think>a</think>{GOOD}<think>{GOOD}') == (CALL, CALL)


def test_deviation_8_one_malformed_call_leaves_the_others():
  assert reasons(
    f'<tool_call>oops</tool_call>{GOOD}<tool_call>{{"name": 1}}</tool_call>{GOOD}'
  ) == ['not_json', 'crop_video', 'no_name', 'crop_video']
  assert reasons(f'<tool_call>{{"name": {GOOD}<tool_code>crop_video(</tool_code>{GOOD}') == [
    'unclosed',
    'crop_video',
    'not_code',
    'crop_video',
  ]


@pytest.mark.parametrize(
  'body, reason',
  [
    ('', 'not_json'),
    ('{', 'not_json'),
    ('{"name": "crop_video", "arguments": {"start_time": ', 'not_json'),
    ('{"name": "crop_video", "arguments": {"start_time": "1', 'not_json'),
    ('{"name": "crop_video" oops}', 'not_json'),
    ('[1, 2]', 'not_an_object'),
    ('[]', 'not_an_object'),
    ('5', 'not_an_object'),
    ('null', 'not_an_object'),
    ('"crop_video"', 'not_an_object'),
    ('{}', 'no_name'),
    ('{"name": null, "arguments": {}}', 'no_name'),
    ('{"name": " ", "arguments": {}}', 'no_name'),
    ('{"name": "crop_video"}', 'no_arguments'),
    ('{"name": "crop_video", "parameters": null}', 'no_arguments'),
    ('{"name": "crop_video", "start_time": 1}', 'no_arguments'),
    ('{"name": "crop_video", "arguments": [1, 2]}', 'no_arguments'),
    ('{"name": "crop_video", "arguments": "from 1 to 5"}', 'no_arguments'),
    ('{"name": "\\ud800", "arguments": {}}', 'not_unicode'),
    ('{"name": "a", "arguments": {"b": ' + '1' * 5000 + '}}', 'not_json'),
    ('{"name": "a", "arguments": {"b": ' + '[' * 300 + ']' * 300 + '}}', 'too_deep'),
    ('[' * 100_000, 'not_json'),
    ('{"a":' * 100_000, 'not_json'),
  ],
)
def test_a_block_that_is_no_call_is_a_failure_with_a_countable_reason(body, reason):
  text = f'<tool_call>{body}</tool_call>'
  assert toolcalls.parse(text) == (ParseFailure(reason, text),)


def test_an_unclosed_block_is_a_failure_unless_its_object_is_whole_and_ends_the_turn():
  open_call = GOOD.removesuffix('</tool_call>')
  assert toolcalls.parse(open_call + '\n') == toolcalls.parse(open_call + '</tool_c') == (SLOPPY,)
  assert reasons(open_call[:-1]) == reasons(open_call[:-2]) == ['unclosed']
  assert toolcalls.parse(open_call + ' and so on') == (
    ParseFailure('unclosed', open_call + ' and so on'),
  )
  assert toolcalls.parse(open_call + GOOD) == (ParseFailure('unclosed', open_call), CALL)
  assert reasons(open_call + '</tool_code>') == ['unclosed']
  assert reasons('<tool_code>crop_video("v", 1, 2)') == ['unclosed']
  assert reasons('<tool_call>' + GOOD + '</tool_call>') == ['unclosed', 'crop_video']


def test_the_last_of_duplicate_keys_counts():
  assert toolcalls.parse(
    '<tool_call>{"name": "x", "name": "y", "arguments": {"a": 1, "a": 2}}</tool_call>'
  ) == (ToolCall('y', {'a': 2}),)


@pytest.mark.parametrize(
  'code, arguments',
  [
    ('crop_video("v.mp4", 1, 2.5)', {'video_path': 'v.mp4', 'start_time': 1, 'end_time': 2.5}),
    (
      "print(crop_video('v.mp4', start_time='0:10', end_time=20))",
      {'video_path': 'v.mp4', 'start_time': '0:10', 'end_time': 20},
    ),
    (
      '\n  crop_video(\n    start_time=-1,\n    end_time=+2,\n    num_frames=None)  # look\n',
      {'start_time': -1, 'end_time': 2, 'num_frames': None},
    ),
    (
      'crop_video("v", 1, 2, 8)',
      {'video_path': 'v', 'start_time': 1, 'end_time': 2, 'num_frames': 8},
    ),
    ('crop_video()', {}),
  ],
)
def test_leaked_code_is_read_with_and_without_print_by_keyword_and_position(code, arguments):
  assert toolcalls.parse(f'<tool_code>{code}</tool_code>') == (
    ToolCall('crop_video', arguments, False),
  )


def test_one_code_block_may_hold_several_calls():
  text = (
    '<tool_code>\nprint(crop_video("v", 1, 2))\ncrop_video("v", 3, 4); '
    'zoom(end_time=5)\n</tool_code>'
  )
  assert [(item.name, item.arguments.get('end_time')) for item in toolcalls.parse(text)] == [
    ('crop_video', 2),
    ('crop_video', 4),
    ('zoom', 5),
  ]
  both = '<tool_code>print(crop_video("v", 1, 2), crop_video("v", 3, 4))</tool_code>'
  assert [item.arguments['start_time'] for item in toolcalls.parse(both)] == [1, 3]


def test_a_statement_that_is_no_call_leaves_its_block_mates():
  code = 'x = 1\ncrop_video("v", 1, 2)\nprint("hi")\ncrop_video(**a)\ncrop_video(f(1), 2, 3)'
  assert reasons(f'<tool_code>{code}</tool_code>') == [
    'not_a_call',
    'crop_video',
    'not_a_call',
    'no_arguments',
    'no_arguments',
  ]


@pytest.mark.parametrize(
  'code',
  [
    '',
    'a b',
    '(' * 300,
    '-' * 50_000 + '1',
    'f(' * 150 + ')' * 150,
    'crop_video("\0")',
    '1' * 6000,
    'crop_video(1+2j, 1, 2)',
    'crop_video(b"x", 1, 2)',
    'crop_video(..., 1, 2)',
    'crop_video("v", -"1", 2)',
    'crop_video("v", 1, start_time=2)',
    'crop_video(a=1, a=2)',
    'crop_video("v", 1, 2, 3, 4)',
    'crop_video([1], 2, 3)',
    'crop_video("\\ud800", 2, 3)',
    'x.crop_video(1, 2)',
    'print()',
    'a.' * 20_000 + 'b',
    'lambda: ' * 5000 + '0',
    '{"name": "crop_video", "arguments": {}}',
    '\ud800',
  ],
)
def test_code_that_is_no_call_is_a_failure_and_never_an_exception(code):
  items = toolcalls.parse(f'<tool_code>{code}</tool_code>{GOOD}')
  assert isinstance(items[0], ParseFailure) and items[-1] == CALL and len(items) == 2


def test_the_policys_odd_escapes_warn_nobody():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert len(toolcalls.parse('<tool_code>crop_video("\\d", 1, 2)</tool_code>')) == 1


def test_blocks_know_their_places():
  text = f'<think>{GOOD}</think>a{GOOD}b<tool_code>c'
  assert [text[block.start : block.end] for block in toolcalls.blocks(text)] == [
    GOOD,
    '<tool_code>c',
  ]
  assert toolcalls.without_blocks(text) == f'<think>{GOOD}</think>ab'

"""The one parser: calls and failures in order, one bad block never voids the others, nothing the
policy writes raises.
"""

import itertools
import math
import time
import warnings

import pytest

from paravt_jax import seeds
from paravt_jax.chat import lenient, toolcalls
from paravt_jax.types import ParseFailure, ResultStatus, ToolCall, Window

GOOD = (
  '<tool_call>{"name": "crop_video", "arguments": {"start_time": 1, "end_time": 2}}</tool_call>'
)
CALL = ToolCall('crop_video', {'start_time': 1, 'end_time': 2})


SLOPPY = ToolCall('crop_video', {'start_time': 1, 'end_time': 2}, False)
TIMES = '{"start_time": 1, "end_time": 2}'
OBJECT = f'{{"name": "crop_video", "arguments": {TIMES}}}'
XML = '<function=crop_video>\n<parameter=start_time>\n1\n</parameter>\n<parameter=end_time>\n2\n</parameter>\n</function>'


def reasons(text: str) -> list[str]:
  return [
    item.reason if isinstance(item, ParseFailure) else item.name for item in toolcalls.parse(text)
  ]


def crop(**arguments) -> ToolCall:
  return ToolCall('crop_video', arguments)


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


# Executed leniently, credited strictly.


def block(body: str) -> str:
  return f'<tool_call>{body}</tool_call>'


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


@pytest.mark.parametrize(
  'text',
  [
    '<tool_call>' * 90_000,
    '<tool_call>{"a</tool_call>' * 10_000,
    block('{' * 10**6),
    '{' * 10**6,
    '<tool_call>"' * 10_000,
    ('<tool_call>' + ' ' * 80) * 10_000,
    block('{' * 19_000) * 50,
    block('[' * 19_000) * 50,
    block('{"a": 1, "b": ' * 1400) * 50,
    block('{"a":' + '" ' * 9000) * 50,
    block('{} ' * 6000) * 50,
    '<function=a>' * 80_000,
    '<function=a>x</function>' * 10_000,
    '<' * 10**6,
    '<   ' * 250_000,
    block('{' + '/*' * 9000) * 50,
    block('{"a": 1,' + '# ' * 9000) * 50,
    (GOOD + '\n') * 10_000,
    '<tool_call>' + '</tool_code>' * 80_000,
    '<tool_code>' + 'f(' * 500_000 + '</tool_code>',
    block("{'a': '" + 'x' * 10**6),
    block(
      '{"name": "crop_video", "arguments": {"start_time": "' + '1' * 10**6 + 's", "end_time": 2}}'
    ),
  ],
)
def test_a_megabyte_of_blocks_is_read_in_linear_time(text):
  start = time.process_time()
  for item in toolcalls.parse(text):
    if isinstance(item, ToolCall):
      toolcalls.resolve_window(item, 100.0)
  assert time.process_time() - start < 5  # a second or less alone; quadratic readers need minutes


def test_mutations_of_every_form_never_raise_and_windows_are_finite():
  rng = seeds.rng(1, 'toolcalls mutations')
  forms = [
    GOOD,
    block(f'[{OBJECT}]'),
    block(XML),
    XML,
    block(f'```json\n{OBJECT}\n```'),
    block(OBJECT.replace('"', "'")),
    block(OBJECT.replace('1', '"1m10s"')),
    '<tool_code>crop_video("v", 1, 2)</tool_code>',
  ]
  for _ in range(10_000):
    text = ''.join(forms[i] for i in rng.integers(len(forms), size=rng.integers(1, 3)))
    for _ in range(rng.integers(1, 5)):
      at, piece = int(rng.integers(len(text) + 1)), _PIECES[rng.integers(len(_PIECES))]
      text = text[:at] + piece + text[at + int(rng.integers(0, 4)) :]
    for item in toolcalls.parse(text):
      window = toolcalls.resolve_window(item, 100.0) if isinstance(item, ToolCall) else None
      if isinstance(window, Window):
        assert 0 <= window.start < window.end <= 100


# Windows.


@pytest.mark.parametrize(
  'arguments, window',
  [
    ({'start_time': 1, 'end_time': 2}, Window(1, 2)),
    ({'start_time': '1.5', 'end_time': ' 2 '}, Window(1.5, 2)),
    ({'start_time': '00:10', 'end_time': '01:00.5'}, Window(10, 60.5)),
    ({'start_time': '0:00:10', 'end_time': '00:01:05'}, Window(10, 65)),
    ({'start_time': -3, 'end_time': 1000}, Window(0, 100)),
    ({'start_time': '-3', 'end_time': 10**400}, Window(0, 100)),
    ({'video_path': '/etc/passwd', 'start_time': 1, 'end_time': 2, 'other': []}, Window(1, 2)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': 8}, Window(1, 2, 8)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': 1}, Window(1, 2, 2)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': 10**30}, Window(1, 2, 16)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': '-4'}, Window(1, 2, 2)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': None}, Window(1, 2)),
  ],
)
def test_a_call_means_a_window_within_the_video(arguments, window):
  assert toolcalls.resolve_window(crop(**arguments), 100.0) == window


@pytest.mark.parametrize(
  'arguments',
  [
    {},
    {'start_time': 1},
    {'end_time': 1},
    {'start_time': 5, 'end_time': 5},
    {'start_time': 6, 'end_time': 5},
    {'start_time': 100, 'end_time': 120},
    {'start_time': -5, 'end_time': 0},
    {'start_time': math.nan, 'end_time': 5},
    {'start_time': 1, 'end_time': math.inf},
    {'start_time': True, 'end_time': 5},
    {'start_time': None, 'end_time': 5},
    {'start_time': [1], 'end_time': 5},
    {'start_time': '1 apple', 'end_time': 5},
    {'start_time': '1:75', 'end_time': 500},
    {'start_time': '1:70:00', 'end_time': 5000},
    {'start_time': 'nan', 'end_time': 5},
    {'start_time': '1e999', 'end_time': 5},
    {'start_time': '', 'end_time': 5},
    {'start_time': 1, 'end_time': 5, 'num_frames': 'x'},
    {'start_time': 1, 'end_time': 5, 'num_frames': True},
    {'start_time': 1, 'end_time': 5, 'num_frames': '0:05'},
    {'start_time': 1, 'end_time': 5, 'num_frames': math.inf},
  ],
)
def test_arguments_that_mean_no_window_are_refused_with_a_text(arguments):
  refused = toolcalls.resolve_window(crop(**arguments), 100.0)
  assert isinstance(refused, toolcalls.Refusal) and refused.status is ResultStatus.BAD_ARGUMENTS
  assert refused.message.startswith('Error: ')


def test_a_clock_has_less_than_sixty_seconds_and_with_hours_less_than_sixty_minutes():
  assert toolcalls.seconds('90:00') == 5400.0 and toolcalls.seconds('1:59:59.5') == 7199.5
  assert (
    toolcalls.seconds('1:60:00') is toolcalls.seconds('0:60') is toolcalls.seconds('1:5') is None
  )


def test_an_unknown_name_is_refused_as_such():
  refused = toolcalls.resolve_window(ToolCall('zoom', {'start_time': 1, 'end_time': 2}), 100.0)
  assert refused.status is ResultStatus.UNKNOWN_TOOL and 'crop_video' in refused.message


def test_non_finite_json_numbers_are_calls_that_get_refused():
  for number in ('NaN', 'Infinity', '1e999'):
    (call,) = toolcalls.parse(GOOD.replace('"end_time": 2', f'"end_time": {number}'))
    assert toolcalls.resolve_window(call, 10.0).status is ResultStatus.BAD_ARGUMENTS


def test_frame_limits_are_the_recipes():
  assert (
    toolcalls.resolve_window(
      crop(start_time=1, end_time=2, num_frames=9), 10, min_frames=3, max_frames=4
    ).num_frames
    == 4
  )


_PIECES = [
  '<tool_call>',
  '</tool_call>',
  '<tool_code>',
  '</tool_code>',
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
  GOOD,
  '{',
  '}',
  '"',
  '"name"',
  ':',
  '"crop_video"',
  ',',
  '"arguments"',
  'crop_video(',
  ')',
  'print(',
  '1',
  "'",
  '\\',
  '\n',
  '\0',
  '\ud800',
  'NaN',
  '-',
  '[',
  ']',
  '🚗',
  'start_time=',
  '1:30',
  '=',
  '#',
  ';',
]


def test_random_text_never_raises_and_the_pieces_cover_each_other():
  rng = seeds.rng(0, 'toolcalls fuzz')
  for _ in range(20_000):
    text = ''.join(_PIECES[i] for i in rng.integers(len(_PIECES), size=rng.integers(0, 14)))
    found = toolcalls.blocks(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    for item in toolcalls.parse(text):
      if isinstance(item, ParseFailure):
        assert item.text in text
      else:
        toolcalls.resolve_window(item, 10.0)

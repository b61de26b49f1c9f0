"""The one parser: calls and failures in order, one bad block never voids the others, nothing the policy writes raises."""

import itertools
import math
import warnings

import pytest

from paravt_jax import seeds
from paravt_jax.chat import toolcalls
from paravt_jax.types import ParseFailure, ResultStatus, ToolCall, Window

GOOD = '<tool_call>{"name": "crop_video", "arguments": {"start_time": 1, "end_time": 2}}</tool_call>'
CALL = ToolCall('crop_video', {'start_time': 1, 'end_time': 2})


def reasons(text: str) -> list[str]:
  return [item.reason if isinstance(item, ParseFailure) else item.name for item in toolcalls.parse(text)]


def crop(**arguments) -> ToolCall:
  return ToolCall('crop_video', arguments)


def test_a_turn_without_blocks_holds_nothing():
  assert toolcalls.parse('') == toolcalls.parse('<think>\nred</think> <answer>B</answer> </tool_call>') == ()


def test_several_calls_come_back_in_order():
  text = GOOD + '\n' + GOOD.replace('1', '"00:10"').replace('crop_video', 'zoom')
  assert toolcalls.parse(text) == (CALL, ToolCall('zoom', {'start_time': '00:10', 'end_time': 2}))


def test_white_space_and_braces_and_tags_inside_strings_belong_to_the_call():
  body = '\n {"name": "crop_video", "note": 1, "arguments": {"video_path": "}{</tool_call><tool_call>", "start_time": 1}} \n'
  assert toolcalls.parse(f'<tool_call>{body}</tool_call>{GOOD}') == (
      crop(video_path='}{</tool_call><tool_call>', start_time=1), CALL)


def test_calls_inside_a_closed_think_are_ignored():
  assert toolcalls.parse(f'<think>\n{GOOD}</think>') == ()
  assert toolcalls.parse(f'<think>\n{GOOD}</think>{GOOD}') == (CALL,)
  assert toolcalls.parse(f'{GOOD}<think>a</think><think>b</think>{GOOD}') == (CALL,)


def test_the_whole_turn_is_read_when_the_think_is_never_closed():
  assert toolcalls.parse(f'<think>\nhm {GOOD} hm') == (CALL,)
  assert toolcalls.parse(f'<think>a</think>{GOOD}<think>{GOOD}') == (CALL, CALL)


def test_deviation_8_one_malformed_call_leaves_the_others():
  assert reasons(f'<tool_call>oops</tool_call>{GOOD}<tool_call>{{"name": 1}}</tool_call>{GOOD}') == [
      'not_json', 'crop_video', 'no_name', 'crop_video']
  assert reasons(f'<tool_call>{{"name": {GOOD}<tool_code>crop_video(</tool_code>{GOOD}') == [
      'unclosed', 'crop_video', 'not_code', 'crop_video']


@pytest.mark.parametrize('body, reason', [
    ('', 'not_json'), ('{', 'not_json'), ("{'name': 'crop_video', 'arguments': {}}", 'not_json'),
    ('```json\n{"name": "crop_video", "arguments": {}}\n```', 'not_json'),
    ('{"name": "crop_video", "arguments": {}} {"name": "crop_video", "arguments": {}}', 'not_json'),
    ('[{"name": "crop_video", "arguments": {}}]', 'not_an_object'), ('5', 'not_an_object'), ('null', 'not_an_object'),
    ('"crop_video"', 'not_an_object'), ('{}', 'no_name'), ('{"name": null, "arguments": {}}', 'no_name'),
    ('{"name": " ", "arguments": {}}', 'no_name'), ('{"name": "crop_video"}', 'no_arguments'),
    ('{"name": "crop_video", "parameters": {}}', 'no_arguments'),
    ('{"name": "crop_video", "arguments": [1, 2]}', 'no_arguments'),
    ('{"name": "crop_video", "arguments": "{\\"start_time\\": 1}"}', 'no_arguments'),
    ('{"name": "\\ud800", "arguments": {}}', 'not_unicode'),
    ('{"name": "a", "arguments": {"b": ' + '1' * 5000 + '}}', 'not_json'),
    ('[' * 100_000, 'not_json'), ('{"a":' * 100_000, 'not_json')])
def test_a_block_that_is_no_call_is_a_failure_with_a_countable_reason(body, reason):
  text = f'<tool_call>{body}</tool_call>'
  assert toolcalls.parse(text) == (ParseFailure(reason, text),)


def test_an_unclosed_block_is_a_failure_even_when_its_json_is_whole():
  open_call = GOOD.removesuffix('</tool_call>')
  assert toolcalls.parse(open_call + ' and so on') == (ParseFailure('unclosed', open_call + ' and so on'),)
  assert toolcalls.parse(open_call + GOOD) == (ParseFailure('unclosed', open_call), CALL)
  assert reasons(open_call + '</tool_code>') == ['unclosed']
  assert reasons('<tool_code>crop_video("v", 1, 2)') == ['unclosed']
  assert reasons('<tool_call>' + GOOD + '</tool_call>') == ['unclosed', 'crop_video']


def test_the_last_of_duplicate_keys_counts():
  assert toolcalls.parse('<tool_call>{"name": "x", "name": "y", "arguments": {"a": 1, "a": 2}}</tool_call>') == (
      ToolCall('y', {'a': 2}),)


@pytest.mark.parametrize('code, arguments', [
    ('crop_video("v.mp4", 1, 2.5)', {'video_path': 'v.mp4', 'start_time': 1, 'end_time': 2.5}),
    ("print(crop_video('v.mp4', start_time='0:10', end_time=20))",
     {'video_path': 'v.mp4', 'start_time': '0:10', 'end_time': 20}),
    ('\n  crop_video(\n    start_time=-1,\n    end_time=+2,\n    num_frames=None)  # look\n',
     {'start_time': -1, 'end_time': 2, 'num_frames': None}),
    ('crop_video("v", 1, 2, 8)', {'video_path': 'v', 'start_time': 1, 'end_time': 2, 'num_frames': 8}),
    ('crop_video()', {})])
def test_leaked_code_is_read_with_and_without_print_by_keyword_and_position(code, arguments):
  assert toolcalls.parse(f'<tool_code>{code}</tool_code>') == (ToolCall('crop_video', arguments),)


def test_one_code_block_may_hold_several_calls():
  text = '<tool_code>\nprint(crop_video("v", 1, 2))\ncrop_video("v", 3, 4); zoom(end_time=5)\n</tool_code>'
  assert [(item.name, item.arguments.get('end_time')) for item in toolcalls.parse(text)] == [
      ('crop_video', 2), ('crop_video', 4), ('zoom', 5)]
  both = '<tool_code>print(crop_video("v", 1, 2), crop_video("v", 3, 4))</tool_code>'
  assert [item.arguments['start_time'] for item in toolcalls.parse(both)] == [1, 3]


def test_a_statement_that_is_no_call_leaves_its_block_mates():
  code = 'x = 1\ncrop_video("v", 1, 2)\nprint("hi")\ncrop_video(**a)\ncrop_video(f(1), 2, 3)'
  assert reasons(f'<tool_code>{code}</tool_code>') == [
      'not_a_call', 'crop_video', 'not_a_call', 'no_arguments', 'no_arguments']


@pytest.mark.parametrize('code', [
    '', 'a b', '(' * 300, '-' * 50_000 + '1', 'f(' * 150 + ')' * 150, 'crop_video("\0")', '1' * 6000, 'crop_video(1+2j, 1, 2)',
    'crop_video(b"x", 1, 2)', 'crop_video(..., 1, 2)', 'crop_video("v", -"1", 2)', 'crop_video("v", 1, start_time=2)', 'crop_video(a=1, a=2)',
    'crop_video("v", 1, 2, 3, 4)', 'crop_video([1], 2, 3)', 'crop_video("\\ud800", 2, 3)', 'x.crop_video(1, 2)', 'print()',
    'a.' * 20_000 + 'b', 'lambda: ' * 5000 + '0', '{"name": "crop_video", "arguments": {}}', '\ud800'])
def test_code_that_is_no_call_is_a_failure_and_never_an_exception(code):
  items = toolcalls.parse(f'<tool_code>{code}</tool_code>{GOOD}')
  assert isinstance(items[0], ParseFailure) and items[-1] == CALL and len(items) == 2


def test_the_policys_odd_escapes_warn_nobody():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert len(toolcalls.parse('<tool_code>crop_video("\\d", 1, 2)</tool_code>')) == 1


def test_blocks_know_their_places():
  text = f'<think>{GOOD}</think>a{GOOD}b<tool_code>c'
  assert [text[block.start:block.end] for block in toolcalls.blocks(text)] == [GOOD, '<tool_code>c']
  assert toolcalls.without_blocks(text) == f'<think>{GOOD}</think>ab'


# Windows.


@pytest.mark.parametrize('arguments, window', [
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
    ({'start_time': 1, 'end_time': 2, 'num_frames': None}, Window(1, 2))])
def test_a_call_means_a_window_within_the_video(arguments, window):
  assert toolcalls.resolve_window(crop(**arguments), 100.0) == window


@pytest.mark.parametrize('arguments', [
    {}, {'start_time': 1}, {'end_time': 1}, {'start_time': 5, 'end_time': 5}, {'start_time': 6, 'end_time': 5},
    {'start_time': 100, 'end_time': 120}, {'start_time': -5, 'end_time': 0}, {'start_time': math.nan, 'end_time': 5},
    {'start_time': 1, 'end_time': math.inf}, {'start_time': True, 'end_time': 5}, {'start_time': None, 'end_time': 5},
    {'start_time': [1], 'end_time': 5}, {'start_time': '1 s', 'end_time': 5}, {'start_time': '1:75', 'end_time': 500},
    {'start_time': '1:70:00', 'end_time': 5000}, {'start_time': 'nan', 'end_time': 5}, {'start_time': '1e999', 'end_time': 5},
    {'start_time': '', 'end_time': 5}, {'start_time': 1, 'end_time': 5, 'num_frames': 'x'},
    {'start_time': 1, 'end_time': 5, 'num_frames': True}, {'start_time': 1, 'end_time': 5, 'num_frames': '0:05'},
    {'start_time': 1, 'end_time': 5, 'num_frames': math.inf}])
def test_arguments_that_mean_no_window_are_refused_with_a_text(arguments):
  refused = toolcalls.resolve_window(crop(**arguments), 100.0)
  assert isinstance(refused, toolcalls.Refusal) and refused.status is ResultStatus.BAD_ARGUMENTS
  assert refused.message.startswith('Error: ')


def test_a_clock_has_less_than_sixty_seconds_and_with_hours_less_than_sixty_minutes():
  assert toolcalls.seconds('90:00') == 5400.0 and toolcalls.seconds('1:59:59.5') == 7199.5
  assert toolcalls.seconds('1:60:00') is toolcalls.seconds('0:60') is toolcalls.seconds('1:5') is None


def test_an_unknown_name_is_refused_as_such():
  refused = toolcalls.resolve_window(ToolCall('zoom', {'start_time': 1, 'end_time': 2}), 100.0)
  assert refused.status is ResultStatus.UNKNOWN_TOOL and 'crop_video' in refused.message


def test_non_finite_json_numbers_are_calls_that_get_refused():
  for number in ('NaN', 'Infinity', '1e999'):
    call, = toolcalls.parse(GOOD.replace('"end_time": 2', f'"end_time": {number}'))
    assert toolcalls.resolve_window(call, 10.0).status is ResultStatus.BAD_ARGUMENTS


def test_frame_limits_are_the_recipes():
  assert toolcalls.resolve_window(crop(start_time=1, end_time=2, num_frames=9), 10, min_frames=3, max_frames=4).num_frames == 4


_PIECES = ['<tool_call>', '</tool_call>', '<tool_code>', '</tool_code>', '<think>', '</think>', '<answer>', '</answer>', GOOD,
           '{', '}', '"', '"name"', ':', '"crop_video"', ',', '"arguments"', 'crop_video(', ')', 'print(', '1', "'", '\\', '\n',
           '\0', '\ud800', 'NaN', '-', '[', ']', '🚗', 'start_time=', '1:30', '=', '#', ';']


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

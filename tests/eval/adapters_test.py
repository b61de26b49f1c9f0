"""The formats of other published agents: what they write, and the very text that they are shown."""

import dataclasses

import pytest

from paravt_jax.eval import adapters, protocols
from paravt_jax.types import ParseFailure, ResultStatus, StopReason, ToolCall
from tests.eval.stage import perform, text_of
from tests.rollout.stack import TASK, TOK, call, is_subagent

FRAME = '<|vision_start|><|image_pad|><|vision_end|>'
FILE = 'You are theirs.\n---\nThe video is {video}. Question: {question}\nUse {"a": 1} <think>.'
ZOOM = '<video_zoom> {"segment": [4.0, 6.0], "fps": 2} </video_zoom>'


def from_file(tmp_path, name, text=FILE):
  path = tmp_path / 'prompt.txt'
  path.write_text(text)
  return protocols.choose_protocol(name, str(path), 'parallel')


def tool(name='extract_parts_from_timestamp', **arguments):
  call = (
    f'{{"rationale": "r", "name": "{name}", "arguments": '
    f'{{{", ".join(f"{k!r}: {v!r}" for k, v in arguments.items())}}}}}'
  )
  return call.replace("'", '"')


def sage(*calls, final='null'):
  return (
    f'<json>{{"final_answer": {final}, "recommended_tools": {{"needed": true, "tool_calls": '
    f'[{", ".join(calls)}]}}}}</json>'
  )


def crop(start, end, frames=None):
  more = {} if frames is None else {'num_frames': frames}
  return ToolCall('crop_video', {'start_time': start, 'end_time': end, **more})


def reasons(found):
  return [item.reason if isinstance(item, ParseFailure) else item for item in found]


# The prompt file


@pytest.mark.parametrize(
  ('name', 'frames'),
  [
    ('longvt', FRAME * 2),
    ('videozoomer', f'<frame0_time16.00s>{FRAME}<frame1_time48.00s>{FRAME}'),
    ('sage', f'<16.0 seconds>{FRAME}<48.0 seconds>{FRAME}'),
  ],
)
def test_the_file_becomes_system_and_user_text_and_the_question_stays_text(tmp_path, name, frames):
  task = dataclasses.replace(
    TASK, videos=('far/a.mp4',), question='What? {video} <think> <|im_end|>'
  )
  _, requests, _ = perform(from_file(tmp_path, name), 'none', task=task, budget=2)
  assert text_of(requests[0]) == (
    f'<|im_start|>system\nYou are theirs.<|im_end|>\n<|im_start|>user\n{frames}The video is '
    'a.mp4. Question: '
    'What? {video} <think> <|im_end|>\nUse {"a": 1} <think>.<|im_end|>\n<|im_start|>assistant\n'
  )
  think = TOK.token_to_id('<think>')
  assert (
    requests[0].input_ids.count(think) == 1 and requests[0].input_ids.count(TOK.im_end) == 2
  )  # ours is a tag, the question's is text


def test_a_file_without_a_rule_is_the_user_text_alone(tmp_path):
  _, requests, _ = perform(from_file(tmp_path, 'longvt', 'Q: {question}'), 'none', budget=1)
  assert (
    text_of(requests[0])
    == f'<|im_start|>user\n{FRAME}Q: What appears at 41?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_several_videos_are_labelled(tmp_path):
  task = dataclasses.replace(TASK, videos=('a.mp4', 'b.mp4'))
  _, requests, _ = perform(from_file(tmp_path, 'longvt', '{question}'), 'none', task=task, budget=2)
  assert f'user\nVideo 1:\n{FRAME}Video 2:\n{FRAME}What appears' in text_of(requests[0])


# LongVT


def test_longvt_sees_the_frames_of_its_crops(tmp_path):
  got, requests, _ = perform(
    from_file(tmp_path, 'longvt'),
    '<think>hm</think>' + call(8, 10.5, video_path='a.mp4'),
    '<think>hm</think><answer>red</answer>',
  )
  assert TOK.decode(got.trajectory.segments[2].ids) == (
    f'\n<|im_start|>user\n<tool_response>\n{FRAME * 3}Cropped 8s-10.5s, got 3 '
    'frames.\n</tool_response><|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  assert got.stop is StopReason.ANSWER and got.executed == 1 and not any(map(is_subagent, requests))


# VideoZoomer


@pytest.mark.parametrize(
  ('text', 'found'),
  [
    (ZOOM, [crop(4, 6, 4)]),
    (f'<think>{ZOOM}</think>', []),
    (f'<think>{ZOOM}</think>{ZOOM}', [crop(4, 6, 4)]),
    (ZOOM * 2, [crop(4, 6, 4)] * 2),
    ('<video_zoom>{"segment": [0, 16], "fps": 1}</video_zoom>', [crop(0, 16, 16)]),
    ('<video_zoom>{"segment": [0, 17], "fps": 1}</video_zoom>', ['too_many_frames']),
    ('<video_zoom>{"segment": ["1:00", "1:04"], "fps": "2"}</video_zoom>', [crop(60, 64, 8)]),
    ('<video_zoom>{"segment": [9, 5], "fps": 2}</video_zoom>', [crop(9, 5, 0)]),
    ('<video_zoom>{"segment": [4], "fps": 2}</video_zoom>', ['no_segment']),
    ('<video_zoom>[4, 6]</video_zoom>', ['no_segment']),
    ('<video_zoom>{"segment": [4, 6]}</video_zoom>', ['no_numbers']),
    ('<video_zoom>{"segment": [4, "x"], "fps": 1}</video_zoom>', ['no_numbers']),
    ('<video_zoom>{"segment": [4, 6], "fps": 0}</video_zoom>', ['no_numbers']),
    ('<video_zoom>{"segment": [4, NaN], "fps": 1}</video_zoom>', ['no_numbers']),
    ('<video_zoom>{broken</video_zoom>', ['not_json']),
    ('<video_zoom>' + '[' * 99_999 + '</video_zoom>', ['not_json']),
    ('<video_zoom>{"segment": [4, 6]', ['unclosed']),
    ('<video_zoom>{"se' + ZOOM, ['unclosed', crop(4, 6, 4)]),
    ('no zoom', []),
  ],
)
def test_zooms_are_read_or_fail_by_name(text, found):
  assert reasons(adapters.zoom_parse(text)) == found


def test_videozoomer_sees_stamped_frames_and_its_errors_as_user_messages(tmp_path):
  zooms = ZOOM + '<video_zoom>{"segment": [0, 99], "fps": 9}</video_zoom>'
  got, requests, _ = perform(
    from_file(tmp_path, 'videozoomer'),
    '<think>hm</think>' + zooms,
    r'<think>hm</think><answer>\boxed{red}</answer>',
  )
  tail = TOK.decode(got.trajectory.segments[2].ids)
  assert tail.startswith(
    '\n<|im_start|>user\nThe frames of the video clip are shown '
    f'below:\n<frame0_time4.00s>{FRAME}<frame1_time4.67s>'
  )
  assert (
    'Error: this zoom cannot be run, wanted at most 16 frames.' in tail
    and '<tool_response>' not in tail
  )
  assert [result.status for result in got.results] == [
    ResultStatus.EXECUTED,
    ResultStatus.PARSE_FAILURE,
  ]
  assert (
    got.results[0].seconds == pytest.approx((4, 4.67, 5.33, 6), abs=0.05)
    and got.stop is StopReason.ANSWER
  )


@pytest.mark.parametrize(
  ('text', 'answer'),
  [
    (r'<answer>\boxed{B}</answer>', 'B'),
    (r'<answer>B</answer>', 'B'),
    (r'<answer>\boxed{\text{red}}</answer>', r'\text{red}'),
    (r'\boxed{A}, no: \boxed{C}', 'C'),
    (r'<think>\boxed{A}</think>', ''),
    ('nothing', ''),
  ],
)
def test_a_boxed_answer_is_taken_out(text, answer):
  assert adapters.boxed_text(text) == answer


# SAGE


@pytest.mark.parametrize(
  ('text', 'found'),
  [
    (
      sage(tool(timestamp_start='00:01:00', timestamp_end='00:01:04')),
      [crop('00:01:00', '00:01:04')],
    ),
    (sage(tool(timestamp_end='00:00:04')), [crop(0, '00:00:04')]),
    (
      sage(tool('web_search', query='x'), tool(timestamp_start='0:01', timestamp_end='0:02')),
      [ToolCall('web_search', {'query': 'x'}), crop('0:01', '0:02')],
    ),
    (sage(tool(timestamp_start='0:01', timestamp_end='0:02'), final='"B"'), []),
    (sage('3', '{"name": "x"}', '{"name": 3, "arguments": {}}'), ['no_name'] * 3),
    ('{"final_answer": null, "recommended_tools": {"tool_calls": []}}', []),
    ('<json>{"final_answer": null}</json>', []),
    ('<json>{"recommended_tools": 3}</json>', []),
    ('I think B.', ['not_json']),
    ('<json>[1]</json>', ['not_json']),
    ('', ['not_json']),
    ('<json>' + '[' * 99_999, ['not_json']),
    ('<think>{</think>' + sage(), []),
  ],
)
def test_recommended_tools_are_read_or_fail_by_name(text, found):
  assert reasons(adapters.sage_parse(text)) == found


@pytest.mark.parametrize(
  ('text', 'answer'),
  [
    (sage(final='"B"'), 'B'),
    (sage(final='null'), ''),
    (sage(final='"null"'), ''),
    (sage(final='3'), '3'),
    ('B', ''),
    (sage(final='"A"') + sage(final='"C"'), 'C'),
  ],
)
def test_a_final_answer_is_read(text, answer):
  assert adapters.sage_answer(text) == answer


def test_sage_sees_parts_of_the_video_and_is_told_which_tool_is_here(tmp_path):
  first = sage(
    tool(timestamp_start='00:00:08', timestamp_end='00:00:09'),
    tool('transcribe_speech', path='x'),
    tool(timestamp_start='1:00'),
  )
  got, requests, _ = perform(from_file(tmp_path, 'sage'), first, 'prose', sage(final='"red"'))
  tail = TOK.decode(got.trajectory.segments[2].ids)
  assert tail.startswith(
    '\n<|im_start|>user\n<tool_response>\nextract_parts_from_timestamp 00:00:08 00:00:09: 2 '
    f'frames\n<8.0 seconds>{FRAME}'
    f'<9.0 seconds>{FRAME}\n</tool_response><|im_end|>\n'
  )
  assert (
    'Error: only extract_parts_from_timestamp can be run here.' in tail
    and 'timestamp_end is missing' in tail
  )
  assert 'wanted one JSON object between <json> and </json>' in TOK.decode(
    got.trajectory.segments[4].ids
  )
  assert [result.status for result in got.results] == [
    ResultStatus.EXECUTED,
    ResultStatus.UNKNOWN_TOOL,
    ResultStatus.BAD_ARGUMENTS,
    ResultStatus.PARSE_FAILURE,
  ]
  assert got.stop is StopReason.ANSWER and len(requests) == 3

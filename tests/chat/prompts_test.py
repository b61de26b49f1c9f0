"""The texts before the policy: one schema, one hint per question type, nothing of the policy's own
in errors.
"""

import json
import re

import numpy as np
import pytest

from paravt_jax import types
from paravt_jax.chat import prompts, toolcalls
from paravt_jax.types import ResultStatus, ToolCall, Window


def test_the_system_prompt_holds_one_json_schema_of_crop_video():
  block = re.search(r'<tools>\n(.*)\n</tools>', prompts.SYSTEM).group(1)
  function = json.loads(block)['function']
  properties = function['parameters']['properties']
  assert function['name'] == 'crop_video'
  assert {name: entry['type'] for name, entry in properties.items()} == {
    'video_path': 'string',
    'start_time': 'number',
    'end_time': 'number',
    'num_frames': 'integer',
  }
  assert 'num_frames' not in function['parameters']['required']


def test_the_example_call_of_the_system_prompt_parses():
  assert toolcalls.parse(prompts.SYSTEM) == (
    ToolCall('crop_video', {'start_time': 8, 'end_time': 12}),
  )


def test_a_row_that_carries_tools_keeps_its_system_text():
  assert prompts.system('Mine.\n<tools>\n{}\n</tools>') == 'Mine.\n<tools>\n{}\n</tools>'
  assert prompts.system('You are helpful.') == prompts.system(None) == prompts.SYSTEM


def test_each_question_type_says_how_to_answer():
  assert prompts.question('When?', 'tvg') == 'When?\nAnswer with [start, end] in seconds.'
  assert prompts.question('Which?\nA. red\nB. blue', 'mcq').endswith(
    'B. blue\nAnswer with the letter.'
  )
  assert len({prompts.question('?', kind) for kind in ('mcq', 'tvg', 'oe')}) == 3


def test_a_question_that_says_how_to_write_the_answer_gets_no_second_shape():
  task = types.Task(
    't',
    ('a.mp4',),
    'When?\nSay it like this: X - Y seconds.',
    'tvg',
    '1,2',
    facts={prompts.SHAPED: True},
  )
  assert prompts.user(task, [['frame']]) == ['frame', 'When?\nSay it like this: X - Y seconds.']
  for facts in ({}, {prompts.SHAPED: False}, {'kind': 'tvg'}):  # as RL asks it
    plain = types.Task('t', ('a.mp4',), 'When?', 'tvg', '1,2', facts=facts)
    assert prompts.user(plain, [['frame']]) == [
      'frame',
      'When?\nAnswer with [start, end] in seconds.',
    ]


def test_a_subagent_is_told_its_window_and_the_question_unless_it_may_not_see_it():
  assert '10.0 to 14.5 seconds' in prompts.subagent(Window(10, 14.5), None)
  assert 'What is red?' in prompts.subagent(Window(10, 14.5), 'What is red?')


@pytest.mark.parametrize(
  'status', [status for status in ResultStatus if status is not ResultStatus.EXECUTED]
)
def test_every_failure_has_a_text(status):
  assert prompts.error(status).startswith('Error: ')
  assert prompts.error(status, 'More.').endswith(' More.')


def test_a_result_is_what_follows_the_think():
  assert prompts.result('<think>hm</think>\n41 red ') == '41 red'
  assert (
    prompts.result(' 41 red') == '41 red'
    and prompts.result('<think>never closed') == '<think>never closed'
  )
  assert types.ResultStatus.EXECUTED not in prompts.ERRORS


def _laid(question, slots, *videos):
  """The pieces of an open question's user message; videos are given as stand-ins for their
  pieces.
  """
  task = types.Task(
    't', tuple(f'{i}.mp4' for i in range(len(videos))), question, 'oe', 'x', slots=slots
  )
  return prompts.user(task, videos)


HINT = '\nAnswer in a few words.'
FIRST, SECOND = ['<1.0 seconds>', np.zeros(1)], ['<9.0 seconds>', np.ones(1)]


def test_one_video_at_the_start_is_its_frames_and_then_the_question():
  assert _laid('What?', (), FIRST) == [*FIRST, f'What?{HINT}']


def test_without_a_video_the_message_is_the_question():
  assert _laid('What?', ()) == [f'What?{HINT}']


def test_a_video_stands_where_its_slot_stood():
  assert _laid('See : what?', (4,), FIRST) == ['See ', *FIRST, f': what?{HINT}']
  assert _laid('What?', (5,), FIRST) == ['What?', *FIRST, HINT]


def test_each_of_several_videos_follows_a_line_with_its_label():
  assert _laid('What?', (), FIRST, SECOND) == [
    'Video 1:\n',
    *FIRST,
    '\nVideo 2:\n',
    *SECOND,
    f'What?{HINT}',
  ]
  assert _laid('A: \nB:\n.', (3, 7), FIRST, SECOND) == [
    'A: ',
    '\nVideo 1:\n',
    *FIRST,
    '\nB:\n',
    'Video 2:\n',
    *SECOND,
    f'.{HINT}',
  ]


def test_those_who_do_not_see_the_videos_are_told_their_labels():
  question_text = lambda question, slots, count: prompts.question_text(
    types.Task('t', ('v',) * count, question, 'oe', 'x', slots=slots)
  )
  assert question_text('Is  before ?', (3, 11), 2) == 'Is Video 1 before Video 2?'
  assert (
    question_text('What?', (), 2)
    == question_text('What?', (5,), 1)
    == question_text('What?', (), 0)
    == 'What?'
  )


def test_a_subagent_on_one_of_several_videos_is_told_which():
  assert prompts.subagent(Window(10, 14.5), None, 'Video 2') == (
    'These frames show 10.0 to 14.5 seconds of Video 2. Say briefly what they show.'
  )

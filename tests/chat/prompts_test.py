"""The texts before the policy: one schema, one hint per question type, nothing of the policy's own in errors."""

import json
import re

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
      'video_path': 'string', 'start_time': 'number', 'end_time': 'number', 'num_frames': 'integer'}
  assert 'num_frames' not in function['parameters']['required']


def test_the_example_call_of_the_system_prompt_parses():
  assert toolcalls.parse(prompts.SYSTEM) == (ToolCall('crop_video', {'start_time': 8, 'end_time': 12}),)


def test_a_row_that_carries_tools_keeps_its_system_text():
  assert prompts.system('Mine.\n<tools>\n{}\n</tools>') == 'Mine.\n<tools>\n{}\n</tools>'
  assert prompts.system('You are helpful.') == prompts.system(None) == prompts.SYSTEM


def test_each_question_type_says_how_to_answer():
  assert prompts.question('When?', 'tvg') == 'When?\nAnswer with [start, end] in seconds.'
  assert prompts.question('Which?\nA. red\nB. blue', 'mcq').endswith('B. blue\nAnswer with the letter.')
  assert len({prompts.question('?', kind) for kind in ('mcq', 'tvg', 'oe')}) == 3


def test_a_subagent_is_told_its_window_and_the_question_unless_it_may_not_see_it():
  assert '10.0 to 14.5 seconds' in prompts.subagent(Window(10, 14.5), None)
  assert 'What is red?' in prompts.subagent(Window(10, 14.5), 'What is red?')


@pytest.mark.parametrize('status', [status for status in ResultStatus if status is not ResultStatus.EXECUTED])
def test_every_failure_has_a_text(status):
  assert prompts.error(status).startswith('Error: ')
  assert prompts.error(status, 'More.').endswith(' More.')


def test_a_result_is_what_follows_the_think():
  assert prompts.result('<think>hm</think>\n41 red ') == '41 red'
  assert prompts.result(' 41 red') == '41 red' and prompts.result('<think>never closed') == '<think>never closed'
  assert types.ResultStatus.EXECUTED not in prompts.ERRORS

"""Traces: right forms, right decisions, and nothing said that the frames do not show."""

import dataclasses

import numpy as np
import pytest

from paravt_jax.chat import toolcalls
from paravt_jax.data.world import questions, scene, traces
from paravt_jax.rewards import answer
from paravt_jax.types import Task, ToolCall, Window
from tests.data.world.small import QUESTIONS, SCENE, TRACES

RED = scene.Event(40, 43, 'red', 'disc', 0.5, 0.5)
BLUE = scene.Event(72, 76, 'blue', 'disc', 0.5, 0.5)
RED_AT_40 = scene.Scene('v', 128, (RED, BLUE), 0)
CERTAIN = dataclasses.replace(TRACES, always_call=0.0, recovery=0.0)
ONE = Task('a', ('v',), 'What appears at 41?', 'oe', 'red', facts={'cues': [41], 'labels': ['red']})
TWO = Task(
  'b',
  ('v',),
  'What appears at 41 and at 73?',
  'oe',
  'red, blue',
  facts={'cues': [41, 73], 'labels': ['red', 'blue']},
)
SPAN = Task(
  'c', ('v',), 'When ... 41 ...?', 'tvg', '40,43', facts={'cues': [41], 'labels': ['red']}
)


def work(task, budget, options=CERTAIN, drawn=RED_AT_40):
  return traces.work(drawn, task, budget, options, shapes=False, fps=4, seed=0)


def many():
  for i in range(200):
    drawn = scene.draw(SCENE, f'v{i % 20}', 0)
    task = questions.draw(
      drawn, i, QUESTIONS, shapes=False, colours=8, video='v', source='', seed=0
    )
    for budget in (4, 16, 64):
      yield drawn, task, work(task, budget, TRACES, drawn)


def test_two_open_cues_are_looked_up_by_two_calls_of_one_turn():
  trace = work(TWO, 4)
  assert trace.turns[0] == (
    '<think>\nLook at 41 and 73.\n</think>\n'
    '<tool_call>{"name": "crop_video", "arguments": {"start_time": 39, "end_time": 43}}</tool_call>'
    '<tool_call>{"name": "crop_video", "arguments": {"start_time": 71, "end_time": 75}}</tool_call>'
  )
  assert trace.replies == (('41 red', '73 blue'), ())
  assert trace.turns[1] == '<think>\nSeen: 41 red, 73 blue.\n</think>\n<answer>red, blue</answer>'


def test_what_the_overview_shows_is_answered_at_once():
  trace = work(ONE, 64)
  assert trace.turns == ('<think>\nSeen: 41 red.\n</think>\n<answer>red</answer>',)
  assert trace.replies == ((),) and trace.windows == ()


def test_only_the_cues_left_open_are_looked_up():
  # Overview of 32: 2, 6, ..., 42, ..., 74: both cues have a frame within 1 s. Of 16: 4, 12, ...,
  # 44, 68, 76: neither has.
  assert work(TWO, 32).windows == ()
  assert work(TWO, 16).windows == ((39, 43), (71, 75))
  lonely = dataclasses.replace(TWO, facts={'cues': [44, 73], 'labels': ['nothing', 'blue']})
  assert work(lonely, 16).windows == ((71, 75),)


def test_a_neighbouring_frame_counts_only_within_the_tolerance_and_of_the_same_event():
  assert traces.visible(RED_AT_40, 41, [42.0], 1)
  assert not traces.visible(RED_AT_40, 41, [42.0], 0)
  assert not traces.visible(RED_AT_40, 42, [43.0], 1)


def test_a_span_is_always_looked_up_in_a_wider_window():
  trace = work(SPAN, 64)
  assert trace.windows == ((36, 46),)
  assert trace.replies[0] == ('40 41 42 red',)
  assert trace.turns[-1] == '<think>\nSeen: 40 41 42 red.\n</think>\n<answer>[40, 43]</answer>'


def test_a_subagent_says_only_what_its_frames_show():
  say = lambda task, seconds: traces.subagent_answer(RED_AT_40, task, seconds, False)
  assert say(TWO, [39.0, 40.0, 41.0, 42.0]) == '41 red'
  assert say(TWO, [float(s) for s in range(38, 78)]) == '41 red, 73 blue'
  assert say(TWO, [90.0, 91.0]) == traces.UNSEEN
  assert say(SPAN, [41.0, 42.0, 43.0, 44.0]) == '41 42 red'
  assert say(SPAN, [39.0, 40.0, 41.0]) == '40 41 red'


def test_always_call_calls_at_64_frames_too():
  share = np.mean(
    [
      bool(
        work(
          dataclasses.replace(ONE, id=str(i)), 64, dataclasses.replace(CERTAIN, always_call=0.3)
        ).windows
      )
      for i in range(400)
    ]
  )
  assert abs(share - 0.3) < 0.07


def test_recovery_repeats_after_a_failed_call_with_the_agent_loop_s_own_error():
  trace = work(TWO, 4, dataclasses.replace(CERTAIN, recovery=1.0))
  assert len(trace.turns) == 3
  bad = toolcalls.parse(trace.turns[0])[0]
  assert bad == ToolCall('crop_video', {'start_time': 43, 'end_time': 39})
  assert trace.replies[0] == (toolcalls.resolve_window(bad, 128.0).message, '73 blue')
  assert trace.replies[1] == ('41 red', '73 blue')


def test_every_turn_parses_its_thoughts_are_substantive_and_its_answer_is_the_task_s():
  for drawn, task, trace in many():
    for turn, replies in zip(trace.turns, trace.replies):
      assert (
        turn.startswith('<think>\n')
        and len(turn.split('</think>')[0][len('<think>') :].strip()) >= 10
      )
      assert len(toolcalls.parse(turn)) == len(replies)
      assert all(isinstance(call, ToolCall) for call in toolcalls.parse(turn))
    final = answer.extract_answer(trace.turns[-1])
    assert toolcalls.parse(trace.turns[-1]) == ()
    if task.question_type == 'tvg':
      assert answer.temporal_iou(final, task.answer) == 1.0
    else:
      assert final == task.answer
    for call in toolcalls.parse(trace.turns[0]) if len(trace.turns) == 2 else ():
      assert isinstance(toolcalls.resolve_window(call, drawn.seconds), Window)


@pytest.mark.parametrize('budget', [4, 64])
def test_calls_are_made_where_they_pay(budget):
  single, calls = dataclasses.replace(QUESTIONS, weights={'oe1': 1}), []
  for i in range(200):
    drawn = scene.draw(SCENE, f'v{i}', 0)
    task = questions.draw(drawn, i, single, shapes=False, colours=8, video='v', source='', seed=0)
    calls.append(bool(work(task, budget, CERTAIN, drawn).windows))
  assert np.mean(calls) > 0.75 if budget == 4 else not any(calls)


def test_look_ups_are_answered_in_the_order_asked_and_balanced():
  assert traces.lookup_question([41, 12, 50]) == 'What appears at 41 12 50?'
  assert traces.lookup_answer(RED_AT_40, [41, 12, 73], False) == '41 red. 12 nothing. 73 blue.'
  rng = np.random.default_rng(0)
  asked = [traces.lookup_times(RED_AT_40, range(36, 46), 6, rng) for _ in range(50)]
  assert all(
    sum(RED_AT_40.at(s) is not None for s in times) == 3 and len(set(times)) == 6 for times in asked
  )
  assert (
    len(traces.lookup_times(RED_AT_40, range(90, 100), 6, rng)) == 1
  )  # nothing is shown there: one of it is enough


def test_a_thought_about_a_choice_names_its_letter_or_walks_through_the_options_up_to_it():
  task = Task('m', ('v',), 'Which?', 'mcq', 'B', ('red', 'blue', 'green'))
  assert traces.choice_lines(task, False) == ('B',) and traces.choice_lines(task, True) == (
    'A. red',
    'B. blue',
  )
  assert traces.choice_lines(SPAN, True) == ()
  assert traces.answer_turn(['40 blue'], 'B', ('A. red', 'B. blue')) == (
    '<think>\nSeen: 40 blue.\nA. red\nB. blue\n</think>\n<answer>B</answer>'
  )

"""Groups to the numbers that are logged, on groups made by hand."""

import dataclasses

import numpy as np
import pytest

from paravt_jax.metrics import names
from paravt_jax.rollout.statistics import statistics
from paravt_jax.types import (
  Episode,
  Group,
  ParseFailure,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
  Window,
)

TASK = Task('t', ('v.mp4',), 'q?', 'oe', 'red')
PARTS = {'accuracy': 0.0, 'format': 0.5, 'base': 0.25, 'anchor': 0.5, 'tool': 0.0, 'compliant': 0.0}
FRAME = np.zeros((64, 64, 3), np.uint8)  # 4 merged tokens: a placeholder and 3 more
CALL = ToolCall('crop_video', {})


def given(length, *images):
  return Segment(np.zeros(length, np.int32), False, images)


def written(length):
  return Segment(
    np.zeros(length, np.int32), True, (), np.zeros(length, np.float32), np.zeros(length, np.int32)
  )


def executed(seconds, tokens):
  """A call of `seconds` whose sub-agent wrote `tokens`."""
  seen = Trajectory((given(9), written(tokens)), StopReason.STOP)
  return ToolResult(
    CALL, ResultStatus.EXECUTED, 'red', Window(1.0, 1.0 + seconds), (1.0, 2.0), seen
  )


def scored(
  *lengths,
  budget=4,
  reward=1.0,
  results=(),
  stop=StopReason.ANSWER,
  turn_stop=StopReason.STOP,
  **parts,
):
  """An episode of one turn per length, the calls all in the first, behind a prompt of 10 tokens
  with one frame (13 expanded).
  """
  turns = tuple(Turn('', results if i == 0 else (), turn_stop) for i in range(len(lengths)))
  segments = [given(10, FRAME)]
  for i, length in enumerate(lengths):
    segments += [written(length)] if i == 0 else [given(5), written(length)]
  episode = Episode(TASK, 0, budget, (0.0,), 60.0, turns, Trajectory(tuple(segments), stop), stop)
  return Scored(episode, reward, {**PARTS, **parts})


def of(*groups, advantages=None, dropped=()):
  made = [
    Group(str(i), 0, tuple(members), dropped if i == 0 else ()) for i, members in enumerate(groups)
  ]
  count = sum(map(len, groups))
  return statistics(made, np.zeros(count) if advantages is None else np.array(advantages))


def test_rewards_and_their_terms_are_means_over_episodes():
  found = of(
    [scored(3, reward=2.0, accuracy=1.0, compliant=1.0), scored(3, reward=0.5)],
    [scored(3, reward=0.5, tool=0.8)],
  )
  assert found['reward/total'] == pytest.approx(1.0)
  assert (
    found['accuracy']
    == found['reward/accuracy']
    == found['format_compliance']
    == pytest.approx(1 / 3)
  )
  assert (found['reward/format'], found['reward/base'], found['reward/anchor']) == (0.5, 0.25, 0.5)
  assert found['reward/tool'] == pytest.approx(0.8 / 3)


def test_groups_without_signal_are_those_whose_rewards_are_all_equal():
  found = of(
    [scored(3, reward=2.0), scored(3, reward=1.0)], [scored(3), scored(3)], [scored(3)], []
  )
  assert (found['groups/accepted'], found['groups/no_signal']) == (3.0, pytest.approx(2 / 3))
  assert found['reward/std'] == pytest.approx(
    0.5 / 3
  )  # [2, 1] has a standard deviation of .5, the others of 0
  assert found['episodes/kept'] == 5.0


def test_advantages_and_accuracy_are_split_by_frame_budget():
  members = [
    scored(3, budget=4, accuracy=1.0),
    scored(3, budget=4),
    scored(3, budget=16, accuracy=1.0),
  ]
  found = of(members, advantages=[1.5, -0.5, -1.0])
  assert (found['advantage/k=4'], found['advantage/k=16'], found['advantage']) == (0.5, -1.0, 0.0)
  assert found['advantage/abs'] == 1.0
  assert (found['accuracy/k=4'], found['accuracy/k=16'], found['budget']) == (0.5, 1.0, 8.0)
  assert {name for name in found if name.endswith('/k=16')} == {
    'accuracy/k=16',
    'advantage/k=16',
    'advantage/abs/k=16',
    'calls/executed/k=16',
    'format_compliance/k=16',
    'reward/total/k=16',
  }


def test_calls_are_counted_as_parsed_executed_and_failed_by_reason():
  broken = ToolResult(ParseFailure('not_json', '{'), ResultStatus.PARSE_FAILURE, 'error')
  late = ToolResult(CALL, ResultStatus.TIMEOUT, 'error', Window(0.0, 8.0))
  found = of([scored(3, results=(executed(4.0, 6), executed(6.0, 2), broken, late)), scored(3)])
  assert (
    found['calls/parsed'],
    found['calls/executed'],
    found['calls/failed'],
    found['calls/other'],
  ) == (1.5, 1.0, 1.0, 0.0)
  assert (found['calls/failed/reason=parse_failure'], found['calls/failed/reason=timeout']) == (
    0.5,
    0.5,
  )
  assert found['calls/episodes_with'] == 0.5
  assert found['calls/seconds'] == 6.0  # windows of 4, 6 and 8 s
  assert found['length/subagent'] == 4.0


def test_a_call_that_is_not_well_formed_is_counted_apart_and_among_those_that_ran():
  sloppy = dataclasses.replace(executed(4.0, 6), call=dataclasses.replace(CALL, well_formed=False))
  found = of([scored(3, results=(sloppy, executed(6.0, 2)))])
  assert (found['calls/parsed'], found['calls/other'], found['calls/executed']) == (1.0, 1.0, 2.0)


def test_lengths_are_of_what_the_main_agent_wrote_and_of_its_expanded_context():
  found = of([scored(3, 7), scored(5)])
  assert (found['length/sampled'], found['length/turn'], found['length/turn_max']) == (
    7.5,
    5.0,
    7.0,
  )
  assert (found['length/context'], found['length/context_max']) == (
    23.0,
    28.0,
  )  # 13 + 3 + 5 + 7 and 13 + 5
  assert found['turns'] == 1.5


def test_truncations_and_reasons_to_stop_are_shares_of_episodes():
  full = scored(3, stop=StopReason.CONTEXT)
  cut = scored(3, stop=StopReason.LENGTH, turn_stop=StopReason.LENGTH)
  found = of([full, cut], [scored(3), scored(3)])
  assert (found['truncated/turn'], found['truncated/context']) == (0.25, 0.25)
  assert {name: value for name, value in found.items() if name.startswith('stop/')} == {
    'stop/reason=answer': 0.5,
    'stop/reason=context': 0.25,
    'stop/reason=length': 0.25,
  }


def test_what_was_lost_is_counted_by_reason_and_never_averaged_as_a_zero():
  found = of([scored(3, reward=2.0)], dropped=('server', 'server', 'judge_timeout'))
  assert (
    found['episodes/dropped/reason=server'],
    found['episodes/dropped/reason=judge_timeout'],
  ) == (2.0, 1.0)
  assert found['reward/total'] == 2.0


def test_without_episodes_there_is_only_what_was_lost():
  assert of([], dropped=('server',)) == {
    'episodes/dropped/reason=server': 1.0,
    'episodes/kept': 0.0,
  }
  assert statistics([], np.zeros(0)) == {'episodes/kept': 0.0}


def test_advantages_must_match_the_episodes():
  with pytest.raises(ValueError):
    of([scored(3)], advantages=[0.0, 1.0])


def test_every_name_is_in_the_dictionary():
  failures = tuple(
    ToolResult(CALL, status, 'e', Window(0.0, 1.0))
    for status in ResultStatus
    if status is not ResultStatus.EXECUTED
  )
  every = [scored(3, stop=stop, results=(*failures, executed(2.0, 1))) for stop in StopReason]
  found = of(
    every,
    [dataclasses.replace(every[0], reward=3.0)],
    dropped=('media_timeout', 'prompt_too_long', 'abort'),
  )
  assert len(found) > 40
  for name in found:
    names.lookup(name)


def test_repeats_of_overviews_and_crops_are_added_up():
  one = scored(3, results=(dataclasses.replace(executed(4, 5), repeated=2),))
  one = dataclasses.replace(one, episode=dataclasses.replace(one.episode, repeated=5))
  assert of([one, scored(3)])['frames/repeated'] == 3.5

"""R_tool from results and texts."""

import pytest

from paravt_jax import types
from paravt_jax.chat import toolcalls
from paravt_jax.rewards import tools
from paravt_jax.types import ResultStatus
from tests.rewards.made import CALL, episode, turn


def reward(made, accuracy: float = 0.0, bonus: str = 'call') -> float:
  return tools.tool_reward(made, accuracy, threshold=0.0, bonus=bonus)


def test_no_call_a_parseable_call_and_an_executed_one():
  assert reward(episode('<answer>B</answer>'), 1.0) == 0.0
  assert reward(episode(CALL)) == pytest.approx(0.1)
  assert reward(episode(turn(CALL, ResultStatus.TIMEOUT, ResultStatus.EXECUTED))) == pytest.approx(
    0.3
  )


@pytest.mark.parametrize(
  'status', [status for status in ResultStatus if status is not ResultStatus.EXECUTED]
)
def test_a_failed_call_was_not_executed(status):
  made = episode(turn(CALL, status))
  assert not tools.executed(made) and tools.parseable(made)
  assert reward(made, 1.0) == pytest.approx(0.6) and reward(made, 1.0, 'executed') == pytest.approx(
    0.1
  )


def test_a_call_that_ran_and_is_not_well_formed_earns_nothing():
  sloppy = CALL.replace('"', "'")
  (call,) = toolcalls.parse(sloppy)
  made = episode(types.Turn(sloppy, (types.ToolResult(call, ResultStatus.EXECUTED, 'red'),)))
  assert made.executed == 1 and not tools.executed(made)
  assert reward(made, 1.0) == reward(made, 1.0, 'executed') == 0.0


def test_a_leaked_code_call_is_not_parseable_and_one_inside_a_think_is_not():
  assert not tools.parseable(
    episode('<tool_code>crop_video("v", 1, 2)</tool_code>')
  ) and tools.parseable(episode(CALL))
  assert not tools.parseable(episode(f'<think>{CALL}</think>')) and not tools.parseable(
    episode('<tool_call>{}</tool_call>')
  )


def test_the_forced_turn_earns_nothing():
  assert reward(episode(turn(CALL, ResultStatus.EXECUTED, forced=True)), 1.0) == 0.0

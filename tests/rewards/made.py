"""Episodes made of texts and facts, for tests of rewards."""

import numpy as np

from paravt_jax import types
from paravt_jax.types import ResultStatus, ToolCall

LONG = '<think>\nI look at the window of the cue.'
CALL = (
  '<tool_call>{"name": "crop_video", "arguments": {"start_time": 1, "end_time": 2}}</tool_call>'
)
MCQ = types.Task('t', ('v.mp4',), 'Which?', 'mcq', 'B', ('red', 'blue', 'green', 'grey'))


def turn(text: str, *statuses: ResultStatus, forced: bool = False) -> types.Turn:
  """One turn whose calls came to `statuses`."""
  results = tuple(
    types.ToolResult(ToolCall('crop_video', {}), status, 'shown') for status in statuses
  )
  return types.Turn(text, results, forced=forced)


def episode(*turns: types.Turn | str, task: types.Task = MCQ) -> types.Episode:
  """A finished episode of these turns (texts are turns without results)."""
  made = tuple(turn(item) if isinstance(item, str) else item for item in turns)
  stream = types.Trajectory((types.Segment(np.zeros(1, np.int32), False),), types.StopReason.STOP)
  return types.Episode(task, 0, 4, (0.0,), 60.0, made, stream, types.StopReason.ANSWER)

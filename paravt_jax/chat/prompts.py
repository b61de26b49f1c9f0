"""Every text that we put before the policy. SFT, RL and evaluation use these very strings, at every
scale; they are short.
"""

import json
from collections.abc import Sequence
from typing import Any

from paravt_jax import types

TOOL_NAME = 'crop_video'
TOOL_SCHEMA = {
  'type': 'function',
  'function': {
    'name': TOOL_NAME,
    'description': 'Look closely at one window of the video.',
    'parameters': {
      'type': 'object',
      'properties': {
        'video_path': {'type': 'string'},
        'start_time': {'type': 'number', 'description': 'seconds'},
        'end_time': {'type': 'number', 'description': 'seconds'},
        'num_frames': {'type': 'integer'},
      },
      'required': ['start_time', 'end_time'],
    },
  },
}
SYSTEM = (
  'Frames of a video follow, each after its time. Think in <think></think>, then give the '
  'answer in <answer></answer>, '
  'or first look closer with calls; all calls of one turn run at once.\n'
  f'<tools>\n{json.dumps(TOOL_SCHEMA)}\n</tools>\n'
  'A call: <tool_call>{"name": "crop_video", "arguments": {"start_time": 8, "end_time": '
  '12}}</tool_call>'
)

_SEEN = 'Frames of a video follow, each after its time.'
NO_TOOLS = f'{_SEEN} Think in <think></think>, then give the answer in <answer></answer>.'
THINK = f'{_SEEN} Think step by step in <think></think>, then give the answer in <answer></answer>.'
DIRECT = f'{_SEEN} Do not think aloud: give the answer at once in <answer></answer>.'

FORMAT_HINTS = {
  'mcq': 'Answer with the letter.',
  'tvg': 'Answer with [start, end] in seconds.',
  'oe': 'Answer in a few words.',
}
SHAPED = 'shaped'  # a task's fact: its question already says how to write the answer
FINAL_REQUEST = 'No more calls. Give the final answer now.'

ERRORS = {
  types.ResultStatus.PARSE_FAILURE: 'Error: this call cannot be read; write {"name": '
  '..., "arguments": {...}} in its tags.',
  types.ResultStatus.UNKNOWN_TOOL: f'Error: there is no such tool, only {TOOL_NAME}.',
  types.ResultStatus.BAD_ARGUMENTS: 'Error: bad arguments.',
  types.ResultStatus.OVER_LIMIT: 'Error: too many calls in one turn; the rest were not run.',
  types.ResultStatus.MEDIA_ERROR: 'Error: this window cannot be decoded.',
  types.ResultStatus.TIMEOUT: 'Error: this call took too long.',
  types.ResultStatus.SUBAGENT_ERROR: 'Error: no answer for this window.',
}


def system(published: str | None = None) -> str:
  """The system text: a data row's own when it already carries a `<tools>` block, else ours."""
  return published if published is not None and '<tools>' in published else SYSTEM


def question(task_question: str, question_type: str) -> str:
  """The user's text after the frames: the task's question (options included) and how to write the
  answer.
  """
  return f'{task_question}\n{FORMAT_HINTS[question_type]}'


def user(task: types.Task, videos: Sequence[Sequence[Any]]) -> list[Any]:
  """The pieces of a task's user message: its text, cut where its videos stand.

  Args:
    task: the task. videos: the pieces of each of its videos' frames, in its order.

  Returns:
    Without slots, all frames and then the text as `question` has it, or the task's question alone
    where its facts say that it is SHAPED. Of several videos each one's frames follow a line `Video
    n:`.
  """
  text = (
    task.question if task.facts.get(SHAPED) is True else question(task.question, task.question_type)
  )
  pieces, at = [], 0
  for number, (frames, slot) in enumerate(zip(videos, _slots(task), strict=True), 1):
    if slot > at:
      pieces.append(text[at:slot])
    if len(videos) > 1:
      fresh = not pieces or (isinstance(pieces[-1], str) and pieces[-1].endswith('\n'))
      pieces.append(f'{"" if fresh else chr(10)}{label(number)}:\n')
    pieces += frames
    at = slot
  return [*pieces, text[at:]]


def label(number: int) -> str:
  """What the n-th of several videos is called, from 1."""
  return f'Video {number}'


def question_text(task: types.Task) -> str:
  """A task's question for those who are not shown its videos where they stand: labels stand in for
  slots inside the text.

  Where `facts['asked']` has the question without what came along for the main agent only (subtitles
  of the whole video), that one.
  """
  text, slots = task.facts.get('asked', task.question), _slots(task)
  if len(slots) < 2 or not any(slots):
    return text
  for number, slot in reversed(list(enumerate(slots, 1))):
    text = text[:slot] + label(number) + text[slot:]
  return text


def _slots(task: types.Task) -> Sequence[int]:
  return task.slots or (0,) * len(task.videos)


def subagent(window: types.Window, task_question: str | None, video: str = '') -> str:
  """A sub-agent's text after its frames: the window it sees (of which video, if there are several)
  and, unless None, the question behind it.
  """
  seen = (
    f'These frames show {window.start:.1f} to {window.end:.1f} seconds{video and " of "}{video}.'
  )
  return (
    f'{seen} Say briefly what they show.'
    if task_question is None
    else f'{seen} Answer briefly: {task_question}'
  )


def frames(count: int, window: types.Window) -> str:
  """What the main agent is told of a crop whose frames it sees itself."""
  return f'{count} frames of {window.start:.1f} to {window.end:.1f} seconds.'


def error(status: types.ResultStatus, detail: str = '') -> str:
  """What the main agent is shown for a call that did not run. `detail` is our own wording, never
  the policy's text.
  """
  return f'{ERRORS[status]} {detail}'.rstrip()


def result(text: str) -> str:
  """What the main agent is shown of a sub-agent's turn: what follows its last `</think>`, stripped;
  all of it without one.
  """
  return text.rpartition('</think>')[2].strip()

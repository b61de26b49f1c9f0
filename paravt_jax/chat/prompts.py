"""Every fixed text of the prompts. SFT, RL and evaluation use the same short strings."""

import json
from collections.abc import Mapping, Sequence
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
SHAPED = 'shaped'  # key in Task.facts: the question already says how to write the answer
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
  """Returns the system text: `published` if it contains a `<tools>` block, else SYSTEM."""
  return published if published is not None and '<tools>' in published else SYSTEM


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
  """Returns the part of a system text that offers tools, in the form of SYSTEM.

  tools: their definitions, in the form of TOOL_SCHEMA.
  """
  listed = '\n'.join(json.dumps(tool, ensure_ascii=False) for tool in tools)
  return (
    'Calls of these tools may be made; all calls of one turn run at once.\n'
    f'<tools>\n{listed}\n</tools>\n'
    'A call: <tool_call>{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>'
  )


def question(task_question: str, question_type: str) -> str:
  """Returns the user text after the frames: the question with its options, and a format hint."""
  return f'{task_question}\n{FORMAT_HINTS[question_type]}'


def user(task: types.Task, videos: Sequence[Sequence[Any]]) -> list[Any]:
  """Returns the pieces of a task's user message: its text with the frames inserted at the slots.

  The text is that of `question`, or the task's question alone if its facts contain SHAPED. Without
  slots, all frames come first and then the text. If there are several videos, a line `Video n:`
  precedes the frames of each one.

  Args:
    task: the task.
    videos: for each video of the task, in its order, the pieces of its frames.
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
  """Returns the label of the n-th of several videos, counted from 1."""
  return f'Video {number}'


def question_text(task: types.Task) -> str:
  """Returns a task's question as text only, with a label such as `Video 2` at each video slot.

  Sub-agents use it, because they do not see the videos at the slots. If `facts['asked']` exists, it
  is used instead of the question. It leaves out what only the main agent should see, such as the
  subtitles of the whole video.
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
  """Returns a sub-agent's text after its frames: the window, and the question unless it is None.

  `video` is the label of the video if the task has several, else ''.
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
  """Returns the text of a tool result whose `count` frames the main agent sees itself."""
  return f'{count} frames of {window.start:.1f} to {window.end:.1f} seconds.'


def error(status: types.ResultStatus, detail: str = '') -> str:
  """Returns the tool result of a call that did not run.

  `detail` must be text of this project, never text that the policy wrote.
  """
  return f'{ERRORS[status]} {detail}'.rstrip()


def result(text: str) -> str:
  """Returns the part of a sub-agent's turn that becomes its tool result.

  It is the stripped text after the last `</think>`, or the whole turn if there is no such tag.
  """
  return text.rpartition('</think>')[2].strip()

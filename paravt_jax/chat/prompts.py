"""Every text that we put before the policy. SFT, RL and evaluation use these very strings, at every scale; they are short."""

import json

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
    'Frames of a video follow, each after its time. Think in <think></think>, then give the answer in <answer></answer>, '
    'or first look closer with calls; all calls of one turn run at once.\n'
    f'<tools>\n{json.dumps(TOOL_SCHEMA)}\n</tools>\n'
    'A call: <tool_call>{"name": "crop_video", "arguments": {"start_time": 8, "end_time": 12}}</tool_call>')

FORMAT_HINTS = {
    'mcq': 'Answer with the letter.',
    'tvg': 'Answer with [start, end] in seconds.',
    'oe': 'Answer in a few words.',
}
FINAL_REQUEST = 'No more calls. Give the final answer now.'

ERRORS = {
    types.ResultStatus.PARSE_FAILURE: 'Error: this call cannot be read; write {"name": ..., "arguments": {...}} in its tags.',
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
  """The user's text after the frames: the task's question (options included) and how to write the answer."""
  return f'{task_question}\n{FORMAT_HINTS[question_type]}'


def subagent(window: types.Window, task_question: str | None) -> str:
  """A sub-agent's text after its frames: the window it sees and, unless None, the question behind it."""
  seen = f'These frames show {window.start:.1f} to {window.end:.1f} seconds.'
  return f'{seen} Say briefly what they show.' if task_question is None else f'{seen} Answer briefly: {task_question}'


def error(status: types.ResultStatus, detail: str = '') -> str:
  """What the main agent is shown for a call that did not run. `detail` is our own wording, never the policy's text."""
  return f'{ERRORS[status]} {detail}'.rstrip()


def result(text: str) -> str:
  """What the main agent is shown of a sub-agent's turn: what follows its last `</think>`, stripped; all of it without one."""
  return text.rpartition('</think>')[2].strip()

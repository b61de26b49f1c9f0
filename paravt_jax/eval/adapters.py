r"""Defines the dialogue formats of other published video agents: calls, results and answers.

  LongVT        <tool_call>{"name": "crop_video", ...}</tool_call>; frames, then their number and window, in a tool response
  VideoZoomer   <video_zoom>{"segment": [4.0, 6.0], "fps": 2}</video_zoom>; <frame3_time5.50s> before each frame; \boxed{B}
  SAGE          <json>{"final_answer": null, "recommended_tools": {"tool_calls": [...]}}</json>; only its tool
                that shows parts of the video is available, calls of other tools get an error

The user provides each agent's prompt as a text file. As for our agent, contexts are append-only and
frames have our sizes.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paravt_jax.chat import prompts, tags, template, toolcalls
from paravt_jax.chat.template import Piece
from paravt_jax.errors import ConfigError
from paravt_jax.rewards.answer import extract_answer
from paravt_jax.rollout.agent import DialogueFormat
from paravt_jax.types import Clip, ParseFailure, ResultStatus, Task, ToolCall, ToolResult, Window

QUESTION = '{question}'
VIDEO = '{video}'
RULE = '---'  # line between the system text and the user text of a prompt file

_ZOOM = re.compile(r'<video_zoom>(.*?)(</video_zoom>|(?=<video_zoom>)|\Z)', re.DOTALL)
_BOXED = re.compile(r'\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}')
_JSON = re.compile(r'<json>(.*?)(?:</json>|\Z)', re.DOTALL)
_SAGE_TOOL = 'extract_parts_from_timestamp'
ZOOM_FRAMES = 16  # larger requests are errors, as in the published VideoZoomer
_UNREADABLE = (ValueError, RecursionError)


def split(text: str, where: str) -> tuple[str, str]:
  """Splits a prompt file into (system text, user text) at the first line `---`.

  Without such a line there is no system text.

  Raises:
    ConfigError: no text follows the line.
  """
  lines = text.splitlines(keepends=True)
  at = next((index for index, line in enumerate(lines) if line.strip() == RULE), -1)
  system, user = ''.join(lines[: max(at, 0)]).strip(), ''.join(lines[at + 1 :]).strip()
  if not user:
    raise ConfigError(
      f'{where}: got no text for the user, wanted it after a line {RULE!r}, or alone'
    )
  return system, user


def user(text: str) -> Callable[[Task, Sequence[Sequence[Piece]]], list[Piece]]:
  """Returns a function that builds a user message: all frames, then `text`.

  Tags in `text` become tag tokens. The task's question and video name replace the placeholders, and
  their tags stay plain text.
  """
  parts = re.split(f'({re.escape(QUESTION)}|{re.escape(VIDEO)})', text)

  def pieces(task: Task, videos: Sequence[Sequence[Piece]]) -> list[Piece]:
    shown: list[Piece] = []
    for number, frames in enumerate(videos, 1):
      shown += [f'{prompts.label(number)}:\n', *frames] if len(videos) > 1 else frames
    filled = {QUESTION: prompts.question_text(task), VIDEO: task.video.rpartition('/')[2]}
    return shown + [filled.get(part, template.Trusted(part)) for part in parts if part]

  return pieces


def drop_times(frames: np.ndarray, seconds: Sequence[float]) -> list[Piece]:
  """Returns the frames as pieces, without their times."""
  return list(frames)


def respond(*pieces: Piece) -> list[Piece]:
  """Returns the pieces between the tags of a tool response."""
  return [
    template.Trusted(template.RESPONSE_OPEN),
    '\n',
    *pieces,
    '\n',
    template.Trusted(template.RESPONSE_CLOSE),
  ]


# LongVT


def longvt_crop(window: Window, clip: Clip) -> list[Piece]:
  """Returns the frames of a crop and a note with its window and number of frames."""
  return respond(
    *drop_times(clip.frames, clip.seconds.tolist()),
    f'Cropped {window.start:g}s-{window.end:g}s, got {len(clip.frames)} frames.',
  )


# VideoZoomer


def zoom_parse(text: str) -> tuple[ToolCall | ParseFailure, ...]:
  """Returns the zoom calls of a turn after its last `</think>`, or in the whole turn without one.

  The number of frames is `fps` times the segment length in seconds.
  """
  return tuple(_zoom(match) for match in _ZOOM.finditer(text, tags.after_think(text)))


def _zoom(match: re.Match) -> ToolCall | ParseFailure:
  if not match[2]:
    return ParseFailure('unclosed', match[0])
  try:
    value = json.loads(match[1])
  except _UNREADABLE:
    return ParseFailure('not_json', match[0])
  segment = value.get('segment') if isinstance(value, dict) else None
  if not isinstance(segment, list) or len(segment) != 2:
    return ParseFailure('no_segment', match[0])
  start, end, rate = (toolcalls.seconds(number) for number in (*segment, value.get('fps')))
  if start is None or end is None or rate is None or not rate > 0:
    return ParseFailure('no_numbers', match[0])
  frames = int(min(max(rate * (end - start), 0), 1e9))
  if frames > ZOOM_FRAMES:
    return ParseFailure('too_many_frames', match[0])
  return ToolCall(prompts.TOOL_NAME, {'start_time': start, 'end_time': end, 'num_frames': frames})


def zoom_frames(frames: np.ndarray, seconds: Sequence[float]) -> list[Piece]:
  """Returns each frame after its number and time."""
  return [
    piece
    for index, (frame, second) in enumerate(zip(frames, seconds, strict=True))
    for piece in (f'<frame{index}_time{float(second):.2f}s>', frame)
  ]


def zoom_crop(window: Window, clip: Clip) -> list[Piece]:
  """Returns the frames of a zoom and the text that asks the model to continue."""
  return [
    'The frames of the video clip are shown below:\n',
    *zoom_frames(clip.frames, clip.seconds.tolist()),
    template.Trusted(
      'Go on with your reasoning inside <think> and </think>, then write your final answer '
      'inside <answer> and </answer>.'
    ),
  ]


def zoom_error(result: ToolResult) -> list[Piece]:
  """Returns an error as a separate user message."""
  text = result.text
  if isinstance(result.call, ParseFailure):
    wanted = (
      f'at most {ZOOM_FRAMES} frames'
      if result.call.reason == 'too_many_frames'
      else '{"segment": [start, end], "fps": n}'
    )
    text = f'Error: this zoom cannot be run, wanted {wanted}.'
  return [f'{text} Go on with your reasoning, then zoom again or give your final answer.']


def boxed_text(text: str) -> str:
  r"""Returns the answer of a turn.

  This is the last `\boxed{}` text in its `<answer>`, or after its thought without an `<answer>`.
  Without a box, it is the `<answer>`.
  """
  answer = extract_answer(text)
  found = _BOXED.findall(answer or text[tags.after_think(text) :])
  return found[-1].strip() if found else answer


# SAGE


def sage_parse(text: str) -> tuple[ToolCall | ParseFailure, ...]:
  """Returns the tool calls that a turn recommends, () if it has a final answer.

  A turn without a JSON object gives one `ParseFailure`.
  """
  value = _sage(text)
  if value is None:
    return (ParseFailure('not_json', text),)
  if _final(value):
    return ()
  recommended = value.get('recommended_tools')
  calls = recommended.get('tool_calls') if isinstance(recommended, dict) else None
  return tuple(_sage_call(call) for call in calls) if isinstance(calls, list) else ()


def _sage_call(call: Any) -> ToolCall | ParseFailure:
  if (
    not isinstance(call, dict)
    or not isinstance(call.get('name'), str)
    or not isinstance(call.get('arguments'), dict)
  ):
    return ParseFailure('no_name', json.dumps(call))
  if call['name'] != _SAGE_TOOL:
    return ToolCall(call['name'], call['arguments'])
  given = call['arguments']
  times = {'start_time': given.get('timestamp_start') or 0, 'end_time': given.get('timestamp_end')}
  return ToolCall(
    prompts.TOOL_NAME, {name: value for name, value in times.items() if value is not None}
  )


def _sage(text: str) -> dict[str, Any] | None:
  """Returns the last tagged JSON object of a turn, or the one at its first brace, or None."""
  tail = text[tags.after_think(text) :]
  tagged = _JSON.findall(tail)
  text = tagged[-1] if tagged else tail
  try:
    # start at the brace, because a ```json fence may come first
    value, _ = json.JSONDecoder().raw_decode(text[max(text.find('{'), 0) :])
  except _UNREADABLE:
    return None
  return value if isinstance(value, dict) else None


def _final(value: dict[str, Any]) -> str:
  answer = value.get('final_answer')
  return '' if answer is None or answer in ('null', 'None') else str(answer).strip()


def sage_answer(text: str) -> str:
  """Returns the final answer of a turn, '' for none."""
  value = _sage(text)
  return '' if value is None else _final(value)


def sage_crop(window: Window, clip: Clip) -> list[Piece]:
  """Returns the frames of a part of the video, each after its time."""
  return respond(
    f'{_SAGE_TOOL} {_clock(window.start)} {_clock(window.end)}: {len(clip.frames)} frames\n',
    *template.frame_pieces(clip.frames, clip.seconds),
  )


def sage_error(result: ToolResult) -> list[Piece]:
  """Returns an error as a tool response that uses this agent's argument names."""
  text = (
    f'Error: only {_SAGE_TOOL} can be run here.'
    if result.status is ResultStatus.UNKNOWN_TOOL
    else result.text
  )
  if result.status is ResultStatus.PARSE_FAILURE:
    text = 'Error: wanted one JSON object between <json> and </json>.'
  return respond(text.replace('start_time', 'timestamp_start').replace('end_time', 'timestamp_end'))


def _clock(second: float) -> str:
  whole = int(second)
  return f'{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}'


LONGVT = DialogueFormat(
  system=lambda task: None,
  user=user(QUESTION),
  parse=toolcalls.parse,
  answered=tags.has_answer,
  request=prompts.FINAL_REQUEST,
  frames=drop_times,
  refused=lambda result: result.text,
  requests={},
  forced_tokens={},
  forced_prefix=True,
)
VIDEOZOOMER = DialogueFormat(
  system=lambda task: None,
  user=user(QUESTION),
  parse=zoom_parse,
  answered=tags.has_answer,
  request='No more zooms. Give the final answer now.',
  frames=zoom_frames,
  refused=zoom_error,
  requests={},
  forced_tokens={},
  forced_prefix=True,
)
SAGE = DialogueFormat(
  system=lambda task: None,
  user=user(QUESTION),
  parse=sage_parse,
  answered=lambda text: bool(sage_answer(text)),
  request='No more tools. Give the final answer now, in the same JSON.',
  frames=template.frame_pieces,
  refused=sage_error,
  requests={},
  forced_tokens={},
  forced_prefix=True,
)

"""The one parser of tool calls, and what a call comes to on a given video.

Model output is never an exception here: a block that is no call is a `ParseFailure`, a call that cannot be run a `Refusal`.
"""

import ast
import dataclasses
import json
import math
import re
import warnings
from typing import Any

from paravt_jax.chat import prompts, tags
from paravt_jax.types import ParseFailure, ResultStatus, ToolCall, Window

_OPENING = re.compile(r'<(tool_call|tool_code)>')
_POSITIONAL = ('video_path', 'start_time', 'end_time', 'num_frames')
_CLOCK = re.compile(r'(?:([0-9]+):)?([0-9]+):([0-5][0-9](?:\.[0-9]+)?)')
_NUMBER = re.compile(r'[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?')
_LARGEST = 10**15  # seconds; larger integers are clamped before they become floats, which could not hold them
_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)  # what json and ast raise on text, deep nesting included


@dataclasses.dataclass(frozen=True)
class Block:
  """One tool block: text[start:end] with its tags, and what it holds, in order (`<tool_code>` may hold several calls)."""
  start: int
  end: int
  items: tuple[ToolCall | ParseFailure, ...]


@dataclasses.dataclass(frozen=True)
class Refusal:
  """Why a call cannot be run; `message` is what the policy is shown."""
  status: ResultStatus
  message: str


def parse(text: str) -> tuple[ToolCall | ParseFailure, ...]:
  """The calls and failures of one turn, in order of appearance: after its last `</think>`, else of the whole turn."""
  return tuple(item for block in blocks(text) for item in block.items)


def blocks(text: str) -> tuple[Block, ...]:
  """The tool blocks that `parse` reads, with their places in `text`."""
  found, at = [], tags.after_think(text)
  while opened := _OPENING.search(text, at):
    read = _json_block if opened.group(1) == 'tool_call' else _code_block
    block = read(text, opened.start(), opened.end())
    found.append(block)
    at = block.end
  return tuple(found)


def without_blocks(text: str) -> str:
  """`text` with the blocks that `parse` reads cut out."""
  for block in reversed(blocks(text)):
    text = text[:block.start] + text[block.end:]
  return text


def resolve_window(call: ToolCall, duration: float, *, min_frames: int = 2, max_frames: int = 16) -> Window | Refusal:
  """The window that a call means on a video of `duration` seconds.

  Times are numbers, numeric strings, MM:SS or HH:MM:SS; start is clamped to 0, end to the duration, num_frames to
  min_frames..max_frames. Anything else, start >= end and start >= duration included, is a Refusal. `video_path` is ignored.
  """
  if call.name != prompts.TOOL_NAME:
    return _refuse(ResultStatus.UNKNOWN_TOOL, '')
  for name in ('start_time', 'end_time'):
    if name not in call.arguments:
      return _refuse(ResultStatus.BAD_ARGUMENTS, f'{name} is missing.')
  start, end = seconds(call.arguments['start_time']), seconds(call.arguments['end_time'])
  if start is None or end is None:
    return _refuse(ResultStatus.BAD_ARGUMENTS, 'start_time and end_time must be seconds.')
  start, end = max(start, 0.0), min(end, float(duration))
  if start >= duration:
    return _refuse(ResultStatus.BAD_ARGUMENTS, f'The video ends at {duration:.1f} seconds.')
  if not start < end:
    return _refuse(ResultStatus.BAD_ARGUMENTS, 'start_time must be before end_time.')
  frames = call.arguments.get('num_frames')
  if frames is not None:
    wanted = seconds(frames) if not (isinstance(frames, str) and ':' in frames) else None
    if wanted is None:
      return _refuse(ResultStatus.BAD_ARGUMENTS, 'num_frames must be a number.')
    frames = int(min(max(wanted, min_frames), max_frames))
  return Window(start, end, frames)


def seconds(value: Any) -> float | None:
  """A time that a policy wrote, in seconds: a number, numeric string, MM:SS or HH:MM:SS; None if none, or not finite."""
  if isinstance(value, str):
    text = value.strip()
    if clock := _CLOCK.fullmatch(text):
      hours, minutes, rest = clock.groups()
      if hours is not None and float(minutes) >= 60:
        return None
      value = float(hours or 0) * 3600 + float(minutes) * 60 + float(rest)
    elif _NUMBER.fullmatch(text):
      value = float(text)
    else:
      return None
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  if isinstance(value, int):
    return float(max(-_LARGEST, min(value, _LARGEST)))
  return value if math.isfinite(value) else None


def _refuse(status: ResultStatus, detail: str) -> Refusal:
  return Refusal(status, prompts.error(status, detail))


def _json_block(text: str, start: int, body: int) -> Block:
  """The `<tool_call>` whose content starts at `body`. A tag inside a JSON string is part of the string."""
  content = len(text) - len(text[body:].lstrip())
  try:
    value, stop = json.JSONDecoder().raw_decode(text, content)
  except _UNREADABLE:
    return _by_tags(text, start, body, 'tool_call', 'not_json')
  rest = text[stop:].lstrip()
  if not rest.startswith('</tool_call>'):
    return _by_tags(text, start, body, 'tool_call', 'not_json')
  end = len(text) - len(rest) + len('</tool_call>')
  return Block(start, end, (_call(value, text[start:end]),))


def _by_tags(text: str, start: int, body: int, name: str, reason: str) -> Block:
  """A failed block that ends at its closing tag; without one, at the next opening tag or the end of the turn."""
  inside, end, closed = _bounds(text, body, name)
  return Block(start, end, (ParseFailure(reason if closed else 'unclosed', text[start:end]),))


def _bounds(text: str, body: int, name: str) -> tuple[str, int, bool]:
  """(content, index behind the block, whether it is closed) for the block whose content starts at `body`."""
  close = text.find(f'</{name}>', body)
  opened = _OPENING.search(text, body)
  limit = opened.start() if opened else len(text)
  if 0 <= close < limit:
    return text[body:close], close + len(f'</{name}>'), True
  return text[body:limit], limit, False


def _call(value: Any, text: str) -> ToolCall | ParseFailure:
  """The call that a decoded JSON value is."""
  if not isinstance(value, dict):
    return ParseFailure('not_an_object', text)
  name, arguments = value.get('name'), value.get('arguments')
  if not isinstance(name, str) or not name.strip():
    return ParseFailure('no_name', text)
  if not isinstance(arguments, dict):
    return ParseFailure('no_arguments', text)
  return ToolCall(name, arguments) if _is_unicode([name, arguments]) else ParseFailure('not_unicode', text)


def _is_unicode(value: Any) -> bool:
  """Whether all strings can be written as UTF-8: JSON's and Python's escapes can spell lone surrogates."""
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except _UNREADABLE:
    return False
  return True


def _code_block(text: str, start: int, body: int) -> Block:
  """The `<tool_code>` whose content starts at `body`: statements that are calls, alone or as arguments of `print`."""
  inside, end, closed = _bounds(text, body, 'tool_code')
  if not closed:
    return _by_tags(text, start, body, 'tool_code', 'unclosed')
  source = '\n'.join(line.strip() for line in inside.splitlines())
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about the policy's escapes, not our code's
      statements = ast.parse(source).body
  except _UNREADABLE:
    return Block(start, end, (ParseFailure('not_code', text[start:end]),))
  items = tuple(item for statement in statements for item in _statement(statement, text[start:end]))
  return Block(start, end, items or (ParseFailure('empty', text[start:end]),))


def _statement(statement: ast.stmt, text: str) -> list[ToolCall | ParseFailure]:
  """The calls of one statement; a failure for each that is none."""
  node = statement.value if isinstance(statement, ast.Expr) else None
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print':
    return [_code_call(argument, text) for argument in node.args or [None]]
  return [_code_call(node, text)]


def _code_call(node: ast.AST | None, text: str) -> ToolCall | ParseFailure:
  """`name(...)` with literal arguments, positional ones named in the order video_path, start_time, end_time, num_frames."""
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
    return ParseFailure('not_a_call', text)
  if len(node.args) > len(_POSITIONAL):
    return ParseFailure('no_arguments', text)
  given = [*zip(_POSITIONAL, node.args), *((keyword.arg, keyword.value) for keyword in node.keywords)]
  arguments: dict[str, Any] = {}
  for name, value in given:
    if name is None or name in arguments or not _is_literal(value):
      return ParseFailure('no_arguments', text)
    arguments[name] = ast.literal_eval(value)
  return _call({'name': node.func.id, 'arguments': arguments}, text)


def _is_literal(node: ast.AST) -> bool:
  """Whether a node is a string, number, boolean or None, or a number with a sign."""
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
    return isinstance(node.operand, ast.Constant) and type(node.operand.value) in (int, float)
  return isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (str, int, float, bool))

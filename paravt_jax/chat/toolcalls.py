"""The one parser of tool calls, and what a call comes to on a given video.

Executed leniently, credited strictly: the forms that published models write are calls, and
`well_formed` says which are as asked for. Model output is never an exception here: a block that is
no call is a `ParseFailure`, a call that cannot be run a `Refusal`.
"""

import ast
import dataclasses
import json
import re
import warnings
from typing import Any

from paravt_jax.chat import lenient, prompts, tags
from paravt_jax.chat.lenient import strict_seconds as seconds
from paravt_jax.types import ParseFailure, ResultStatus, ToolCall, Window

__all__ = [
  'Block',
  'Refusal',
  'blocks',
  'is_well_formed',
  'parse',
  'resolve_window',
  'seconds',
  'without_blocks',
]

_NAME = r'["\']?([A-Za-z_][\w.-]{0,99})["\']?\s{0,9}>'
_FUNCTION = re.compile(rf'<function(?:\s{{0,9}}=\s{{0,9}}|\s{{1,9}}name\s{{0,9}}=\s{{0,9}}){_NAME}')
_PARAMETER = re.compile(
  rf'<param(?:eter)?(?:\s{{0,9}}=\s{{0,9}}|\s{{1,9}}name\s{{0,9}}=\s{{0,9}}){_NAME}'
)
_PARAMETER_END = re.compile(r'</param(?:eter)?>|</function>')
_FUNCTION_END = re.compile(r'\s{0,99}</function>(?:\s{0,99}</tool_call>)?')
_OPENING = re.compile(
  rf'<\s{{0,3}}(tool_call|tool_code)s?\s{{0,3}}>|{_FUNCTION.pattern}', re.IGNORECASE
)
_EDGE = re.compile(r'<\s{0,3}(/?)\s{0,3}(tool_call|tool_code)s?\s{0,3}>', re.IGNORECASE)
_SPACE = re.compile(r'\s*')
_NAMED = re.compile(
  r'\s*(?:<function>\s{0,9})?([A-Za-z_]\w{0,99})\s{0,9}(?:</function>)?[\s:]{0,9}(?=\{)'
)
_CODE = re.compile(r'\s*(?:```\w*\s+)?[A-Za-z_]\w{0,99}\(')
_OBJECT = re.compile(r'\{|\[(?=\s*\{)')
_FENCE = re.compile(r'^\s*(?:```|~~~).*$', re.MULTILINE)
_TIMES = ('start_time', 'end_time')
_MOST = 64  # objects of a block that are looked at
_POSITIONAL = ('video_path', *_TIMES, 'num_frames')
_ARGUMENTS = ('arguments', 'parameters', 'args')
# what json and ast raise on text, deep nesting included
_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Block:
  """One tool block of a turn."""

  start: int  # text[start:end] is the block with its tags
  end: int
  items: tuple[ToolCall | ParseFailure, ...]  # what it holds, in order; perhaps several calls


@dataclasses.dataclass(frozen=True)
class Refusal:
  """Why a call cannot be run."""

  status: ResultStatus
  message: str  # what the policy is shown


def parse(text: str) -> tuple[ToolCall | ParseFailure, ...]:
  """The calls and failures of one turn, in order of appearance: after its last `</think>`, else of
  the whole turn.
  """
  return tuple(item for block in blocks(text) for item in block.items)


def blocks(text: str) -> tuple[Block, ...]:
  """The tool blocks that `parse` reads, with their places in `text`."""
  found, at = [], tags.after_think(text)
  while opened := _OPENING.search(text, at):
    if opened[1] is None:
      block = _unwrap_function(text, opened.start(), opened.end())
    elif opened[1].lower() == 'tool_code':
      block = _code_block(text, opened.start(), opened.end())
    else:
      block = _call_block(text, opened.start(), opened.end())
    found.append(block)
    at = block.end
  return tuple(found)


def without_blocks(text: str) -> str:
  """`text` with the blocks that `parse` reads cut out."""
  for block in reversed(blocks(text)):
    text = text[: block.start] + text[block.end :]
  return text


def is_well_formed(item: ToolCall | ParseFailure) -> bool:
  """Whether an item of `parse` is a call that earns credit."""
  return isinstance(item, ToolCall) and item.well_formed


def resolve_window(
  call: ToolCall, duration: float, *, min_frames: int = 2, max_frames: int = 16
) -> Window | Refusal:
  """The window that a call means on a video of `duration` seconds.

  Times are numbers, numeric strings, MM:SS, HH:MM:SS, or as `lenient.seconds` reads them; start is
  clamped to 0, end to the duration, num_frames to min_frames..max_frames. Anything else, start >=
  end and start >= duration included, is a Refusal. `video_path` is ignored.
  """
  if call.name != prompts.TOOL_NAME:
    return _refuse(ResultStatus.UNKNOWN_TOOL, '')
  for name in _TIMES:
    if name not in call.arguments:
      return _refuse(ResultStatus.BAD_ARGUMENTS, f'{name} is missing.')
  start, end = (lenient.seconds(call.arguments[name]) for name in _TIMES)
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


def _refuse(status: ResultStatus, detail: str) -> Refusal:
  return Refusal(status, prompts.error(status, detail))


# `<tool_call>`


def _call_block(text: str, start: int, body: int) -> Block:
  """The `<tool_call>` whose content starts at `body`. A tag inside a string of strict JSON is part
  of the string.
  """
  inside, end, closed = _bounds(text, body, 'tool_call')
  exact = text[start:body] == '<tool_call>' and closed and text[:end].endswith('</tool_call>')
  try:
    value = json.loads(inside, parse_constant=_refuse_constant)
  except json.JSONDecodeError as error:
    if error.msg.startswith('Unterminated string') and (longer := _across_tags(text, start, body)):
      return longer
  except _UNREADABLE:
    pass
  else:
    if closed:
      return Block(start, end, tuple(_calls(value, text[start:end], exact)))
  return Block(start, end, _slack(inside, text[start:end], closed=closed, last=end == len(text)))


def _across_tags(text: str, start: int, body: int) -> Block | None:
  """The block whose strict JSON holds tags inside its strings, so that its bounds are those of the
  JSON; None if it is not one.
  """
  window = text[body : body + lenient.LONGEST]
  content = _after_space(window, 0)
  try:
    value, stop = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(window, content)
  except _UNREADABLE:
    return None
  close = _EDGE.match(window, _after_space(window, stop))
  if close is None or close[0] != '</tool_call>':
    return None
  end = body + close.end()
  return Block(start, end, tuple(_calls(value, text[start:end], text[start:body] == '<tool_call>')))


def _bounds(text: str, body: int, name: str) -> tuple[str, int, bool]:
  """(content, index behind the block, whether it is closed): it ends at its closing tag, the next
  opening tag, or the turn's end.
  """
  for edge in _EDGE.finditer(text, body):
    if not edge[1]:
      return text[body : edge.start()], edge.start(), False
    if edge[2].lower() == name:
      return text[body : edge.start()], edge.end(), True
  return text[body:], len(text), False


def _slack(
  inside: str, block: str, *, closed: bool, last: bool
) -> tuple[ToolCall | ParseFailure, ...]:
  """What a block that is not strict JSON holds: the forms that published models write, in order,
  and a failure for what is none.

  Without its closing tag a block holds calls only at the end of the turn (`last`), whole ones, with
  nothing behind them.
  """
  failed = (ParseFailure('not_json' if closed else 'unclosed', block),)
  if len(inside) > lenient.LONGEST or not (closed or last):
    return failed
  if _FUNCTION.search(inside):
    return tuple(_functions(inside, block, closed)) or failed
  if closed and _CODE.match(inside):
    found = _code(inside, block)
    if any(isinstance(item, ToolCall) for item in found):
      return found
  named = _NAMED.match(inside)
  items, at = [], named.end() if named else 0
  while begun := _OBJECT.search(inside, at):
    try:
      value, at, whole = lenient.value(inside, begun.start())
    except lenient.Unreadable:
      items.append(failed[0])
      break
    if len(items) >= _MOST or not (closed or whole):
      items.append(failed[0])
      break
    if named and not items and isinstance(value, dict) and 'name' not in value:
      items += _calls(
        {'name': named[1], 'arguments': next((value[k] for k in _ARGUMENTS if k in value), value)},
        block,
        False,
      )
    else:
      found = _calls(value, block, False)
      items += (
        found if whole else [one if isinstance(one, ToolCall) else failed[0] for one in found]
      )
  if not closed and not _ends_whole(inside, items):
    return failed
  return tuple(items) or failed


def _ends_whole(inside: str, items: list[ToolCall | ParseFailure]) -> bool:
  """Whether an unclosed block ends with its last object: nothing follows but a fence or the
  beginning of the closing tag.
  """
  text = inside.rstrip()
  cut = text.rfind('<')
  if cut >= 0 and '</tool_call>'.startswith(text[cut:]):
    text = text[:cut].rstrip()
  return bool(items) and text.rstrip('`~ \n')[-1:] in ('}', ']')


def _calls(value: Any, block: str, strict: bool) -> list[ToolCall | ParseFailure]:
  """The calls of one decoded value. strict: it is the one JSON value of a closed block, so its call
  may be well-formed.
  """
  if isinstance(value, str) and value.lstrip()[:1] in ('{', '['):
    value, strict = _from_text(value), False
  if isinstance(value, dict) and isinstance(value.get('tool_calls'), list):
    value = value['tool_calls']
  if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
    return [_call(one, block, False) for one in value]
  return [_call(value, block, strict)]


def _call(value: Any, block: str, strict: bool) -> ToolCall | ParseFailure:
  """The call that a decoded value is."""
  if not isinstance(value, dict):
    return ParseFailure('not_an_object', block)
  for wrapper in ('function', 'tool_call', 'function_call'):
    if isinstance(value.get(wrapper), dict) and not isinstance(value.get('arguments'), dict):
      value, strict = value[wrapper], False
  name, arguments = value.get('name'), value.get('arguments')
  if name is None and isinstance(value.get('function'), str):
    name, strict = value['function'], False
  if name is None and isinstance(value.get(prompts.TOOL_NAME), dict):
    name, arguments, strict = prompts.TOOL_NAME, value[prompts.TOOL_NAME], False
  if not isinstance(name, str) or not name.strip():
    return ParseFailure('no_name', block)
  if not isinstance(arguments, dict):
    strict, arguments = False, _loose_arguments(value)
  if arguments is None:
    return ParseFailure('no_arguments', block)
  if _is_deep(arguments, lenient.DEEPEST):
    return ParseFailure('too_deep', block)
  if not _is_unicode([name, arguments]):
    return ParseFailure('not_unicode', block)
  plain = all(
    not isinstance(arguments.get(key), str)
    or seconds(arguments[key]) is not None
    or lenient.seconds(arguments[key]) is None
    for key in _TIMES
  )
  return ToolCall(name if strict else name.strip(), arguments, strict and plain)


def _loose_arguments(value: dict[str, Any]) -> dict[str, Any] | None:
  """Arguments under another name, as text, or beside the name; None if there are none."""
  for key in _ARGUMENTS:
    found = value.get(key)
    for _ in range(2):
      found = _from_text(found) if isinstance(found, str) else found
    if isinstance(found, list) and len(found) == 1:
      found = found[0]
    if isinstance(found, dict):
      return found
  if any(key in value for key in _ARGUMENTS) or not all(key in value for key in _TIMES):
    return None
  return {key: value[key] for key in _POSITIONAL if key in value}


def _from_text(text: str) -> Any:
  """The object or array that a text holds, or None."""
  try:
    return json.loads(text)
  except _UNREADABLE:
    pass
  try:
    return lenient.value(text, _after_space(text, 0))[0] if len(text) <= lenient.LONGEST else None
  except lenient.Unreadable:
    return None


def _after_space(text: str, at: int) -> int:
  """The first index from `at` on that holds no white space."""
  space = _SPACE.match(text, at)
  return space.end() if space else at


def _refuse_constant(name: str) -> float:
  raise ValueError(f'{name} is no JSON')


# Qwen's XML form


def _unwrap_function(text: str, start: int, body: int) -> Block:
  """`<function=name>...</function>` without `<tool_call>` around it; a `</tool_call>` behind it
  belongs to it.
  """
  opened = _OPENING.search(text, body)
  limit = opened.start() if opened else len(text)
  close = text.find('</function>', body, limit)
  closing = _FUNCTION_END.match(text, close) if close >= 0 else None
  end = closing.end() if closing else limit
  block = text[start:end]
  if len(block) > lenient.LONGEST:
    return Block(start, end, (ParseFailure('not_json' if close >= 0 else 'unclosed', block),))
  items = tuple(_functions(block, block, False)) if close >= 0 or end == len(text) else ()
  return Block(start, end, items or (ParseFailure('unclosed', block),))


def _functions(inside: str, block: str, closed: bool) -> list[ToolCall | ParseFailure]:
  """The functions of a block in Qwen's XML form: parameters as tags, or as one object. One that is
  cut off is a failure.
  """
  found, items = list(_FUNCTION.finditer(inside)), []
  for opened, following in zip(
    found, [*(match.start() for match in found[1:]), len(inside)], strict=True
  ):
    body = inside[opened.end() : following]
    whole = (
      closed
      or following < len(inside)
      or '</function>' in body
      or body.rstrip().endswith(('</parameter>', '</param>'))
    )
    parameters = list(_PARAMETER.finditer(body))
    if not whole:
      items.append(ParseFailure('unclosed', block))
    elif not parameters and (at := body.find('{')) >= 0:
      value = _from_text(body[at:].partition('</function>')[0])
      items.append(_call({'name': opened[1], 'arguments': value}, block, False))
    else:
      items.append(
        _call({'name': opened[1], 'arguments': _parameters(body, parameters)}, block, False)
      )
  return items


def _parameters(body: str, found: list[re.Match]) -> dict[str, str]:
  """Parameters by name, as text; one that is not closed ends where the next one begins."""
  values = {}
  limits = [*(match.start() for match in found[1:]), len(body)]
  for match, limit in zip(found, limits, strict=False):  # no parameter, no value
    close = _PARAMETER_END.search(body, match.end(), limit)
    values[match[1]] = body[match.end() : close.start() if close else limit].strip().strip('"\'')
  return values


def _is_deep(value: Any, levels: int) -> bool:
  """Whether containers nest deeper than `levels`: what writes an episode down goes into them by
  recursion.
  """
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return levels < 0 or any(_is_deep(one, levels - 1) for one in inner)


def _is_unicode(value: Any) -> bool:
  """Whether all strings can be written as UTF-8: JSON's and Python's escapes can spell lone
  surrogates.
  """
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except _UNREADABLE:
    return False
  return True


# `<tool_code>`


def _code_block(text: str, start: int, body: int) -> Block:
  """The `<tool_code>` whose content starts at `body`: statements that are calls, alone or as
  arguments of `print`.
  """
  inside, end, closed = _bounds(text, body, 'tool_code')
  block = text[start:end]
  if not closed:
    return Block(start, end, (ParseFailure('unclosed', block),))
  return Block(start, end, _code(inside, block))


def _code(inside: str, block: str) -> tuple[ToolCall | ParseFailure, ...]:
  """The calls of some lines of Python, a fence around them left out; a JSON object among them is
  none.
  """
  if len(inside) > lenient.LONGEST:
    return (ParseFailure('not_code', block),)
  source = '\n'.join(line.strip() for line in _FENCE.sub('', inside).splitlines())
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about the policy's escapes, not our code's
      statements = ast.parse(source).body
  except _UNREADABLE:
    return (ParseFailure('not_code', block),)
  return tuple(item for statement in statements for item in _statement(statement, block)) or (
    ParseFailure('empty', block),
  )


def _statement(statement: ast.stmt, text: str) -> list[ToolCall | ParseFailure]:
  """The calls of one statement; a failure for each that is none."""
  node = statement.value if isinstance(statement, ast.Expr) else None
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print':
    return [_code_call(argument, text) for argument in node.args or [None]]
  return [_code_call(node, text)]


def _code_call(node: ast.AST | None, text: str) -> ToolCall | ParseFailure:
  """`name(...)` with literal arguments, positional ones named in the order video_path, start_time,
  end_time, num_frames.
  """
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
    return ParseFailure('not_a_call', text)
  if len(node.args) > len(_POSITIONAL):
    return ParseFailure('no_arguments', text)
  given = [
    *zip(_POSITIONAL, node.args),
    *((keyword.arg, keyword.value) for keyword in node.keywords),
  ]
  arguments: dict[str, Any] = {}
  for name, value in given:
    if name is None or name in arguments or not _is_literal(value):
      return ParseFailure('no_arguments', text)
    arguments[name] = ast.literal_eval(value)
  return _call({'name': node.func.id, 'arguments': arguments}, text, False)


def _is_literal(node: ast.AST) -> bool:
  """Whether a node is a string, number, boolean or None, or a number with a sign."""
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
    return isinstance(node.operand, ast.Constant) and type(node.operand.value) in (int, float)
  return isinstance(node, ast.Constant) and (
    node.value is None or type(node.value) in (str, int, float, bool)
  )

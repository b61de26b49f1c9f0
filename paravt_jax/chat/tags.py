"""Finds think and answer blocks in the text of one turn.

All code that parses a turn uses this module or `toolcalls`.
"""

import dataclasses
import re

THINK_OPEN, THINK_CLOSE = '<think>', '</think>'
ANSWER_OPEN, ANSWER_CLOSE = '<answer>', '</answer>'
ANY_TAG = re.compile(r'</?(?:think|answer|tool_call|tool_code|tool_response)>')
_THINK_TAG = re.compile(r'</?think>')


@dataclasses.dataclass(frozen=True)
class Span:
  """A tagged block of a turn's text."""

  start: int  # text[start:end] is the block with its tags
  end: int
  body: str  # the text without the tags
  closed: bool  # whether there is an end tag


def after_think(text: str) -> int:
  """Returns the index after the last `</think>`.

  Returns 0 if there is none: the think block is then never closed, and the whole turn counts.
  """
  return text.rfind(THINK_CLOSE) + len(THINK_CLOSE) if THINK_CLOSE in text else 0


def thinks(text: str) -> tuple[Span, ...]:
  """Returns all think blocks in order.

  A block is closed if `</think>` follows before the next `<think>`. An unclosed block ends at the
  next tag or at the end of the text.
  """
  spans = []
  for opened in re.finditer(THINK_OPEN, text):
    following = _THINK_TAG.search(text, opened.end())
    if following and following.group() == THINK_CLOSE:
      spans.append(
        Span(opened.start(), following.end(), text[opened.end() : following.start()], True)
      )
    else:
      tag = ANY_TAG.search(text, opened.end())
      end = tag.start() if tag else len(text)
      spans.append(Span(opened.start(), end, text[opened.end() : end], False))
  return tuple(spans)


def without_thinks(text: str) -> str:
  """Returns `text` with every closed think block replaced by spaces, so that positions stay valid.

  Tags inside a think block are plain text and not structure.
  """
  for think in thinks(text):
    if think.closed:
      text = text[: think.start] + ' ' * (think.end - think.start) + text[think.end :]
  return text


def answers(text: str) -> tuple[Span, ...]:
  """Returns all answer blocks outside closed think blocks, in order.

  An unclosed block ends at the next `<answer>` or at the end of the turn.
  """
  plain, spans = without_thinks(text), []
  starts = [match.start() for match in re.finditer(ANSWER_OPEN, plain)]
  for start, limit in zip(starts, [*starts[1:], len(plain)]):
    body = start + len(ANSWER_OPEN)
    close = plain.find(ANSWER_CLOSE, body, limit)
    if close >= 0:
      spans.append(Span(start, close + len(ANSWER_CLOSE), plain[body:close], True))
    else:
      spans.append(Span(start, limit, plain[body:limit], False))
  return tuple(spans)


def has_answer(text: str) -> bool:
  """Returns whether the last `<answer>` after the last `</think>` (if any) has non-blank text.

  The answer may be closed or unclosed.
  """
  tail = text[after_think(text) :]
  _, opened, rest = tail.rpartition(ANSWER_OPEN)
  return bool(opened) and bool(rest.partition(ANSWER_CLOSE)[0].strip())


def balanced(text: str, name: str) -> bool:
  """Returns whether the `<name>` and `</name>` tags outside closed think blocks match.

  Every opening tag needs a later closing tag, and every closing tag an earlier opening tag.
  """
  depth = 0
  for tag in re.finditer(rf'<(/?){re.escape(name)}>', without_thinks(text)):
    depth += -1 if tag.group(1) else 1
    if depth < 0:
      return False
  return depth == 0

"""Where thinks and answers stand in the text of one turn; whatever reads a turn reads it through
here or `toolcalls`.
"""

import dataclasses
import re

THINK_OPEN, THINK_CLOSE = '<think>', '</think>'
ANSWER_OPEN, ANSWER_CLOSE = '<answer>', '</answer>'
ANY_TAG = re.compile(r'</?(?:think|answer|tool_call|tool_code|tool_response)>')
_THINK_TAG = re.compile(r'</?think>')


@dataclasses.dataclass(frozen=True)
class Span:
  """A tagged stretch of a turn's text."""

  start: int  # text[start:end] is the stretch with its tags
  end: int
  body: str  # the text without the tags
  closed: bool  # whether there is an end tag


def after_think(text: str) -> int:
  """The index behind the last `</think>`; 0 when there is none (the think is never closed, so the
  whole turn is looked at).
  """
  return text.rfind(THINK_CLOSE) + len(THINK_CLOSE) if THINK_CLOSE in text else 0


def thinks(text: str) -> tuple[Span, ...]:
  """All thinks in order. One is closed if `</think>` follows before the next `<think>`; else it
  runs to the next tag or end.
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
  """`text` with every closed think overwritten by spaces: what is inside is text, not structure.
  Positions stay.
  """
  for think in thinks(text):
    if think.closed:
      text = text[: think.start] + ' ' * (think.end - think.start) + text[think.end :]
  return text


def answers(text: str) -> tuple[Span, ...]:
  """All answers outside closed thinks, in order; an unclosed one runs to the next `<answer>` or the
  end of the turn.
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
  """Whether the turn, after its last `</think>` if any, ends with an `<answer>` that holds
  non-blank text (closed or not).
  """
  tail = text[after_think(text) :]
  _, opened, rest = tail.rpartition(ANSWER_OPEN)
  return bool(opened) and bool(rest.partition(ANSWER_CLOSE)[0].strip())


def balanced(text: str, name: str) -> bool:
  """Whether every `<name>` outside closed thinks has its `</name>` after it, and the other way
  round.
  """
  depth = 0
  for tag in re.finditer(rf'<(/?){re.escape(name)}>', without_thinks(text)):
    depth += -1 if tag.group(1) else 1
    if depth < 0:
      return False
  return depth == 0

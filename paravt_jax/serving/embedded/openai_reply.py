"""Writes OpenAI's chat replies: the text of sampled ids, its tool calls, whole or as a stream."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax.chat import toolcalls
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.types import ToolCall

_BLOCKS = ('<tool_call', '<tool_code', '<function')  # how blocks with calls begin
_UNFINISHED = '\ufffd'  # what an incomplete character is decoded to


@dataclasses.dataclass(frozen=True)
class Turn:
  """A finished reply."""

  text: str  # all of it, calls included
  finish: str  # stop | length | tool_calls
  calls: tuple[ToolCall, ...]

  @property
  def content(self) -> str:
    """Returns the text without the blocks whose calls were taken out."""
    if not self.calls:
      return self.text
    text = self.text
    for block in reversed(toolcalls.blocks(text)):
      if any(isinstance(item, ToolCall) for item in block.items):
        text = text[: block.start] + text[block.end :]
    return text.rstrip()

  def message(self, rid: str) -> dict[str, Any]:
    """Returns the message of the assistant."""
    calls = {'tool_calls': call_objects(self.calls, rid)} if self.calls else {}
    content = self.content if self.content or not self.calls else None
    return {'role': 'assistant', 'content': content, **calls}


def call_objects(calls: Sequence[ToolCall], rid: str) -> list[dict[str, Any]]:
  """Returns calls in OpenAI's form, with ids that are made from the request's."""
  return [
    {
      'id': f'call_{rid}_{n}',
      'type': 'function',
      'function': {
        'name': call.name,
        'arguments': json.dumps(call.arguments, ensure_ascii=False),
      },
    }
    for n, call in enumerate(calls)
  ]


class Writer:
  """Turns the ids of one reply into text.

  begun: text before the sampled ids.
  stops: texts that end the reply.
  calls_tools: whether calls are taken out of the text.
  """

  def __init__(
    self, tok: ChatTokenizer, begun: str, stops: Sequence[str], ends: Sequence[int], calls: bool
  ):
    self._tok, self._begun, self._stops = tok, begun, stops
    self._ends = frozenset(ends)
    self._calls = calls

  def text(self, ids: Sequence[int]) -> tuple[str, bool]:
    """Returns the text so far, and whether one of the stop texts ended it."""
    whole = ids[:-1] if len(ids) and ids[-1] in self._ends else ids
    text = self._tok.decode(whole)
    found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
    return self._begun + (text[: min(found)] if found else text), bool(found)

  def settled(self, text: str) -> str:
    """Returns the part of an unfinished text that cannot change any more.

    It ends before an incomplete character, before what may become a stop text, and before what may
    be a tool call.
    """
    end = len(text.rstrip(_UNFINISHED))
    for stop in self._stops:
      begun = next(
        (n for n in range(min(len(stop) - 1, end), 0, -1) if text[:end].endswith(stop[:n])), 0
      )
      end -= begun
    if self._calls:
      end = min(end, _first_block(text[:end]))
    return text[:end].rstrip() if self._calls else text[:end]

  def turn(self, ids: Sequence[int], cut_off: bool) -> Turn:
    """Returns the finished reply.

    cut_off: the limit of tokens ended it.
    """
    text, _ = self.text(ids)
    items = toolcalls.parse(text) if self._calls else ()
    calls = tuple(item for item in items if isinstance(item, ToolCall))
    return Turn(text, 'length' if cut_off else 'tool_calls' if calls else 'stop', calls)


def _first_block(text: str) -> int:
  """Returns where the first block with calls may begin; the text's length if nowhere."""
  for found in re.finditer('<', text):
    begun = re.sub(r'\s', '', text[found.start() : found.start() + 16]).lower()
    if any(block.startswith(begun) or begun.startswith(block) for block in _BLOCKS):
      return found.start()
  return len(text)


def completion(head: Mapping[str, Any], turn: Turn, usage: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the body of a whole reply. head: its id, created and model."""
  choice = {
    'index': 0,
    'message': turn.message(head['id']),
    'logprobs': None,
    'finish_reason': turn.finish,
  }
  return {**head, 'object': 'chat.completion', 'choices': [choice], 'usage': dict(usage)}


def chunk(
  head: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
  """Returns one event of a stream."""
  choice = {'index': 0, 'delta': dict(delta), 'logprobs': None, 'finish_reason': finish}
  return {**head, 'object': 'chat.completion.chunk', 'choices': [choice]}


def last_chunks(
  head: Mapping[str, Any], turn: Turn, sent: str, usage: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
  """Returns the events after the text `sent`: its rest, the calls, the end, and the counts."""
  chunks = []
  if rest := turn.content[len(sent) :]:
    chunks.append(chunk(head, {'content': rest}))
  calls = call_objects(turn.calls, head['id'])
  if calls:
    chunks.append(chunk(head, {'tool_calls': [{'index': n, **one} for n, one in enumerate(calls)]}))
  chunks.append(chunk(head, {}, turn.finish))
  if usage is not None:
    chunks.append({**chunk(head, {}), 'choices': [], 'usage': dict(usage)})
  return chunks

"""Reads the other keys of an SFT message: tool calls, reasoning, and loss masks.

Published sets have `tool_calls` (OpenAI's form, or only name and arguments), `reasoning_content`,
and masks. A row with an unknown key is refused, because the content of that key would be lost
silently.
"""

import json
import re
from typing import Any

from paravt_jax.chat import tags, template
from paravt_jax.data import fields
from paravt_jax.data.fields import Broken

# keys of masks; false or 0: the turn is context, but not a training target
MASKS = ('loss', 'weight', 'loss_mask', 'train')
_KEYS = {'role', 'content', *MASKS}
_OF_ROLE = {'assistant': {'tool_calls', 'reasoning_content'}, 'tool': {'tool_call_id', 'name'}}
_CALL_TAG = re.compile('<tool_call>|<tool_code>')


def refuse_unknown(value: dict, known: set[str], where: str) -> None:
  """Raises Broken for an unknown key. Ignores keys with null values, which parquet adds."""
  unknown = sorted(str(key) for key, item in value.items() if key not in known and item is not None)
  if unknown:
    raise Broken(
      f'{where}: got the key {unknown[0]!r}, wanted only {", ".join(sorted(known))}: what it '
      'says would be lost',
      'unknown_key',
    )


def check_keys(message: dict, where: str) -> None:
  """Raises Broken if a message has a key that is not allowed for its role.

  Empty calls and empty reasoning are ignored.
  """
  empty = {key for key in ('tool_calls', 'reasoning_content') if message.get(key) in ([], '')}
  refuse_unknown(
    {key: item for key, item in message.items() if key not in empty},
    _KEYS | _OF_ROLE.get(message['role'], set()),
    where,
  )


def is_target(message: dict, where: str) -> bool:
  """Returns whether the masks of a message make it a target; True without masks.

  Raises Broken if a mask is invalid or the masks disagree.
  """
  said = {key: message[key] for key in MASKS if message.get(key) is not None}
  for key, value in said.items():
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
      raise Broken(
        f'{where}.{key}: got {fields.short(value)}, wanted 0 or 1 (false or true): a turn is '
        'trained on or not',
        'loss',
      )
    if value and key != 'weight' and message['role'] != 'assistant':
      raise Broken(
        f'{where}.{key}: got {value!r} in a {message["role"]} message, wanted 0: only an '
        'assistant is trained',
        'loss',
      )
  if len(set(map(bool, said.values()))) > 1:
    raise Broken(f'{where}: got {said}, wanted masks that agree', 'loss')
  return all(said.values())


def assistant_text(message: dict, content: str, where: str) -> str:
  """Returns the raw text of an assistant turn: reasoning in think tags, content, then calls.

  Raises Broken for an empty turn.
  """
  reasoning = message.get('reasoning_content')
  calls = _calls(message.get('tool_calls'), f'{where}.tool_calls')
  if reasoning:
    if not isinstance(reasoning, str):
      raise Broken(f'{where}.reasoning_content: got {fields.short(reasoning)}, wanted a text')
    if any(
      tag in text for tag in (tags.THINK_OPEN, tags.THINK_CLOSE) for text in (content, reasoning)
    ):
      raise Broken(
        f'{where}: got reasoning_content and a think in the text, wanted one of them', 'reasoning'
      )
    reasoning = reasoning.replace('\r\n', '\n')
  if calls and _CALL_TAG.search(content, tags.after_think(content)):
    raise Broken(
      f'{where}: got tool_calls and a call in the content, wanted one of them', 'tool_calls'
    )
  text = template.assistant_text(content, reasoning or '', calls)
  if not text.strip():
    raise Broken(f'{where}: got an empty assistant turn, wanted a text or a call', 'empty_turn')
  return text


def call_ids(message: dict) -> list[str | None]:
  """Returns the ids of a checked assistant message's calls, in order; None for a missing id."""
  return [call.get('id') for call in fields.decoded(message.get('tool_calls') or [], 'tool_calls')]


def refuse_other_order(message: dict, waiting: list[str | None], where: str) -> None:
  """Removes the first id from `waiting`, the calls without a result so far.

  Raises Broken if this tool message has another id, so that results are not in call order.
  """
  wanted, got = waiting.pop(0) if waiting else None, message.get('tool_call_id')
  if wanted is not None and got is not None and got != wanted:
    raise Broken(
      f'{where}.tool_call_id: got {got!r}, wanted {wanted!r}: results stand in the order of '
      'the calls',
      'tool_calls',
    )


def _calls(value: Any, where: str) -> list[tuple[str, dict]]:
  """Returns (name, arguments) of each call in `tool_calls`; [] if empty.

  value: a list, or JSON text of a list.
  """
  value = fields.decoded(value or [], where)
  return (
    [_call(call, f'{where}[{i}]') for i, call in enumerate(fields.list_of_dicts(value, where))]
    if value
    else []
  )


def _call(call: dict, where: str) -> tuple[str, dict]:
  """Returns (name, arguments) of one call. Drops its id and index, which models do not see."""
  if call.get('type') not in (None, 'function'):
    raise Broken(f'{where}.type: got {call["type"]!r}, wanted function', 'tool_calls')
  body = call
  if isinstance(call.get('function'), dict):
    refuse_unknown(call, {'type', 'id', 'index', 'function'}, where)
    body, where = call['function'], f'{where}.function'
    refuse_unknown(body, {'name', 'arguments'}, where)
  else:
    refuse_unknown(call, {'type', 'id', 'index', 'name', 'arguments'}, where)
  name, arguments = body.get('name'), fields.decoded(body.get('arguments'), f'{where}.arguments')
  if arguments is not None and arguments is body.get('arguments') and isinstance(arguments, dict):
    # parquet adds null fields to structs
    arguments = {key: item for key, item in arguments.items() if item is not None}
  if (
    not isinstance(name, str)
    or not name
    or not isinstance(arguments, dict)
    or not _is_json(arguments)
  ):
    raise Broken(
      f'{where}: got {fields.short(body)}, wanted a name and arguments: an object, or JSON '
      'text of one',
      'tool_calls',
    )
  return name, arguments


def _is_json(value: dict) -> bool:
  """Returns whether the value can be written as JSON: no NaN, no bytes."""
  try:
    json.dumps(value, allow_nan=False)
  except (ValueError, TypeError):
    return False
  return True

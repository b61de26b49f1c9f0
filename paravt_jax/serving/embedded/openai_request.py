"""Reads OpenAI's chat requests: a checked body, and the prompt that its messages are.

Messages become tokens by the template of training (`chat.spans`). Only texts of the system, turns
of the assistant, and the tags around tool results may hold structural tags. In all other text they
are plain text.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from paravt_jax.chat import prompts, spans, template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.serving import fields, protocol
from paravt_jax.serving.fields import RequestError

PATH = '/v1/chat/completions'
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
_LARGEST = 2**31 - 1
# Keys whose value changes what is done.
_USED = (
  'model',
  'messages',
  'tools',
  'tool_choice',
  'max_tokens',
  'max_completion_tokens',
  'temperature',
  'top_p',
  'top_k',
  'stop',
  'seed',
  'logit_bias',
  'stream',
  'stream_options',
  'continue_final_message',
  'add_generation_prompt',
)
# Keys that are taken if they ask for what is done anyway.
_FIXED: Mapping[str, tuple[Any, ...]] = {
  'n': (1,),
  'frequency_penalty': (0,),
  'presence_penalty': (0,),
  'logprobs': (False,),
  'top_logprobs': (0,),
  'skip_special_tokens': (False,),
  'parallel_tool_calls': (True,),
  'response_format': ({'type': 'text'},),
}
_NOTES = ('user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key')
KEYS = frozenset((*_USED, *_FIXED, *_NOTES))
_MESSAGE_KEYS = ('role', 'content', 'name', 'tool_calls', 'tool_call_id', 'refusal', 'annotations')
_TEXT_PER_TOKEN = 256  # characters; no text of more fits a context


@dataclasses.dataclass(frozen=True)
class ImageUrl:
  """An image of a message, not decoded yet."""

  url: str  # data:image/...;base64,...
  where: str = dataclasses.field(compare=False)  # in the request, as messages name it


@dataclasses.dataclass(frozen=True)
class ChatRequest:
  """A body that passed the checks."""

  model: str
  # (role, pieces): system, user or assistant, as `spans.conversation` takes them
  messages: tuple[tuple[str, tuple[str | ImageUrl, ...]], ...]
  calls_tools: bool  # calls are taken out of the reply's text
  continues: bool  # the last message is the beginning of the reply
  max_tokens: int | None  # of the reply; None: what the context holds
  temperature: float
  top_p: float
  top_k: int  # -1: all
  stop: tuple[str, ...]  # texts that end the reply, and do not belong to it
  seed: int | None  # None: another one for each request
  logit_bias: tuple[tuple[int, float], ...]  # (id, added to its logit)
  stream: bool
  include_usage: bool  # of a stream: the counts come last

  @property
  def image_count(self) -> int:
    """Returns the number of images in the messages."""
    return sum(isinstance(one, ImageUrl) for _, pieces in self.messages for one in pieces)


def parse(body: Mapping[str, Any], vocab_size: int) -> ChatRequest:
  """Checks a body and fills in OpenAI's defaults. null stands for a missing value.

  Raises:
    RequestError: an unknown key, or a value that is wrong or not served. One line names it.
  """
  fields.refuse_unknown(PATH, body, KEYS)
  given = {key: value for key, value in body.items() if value is not None}
  for key, served in _FIXED.items():
    if key in given and given[key] not in served:
      raise RequestError(
        f'{key}: got {fields.short_repr(given[key])}, wanted {served[0]!r}: nothing else is served'
      )
  tools = _tools(given.get('tools', []), given.get('tool_choice', 'auto'))
  continues = fields.flag('continue_final_message', given.get('continue_final_message', False))
  if fields.flag('add_generation_prompt', given.get('add_generation_prompt', not continues)) == (
    continues
  ):
    raise RequestError(
      f'add_generation_prompt: got {continues}, wanted the opposite of continue_final_message'
    )
  messages = _messages(given.get('messages'), tools)
  if (messages[-1][0] == 'assistant') != continues:
    raise RequestError(
      f'messages: the last one is of the {messages[-1][0]}, wanted one of the '
      f'{"assistant, which continue_final_message continues" if continues else "user or a tool"}'
    )
  options = fields.section('stream_options', given.get('stream_options'))
  fields.refuse_unknown('stream_options', options, ('include_usage', 'include_obfuscation'))
  limits = [given[key] for key in ('max_completion_tokens', 'max_tokens') if key in given]
  temperature = fields.number('temperature', given.get('temperature', 1.0), 0.0, 100.0)
  top_k = fields.whole('top_k', given.get('top_k', -1), -1, _LARGEST)
  seed = given.get('seed')
  return ChatRequest(
    model=fields.text('model', given.get('model')),
    messages=messages,
    calls_tools=bool(tools),
    continues=continues,
    max_tokens=fields.whole('max_tokens', limits[0], 1, _LARGEST) if limits else None,
    temperature=temperature if temperature >= protocol.LEAST_TEMPERATURE else 0.0,
    top_p=fields.number('top_p', given.get('top_p', 1.0), 1e-6, 1.0),
    top_k=top_k if top_k > 0 else -1,
    stop=_stops(given.get('stop', [])),
    seed=None if seed is None else fields.whole('seed', seed, -(2**63), 2**63 - 1) & (2**63 - 1),
    logit_bias=fields.biases('logit_bias', given.get('logit_bias'), vocab_size),
    stream=fields.flag('stream', given.get('stream', False)),
    include_usage=fields.flag('include_usage', options.get('include_usage') or False),
  )


def _stops(value: Any) -> tuple[str, ...]:
  stops = [value] if isinstance(value, str) else value
  right = isinstance(stops, list) and all(isinstance(one, str) and one for one in stops)
  if not right or len(stops) > 4:
    raise RequestError(
      f'stop: got {fields.short_repr(value)}, wanted a text or a list of up to 4, none of them empty'
    )
  return tuple(stops)


def _tools(tools: Any, choice: Any) -> list[dict[str, Any]]:
  """Returns the definitions of the tools that the model may call."""
  right = isinstance(tools, list) and all(
    isinstance(tool, dict)
    and tool.get('type') == 'function'
    and isinstance(tool.get('function'), dict)
    and isinstance(tool['function'].get('name'), str)
    for tool in tools
  )
  if not right:
    raise RequestError(
      f'tools: got {fields.short_repr(tools)}, wanted a list of '
      '{"type": "function", "function": {"name": ..., "parameters": ...}}'
    )
  if choice not in ('auto', 'none'):
    raise RequestError(
      f'tool_choice: got {fields.short_repr(choice)}, wanted auto or none: no call can be forced'
    )
  return tools if choice == 'auto' else []


def _messages(
  value: Any, tools: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, tuple[str | ImageUrl, ...]], ...]:
  if not isinstance(value, list) or not value:
    raise RequestError(f'messages: got {fields.short_repr(value)}, wanted a list of messages')
  found = [_message(f'messages[{n}]', message) for n, message in enumerate(value)]
  if tools:
    role, pieces = found[0]
    text = ''.join(map(str, pieces)) if role == 'system' else ''
    if '<tools>' not in text:
      text = f'{text}\n{prompts.tools_text(tools)}'.lstrip('\n')
    found[: role == 'system'] = [('system', (text,))]
  return tuple(found)


def _message(where: str, value: Any) -> tuple[str, tuple[str | ImageUrl, ...]]:
  if not isinstance(value, dict) or value.get('role') not in ROLES:
    raise RequestError(
      f'{where}: got {fields.short_repr(value)}, wanted an object with a role of {ROLES}'
    )
  given = {key: one for key, one in value.items() if one is not None}
  fields.refuse_unknown(where, given, _MESSAGE_KEYS)
  role, pieces = given['role'], _content(f'{where}.content', given.get('content', ''))
  if role != 'user' and not all(isinstance(piece, str) for piece in pieces):
    raise RequestError(f'{where}.content: got an image of the {role}, wanted text only')
  text = ''.join(map(str, pieces))
  if role == 'assistant':
    return role, (template.assistant_text(text, '', _calls(where, given.get('tool_calls', []))),)
  if role == 'tool':
    edges = template.Trusted(template.RESPONSE_OPEN), template.Trusted(template.RESPONSE_CLOSE)
    return 'user', (edges[0], f'\n{text}\n', edges[1])
  if role in ('system', 'developer'):
    return 'system', (text,)
  return role, pieces


def _content(where: str, value: Any) -> tuple[str | ImageUrl, ...]:
  if isinstance(value, str):
    return (value,)
  if not isinstance(value, list):
    raise RequestError(f'{where}: got {fields.short_repr(value)}, wanted text or a list of parts')
  return tuple(_part(f'{where}[{n}]', part) for n, part in enumerate(value))


def _part(where: str, value: Any) -> str | ImageUrl:
  kind = value.get('type') if isinstance(value, dict) else None
  if kind == 'text' and isinstance(value.get('text'), str):
    return value['text']
  image = value.get('image_url') if kind == 'image_url' else None
  if not isinstance(image, dict) or not isinstance(image.get('url'), str):
    raise RequestError(
      f'{where}: got {fields.short_repr(value)}, wanted {{"type": "text", "text": ...}} or '
      '{"type": "image_url", "image_url": {"url": ...}}'
    )
  if not image['url'].startswith('data:image/') or ';base64,' not in image['url'][:64]:
    raise RequestError(
      f'{where}.image_url: got {fields.short_repr(image["url"][:40])}, wanted '
      'data:image/png;base64,...: this server fetches nothing'
    )
  return ImageUrl(image['url'], f'{where}.image_url')


def _calls(where: str, value: Any) -> list[tuple[str, dict]]:
  """Returns (name, arguments) of the calls of an earlier turn."""
  try:
    functions = [call['function'] for call in value]
    found = [(one['name'], orjson.loads(one['arguments'])) for one in functions]
  except (KeyError, TypeError, orjson.JSONDecodeError) as error:
    raise RequestError(
      f'{where}.tool_calls: got {fields.short_repr(value)}, wanted '
      '[{"function": {"name": ..., "arguments": "<JSON>"}}]'
    ) from error
  if not all(isinstance(name, str) and isinstance(given, dict) for name, given in found):
    raise RequestError(f'{where}.tool_calls: wanted a name and an object as arguments')
  return found


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
  """The prompt of a chat request."""

  ids: list[int]  # one placeholder per image
  images: tuple[np.ndarray, ...]  # uint8[H, W, 3], resized
  begun: str  # the beginning of the reply that the server pins; it belongs to the reply's text


def prompt(
  tok: ChatTokenizer, request: ChatRequest, *, think_prefix: str, context: int, max_patches: int
) -> ChatPrompt:
  """Returns the prompt that the template of training makes of the messages.

  Args:
    tok: the model's tokenizer.
    request: its last message of the assistant, if there is one, is continued.
    think_prefix: the beginning of every turn; '' for none.
    context: tokens; far longer texts are refused unread.
    max_patches: 16x16 patches of the largest image.

  Raises:
    RequestError: an image cannot be read, or the texts are too long.
  """
  size = sum(len(one) for _, pieces in request.messages for one in pieces if isinstance(one, str))
  if size > _TEXT_PER_TOKEN * context:
    raise RequestError(
      f'messages: got {size} characters, wanted a conversation of at most {context} tokens'
    )
  messages = [
    (role, [_decoded(one, max_patches) for one in pieces]) for role, pieces in request.messages
  ]
  segments = spans.conversation(tok, messages, think_prefix or template.THINK_PREFIX)
  parts = [segment.ids for segment in segments]
  if request.continues:
    parts[-1] = parts[-1][:-1]  # without the end of the turn
  else:
    parts.append(template.header(tok, think_prefix))
  return ChatPrompt(
    np.concatenate(parts).tolist(),
    tuple(image for segment in segments for image in segment.images),
    '' if request.continues else think_prefix,
  )


def _decoded(piece: str | ImageUrl, max_patches: int) -> template.Piece:
  if isinstance(piece, str):
    return piece
  return protocol.decode_and_resize(piece.where, piece.url, max_patches)

"""Converts SFT rows to conversations.

This is the only place where the published SFT schema (`paravt_sft_*.parquet`) is read and checked.
The column `messages` is JSON text or a list of {role, content}. `content` is a string, a list of
parts {type: text | video_url | image_url | video | image, ...}, or JSON text of parts. Other keys
of a message: see `turns.py`. Media values are sentinels or `file://` URIs under the media root.
`table.py` reads rows one by one, when they are needed.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from paravt_jax.chat import template
from paravt_jax.data import fields, turns
from paravt_jax.data.fields import Broken, RowOptions

COLUMN = 'messages'
_KINDS = ('text', 'video_url', 'image_url', 'video', 'image')
_TIMES = ('nframes', 'video_start', 'video_end')


@dataclasses.dataclass(frozen=True)
class VideoRef:
  """A video of a conversation."""

  path: str  # absolute path
  num_frames: int | None  # None: the pipeline chooses
  start: float | None  # seconds; None: from the beginning
  end: float | None  # seconds; None: to the end


@dataclasses.dataclass(frozen=True)
class ImageRef:
  """An image of a conversation."""

  path: str  # absolute path


@dataclasses.dataclass(frozen=True)
class Message:
  """One message. A tool result is a user message that includes the response tags."""

  role: str  # system | user | assistant
  # in order; text only, unless the role is user
  parts: tuple[str | VideoRef | ImageRef, ...]
  is_target: bool = True  # False for an assistant turn that the row masks out of the loss


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One SFT row."""

  id: str  # 'file.parquet:row'
  messages: tuple[Message, ...]  # assistant turns are raw turn text


def sft_conversations(
  files: Sequence[str | os.PathLike],
  media_root: str | os.PathLike,
  options: RowOptions,
  counts: collections.Counter,
) -> list[Conversation]:
  """Returns the conversations of SFT parquet files, in the order of files and rows.

  Arguments and errors are those of `rows.rl_tasks`.
  """
  parse = lambda row, name: conversation(row[COLUMN], name, media_root, options)
  return fields.read(files, (COLUMN,), parse, options, counts)


def conversation(
  value: Any, name: str, root: str | os.PathLike, options: RowOptions
) -> Conversation:
  """Returns the conversation of one row.

  Args:
    value: the row's value in the column `messages`.
    name: the id of the conversation.

  Raises:
    Broken: the row does not follow the schema.
    DataError: a media path is invalid.
  """
  messages, roles, waiting = [], [], []
  for i, message in enumerate(fields.list_of_dicts(fields.decoded(_text(value), COLUMN), COLUMN)):
    where, role = f'messages[{i}]', message.get('role')
    if role not in ('system', 'user', 'assistant') and not (
      role == 'tool' and roles[-1:] in (['assistant'], ['tool'])
    ):
      raise Broken(
        f'{where}.role: got {role!r}, wanted system, user or assistant, or after a turn that '
        'calls tool'
      )
    if role == 'system' and i:
      raise Broken(f'{where}.role: got a system message in the middle, wanted it first')
    turns.check_keys(message, where)
    is_target = turns.is_target(message, where)
    # content: text and media
    parts = _parts(message, f'{where}.content', root, options)
    if role not in ('user', 'tool'):
      texts = [part for part in parts if isinstance(part, str)]
      if len(texts) < len(parts):
        raise Broken(f'{where}.content: got media in a {role} message, wanted text only')
      text = ''.join(texts)
      if role == 'assistant':
        text = turns.assistant_text(message, text, where)
        waiting = turns.call_ids(message)
      parts = [text]
    if role == 'tool':
      turns.refuse_other_order(message, waiting, where)
      parts = _response(parts, f'{where}.content')
    messages.append(
      Message('user' if role == 'tool' else role, tuple(parts), is_target or role != 'assistant')
    )
    roles.append(role)
  # check the conversation as a whole
  if not messages or roles[-1] != 'assistant' or 'user' not in roles:
    raise Broken(f'messages: got roles {roles}, wanted a user and, last, an assistant')
  if not any(message.is_target for message in messages if message.role == 'assistant'):
    raise Broken('messages: every assistant turn is masked, wanted one to train on', 'loss')
  return Conversation(name, tuple(messages))


def _parts(
  message: dict, where: str, root: str | os.PathLike, options: RowOptions
) -> list[str | VideoRef | ImageRef]:
  """Returns the parts of a message's content; [''] for an assistant without content."""
  content = message.get('content')
  if message['role'] == 'assistant' and (
    content is None or (content == [] and message.get('tool_calls'))
  ):
    return ['']
  if isinstance(content, str):
    listed = _content_parts(content)
    if listed is None:
      return [_lines(content)]
    content = listed
  return [
    _part(part, f'{where}[{j}]', root, options)
    for j, part in enumerate(fields.list_of_dicts(content, where))
  ]


def _content_parts(content: str) -> list[dict] | None:
  """Returns the parts of a text that is JSON of objects with a `type` each; None for other text."""
  if not content.lstrip().startswith(('[', '{')):
    return None
  try:
    found = json.loads(content)
  except (ValueError, RecursionError):
    return None
  if isinstance(found, dict) and found.get('type') in _KINDS:
    found = [found]
  if not isinstance(found, list) or not found:
    return None
  whole = all(isinstance(part, dict) and isinstance(part.get('type'), str) for part in found)
  return found if whole else None


def _response(
  parts: Sequence[str | VideoRef | ImageRef], where: str
) -> list[str | VideoRef | ImageRef]:
  """Returns the parts of a tool result with response tags, as in a rollout.

  A result that already has the tags stays unchanged. Raises Broken for other tags in the text.
  """
  opened, closed = template.RESPONSE_OPEN, template.RESPONSE_CLOSE
  text = ''.join(part for part in parts if isinstance(part, str))
  if (
    text.startswith(opened)
    and text.endswith(closed)
    and text.count(opened) == text.count(closed) == 1
  ):
    return list(parts)
  if opened in text or closed in text:
    raise Broken(
      f'{where}: got {opened} or {closed} within a result, wanted a plain text: it would '
      'become a tag',
      'tool_calls',
    )
  if len(parts) == 1 and isinstance(parts[0], str):
    return [f'{opened}\n{parts[0]}\n{closed}']
  return [f'{opened}\n', *parts, f'\n{closed}']


def _text(value: Any) -> Any:
  """Decodes JSON text in a column of bytes. Returns any other value unchanged. Raises Broken."""
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    raise Broken(
      f'{COLUMN}: got bytes that are no UTF-8 ({error.reason} at {error.start}), wanted JSON text'
    ) from error


def _lines(text: str) -> str:
  """Returns the text with LF line ends.

  A target with CRLF would differ from the text that a rollout records and parses.
  """
  return text.replace('\r\n', '\n')


def _part(
  part: dict, where: str, root: str | os.PathLike, options: RowOptions
) -> str | VideoRef | ImageRef:
  """Returns one part of a content list. Ignores keys with null values, which parquet adds."""
  kind = part.get('type')
  if kind == 'text' and isinstance(part.get('text'), str):
    turns.refuse_unknown(part, {'type', 'text'}, where)
    return _lines(part['text'])
  value = part.get(kind) if kind in _KINDS else None
  if kind in ('video', 'image') and isinstance(value, str):
    # Qwen's form: the settings of a video are keys of the part itself
    settings, known, path = part, {'type', kind}, value
  elif kind in ('video_url', 'image_url') and isinstance(value, (dict, str)):
    turns.refuse_unknown(part, {'type', kind}, where)
    settings = {'url': value} if isinstance(value, str) else value
    where, known, path = f'{where}.{kind}', {'url'}, settings.get('url')
  else:
    raise Broken(
      f'{where}: got {fields.short(part)}, wanted text, video_url or image_url with its '
      'value under that key'
    )
  key = f'{where}.{"url" if "url" in known else kind}'
  if kind in ('image', 'image_url'):
    turns.refuse_unknown(
      {name: item for name, item in settings.items() if (name, item) != ('detail', 'auto')},
      known,
      where,
    )
    return ImageRef(fields.media(path, key, root, options))
  turns.refuse_unknown(settings, known | set(_TIMES), where)
  return _video(settings, fields.media(path, key, root, options), where)


def _video(settings: dict, path: str, where: str) -> VideoRef:
  """Returns a video with its number of frames and its time window. Raises Broken."""
  count, start, end = (
    None if settings.get(key) is None else fields.seconds(settings[key], f'{where}.{key}')
    for key in _TIMES
  )
  if count is not None and (count < 1 or count != int(count)):
    raise Broken(f'{where}.nframes: got {settings["nframes"]!r}, wanted a positive integer')
  if start is not None and end is not None and start >= end:
    raise Broken(f'{where}: got video_start {start} and video_end {end}, wanted start < end')
  return VideoRef(path, None if count is None else int(count), start, end)

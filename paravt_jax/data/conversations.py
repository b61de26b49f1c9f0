"""SFT rows to conversations: the only place where the published SFT schema (`paravt_sft_*.parquet`) is read and checked.

messages: JSON text or list of {role, content}, content a string or parts {type: text | video_url | image_url, ...}. Media
values are sentinels or `file://` URIs under the media root. `table.py` reads rows one by one, as they are needed.
"""

import collections
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from paravt_jax.data import fields
from paravt_jax.data.fields import Broken, RowOptions

COLUMN = 'messages'


@dataclasses.dataclass(frozen=True)
class VideoRef:
  """A video of a conversation, by absolute path. start, end in seconds; None leaves the choice to the pipeline."""
  path: str
  num_frames: int | None
  start: float | None
  end: float | None


@dataclasses.dataclass(frozen=True)
class ImageRef:
  """An image of a conversation, by absolute path."""
  path: str


@dataclasses.dataclass(frozen=True)
class Message:
  """One message. role: system | user | assistant; parts in order of appearance, only text where the role is not user."""
  role: str
  parts: tuple[str | VideoRef | ImageRef, ...]


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One SFT row. `id` is 'file.parquet:row'. Assistant turns are raw turn text."""
  id: str
  messages: tuple[Message, ...]


def sft_conversations(files: Sequence[str | os.PathLike], media_root: str | os.PathLike, options: RowOptions,
                      counts: collections.Counter) -> list[Conversation]:
  """The conversations of SFT parquet files, in the order of files and rows. Arguments and errors as for `rows.rl_tasks`."""
  parse = lambda row, name: conversation(row[COLUMN], name, media_root, options)
  return fields.read(files, (COLUMN,), parse, options, counts)


def conversation(value: Any, name: str, root: str | os.PathLike, options: RowOptions) -> Conversation:
  """One row. value: of its column `messages`; name: the conversation's id. Raises Broken, or DataError for a media path."""
  messages = []
  for i, message in enumerate(fields.list_of_dicts(fields.decoded(_text(value), COLUMN), COLUMN)):
    where, role, content = f'messages[{i}]', message.get('role'), message.get('content')
    if role not in ('system', 'user', 'assistant'):
      raise Broken(f'{where}.role: got {role!r}, wanted system, user or assistant')
    if role == 'system' and i:
      raise Broken(f'{where}.role: got a system message in the middle, wanted it first')
    where = f'{where}.content'
    parts = [_lines(content)] if isinstance(content, str) else [
        _part(part, f'{where}[{j}]', root, options) for j, part in enumerate(fields.list_of_dicts(content, where))]
    if role != 'user':
      if not all(isinstance(part, str) for part in parts):
        raise Broken(f'{where}: got media in a {role} message, wanted text only')
      parts = [''.join(parts)]
    messages.append(Message(role, tuple(parts)))
  if not messages or messages[-1].role != 'assistant' or not any(message.role == 'user' for message in messages):
    raise Broken(f'messages: got roles {[message.role for message in messages]}, wanted a user and, last, an assistant')
  return Conversation(name, tuple(messages))


def _text(value: Any) -> Any:
  """JSON that a column of bytes holds, as text; anything else as it is."""
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    raise Broken(f'{COLUMN}: got bytes that are no UTF-8 ({error.reason} at {error.start}), wanted JSON text') from error


def _lines(text: str) -> str:
  """Line ends as they are everywhere else: a target with CRLF would not be what a rollout pins and parses."""
  return text.replace('\r\n', '\n')


def _part(part: dict, where: str, root: str | os.PathLike, options: RowOptions) -> str | VideoRef | ImageRef:
  """One part of a content list; keys that parquet filled with nulls count as absent."""
  kind = part.get('type')
  if kind == 'text' and isinstance(part.get('text'), str):
    return _lines(part['text'])
  if kind not in ('video_url', 'image_url') or not isinstance(part.get(kind), dict):
    raise Broken(f'{where}: got {fields.short(part)}, wanted text, video_url or image_url with its value under that key')
  value = part[kind]
  path = fields.media(value.get('url'), f'{where}.{kind}.url', root, options)
  if kind == 'image_url':
    return ImageRef(path)
  count, start, end = (None if value.get(key) is None else fields.seconds(value[key], f'{where}.{kind}.{key}')
                       for key in ('nframes', 'video_start', 'video_end'))
  if count is not None and (count < 1 or count != int(count)):
    raise Broken(f'{where}.{kind}.nframes: got {value["nframes"]!r}, wanted a positive integer')
  if start is not None and end is not None and start >= end:
    raise Broken(f'{where}.{kind}: got video_start {start} and video_end {end}, wanted start < end')
  return VideoRef(path, None if count is None else int(count), start, end)

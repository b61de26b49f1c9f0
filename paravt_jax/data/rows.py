"""Parquet rows to tasks and conversations: the only place where the published schemas are read and checked.

RL (`paravt_rl_*.parquet`): prompt [{role, content with <video>}], videos [{video}], extra_info JSON {answer, question_type:
mcq | tvg | oe, and optionally id, options, facts}. SFT (`paravt_sft_*.parquet`): messages, JSON text or list of {role,
content}, content a string or parts {type: text | video_url | image_url, ...}. Media values are sentinels or `file://` URIs
under the media root.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from paravt_jax.data.materialize import resolve
from paravt_jax.errors import DataError
from paravt_jax.types import Task

VIDEO = '<video>'
SKIPPED = 'data/skipped'     # the metric under which skipped rows are counted
LETTERS = 'ABCDEFGHIJ'
_OPTION = re.compile(r'^\s*\(?([A-J])[.):]\s*(\S.*?)\s*$', re.MULTILINE)
_NUMBER = r'(\d+(?:\.\d+)?)'
_SPAN = re.compile(rf'\s*\[?\s*{_NUMBER}\s*(?:,|-|–|to)\s*{_NUMBER}\s*\]?\s*')
_OUT = 'fix the row or set data.skip_bad_rows=True (counted in data/skipped)'
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class RowOptions:
  """skip_bad_rows: broken rows are left out and counted instead of raised. require_media: a missing file makes a row broken."""
  skip_bad_rows: bool
  require_media: bool


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


class _Broken(Exception):
  """A row's fault, before it is known which row: 'field: got ..., wanted ...'."""


def rl_tasks(files: Sequence[str | os.PathLike], media_root: str | os.PathLike, options: RowOptions,
             counts: collections.Counter) -> list[Task]:
  """The tasks of RL parquet files, in the order of files and rows.

  Ids come from extra_info.id, else 'file:row'. A system message of the row (it may carry its own tool block) is kept in
  facts['system'].

  Args:
    files: parquet files.
    media_root: folder that holds the media.
    options: what to do with broken rows.
    counts: counts[SKIPPED] grows by the rows that were left out.

  Raises:
    DataError: a file is missing or no parquet file of this schema; a broken row, unless it is to be skipped; no row left.
  """
  seen: dict[str, str] = {}

  def parse(row: dict, name: str) -> Task:
    task = _task(row, name, media_root, options)
    if task.id in seen:
      raise _Broken(f'extra_info.id: got {task.id!r} again (first in {seen[task.id]}), wanted one id per row')
    seen[task.id] = name
    return task

  return _read(files, ('prompt', 'videos', 'extra_info'), parse, options, counts)


def sft_conversations(files: Sequence[str | os.PathLike], media_root: str | os.PathLike, options: RowOptions,
                      counts: collections.Counter) -> list[Conversation]:
  """The conversations of SFT parquet files, in the order of files and rows. Arguments and errors as for `rl_tasks`."""
  return _read(files, ('messages',), lambda row, name: _conversation(row, name, media_root, options), options, counts)


def _read(files: Sequence, columns: tuple[str, ...], parse: Callable[[dict, str], _T], options: RowOptions,
          counts: collections.Counter) -> list[_T]:
  good: list[_T] = []
  for file in files:
    for number, row in _rows(pathlib.Path(file), columns):
      try:
        good.append(parse(row, f'{pathlib.Path(file).name}:{number}'))
      except (_Broken, DataError) as error:
        if not options.skip_bad_rows:
          raise DataError(f'row {number} of {file}: {error}; {_OUT}') from error
        counts[SKIPPED] += 1
  if not good:
    raise DataError(f'{[str(file) for file in files]}: got no usable row ({counts[SKIPPED]} skipped), wanted at least one; '
                    'check the data files')
  return good


def _rows(file: pathlib.Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
  """(row number from 0, row) of a parquet file that must have these columns."""
  if not file.is_file():
    raise DataError(f'{file}: no such file, wanted a parquet file with columns {list(columns)}; check the data paths')
  try:
    with pyarrow.parquet.ParquetFile(file) as parquet:
      names = parquet.schema_arrow.names
      absent = [column for column in columns if column not in names]
      if absent:
        raise DataError(f'{file}: got columns {names}, wanted {list(columns)} (missing: {absent}); check the data paths')
      number = 0
      for batch in parquet.iter_batches(batch_size=256):
        for row in batch.to_pylist():
          yield number, row
          number += 1
  except (pyarrow.ArrowException, OSError) as error:
    raise DataError(f'{file}: not a readable parquet file ({error}); write or fetch it again') from error


def _task(row: dict, name: str, root: str | os.PathLike, options: RowOptions) -> Task:
  prompt = _list_of_dicts(_decoded(row['prompt'], 'prompt'), 'prompt')
  texts = {'system': [], 'user': []}
  for message in prompt:
    role, content = message.get('role'), message.get('content')
    if role not in texts or not isinstance(content, str):
      raise _Broken(f'prompt: got role {role!r} with content of type {type(content).__name__}, wanted system or user with text')
    texts[role].append(content)
  if len(texts['user']) != 1 or texts['user'][0].count(VIDEO) != 1:
    raise _Broken(f'prompt: got {len(texts["user"])} user messages with {"".join(texts["user"]).count(VIDEO)} {VIDEO}, '
                  'wanted one message with one')
  videos = _list_of_dicts(_decoded(row['videos'], 'videos'), 'videos')
  if len(videos) != 1:
    raise _Broken(f'videos: got {len(videos)}, wanted one')
  info = _decoded(row['extra_info'], 'extra_info')
  if not isinstance(info, dict):
    raise _Broken(f'extra_info: got {_short(info)}, wanted a JSON object with answer and question_type')
  question, choices = _question(texts['user'][0].replace(VIDEO, '').strip(), info)
  facts = _decoded(info.get('facts') or {}, 'extra_info.facts')
  if not isinstance(facts, dict) or not isinstance(facts.get('system', ''), str):
    raise _Broken(f'extra_info.facts: got {_short(facts)}, wanted an object (its `system`, if any, a text)')
  if texts['system']:
    facts = {**facts, 'system': '\n'.join(texts['system'])}
  own = info.get('id')
  return Task(id=name if own in (None, '') else str(own), video=_media(videos[0].get('video'), 'videos', root, options), question=question,
              question_type=info['question_type'], answer=_gold(info, len(choices)), options=choices,
              source=str(row.get('data_source') or info.get('source') or ''), facts=facts)


def _question(text: str, info: dict) -> tuple[str, tuple[str, ...]]:
  """What the user is asked, and the options' texts without letters (empty unless mcq)."""
  kind = info.get('question_type')
  if kind not in ('mcq', 'tvg', 'oe'):
    raise _Broken(f'extra_info.question_type: got {kind!r}, wanted mcq, tvg or oe')
  if not text:
    raise _Broken(f'prompt: got nothing beside {VIDEO}, wanted a question')
  if kind != 'mcq':
    return text, ()
  written = _options(_OPTION.findall(text))
  given = info.get('options')
  if given is None:
    if len(written) < 2:
      raise _Broken(f'prompt: got {len(written)} options, wanted two or more in order, A. to J., each on a line of its own')
    return text, written
  if not isinstance(given, list) or not all(isinstance(option, str) for option in given):
    raise _Broken(f'extra_info.options: got {_short(given)}, wanted a list of texts')
  choices = _options(_OPTION.findall('\n'.join(given)))
  choices = choices if len(choices) == len(given) else tuple(option.strip() for option in given)
  if len(written) != len(choices):
    text = '\n'.join([text, *(f'{letter}. {choice}' for letter, choice in zip(LETTERS, choices))])
  return text, choices


def _options(lines: list[tuple[str, str]]) -> tuple[str, ...]:
  """The texts of the last run of lettered lines that starts with A and goes on in order."""
  start = max((i for i, (letter, _) in enumerate(lines) if letter == 'A'), default=len(lines))
  run = [text for (letter, text), wanted in zip(lines[start:], LETTERS) if letter == wanted]
  return tuple(run) if len(run) == len(lines) - start else ()


def _gold(info: dict, num_options: int) -> str:
  """The checked answer: a letter, 'start,end' in seconds, or a text."""
  answer, kind = info.get('answer'), info['question_type']
  if kind == 'mcq':
    letter = re.fullmatch(r'\(?([A-J])\)?(?:[.):].*)?', answer.strip(), re.DOTALL) if isinstance(answer, str) else None
    if not 2 <= num_options <= len(LETTERS) or not letter or letter[1] not in LETTERS[:num_options]:
      raise _Broken(f'extra_info.answer: {_short(answer)} is not one of {num_options} options')
    return letter[1]
  if kind == 'tvg':
    return _span(answer)
  if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
    raise _Broken(f'extra_info.answer: got {_short(answer)}, wanted a text')
  return str(answer).strip()


def _span(answer: Any) -> str:
  """'start,end' of [start, end] or of a text such as '3.5, 7', '[3.5, 7]' or '3.5 - 7'."""
  match = _SPAN.fullmatch(answer) if isinstance(answer, str) else None
  pair = [match[1], match[2]] if match else answer
  numbers = [_seconds(number, 'extra_info.answer') for number in pair] if isinstance(pair, list) else []
  if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
    raise _Broken(f'extra_info.answer: got {_short(answer)}, wanted [start, end] in seconds with 0 <= start < end')
  return f'{numbers[0]:.10g},{numbers[1]:.10g}'


def _conversation(row: dict, name: str, root: str | os.PathLike, options: RowOptions) -> Conversation:
  messages = []
  for i, message in enumerate(_list_of_dicts(_decoded(row['messages'], 'messages'), 'messages')):
    where, role, content = f'messages[{i}]', message.get('role'), message.get('content')
    if role not in ('system', 'user', 'assistant'):
      raise _Broken(f'{where}.role: got {role!r}, wanted system, user or assistant')
    if role == 'system' and i:
      raise _Broken(f'{where}.role: got a system message in the middle, wanted it first')
    where = f'{where}.content'
    parts = [content] if isinstance(content, str) else [
        _part(part, f'{where}[{j}]', root, options) for j, part in enumerate(_list_of_dicts(content, where))]
    if role != 'user':
      if not all(isinstance(part, str) for part in parts):
        raise _Broken(f'{where}: got media in a {role} message, wanted text only')
      parts = [''.join(parts)]
    messages.append(Message(role, tuple(parts)))
  if not messages or messages[-1].role != 'assistant' or not any(message.role == 'user' for message in messages):
    raise _Broken(f'messages: got roles {[message.role for message in messages]}, wanted a user and, last, an assistant')
  return Conversation(name, tuple(messages))


def _part(part: dict, where: str, root: str | os.PathLike, options: RowOptions) -> str | VideoRef | ImageRef:
  """One part of a content list; keys that parquet filled with nulls count as absent."""
  kind = part.get('type')
  if kind == 'text' and isinstance(part.get('text'), str):
    return part['text']
  if kind not in ('video_url', 'image_url') or not isinstance(part.get(kind), dict):
    raise _Broken(f'{where}: got {_short(part)}, wanted text, video_url or image_url with its value under that key')
  value = part[kind]
  path = _media(value.get('url'), f'{where}.{kind}.url', root, options)
  if kind == 'image_url':
    return ImageRef(path)
  count, start, end = (None if value.get(key) is None else _seconds(value[key], f'{where}.{kind}.{key}')
                       for key in ('nframes', 'video_start', 'video_end'))
  if count is not None and (count < 1 or count != int(count)):
    raise _Broken(f'{where}.{kind}.nframes: got {value["nframes"]!r}, wanted a positive integer')
  if start is not None and end is not None and start >= end:
    raise _Broken(f'{where}.{kind}: got video_start {start} and video_end {end}, wanted start < end')
  return VideoRef(path, None if count is None else int(count), start, end)


def _media(value: Any, where: str, root: str | os.PathLike, options: RowOptions) -> str:
  if not isinstance(value, str):
    raise _Broken(f'{where}: got {_short(value)}, wanted a media path')
  path = resolve(value, root)
  if options.require_media and not os.path.isfile(path):
    raise _Broken(f'{where}: no file at {path}, wanted the media of {value!r}; unpack the archives into data.media_root')
  return path


def _decoded(value: Any, where: str) -> Any:
  """JSON text as its value; anything else as it is."""
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except ValueError as error:
    raise _Broken(f'{where}: got {_short(value)}, wanted JSON ({error})') from error


def _list_of_dicts(value: Any, where: str) -> list[dict]:
  if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
    raise _Broken(f'{where}: got {_short(value)}, wanted a non-empty list of objects')
  return value


def _seconds(value: Any, where: str) -> float:
  try:
    number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise _Broken(f'{where}: got {_short(value)}, wanted a number')
  return number


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + '...'

"""RL rows to tasks: the only place where the published RL schema (`paravt_rl_*.parquet`) is read and checked.

prompt [{role, content with <video>}], videos [{video}], extra_info JSON {answer, question_type: mcq | tvg | oe, and optionally
id, options, facts}. Media values are sentinels or `file://` URIs under the media root.
"""

import collections
import os
import re
from collections.abc import Sequence
from typing import Any

from paravt_jax.data import fields
from paravt_jax.data.fields import Broken, RowOptions
from paravt_jax.types import Task

VIDEO = '<video>'
LETTERS = 'ABCDEFGHIJ'
_OPTION = re.compile(r'^\s*\(?([A-J])[.):]\s*(\S.*?)\s*$', re.MULTILINE)
_NUMBER = r'(\d+(?:\.\d+)?)'
_SPAN = re.compile(rf'\s*\[?\s*{_NUMBER}\s*(?:,|-|–|to)\s*{_NUMBER}\s*\]?\s*')


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
      raise Broken(f'extra_info.id: got {task.id!r} again (first in {seen[task.id]}), wanted one id per row')
    seen[task.id] = name
    return task

  return fields.read(files, ('prompt', 'videos', 'extra_info'), parse, options, counts)


def _task(row: dict, name: str, root: str | os.PathLike, options: RowOptions) -> Task:
  prompt = fields.list_of_dicts(fields.decoded(row['prompt'], 'prompt'), 'prompt')
  texts = {'system': [], 'user': []}
  for message in prompt:
    role, content = message.get('role'), message.get('content')
    if role not in texts or not isinstance(content, str):
      raise Broken(f'prompt: got role {role!r} with content of type {type(content).__name__}, wanted system or user with text')
    texts[role].append(content)
  if len(texts['user']) != 1 or texts['user'][0].count(VIDEO) != 1:
    raise Broken(f'prompt: got {len(texts["user"])} user messages with {"".join(texts["user"]).count(VIDEO)} {VIDEO}, '
                  'wanted one message with one')
  videos = fields.list_of_dicts(fields.decoded(row['videos'], 'videos'), 'videos')
  if len(videos) != 1:
    raise Broken(f'videos: got {len(videos)}, wanted one')
  info = fields.decoded(row['extra_info'], 'extra_info')
  if not isinstance(info, dict):
    raise Broken(f'extra_info: got {fields.short(info)}, wanted a JSON object with answer and question_type')
  question, choices = _question(texts['user'][0].replace(VIDEO, '').strip(), info)
  facts = fields.decoded(info.get('facts') or {}, 'extra_info.facts')
  if not isinstance(facts, dict) or not isinstance(facts.get('system', ''), str):
    raise Broken(f'extra_info.facts: got {fields.short(facts)}, wanted an object (its `system`, if any, a text)')
  if texts['system']:
    facts = {**facts, 'system': '\n'.join(texts['system'])}
  own = info.get('id')
  video = fields.media(videos[0].get('video'), 'videos', root, options)
  return Task(id=name if own in (None, '') else str(own), video=video, question=question, question_type=info['question_type'],
              answer=_gold(info, len(choices)), options=choices, source=str(row.get('data_source') or info.get('source') or ''), facts=facts)


def _question(text: str, info: dict) -> tuple[str, tuple[str, ...]]:
  """What the user is asked, and the options' texts without letters (empty unless mcq)."""
  kind = info.get('question_type')
  if kind not in ('mcq', 'tvg', 'oe'):
    raise Broken(f'extra_info.question_type: got {kind!r}, wanted mcq, tvg or oe')
  if not text:
    raise Broken(f'prompt: got nothing beside {VIDEO}, wanted a question')
  if kind != 'mcq':
    return text, ()
  written = _options(_OPTION.findall(text))
  given = info.get('options')
  if given is None:
    if len(written) < 2:
      raise Broken(f'prompt: got {len(written)} options, wanted two or more in order, A. to J., each on a line of its own')
    return text, written
  if not isinstance(given, list) or not all(isinstance(option, str) for option in given):
    raise Broken(f'extra_info.options: got {fields.short(given)}, wanted a list of texts')
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
      raise Broken(f'extra_info.answer: {fields.short(answer)} is not one of {num_options} options')
    return letter[1]
  if kind == 'tvg':
    return _span(answer)
  if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
    raise Broken(f'extra_info.answer: got {fields.short(answer)}, wanted a text')
  return str(answer).strip()


def _span(answer: Any) -> str:
  """'start,end' of [start, end] or of a text such as '3.5, 7', '[3.5, 7]' or '3.5 - 7'."""
  match = _SPAN.fullmatch(answer) if isinstance(answer, str) else None
  pair = [match[1], match[2]] if match else answer
  numbers = [fields.seconds(number, 'extra_info.answer') for number in pair] if isinstance(pair, list) else []
  if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
    raise Broken(f'extra_info.answer: got {fields.short(answer)}, wanted [start, end] in seconds with 0 <= start < end')
  return f'{numbers[0]:.10g},{numbers[1]:.10g}'

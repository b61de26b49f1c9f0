"""RL rows to tasks: the only place where the published RL schema (`paravt_rl_*.parquet`) is read
and checked.

prompt [{role, content with <video>}], videos [{video}], extra_info JSON {answer, question_type: mcq
| tvg | oe, and optionally id, options, facts, source}, data_source (optional). A row without
question_type (LongVT's) is of the type that its content tells. The user message has as many
`<video>` slots as there are videos, none included, anywhere in its text. Media values are sentinels
or `file://` URIs under the media root.
"""

import collections
import dataclasses
import heapq
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from paravt_jax import seeds
from paravt_jax.chat.prompts import label
from paravt_jax.data import fields
from paravt_jax.data.fields import Broken, RowOptions
from paravt_jax.errors import DataError
from paravt_jax.types import Task

VIDEO = '<video>'
TYPES = ('mcq', 'tvg', 'oe')
LETTERS = 'ABCDEFGHIJ'
_OPTION = re.compile(r'^\s*\(?([A-J])[.):]\s*(\S.*?)\s*$', re.MULTILINE)
_ELEVENTH = re.compile(r'^\s*\(?J[.):]\s*\S.*\n+\s*\(?K[.):]\s*\S', re.MULTILINE)
_NUMBER = r'(\d+(?:\.\d+)?)'
_SPAN = re.compile(rf'\s*\[?\s*{_NUMBER}\s*(?:,|-|–|to)\s*{_NUMBER}\s*\]?\s*')


@dataclasses.dataclass(frozen=True)
class RowFilter:
  """Selects rows."""

  question_types: tuple[str, ...]  # only these; () for all
  sources: tuple[str, ...]  # only these; () for all
  max_rows: int  # size of a random sub-sample; 0 for all
  max_bad_share: float  # largest share of broken rows, if broken rows are skipped


EVERY = RowFilter((), (), 0, 1.0)


def rl_tasks(
  files: Sequence[str | os.PathLike],
  media_root: str | os.PathLike,
  options: RowOptions,
  counts: collections.Counter,
  listed: list[str] | None = None,
  wanted: RowFilter = EVERY,
  seed: int = 0,
) -> list[Task]:
  """Returns the tasks of RL parquet files, in the order of files and rows.

  Ids come from extra_info.id, else 'file:row'. The row's system message (which may have its own
  tool block) is stored in facts['system'].

  Args:
    files: parquet files.
    media_root: the media folder.
    options: what to do with broken rows.
    counts: counts[reason] is increased by the skipped broken rows.
    listed: if given, gets a line for each skipped row.
    wanted: selects rows. Other rows are not checked further, so their media may be missing.
    seed: of the sub-sample.

  Raises:
    DataError: a file is missing, or is not a parquet file of this schema; a row is broken and
    broken
      rows are not skipped; too many rows are broken; no row is left; no row has a selected source.
  """
  seen: dict[str, str] = {}
  filters, inferred_types = _Filters(wanted), collections.Counter()
  names = [str(file) for file in files]

  def parse(row: dict, name: str) -> Task | None:
    info, inferred = _info(row)
    if not filters.pass_(info['question_type'], _source(row, info)):
      return None
    task = _task(row, info, name, media_root, options)
    if task.id in seen:
      raise Broken(
        f'extra_info.id: got {task.id!r} again (first in {seen[task.id]}), wanted one id per row',
        'duplicate_id',
      )
    seen[task.id] = name
    inferred_types.update([info['question_type']] if inferred else [])
    return task

  found = fields.read(
    files,
    ('prompt', 'videos', 'extra_info'),
    parse,
    options,
    counts,
    listed,
    optional=('data_source', 'images'),
    max_bad_share=wanted.max_bad_share,
  )
  filters.check(names)
  _warn_of_inferred(names, inferred_types)
  return subsample(found, wanted.max_rows, seed)


def _warn_of_inferred(names: list[str], types: collections.Counter) -> None:
  """Logs the number of rows whose question_type was inferred from their content."""
  if types:
    logging.getLogger(__name__).warning(
      '%s: %d rows have no question_type; by what they hold they are %s',
      names,
      types.total(),
      fields.format_counts(types),
    )


def subsample(tasks: list[Task], count: int, seed: int) -> list[Task]:
  """Returns a random sub-sample of `count` tasks (0: all), in their order.

  It depends only on the seed and the task ids. A larger count adds tasks and removes none.
  """
  if not count or count >= len(tasks):
    return tasks
  drawn = heapq.nsmallest(
    count, range(len(tasks)), key=lambda i: seeds.at(seed, 'subsample', tasks[i].id)
  )
  return [tasks[i] for i in sorted(drawn)]


class _Filters:
  """Selects rows and counts the removed ones."""

  def __init__(self, wanted: RowFilter):
    self._wanted = wanted
    self._sources: collections.Counter[str] = collections.Counter()
    self._removed: collections.Counter[str] = collections.Counter()
    self._kept = 0

  def pass_(self, question_type: str, source: str) -> bool:
    self._sources[source] += 1
    for knob, value in (('sources', source), ('question_types', question_type)):
      allowed = getattr(self._wanted, knob)
      if allowed and value not in allowed:
        self._removed[knob] += 1
        return False
    self._kept += 1
    return True

  def check(self, files: list[str]) -> None:
    """Raises DataError when no row has a selected source, or no row was selected."""
    absent = [source for source in self._wanted.sources if source not in self._sources]
    if absent:
      there = ', '.join(f'{source!r} {count}' for source, count in self._sources.most_common(20))
      raise DataError(
        f'data.sources: got {absent[0]!r}, wanted sources that {files} have (rows: {there}); '
        'correct the name'
      )
    if not self._kept:
      removed = ' and '.join(
        f'data.{knob}={getattr(self._wanted, knob)} {count}'
        for knob, count in self._removed.items()
      )
      raise DataError(
        f'{files}: got no row that is asked for: of {self._sources.total()}, {removed} were '
        'removed; widen the filters'
      )


def _info(row: dict) -> tuple[dict, bool]:
  """Returns (extra_info with a valid question_type, whether the type was inferred)."""
  info = fields.decoded(row['extra_info'], 'extra_info')
  if not isinstance(info, dict):
    raise Broken(
      f'extra_info: got {fields.short(info)}, wanted a JSON object with answer and question_type'
    )
  inferred = info.get('question_type') in (None, '')
  if inferred:
    info = {**info, 'question_type': _type(row, info)}
  if info['question_type'] not in TYPES:
    raise Broken(
      f'extra_info.question_type: got {info["question_type"]!r}, wanted mcq, tvg or oe',
      'question_type',
    )
  return info, inferred


def _type(row: dict, info: dict) -> str:
  """Infers a missing question type: mcq with options, tvg with a time span as answer, else oe.

  Raises:
    Broken: the row has both options and a time span.
  """
  prompt = fields.decoded(row['prompt'], 'prompt')
  asked = (
    [message.get('content') for message in prompt if isinstance(message, dict)]
    if isinstance(prompt, list)
    else []
  )
  text = '\n'.join(content for content in asked if isinstance(content, str)).replace('\r\n', '\n')
  options = bool(info.get('options')) or len(_options(_OPTION.findall(text))) >= 2
  answer = info.get('answer')
  pair = isinstance(answer, (list, tuple)) and len(answer) == 2
  span = pair or (isinstance(answer, str) and bool(_SPAN.fullmatch(answer)))
  if options and span:
    raise Broken(
      f'extra_info: got no question_type, options and the span {fields.short(answer)}, wanted '
      'question_type: mcq or tvg cannot be told',
      'question_type',
    )
  return 'mcq' if options else 'tvg' if span else 'oe'


def _source(row: dict, info: dict) -> str:
  return str(row.get('data_source') or info.get('source') or '')


def _task(row: dict, info: dict, name: str, root: str | os.PathLike, options: RowOptions) -> Task:
  prompt = fields.list_of_dicts(fields.decoded(row['prompt'], 'prompt'), 'prompt')
  texts = {'system': [], 'user': []}
  for message in prompt:
    role, content = message.get('role'), message.get('content')
    if role not in ('system', 'user') or not isinstance(content, str):
      raise Broken(
        f'prompt: got role {role!r} with content of type {type(content).__name__}, wanted '
        'system or user with text'
      )
    texts[role].append(content)
  if fields.decoded(row.get('images') or None, 'images'):
    raise Broken(
      f'images: got {fields.short(row["images"])}, wanted none: the agent looks at videos; '
      'leave such rows out',
      'images',
    )
  videos = fields.decoded(row['videos'], 'videos') or []
  videos = fields.list_of_dicts(videos, 'videos') if videos else []
  if len(texts['user']) != 1 or texts['user'][0].count(VIDEO) != len(videos):
    raise Broken(
      f'prompt: got {len(texts["user"])} user messages with '
      f'{"".join(texts["user"]).count(VIDEO)} {VIDEO}, '
      f'wanted one message with {len(videos)}, one for each of `videos`',
      'slots',
    )
  text, slots = _slots(texts['user'][0].replace('\r\n', '\n'))
  question, choices = _question(text, slots, info)
  facts = fields.decoded(info.get('facts') or {}, 'extra_info.facts')
  if (
    not isinstance(facts, dict)
    or not isinstance(facts.get('system', ''), str)
    or not _is_finite(facts)
  ):
    raise Broken(
      f'extra_info.facts: got {fields.short(facts)}, wanted an object of finite numbers (its '
      '`system`, if any, a text)'
    )
  if texts['system']:
    facts = {**facts, 'system': '\n'.join(texts['system'])}
  own = info.get('id')
  paths = tuple(fields.media(video.get('video'), 'videos', root, options) for video in videos)
  return Task(
    id=name if own in (None, '') else str(own),
    videos=paths,
    question=question,
    question_type=info['question_type'],
    answer=_gold(info, choices),
    options=choices,
    source=_source(row, info),
    facts=facts,
    slots=slots,
  )


def _is_finite(facts: dict) -> bool:
  """Whether the episode log, which holds no NaN, can keep them."""
  try:
    json.dumps(facts, allow_nan=False)
  except ValueError:
    return False
  return True


def _slots(content: str) -> tuple[str, tuple[int, ...]]:
  """Removes the `<video>` tags from a user message.

  Returns:
    (stripped text, position of each tag in it). Positions are () when all tags are at the start.
  """
  first, *rest = content.split(VIDEO)
  text, slots = first, []
  for piece in rest:
    slots.append(len(text))
    text += piece
  cut, end = len(text) - len(text.lstrip()), len(text.rstrip())
  places = tuple(max(0, min(slot, end) - cut) for slot in slots)
  return text.strip(), places if any(places) else ()


def _question(text: str, slots: tuple[int, ...], info: dict) -> tuple[str, tuple[str, ...]]:
  """Returns the question text and the options without letters (empty unless mcq).

  With several videos, a video inside an option is replaced by its label.
  """
  kind = info['question_type']
  if not text:
    raise Broken(f'prompt: got nothing beside {VIDEO}, wanted a question', 'no_question')
  if kind != 'mcq':
    return text, ()
  labelled = text
  for number in range(len(slots), 0, -1) if len(slots) > 1 else ():
    labelled = labelled[: slots[number - 1]] + label(number) + labelled[slots[number - 1] :]
  written = _options(_OPTION.findall(labelled))
  if len(written) == len(LETTERS) and _ELEVENTH.search(labelled):
    raise Broken(
      f'prompt: got more than {len(LETTERS)} options, wanted A. to J. at most', 'options'
    )
  given = _given_options(info)
  if not given:
    if len(written) < 2:
      raise Broken(
        f'prompt: got {len(written)} options, wanted two or more in order, A. to J., each on '
        'a line of its own',
        'options',
      )
    return text, written
  if len(given) > len(LETTERS):
    raise Broken(
      f'extra_info.options: got {len(given)} options, wanted {len(LETTERS)} at most, A. to J.',
      'options',
    )
  choices = _options(_OPTION.findall('\n'.join(given)))
  choices = choices if len(choices) == len(given) else tuple(option.strip() for option in given)
  if len(written) != len(choices):
    text = '\n'.join([text, *(f'{letter}. {choice}' for letter, choice in zip(LETTERS, choices))])
  return text, choices


def _given_options(info: dict) -> list[str]:
  """extra_info.options as a list; it may be JSON text, or an object by letter. [] when there are
  none.
  """
  given = info.get('options')
  if isinstance(given, str) and given.strip():
    given = fields.decoded(given, 'extra_info.options')
  if isinstance(given, dict):
    # parquet fills with nulls
    held = {str(letter).strip(): text for letter, text in given.items() if text is not None}
    if sorted(held) != list(LETTERS[: len(held)]):
      raise Broken(
        f'extra_info.options: got the keys {sorted(held)}, wanted A, B, ... in order, J at most',
        'options',
      )
    given = [held[letter] for letter in sorted(held)]
  if given is None or given in ('', []):
    return []
  if not isinstance(given, list) or not all(
    isinstance(option, str) and option.strip() for option in given
  ):
    raise Broken(
      f'extra_info.options: got {fields.short(given)}, wanted a list of texts', 'options'
    )
  return given


def _options(lines: list[tuple[str, str]]) -> tuple[str, ...]:
  """The texts of the last run of lettered lines that starts with A and continues in order."""
  start = max((i for i, (letter, _) in enumerate(lines) if letter == 'A'), default=len(lines))
  run = [text for (letter, text), wanted in zip(lines[start:], LETTERS) if letter == wanted]
  return tuple(run) if len(run) == len(lines) - start else ()


def _gold(info: dict, options: tuple[str, ...]) -> str:
  """The checked answer: a letter, 'start,end' in seconds, or a text."""
  answer, kind = info.get('answer'), info['question_type']
  if kind == 'mcq':
    return _letter(answer, options)
  if kind == 'tvg':
    return _span(answer)
  if (
    isinstance(answer, bool)
    or not isinstance(answer, (str, int, float))
    or not str(answer).strip()
    or (isinstance(answer, float) and not math.isfinite(answer))
  ):
    raise Broken(f'extra_info.answer: got {fields.short(answer)}, wanted a text', 'answer')
  return str(answer).strip()


def _letter(answer: Any, options: tuple[str, ...]) -> str:
  """The letter of a gold answer: a letter, one with its option, or an option's text. Raises Broken
  unless it is one option only.
  """
  folded = [option.strip().casefold() for option in options]
  for first, second in itertools.combinations(range(len(options)), 2):
    if folded[first] == folded[second] and options[first].strip() != options[second].strip():
      raise Broken(
        f'options: {LETTERS[first]} and {LETTERS[second]} differ only in case '
        f'({fields.short(options[first])}), wanted options that differ',
        'options',
      )
  text = answer.strip() if isinstance(answer, str) else ''
  match = re.fullmatch(r'\(?([A-J])\)?(?:[.):](.*))?', text, re.DOTALL)
  letter, rest = None, ''
  if match and match[1] in LETTERS[: len(options)]:
    letter, rest = match[1], (match[2] or '').strip().casefold()
  if letter and rest in folded and folded[LETTERS.index(letter)] != rest:
    raise Broken(
      f'extra_info.answer: {fields.short(answer)} is the letter of one option and the text '
      'of another, wanted one',
      'answer',
    )
  if letter is None:
    places = [i for i, option in enumerate(folded) if text and option == text.casefold()]
    letter = LETTERS[places[0]] if places else None
  if letter is None or not 2 <= len(options) <= len(LETTERS):
    raise Broken(
      f'extra_info.answer: {fields.short(answer)} is not one of {len(options)} options', 'answer'
    )
  if folded.count(folded[LETTERS.index(letter)]) > 1:
    raise Broken(
      f'extra_info.answer: {fields.short(answer)} stands among the options twice, wanted it once',
      'answer',
    )
  return letter


def _span(answer: Any) -> str:
  """'start,end' of [start, end] or of a text such as '3.5, 7', '[3.5, 7]' or '3.5 - 7'."""
  match = _SPAN.fullmatch(answer) if isinstance(answer, str) else None
  pair = [match[1], match[2]] if match else answer
  numbers = (
    [fields.seconds(number, 'extra_info.answer') for number in pair]
    if isinstance(pair, list)
    else []
  )
  if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
    raise Broken(
      f'extra_info.answer: got {fields.short(answer)}, wanted [start, end] in seconds with 0 '
      '<= start < end',
      'answer',
    )
  return f'{numbers[0]:.10g},{numbers[1]:.10g}'

"""Reads the published columns of each benchmark's rows into a `Question`.

Some published rows have faults. This module keeps such a row, records the fault, and leaves the
question as published. If two options equal the gold text, either letter is right. If no option
equals it, no answer is right. A row that cannot become a question raises `Broken`.
"""

import ast
import dataclasses
import json
import math
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax.data import fields as checks
from paravt_jax.data.fields import Broken
from paravt_jax.eval.sample import BROKEN, NO_OPTIONS, NOWHERE, OPTIONS
from paravt_jax.rewards.answer import LETTERS

Row = Mapping[str, Any]
# Names of row faults, used for counting.
TWICE, AMBIGUOUS = 'gold twice', 'gold ambiguous'
NO_QUESTION, EMPTY = 'question empty', 'option empty'
OVER_TEN, ID_TWICE, NO_KIND = 'options over ten', 'id twice', 'type unknown'


@dataclasses.dataclass(frozen=True)
class Question:
  """One benchmark row in a common form."""

  id: str  # '' when the benchmark has no ids
  video: str  # the name in the row
  text: str
  kind: str  # mcq | tvg | oe
  options: tuple[str, ...]  # texts without letters; () unless kind is mcq
  gold: str  # the letter, 'start,end' in seconds, or the text
  # all right letters. () for other kinds, and when no option matches the gold answer; `gold` then
  # holds the row's own text
  golds: tuple[str, ...]
  faults: tuple[str, ...]  # faults of the row, by their names above
  # score breakdowns by field. '; ' joins several values, and the row counts under each value
  fields: Mapping[str, str]


# Parsers for the values of a row's columns.

_LETTERED = re.compile(r'[ \t]*\(?([A-J])(?:\)[.:]?|[.:])[ \t]*(\S.*)?', re.DOTALL)
_MARKS = (
  re.compile(r'^[ \t]*\(?([A-J])[.):][ \t]*', re.MULTILINE),
  re.compile(r'\(([A-J])\)[ \t]*'),
)
# "A man" does not match, because it is option text
_GOLD = re.compile(r'\(?([A-J])(?:\)?|(?:\)[.:]?|[.:])(?:\s.*)?)|\(?([a-j])\)?[.:]?', re.DOTALL)
_URL_PATH = re.compile(r'/(?:resolve|blob|raw)/[^/]+/(.+)')
_ANSWER = re.compile(r'\s*<answer>(.*?)</answer>\s*', re.DOTALL)
_NOT_APPLICABLE = 'n/a'


def _text(row: Row, name: str) -> str:
  """Returns the column as text that is not blank. A number becomes its text.

  Raises:
    Broken: the column is blank, or is neither text nor number.
  """
  value = _as_text(row.get(name))
  if not value:
    raise Broken(f'{name}: got {checks.short(row.get(name))}, wanted a text')
  return value


def _question_text(row: Row, name: str, faults: list[str]) -> str:
  """Returns the question text. A row without one gives '' and a fault."""
  text = _as_text(row.get(name))
  if not text:
    faults.append(NO_QUESTION)
  return text


def _as_text(value: Any) -> str:
  """Returns stripped text for a text or a finite number, and '' for anything else. 3.0 becomes
  3.
  """
  value = value.item() if hasattr(value, 'item') and getattr(value, 'size', 1) == 1 else value
  if (
    isinstance(value, bool)
    or not isinstance(value, str | int | float)
    or (isinstance(value, float) and not math.isfinite(value))
  ):
    return ''
  return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _parse_value(value: Any) -> Any:
  """Returns a list or object that was stored as an array, tuple, JSON text or Python text.

  Any other value is returned unchanged.
  """
  value = value.tolist() if hasattr(value, 'tolist') else value
  if isinstance(value, str) and value.strip()[:1] in ('[', '{'):
    for read in (json.loads, ast.literal_eval):
      try:
        return read(value.strip())
      except (ValueError, SyntaxError, RecursionError, MemoryError):
        continue
  return list(value) if isinstance(value, tuple) else value


def _texts(row: Row, *names: str) -> dict[str, str]:
  """Returns {column: text} for the columns that are not empty. '; ' joins the items of a list."""
  found = {}
  for name in names:
    value = _parse_value(row.get(name))
    value = (
      '; '.join(map(str, value)) if isinstance(value, list) else '' if value is None else str(value)
    )
    if value.strip():
      found[name] = value.strip()
  return found


def _options(values: Any, faults: list[str]) -> tuple[str, ...]:
  """Returns up to ten option texts, () for none.

  If all options start with the letters A, B, ... in order, these letters are removed. An empty
  option keeps its position.
  """
  values = _parse_value(values)
  if isinstance(values, Mapping):
    values = [values[name] for name in sorted(values, key=str)]
  texts = [_as_text(value) for value in values] if isinstance(values, list) else []
  if len(texts) > len(LETTERS):
    faults.append(OVER_TEN)
    texts = texts[: len(LETTERS)]
  matches = [_LETTERED.fullmatch(text) for text in texts]
  lettered = [match for match in matches if match]
  if texts and [match[1] for match in lettered] == list(LETTERS[: len(texts)]):
    texts = [(match[2] or '').strip() for match in lettered]
  if len([text for text in texts if text]) < 2:
    faults.append(NO_OPTIONS)
    return tuple(texts) if any(texts) else ()
  if not all(texts):
    faults.append(EMPTY)
  return tuple(texts)


def _inline(text: str) -> tuple[str, tuple[str, ...]]:
  """Splits a text that ends with its options, and returns (question, options).

  Each option follows `A.`, `(A)` or `A)`. The result is (text, ()) unless the letters are in order
  from A, at least two options have text, and a question comes first.
  """
  for pattern in _MARKS:
    marks = list(pattern.finditer(text))
    start = max((i for i, mark in enumerate(marks) if mark[1] == 'A'), default=len(marks))
    marks = marks[start:]
    texts = [
      text[mark.end() : after].strip()
      for mark, after in zip(marks, [mark.start() for mark in marks[1:]] + [len(text)])
    ]
    in_order = ''.join(mark[1] for mark in marks) == LETTERS[: len(marks)]
    if in_order and sum(map(bool, texts)) >= 2 and text[: marks[0].start()].strip():
      return text[: marks[0].start()].strip(), tuple(texts)
  return text, ()


def _letter(value: Any, count: int) -> str:
  """Returns the letter of a gold answer such as `C`, `c`, `(C)`, `C.` or `C. text`.

  The result is '' unless it is one of the first `count` letters.
  """
  match = _GOLD.fullmatch(_as_text(value))
  letter = (match[1] or match[2]).upper() if match else ''
  return letter if letter in LETTERS[:count] else ''


def _golds(
  value: Any, options: Sequence[str], faults: list[str], *, text_first: bool = False
) -> tuple[str, ...]:
  """Returns the right letters for a gold letter or gold option text, best match first.

  The result is () when no option matches. A gold value such as 'B' can be a letter and also the
  text of an option. By default the letter wins. With `text_first` the option text wins, and a
  single letter that points to another option also counts as right.
  """
  given, letter = _as_text(value), _letter(value, len(options) or len(LETTERS))
  # options with exactly the gold text; an empty gold text matches an empty option
  known = bool(given) or isinstance(value, str)
  same = [LETTERS[i] for i, option in enumerate(options) if known and option == given]
  same = same or [
    LETTERS[i]
    for i, option in enumerate(options)
    if _normalize(given) and _normalize(option) == _normalize(given)
  ]
  if letter and same and text_first and letter not in same and len(given) == 1:
    faults.append(AMBIGUOUS)
    return (*same, letter)
  if letter and (not same or not text_first):
    text = options[LETTERS.index(letter)] if options else ''
    same = [
      letter,
      *(
        LETTERS[i]
        for i, option in enumerate(options)
        if text and option == text and LETTERS[i] != letter
      ),
    ]
  if not same:
    faults.append(NOWHERE)
  elif len(same) > 1:
    faults.append(TWICE)
  return tuple(same)


def _normalize(text: str) -> str:
  return ' '.join(text.casefold().split()).rstrip(' .')


def _choice(
  identity: str,
  video: str,
  text: str,
  options: tuple[str, ...],
  golds: tuple[str, ...],
  said: Any,
  faults: Sequence[str],
  fields: Mapping[str, str],
) -> Question:
  """Builds a multiple-choice question.

  Args:
    said: the row's gold text, which becomes `gold` when no option matches.
  """
  gold = golds[0] if golds else checks.short(said) if not _as_text(said) else _as_text(said)
  return Question(
    identity, video, text, 'mcq', options, gold, golds, tuple(dict.fromkeys(faults)), fields
  )


# Row readers, one per benchmark schema.


def videomme(row: Row) -> Question:
  """Reads a row of Video-MME. Its options start with their letters."""
  faults: list[str] = []
  text, options = _question_text(row, 'question', faults), _options(row['options'], faults)
  return _choice(
    _as_text(row['question_id']),
    f'{_text(row, "videoID")}.mp4',
    text,
    options,
    _golds(row['answer'], options, faults),
    row['answer'],
    faults,
    _texts(row, 'duration', 'domain', 'task_type'),
  )


def longvideobench(row: Row) -> Question:
  """Reads a row of LongVideoBench.

  The options are in the columns option0 to option4, or in a list in the json file. "N/A" marks an
  absent option.
  """
  faults: list[str] = []
  names = [f'option{i}' for i in range(5)]
  if not any(name in row for name in (*names, 'candidates')):
    raise Broken('option0..4: got none and no candidates, wanted either')
  values = (
    [row.get(name) for name in names]
    if any(name in row for name in names)
    else _parse_value(row['candidates'])
  )
  values = values if isinstance(values, list) else []
  kept = [
    i
    for i, value in enumerate(values)
    if _as_text(value) and _as_text(value).casefold() != _NOT_APPLICABLE
  ]
  options, choice = _options([values[i] for i in kept], faults), _as_text(row['correct_choice'])
  if not choice.isdecimal():
    golds = _golds(choice, options, faults)
  else:
    golds = _golds(
      LETTERS[kept.index(int(choice))] if int(choice) in kept[: len(LETTERS)] else None,
      options,
      faults,
    )
  return _choice(
    _as_text(row['id']),
    _text(row, 'video_path'),
    _question_text(row, 'question', faults),
    options,
    golds,
    row['correct_choice'],
    faults,
    _texts(row, 'duration_group', 'question_category'),
  )


def lvbench(row: Row) -> Question:
  """Reads a row of LVBench. The options end the question text, or are a separate list."""
  faults: list[str] = []
  text, options = _inline(_question_text(row, 'question', faults))
  options = _options(options or row.get('options'), faults)
  return _choice(
    _as_text(row.get('uid')),
    _text(row, 'video_path'),
    text,
    options,
    _golds(row['answer'], options, faults),
    row['answer'],
    faults,
    _texts(row, 'type', 'question_type'),
  )


def mlvu(row: Row) -> Question:
  """Reads a row of MLVU. The gold answer is a letter or the text of an option."""
  faults: list[str] = []
  text, options = _inline(_question_text(row, 'question', faults))
  candidates = row.get('candidates')
  options = _options(candidates if _options(candidates, []) else options, faults)
  return _choice(
    '',
    _text(row, 'video_name'),
    text,
    options,
    _golds(row['answer'], options, faults, text_first=True),
    row['answer'],
    faults,
    _texts(row, 'task_type'),
  )


def mmvu(row: Row) -> Question:
  """Reads a row of MMVU, multiple-choice or open-ended.

  The video is a path, or a URL that contains the path in the data set.
  """
  faults: list[str] = []
  if 'video' not in row and 'video_path' not in row:
    raise Broken('video: got neither this column nor video_path, wanted one of them')
  video = _text(row, 'video' if _as_text(row.get('video')) else 'video_path')
  if '://' in video:
    match = _URL_PATH.search(urllib.parse.urlsplit(video).path)
    if not match:
      raise Broken(
        f'video: got {video!r}, wanted a path or an address with /resolve/<revision>/<path>'
      )
    video = urllib.parse.unquote(match[1])
  choices = _choices(row['choices'])
  kind = {'multiple-choice': 'mcq', 'open-ended': 'oe'}.get(_as_text(row['question_type']))
  if kind is None:
    faults.append(NO_KIND)
    kind = 'mcq' if choices else 'oe'
  metadata = _parse_value(row.get('metadata'))
  extra = metadata if isinstance(metadata, Mapping) else {}
  subject = str(
    row.get('subject') or extra.get('subject') or pathlib.PurePosixPath(video).parent.name
  )
  text = _question_text(row, 'question', faults)
  fields = {
    'question_type': {'mcq': 'multiple-choice', 'oe': 'open-ended'}[kind],
    'subject': subject,
  }
  if kind == 'mcq':
    options = _options(choices, faults)
    return _choice(
      _as_text(row['id']),
      video,
      text,
      options,
      _golds(row['answer'], options, faults),
      row['answer'],
      faults,
      fields,
    )
  gold = _as_text(row['answer'])
  if not gold:
    faults.append(NOWHERE)
  return Question(
    _as_text(row['id']),
    video,
    text,
    kind,
    (),
    gold or checks.short(row['answer']),
    (),
    tuple(faults),
    fields,
  )


def _choices(value: Any) -> list[Any]:
  """Returns the options of MMVU's {letter: text} in letter order, up to the last that has text."""
  found = _parse_value(value)
  if isinstance(found, Mapping):
    found = [found.get(letter) for letter in LETTERS]
  found = found if isinstance(found, list) else []
  return found[: max((i + 1 for i, one in enumerate(found) if _as_text(one)), default=0)]


def charades(row: Row) -> Question:
  """Reads a row of Charades-STA, which asks when a caption happens.

  The file stores times in half precision (24.296875 for 24.3). They are not corrected.
  """
  faults: list[str] = []
  stamps = _parse_value(row['timestamp'])
  try:
    ends = (
      [checks.seconds(value, 'timestamp') for value in stamps] if isinstance(stamps, list) else []
    )
  except Broken:
    ends = []
  whole = len(ends) == 2 and 0 <= ends[0] < ends[1]
  if not whole:
    faults.append(NOWHERE)
  gold = f'{ends[0]:.10g},{ends[1]:.10g}' if whole else checks.short(row['timestamp'])
  return Question(
    '',
    _text(row, 'video'),
    _question_text(row, 'caption', faults),
    'tvg',
    (),
    gold,
    (),
    tuple(faults),
    {},
  )


def longvideo_reason(row: Row) -> Question:
  """Reads a row of LongVideo-Reason.

  Five of the 1000 published rows do not have four options (two have none). As in the published
  evaluation, their problem text is asked unchanged. fields['options'] marks them.
  """
  faults: list[str] = []
  problem = _question_text(row, 'problem', faults)
  text, options = _inline(problem)
  if len(options) != 4:
    text, options = problem, ()
    faults.append(NO_OPTIONS)
  elif not all(options):
    faults.append(EMPTY)
  videos = _parse_value(row['videos'])
  videos = videos[0] if isinstance(videos, list) and len(videos) == 1 else videos
  if not isinstance(videos, str) or not videos.strip():
    raise Broken(f'videos: got {checks.short(row["videos"])}, wanted one path')
  wrapped = _ANSWER.fullmatch(row['answer']) if isinstance(row['answer'], str) else None
  said = wrapped[1] if wrapped else row['answer']
  golds = _golds(said, options or ('',) * 4, faults)
  return _choice(
    _as_text(row.get('problem_id')),
    videos.strip(),
    text,
    options,
    golds,
    said,
    faults,
    {**_texts(row, 'problem_type'), OPTIONS: 'four' if options else BROKEN},
  )

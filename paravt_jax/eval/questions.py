"""What a row of each benchmark means: its published columns to a Question, checked. A fault is a `Broken`."""

import dataclasses
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax.data import fields as checks
from paravt_jax.data.fields import Broken
from paravt_jax.rewards.answer import LETTERS

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
  """What a row says. id: '' when the benchmark gives none. video: as the row names it. kind: mcq | tvg | oe. options: texts
  without letters, () unless it is multiple choice. gold: the letter, 'start,end' in seconds, or the text. fields: by which scores are
  broken down; of a row that has several values (LVBench's question types), all of them, joined by '; ': it counts under each."""
  id: str
  video: str
  text: str
  kind: str
  options: tuple[str, ...]
  gold: str
  fields: Mapping[str, str]


# What a row's columns may hold.

_LETTERED = re.compile(r'[ \t]*\(?([A-J])(?:\)[.:]?|[.:])[ \t]*(\S.*)?', re.DOTALL)
_MARKS = (re.compile(r'^[ \t]*\(?([A-J])[.):][ \t]*', re.MULTILINE), re.compile(r'\(([A-J])\)[ \t]*'))
_GOLD = re.compile(r'\(?([A-J])(?:\)?|(?:\)[.:]?|[.:])(?:\s.*)?)', re.DOTALL)    # not "A man": that is a text
_URL_PATH = re.compile(r'/(?:resolve|blob|raw)/[^/]+/(.+)')
_ANSWER = re.compile(r'\s*<answer>(.*?)</answer>\s*', re.DOTALL)


def _text(row: Row, name: str) -> str:
  """A text that is not blank; numbers are taken as they are written."""
  value = row[name]
  if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
    raise Broken(f'{name}: got {checks.short(value)}, wanted a text')
  return str(value).strip()


def _texts(row: Row, *names: str) -> dict[str, str]:
  """Those of these columns that say something; of a list, all its texts."""
  found = {}
  for name in names:
    value = row.get(name)
    value = '; '.join(map(str, value)) if isinstance(value, list) else '' if value is None else str(value)
    if value.strip():
      found[name] = value.strip()
  return found


def _options(values: Any, where: str) -> tuple[str, ...]:
  """Two to ten texts, their own letters (A, B, ... in order) taken off."""
  if not isinstance(values, list) or not 2 <= len(values) <= len(LETTERS) or not all(_is_said(value) for value in values):
    raise Broken(f'{where}: got {checks.short(values)}, wanted a list of 2 to {len(LETTERS)} options')
  texts = [str(value).strip() for value in values]
  matches = [_LETTERED.fullmatch(text) for text in texts]
  if all(match and match[1] == letter and match[2] for match, letter in zip(matches, LETTERS)):
    return tuple(match[2].strip() for match in matches)
  return tuple(texts)


def _is_said(value: Any) -> bool:
  return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())


def _inline(text: str) -> tuple[str, tuple[str, ...]]:
  """(question, options) of a text that ends with its options, `A.`, `(A)` or `A)` each; (text, ()) when they are not the
  letters from A on, each with a text."""
  for pattern in _MARKS:
    marks = list(pattern.finditer(text))
    start = max((i for i, mark in enumerate(marks) if mark[1] == 'A'), default=len(marks))
    marks = marks[start:]
    texts = [text[mark.end():after].strip() for mark, after in zip(marks, [mark.start() for mark in marks[1:]] + [len(text)])]
    in_order = ''.join(mark[1] for mark in marks) == LETTERS[:len(marks)]
    if len(marks) >= 2 and in_order and all(texts) and text[:marks[0].start()].strip():
      return text[:marks[0].start()].strip(), tuple(texts)
  return text, ()


def _letter(value: Any, count: int, where: str = 'answer') -> str:
  """The letter that a gold answer is: `C`, `(C)`, `C.` or `C. text`."""
  match = _GOLD.fullmatch(value.strip()) if isinstance(value, str) else None
  if not match or match[1] not in LETTERS[:count]:
    raise Broken(f'{where}: got {checks.short(value)}, wanted one of {", ".join(LETTERS[:count])}')
  return match[1]


def _letter_or_text(value: Any, options: Sequence[str]) -> str:
  """The letter of a gold answer that is an option's text or a letter. One that is both, for different options, is refused."""
  given = str(value).strip() if _is_said(value) else ''
  same = [LETTERS[i] for i, option in enumerate(options) if option == given]
  same = same or [LETTERS[i] for i, option in enumerate(options) if given and _bare(option) == _bare(given)]
  if not same:
    return _letter(value, len(options))
  named = given if len(given) == 1 and given in LETTERS[:len(options)] else same[0]
  if len(same) > 1 or named != same[0]:
    raise Broken(f'answer: got {checks.short(value)}, which may be {" or ".join(sorted({*same, named}))} of {list(options)}')
  return same[0]


def _bare(text: str) -> str:
  return text.casefold().rstrip(' .')


# Rows to questions, one reader per schema.


def videomme(row: Row) -> Question:
  """Video-MME; its options carry their letters."""
  options = _options(row['options'], 'options')
  return Question(_text(row, 'question_id'), f'{_text(row, "videoID")}.mp4', _text(row, 'question'), 'mcq', options,
                  _letter(row['answer'], len(options)), _texts(row, 'duration', 'domain', 'task_type'))


def longvideobench(row: Row) -> Question:
  """LongVideoBench: options in columns of their own (or, in its json file, a list), of which "N/A" is none."""
  names = [f'option{i}' for i in range(5)]
  if any(name in row for name in names):
    values = [row.get(name) for name in names]
  else:
    values = row.get('candidates')
    if not isinstance(values, list):
      raise Broken(f'option0..4: got none and candidates {checks.short(values)}, wanted either')
  kept = [i for i, value in enumerate(values) if _is_said(value) and str(value).strip() != 'N/A']
  choice = row['correct_choice']
  if isinstance(choice, bool) or not isinstance(choice, int) or choice not in kept:
    raise Broken(f'correct_choice: got {checks.short(choice)}, wanted one of {kept}')
  return Question(_text(row, 'id'), _text(row, 'video_path'), _text(row, 'question'), 'mcq',
                  _options([values[i] for i in kept], 'options'), LETTERS[kept.index(choice)],
                  _texts(row, 'duration_group', 'question_category'))


def lvbench(row: Row) -> Question:
  """LVBench: the options are the end of the question."""
  text, options = _inline(_text(row, 'question'))
  options = options or _options(row.get('options'), 'no options (A), (B), ... at the end of question; options')
  return Question(_text(row, 'uid'), _text(row, 'video_path'), text, 'mcq', options, _letter(row['answer'], len(options)),
                  _texts(row, 'type', 'question_type'))


def mlvu(row: Row) -> Question:
  """MLVU: the gold answer is a letter or the text of an option."""
  text, options = _inline(_text(row, 'question'))
  if row.get('candidates') or not options:
    options = _options(row.get('candidates'), 'candidates')
  return Question('', _text(row, 'video_name'), text, 'mcq', options, _letter_or_text(row['answer'], options),
                  _texts(row, 'task_type'))


def mmvu(row: Row) -> Question:
  """MMVU: multiple-choice and open-ended; the video is an address, of which the path in the data set counts."""
  kind = {'multiple-choice': 'mcq', 'open-ended': 'oe'}.get(row['question_type'])
  if kind is None:
    raise Broken(f'question_type: got {checks.short(row["question_type"])}, wanted multiple-choice or open-ended')
  video = _text(row, 'video')
  if '://' in video:
    match = _URL_PATH.search(urllib.parse.urlsplit(video).path)
    if not match:
      raise Broken(f'video: got {video!r}, wanted a path or an address with /resolve/<revision>/<path>')
    video = urllib.parse.unquote(match[1])
  metadata = checks.decoded(row.get('metadata') or {}, 'metadata')
  extra = metadata if isinstance(metadata, dict) else {}
  subject = str(row.get('subject') or extra.get('subject') or pathlib.PurePosixPath(video).parent.name)
  options, gold = (), _text(row, 'answer')
  if kind == 'mcq':
    choices = checks.decoded(row['choices'], 'choices')
    choices = choices if isinstance(choices, dict) else {}
    named = {name: value for name, value in sorted(choices.items()) if _is_said(value)}
    if not 2 <= len(named) <= len(LETTERS) or ''.join(named) != LETTERS[:len(named)]:
      raise Broken(f'choices: got {checks.short(row["choices"])}, wanted texts under A, B, ...')
    options, gold = tuple(str(value).strip() for value in named.values()), _letter(gold, len(named))
  return Question(_text(row, 'id'), video, _text(row, 'question'), kind, options, gold,
                  {'question_type': row['question_type'], 'subject': subject})


def charades(row: Row) -> Question:
  """Charades-STA: when a caption happens. The file holds half precision, 24.296875 for 24.3, and is taken at its word."""
  stamps = checks.decoded(row['timestamp'], 'timestamp')
  ends = [checks.seconds(value, 'timestamp') for value in stamps] if isinstance(stamps, list) else []
  if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
    raise Broken(f'timestamp: got {checks.short(row["timestamp"])}, wanted [start, end] in seconds with 0 <= start < end')
  return Question('', _text(row, 'video'), _text(row, 'caption'), 'tvg', (), f'{ends[0]:.10g},{ends[1]:.10g}', {})


def longvideo_reason(row: Row) -> Question:
  """LongVideo-Reason. Five of the 1000 published rows hold no four options (two hold none): they are asked as they are, as the
  publishers do, and marked in fields['options']."""
  problem = _text(row, 'problem')
  text, options = _inline(problem)
  if len(options) != 4:
    text, options = problem, ()
  videos = row['videos'][0] if isinstance(row['videos'], list) and len(row['videos']) == 1 else row['videos']
  if not isinstance(videos, str) or not videos.strip():
    raise Broken(f'videos: got {checks.short(row["videos"])}, wanted one path')
  wrapped = _ANSWER.fullmatch(row['answer']) if isinstance(row['answer'], str) else None
  identity = row.get('problem_id')
  return Question('' if identity is None else str(identity), videos.strip(), text, 'mcq', options,
                  _letter(wrapped[1] if wrapped else row['answer'], len(options) or 4),
                  {**_texts(row, 'problem_type'), 'options': 'four' if options else 'broken'})

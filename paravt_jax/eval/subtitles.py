"""Reads subtitle files (srt, vtt) as plain lines, in any encoding and shape.

A byte-order mark decides the encoding. Without one, NUL bytes mean UTF-16 or UTF-32. Otherwise
UTF-8 is tried. If that fails, the encoding is guessed, and guesses are counted. Most non-Unicode
subtitles are Chinese or Western. If all bytes above 0x7f come in pairs, the guess is GB18030, else
Windows-1252.
"""

import codecs
import collections
import contextlib
import dataclasses
import html
import pathlib
import re
from collections.abc import Iterable, Sequence

from paravt_jax.errors import DataError

SUFFIXES = ('.srt', '.vtt')
_MARKS = (  # longer marks first, because the UTF-32 mark starts with the UTF-16 mark
  (codecs.BOM_UTF32_LE, 'utf-32-le'),
  (codecs.BOM_UTF32_BE, 'utf-32-be'),
  (codecs.BOM_UTF8, 'utf-8'),
  (codecs.BOM_UTF16_LE, 'utf-16-le'),
  (codecs.BOM_UTF16_BE, 'utf-16-be'),
  (b'\x84\x31\x95\x33', 'gb18030'),
)
_WIDE = ('utf-32-le', 'utf-32-be', 'utf-16-le', 'utf-16-be')
_ARROW = '-->'
_LOST = '\N{REPLACEMENT CHARACTER}'
_PAIRS = re.compile(rb'(?:[\x81-\xfe][\x80-\xfe])+')
_HIGH = re.compile(rb'[\x80-\xff]+')

_NUMBER = r'\s*(\d{1,9})\s*'
_CLOCK = rf'-?(?:{_NUMBER}:)?{_NUMBER}:{_NUMBER}(?:[.,:]\s*(\d+))?'
_TIMING = re.compile(rf'\s*{_CLOCK}\s*(?:-\s*-?\s*>|--&gt;|→)\s*{_CLOCK}(?P<rest>.*)')
_WIDTHS = str.maketrans('：，．。', ':,..')  # full-width punctuation from Chinese keyboards
_SETTINGS = re.compile(r'(?:\s+[A-Za-z]\w*:\S+)*\s*')
_MARKUP = re.compile(r'</?[A-Za-z][^<>]*>|</?>|<\d[\d:.]*>|\{\\[^}]*\}')
_BREAKS = re.compile(r'\\[Nnh]')
_BLOCKS = ('NOTE', 'STYLE', 'REGION')


# Task fact with the reason why a subtitle file has no text. Such a task is an error and never runs.
BROKEN = 'subtitles_error'
# Values of the sample field 'subtitles', used for score breakdowns.
SHOWN = 'shown'
NONE = 'none'
UNREADABLE = 'unreadable'
GUESSED = 'shown, read as '


class NoSubtitles(DataError):
  """A subtitle file exists but holds no readable text."""


@dataclasses.dataclass(frozen=True)
class Subtitles:
  """The lines of a subtitle file and its encoding."""

  text: str
  encoding: str  # the encoding used to read it
  guessed: bool  # whether the encoding is a guess


def read(file: pathlib.Path, max_bytes: int) -> Subtitles:
  """Returns the subtitles of a file, at most `max_bytes` of UTF-8 text (see `sample_lines`).

  Raises:
    NoSubtitles: the file has no cue with text.
    DataError: the file cannot be read.
  """
  try:
    data = file.read_bytes()
  except OSError as error:
    raise DataError(
      f'{file}: {error.strerror}, wanted a readable subtitle file; fetch it again'
    ) from error
  text, encoding, guessed = decode_text(data)
  lines = subtitle_lines(text)
  if not lines:
    found = f'no cue with a text in {len(data)} bytes (read as {encoding})'
    got = found if data else 'an empty file'
    raise NoSubtitles(
      f'{file}: got {got}, wanted srt or vtt; fetch it again, or remove it to ask '
      'without subtitles (both make other questions, for another results folder)'
    )
  return Subtitles(sample_lines(lines, max_bytes), encoding, guessed)


def decode_text(data: bytes) -> tuple[str, str, bool]:
  """Returns (text, encoding, whether the encoding is a guess). See the module docstring."""
  for mark, encoding in _MARKS:
    if data.startswith(mark):
      text = data[len(mark) :].decode(encoding, 'replace')
      return text.removesuffix(_LOST), encoding, _LOST in text  # an odd byte at the end
  if b'\0' in data:
    for encoding in _WIDE:
      text = data.decode(encoding, 'replace')
      if _ARROW in text:
        return text.removesuffix(_LOST), encoding, _LOST in text
  text = data.decode('utf-8', 'replace')
  lost = text.count(_LOST)
  if not lost:
    return text, 'utf-8', False
  with contextlib.suppress(UnicodeDecodeError):  # succeeds if only the last character is cut
    text = codecs.getincrementaldecoder('utf-8')().decode(data)
    if not text.isascii():
      return text, 'utf-8', True
  if sum(char > '\x7f' for char in text) > 10 * lost:  # a few torn characters
    return text, 'utf-8', True
  encoding = 'gb18030' if all(map(_PAIRS.fullmatch, _HIGH.findall(data))) else 'cp1252'
  return data.decode(encoding, 'replace'), encoding, True


def subtitle_lines(text: str) -> list[str]:
  """Returns 'start --> end text' for each cue of an srt or vtt file, in seconds with one decimal.

  A cue extends to the time line of the next cue. Blank lines do not end it. Markup, cue numbers,
  vtt notes and vtt styles are removed. Empty cues, repeats of the previous text, and text before
  the first cue are omitted.
  """
  text = re.sub('\r+\n', '\n', text).replace('\r', '\n').replace('\ufeff', '').replace('\0', '')
  rows = text.split('\n')
  is_vtt = text.lstrip().startswith('WEBVTT')
  found: list[str] = []
  last = ''
  # (row index, match) of each time line
  times = [
    (at, match)
    for at, row in enumerate(rows)
    if (match := _TIMING.fullmatch(' '.join(row.translate(_WIDTHS).split())))
  ]
  for (at, match), (until, _) in zip(times, [*times[1:], (len(rows), None)]):
    number = _number(rows, at)
    body = rows[at + 1 : until]
    if until < len(rows):
      body = _without_name(body, number, is_vtt)
    rest = match['rest']
    first = '' if _SETTINGS.fullmatch(rest) else rest
    said = _cue_text([first, *(_without_blocks(body) if is_vtt else body)])
    if said and said != last:
      start, end = (_seconds(match.groups()[i : i + 4]) for i in (0, 4))
      found.append(f'{start:.1f} --> {end:.1f} {said}')
      last = said
  return found


def _number(rows: Sequence[str], at: int) -> int | None:
  """Returns the cue number above the time line in row `at`, None without a number."""
  above = next((row.strip() for row in reversed(rows[max(0, at - 2) : at]) if row.strip()), '')
  return int(above) if above.isdecimal() and len(above) < 10 else None


def _without_name(body: list[str], number: int | None, is_vtt: bool) -> list[str]:
  """Returns a cue's rows without the number (in vtt: any name) of the next cue, if present."""
  kept = list(body)
  while kept and not kept[-1].strip():
    kept.pop()
  is_beside = len(kept) == len(body)  # directly above the next time line
  is_alone = len(kept) < 2 or not kept[-2].strip()
  last = kept[-1].strip() if kept else ''
  is_next = number is not None and (is_beside or last == str(number + 1))
  is_number = last.isdecimal() and ((is_beside and is_alone) or is_next)
  is_name = is_vtt and bool(last) and is_beside and is_alone and len(kept) > 1
  return kept[:-1] if is_number or is_name else kept


def _without_blocks(body: list[str]) -> list[str]:
  """Returns the rows of a vtt cue without comment, style and region blocks.

  A block starts at its keyword and ends at the next blank line.
  """
  kept, inside, before = [], False, 'x'
  for row in body:
    inside = (inside and bool(row.strip())) or (not before.strip() and row.startswith(_BLOCKS))
    if not inside:
      kept.append(row)
    before = row
  return kept


def _cue_text(rows: Iterable[str]) -> str:
  """Returns the text of a cue on one line, without markup."""
  bare = (html.unescape(_BREAKS.sub(' ', _MARKUP.sub('', row))) for row in rows)
  return ' '.join(' '.join(bare).split())


def _seconds(parts: Sequence[str | None]) -> float:
  hours, minutes, seconds, fraction = parts
  whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
  return whole + float(f'0.{fraction or 0}')


def sample_lines(lines: Sequence[str], max_bytes: int) -> str:
  """Returns the lines as one text of at most `max_bytes` of UTF-8.

  If they do not fit, evenly spaced lines are selected.
  """
  total = sum(len(line.encode()) + 1 for line in lines) - 1
  count = len(lines) if total <= max_bytes else len(lines) * (max_bytes + 1) // (total + 1)
  while count > 0:
    text = '\n'.join(lines[i * len(lines) // count] for i in range(count))
    if len(text.encode()) <= max_bytes:
      return text
    count -= 1
  return ''


def describe_encodings(fields: Iterable[str]) -> str:
  """Returns a note on guessed encodings and unreadable subtitle files, '' for none.

  Args:
    fields: the value of the field 'subtitles' of each video.
  """
  counts = collections.Counter(fields)
  guessed = {name: count for name, count in sorted(counts.items()) if name.startswith(GUESSED)}
  parts = (
    [
      f'{sum(guessed.values())} are no clean Unicode and were read as '
      + ', '.join(f'{name.removeprefix(GUESSED)} ({count})' for name, count in guessed.items())
    ]
    if guessed
    else []
  )
  broken = counts[UNREADABLE]
  parts += [f'{broken} give no cue, and their questions are errors'] if broken else []
  return f'subtitle files: {"; ".join(parts)}' if parts else ''

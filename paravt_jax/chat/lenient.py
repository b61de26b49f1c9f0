"""Parses almost-JSON objects and times with units, as policies write them.

It accepts the JSON mistakes that published models make. Every function takes time linear in the
length of its text. Bad text never raises an exception other than `Unreadable`.
"""

import math
import re
from typing import Any

LONGEST = 20_000  # characters; longer blocks are not parsed (a call has a few hundred)
DEEPEST = 64  # levels of nesting that are accepted; a call has three
_SKIP = re.compile(r'(?:[\s\ufeff\u200b\xa0]|//[^\n]*|#[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*+')
_UNQUOTED = re.compile(r'[^,{}\[\]"\'\n“”]+')
_KEY = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_NUMBER = re.compile(r'[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?')
_WORDS = {
  'true': True,
  'false': False,
  'null': None,
  'True': True,
  'False': False,
  'None': None,
  'NaN': math.nan,
  'Infinity': math.inf,
  '+Infinity': math.inf,
  '-Infinity': -math.inf,
}
_QUOTES = {'"': '"', "'": "'", '“': '”"', '”': '”"', '‘': "’'", '’': "’'"}
# A quote closes a string only if one of these follows: a separator, a comment, the end of the line
# or text, or the next key (where the comma is missing).
_AFTER_STRING = re.compile(r'[ \t]{0,99}(?:[,:}\]\n\r#]|//|/\*|\Z|"[A-Za-z_]{1,40}"[ \t]{0,9}:)')
_ESCAPE = re.compile(r'u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([\s\S])')
_ESCAPED = {
  'n': '\n',
  't': '\t',
  'r': '\r',
  'b': '\b',
  'f': '\f',
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
}
_MOST_DIGITS = 400  # characters of a number; longer than any float needs

_LONGEST_TIME = 64
_CLOCK = re.compile(r'(?:([0-9]+):)?([0-9]+):([0-5][0-9](?:\.[0-9]+)?)')
_UNITS = re.compile(
  r'(?:([0-9.]+)\s*(?:h|hrs?|hours?)[\s,]*)?(?:([0-9.]+)\s*(?:m|mins?|minutes?)[\s,]*)?'
  r'(?:([0-9.]+)\s*(?:s|secs?|seconds?))?',
  re.IGNORECASE,
)
_SECONDS = re.compile(r'\s*(?:s|secs?|seconds?)\Z', re.IGNORECASE)
_FRACTION = re.compile(r'(:[0-5][0-9]),([0-9]{1,6})\Z')
# Seconds. Larger integers are clamped before the conversion to float, which would overflow.
_LARGEST = 10**15


class Unreadable(ValueError):
  """The text has no readable value at this position, even with the accepted mistakes.

  Only this module and `toolcalls` raise or catch it.
  """


class _Reader:
  """Reads one value of a text, without recursion."""

  def __init__(self, text: str, at: int):
    self.text = text
    self.at = at  # index after the text read so far
    self.whole = True  # False if a closing brace is missing
    self._root: list[Any] = []
    # open containers, outermost first: (container, the key whose value comes next)
    self._stack: list[tuple[Any, Any]] = [(self._root, None)]

  def read(self) -> Any:
    """Returns the object or array that begins at `at`. Raises Unreadable."""
    self._open()
    while len(self._stack) > 1:
      self._space()
      if self.at >= len(self.text):
        self.whole = False
        if self._waits():
          raise Unreadable
        break
      self._step(self.text[self.at])
    return self._root[0]

  def _step(self, char: str) -> None:
    container, key = self._stack[-1]
    if char in '}]' and not self._waits():
      self._close(char)
    elif char == ',' and not self._waits():
      self.at += 1
    elif isinstance(container, dict) and key is None:
      if char == '{' and not container:  # {{ ... }}: doubled braces from a template
        self.at += 1
      else:
        self._key()
    elif char in '{[':
      self._open()
    else:
      self._put(self._string() if char in _QUOTES else self._read_unquoted())

  def _waits(self) -> bool:
    return self._stack[-1][1] is not None

  def _space(self) -> None:
    if skipped := _SKIP.match(self.text, self.at):
      self.at = skipped.end()

  def _open(self) -> None:
    if len(self._stack) > DEEPEST:
      raise Unreadable
    inner = {} if self.text[self.at] == '{' else []
    self._put(inner)
    self._stack.append((inner, None))
    self.at += 1

  def _close(self, char: str) -> None:
    """Closes the innermost container of this kind and every open container inside it."""
    kind = dict if char == '}' else list
    while len(self._stack) > 1:
      container, _ = self._stack.pop()
      if isinstance(container, kind):
        self.at += 1
        return
    raise Unreadable

  def _put(self, value: Any) -> None:
    container, key = self._stack[-1]
    if isinstance(container, dict):
      container[key] = value
      self._stack[-1] = (container, None)
    else:
      container.append(value)

  def _key(self) -> None:
    if self.text[self.at] in _QUOTES:
      key = self._string()
    elif match := _KEY.match(self.text, self.at):
      key, self.at = match[0], match.end()
    else:
      raise Unreadable
    self._space()
    if self.text[self.at : self.at + 1] != ':':
      raise Unreadable
    self.at += 1
    self._stack[-1] = (self._stack[-1][0], key)

  def _string(self) -> str:
    """Reads a string; raw control characters and unescaped quotes are accepted.

    A quote closes the string only where `_AFTER_STRING` follows.
    """
    closing, parts, at = _QUOTES[self.text[self.at]], [], self.at + 1
    while at < len(self.text):
      char = self.text[at]
      if char == '\\' and (match := _ESCAPE.match(self.text, at + 1)):
        code = match[1] or match[2]
        parts.append(
          chr(int(code, 16)) if code else _ESCAPED.get(match[3], '\\' + (match[3] or ''))
        )
        at = match.end()
      elif char in closing and self._ends(at + 1):
        self.at = at + 1
        return _paired(''.join(parts))
      else:
        parts.append(char)
        at += 1
    raise Unreadable

  def _ends(self, at: int) -> bool:
    return _AFTER_STRING.match(self.text, at) is not None

  def _read_unquoted(self) -> Any:
    """Reads a number, a word such as True, or a time without quotes (returned as text)."""
    match = _UNQUOTED.match(self.text, self.at)
    if match is None:
      raise Unreadable
    token = re.split(r'//|#|/\*', match[0], maxsplit=1)[0]
    self.at += len(token)
    token = token.strip()
    if token in _WORDS:
      return _WORDS[token]
    if len(token) <= _MOST_DIGITS and _NUMBER.fullmatch(token):
      return float(token) if set(token) & set('.eE') else int(token)
    if seconds(token) is not None:
      return token
    raise Unreadable


def value(text: str, at: int) -> tuple[Any, int, bool]:
  """Returns the object or array that begins at text[at].

  Returns:
    (value, the index after it, whether all its closing braces are present).

  Raises:
    Unreadable: no object or array can be read there.
  """
  if at >= len(text) or text[at] not in '{[':
    raise Unreadable
  reader = _Reader(text, at)
  found = reader.read()
  return found, reader.at, reader.whole


def strict_seconds(time: Any) -> float | None:
  """Returns a time in seconds; None if `time` is not a finite time.

  Accepts a number, a numeric string, MM:SS and HH:MM:SS.
  """
  if isinstance(time, str):
    text = time.strip()
    if len(text) > _LONGEST_TIME:
      return None
    if clock := _CLOCK.fullmatch(text):
      hours, minutes, rest = clock.groups()
      if hours is not None and float(minutes) >= 60:
        return None
      time = float(hours or 0) * 3600 + float(minutes) * 60 + float(rest)
    elif _NUMBER.fullmatch(text):
      time = float(text)
    else:
      return None
  if isinstance(time, bool) or not isinstance(time, (int, float)):
    return None
  if isinstance(time, int):
    return float(max(-_LARGEST, min(time, _LARGEST)))
  return time if math.isfinite(time) else None


def seconds(time: Any) -> float | None:
  """Returns a time in seconds; None if `time` is not a finite time.

  Accepts what `strict_seconds` accepts, and the forms of the overview and of subtitles: '12.5s',
  '<12.0 seconds>', '00:01:10,500', '1m10s'.
  """
  strict = strict_seconds(time)
  if strict is not None or not isinstance(time, str) or len(time) > _LONGEST_TIME:
    return strict
  text = time.strip()
  if text[:1] + text[-1:] in ('<>', '[]', '()'):
    text = text[1:-1].strip()
  plain = strict_seconds(_FRACTION.sub(r'\1.\2', _SECONDS.sub('', text)))
  units = _UNITS.fullmatch(text) if plain is None else None
  if units is None or not any(units.groups()):
    return plain
  total = 0.0
  for part, scale in zip(units.groups(), (3600, 60, 1), strict=True):
    value = strict_seconds(part) if part else 0.0
    if value is None:
      return None
    total += value * scale
  return total


def _paired(text: str) -> str:
  """Returns `text` with each pair of surrogates (two \\u escapes) joined into one character.

  JSON defines pairs that way. Lone surrogates do not change.
  """
  if text.isascii():
    return text
  return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'surrogatepass')

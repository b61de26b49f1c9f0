"""What policies write in place of JSON: a reader of objects with the slips that published models
make, and of times with units.

Everything here takes time linear in its text, and none of it raises for what a text holds.
"""

import math
import re
from typing import Any

LONGEST = 20_000  # characters of a block that is looked at; a call has a few hundred
DEEPEST = 64  # levels; a call has three
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
# what stands behind a closing quote: a separator, a comment, an end, or the next key where the
# comma is missing
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
_MOST_DIGITS = 400  # of a number; more than any float holds

_LONGEST_TIME = 64
_CLOCK = re.compile(r'(?:([0-9]+):)?([0-9]+):([0-5][0-9](?:\.[0-9]+)?)')
_UNITS = re.compile(
  r'(?:([0-9.]+)\s*(?:h|hrs?|hours?)[\s,]*)?(?:([0-9.]+)\s*(?:m|mins?|minutes?)[\s,]*)?'
  r'(?:([0-9.]+)\s*(?:s|secs?|seconds?))?',
  re.IGNORECASE,
)
_SECONDS = re.compile(r'\s*(?:s|secs?|seconds?)\Z', re.IGNORECASE)
_FRACTION = re.compile(r'(:[0-5][0-9]),([0-9]{1,6})\Z')
# seconds; larger integers are clamped before they become floats, which could not hold them
_LARGEST = 10**15


class Unreadable(ValueError):
  """No value stands here, not even with the slips that are known. Only this module and `toolcalls`
  see it.
  """


class _Reader:
  """One value of a text, read without recursion."""

  def __init__(self, text: str, at: int):
    self.text = text
    self.at = at  # the place behind what was read
    self.whole = True  # no closing brace was missing
    self._root: list[Any] = []
    # (container, the key that waits for its value)
    self._stack: list[tuple[Any, Any]] = [(self._root, None)]

  def read(self) -> Any:
    """The object or array that begins at `at`. Raises Unreadable."""
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
      if char == '{' and not container:  # {{ ... }}: a template's braces
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
    """Closes the innermost container of the kind, with what was left open inside it."""
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
    """A string, raw control characters and unescaped quotes included: a quote closes where
    `_AFTER_STRING` follows.
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
    """A number, a word such as True, or a time without quotes (as text)."""
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
  """The object or array that begins at text[at]: (value, the index behind it, whether all its
  closing braces are there).

  Raises:
    Unreadable: there is none.
  """
  if at >= len(text) or text[at] not in '{[':
    raise Unreadable
  reader = _Reader(text, at)
  found = reader.read()
  return found, reader.at, reader.whole


def strict_seconds(time: Any) -> float | None:
  """A time as a number, numeric string, MM:SS or HH:MM:SS, in seconds; None if none, or not
  finite.
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
  """As `strict_seconds`, and as the overview and subtitles write times: '12.5s', '<12.0 seconds>',
  '00:01:10,500', '1m10s'.
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
  """`text` with the surrogates that two \\u escapes spell joined to their character, as JSON means
  them; lone ones stay.
  """
  if text.isascii():
    return text
  return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'surrogatepass')

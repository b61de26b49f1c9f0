"""Reads time windows from a text and scores them against a gold window.

The functions are pure and raise no exception.
"""

import math
import re
from typing import Any

from paravt_jax.chat import toolcalls

_NUMBER = r'[0-9]+(?:\.[0-9]+)?'
# subtitles write 00:01:10,500
_CLOCK = r'[0-9]+:[0-5][0-9](?::[0-5][0-9](?:,[0-9]{3}(?![0-9:]))?)?(?:\.[0-9]+)?'
# a unit ends a word, except that a number may follow (1m10s); "sec." may have a dot
_END = r'(?![^\W\d_])(?:\.(?=[\s,\])}]))?'
_HOURS = rf'h(?:(?:ou)?rs?)?{_END}'
_MINUTES = rf'm(?:in(?:ute)?s?)?{_END}'
_SECONDS = rf's(?:ec(?:ond)?s?)?{_END}'
_UNIT = rf'(?:{_SECONDS}|{_MINUTES}|{_HOURS})'
_THEN = r'[\s,-]{0,3}(?:and\s{1,3})?'  # between the parts of one time: "1 minute and 10 seconds"
_BELOW_60 = r'[0-5]?[0-9](?:\.[0-9]+)?'
_COMPOUND = (
  rf'{_NUMBER}\s?{_HOURS}{_THEN}{_BELOW_60}\s?{_MINUTES}(?:{_THEN}{_BELOW_60}\s?{_SECONDS})?'
  rf'|{_NUMBER}\s?{_HOURS}{_THEN}{_BELOW_60}\s?{_SECONDS}'
  rf'|{_NUMBER}\s?{_MINUTES}{_THEN}{_BELOW_60}\s?{_SECONDS}'
)
_TIME = rf'(?:{_CLOCK}(?:\s*{_UNIT})?|{_COMPOUND}|{_NUMBER}(?:\s*{_UNIT})?)'
_ABOUT = r'(?:(?:about|around|approximately|approx\.|roughly|the)\s+)?'
_JOIN = r'\s*(?:[-–—−]+>?|~|→|\b(?:to|until|till|through|and)\b)\s*' + _ABOUT
_BRACKET_PAIR = re.compile(
  rf'[\[({{]\s*({_TIME})(?:\s*,\s*|{_JOIN})({_TIME})\s*[\])}}]', re.IGNORECASE
)
_BEHIND = r'(?![\w%])(?![.:,–—−~-][0-9])'
_RANGE = re.compile(
  rf'(?<![\w.–−-])(?<![0-9][:,])({_TIME}){_JOIN}({_TIME}){_BEHIND}', re.IGNORECASE
)
_IS = rf'["\']?\s{{0,3}}(?:is|at|on|from|:|=|(?<=\s)[-–—](?=\s))?\s{{0,3}}(?:at\s+)?{_ABOUT}["\']?'
_WORDS = r'(?:[ _-]?(?:time|second|timestamp|s|sec))?'
_NAMED = re.compile(
  rf'\b(?:start|begin)(?:s|ning|ing)?{_WORDS}{_IS}({_TIME})(?![\w%.:][0-9])[^0-9]{{0,30}}?'
  rf'\b(?:end|finish|stop)(?:s|es|ping|ing)?{_WORDS}{_IS}({_TIME}){_BEHIND}',
  re.IGNORECASE,
)
# emphasis, and times as the overview writes them
_MARKUP = re.compile(rf'\*\*|__|`|<\s?({_TIME})\s?>', re.IGNORECASE)
_PAIR = re.compile(rf'\s*({_TIME})\s*,\s*({_TIME})\s*', re.IGNORECASE)
_HALF = re.compile(rf'{_NUMBER}\s?(?:{_HOURS}|{_MINUTES})[\s,]{{0,3}}\Z', re.IGNORECASE)
_PART = re.compile(rf'({_NUMBER})\s*({_UNIT})', re.IGNORECASE)
_FACTORS = {'m': 60.0, 'h': 3600.0, 's': 1.0}


def temporal_iou(prediction: str, gold: Any) -> float:
  """Returns the intersection over union, 0..1, of the window in `prediction` and `gold`.

  `gold` is 'a,b', '[a, b]' or two numbers, in seconds. Returns 0.0 when either side is malformed,
  has fewer than two times, or has end <= start.
  """
  given, wanted = time_window(prediction), _gold_window(gold)
  if given is None or wanted is None:
    return 0.0
  shared = min(given[1], wanted[1]) - max(given[0], wanted[0])
  return max(shared, 0.0) / (max(given[1], wanted[1]) - min(given[0], wanted[0]))


def time_window(text: str) -> tuple[float, float] | None:
  """Returns (start, end) in seconds of the window that a text names, or None.

  The last bracketed pair has priority, then the last range with a unit, then the last range.

  A time is seconds, MM:SS or HH:MM:SS, with or without a unit, or several units in a row ("1 minute
  10 seconds"). A range joins two times, or names them ("start: 12, end: 20"). None when the text
  has no window, or when the window does not end after its start.
  """
  text = _MARKUP.sub(lambda match: match[1] or '', text)
  found = [
    *(match for match in _RANGE.finditer(text) if not _is_cut(text, match)),
    *_NAMED.finditer(text),
  ]
  ranges = sorted(found, key=lambda match: match.start())
  united = [match for match in ranges if _unit(match[1]) or _unit(match[2])]
  for kind in (list(_BRACKET_PAIR.finditer(text)), united, ranges):
    if kind:
      return _window(kind[-1])
  return None


def _is_cut(text: str, match: re.Match[str]) -> bool:
  """Returns whether a range begins inside an invalid time, such as "1 minute 90 seconds"."""
  return (
    bool(_unit(match[1]))
    and _HALF.search(text, max(0, match.start() - 24), match.start()) is not None
  )


def _gold_window(gold: Any) -> tuple[float, float] | None:
  """Parses an unchecked gold window into (start, end); None when it is not a window."""
  if isinstance(gold, str):
    pair = _PAIR.fullmatch(gold)
    return _window(pair) if pair else time_window(gold)
  if not hasattr(gold, '__len__') or len(gold) != 2:
    return None
  # numpy numbers give their Python value with `item()`
  start, end = (toolcalls.seconds(time.item() if hasattr(time, 'item') else time) for time in gold)
  return _valid_window(start, end)


def _window(match: re.Match[str]) -> tuple[float, float] | None:
  """Returns the window of two matched times.

  A unit on the second time also applies to a first time without a unit.
  """
  unit = _unit(match[2]) or 's'
  return _valid_window(_seconds(match[1], _unit(match[1]) or unit), _seconds(match[2], unit))


def _unit(time: str) -> str:
  """Returns the first letter of a time's first unit, or '' without a unit."""
  return next((char for char in time.lower() if char.isalpha()), '')


def _seconds(time: str, unit: str) -> float:
  """Converts a matched time to seconds.

  The time is a clock (its unit is ignored), a number in `unit`, or several numbers with units.
  """
  if ':' in time:
    parts = re.findall(r'[0-9.]+', time.replace(',', '.'))
    return sum(float(part) * 60.0**place for place, part in enumerate(reversed(parts)))
  # skip the search for plain digits: it would restart at every digit
  parts = _PART.findall(time) if _unit(time) else []
  if parts:
    return sum(float(number) * _FACTORS[name[0].lower()] for number, name in parts)
  return float(time) * _FACTORS[unit]


def _valid_window(start: float | None, end: float | None) -> tuple[float, float] | None:
  """Returns (start, end) when both are finite and start < end, else None."""
  if (
    start is None
    or end is None
    or not (math.isfinite(start) and math.isfinite(end) and start < end)
  ):
    return None
  return start, end

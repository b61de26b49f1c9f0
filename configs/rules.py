"""Rules of single values: what a knob may be, in words and as a test. Knobs: allowed.py."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

# Counts travel as int32, and waits, which are seconds, to the system. No knob but a QUANTITY is larger.
LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a knob may be.

  wanted: in words, for a message. holds: whether a value is that; it may be of any type.
  """

  wanted: str
  holds: Callable[[Any], bool]


def whole(least: int, most: int | None = None, note: str = '') -> Rule:
  """An integer from `least` on, and up to `most`; note: what a special value means."""
  wanted = f'at least {least}' if most is None else f'{least} to {most}'
  holds = lambda value: type(value) is int and least <= value and (most is None or value <= most)
  return Rule(f'{wanted} ({note})' if note else wanted, holds)


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def above(least: float, note: str = '') -> Rule:
  """A finite number greater than `least`."""
  return Rule(
    f'above {least:g}' + (f' ({note})' if note else ''),
    lambda value: _is_number(value) and value > least,
  )


def from_(least: float, note: str = '') -> Rule:
  """A finite number, `least` or more."""
  return Rule(
    f'at least {least:g}' + (f' ({note})' if note else ''),
    lambda value: _is_number(value) and value >= least,
  )


def some_of(*names: str) -> Rule:
  """A tuple of such names, which may be empty."""
  holds = lambda value: isinstance(value, tuple | list) and all(one in names for one in value)
  return Rule(f'some of {", ".join(names)}, or () for all', holds)


def one_of(*names: str) -> Rule:
  """One of some words."""
  return Rule(f'one of {", ".join(names)}', lambda value: isinstance(value, str) and value in names)


def multiple_of(number: int) -> Rule:
  """A positive multiple of an integer."""
  holds = lambda value: type(value) is int and value >= number and value % number == 0
  return Rule(f'a multiple of {number}, at least that', holds)


def either(*names: str) -> Rule:
  """One of two words."""
  return Rule(
    ' or '.join(map(repr, names)), lambda value: isinstance(value, str) and value in names
  )


def optional(rule: Rule) -> Rule:
  """The rule, or None."""
  return Rule(f'{rule.wanted}, or None', lambda value: value is None or rule.holds(value))


def each(
  wanted: str, holds: Callable[[Any], bool], least: int = 0, *, differ: bool = False
) -> Rule:
  """A tuple of at least so many members that all hold; differ: no two are the same."""

  def valid(value: Any) -> bool:
    members = isinstance(value, tuple | list) and len(value) >= least and all(map(holds, value))
    return members and not (differ and len(set(value)) < len(value))

  return Rule(wanted, valid)


def span(least: int) -> Rule:
  """(low, high), both included."""
  holds = lambda value: (
    isinstance(value, tuple | list) and len(value) == 2 and all(type(one) is int for one in value)
  )
  return Rule(
    f'(low, high) with {least} <= low <= high',
    lambda value: holds(value) and least <= value[0] <= value[1],
  )


def _is_source(value: Any) -> bool:
  if not isinstance(value, tuple | list) or len(value) != 3:
    return False
  weight, first, last = value
  return (
    from_(0).holds(weight)
    and whole(0).holds(first)
    and (last is None or (whole(0).holds(last) and first <= last))
  )


def _is_lanes(value: Any) -> bool:
  pair = lambda one: (
    isinstance(one, tuple | list)
    and len(one) == 2
    and all(type(part) is int and part >= 1 for part in one)
  )
  return isinstance(value, tuple | list) and bool(value) and all(map(pair, value))


_is_text = lambda value: isinstance(value, str)
FLAG = Rule('True or False', lambda value: type(value) is bool)
PROSE = Rule('text', _is_text)
NAME = Rule('a name', lambda value: _is_text(value) and bool(value.strip()))
# A path, a name or a word. Who writes 'None' wants none, and no folder of that name.
TEXT = Rule(
  "text (for none: '', nothing behind the =)",
  lambda value: _is_text(value) and value not in ('None', 'none', 'null'),
)
URL = Rule(
  "the address of an OpenAI-compatible server, such as http://127.0.0.1:30000/v1, or ''",
  lambda value: _is_text(value) and (not value or value.startswith(('http://', 'https://'))),
)
URLS = each(
  "addresses, as in ('http://127.0.0.1:30000',)",
  lambda one: _is_text(one) and one.startswith(('http://', 'https://')),
)
FILES = each(
  "paths or patterns, as in ('rows/*.parquet',)", lambda one: _is_text(one) and bool(one)
)
NAMES = each('names, or () for all', lambda one: _is_text(one) and bool(one))
WORDS = each('words, as typed on a command line', _is_text)
SHARE = Rule('a share, 0 to 1', lambda value: _is_number(value) and 0 <= value <= 1)
PART = Rule('a share above 0, up to 1', lambda value: _is_number(value) and 0 < value <= 1)
DECAY = Rule('at least 0 and below 1', lambda value: _is_number(value) and 0 <= value < 1)
INSIDE = Rule('between 0 and 1', lambda value: _is_number(value) and 0 < value < 1)
SEED = whole(0, 2**31 - 1)
COUNT = whole(1)
PROCESSES = Rule('at least 1, at most 1024', whole(1, 1024).holds)
RETRIES = Rule('at least 0, at most 100', whole(0, 100).holds)  # the wait doubles every time
# What servers of both kinds take, embedded and SGLang.
TEMPERATURE = Rule(
  'at least 0, at most 100 (0: greedy)', lambda value: _is_number(value) and 0 <= value <= 100
)
EXPLORING = Rule(
  'above 0 (RL must explore), at most 100', lambda value: value != 0 and TEMPERATURE.holds(value)
)
TOP_P = Rule(
  'a share above 0, up to 1 (at least 1e-06)',
  lambda value: _is_number(value) and 1e-6 <= value <= 1,
)
QUANTITY = above(0)  # of bytes, operations or parameters: of any size
POSITIVE = above(0)
BUDGETS = each('positive frame budgets', lambda one: type(one) is int and one >= 1, 1)
DIFFERENT_BUDGETS = each(
  'positive frame budgets, each once', lambda one: type(one) is int and one >= 1, 1, differ=True
)
PIXELS = whole(1024, note='one token')
DTYPE = one_of('bfloat16', 'float32')
KIND = either('world', 'files')
SOURCE = Rule('a weight, a first step and a last one or None, as in (2.0, 0, None)', _is_source)
LANES = Rule('(context, slots) pairs of positive integers', _is_lanes)

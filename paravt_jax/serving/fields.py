"""Checks of JSON fields: one function per kind of value.

Each raises a one-line error that names the field.
"""

import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from paravt_jax.errors import RolloutError

LARGEST_BIAS = 1e30  # divided by the lowest temperature it still fits float32
LONGEST_ID = 512  # characters of a request's id, which logs and replies repeat
LARGEST_VERSION = 2**31 - 1  # versions travel as int32
_ID = re.compile(r'0|[1-9][0-9]{0,9}')


class RequestError(RolloutError):
  """An invalid request. The server answers with status 400 and this text."""


class _Short(reprlib.Repr):
  """A bounded `repr`.

  It shows the first level of lists and objects, and both ends of long texts and numbers.
  """

  def __init__(self):
    super().__init__()
    self.maxlevel = 2
    self.maxlist = 4
    self.maxdict = 2
    self.maxstring = 60
    self.maxlong = 40

  def repr_int(self, x: int, level: int) -> str:
    return super().repr_int(x, level) if x.bit_length() < 1000 else 'a number of hundreds of digits'


_SHORT = _Short()


def short_repr(value: Any) -> str:
  """Formats any value for a message, as one line of bounded length."""
  return _SHORT.repr(value)


def json_object(where: str, raw: bytes) -> dict[str, Any]:
  """Parses a body as a JSON object. An empty body is an empty object.

  Raises:
    RequestError: the body is not JSON (NaN and numbers beyond a double are not allowed), not UTF-8,
    nested too deeply, not an object, or an object with a repeated key.
  """
  try:
    body = orjson.loads(raw) if raw else {}
    if raw:
      # Search for repeated keys, because orjson silently uses the last one.
      json.loads(raw, object_pairs_hook=lambda pairs: _once(where, pairs))
  except RecursionError as error:
    raise RequestError(
      f'{where}: the body is nested too deeply, wanted an object of a few levels'
    ) from error
  except ValueError as error:
    raise RequestError(
      f'{where}: the body is no JSON ({" ".join(str(error).split())[:160]})'
    ) from error
  if not isinstance(body, dict):
    raise RequestError(f'{where}: got {short_repr(body)}, wanted a JSON object')
  return body


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise RequestError(f'{where}: key {short_repr(twice)} is there twice, wanted it once')
  return found


def refuse_unknown(where: str, got: Mapping[str, Any], known: Collection[str]) -> None:
  """Raises RequestError for a key that is not among `known`."""
  unknown = sorted(set(got) - set(known))
  if unknown:
    raise RequestError(
      f'{where}: unknown key {short_repr(unknown[0])}; wanted some of {sorted(known)}'
    )


def whole(name: str, value: Any, low: int, high: int) -> int:
  """Returns an integer in low..high. True and 1.0 are refused."""
  if type(value) is not int or not low <= value <= high:
    raise RequestError(f'{name}: got {short_repr(value)}, wanted an integer in {low}..{high}')
  return value


def number(name: str, value: Any, low: float, high: float) -> float:
  """Returns a number in low..high. NaN is refused."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
    raise RequestError(f'{name}: got {short_repr(value)}, wanted a number in {low:g}..{high:g}')
  return float(value)


def flag(name: str, value: Any) -> bool:
  """Returns true or false."""
  if not isinstance(value, bool):
    raise RequestError(f'{name}: got {short_repr(value)}, wanted true or false')
  return value


def section(name: str, value: Any) -> dict[str, Any]:
  """Returns an object. null is an empty object."""
  if value is not None and not isinstance(value, dict):
    raise RequestError(f'{name}: got {short_repr(value)}, wanted an object')
  return value or {}


def request_id(name: str, value: Any) -> str:
  """Returns a string of 1..LONGEST_ID characters."""
  if len(text(name, value)) > LONGEST_ID:
    raise RequestError(
      f'{name}: got {len(value)} characters, wanted at most {LONGEST_ID}: {short_repr(value)}'
    )
  return value


def text(name: str, value: Any) -> str:
  """Returns a string of at least one character."""
  if not isinstance(value, str) or not value:
    raise RequestError(f'{name}: got {short_repr(value)}, wanted a string that is not empty')
  return value


def texts(name: str, value: Any) -> list[str]:
  """Returns a list of strings. A single string is a list of one, and null is an empty list."""
  found = [] if value is None else [value] if isinstance(value, str) else value
  if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
    raise RequestError(f'{name}: got {short_repr(value)}, wanted a list of base64 strings')
  return found


def ids(name: str, value: Any, vocab_size: int) -> list[int]:
  """Returns token ids of the vocabulary."""
  if not isinstance(value, list) or not all(type(token) is int for token in value):
    raise RequestError(f'{name}: got {short_repr(value)}, wanted one flat list of integers')
  if value and (min(value) < 0 or max(value) >= vocab_size):
    wrong = next(token for token in value if not 0 <= token < vocab_size)
    raise RequestError(f'{name}: got {short_repr(wrong)}, wanted ids in 0..{vocab_size - 1}')
  return value


def biases(name: str, value: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
  """Returns sorted (id, bias) pairs of an object that maps ids to numbers within float32."""
  pairs = []
  for key, bias in section(name, value).items():
    if not isinstance(key, str) or not _ID.fullmatch(key) or int(key) >= vocab_size:
      raise RequestError(
        f'{name}: got {short_repr(key)}: {short_repr(bias)}, wanted ids in '
        f'0..{vocab_size - 1} as text'
      )
    pairs.append((int(key), number(f'{name}[{key}]', bias, -LARGEST_BIAS, LARGEST_BIAS)))
  return tuple(sorted(pairs))


def version(name: str, value: Any) -> int:
  """Returns a weight version: a number in 0..2**31 - 1, given as digits or as an integer.

  Raises:
    ValueError: for anything else. (Not RequestError, because this function also reads replies.)
  """
  if isinstance(value, str) and _ID.fullmatch(value):
    value = int(value)
  if type(value) is not int or not 0 <= value <= LARGEST_VERSION:
    raise ValueError(
      f'{name}: got {short_repr(value)}, wanted a whole number in 0..{LARGEST_VERSION}, as text '
      'such as "12"'
    )
  return value


def finite(values: Collection[float]) -> bool:
  """Returns whether all numbers are finite."""
  return all(map(math.isfinite, values))

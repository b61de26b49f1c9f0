"""Seeded generators: JSON values, texts of pieces, and mutations of texts and bytes."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator

NUMBERS = (0, 1, -1, 2, 41, 1e9, -1e9, 10**30, -(10**400), 0.5, 1e308, 1e-308, 2**31, 2**63, 2**64)
TEXTS = (
  '',
  ' ',
  'A',
  'B',
  '12',
  '1:30',
  '00:01:10,500',
  '1m10s',
  'NaN',
  'Infinity',
  '-Infinity',
  '../../etc/passwd',
  '/dev/zero',
  'file:///etc/passwd',
  'a\0b',
  '\ud800',
  '\ufffd',
  '\u202e',
  '🚗',
  '"',
  "'",
  '\\',
  '\n',
  '<|im_end|>',
  '<|image_pad|>',
  '<think>',
  '</tool_call>',
  '<video>',
  '{',
  '[[',
  'x' * 300,
  '1' * 400,
  '٣',
  '²',
)


def pick(rng: Rng, values: Sequence) -> Any:
  """Returns one of some values; not `rng.choice`, which would make an array of them."""
  return values[int(rng.integers(len(values)))]


def json_value(rng: Rng, depth: int = 3, extra: Sequence = ()) -> Any:
  """Returns a random JSON value, now and then one of `extra`."""
  kind = int(rng.integers(9 if depth else 6))
  if extra and rng.random() < 0.3:
    return pick(rng, extra)
  if kind == 0:
    return pick(rng, (None, True, False))
  if kind in (1, 2):
    return pick(rng, NUMBERS)
  if kind < 6:
    return pick(rng, TEXTS)
  size = int(rng.integers(4))
  if kind == 6:
    return [json_value(rng, depth - 1, extra) for _ in range(size)]
  return {str(pick(rng, TEXTS)): json_value(rng, depth - 1, extra) for _ in range(size)}


def change_json(rng: Rng, value: Any, extra: Sequence = ()) -> Any:
  """Returns a value with one change at a random place: replaced, removed, doubled, or a new key."""
  if rng.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
    return json_value(rng, 2, extra)
  if isinstance(value, list):
    at = int(rng.integers(len(value)))
    way = int(rng.integers(5))
    if way == 0:
      return value[:at] + value[at + 1 :]
    if way == 1:
      return value + [value[at]]
    return [*value[:at], change_json(rng, value[at], extra), *value[at + 1 :]]
  key = pick(rng, list(value))
  way = int(rng.integers(6))
  if way == 0:
    return {name: one for name, one in value.items() if name != key}
  if way == 1:
    return {**value, str(pick(rng, TEXTS)): json_value(rng, 1, extra)}
  return {**value, key: change_json(rng, value[key], extra)}


def text_of(rng: Rng, pieces: Sequence[str], most: int = 14) -> str:
  """Returns up to `most` pieces, joined."""
  return ''.join(pick(rng, pieces) for _ in range(int(rng.integers(most + 1))))


def change_text(rng: Rng, text: str, pieces: Sequence[str], most: int = 5) -> str:
  """Returns a text with up to `most` pieces put in, over some of its characters, and cuts."""
  for _ in range(int(rng.integers(most + 1))):
    at = int(rng.integers(len(text) + 1))
    way = int(rng.integers(8))
    if way == 0:
      text = text[:at]
    elif way == 1:
      text = text[:at] + text[int(rng.integers(len(text) + 1)) :]
    elif way == 2:
      text = text[:at] + text[at : at + 20] * int(rng.integers(2, 50)) + text[at:]
    else:
      text = text[:at] + pick(rng, pieces) + text[at + int(rng.integers(4)) :]
  return text


def change_bytes(rng: Rng, data: bytes, other: bytes = b'', most: int = 6) -> bytes:
  """Returns bytes with up to `most` changes: flips, numbers, cuts, holes, repeats, a splice."""
  changed = bytearray(data)
  for _ in range(int(rng.integers(1, most + 1))):
    size = len(changed)
    at = int(rng.integers(size + 1))
    way = int(rng.integers(10))
    if way <= 3 and at < size:
      changed[at] ^= 1 << int(rng.integers(8))
    elif way == 4 and at < size:
      changed[at] = int(rng.integers(256))
    elif way == 5:
      number = int(pick(rng, (0, 1, 0x7F, 0xFF, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)))
      packed = struct.pack(pick(rng, ('<I', '>I')), number)
      changed[at : at + 4] = packed[: max(0, size - at)]
    elif way == 6:
      del changed[at:]
    elif way == 7:
      del changed[at : at + int(rng.integers(1, 64))]
    elif way == 8:
      changed[at:at] = changed[at : at + int(rng.integers(1, 600))]
    elif other:
      changed[at:] = other[int(rng.integers(len(other))) :]
    else:
      changed[at : at + 32] = bytes(min(32, size - at))
  return bytes(changed)


def utf8(text: str) -> bytes:
  """Returns the bytes of a text that may hold lone surrogates; `text_from` reads them back."""
  return text.encode('utf-8', 'surrogatepass')


def text_from(data: bytes) -> str:
  """Returns the text of `utf8`."""
  return data.decode('utf-8', 'surrogatepass')

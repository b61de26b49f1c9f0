"""Values between processes: exact to the bit, and bytes that run nothing when they are read."""

import collections
import dataclasses
import enum
import math
import pathlib
import pickle
import random
import struct

import msgpack
import numpy as np
import pytest

from paravt_jax import wire
from paravt_jax.errors import DataError


class Kind(enum.StrEnum):
  GOOD = 'good'


class Level(enum.IntEnum):
  LOW = 3


@dataclasses.dataclass(frozen=True)
class Inner:
  name: str
  values: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Outer:
  kind: Kind
  level: Level
  parts: tuple[Inner, ...]
  facts: dict


KINDS = (Kind, Level, Inner, Outer)


def same(a, b):
  """Whether two values have the same types and bits throughout."""
  if type(a) is not type(b):
    return False
  if isinstance(a, np.ndarray | np.generic):
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
  if dataclasses.is_dataclass(a):
    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
  if isinstance(a, list | tuple):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, dict):
    return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
  return struct.pack('d', a) == struct.pack('d', b) if type(a) is float else a == b


@pytest.mark.parametrize(
  'value',
  [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**63),
    10**40,
    -(10**40),
    0.1,
    -0.0,
    math.inf,
    math.nan,
    struct.unpack('d', b'\1\2\3\4\5\6\xf8\xff')[0],  # a nan with a payload
    '',
    'кот\0\ud800',
    b'\0\xff',
    [],
    (),
    (1, [2, (3,)], {'a': (4,)}),
    {1: 'a', (2, 3): None, 'b': [1.5]},
    np.float32(0.1),
    np.float64(0.1),
    np.int64(-7),
    np.bool_(True),
    np.zeros((0, 3), np.float32),
    np.array(5, np.int32),
    np.array([[math.nan, -0.0, 1e-45]], np.float32),
    np.arange(6, dtype='>i4').reshape(2, 3),
    np.arange(12).reshape(3, 4).T,
    np.array([1 + 2j]),
    Kind.GOOD,
    [Level.LOW, 3],
    Outer(Kind.GOOD, Level.LOW, (Inner('x', np.ones(2, np.float16)),), {'n': (1, None)}),
  ],
  ids=lambda value: repr(value)[:30],
)
def test_a_value_comes_back_with_its_types_and_bits(value):
  assert same(wire.decode(wire.encode(value, KINDS), KINDS), value)


def test_an_array_that_came_back_can_be_written_to():
  assert wire.decode(wire.encode(np.zeros(3))).flags.writeable


@pytest.mark.parametrize(
  'value',
  [
    pathlib.Path('x'),
    {1, 2},
    collections.Counter('aab'),
    Inner('x', np.zeros(1)),
    np.array(['a', None], object),
    np.array(['2026-01-01'], 'datetime64[D]'),
    len,
    [lambda: 0],
  ],
  ids=lambda value: type(value).__name__,
)
def test_an_object_of_another_class_is_not_sent(value):
  with pytest.raises(TypeError, match='cannot be sent to another process; name its class'):
    wire.encode(value, (Outer,))


def extension(code, *parts):
  return msgpack.packb(msgpack.ExtType(code, msgpack.packb(list(parts))))


HOSTILE = {
  'a pickle': pickle.dumps(Kind.GOOD),
  'nothing': b'',
  'more after it': wire.encode(1) + b'\0',
  'an unknown class': wire.encode(Kind.GOOD, KINDS).replace(b'Kind', b'Evil'),
  'a record of a class of Python': extension(4, 'Popen', {'args': 'true'}),
  'a field too much': extension(4, 'Inner', {'name': 'x', 'values': 1, 'more': 2}),
  'a field missing': extension(4, 'Inner', {'name': 'x'}),
  'no fields': extension(4, 'Inner', 7),
  'no such member': extension(5, 'Kind', 'bad'),
  'an array of objects': extension(2, '|O', [1], b'\0' * 8),
  'an array larger than its bytes': extension(2, '<f4', [10**12], b'\0' * 8),
  'an array of nothing known': extension(2, 'evil', [1], b'\0'),
  'an empty scalar': extension(3, '<f4', b''),
  'a number that takes hours': msgpack.packb(msgpack.ExtType(6, b'f' * 10**6)),
  'another extension': msgpack.packb(msgpack.ExtType(99, b'')),
  'a list of 4 billion': b'\xdd\xff\xff\xff\xff',
  'lists in lists': b'\x91' * 100_000,
  'a key that cannot be one': b'\x81\x90\x01',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_wrong_bytes_are_one_clear_error(name):
  with pytest.raises(DataError, match='from another process cannot be read'):
    wire.decode(HOSTILE[name], KINDS)


def test_tuples_in_tuples_are_read_to_a_depth_and_no_further():
  """Beyond it the reader's stack would overflow, which ends the process."""
  value = ()
  for _ in range(63):
    value = (value,)
  data = wire.encode(value)
  assert wire.decode(data) == value
  with pytest.raises(ValueError, match='more than 64 tuples or objects in each other'):
    wire.encode(((value,),))
  for _ in range(3000):
    data = msgpack.packb(msgpack.ExtType(1, msgpack.packb([msgpack.unpackb(data)])))
  with pytest.raises(DataError, match='more than 64 tuples'):
    wire.decode(data)


def test_flipped_bits_are_a_value_or_that_error():
  good = wire.encode(Outer(Kind.GOOD, Level.LOW, (Inner('x', np.ones(9)),), {'n': 10**30}), KINDS)
  draws, refused = random.Random(0), 0
  for _ in range(3000):
    data = bytearray(good)
    data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    try:
      wire.decode(bytes(data), KINDS)
    except DataError:
      refused += 1
  assert 300 < refused < 3000

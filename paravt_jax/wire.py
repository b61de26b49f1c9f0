"""Values as bytes between processes of one run, exact to the bit; reading them runs no code.

A pickle may run any code of whoever sends it. These bytes hold plain values, NumPy arrays, and
objects of classes that the reader names beforehand:

    data = wire.encode(Facts(groups, advantage_E), KINDS)
    facts = wire.decode(data, KINDS)

MessagePack carries them. Its extension types hold what it has no type for, so a tuple stays a tuple,
float32 stays float32, and nan keeps its bits.
"""

import dataclasses
import enum
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack
import numpy as np

from paravt_jax.errors import DataError

_TUPLE, _ARRAY, _SCALAR, _RECORD, _ENUM, _WHOLE = range(1, 7)
# what wrong bytes raise; an object's own checks raise ValueError or TypeError too
_UNREADABLE = (ValueError, TypeError, LookupError, OverflowError, RecursionError, AttributeError)
_NUMBERS = 'biufc'  # kinds of NumPy types whose bytes are all there is to them
_DEEPEST = 64  # tuples and objects in each other; more would overflow the reader's stack
_TYPE = re.compile(rf'[<>|][{_NUMBERS}][0-9]{{1,2}}')
_LARGEST_WHOLE = 4096  # digits of an int beyond 64 bits, above which Python refuses to read it


def encode(value: Any, kinds: Iterable[type] = ()) -> bytes:
  """Returns a value as bytes.

  Args:
    value: None, bool, int, float, str, bytes; lists, tuples and dicts of values; NumPy arrays and
      numbers; objects of `kinds`.
    kinds: data classes and enumerations, with different names.

  Raises:
    TypeError: it holds an object of another class.
    ValueError: it is nested too deeply.
  """
  return _pack(value, frozenset(kinds), 0)


def decode(data: bytes, kinds: Iterable[type] = ()) -> Any:
  """Returns the value of `encode`, with its types.

  Args:
    data: may come from anyone.
    kinds: as in `encode`. Objects of other classes are refused.

  Raises:
    DataError: these are not the bytes of such a value.
  """
  known = {kind.__name__: kind for kind in kinds}
  try:
    return _unpack(data, known, 0)
  except (*_UNREADABLE, msgpack.UnpackException) as error:
    raise DataError(
      f'a message of {len(data)} bytes from another process cannot be read '
      f'({type(error).__name__}: {" ".join(str(error).split())[:160]}); start all processes with '
      'the same version of this project'
    ) from error


def _pack(value: Any, kinds: frozenset[type], depth: int) -> bytes:
  # strict: subclasses of str, int and dict are no plain values
  packed: Any = msgpack.Packer(
    default=functools.partial(_extension, kinds=kinds, depth=depth + 1),
    strict_types=True,
    unicode_errors='surrogatepass',
  ).pack(value)
  return packed


def _extension(value: Any, kinds: frozenset[type], depth: int) -> msgpack.ExtType:
  """Returns what stands for a value of a type that MessagePack lacks."""
  kind = type(value)
  _check_depth(depth)
  if kind is tuple:
    return msgpack.ExtType(_TUPLE, _pack(list(value), kinds, depth))
  if kind is np.ndarray and value.dtype.kind in _NUMBERS:
    parts = [value.dtype.str, list(value.shape), value.tobytes()]
    return msgpack.ExtType(_ARRAY, _pack(parts, kinds, depth))
  if isinstance(value, np.generic) and value.dtype.kind in _NUMBERS:
    return msgpack.ExtType(_SCALAR, _pack([value.dtype.str, value.tobytes()], kinds, depth))
  if kind is int:  # beyond 64 bits
    return msgpack.ExtType(_WHOLE, hex(int(value)).encode())
  if kind in kinds and isinstance(value, enum.Enum):
    return msgpack.ExtType(_ENUM, _pack([kind.__name__, value.value], kinds, depth))
  if kind in kinds and dataclasses.is_dataclass(kind):
    fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(kind)}
    return msgpack.ExtType(_RECORD, _pack([kind.__name__, fields], kinds, depth))
  raise TypeError(
    f'{kind.__module__}.{kind.__qualname__}: such an object cannot be sent to another process; '
    'name its class in `kinds`, or send plain values'
  )


def _check_depth(depth: int) -> None:
  if depth > _DEEPEST:
    raise ValueError(f'more than {_DEEPEST} tuples or objects in each other')


def _unpack(data: bytes, known: Mapping[str, type], depth: int) -> Any:
  return msgpack.unpackb(
    data,
    ext_hook=functools.partial(_restore, known=known, depth=depth + 1),
    strict_map_key=False,
    unicode_errors='surrogatepass',
  )


def _restore(code: int, data: bytes, known: Mapping[str, type], depth: int) -> Any:
  """Returns the value that `_extension` has written."""
  _check_depth(depth)
  if code == _WHOLE:
    if len(data) > _LARGEST_WHOLE:
      raise ValueError(f'an int of {len(data)} digits')
    return int(data, 16)
  parts = _unpack(data, known, depth)
  if code == _TUPLE:
    return tuple(parts)
  if code in (_ARRAY, _SCALAR):
    # NumPy would parse other texts as Python
    if not _TYPE.fullmatch(parts[0]):
      raise ValueError(f'an array of {parts[0][:20]!r}')
    kind = np.dtype(parts[0])
    if code == _SCALAR:
      return np.frombuffer(parts[1], kind)[0]
    return np.frombuffer(parts[2], kind).reshape(parts[1]).copy()
  if code not in (_RECORD, _ENUM):
    raise ValueError(f'extension {code}')
  found = known[parts[0]]
  return found(**parts[1]) if code == _RECORD else found(parts[1])

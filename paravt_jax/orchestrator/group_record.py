"""Finished groups that no step has trained, as a file of a record.

    <root>/00000012/groups.bin

The file is a row of messages (`wire`), each behind its length in eight bytes, so no message is as
large as all of them: images, each once, and after its images a group with their numbers. The last
message counts the groups; a file without it is cut off.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from paravt_jax import wire
from paravt_jax.errors import CheckpointError, DataError
from paravt_jax.orchestrator.step_facts import KINDS
from paravt_jax.rollout import groups
from paravt_jax.types import Group, Segment

FILE = 'groups.bin'
_LENGTH = struct.Struct('<Q')
_WRONG = (DataError, EOFError, OSError, ValueError, TypeError, LookupError)


@dataclasses.dataclass(frozen=True)
class Finished:
  """A group that waits for its step."""

  position: int  # in the order of the data
  began: int  # the delivered version with which it began
  group: Group


def files(finished: Sequence[Finished]) -> Mapping[str, Callable[[pathlib.Path], None]]:
  """Returns the record's file of these groups as `checkpoint.Writer.save` takes it.

  Without groups there is none.
  """
  return {FILE: lambda path: write(path, finished)} if finished else {}


def write(path: pathlib.Path, finished: Sequence[Finished]) -> None:
  """Writes groups to a file. Frames that several episodes have seen are in it once.

  Raises:
    OSError: the disk is full, or the folder cannot be written.
  """
  numbers: dict[tuple[tuple[int, ...], bytes], int] = {}
  with path.open('wb') as file:
    for one in finished:
      of_segments: list[tuple[int, ...]] = []

      def bare(segment: Segment, found: list[tuple[int, ...]] = of_segments) -> Segment:
        found.append(tuple(_number(file, image, numbers) for image in segment.images))
        return dataclasses.replace(segment, images=())

      group = groups.map_segments(one.group, bare)
      _send(file, ('group', one.position, one.began, group, of_segments))
    _send(file, ('end', len(finished)))


def read(folder: pathlib.Path) -> tuple[Finished, ...]:
  """Returns the groups in a record's folder. None if it has no such file.

  Raises:
    CheckpointError: the file is cut off or damaged.
  """
  path = folder / FILE
  if not path.exists():
    return ()
  try:
    with path.open('rb') as file:
      return tuple(_groups(file))
  except _WRONG as error:
    raise CheckpointError(
      f'{path}: cut off or damaged ({type(error).__name__}: {str(error)[:200]}); delete {folder} '
      'to fall back on an earlier record'
    ) from error


def _groups(file: BinaryIO) -> Iterator[Finished]:
  images: list[np.ndarray] = []
  count = 0
  while True:
    kind, *rest = _receive(file)
    if kind == 'image':
      images.append(rest[0])
    elif kind == 'group':
      position, began, group, of_segments = rest
      count += 1
      whole = functools.partial(_whole, left=iter(of_segments), images=images)
      yield Finished(position, began, groups.map_segments(group, whole))
    elif (kind, rest) == ('end', [count]):
      return
    else:
      raise ValueError(f'got {kind!r} behind {count} groups')


def _whole(segment: Segment, left: Iterator[tuple[int, ...]], images: list[np.ndarray]) -> Segment:
  return dataclasses.replace(segment, images=tuple(images[number] for number in next(left)))


def _number(
  file: BinaryIO, image: np.ndarray, numbers: dict[tuple[tuple[int, ...], bytes], int]
) -> int:
  """Returns an image's number in the file, and writes the image if it is new."""
  content = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
  key = (image.shape, content)
  if key not in numbers:
    numbers[key] = len(numbers)
    _send(file, ('image', image))
  return numbers[key]


def _send(file: BinaryIO, message: Any) -> None:
  data = wire.encode(message, KINDS)
  file.write(_LENGTH.pack(len(data)))
  file.write(data)


def _receive(file: BinaryIO) -> Any:
  (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
  return wire.decode(_exactly(file, length), KINDS)


def _exactly(file: BinaryIO, length: int) -> bytes:
  left = os.fstat(file.fileno()).st_size - file.tell()
  if left < length:  # asked before memory is taken for it
    raise EOFError(f'{left} of {length} bytes are left')
  return file.read(length)

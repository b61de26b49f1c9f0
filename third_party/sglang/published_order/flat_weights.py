"""Weights that the learner has written as one flat file in memory.

A weight update names a folder, in which SGLang finds one small safetensors file. Its only tensor,
`paravt.flat`, is JSON that says where the flat file is, what each of its arrays hashes to, and
which part of it each tensor of the model is. The model's `load_weights` (qwen3_vl.py) comes here
with it.

The whole file is checked before the first tensor is handed on, so wrong bytes change nothing.

For a server on another machine, the JSON may instead say which values changed since the version
before. They are applied to a copy of that version, which this process keeps where it is told to.
"""

import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import xxhash

NAME = 'paravt.flat'  # paravt_jax/serving/described.py writes it
FORMAT = 1
SKIP = 255  # a gap between changed values that marks none
THREADS = 4


class WrongWeights(Exception):
  """The file is not what was published."""


class Kept:
  """The bytes of the newest version, for changes of it."""

  def __init__(self) -> None:
    self.version: int | None = None
    self.data: np.ndarray | None = None

  def forget(self) -> None:
    self.version = self.data = None


def tensors(
  description: torch.Tensor, device: torch.device, kept: Kept
) -> Iterator[tuple[str, torch.Tensor]]:
  """Returns an iterator over (name, tensor on the device) after all bytes were checked.

  Raises:
    WrongWeights: a file is missing, of another size, or has other content, or the changes are of a
    version that is not kept.
  """
  page = json.loads(bytes(description.tolist()))
  if page.get('format') != FORMAT:
    raise WrongWeights(f'weights of format {page.get("format")}, wanted {FORMAT}')
  if 'changes' in page:
    try:
      data = _changed(page, kept)
    except (ValueError, IndexError) as error:  # places and values that do not fit each other
      kept.forget()
      raise WrongWeights(f'{page["changes"]["file"]}: {error}') from error
  else:
    data = _map(page['file'], page['bytes'])
    if page['keep']:
      data = data.copy()
  kept.forget()  # what changes were applied to is another version now
  _check(page, data)
  if page['keep']:
    kept.version, kept.data = page['version'], data
  return _views(page, data, device)


def _changed(page: dict[str, Any], kept: Kept) -> np.ndarray:
  """Returns the kept bytes with the changes in them. They are written where they lie."""
  found = page['changes']
  if kept.data is None or kept.version != found['base']:
    raise WrongWeights(f'changes of version {found["base"]}, kept is {kept.version}')
  data, at = kept.data, 0
  try:
    changed = np.fromfile(found['file'], np.uint8)
  except OSError as error:
    raise WrongWeights(f'{found["file"]}: {error.strerror}') from error
  if len(changed) != found['bytes']:
    raise WrongWeights(f'{found["file"]}: {len(changed)} bytes, wanted {found["bytes"]}')
  for name, (count, values, width) in found['arrays'].items():
    first, size, _ = page['arrays'][name]
    places, end = changed[at : at + count], at + count + values * width
    marks = places != SKIP
    ends = np.cumsum(places.astype(np.int64) + marks)[marks] - 1
    if len(ends) != values or (values and ends[-1] >= size // width):
      kept.forget()
      raise WrongWeights(f'{found["file"]}: the changes of {name!r} do not fit it')
    new = np.frombuffer(changed[at + count : end].tobytes(), f'u{width}')
    data[first : first + size].view(f'u{width}')[ends] = new
    at = end
  return data


def _map(file: str, size: int) -> np.ndarray:
  try:
    with open(file, 'rb') as opened:
      found = os.fstat(opened.fileno()).st_size
      if found != size:
        raise WrongWeights(f'{file}: {found} bytes, wanted {size}')
      flags = mmap.MAP_PRIVATE | getattr(mmap, 'MAP_POPULATE', 0)
      # writable, because torch warns of memory that is not; the file stays as it is (MAP_PRIVATE)
      both = mmap.PROT_READ | mmap.PROT_WRITE
      return np.frombuffer(mmap.mmap(opened.fileno(), size, flags=flags, prot=both), np.uint8)
  except OSError as error:
    raise WrongWeights(f'{file}: {error.strerror}') from error


def _check(page: dict[str, Any], data: np.ndarray) -> None:
  """Compares each array's hash: that of the hashes of its blocks."""
  step = page['block']

  def digest(start: int, stop: int) -> bytes:
    return xxhash.xxh3_128_digest(data[start:stop].data)

  with ThreadPoolExecutor(THREADS) as pool:
    waiting = []
    for name, (first, size, wanted) in page['arrays'].items():
      ends = [(at, min(at + step, first + size)) for at in range(first, first + max(size, 1), step)]
      waiting.append((name, wanted, [pool.submit(digest, *pair) for pair in ends]))
    for name, wanted, blocks in waiting:
      if xxhash.xxh3_128_hexdigest(b''.join(block.result() for block in blocks)) != wanted:
        raise WrongWeights(f'{page["file"]}: {name!r} has other content than was published')


def _views(
  page: dict[str, Any], data: np.ndarray, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
  for name, (first, dtype, shape, strides) in page['tensors'].items():
    kind = getattr(torch, dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    flat = torch.frombuffer(data, dtype=kind, count=span, offset=first)
    # to the device as it lies in the file: another order of its axes costs nothing there
    yield name, torch.as_strided(flat.to(device), shape, strides)

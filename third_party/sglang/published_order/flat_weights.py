"""Weights that the learner has written as one flat file in memory.

A weight update names a folder, in which SGLang finds one small safetensors file. Its only tensor,
`paravt.flat`, is JSON that says where the flat file is, what each of its arrays hashes to, and
which part of it each tensor of the model is. The model's `load_weights` (qwen3_vl.py) comes here
with it.

The whole file is checked before the first tensor is handed on, so wrong bytes change nothing.
"""

import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import xxhash

NAME = 'paravt.flat'  # paravt_jax/serving/staging.py writes it
FORMAT = 1
THREADS = 4


class WrongWeights(Exception):
  """The file is not what was published."""


def tensors(description: torch.Tensor, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
  """Returns an iterator over (name, tensor on the device) after the whole file was checked.

  Raises:
    WrongWeights: the file is missing, of another size, or has other content.
  """
  page = json.loads(bytes(description.tolist()))
  if page.get('format') != FORMAT:
    raise WrongWeights(f'weights of format {page.get("format")}, wanted {FORMAT}')
  data = _map(page['file'], page['bytes'])
  _check(page, data)
  return _views(page, data, device)


def _map(file: str, size: int) -> memoryview:
  try:
    with open(file, 'rb') as opened:
      found = os.fstat(opened.fileno()).st_size
      if found != size:
        raise WrongWeights(f'{file}: {found} bytes, wanted {size}')
      flags = mmap.MAP_PRIVATE | getattr(mmap, 'MAP_POPULATE', 0)
      # writable, because torch warns of memory that is not; the file stays as it is (MAP_PRIVATE)
      both = mmap.PROT_READ | mmap.PROT_WRITE
      return memoryview(mmap.mmap(opened.fileno(), size, flags=flags, prot=both))
  except OSError as error:
    raise WrongWeights(f'{file}: {error.strerror}') from error


def _check(page: dict[str, Any], data: memoryview) -> None:
  """Compares each array's hash: that of the hashes of its blocks."""
  step = page['block']

  def digest(start: int, stop: int) -> bytes:
    return xxhash.xxh3_128_digest(data[start:stop])

  with ThreadPoolExecutor(THREADS) as pool:
    waiting = []
    for name, (first, size, wanted) in page['arrays'].items():
      ends = [(at, min(at + step, first + size)) for at in range(first, first + max(size, 1), step)]
      waiting.append((name, wanted, [pool.submit(digest, *pair) for pair in ends]))
    for name, wanted, blocks in waiting:
      if xxhash.xxh3_128_hexdigest(b''.join(block.result() for block in blocks)) != wanted:
        raise WrongWeights(f'{page["file"]}: {name!r} has other content than was published')


def _views(
  page: dict[str, Any], data: memoryview, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
  for name, (first, dtype, shape, strides) in page['tensors'].items():
    kind = getattr(torch, dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    flat = torch.frombuffer(data, dtype=kind, count=span, offset=first)
    # to the device as it lies in the file: another order of its axes costs nothing there
    yield name, torch.as_strided(flat.to(device), shape, strides)

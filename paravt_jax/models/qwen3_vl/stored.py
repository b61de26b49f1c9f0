"""Reads the tensors of checkpoint folders in all the variants that transformers loads.

Folders may use older names, contain derived buffers, or store single tensors in another dtype.
"""

import collections
import contextlib
import json
import logging
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from paravt_jax.errors import DataError

HEAD, EMBEDDING = 'lm_head.weight', 'model.language_model.embed_tokens.weight'
_DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype.name: name for name, dtype in _DTYPES.items()}
# buffers that we compute from the config instead
_DERIVED = re.compile(r'(?:.*\.)?rotary(?:_pos)?_emb\.(?:original_)?inv_freq')
_OLDER = (
  # names without `model.` come from a backbone saved alone, or from an older version
  (re.compile(r'(visual|language_model)\.'), r'model.\1.'),
  (
    re.compile(r'model\.(?!visual\.|language_model\.)(?=(?:embed_tokens|layers|norm)\.)'),
    'model.language_model.',
  ),
)
_ROWS = 4096  # rows that are compared at a time
_BLOCK_BYTES = 16 << 20  # stored bytes that are read and cast at a time


class Stored(NamedTuple):
  """One tensor of a checkpoint."""

  name: str  # in current versions of transformers
  key: str  # in the file
  file: pathlib.Path
  dtype: str  # safetensors' name, such as 'BF16'
  shape: tuple[int, ...]


def tensors(files: Iterable[pathlib.Path]) -> dict[str, Stored]:
  """Returns the tensors of some files by their current name, without rotary buffers.

  Raises:
    DataError: a file is unreadable, or a tensor is stored twice.
  """
  found: dict[str, Stored] = {}
  for file in files:
    try:
      with safe_open(file, 'np') as opened:
        for key in sorted(opened.keys()):
          if not _DERIVED.fullmatch(key):
            tensor = opened.get_slice(key)
            new = Stored(_today(key), key, file, tensor.get_dtype(), tuple(tensor.get_shape()))
            if new.name in found:
              raise DataError(
                f'{file}: {key} is stored twice (also as {found[new.name].key} in '
                f'{found[new.name].file.name}), wanted '
                'it once; remove files that the index does not name, or export again'
              )
            found[new.name] = new
    except (SafetensorError, OSError) as error:
      raise DataError(
        f'{file}: not readable as safetensors ({error}); copy or download it again'
      ) from error
  return found


def main_dtype(found: Sequence[Stored]) -> np.dtype:
  """Returns the dtype of most numbers; float32 when no tensor is stored.

  Raises DataError for an unsupported dtype.
  """
  sizes: collections.Counter[str] = collections.Counter()
  for tensor in found:
    if tensor.dtype not in _DTYPES:
      raise DataError(
        f'{tensor.file}: {tensor.key} is {tensor.dtype}, wanted one of {sorted(_DTYPES)}; '
        'use an unquantised checkpoint'
      )
    sizes[tensor.dtype] += math.prod(tensor.shape)
  return _DTYPES[sizes.most_common(1)[0][0]] if sizes else np.dtype(np.float32)


def arrays(
  file: pathlib.Path, chosen: Sequence[Stored], dtype: np.dtype
) -> Iterator[tuple[Stored, np.ndarray]]:
  """Yields (tensor, array) for each chosen tensor of a file, cast to one dtype.

  One tensor is read at a time.

  Raises:
    DataError: the file is unreadable, or the dtype cannot represent a number.
  """
  try:
    with safe_open(file, 'np') as opened:
      for tensor in sorted(chosen):
        array = _cast(tensor, opened.get_tensor(tensor.key), dtype)
        yield tensor, array
  except (SafetensorError, OSError) as error:
    raise DataError(
      f'{file}: not readable as safetensors ({error}); copy or download it again'
    ) from error


def _cast(tensor: Stored, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns the array in the dtype. Raises DataError if that cannot represent a number."""
  if array.dtype == dtype:
    return array
  with np.errstate(over='ignore'):
    cast = array.astype(dtype)
  if not np.isfinite(cast[np.isfinite(array)]).all():
    raise DataError(
      f'{tensor.file}: {tensor.key} is {tensor.dtype} with numbers that {dtype} cannot '
      'hold, wanted one dtype; '
      'export the model in bfloat16 or float32'
    )
  return cast


class Reader:
  """Reads regions of tensors from mapped files.

  Args:
    dtype: the main dtype of the checkpoint. Tensors of another dtype are cast to it.

  `bytes_read` counts the stored bytes that were read.
  """

  def __init__(self, dtype: np.dtype):
    self._dtype, self.bytes_read = dtype, 0
    self._stack = contextlib.ExitStack()
    self._files: dict[pathlib.Path, Any] = {}

  def __enter__(self) -> 'Reader':
    return self

  def __exit__(self, *_: object) -> None:
    self._files.clear()
    self._stack.close()

  def blocks(
    self, tensor: Stored, region: tuple[slice, ...]
  ) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (start, stop, rows) along the first axis of a region, in blocks of a few MB.

    A block bounds the memory that casting and transposing need beside the result. `start` counts
    from the beginning of the region.

    Raises:
      DataError: the file is unreadable, or the dtype cannot represent a number.
    """
    ends = [part.indices(size)[:2] for part, size in zip(region, tensor.shape)]
    first, last = ends[0]
    row = math.prod(stop - start for start, stop in ends[1:]) * _DTYPES[tensor.dtype].itemsize
    step = max(_BLOCK_BYTES // max(row, 1), 1)
    rest = tuple(slice(*end) for end in ends[1:])
    for start in range(first, last, step):
      stop = min(start + step, last)
      try:
        array = self._open(tensor.file).get_slice(tensor.key)[(slice(start, stop), *rest)]
      except (SafetensorError, OSError) as error:
        raise DataError(
          f'{tensor.file}: not readable as safetensors ({error}); copy or download it again'
        ) from error
      self.bytes_read += (stop - start) * row
      yield start - first, stop - first, _cast(tensor, array, self._dtype)

  def _open(self, file: pathlib.Path) -> Any:
    if file not in self._files:
      self._files[file] = self._stack.enter_context(safe_open(file, 'np'))
    return self._files[file]


def header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
  """Returns the start of a safetensors file of these (dtype, shape, bytes).

  `dtype` is numpy's name. The arrays follow the header in the same order.
  """
  named: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, (dtype, shape, size) in tensors.items():
    named[name] = {'dtype': _NAMES[dtype], 'shape': shape, 'data_offsets': (end, end + size)}
    end += size
  text = json.dumps(named, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def refuse_other_head(head: Stored, embedding: Stored) -> None:
  """Raises DataError if the stored head of a tied model differs from its embedding."""
  same = head.shape == embedding.shape
  if same:
    try:
      with safe_open(head.file, 'np') as first, safe_open(embedding.file, 'np') as second:
        one, other = first.get_slice(head.key), second.get_slice(embedding.key)
        # safetensors rejects a slice beyond the end, so the last block ends exactly there
        ends = [*range(_ROWS, head.shape[0], _ROWS), head.shape[0]]
        same = all(
          np.array_equal(one[start:end].astype(np.float32), other[start:end].astype(np.float32))
          for start, end in zip([0, *ends], ends)
        )
    except (SafetensorError, OSError) as error:
      raise DataError(
        f'{head.file}: not readable as safetensors ({error}); copy or download it again'
      ) from error
  if not same:
    raise DataError(
      f'{head.file}: {head.key} is not {embedding.key}, wanted it equal, for config.json '
      'says tie_word_embeddings; set that '
      'to false if the model was trained with a separate head, else remove the tensor'
    )


def tell_casts(folder: pathlib.Path, found: Sequence[Stored], dtype: np.dtype) -> None:
  """Logs one warning if tensors had another dtype than the model; no line otherwise."""
  other = sorted(tensor for tensor in found if _DTYPES.get(tensor.dtype) != dtype)
  if other:
    logging.getLogger(__name__).warning(
      '%s: %d tensors are not %s like most and were cast to it, such as %s (%s)',
      folder,
      len(other),
      dtype,
      other[0].key,
      other[0].dtype,
    )


def _today(key: str) -> str:
  """Returns the name that current versions of transformers write for a key."""
  for pattern, new in _OLDER:
    if pattern.match(key):
      return pattern.sub(new, key, count=1)
  return key


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Returns the content of a JSON file of a checkpoint folder. Raises DataError without one."""
  try:
    return json.loads(file.read_text())
  except OSError as error:
    raise DataError(
      f'{file}: cannot be read ({error.strerror}), wanted a Hugging Face checkpoint folder; '
      'check the path'
    ) from error
  except ValueError as error:
    raise DataError(f'{file}: is not JSON ({error}); copy or download it again') from error

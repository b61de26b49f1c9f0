"""Flat versions for SGLang: one small file that says where the arrays are (third_party/sglang).

The file is safetensors, which SGLang finds in the folder of an update. Its only tensor is JSON.
SGLang's Qwen3-VL of `third_party/sglang/published_order` reads it; another one would ignore it,
which the canary notices.
"""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.serving import changes, flat, manifest
from paravt_jax.serving.manifest import Manifest

WEIGHTS = 'model.safetensors'
TENSOR = 'paravt.flat'
_FORMAT = 1


def write(
  folder: pathlib.Path, config: Config, published: pathlib.Path, page: Manifest, *, keep: bool
) -> None:
  """Writes the description of a version in one flat file, or of its changes.

  Args:
    published: the folder of the flat file or of the changes, as the server will see it.
    page: the manifest of the flat file.
    keep: the server keeps the arrays, because changes of them follow.

  Raises:
    OSError: no space, or no permission. SyncError: broken changes.
  """
  starts, size = flat.offsets(page.arrays)
  arrays = {
    name: (starts[name], flat.entry_bytes(entry), entry.shards[0].hash)
    for name, entry in page.arrays.items()
  }
  said: dict[str, Any] = {
    'format': _FORMAT,
    'version': page.version,
    'keep': keep,
    'file': str(published / flat.FILE),
    'bytes': size,
    'block': manifest.BLOCK,
    'arrays': arrays,
    'tensors': _tensors(config, page),
  }
  if changes.is_changes(published):
    base, counts = changes.index(published)
    width = {name: np.dtype(entry.dtype).itemsize for name, entry in page.arrays.items()}
    said['changes'] = {
      'base': base,
      'file': str(published / changes.FILE),
      'bytes': changes.size(published),
      'arrays': {name: (*counts[name], width[name]) for name in sorted(counts)},
    }
  text = np.frombuffer(json.dumps(said).encode(), np.uint8)
  safetensors.numpy.save_file({TENSOR: text}, folder / WEIGHTS)


def _tensors(config: Config, page: Manifest) -> dict[str, Any]:
  """Returns {name of Hugging Face: (first byte, dtype, shape, strides)} of each tensor."""
  starts, _ = flat.offsets(page.arrays)
  empty = {  # as large as the arrays, and without memory of their own
    name: np.lib.stride_tricks.as_strided(
      np.empty(1, entry.dtype), entry.shape, _strides(entry.shape, np.dtype(entry.dtype).itemsize)
    )
    for name, entry in page.arrays.items()
  }
  params, found = manifest.nest(empty), {}
  for name, slot in weights.name_table(config).items():
    path = '/'.join(slot.path)
    if path in empty:
      view = weights.pick_view(config, params, slot)
      offset = _address(view) - _address(empty[path])
      steps = [step // view.itemsize for step in view.strides]
      found[name] = starts[path] + offset, view.dtype.name, view.shape, steps
  return found


def _address(array: np.ndarray) -> int:
  return array.__array_interface__['data'][0]


def _strides(shape: tuple[int, ...], width: int) -> tuple[int, ...]:
  """Returns the strides in bytes of a contiguous array."""
  ends = np.cumprod([1, *shape[:0:-1]])[::-1] * width
  return tuple(int(step) for step in ends) if shape else ()

"""Runs the ragged paged kernel of TPUs on the host, in JAX's interpreter.

The interpreter of JAX 0.10.2 lacks three things that the kernel does: it reads through references
of another shape, and of another dtype, and it writes under a mask to arrays of any shape.
"""

import contextlib
import functools

import jax
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call, shared_memory, utils
from jax._src.state import indexing, types
from jax.experimental.pallas import tpu as pltpu


@contextlib.contextmanager
def interpreted():
  """Runs the kernels of TPUs on the host."""
  with pytest.MonkeyPatch.context() as patch, pltpu.force_tpu_interpret_mode():
    patch.setattr(interpret_pallas_call, 'get', _reading(interpret_pallas_call.get))
    memory = shared_memory.SharedMemory
    patch.setattr(memory, 'swap_buffer_content', _writing(memory.swap_buffer_content))
    yield


def _reading(plain):
  @functools.wraps(plain)
  def get(token, device, core, space, buffer, transforms, *rest, **named):
    plainly = [isinstance(one, indexing.NDIndexer) for one in transforms]
    first = plainly.index(False) if False in plainly else len(transforms)
    read = transforms[:first]
    token, array = plain(token, device, core, space, buffer, read, *rest, **named)
    for one in transforms[first:]:
      array = _transformed(array, one)
    return token, array

  get.__wrapped__ = plain.__wrapped__  # without its own handling of errors
  return get


def _transformed(array, transform):
  if isinstance(transform, types.ReshapeTransform):
    return array.reshape([int(size) for size in transform.shape])
  if isinstance(transform, types.BitcastTransform):  # of rows of 16 bits to half as many of 32
    assert array.dtype.itemsize == 2 and np.dtype(transform.dtype).itemsize == 4
    halves = array.view(np.uint16).astype(np.uint32)
    return halves[0::2] | halves[1::2] << 16
  return array[utils.to_range(jax.tree.map(int, (transform,)))]


def _writing(plain):
  @functools.wraps(plain)
  def swap(self, key, where, value, mask, *rest, **named):
    if mask is not None:
      value = np.where(mask, value, self.mem[key][where])
    return plain(self, key, where, value, None, *rest, **named)

  return swap

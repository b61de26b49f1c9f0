"""Keeps the memory of a step in the process, on a CPU.

A step needs one large block for its temporary arrays. By default glibc returns it to the system
after every step. The next step then gets the same amount again, page by page, each filled with
zeros first: about a tenth of the time of a small model's step. On other platforms the device's own
allocator does this already.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys
from typing import Any

import jax

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1  # bytes; the largest threshold that there is


def keep_pages() -> bool:
  """Makes freed memory stay in this process if JAX has only CPUs.

  The process keeps the most memory that it ever had. Call it before JAX makes its first device: its
  threads then share one heap. A thread that has made a heap of its own keeps it, and large blocks
  do not fit in there. Further calls change nothing.

  Returns:
    Whether it took effect. It does not without glibc, or where JAX may find an accelerator.
  """
  if not _cpu_alone() or not sys.platform.startswith('linux'):
    return False
  set_option = getattr(ctypes.CDLL(None), 'mallopt', None)  # musl has none
  if set_option is None:
    return False
  # one arena, because only the main one is a heap that large blocks fit into
  options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
  return all(bool(set_option(name, ctypes.c_int(value))) for name, value in options.items())


def _cpu_alone() -> bool:
  """Returns whether JAX has no other platform than the CPU. It asks for no device."""
  config: Any = jax.config  # its stubs name no options
  named = config.jax_platforms
  if named:
    return named == 'cpu'
  # how JAX finds them
  return (
    not importlib.metadata.entry_points(group='jax_plugins')
    and importlib.util.find_spec('libtpu') is None
  )

"""Attention on the device against plain attention in float32: values, gradients, memory, speed."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.attention import plain, ranges, tiled, triton
from tests.models.attention import layouts


@dataclasses.dataclass(frozen=True)
class Size:
  """Sizes of the rows and heads."""

  documents: tuple  # of the row that is compared, as in layouts.rows
  length: int
  long: tuple[np.ndarray, np.ndarray]  # segments and branches of the row that is timed
  heads: int
  kv_heads: int
  width: int
  kernel: triton.Kernel
  image_patches: int
  repeats: int


FULL = Size(
  documents=((1200, *[300] * 6), (1,), (400, 1, 1), (97,)),
  length=4096,
  long=layouts.PACKED_STEP,
  heads=32,
  kv_heads=8,
  width=128,
  kernel=triton.PUBLISHED,
  image_patches=4096,
  repeats=10,
)
TINY = Size(
  documents=((30, 9, 1), (1,), (12,)),
  length=64,
  long=layouts.rows([(40, 9, 9)], length=64),
  heads=2,
  kv_heads=1,
  width=16,
  kernel=dataclasses.replace(triton.PUBLISHED, tile=32, interpret=True),
  image_patches=32,
  repeats=1,
)
# bfloat16 keeps 8 bits, and gradients add many rounded products
AT_MOST = {
  'triton/value_error': 0.01,
  'triton/gradient_error': 0.02,
  'tiled/value_error': 0.01,
  'tiled/gradient_error': 0.02,
  'image/value_error': 0.01,
  'image/gradient_error': 0.02,
  'triton/long_temporary_gib': 1.0,
}


def measure(size: Size) -> dict[str, float]:
  """Returns relative errors of kernels in bfloat16, and the time and memory of a long row."""
  segments, branches = layouts.rows(list(size.documents), length=size.length)
  ranges_BT4 = ranges.packed_rows(segments, branches)

  def on_ranges(q, k, v):
    return triton.attend_triton(q, k, v, ranges_BT4, size.kernel)

  found: dict[str, float] = {}
  calls: Mapping[str, Callable[..., jax.Array]] = {
    'triton': on_ranges,
    'tiled': lambda q, k, v: tiled.attend_tiled(q, k, v, ranges_BT4),
  }
  want = lambda q, k, v: plain.attend_xla(q, k, v, segments, branches)
  arrays = _random(size, segments.shape)
  for name, call in calls.items():
    errors = _errors(call, want, arrays, segments > 0)
    found |= {f'{name}/{what}': value for what, value in errors.items()}
  found |= {f'image/{what}': value for what, value in _image_errors(size).items()}
  return found | _long_row(size)


def _random(size: Size, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.normal(size=(*shape, heads, size.width)), jnp.bfloat16)
    for heads in (size.heads, size.kv_heads, size.kv_heads)
  )


def _outputs(call: Callable[..., jax.Array], arrays: Any, real: np.ndarray) -> list[np.ndarray]:
  """Returns output and gradients of real tokens."""
  mask = real[..., None, None]

  def loss(*x):
    out = call(*x).astype(jnp.float32)
    return jnp.sum(jnp.sin(out) * mask), out

  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
  return [np.asarray(x, np.float32) * mask for x in (out, *gradients)]


def _errors(call, want, arrays, real) -> dict[str, float]:
  """Returns |a - b| / |b| of the output, and the largest of the gradients."""
  got = _outputs(call, arrays, real)
  # the same rounded inputs, all products in float32
  with jax.default_matmul_precision('highest'):
    wanted = _outputs(want, [x.astype(jnp.float32) for x in arrays], real)
  errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, wanted)]
  return {'value_error': errors[0], 'gradient_error': max(errors[1:])}


def _image_errors(size: Size) -> dict[str, float]:
  """A large image with padding: every patch sees all valid patches."""
  patches = size.image_patches
  exists = np.arange(patches)[None] < patches - 5
  rows = ranges.valid_keys(jnp.asarray(exists))
  small = dataclasses.replace(size, kv_heads=size.heads // 2, heads=size.heads // 2)

  def want(q, k, v):
    return plain.masked(q, k, v, jnp.broadcast_to(exists[:, None, :], (1, patches, patches)))

  call = lambda q, k, v: triton.attend_triton(q, k, v, rows, size.kernel)
  return _errors(call, want, _random(small, exists.shape), exists)


def _long_row(size: Size) -> dict[str, float]:
  """Time, memory and useful FLOP/s of one layer's attention, forward and backward."""
  segments, branches = size.long
  rows = ranges.packed_rows(segments, branches)
  arrays = _random(size, segments.shape)

  def loss(*x):
    return jnp.sum(triton.attend_triton(*x, rows, size.kernel).astype(jnp.float32) ** 2)

  step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
  jax.block_until_ready(step(*arrays))
  begin = time.perf_counter()
  for _ in range(size.repeats):
    jax.block_until_ready(step(*arrays))
  seconds = (time.perf_counter() - begin) / size.repeats
  # two products forward, five backward, of two FLOPs each
  pairs = ranges.count_visible_pairs(segments, branches)
  flops = 2.0 * 7 * size.heads * size.width * pairs
  return {
    'triton/long_ms': seconds * 1e3,
    'triton/long_tflops': flops / seconds / 1e12,
    'triton/long_temporary_gib': step.memory_analysis().temp_size_in_bytes / 2**30,
  }

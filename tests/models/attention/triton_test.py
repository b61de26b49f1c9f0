"""The Triton kernels, run on the host: values and gradients of plain attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.attention import ranges, triton
from tests.models.attention import kernels, layouts

ON_HOST = dataclasses.replace(triton.PUBLISHED, tile=32, interpret=True)


def test_the_kernels_have_the_values_and_gradients_of_plain_attention():
  # a head width of 24 is padded to 32
  kernels.compare(functools.partial(triton.attend_triton, kernel=ON_HOST), width=24)


def test_the_kernels_lower_for_a_gpu_without_an_array_of_all_pairs():
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
  segments, branches = layouts.PACKED_STEP

  def loss(q, k, v):
    out = triton.attend_triton(q, k, v, ranges.packed_rows(segments, branches))
    return jnp.sum(out.astype(jnp.float32) ** 2)

  arguments = shape(1, 32768, 4, 128), shape(1, 32768, 2, 128), shape(1, 32768, 2, 128)
  lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arguments).lower(lowering_platforms=('cuda',))
  text = lowered.as_text()
  for name in ('attend_forward', 'attend_backward_queries', 'attend_backward_keys'):
    assert name in text
  assert '32768x32768' not in text


def test_three_rows_of_an_hour_of_video_take_offsets_of_64_bits():
  # 3 x 262,144 x 32 x 128 numbers in bfloat16 are more than 2^32 bytes
  shape = lambda heads: jax.ShapeDtypeStruct((3, 262144, heads, 128), jnp.bfloat16)
  seen = jax.ShapeDtypeStruct((3, 262144, 4), jnp.int32)
  traced = jax.jit(triton.attend_triton).trace(shape(32), shape(8), shape(8), seen)
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert 'attend_forward' in text and 'i64' in text


def test_a_row_without_tokens_gives_zeros():
  q, k, v = layouts.random(np.zeros((1, 40)), width=16)
  out = triton.attend_triton(q, k, v, jnp.zeros((1, 40, 4), jnp.int32), ON_HOST)
  np.testing.assert_array_equal(out, np.zeros_like(q))

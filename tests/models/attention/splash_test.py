"""Splash attention, run on the host: values and gradients of plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models.attention import ranges, splash
from tests.models.attention import kernels, layouts


def test_two_calls_have_the_values_and_gradients_of_plain_attention():
  call = functools.partial(splash.attend_splash, interpret=True)
  kernels.compare(call, width=24)


def test_its_tables_skip_what_a_row_does_not_see_in_both_passes():
  segments, branches = layouts.rows([(256, 128), (128,)], length=1024)
  kernel = splash.SplashKernel(128, True)
  prefix_BT2 = ranges.packed_rows(segments, branches)[..., :2]
  packed, seen = kernel._tables(prefix_BT2)
  forward, backward = (kernel._mask_info(packed[0], seen[0], axis) for axis in (1, 0))
  # the prefix (2 blocks) sees itself, the branch sees the prefix, the document itself
  want = np.zeros((8, 8), int)
  want[0, 0] = want[1, :2] = want[2, :2] = want[3, 3] = 1
  np.testing.assert_array_equal(forward.block_mask[0], want)
  np.testing.assert_array_equal(backward.block_mask[0], want)
  assert forward.data_next[0, 3].tolist() == [3, 3, 3, 3, 0, 0, 0, 0]
  assert backward.data_next[0, :, 1].tolist() == [1, 1, 2, 0, 0, 0, 0, 0]


def test_the_range_of_the_last_token_of_the_longest_row_can_be_packed():
  packed, _ = splash.SplashKernel(512, True)._tables(
    jnp.full((1, ranges.LONGEST_PACKED, 2), jnp.array([32767, 32768]), jnp.int32)
  )
  seen = splash._in_range(packed[0, 0], jnp.array([0, 32766, 32767, 32768]))
  assert seen.tolist() == [False, False, True, False]


def test_a_row_that_is_too_long_is_refused_with_a_way_out():
  row = jax.ShapeDtypeStruct((1, 32896, 1, 128), jnp.bfloat16)
  with pytest.raises(ValueError, match=r"got rows of 32896 tokens.*the backend 'tiled'"):
    jax.eval_shape(splash.attend_splash, row, row, row, jnp.zeros((1, 32896, 4), jnp.int32))


def test_the_kernels_lower_for_a_tpu_without_an_array_of_all_pairs():
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
  segments, branches = layouts.PACKED_STEP

  def loss(q, k, v):
    out = splash.attend_splash(q, k, v, ranges.packed_rows(segments, branches))
    return jnp.sum(out.astype(jnp.float32) ** 2)

  arguments = shape(1, 32768, 4, 128), shape(1, 32768, 2, 128), shape(1, 32768, 2, 128)
  lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arguments).lower(lowering_platforms=('tpu',))
  text = lowered.as_text()
  assert text.count('tpu_custom_call') >= 6  # two ranges; forward, queries, keys
  assert '32768x32768' not in text

"""Splash attention, run on the host: values and gradients of plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.attention import plain, ranges, splash
from tests.models.attention import kernels, layouts


def test_two_calls_have_the_values_and_gradients_of_plain_attention():
  call = functools.partial(splash.attend_splash, interpret=True)
  kernels.compare(call, width=24)


def test_a_row_of_more_keys_than_a_range_can_name_takes_a_call_for_each_span(monkeypatch):
  monkeypatch.setattr(splash, 'MOST_KEYS', 128)
  segments, branches = layouts.rows([(150, 20, 90)], [(1,), (70, 9)], length=300)
  q, k, v = layouts.random(segments, width=16)
  ranges_BT4 = ranges.packed_rows(segments, branches)
  got = splash.attend_splash(q, k, v, ranges_BT4, interpret=True)
  want = plain.attend_xla(q, k, v, segments, branches)
  real = (segments > 0)[..., None, None]
  np.testing.assert_allclose(got * real, want * real, atol=1e-5)


def test_its_tables_skip_what_a_row_does_not_see_in_both_passes():
  segments, branches = layouts.rows([(256, 128), (128,)], length=1024)
  kernel = splash.SplashKernel(128, True)
  prefix_BT2 = ranges.packed_rows(segments, branches)[..., :2]
  packed, seen = kernel._tables(prefix_BT2, 1024)
  forward, backward = (kernel._mask_info(packed[0], seen[0], axis) for axis in (1, 0))
  # the prefix (2 blocks) sees itself, the branch sees the prefix, the document itself
  want = np.zeros((8, 8), int)
  want[0, 0] = want[1, :2] = want[2, :2] = want[3, 3] = 1
  np.testing.assert_array_equal(forward.block_mask[0], want)
  np.testing.assert_array_equal(backward.block_mask[0], want)
  assert forward.data_next[0, 3].tolist() == [3, 3, 3, 3, 0, 0, 0, 0]
  assert backward.data_next[0, :, 1].tolist() == [1, 1, 2, 0, 0, 0, 0, 0]


def test_the_range_of_the_last_token_of_the_longest_span_can_be_packed():
  packed, _ = splash.SplashKernel(512, True)._tables(
    jnp.full((1, 512, 2), jnp.array([32767, 32768]), jnp.int32), splash.MOST_KEYS
  )
  seen = splash._in_range(packed[0, 0], jnp.array([0, 32766, 32767, 32768]))
  assert seen.tolist() == [False, False, True, False]


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

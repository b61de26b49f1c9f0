"""Runs a backend of ranges and the plain one on the same small rows."""

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.attention import plain, ranges
from tests.models.attention import layouts

# one-token branches and documents, an empty row, padding
SEGMENTS, BRANCHES = layouts.rows([(40, 1, 30)], [], [(1,), (20, 9, 3)], length=100)


def value_and_gradients(call, arrays):
  """Returns the outputs and gradients of real tokens, as float32."""
  real = (SEGMENTS > 0)[..., None, None]

  def loss(*x):
    out = call(*x).astype(jnp.float32)
    return jnp.sum(jnp.sin(out) * real), out

  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
  assert np.isfinite(out).all()
  return [np.asarray(x, np.float32) for x in (out * real, *gradients)]


def compare(call, heads=4, kv_heads=2, width=16, atol=1e-5):
  """Compares `call(q, k, v, ranges)` with plain attention, in float32."""
  arrays = layouts.random(SEGMENTS, heads, kv_heads, width)
  ranges_BT4 = ranges.packed_rows(SEGMENTS, BRANCHES)
  got = value_and_gradients(lambda *x: call(*x, ranges_BT4), arrays)
  want = value_and_gradients(lambda *x: plain.attend_xla(*x, SEGMENTS, BRANCHES), arrays)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=atol)

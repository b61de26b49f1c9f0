"""Who sees whom, by a drawn mask; and every backend against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import attention

SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 0]], np.int32)
BRANCHES = np.array([[0, 0, 0, 1, 1, 2, 2, 0, 0, 0]], np.int32)
DRAWN = """
#.........
##........
###.......
####......
#####.....
###..#....
###..##...
.......#..
.......##.
..........
""".strip().splitlines()


def test_the_mask_is_the_one_drawn_for_a_prefix_with_two_suffixes_a_document_and_padding():
  mask = np.asarray(attention.visible(SEGMENTS, BRANCHES, SEGMENTS, BRANCHES))[0]
  assert [''.join('.#'[int(seen)] for seen in row) for row in mask] == DRAWN


def _loop(q, k, v, mask):
  """Attention of the rows that see something, token by token."""
  out = np.zeros_like(q)
  for b, t, h in np.ndindex(*q.shape[:3]):
    seen = np.flatnonzero(mask[b, t])
    if len(seen):
      kv = h // (q.shape[2] // k.shape[2])
      score = k[b, seen, kv] @ q[b, t, h] / np.sqrt(q.shape[-1])
      weight = np.exp(score - score.max())
      out[b, t, h] = weight @ v[b, seen, kv] / weight.sum()
  return out


def _random(length, heads=4, kv_heads=2, width=8, rows=2, seed=0):
  rng = np.random.default_rng(seed)
  q, k, v = (
    rng.normal(size=(rows, length, h, width)).astype(np.float32)
    for h in (heads, kv_heads, kv_heads)
  )
  segments = np.sort(rng.integers(1, 4, (rows, length)), axis=1).astype(np.int32)
  segments[:, -3:] = 0
  return q, k, v, segments, rng.integers(0, 3, (rows, length)).astype(np.int32)


@pytest.mark.parametrize('backend', sorted(attention.BACKENDS))
@pytest.mark.parametrize('length', [10, 150])
def test_every_backend_agrees_with_a_loop_over_tokens(backend, length):
  q, k, v, segments, branches = _random(length)
  mask = np.asarray(attention.visible(segments, branches, segments, branches))
  got = np.asarray(attention.attend(q, k, v, segments, branches, backend=backend))
  np.testing.assert_allclose(got[segments > 0], _loop(q, k, v, mask)[segments > 0], atol=2e-6)
  assert np.isfinite(got).all()


def test_chunked_has_the_gradients_of_plain_softmax_over_several_blocks():
  q, k, v, segments, branches = _random(300)
  weight = (
    np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    * (segments > 0)[..., None, None]
  )
  gradient = lambda backend: jax.grad(
    lambda *x: jnp.sum(weight * attention.attend(*x, segments, branches, backend=backend)),
    argnums=(0, 1, 2),
  )(q, k, v)
  for got, want in zip(gradient('chunked'), gradient('xla')):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_chunked_in_bfloat16_stays_near_float32():
  q, k, v, segments, branches = _random(150)
  wide = np.asarray(attention.attend(q, k, v, segments, branches, backend='chunked'))
  narrow = attention.attend(
    *(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), segments, branches, backend='chunked'
  )
  assert narrow.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(narrow, np.float32)[segments > 0], wide[segments > 0], atol=0.05
  )


def test_an_unknown_backend_is_refused_with_the_known_ones():
  q, k, v, segments, branches = _random(10)
  with pytest.raises(ValueError, match=r"'flash': wanted one of \['chunked', 'xla'\]"):
    attention.attend(q, k, v, segments, branches, backend='flash')

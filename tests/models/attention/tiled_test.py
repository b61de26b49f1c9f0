"""Tiles give the values and gradients of plain attention, and nothing larger stays in memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import attention
from paravt_jax.models.attention import ranges, tiled
from tests.models.attention import layouts

SEGMENTS, BRANCHES = layouts.MIXED


def attend(backend, tile, q, k, v):
  if backend == 'xla':
    return attention.attend(q, k, v, SEGMENTS, BRANCHES, backend='xla')
  return tiled.attend_tiled(q, k, v, ranges.packed_rows(SEGMENTS, BRANCHES), tile)


def value_and_gradients(call, arrays):
  real = (SEGMENTS > 0)[..., None, None]
  weight = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32) * real
  loss = lambda *x: (lambda o: (jnp.sum(weight * o), o))(call(*x))
  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
  return [np.asarray(x, np.float32) for x in (out * real, *gradients)]


@pytest.mark.parametrize('tile', [32, 128, 512])
def test_tiles_have_the_values_and_gradients_of_plain_attention(tile):
  arrays = layouts.random(SEGMENTS)
  got = value_and_gradients(functools.partial(attend, 'tiled', tile), arrays)
  want = value_and_gradients(functools.partial(attend, 'xla', tile), arrays)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(('heads', 'kv_heads'), [(3, 3), (6, 1)])
def test_any_number_of_query_heads_shares_a_key_head(heads, kv_heads):
  arrays = layouts.random(SEGMENTS, heads, kv_heads)
  got = value_and_gradients(functools.partial(attend, 'tiled', 64), arrays)
  want = value_and_gradients(functools.partial(attend, 'xla', 64), arrays)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_is_about_as_near_to_float32_as_plain_bfloat16():
  wide = layouts.random(SEGMENTS)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in wide]
  exact = value_and_gradients(functools.partial(attend, 'xla', 64), wide)
  plain = value_and_gradients(functools.partial(attend, 'xla', 64), narrow)
  got = value_and_gradients(functools.partial(attend, 'tiled', 64), narrow)
  for a, b, c in zip(got, plain, exact):
    assert np.abs(a - c).max() <= 2 * np.abs(b - c).max()


def test_it_runs_inside_checkpoint_and_scan():
  q, k, v = layouts.random(SEGMENTS)
  one = jax.checkpoint(lambda q: attend('tiled', 64, q, k, v))

  def twice(q):
    return jnp.sum(jax.lax.scan(lambda q, _: (one(q), None), q, None, length=2)[0] ** 2)

  def plainly(q):
    return jnp.sum(attend('xla', 64, attend('xla', 64, q, k, v), k, v) ** 2)

  real = (SEGMENTS > 0)[..., None, None]
  got, want = (np.asarray(jax.jit(jax.grad(f))(q * real)) for f in (twice, plainly))
  np.testing.assert_allclose(got * real, want * real, atol=1e-5)


def compiled_gradient(length, heads, kv_heads, width):
  shape = lambda h: jax.ShapeDtypeStruct((1, length, h, width), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def loss(q, k, v, segments, branches):
    out = attention.attend(q, k, v, segments, branches, backend='tiled')
    return jnp.sum(out.astype(jnp.float32) ** 2)

  gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
  return gradient.lower(shape(heads), shape(kv_heads), shape(kv_heads), ids, ids).compile()


def test_at_32k_no_array_is_larger_than_a_pair_of_tiles_or_the_inputs():
  compiled = compiled_gradient(32768, heads=4, kv_heads=2, width=32)
  tile = tiled.tile_size(32768)
  sizes = [
    np.prod([int(n) for n in dims.split(',')])
    for dims in re.findall(r'\b(?:f32|bf16|s32|pred)\[([\d,]+)\]', compiled.as_text())
  ]
  # queries of all heads, and the weights of a pair of tiles; T * T would be 1,073,741,824
  assert max(sizes) <= max(32768 * 4 * 32, 4 * tile * tile) == 4_194_304

"""Who sees whom, by a drawn mask; and every backend against a plain loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from paravt_jax.models import attention, sharding
from tests.models.attention import layouts

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
  # branches in order within each document, as the packer lays them out
  branches = rng.integers(0, 3, (rows, length)).astype(np.int32)
  order = np.lexsort((branches, segments), axis=-1)
  branches = np.take_along_axis(branches, order, axis=1)
  segments[:, -3:] = 0
  return q, k, v, segments, branches


@pytest.mark.parametrize('backend', ['xla', 'chunked', 'tiled', 'auto'])
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
  with pytest.raises(
    ValueError,
    match=r"'flash': wanted one of \['auto', 'chunked', 'splash', 'tiled', 'triton', 'xla'\]",
  ):
    attention.attend(q, k, v, segments, branches, backend='flash')


@pytest.mark.parametrize(
  ('platform', 'length', 'dtype', 'backend'),
  [
    ('cpu', 512, 'float32', 'chunked'),
    ('cpu', 1024, 'float32', 'tiled'),
    ('cpu', 2048, 'float32', 'tiled'),
    ('gpu', 512, 'float32', 'tiled'),
    ('cuda', 512, 'bfloat16', 'triton'),
    ('tpu', 32768, 'bfloat16', 'splash'),
    ('tpu', 65536, 'bfloat16', 'splash'),
  ],
)
def test_auto_chooses_by_platform_and_length(platform, length, dtype, backend):
  assert attention.choose(platform, length, dtype) == backend


@pytest.mark.parametrize('patches', [64, 1024])
def test_a_patch_attends_to_the_valid_patches_of_its_image(patches):
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(3, patches, 2, 8)).astype(np.float32) for _ in range(3))
  counts = np.array([patches, 0, patches // 2 + 3])
  exists = np.arange(patches) < counts[:, None]
  mask = np.broadcast_to(exists[:, None], (3, patches, patches))
  want = np.asarray(attention.masked(q, k, v, mask))
  got = np.asarray(attention.attend_images(q, k, v, exists))
  np.testing.assert_allclose(got[exists], want[exists], atol=2e-6)
  assert np.isfinite(got).all()


def test_a_large_image_never_has_all_its_weights_in_memory():
  shape = jax.ShapeDtypeStruct((2, 2048, 2, 8), jnp.float32)
  loss = lambda q, k, v, exists: jnp.sum(attention.attend_images(q, k, v, exists) ** 2)
  exists = jax.ShapeDtypeStruct((2, 2048), bool)
  text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, exists).compile().as_text()
  sizes = [
    np.prod([int(n) for n in dims.split(',')])
    for dims in re.findall(r'\b(?:f32|pred)\[([\d,]+)\]', text)
  ]
  # the comparison that finds the visible tiles; all weights would be 16,777,216
  assert max(sizes) <= 2 * 2048 * 2 * 16


COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')


@pytest.mark.parametrize('backend', ['tiled'])
@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_on_a_mesh_each_device_attends_with_its_rows_and_heads_alone(backend, sizes):
  mesh = sharding.make_mesh(*sizes)
  segments, branches = (np.concatenate([x, x[::-1]]) for x in layouts.MIXED)
  arrays = (*layouts.random(segments), segments, branches)
  real = (segments > 0)[..., None, None]

  def call(mesh):
    def loss(q, k, v, segments, branches):
      out = attention.attend(q, k, v, segments, branches, backend=backend, mesh=mesh)
      return jnp.sum((out * real) ** 2, axis=(1, 3))  # one sum per row and head

    return lambda *x: jax.vjp(lambda *qkv: loss(*qkv, *x[3:]), *x[:3])[1](
      jnp.ones((8, 4), jnp.float32)
    )

  heads, ids = PartitionSpec(('data', 'fsdp'), None, 'tensor'), PartitionSpec(('data', 'fsdp'))
  places = tuple(NamedSharding(mesh, s) for s in (heads, heads, heads, ids, ids))
  run = jax.jit(call(mesh), in_shardings=places, out_shardings=places[:3])
  text = run.lower(*arrays).compile().as_text()
  assert not [name for name in COLLECTIVES if name in text]
  for a, b in zip(run(*arrays), jax.jit(call(None))(*arrays)):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_rows_and_heads_that_a_mesh_does_not_divide_are_computed_everywhere():
  mesh = sharding.make_mesh(2, 2, 2)
  segments, branches = layouts.rows([(40, 9)], length=64)
  arrays = (*layouts.random(segments, heads=3, kv_heads=1), segments, branches)
  got, want = (
    jax.jit(lambda *x, m=m: attention.attend(*x, backend='tiled', mesh=m))(*arrays)
    for m in (mesh, None)
  )
  np.testing.assert_array_equal(got, want)

"""A row in slices on several devices: the values and gradients of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from paravt_jax.models import attention, sharding
from paravt_jax.models.attention import mesh as meshes
from paravt_jax.models.attention import ranges, triton
from tests.models.attention import layouts

# documents and branches that begin and end within slices of 48 or 96 tokens, and padding
SEGMENTS, BRANCHES = (
  np.concatenate([x, x[::-1]])
  for x in layouts.rows([(130, 1, 90, 40), (1,), (60, 25)], [(300, 30), (7, 3)], length=384)
)
ON_HOST = triton.Kernel(tile=32, warps=4, stages=2, interpret=True)


def results(call, arrays):
  """Values and gradients of real tokens."""
  real = (SEGMENTS > 0)[..., None, None]

  def loss(*x):
    out = call(*x)
    return jnp.sum(jnp.sin(out) * real), out * real

  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
  return out, *gradients


@functools.cache
def alone():
  """Plain attention on one device."""
  call = functools.partial(
    attention.attend, segments_BT=SEGMENTS, branches_BT=BRANCHES, backend='xla'
  )
  return results(call, layouts.random(SEGMENTS))


@pytest.mark.parametrize('backend', ['tiled', 'chunked', 'xla'])
@pytest.mark.parametrize('sizes', [(1, 1, 8, 1), (2, 1, 2, 2), (1, 1, 4, 2)])
def test_documents_and_branches_across_slices_are_attended_as_on_one_device(backend, sizes):
  data, fsdp, context, tensor = sizes
  mesh = sharding.make_mesh(data, fsdp, tensor, context=context)
  call = functools.partial(
    attention.attend, segments_BT=SEGMENTS, branches_BT=BRANCHES, backend=backend, mesh=mesh
  )
  for got, want in zip(results(call, layouts.random(SEGMENTS)), alone()):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_kernels_of_a_gpu_take_fewer_queries_than_keys():
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:2], context=2)
  ranges_BT4 = ranges.packed_rows(SEGMENTS, BRANCHES)
  kernel = functools.partial(triton.attend_triton, kernel=ON_HOST)
  call = lambda *x: meshes.attend_rows(kernel, mesh, *x, ranges_BT4)
  for got, want in zip(results(call, layouts.random(SEGMENTS)), alone()):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_tokens_that_the_mesh_does_not_divide_are_computed_everywhere():
  mesh = sharding.make_mesh(1, 1, 1, context=8)
  segments, branches = layouts.rows([(40, 9)], length=60)
  arrays = (*layouts.random(segments), segments, branches)
  got, want = (
    jax.jit(lambda *x, m=m: attention.attend(*x, backend='tiled', mesh=m))(*arrays)
    for m in (mesh, None)
  )
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(('swapped', 'most'), [(False, 15 / 8), (True, 1.0)])
def test_mirrored_halves_give_all_devices_as_many_pairs_of_a_long_document(swapped, most):
  mesh = sharding.make_mesh(1, 1, 1, context=8)
  split = PartitionSpec(None, 'context')

  def pairs(ranges_BT4):
    if swapped:
      ranges_BT4 = meshes._swap_halves(ranges_BT4, 8)
    return jnp.sum(ranges_BT4[..., 1] - ranges_BT4[..., 0], axis=1)[:, None]

  count = jax.shard_map(pairs, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
  found = count(ranges.packed_rows(*layouts.rows([(4096,)], length=4096)))
  assert found.sum() == 4096 * 4097 // 2
  assert found.max() / found.mean() == pytest.approx(most, rel=2e-3)

"""Attention on a mesh: each device computes its own rows, heads and slice of a row's tokens.

The mesh axis `context` splits the tokens of a row into slices of equal size. A device gathers the
keys and values of the whole row, which are few (grouped queries), and attends with its own queries.
Each query brings its ranges of keys, so documents and branches may lie across slices. In the
backward pass the gradients of keys and values are summed over the devices, slice by slice.

Late queries see more keys than early ones. So device i swaps the second half of its queries with
the device at the mirrored place. With C slices in 2 C halves, it then has half 2 i and half
2 (C - 1 - i) + 1, and in one long document all devices multiply equally many pairs:

  device      0    1    2    3
  slices     0 1  2 3  4 5  6 7
  computes   0 7  2 5  4 3  6 1
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# the mesh axes that split rows, tokens, heads and images (models/sharding.RULES)
_ROW_AXES = ('data', 'fsdp')
_TOKEN_AXIS = 'context'
_HEAD_AXIS = 'tensor'

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def attend_rows(
  call: Attend, mesh: Mesh | None, q_BTHF, k_BTKF, v_BTKF, ranges_BT4: jax.Array
) -> jax.Array:
  """Calls `call(q, k, v, ranges)` with the rows, heads and queries of each device.

  Rows, heads or tokens that the mesh does not divide (the one row of a canary) are computed
  everywhere.
  """
  if mesh is None or mesh.size == 1:
    return call(q_BTHF, k_BTKF, v_BTKF, ranges_BT4)
  tokens = _dividing(mesh, (_TOKEN_AXIS,), q_BTHF.shape[1])
  if tokens and mesh.shape[_TOKEN_AXIS] > 1:
    call = functools.partial(_attend_slice, call, mesh.shape[_TOKEN_AXIS])
  return _on_devices(call, mesh, _ROW_AXES, tokens, q_BTHF, k_BTKF, v_BTKF, ranges_BT4)


def attend_each_image(
  call: Attend, mesh: Mesh | None, q_IXHF, k_IXHF, v_IXHF, ranges_IX4: jax.Array
) -> jax.Array:
  """Calls `call(q, k, v, ranges)` with the images and heads of each device."""
  if mesh is None or mesh.size == 1:
    return call(q_IXHF, k_IXHF, v_IXHF, ranges_IX4)
  axes = (*_ROW_AXES, _TOKEN_AXIS)
  return _on_devices(call, mesh, axes, None, q_IXHF, k_IXHF, v_IXHF, ranges_IX4)


def whole_rows(mesh: Mesh | None, x_BTHF: jax.Array) -> jax.Array:
  """Returns the array with all tokens of a row on each device of its context.

  This is for backends that know no slices.
  """
  if mesh is None or mesh.shape.get(_TOKEN_AXIS, 1) == 1:
    return x_BTHF
  rows = _dividing(mesh, _ROW_AXES, x_BTHF.shape[0])
  heads = _dividing(mesh, (_HEAD_AXIS,), x_BTHF.shape[2])
  place = NamedSharding(mesh, PartitionSpec(rows, None, heads, None))
  return jax.lax.with_sharding_constraint(x_BTHF, place)


def _dividing(mesh: Mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
  """Returns those of the axes that the mesh has, or None if their product does not divide `size`."""
  axes = tuple(axis for axis in axes if axis in mesh.shape)
  parts = int(np.prod([mesh.shape[axis] for axis in axes], dtype=int))
  return axes if axes and size % parts == 0 else None


def _on_devices(call, mesh, row_axes, tokens, q_BTHF, k_BTKF, v_BTKF, ranges_BT4) -> jax.Array:
  rows = _dividing(mesh, row_axes, q_BTHF.shape[0])
  # query heads stay beside their key head
  heads = _dividing(mesh, (_HEAD_AXIS,), k_BTKF.shape[2])
  wide, narrow = PartitionSpec(rows, tokens, heads, None), PartitionSpec(rows, tokens, None)
  local = jax.shard_map(
    call, mesh=mesh, in_specs=(wide, wide, wide, narrow), out_specs=wide, check_vma=False
  )
  return local(q_BTHF, k_BTKF, v_BTKF, ranges_BT4)


def _attend_slice(call, slices: int, q_BTHF, k_BTKF, v_BTKF, ranges_BT4) -> jax.Array:
  """Attends with the queries of one slice to the keys of the whole row, on each device."""
  k_BUKF, v_BUKF = (
    jax.lax.all_gather(x, _TOKEN_AXIS, axis=1, tiled=True) for x in (k_BTKF, v_BTKF)
  )
  q_BTHF, ranges_BT4 = _swap_halves(q_BTHF, slices), _swap_halves(ranges_BT4, slices)
  return _swap_halves(call(q_BTHF, k_BUKF, v_BUKF, ranges_BT4), slices)


def _swap_halves(x_BT: jax.Array, slices: int) -> jax.Array:
  """Swaps the second half of each slice with that of the mirrored slice; twice changes nothing."""
  half = x_BT.shape[1] // 2
  mirrored = [(i, slices - 1 - i) for i in range(slices)]
  swapped = jax.lax.ppermute(x_BT[:, half:], _TOKEN_AXIS, mirrored)
  return jnp.concatenate([x_BT[:, :half], swapped], axis=1)

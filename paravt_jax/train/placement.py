"""Puts a step's micro-batches on the mesh, one after the other."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from paravt_jax.errors import DataError
from paravt_jax.models import sharding

Arrays = dict[str, jax.Array]
SLOTS = ('patches', 'grids')  # [R, N, ...]
IMAGES = ('patches', 'large_images')  # [R, N, ...], whose slots lie on the devices that share a row


def place_of(mesh: Mesh, name: str, shape: Sequence[int], leading: int) -> NamedSharding:
  """Returns the sharding of a batch's array of this name and shape [..., R, ...].

  leading: axes before the rows.
  """
  if name in IMAGES:
    return sharding.slots(mesh, leading, shape[leading + 1])
  return sharding.rows(mesh, leading)


def put_rows(mesh: Mesh, array: np.ndarray, leading: int, name: str) -> jax.Array:
  """Puts a host array on the mesh, its rows split over the data axes, and the slots of images over
  the context axis.

  With several processes each passes its part of the rows (sharding.host_rows).

  Args:
    leading: axes before the rows: 1 for [M, R, ...], 0 for [R, ...].
    name: of the array in a batch.

  Raises:
    DataError: R is not a multiple of the parts that this process's devices hold.
  """
  rows, count = array.shape[leading], sharding.host_rows(mesh)[1]
  if rows * count % sharding.row_shards(mesh):
    raise DataError(
      f'batch: got {rows * count} rows per micro-batch, wanted a multiple of '
      f'{sharding.row_shards(mesh)} (data x fsdp); change train.rows'
    )
  place = place_of(mesh, name, array.shape, leading)
  if count == 1:
    return jax.device_put(array, place)
  whole = (*array.shape[:leading], rows * count, *array.shape[leading + 1 :])
  return jax.make_array_from_process_local_data(place, array, whole)


def put_count(mesh: Mesh, value: int) -> jax.Array:
  """Puts a whole number that all processes agree on the mesh, without a collective.

  So a thread may do it beside a step. `jax.device_put` would compare the processes' values.
  """
  place, number = sharding.replicated(mesh), np.asarray(value, np.int32)
  if jax.process_count() == 1:
    return jax.device_put(number, place)
  return jax.make_array_from_callback((), place, lambda _: number)


def put_micro_batches(
  mesh: Mesh, parts: Iterable[Mapping[str, np.ndarray]], capacity: int, row_images: int
) -> Arrays:
  """Puts micro-batches on the mesh as the batch [M, R, ...] of a step.

  Each part goes to the devices while the next one is made, so the host never holds them all.
  Micro-batches and image slots that are not used are made on the devices and hold zeros.

  Args:
    parts: at least one; the arrays [R, ...] of a micro-batch each, of equal shapes.
    capacity: M.
    row_images: N; the parts may have fewer slots.

  Raises:
    DataError: more parts than `capacity`, or rows that do not divide over the mesh.
  """
  batch: Arrays = {}
  used = 0
  for part in parts:
    if used == capacity:
      raise DataError(
        f'batch: got more than {capacity} micro-batches; raise train.micro_batches or take fewer '
        'samples per step'
      )
    micro = {name: put_rows(mesh, array, 0, name) for name, array in part.items()}
    if not used:
      batch = _zeros(mesh, micro, capacity, row_images)
    batch = _write(mesh)(batch, micro, np.int32(used))
    used += 1
  return {**batch, 'used': put_count(mesh, used)}


def _zeros(mesh: Mesh, micro: Arrays, capacity: int, row_images: int) -> Arrays:
  """Returns an empty batch for micro-batches like `micro`."""
  shapes = {
    name: (capacity, x.shape[0], row_images, *x.shape[2:])
    if name in SLOTS
    else (capacity, *x.shape)
    for name, x in micro.items()
  }
  return {
    name: jnp.zeros(shape, micro[name].dtype, device=place_of(mesh, name, shape, 1))
    for name, shape in shapes.items()
  }


@functools.cache
def _write(mesh: Mesh) -> Callable[[Arrays, Arrays, np.int32], Arrays]:
  """Returns f(batch, micro, index), which writes a micro-batch into the batch in place."""
  sliced = sharding.token_shards(mesh) > 1

  def write_one(name: str, x: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    if sliced and name in SLOTS:
      # all slots of a micro-batch: a part of a split axis cannot be written in place
      more = x.shape[2] - new.shape[1]
      new = jnp.pad(new, ((0, 0), (0, more), *[(0, 0)] * (new.ndim - 2)))
      new = jax.lax.with_sharding_constraint(new, place_of(mesh, name, new.shape, 0))
    new = jax.lax.dynamic_update_slice(x, new[None], (index, *[0] * (x.ndim - 1)))
    return jax.lax.with_sharding_constraint(new, place_of(mesh, name, x.shape, 1))

  def write(batch: Arrays, micro: Arrays, index: jax.Array) -> Arrays:
    return {name: write_one(name, x, micro[name], index) for name, x in batch.items()}

  return jax.jit(write, donate_argnums=0)

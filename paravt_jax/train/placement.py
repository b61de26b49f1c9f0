"""Puts a step's micro-batches on the mesh, one after the other."""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from paravt_jax.errors import DataError
from paravt_jax.train import sharding

Arrays = dict[str, jax.Array]
SLOTS = ('patches', 'grids')  # [R, N, ...]


def put_rows(mesh: Mesh, array: np.ndarray, leading: int) -> jax.Array:
  """Puts a host array on the mesh, its rows split over the data axes.

  With several processes each passes its part of the rows (sharding.host_rows).

  Args:
    leading: axes before the rows: 1 for [M, R, ...], 0 for [R, ...].

  Raises:
    DataError: R is not a multiple of the parts that this process's devices hold.
  """
  rows, count = array.shape[leading], sharding.host_rows(mesh)[1]
  if rows * count % sharding.row_shards(mesh):
    raise DataError(
      f'batch: got {rows * count} rows per micro-batch, wanted a multiple of '
      f'{sharding.row_shards(mesh)} (data x fsdp); change train.rows'
    )
  place = sharding.rows(mesh, leading)
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
    micro = {name: put_rows(mesh, array, 0) for name, array in part.items()}
    if not used:
      batch = _zeros(mesh, micro, capacity, row_images)
    batch = _write(mesh)(batch, micro, np.int32(used))
    used += 1
  return {**batch, 'used': put_count(mesh, used)}


def _zeros(mesh: Mesh, micro: Arrays, capacity: int, row_images: int) -> Arrays:
  """Returns an empty batch for micro-batches like `micro`."""
  place = sharding.rows(mesh, 1)
  shapes = {
    name: (x.shape[0], row_images, *x.shape[2:]) if name in SLOTS else x.shape
    for name, x in micro.items()
  }
  return {
    name: jnp.zeros((capacity, *shape), micro[name].dtype, device=place)
    for name, shape in shapes.items()
  }


@functools.cache
def _write(mesh: Mesh) -> Callable[[Arrays, Arrays, np.int32], Arrays]:
  """Returns f(batch, micro, index), which writes a micro-batch into the batch in place."""

  def write(batch: Arrays, micro: Arrays, index: jax.Array) -> Arrays:
    return {
      name: jax.lax.dynamic_update_slice(x, micro[name][None], (index, *[0] * (x.ndim - 1)))
      for name, x in batch.items()
    }

  return jax.jit(write, donate_argnums=0, out_shardings=sharding.rows(mesh, 1))

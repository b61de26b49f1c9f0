"""Sharding of arrays: one table from logical axes to the mesh axes (data, fsdp, context, tensor).

Rows of a batch, and the activations of each row, are split over data and fsdp. The tokens of a row,
and its image slots, are split over context, in activations and pixels: the tables of a row (ids,
positions, masks) are small, and every device of its context has them whole. Heads, hidden units and
vocabulary are split over tensor, in parameters and in activations. The width is split over fsdp and
context in parameters only: an activation has its whole width where its tokens are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from paravt_jax.errors import ConfigError
from paravt_jax.models.placement import Place

MESH_AXES = ('data', 'fsdp', 'context', 'tensor')

RULES: Mapping[str, str | tuple[str, ...] | None] = {
  # activations
  'rows': ('data', 'fsdp'),
  'tokens': 'context',
  'slots': 'context',  # of a row's images
  'images': ('data', 'fsdp', 'context'),  # slots of all rows
  'shares': ('data', 'fsdp', 'context'),  # of the tokens to score
  # text decoder
  'layers': None,
  'vocab': 'tensor',
  'embed': ('fsdp', 'context'),
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'norm': None,
  'rank': None,
  # vision tower
  'taps': None,
  'time': None,
  'pixels': None,
  'vision_positions': None,
  'vision_embed': ('fsdp', 'context'),
  'vision_mlp': 'tensor',
  'vision_heads': 'tensor',
  'vision_qkv': 'tensor',
  'vision_norm': None,
  'merged': ('fsdp', 'context'),
  'merged_norm': None,
}


def is_axes(node: Any) -> bool:
  """Whether a node of a tree of logical axes is a leaf, such as ('layers', 'embed', 'mlp')."""
  return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[Any] | None = None,
  *,
  context: int = 1,
) -> Mesh:
  """Returns a mesh of data x fsdp x context x tensor devices, by default of jax.devices() in their
  order.

  Its axes are Auto: XLA chooses the shardings that the code does not name.

  Raises:
    ConfigError: the product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = (data, fsdp, context, tensor)
  if np.prod(sizes) != len(devices):
    raise ConfigError(
      f'mesh: got {product_of(sizes)}, wanted {len(devices)}, the number of devices; change '
      'config.mesh'
    )
  return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def product_of(sizes: Sequence[int]) -> str:
  """Returns the sizes of a mesh in words: 'data 1 x fsdp 8 x context 1 x tensor 1 = 8'."""
  return f'{" x ".join(map(" ".join, zip(MESH_AXES, map(str, sizes))))} = {np.prod(sizes)}'


def spec(axes: Sequence[str | None]) -> PartitionSpec:
  """Returns the mesh axes of an array with these logical axes.

  Raises:
    ConfigError: an axis without a rule, or two axes of one array on the same mesh axis.
  """
  unknown = [name for name in axes if name is not None and name not in RULES]
  if unknown:
    raise ConfigError(
      f'sharding: no rule for logical axis {unknown[0]!r} of {tuple(axes)}; add it to '
      'models/sharding.RULES'
    )
  entries = [None if name is None else RULES[name] for name in axes]
  used = [
    axis for entry in entries if entry for axis in ((entry,) if isinstance(entry, str) else entry)
  ]
  if len(used) != len(set(used)):
    raise ConfigError(
      f'sharding: {tuple(axes)} puts two axes on one mesh axis ({used}); change '
      'models/sharding.RULES'
    )
  return PartitionSpec(*entries)


def shards(entry: str | tuple[str, ...] | None, mesh: Mesh) -> int:
  """Returns the number of shards of a dimension with this entry of a PartitionSpec."""
  names = () if entry is None else (entry,) if isinstance(entry, str) else entry
  return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
  """Returns a NamedSharding per parameter.

  Args:
    axes: tree of tuples of logical names (model.logical_axes).
    shapes: the parameters, or jax.ShapeDtypeStruct of them, in the same tree.
    mesh: a mesh with axes MESH_AXES.

  Raises:
    ConfigError: an axis without a rule, names and shape of different length, or a sharded dimension
    that does not divide.
  """

  def one(path, names, leaf):
    where = jax.tree_util.keystr(path, simple=True, separator='/')
    if len(names) != len(leaf.shape):
      raise ConfigError(f'sharding: {where} has shape {tuple(leaf.shape)}, but names {names}')
    entries = spec(names)
    for name, size, entry in zip(names, leaf.shape, entries):
      if size % shards(entry, mesh):
        raise ConfigError(
          f'sharding: {where} has {name}={size}, wanted a multiple of {shards(entry, mesh)} '
          f'(mesh axes {entry}); choose a mesh that divides it'
        )
    return NamedSharding(mesh, entries)

  return jax.tree_util.tree_map_with_path(one, axes, shapes, is_leaf=is_axes)


def activations(mesh: Mesh) -> Place:
  """Returns the function that lays the model's activations on the mesh, by the names of their axes.

  An axis whose size does not divide, such as the one row of a canary, is not split. Without these
  constraints XLA may split the width over fsdp instead, and then every device needs all rows.
  """

  def of(shape: Sequence[int], axes: Sequence[str | None]) -> PartitionSpec:
    return _dividing(mesh, shape, spec(axes))

  return Place(mesh, of)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding in which every device has the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, leading: int) -> NamedSharding:
  """Returns the sharding that splits rows over the data axes.

  `leading` axes before the rows are not split: 1 for arrays [M, R, ...], 0 for [R, ...].
  """
  return NamedSharding(mesh, PartitionSpec(*[None] * leading, RULES['rows']))


def slots(mesh: Mesh, leading: int, count: int) -> NamedSharding:
  """Returns the sharding of images [..., R, N, ...]: that of `rows`, and slots over context.

  count: N; slots that the context axis does not divide are not split.
  """
  lead = (*(None,) * leading, 'rows', 'slots')
  return NamedSharding(mesh, _dividing(mesh, (*(0,) * (leading + 1), count), spec(lead)))


def _dividing(mesh: Mesh, shape: Sequence[int], entries: PartitionSpec) -> PartitionSpec:
  """Returns `entries` without those that the mesh does not divide, or does not split."""
  return PartitionSpec(
    *(
      entry if shards(entry, mesh) > 1 and size % shards(entry, mesh) == 0 else None
      for size, entry in zip(shape, entries)
    )
  )


def row_shards(mesh: Mesh) -> int:
  """Returns the number of shards of a micro-batch's rows, which must be a multiple of it."""
  return shards(RULES['rows'], mesh)


def token_shards(mesh: Mesh) -> int:
  """Returns the number of devices that share a row: each has a slice of its tokens."""
  return shards(RULES['tokens'], mesh)


def host_rows(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count): this process has part `index` of `count` parts of the rows.

  The parts of a micro-batch's rows are equal and contiguous.

  Processes with the same rows (a context or tensor axis across hosts) have the same index.

  Raises:
    ConfigError: this process's rows are not such a part, because the mesh orders devices across
    hosts in another way.
  """
  parts = row_shards(mesh)
  found = rows(mesh, 0).addressable_devices_indices_map((parts,)).values()
  slices = [index[0] for index in found if index is not None]
  mine = sorted({place for where in slices for place in range(*where.indices(parts))})
  if mine != list(range(mine[0], mine[0] + len(mine))) or parts % len(mine) or mine[0] % len(mine):
    raise ConfigError(
      f'mesh: this process holds parts {mine} of {parts} of the rows, wanted an equal, '
      'contiguous share; order the devices by process'
    )
  return mine[0] // len(mine), parts // len(mine)

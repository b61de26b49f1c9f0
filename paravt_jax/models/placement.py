"""Where activations lie on a mesh.

The model names the axes of its activations. The caller knows the mesh and the table from names to
mesh axes (`models/sharding.activations`), so that the model knows neither.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ['Place', 'anywhere']


@dataclasses.dataclass(frozen=True)
class Place:
  """Constrains the sharding of an array by the logical names of its axes.

  Called as place(x, 'rows', None, 'heads', None). None names an axis that is not split. The value
  of the array does not change. Without a mesh, or on one device, nothing is constrained.
  """

  mesh: Mesh | None = None  # the devices; attention runs its loops on each device's own rows
  # (shape, names of the axes) -> mesh axes of the array
  spec: Callable[[Sequence[int], Sequence[str | None]], PartitionSpec] | None = None

  def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x` with its sharding constrained."""
    if self.mesh is None or self.spec is None or self.mesh.size == 1:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self.spec(x.shape, axes)))

  def splits(self, size: int, axis: str) -> bool:
    """Returns whether an axis of this name and size is split."""
    if self.mesh is None or self.spec is None or self.mesh.size == 1:
      return False
    return self.spec((size,), (axis,))[0] is not None


anywhere = Place()

"""Where activations lie on a mesh.

The model names the axes of its activations. The caller knows the mesh and passes a function that
turns names into shardings (`train/sharding.activations`), so that the model knows no mesh.
"""

from typing import Protocol

import jax

__all__ = ['Place', 'anywhere']


class Place(Protocol):
  """Constrains the sharding of an array by the logical names of its axes.

  None names an axis that is not split. The value of the array does not change.
  """

  def __call__(self, x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x` with its sharding constrained."""
    ...


def anywhere(x: jax.Array, *axes: str | None) -> jax.Array:
  """Returns `x` as it is: the place on one device, and of programs without a mesh."""
  del axes
  return x

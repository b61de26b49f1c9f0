"""The learner's state: parameters, optimizer state and step, each leaf with its place on the
mesh.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.train import sharding
from paravt_jax.train.optimizer import Optimizer, partition


@flax.struct.dataclass
class State:
  """What a step reads and returns. The same tree can hold the shapes or shardings of its leaves."""

  step: Any  # int32, updates done (batches, not optimizer updates)
  params: Any  # all of them, frozen ones included, float32
  opt_state: Any  # of the trainable ones


def shardings(config: Config, optimizer: Optimizer, mesh: Mesh) -> State:
  """A State whose leaves are NamedShardings. Optimizer state lies where its parameter lies;
  counters are everywhere.
  """
  shapes = model.abstract_params(config)
  params = sharding.parameter_shardings(model.logical_axes(config), shapes, mesh)
  trainable, _ = partition(shapes, optimizer.frozen)
  opt_state = _like_params(
    jax.eval_shape(optimizer.transform.init, trainable), shapes, params, mesh
  )
  return State(step=sharding.replicated(mesh), params=params, opt_state=opt_state)


def abstract(config: Config, optimizer: Optimizer, mesh: Mesh) -> State:
  """The state as jax.ShapeDtypeStruct with shardings: the template for checkpoint.restore and for
  ahead-of-time compilation.
  """
  params = model.abstract_params(config)
  trainable, _ = partition(params, optimizer.frozen)
  shapes = State(
    jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.transform.init, trainable)
  )
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings(config, optimizer, mesh),
  )


def from_params(config: Config, optimizer: Optimizer, mesh: Mesh, params: Any) -> State:
  """A state at step 0 around given parameters (host or device arrays, copied), cast to float32 and
  placed on the mesh.
  """
  places = shardings(config, optimizer, mesh)
  placed = jax.tree.map(
    lambda x, place: jax.device_put(jnp.array(x, jnp.float32, copy=True), place),
    params,
    places.params,
  )
  return jax.jit(
    lambda params: from_values(params, optimizer), out_shardings=places, donate_argnums=0
  )(placed)


def from_values(params: Any, optimizer: Optimizer) -> State:
  """Parameters and an empty optimizer state around them; usable under jit and eval_shape."""
  trainable, _ = partition(params, optimizer.frozen)
  return State(jnp.zeros((), jnp.int32), params, optimizer.transform.init(trainable))


def _like_params(opt_state: Any, shapes: Any, places: Any, mesh: Mesh) -> Any:
  """Places of optimizer leaves: that of the parameter whose path ends theirs and whose shape they
  have.
  """
  by_path = {
    path: (leaf.shape, place)
    for (path, leaf), place in zip(
      jax.tree_util.tree_leaves_with_path(shapes),
      jax.tree.leaves(places, is_leaf=lambda x: isinstance(x, NamedSharding)),
    )
  }

  def place(path, leaf):
    for start in range(len(path)):
      shape, found = by_path.get(tuple(path[start:]), (None, None))
      if shape == leaf.shape:
        return found
    return sharding.replicated(mesh)

  return jax.tree_util.tree_map_with_path(place, opt_state)

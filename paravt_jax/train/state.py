"""The learner's state: parameters, optimizer state and step, each leaf with its sharding on the
mesh.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.train import sharding
from paravt_jax.train.optimizer import Optimizer, partition


@flax.struct.dataclass
class State:
  """The input and output of a step. The same tree can hold the shapes or shardings of its
  leaves.
  """

  step: Any  # int32, updates done (batches, not optimizer updates)
  params: Any  # all parameters, frozen ones too, float32
  opt_state: Any  # of the trainable parameters


def shardings(config: Config, optimizer: Optimizer, mesh: Mesh) -> State:
  """Returns a State of NamedShardings.

  Optimizer state has the sharding of its parameter; counters are replicated.
  """
  shapes = model.abstract_params(config)
  params = sharding.parameter_shardings(model.logical_axes(config), shapes, mesh)
  trainable, _ = partition(shapes, optimizer.frozen)
  opt_state = _like_params(
    jax.eval_shape(optimizer.transform.init, trainable), shapes, params, mesh
  )
  return State(step=sharding.replicated(mesh), params=params, opt_state=opt_state)


def abstract(config: Config, optimizer: Optimizer, mesh: Mesh) -> State:
  """Returns the state as jax.ShapeDtypeStruct with shardings.

  It is the template for checkpoint.restore and for ahead-of-time compilation.
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
  """Returns a state at step 0 with copies of these parameters, in float32 and on the mesh.

  The parameters may be host or device arrays. Host arrays go to their devices slice by slice: no
  device holds a whole parameter of a mesh.
  """
  places = shardings(config, optimizer, mesh)
  placed = jax.tree.map(_copy_to, params, places.params)
  return jax.jit(
    lambda params: from_values(params, optimizer), out_shardings=places, donate_argnums=0
  )(placed)


def _copy_to(x: Any, place: NamedSharding) -> jax.Array:
  """Returns a float32 copy of an array, with this sharding."""
  if isinstance(x, jax.Array):
    return jax.device_put(jnp.array(x, jnp.float32, copy=True), place)
  # a copy of each slice, because the caller may change its array
  return jax.make_array_from_callback(
    x.shape, place, lambda index: np.array(x[index], np.float32, copy=True)
  )


def reference(state: State, optimizer: Optimizer, dtype: Any) -> Any:
  """Returns the reference model of a step: copies of the trainable parameters in `dtype`.

  It has the shardings of the parameters and no optimizer state. Frozen parameters are left out,
  because the step takes them from the policy. Pass the dtype of the model's products: nothing else
  reads more digits of a parameter, except norms.
  """
  trainable, _ = partition(state.params, optimizer.frozen)
  places = jax.tree.map(lambda x: x.sharding, trainable)

  def cast(tree):
    return jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), tree)

  return jax.jit(cast, out_shardings=places)(trainable)


def abstract_reference(config: Config, optimizer: Optimizer, mesh: Mesh, dtype: Any) -> Any:
  """Returns the tree of `reference` as jax.ShapeDtypeStruct with shardings."""
  trainable, _ = partition(abstract(config, optimizer, mesh).params, optimizer.frozen)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), trainable
  )


def from_values(params: Any, optimizer: Optimizer) -> State:
  """Returns a state at step 0 with a fresh optimizer state; works under jit and eval_shape."""
  trainable, _ = partition(params, optimizer.frozen)
  return State(jnp.zeros((), jnp.int32), params, optimizer.transform.init(trainable))


def _like_params(opt_state: Any, shapes: Any, places: Any, mesh: Mesh) -> Any:
  """Returns the shardings of optimizer leaves.

  A leaf has the sharding of the parameter whose path ends the leaf's and whose shape is equal.
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

"""The learner's state: parameters, optimizer state and step, each leaf with its sharding on the
mesh.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from paravt_jax.models import lora, sharding
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.train.optimizer import Optimizer, partition


@flax.struct.dataclass
class State:
  """The input and output of a step. The same tree can hold the shapes or shardings of its
  leaves.
  """

  step: Any  # int32, updates done (batches, not optimizer updates)
  params: Any  # all parameters: float32, frozen ones in the optimizer's frozen_dtype
  opt_state: Any  # of the trainable parameters


def shardings(config: Config, optimizer: Optimizer, mesh: Mesh) -> State:
  """Returns a State of NamedShardings.

  Optimizer state has the sharding of its parameter; counters are replicated.
  """
  shapes = _shapes(config, optimizer)
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
  params = _shapes(config, optimizer)
  trainable, _ = partition(params, optimizer.frozen)
  shapes = State(
    jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.transform.init, trainable)
  )
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings(config, optimizer, mesh),
  )


def _shapes(config: Config, optimizer: Optimizer) -> Any:
  """Returns the parameters as jax.ShapeDtypeStruct, in the dtypes of the state."""
  trainable, frozen = partition(model.abstract_params(config), optimizer.frozen)
  dtype = jnp.dtype(optimizer.frozen_dtype)
  return {**trainable, **jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), frozen)}


def from_folder(
  folder: str | os.PathLike, config: Config, optimizer: Optimizer, mesh: Mesh, *, seed: int
) -> State:
  """Returns a state at step 0 with the parameters of a Hugging Face folder.

  Each shard is read onto its device; see `weights.load_sharded`. A folder has no adapter: that of
  the config is new, with random numbers of `seed`.

  Raises:
    DataError, ConfigError: as `weights.load_hf`.
  """
  places = shardings(config, optimizer, mesh)
  of_dtype: dict[str, dict[str, Any]] = {}
  for name, part in places.params.items():
    dtype = optimizer.frozen_dtype if name in optimizer.frozen else 'float32'
    if name != lora.PART:
      of_dtype.setdefault(dtype, {})[name] = part
  params = {}
  for dtype, wanted in of_dtype.items():
    params |= weights.load_sharded(folder, wanted, dtype)[1]
  if config.adapter is not None:
    params[lora.PART] = _new_adapter(config, places.params[lora.PART], seed)
  return _begin(params, optimizer, places)


def _new_adapter(config: Config, places: Any, seed: int) -> Any:
  """Returns an adapter's part on the mesh. XLA computes no other parameter."""
  key = jax.random.key(seed)
  return jax.jit(lambda: model.init(config, key)[lora.PART], out_shardings=places)()


def from_params(config: Config, optimizer: Optimizer, mesh: Mesh, params: Any) -> State:
  """Returns a state at step 0 with copies of these parameters on the mesh, in the state's dtypes.

  The parameters may be host or device arrays. Those of the host are copied shard by shard.
  """
  places = shardings(config, optimizer, mesh)

  def put(x: Any, place: NamedSharding, like: jax.ShapeDtypeStruct) -> jax.Array:
    if isinstance(x, jax.Array):
      return jax.device_put(jnp.array(x, like.dtype, copy=True), place)
    return jax.make_array_from_callback(
      x.shape, place, lambda part: np.array(x[part], like.dtype), dtype=like.dtype
    )

  shapes = _shapes(config, optimizer)
  return _begin(jax.tree.map(put, params, places.params, shapes), optimizer, places)


def _begin(params: Any, optimizer: Optimizer, places: State) -> State:
  trainable, _ = partition(params, optimizer.frozen)
  begin = jax.jit(optimizer.transform.init, out_shardings=places.opt_state)
  step = jax.device_put(jnp.zeros((), jnp.int32), places.step)
  return State(step, params, begin(trainable))


def without_frozen(full: State, optimizer: Optimizer) -> State:
  """Returns the state (of arrays, shapes or shardings) without the frozen parameters."""
  return dataclasses.replace(full, params=partition(full.params, optimizer.frozen)[0])


def with_frozen(part: State, frozen: Mapping[str, Any]) -> State:
  """Returns the state with the frozen parameters again; the inverse of `without_frozen`."""
  return dataclasses.replace(part, params={**part.params, **frozen})


def fingerprint(params: Any) -> str:
  """Returns a hash of the values of some parameters, computed on their devices.

  It does not depend on the sharding. Equal values in float32 and bfloat16 have the same hash.
  """
  sums = jax.device_get(_bit_sums(params))
  named = [
    [jax.tree_util.keystr(path, simple=True, separator='/'), *values.tolist()]
    for path, values in jax.tree_util.tree_leaves_with_path(sums)
  ]
  return hashlib.blake2b(json.dumps(named).encode(), digest_size=16).hexdigest()


@jax.jit
def _bit_sums(params: Any) -> Any:
  """Returns uint32[2] per leaf: sums of the values' bits, weighted by their positions.

  Sums of integers do not depend on their order, so every mesh gives the same ones.
  """

  def one(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits ^ (bits >> 15)) * (2 * position + 1)
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(mixed, dtype=jnp.uint32)])

  return jax.tree.map(one, params)


def reference(state: State, optimizer: Optimizer, dtype: Any) -> Any:
  """Returns the reference model of a step: copies of the trainable parameters in `dtype`.

  It has the shardings of the parameters and no optimizer state. Frozen parameters are left out,
  because the step takes them from the policy. So is an adapter: its reference is the base, and
  nothing is copied. Pass the dtype of the model's products: nothing else reads more digits of a
  parameter, except norms.
  """
  trainable = referred(state.params, optimizer)
  places = jax.tree.map(lambda x: x.sharding, trainable)

  def cast(tree):
    return jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), tree)

  return jax.jit(cast, out_shardings=places)(trainable)


def abstract_reference(config: Config, optimizer: Optimizer, mesh: Mesh, dtype: Any) -> Any:
  """Returns the tree of `reference` as jax.ShapeDtypeStruct with shardings."""
  trainable = referred(abstract(config, optimizer, mesh).params, optimizer)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), trainable
  )


def referred(params: Any, optimizer: Optimizer) -> Any:
  """Returns the parts of the parameters (or of their shardings) that a reference copies."""
  trainable, _ = partition(params, optimizer.frozen)
  return {name: part for name, part in trainable.items() if name != lora.PART}


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

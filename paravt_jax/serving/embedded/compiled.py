"""The engine's programs, compiled ahead of time for fixed shapes, on one device or a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from paravt_jax.serving.embedded import programs


class Programs:
  """All programs of one engine, compiled ahead of time. Calls never compile again."""

  def __init__(
    self, shapes: programs.Shapes, params: programs.Tree, lanes: tuple[tuple[int, int], ...]
  ):
    s = shapes
    i32 = functools.partial(_whole, s, np.int32)
    # Compile from shapes alone, so that no array is allocated for it.
    weights = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_of_mesh(s, x.sharding)), params
    )
    pool, features = (
      _laid(s, lambda: programs.new_pool(s)),
      _laid(s, lambda: programs.new_features(s)),
    )
    pixels = _whole(s, np.uint8, s.image_batch, s.patches, 3 * s.config.vision.patch**2)
    images = (pixels, i32(s.image_batch, 2), i32(s.image_batch))
    self.encode = _compiled(s, programs.encode, (1,), features, weights, features, *images)
    rows = (s.rows, s.chunk)
    table = i32(s.rows, s.context // s.chunk)
    chunk = (i32(*rows), i32(3, *rows), i32(*rows), table, i32(s.rows), i32(s.rows))
    self.prefill = _compiled(s, programs.prefill, (1,), pool, weights, pool, features, *chunk)
    self.admit, self.decode = [], []
    bias = _whole(s, np.float32, s.biases, s.config.text.vocab)
    # Each lane shape has its own admit and decode program.
    for context, slots in lanes:
      lane = _laid(s, lambda context=context, slots=slots: programs.new_lane(s, context, slots))
      new = jax.tree.map(
        lambda x: _whole(s, x.dtype, *x.shape), programs.admission(s, context // s.chunk)
      )
      self.admit.append(_compiled(s, programs.admit, (0, 1), lane, *lane, pool, new, i32()))
      sampled = (i32(s.steps, slots), _whole(s, np.float32, s.steps, slots))
      keep = _whole(s, np.bool_, slots)
      self.decode.append(
        _compiled(s, programs.decode, (1, 2), (*lane, *sampled), weights, *lane, bias, keep)
      )


def _whole(s: programs.Shapes, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
  """Returns the form of an array that every device has whole."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=s.sharding(shape))


def _of_mesh(s: programs.Shapes, found: Any) -> Any:
  return None if s.place.mesh is None else found


def _laid(s: programs.Shapes, make: Callable[[], programs.Tree]) -> programs.Tree:
  """Returns the forms of the engine's stores, in which keys and values are split by heads."""

  def one(path: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    split = any(getattr(key, 'key', None) in ('k', 'v') for key in path)
    where = s.sharding(x.shape, *(programs.CACHE if split else ()))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  return jax.tree_util.tree_map_with_path(one, jax.eval_shape(make))


def _compiled(
  s: programs.Shapes, f: Callable, donate: tuple[int, ...], out: programs.Tree, *args: Any
) -> Callable:
  """Compiles f(s, *args). On a mesh, results lie as the forms `out` say."""
  places = None if s.place.mesh is None else jax.tree.map(lambda x: x.sharding, out)
  jitted = jax.jit(functools.partial(f, s), donate_argnums=donate, out_shardings=places)
  return jitted.lower(*args).compile()

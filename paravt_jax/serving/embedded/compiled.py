"""The engine's programs, compiled ahead of time for fixed shapes, on one device or a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.serving.embedded import layouts, paged, programs, slots
from paravt_jax.serving.embedded.programs import Shapes, Tree


class Block(Protocol):
  """What the programs of a lane keep for some slots."""

  state: Tree
  caches: Tree  # columns of the slots; () where decoding reads pages


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that can be compiled, and the forms of its arguments."""

  jitted: Any  # of jax.jit
  arguments: tuple[Any, ...]

  def compile(self) -> Callable[..., Any]:
    """Compiles for the devices of the arguments, or the default one."""
    return self.jitted.lower(*self.arguments).compile()


class Programs:
  """All programs of one engine, compiled ahead of time. Calls never compile again."""

  def __init__(self, s: Shapes, params: Tree, lanes: Sequence[tuple[int, int]]):
    # Compile from shapes alone, so that no array is allocated for it.
    weights = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_of_mesh(s, x.sharding)), params
    )
    self.paged = s.layout.paged
    self.encode = encode(s, weights).compile()
    self.prefill = prefill(s, weights).compile()
    # Each lane shape has its own admit and decode program.
    self._admit = [admit(s, *lane).compile() for lane in lanes]
    self._decode = [decode(s, weights, *lane).compile() for lane in lanes]
    self._clear_pool = _clear(s, pool(s))
    self._clear_caches = [_clear(s, new_block(s, *lane)[1]) for lane in lanes]

  def admit(self, lane: int, block: Block, pool: Tree, rows: Tree, count: int) -> Tree:
    """Puts the first `count` rows in slots of a block. Returns the pool."""
    call, number = self._admit[lane], np.int32(count)
    if self.paged:
      block.state, pool = call(block.state, pool, rows, number)
    else:
      block.state, block.caches = call(block.state, block.caches, pool, rows, number)
    return pool

  def decode(
    self, lane: int, params: Tree, block: Block, pool: Tree, biases: jax.Array, keep_S: np.ndarray
  ) -> tuple[Tree, np.ndarray, np.ndarray]:
    """Decodes a block. Returns the pool, and tokens and log-probs [steps, S] on the host."""
    call = self._decode[lane]
    if self.paged:
      block.state, pool, tokens, logprobs = call(params, block.state, pool, biases, keep_S)
    else:
      block.state, block.caches, tokens, logprobs = call(
        params, block.state, block.caches, biases, keep_S
      )
    return pool, np.asarray(tokens), np.asarray(logprobs)

  def clear(self, pages: Tree, blocks: Sequence[Sequence[Block]]) -> Tree:
    """Writes zeros to the pages, which it returns, and to the columns of every lane's blocks."""
    for clear, lane in zip(self._clear_caches, blocks):
      for block in lane:
        block.caches = clear(block.caches)
    return self._clear_pool(pages)


def _clear(s: Shapes, forms: Tree) -> Callable[[Tree], Tree]:
  """Returns a compiled program that writes zeros to arrays of these forms."""

  def clear(_, arrays):
    return jax.tree.map(jnp.zeros_like, arrays)

  return _program(s, clear, (0,), forms, (forms,)).compile()


def encode(s: Shapes, weights: Tree) -> Program:
  """Returns the program that encodes images."""
  kept = features(s)
  pixels = _whole(s, np.uint8, s.image_batch, s.patches, 3 * s.config.vision.patch**2)
  grids, places = (_whole(s, np.int32, *shape) for shape in ((s.image_batch, 2), (s.image_batch,)))
  arguments = (weights, kept, pixels, grids, places)
  return _program(s, programs.encode, (1,), kept, arguments)


def prefill(s: Shapes, weights: Tree) -> Program:
  """Returns the program that computes pages."""
  i32 = functools.partial(_whole, s, np.int32)
  pages = pool(s)
  rows, one = (s.rows, s.chunk), i32(s.rows)
  chunk = (i32(*rows), i32(3, *rows), i32(*rows), i32(s.rows, s.context // s.chunk), one, one)
  return _program(s, programs.prefill, (1,), pages, (weights, pages, features(s), *chunk))


def admit(s: Shapes, context: int, count: int) -> Program:
  """Returns the program that puts contexts in `count` slots."""
  rows = jax.tree.map(
    lambda x: _whole(s, x.dtype, *x.shape), programs.admission(s, context // s.chunk)
  )
  kept = new_block(s, context, count)
  number = _whole(s, np.int32)
  if s.layout.paged:
    kept = (kept[0], pool(s))
    return _program(s, paged.admit, (0, 1), kept, (*kept, rows, number))
  return _program(s, slots.admit, (0, 1), kept, (*kept, pool(s), rows, number))


def decode(s: Shapes, weights: Tree, context: int, count: int) -> Program:
  """Returns the program that samples tokens for `count` slots."""
  state, caches = new_block(s, context, count)
  biases = _whole(s, np.float32, s.biases, s.config.text.vocab)
  sampled = (_whole(s, np.int32, s.steps, count), _whole(s, np.float32, s.steps, count))
  kept, call = (state, caches), slots.decode
  if s.layout.paged:
    kept, call = (state, pool(s)), paged.decode
  arguments = (weights, *kept, biases, _whole(s, np.bool_, count))
  return _program(s, call, (1, 2), (*kept, *sampled), arguments)


def new_block(s: Shapes, context: int, count: int) -> tuple[Tree, Tree]:
  """Returns the forms of the state and columns of `count` slots (`Block`)."""
  state, caches = jax.eval_shape(lambda: make_block(s, context, count))
  return _laid(s, state), _laid(s, caches, *layouts.SlotPages.axes)


def make_block(s: Shapes, context: int, count: int) -> tuple[Tree, Tree]:
  """Returns the state and columns of `count` empty slots (`Block`)."""
  state = programs.new_state(s, count)
  if s.layout.paged:
    return {**state, 'table': paged.new_table(s, context, count)}, ()
  return state, slots.new_caches(s, context, count)


def pool(s: Shapes) -> Tree:
  """Returns the forms of the pages of all layers (`programs.new_pool`)."""
  forms = jax.eval_shape(lambda: programs.new_pool(s))
  return {**_laid(s, forms), 'layers': _laid(s, forms['layers'], *s.layout.axes)}


def features(s: Shapes) -> Tree:
  """Returns the forms of image features (`programs.new_features`)."""
  return _laid(s, jax.eval_shape(lambda: programs.new_features(s)))


def _whole(s: Shapes, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
  """Returns the form of an array that every device has whole."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=s.sharding(shape))


def _of_mesh(s: Shapes, found: Any) -> Any:
  return None if s.place.mesh is None else found


def _laid(s: Shapes, forms: Tree, *axes: str | None) -> Tree:
  """Returns the forms on the devices, all arrays with the same logical axes; () is everywhere."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s.sharding(x.shape, *axes)), forms
  )


def _program(
  s: Shapes, call: Callable, donate: tuple[int, ...], out: Tree, arguments: tuple[Any, ...]
) -> Program:
  """Returns call(s, *arguments) as a program. On a mesh, results lie as the forms `out` say."""

  @functools.wraps(call)  # a profile names the program by it
  def run(*given):
    return call(s, *given)

  places = None if s.place.mesh is None else jax.tree.map(lambda x: x.sharding, out)
  # also weights that it does not use, so that the compiler counts what the server holds
  jitted = jax.jit(run, donate_argnums=donate, out_shardings=places, keep_unused=True)
  return Program(jitted, arguments)

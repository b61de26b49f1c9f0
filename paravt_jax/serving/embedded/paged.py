"""Decoding from pages: a slot has a table of pages, and no keys or values of its own.

Whole pages of a context's beginning are shared with every context that has the same. A slot writes
only to pages that it alone has: at admission the last page of its context, if it is not full, is
copied to the first of them. The axis letters are those of `programs.py`.
"""

import jax
import jax.numpy as jnp

from paravt_jax.serving.embedded import programs
from paravt_jax.serving.embedded.programs import Shapes, Tree


def new_table(s: Shapes, context: int, slots: int) -> jax.Array:
  """Returns the tables of empty slots, int32[S, pages]: the extra page everywhere."""
  shape = (slots, context // s.chunk)
  return jnp.full(shape, s.pages, jnp.int32, device=s.sharding(shape))


def admit(s: Shapes, state: Tree, pool: Tree, rows: Tree, number: jax.Array) -> tuple[Tree, Tree]:
  """Puts the first `number` rows in their slots, and copies the pages that they will write to.

  rows: as `programs.admission` makes them. Its table ends in pages that the slot alone has.

  Returns:
    state, pool.
  """

  def one(a, carry):
    state, layers = carry
    old, new = rows['copied'][a]
    layers = tuple(s.layout.copy_page(layer, old, new) for layer in layers)
    table = jax.lax.dynamic_update_slice(
      state['table'], rows['table'][a][None], (rows['slot'][a], 0)
    )
    return {**programs.admitted(state, pool, rows, a), 'table': table}, layers

  state, layers = jax.lax.fori_loop(0, number, one, (state, pool['layers']))
  return state, {**pool, 'layers': layers}


def decode(
  s: Shapes, params: Tree, state: Tree, pool: Tree, bias_table: jax.Array, keep_S: jax.Array
) -> tuple[Tree, Tree, jax.Array, jax.Array]:
  """Samples tokens as `programs.sample_tokens` says, and writes their keys and values to pages.

  Returns:
    state, pool, int32[steps, S] tokens (-1: none), float32[steps, S] log-probs.
  """
  table_SP = state['table']

  def attend(i, state, layer, number, q, k, v):
    del i, number
    # A slot without a context may name pages that others have: it writes to the extra page, and
    # reads one token.
    active_S, length_S = state['active'], state['length']
    page_S = jnp.take_along_axis(table_SP, length_S[:, None] // s.chunk, axis=1, mode='clip')[:, 0]
    page_S = jnp.where(active_S, page_S, s.pages)
    layer = s.layout.write_tokens(layer, k[:, 0], v[:, 0], page_S, length_S % s.chunk)
    last_S = jnp.where(active_S, length_S, 0)
    return s.layout.attend_tokens(q, layer, table_SP, last_S, s.place.mesh), layer

  state, layers, tokens, logprobs = programs.sample_tokens(
    s, params, state, pool['layers'], bias_table, keep_S, attend
  )
  return state, {**pool, 'layers': layers}, tokens, logprobs

"""Decoding from contiguous columns: each slot has a copy of its context's keys and values.

Columns of all slots have one length, so the products of a step are few and regular. The axis
letters are those of `programs.py`.
"""

import functools

import jax
import jax.numpy as jnp

from paravt_jax.serving.embedded import layouts, programs
from paravt_jax.serving.embedded.programs import Shapes, Tree

_FAR = -1e30


def new_caches(s: Shapes, context: int, slots: int) -> Tree:
  """Returns empty columns: k [S, K, F, U], v [S, K, U, F] per layer.

  U has space for one extra dispatch.
  """
  t, columns = s.config.text, context + s.steps
  k, v = (slots, t.kv_heads, t.head_dim, columns), (slots, t.kv_heads, columns, t.head_dim)
  zeros = lambda shape: s.zeros(s.dtype, shape, *layouts.SlotPages.axes)
  return tuple((zeros(k), zeros(v)) for _ in range(t.layers))


def admit(
  s: Shapes, state: Tree, caches: Tree, pool: Tree, rows: Tree, number: jax.Array
) -> tuple[Tree, Tree]:
  """Copies the pages of the first `number` rows to their slots and initializes the slots' state.

  rows: as `programs.admission` makes them.
  """
  del s  # the shapes of the arrays say all

  def one(a, carry):
    state, caches = carry
    slot, table = rows['slot'][a], rows['table'][a]
    put = lambda into, row: jax.lax.dynamic_update_slice(
      into, row[None].astype(into.dtype), (slot,) + (0,) * row.ndim
    )
    # Join pages into the slot's contiguous columns: k [K, F, U], v [K, U, F].
    join_k = lambda pages: pages[table].transpose(1, 2, 0, 3).reshape(*pages.shape[1:3], -1)
    join_v = lambda pages: (
      pages[table].transpose(1, 0, 2, 3).reshape(pages.shape[1], -1, pages.shape[3])
    )
    caches = tuple(
      (put(k, join_k(k_pages)), put(v, join_v(v_pages)))
      for (k, v), (k_pages, v_pages) in zip(caches, pool['layers'])
    )
    return programs.admitted(state, pool, rows, a), caches

  return jax.lax.fori_loop(0, number, one, (state, caches))


def decode(
  s: Shapes, params: Tree, state: Tree, caches: Tree, bias_table: jax.Array, keep_S: jax.Array
) -> tuple[Tree, Tree, jax.Array, jax.Array]:
  """Samples tokens as `programs.sample_tokens` says.

  New keys and values go to a side cache, at the same column for all slots. They are merged into the
  main cache once, at the end.

  Returns:
    state, caches, int32[steps, S] tokens (-1: none), float32[steps, S] log-probs.
  """
  length = state['length']

  def attend(i, state, side, layer, q, k, v):
    del state  # columns have the length from before the call
    side_k = jax.lax.dynamic_update_slice(side[0], k.transpose(0, 2, 3, 1), (0, 0, 0, i))
    side_v = jax.lax.dynamic_update_slice(side[1], v.transpose(0, 2, 1, 3), (0, 0, i, 0))
    keys, values = caches[layer]
    return _attend_slots(q, keys, values, length, side_k, side_v, i), (side_k, side_v)

  side = _side_columns(s, keep_S.shape[0])
  state, side, tokens, logprobs = programs.sample_tokens(
    s, params, state, side, bias_table, keep_S, attend
  )
  return state, _merge(caches, side, length), tokens, logprobs


def _side_columns(s: Shapes, slots: int) -> Tree:
  """Returns empty columns for the tokens of one dispatch, k [S, K, F, steps], v [S, K, steps, F]."""
  t = s.config.text
  k, v = (slots, t.kv_heads, t.head_dim, s.steps), (slots, t.kv_heads, s.steps, t.head_dim)
  return tuple((jnp.zeros(k, s.dtype), jnp.zeros(v, s.dtype)) for _ in range(t.layers))


def _merge(caches: Tree, side: Tree, length_S: jax.Array) -> Tree:
  """Writes each slot's side columns after its first `length` columns."""

  def one(slot, caches):
    put = lambda c, x, *at: jax.lax.dynamic_update_slice(
      c, jax.lax.dynamic_slice_in_dim(x, slot, 1, 0), (slot, *at)
    )
    end = length_S[slot]
    return tuple(
      (put(k, new_k, 0, 0, end), put(v, new_v, 0, end, 0))
      for (k, v), (new_k, new_v) in zip(caches, side)
    )

  return jax.lax.fori_loop(0, length_S.shape[0], one, caches)


def _attend_slots(
  q_S1HF: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  length_S: jax.Array,
  side_k: jax.Array,
  side_v: jax.Array,
  step: jax.Array,
) -> jax.Array:
  """Attends with one query per slot over its first `length` columns and side columns 0..`step`."""
  (slots, _, heads, width), kv_heads, columns = q_S1HF.shape, keys.shape[1], keys.shape[3]
  # Scores over both caches share one maximum and one normalizer.
  q_SKGF = (q_S1HF * width**-0.5).reshape(slots, kv_heads, heads // kv_heads, width)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  main = jnp.where(
    jnp.arange(columns) < length_S[:, None, None, None], dot('SKGF,SKFU->SKGU', q_SKGF, keys), _FAR
  )
  new = jnp.where(jnp.arange(side_k.shape[3]) <= step, dot('SKGF,SKFU->SKGU', q_SKGF, side_k), _FAR)
  top = jnp.maximum(main.max(-1, keepdims=True), new.max(-1, keepdims=True))
  main, new = jnp.exp(main - top), jnp.exp(new - top)
  total = main.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
  out = dot('SKGU,SKUF->SKGF', main.astype(values.dtype), values) + dot(
    'SKGU,SKUF->SKGF', new.astype(values.dtype), side_v
  )
  return (out / total).reshape(q_S1HF.shape).astype(q_S1HF.dtype)

"""The engine's device programs: encode images, prefill pages, admit contexts to slots, decode.

Every program has one fixed shape. What it computes for a row depends on that row's inputs alone, so
a request's result does not depend on other requests in the batch. On a mesh, weights, keys and
values are split by heads, hidden units and vocabulary (`models/sharding.RULES`); features, states
and what is sampled are whole on every device. The axis letters are those of
`paravt_jax.shapes`: R rows of a prefill, T tokens of its chunk (a page), S contexts in slots, U
columns of a slot's cache.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.placement import Place, anywhere
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.models.sharding import is_axes
from paravt_jax.serving.embedded import sampling

_FAR = -1e30
CACHE = (None, 'kv_heads', None, None)  # logical axes of keys and values
ADMIT_ROWS = 8  # contexts copied to slots per admission call

Tree = Any


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Fixed sizes of all programs. ServerOptions explains them."""

  config: Config
  dtype: str
  chunk: int
  rows: int
  pages: int
  context: int
  steps: int
  image_batch: int
  image_slots: int
  patches: int
  stops: int
  biases: int
  place: Place = anywhere  # on the devices that share the model

  def sharding(self, shape: Sequence[int], *axes: str | None) -> NamedSharding | None:
    """Returns where an array with these logical axes lies; () is everywhere. None on one device."""
    if self.place.mesh is None or self.place.spec is None:
      return None
    return NamedSharding(self.place.mesh, self.place.spec(shape, axes))

  def zeros(self, dtype: str, shape: Sequence[int], *axes: str | None) -> jax.Array:
    """Returns zeros that lie as `sharding` says."""
    return jnp.zeros(shape, dtype, device=self.sharding(shape, *axes))

  @property
  def merged(self) -> int:
    """Merged tokens of the largest image."""
    return self.patches // self.config.vision.merge**2


class _Stack:
  """Separate layers that are indexed by `[i]` like a stacked array.

  Slicing a real stack would copy the layer at every step.
  """

  def __init__(self, layers):
    self._layers = layers

  def __getitem__(self, index: int) -> jax.Array:
    return self._layers[index]


def place_on(config: Config, count: int, devices: Sequence[Any] | None = None) -> Place:
  """Returns where a model lies that `count` devices share.

  Args:
    devices: those of the model alone, for a process with other work; None: the first of JAX's.

  Raises:
    ConfigError: there are too few devices, or they do not divide heads, hidden units or vocabulary.
  """
  if count == 1 and devices is None:
    return anywhere
  found = jax.devices() if devices is None else devices
  if len(found) < count:
    raise ConfigError(
      f'server.embedded.tensor_parallel={count}: this process has {len(found)} devices '
      f'({found[0].platform}); wanted at most as many'
    )
  mesh = sharding.make_mesh(1, 1, count, found[:count])
  axes, shapes = model.logical_axes(config), model.abstract_params(config)
  sharding.parameter_shardings(axes, shapes, mesh)
  return sharding.activations(mesh)


def prepare(config: Config, params: Tree, dtype: str, place: Place = anywhere) -> Tree:
  """Puts model parameters on the devices, in the compute dtype, with the text layers unstacked."""

  def put(array: Any, axes: tuple[str, ...]) -> jax.Array:
    if place.mesh is None or place.spec is None:
      return jnp.asarray(array, dtype)
    where = NamedSharding(place.mesh, place.spec(array.shape, axes))
    # cast first: half the bytes travel. An array of the host is cut there, so no device has it whole
    own = isinstance(array, jax.Array)
    return jax.device_put(array.astype(dtype) if own else np.asarray(array).astype(dtype), where)

  def put_all(tree: Tree, axes: Tree) -> Tree:
    return jax.tree.map(lambda names, array: put(array, names), axes, tree, is_leaf=is_axes)

  axes = model.logical_axes(config)
  layers, layer_axes = params['text']['layers'], axes['text']['layers']
  apart = tuple(
    jax.tree.map(
      lambda names, stacked, i=i: put(stacked[i], names[1:]), layer_axes, layers, is_leaf=is_axes
    )
    for i in range(config.text.layers)
  )
  whole = {
    name: {part: tree for part, tree in parts.items() if (name, part) != ('text', 'layers')}
    for name, parts in params.items()
  }
  wanted = {name: {part: axes[name][part] for part in parts} for name, parts in whole.items()}
  made = put_all(whole, wanted)
  return {**made, 'text': {**made['text'], 'layers': apart}}


def with_indexed_layers(params: Tree) -> Tree:
  layers = jax.tree.map(lambda *leaves: _Stack(leaves), *params['text']['layers'])
  return {**params, 'text': {**params['text'], 'layers': layers}}


def new_pool(s: Shapes) -> Tree:
  """Returns empty pages, one more than `s.pages`: padding rows write to the last one.

  Shapes per layer: k [pages, K, F, T], v [pages, K, T, F]. tail: [pages, D], the last hidden state.
  """
  t, pages = s.config.text, s.pages + 1
  k, v = (pages, t.kv_heads, t.head_dim, s.chunk), (pages, t.kv_heads, s.chunk, t.head_dim)
  return {
    'k': tuple(s.zeros(s.dtype, k, *CACHE) for _ in range(t.layers)),
    'v': tuple(s.zeros(s.dtype, v, *CACHE) for _ in range(t.layers)),
    'tail': s.zeros(s.dtype, (pages, t.width)),
  }


def new_features(s: Shapes) -> Tree:
  """Returns empty image features, with one extra slot that padding images write to."""
  slots, width = s.image_slots + 1, s.config.text.width
  return {
    'merged': s.zeros(s.dtype, (slots, s.merged, width)),
    'deepstack': s.zeros(s.dtype, (len(s.config.vision.taps), slots, s.merged, width)),
  }


def new_lane(s: Shapes, context: int, slots: int) -> tuple[Tree, Tree]:
  """Returns the state of all slots and their caches: k [S, K, F, U], v [S, K, U, F] per layer.

  U has space for one extra dispatch.
  """
  t, columns = s.config.text, context + s.steps
  zeros = lambda dtype, *shape: s.zeros(dtype, (slots, *shape))
  everywhere = s.sharding(())
  state = {
    'hidden': zeros(s.dtype, t.width),
    'length': zeros('int32'),
    'position': zeros('int32'),
    'active': zeros('bool'),
    'sampling': jax.tree.map(
      lambda x: x if everywhere is None else jax.device_put(x, everywhere),
      sampling.zeros(slots, s.stops),
    ),
  }
  k, v = (slots, t.kv_heads, t.head_dim, columns), (slots, t.kv_heads, columns, t.head_dim)
  return state, {
    'k': tuple(s.zeros(s.dtype, k, *CACHE) for _ in range(t.layers)),
    'v': tuple(s.zeros(s.dtype, v, *CACHE) for _ in range(t.layers)),
  }


def encode(
  s: Shapes,
  params: Tree,
  features: Tree,
  patches_NXC: jax.Array,
  grids_N2: jax.Array,
  slot_N: jax.Array,
) -> Tree:
  """Encodes N images and writes their features to their slots. Returns the updated features."""
  # The images form one batch row: patches [1, N, X, 1, C], grids [1, N, 2].
  new = model.encode_images(
    s.config,
    params,
    patches_NXC[None, :, :, None],
    grids_N2[None],
    jnp.dtype(s.dtype),
    place=s.place,
  )
  merged, deepstack = features['merged'], features['deepstack']
  for n in range(s.image_batch):
    merged = jax.lax.dynamic_update_slice(merged, new.merged_BNYD[0, n : n + 1], (slot_N[n], 0, 0))
    deepstack = jax.lax.dynamic_update_slice(
      deepstack, new.deepstack_JBNYD[:, 0, n : n + 1], (0, slot_N[n], 0, 0)
    )
  return {'merged': merged, 'deepstack': deepstack}


def prefill(
  s: Shapes,
  params: Tree,
  pool: Tree,
  features: Tree,
  token_RT: jax.Array,
  position_ART: jax.Array,
  visual_index_RT: jax.Array,
  page_table: jax.Array,
  chunk_R: jax.Array,
  count_R: jax.Array,
) -> Tree:
  """Computes one chunk per row and writes its keys and values to its page.

  Rows may be successive chunks of one context, because each layer writes before it reads.

  visual_index_RT: index into the flattened features, -1 for text. page_table: int[R, pages], the
  pages of the row's context, including the row's page. chunk_R: index of the row's chunk in its
  context. count_R: real tokens of the chunk; the rest is padding.
  """
  keys, values = list(pool['k']), list(pool['v'])
  page_R = jnp.take_along_axis(page_table, chunk_R[:, None], axis=1)[:, 0]

  def attend(layer, q, k, v):
    # Write every row's page before any row reads it.
    k_RKFT, v_RKTF = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    for r in range(s.rows):
      keys[layer] = jax.lax.dynamic_update_slice(
        keys[layer], k_RKFT[r : r + 1], (page_R[r], 0, 0, 0)
      )
      values[layer] = jax.lax.dynamic_update_slice(
        values[layer], v_RKTF[r : r + 1], (page_R[r], 0, 0, 0)
      )
    return _attend_pages(q, keys[layer], values[layer], page_table, chunk_R)

  # Gather the features of image tokens [R, T, D]; text tokens gather slot 0 and ignore it.
  seen_RT = jnp.where(visual_index_RT >= 0, jnp.arange(s.chunk), -1)
  place_RT = jnp.maximum(visual_index_RT, 0)
  flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])
  own = model.Features(
    flat(features['merged'])[place_RT][:, None],
    flat(features['deepstack'])[:, place_RT][:, :, None],
  )
  dtype = jnp.dtype(s.dtype)
  stacked = with_indexed_layers(params)
  x_RTD = model.embed(stacked, token_RT, own, seen_RT, dtype, s.place)
  x_RTD = model.run_layers(s.config, stacked, x_RTD, position_ART, own, seen_RT, attend, s.place)
  # The hidden state of a chunk's last token starts decoding if the context ends there.
  last_R1D = jnp.take_along_axis(x_RTD, (count_R - 1)[:, None, None], axis=1)
  tail = pool['tail']
  for r in range(s.rows):
    tail = jax.lax.dynamic_update_slice(tail, last_R1D[r], (page_R[r], 0))
  return {'k': tuple(keys), 'v': tuple(values), 'tail': tail}


def _attend_pages(
  q_RTHF: jax.Array, keys: jax.Array, values: jax.Array, page_table: jax.Array, chunk_R: jax.Array
) -> jax.Array:
  """Attends over the pages of each row with an online softmax (Milakov & Gimelshein 2018).

  The loop ends after the last page of the longest row.

  A page after a row's last one does not change that row's sums, so other rows do not affect its
  result.
  """
  (rows, chunk, heads, width), kv_heads = q_RTHF.shape, keys.shape[1]
  groups = heads // kv_heads
  # Group the query heads by key head: Q = groups * chunk queries per key head.
  q_RKQF = (
    (q_RTHF * width**-0.5)
    .reshape(rows, chunk, kv_heads, groups, width)
    .transpose(0, 2, 3, 1, 4)
    .reshape(rows, kv_heads, groups * chunk, width)
  )
  place_RQ = chunk_R[:, None] * chunk + jnp.tile(jnp.arange(chunk), groups)

  def step(j, carry):
    # Running maximum, sum of weights and weighted values, rescaled to the new maximum.
    top, total, out = carry
    page_R = page_table[:, j]
    score = jnp.einsum('RKQF,RKFU->RKQU', q_RKQF, keys[page_R], preferred_element_type=jnp.float32)
    visible = (j * chunk + jnp.arange(chunk)) <= place_RQ[:, :, None]
    score = jnp.where(visible[:, None], score, _FAR)
    new_top = jnp.maximum(top, score.max(-1, keepdims=True))
    weight, keep = jnp.exp(score - new_top), jnp.exp(top - new_top)
    add = jnp.einsum(
      'RKQU,RKUF->RKQF',
      weight.astype(values.dtype),
      values[page_R],
      preferred_element_type=jnp.float32,
    )
    return new_top, total * keep + weight.sum(-1, keepdims=True), out * keep + add

  column = jnp.zeros((rows, kv_heads, groups * chunk, 1), jnp.float32)
  start = (column + _FAR, column, jnp.zeros(q_RKQF.shape, jnp.float32))
  _, total, out = jax.lax.fori_loop(0, chunk_R.max() + 1, step, start)
  out_RKGTF = (out / total).reshape(rows, kv_heads, groups, chunk, width)
  return out_RKGTF.transpose(0, 3, 1, 2, 4).reshape(q_RTHF.shape).astype(q_RTHF.dtype)


def admit(
  s: Shapes, state: Tree, caches: Tree, pool: Tree, rows: Tree, number: jax.Array
) -> tuple[Tree, Tree]:
  """Copies the pages of the first `number` rows to their slots and initializes the slots' state.

  rows: slot [rows], table [rows, pages of the lane], last (page of the last token) [rows], length
  [rows], position [rows], sampling (per row).
  """

  def one(a, carry):
    state, caches = carry
    slot, table = rows['slot'][a], rows['table'][a]
    put = lambda into, row: jax.lax.dynamic_update_slice(
      into, row[None].astype(into.dtype), (slot,) + (0,) * row.ndim
    )
    join_k = lambda pages: pages[table].transpose(1, 2, 0, 3).reshape(*pages.shape[1:3], -1)
    join_v = lambda pages: (
      pages[table].transpose(1, 0, 2, 3).reshape(pages.shape[1], -1, pages.shape[3])
    )
    # Join pages into the slot's contiguous columns: k [K, F, U], v [K, U, F].
    caches = {
      'k': tuple(put(c, join_k(p)) for c, p in zip(caches['k'], pool['k'])),
      'v': tuple(put(c, join_v(p)) for c, p in zip(caches['v'], pool['v'])),
    }
    state = {
      'hidden': put(state['hidden'], pool['tail'][rows['last'][a]]),
      'length': put(state['length'], rows['length'][a]),
      'position': put(state['position'], rows['position'][a]),
      'active': put(state['active'], jnp.bool_(True)),
      'sampling': jax.tree.map(
        lambda into, row: put(into, row[a]), state['sampling'], rows['sampling']
      ),
    }
    return state, caches

  return jax.lax.fori_loop(0, number, one, (state, caches))


def decode(
  s: Shapes, params: Tree, state: Tree, caches: Tree, bias_table: jax.Array, keep_S: jax.Array
) -> tuple[Tree, Tree, jax.Array, jax.Array]:
  """Samples up to `steps` tokens per slot. Slots that are done or not in `keep_S` sample none.

  New keys and values go to a side cache, at the same column for all slots. They are merged into the
  main cache once, at the end.

  Returns:
    state, caches, int32[steps, S] tokens (-1: none), float32[steps, S] log-probs.
  """
  stacked, slots = with_indexed_layers(params), keep_S.shape[0]
  matrix = model.head(params, s.config)
  side = _side_columns(s, slots)
  state = {**state, 'active': state['active'] & keep_S}
  first, length = state, state['length']

  def step(i, carry):
    state, side, tokens, logprobs = carry
    # Sample token i from the hidden state of the token before.
    logits_SV = jnp.einsum('SD,DV->SV', state['hidden'], matrix, preferred_element_type=jnp.float32)
    # every device samples from all logits, with the operations of one device
    logits_SV = s.place(logits_SV, None, None)
    token_S, logprob_S, more, done_S = sampling.sample(
      logits_SV, bias_table, state['sampling'], state['active']
    )
    tokens = tokens.at[i].set(jnp.where(state['active'], token_S, -1))
    logprobs = logprobs.at[i].set(logprob_S)
    keys, values = list(side['k']), list(side['v'])

    def attend(layer, q, k, v):
      keys[layer] = jax.lax.dynamic_update_slice(keys[layer], k.transpose(0, 2, 3, 1), (0, 0, 0, i))
      values[layer] = jax.lax.dynamic_update_slice(
        values[layer], v.transpose(0, 2, 1, 3), (0, 0, i, 0)
      )
      return _attend_slots(
        q, caches['k'][layer], caches['v'][layer], length, keys[layer], values[layer], i
      )

    x_S1D = model.embed(stacked, token_S[:, None], None, None, jnp.dtype(s.dtype), s.place)
    position_AS1 = jnp.broadcast_to(state['position'][None, :, None], (3, slots, 1))
    hidden = model.run_layers(s.config, stacked, x_S1D, position_AS1, None, None, attend, s.place)[
      :, 0
    ]
    state = {
      'hidden': hidden,
      'length': state['length'] + 1,
      'position': state['position'] + 1,
      'active': state['active'] & ~done_S,
      'sampling': more,
    }
    return state, {'k': tuple(keys), 'v': tuple(values)}, tokens, logprobs

  empty = (jnp.full((s.steps, slots), -1, jnp.int32), jnp.zeros((s.steps, slots), jnp.float32))
  state, side, tokens, logprobs = jax.lax.fori_loop(0, s.steps, step, (state, side, *empty))
  state = {**state, 'length': jnp.where(first['active'], state['length'], 0)}
  return state, _merge(caches, side, length), tokens, logprobs


def _side_columns(s: Shapes, slots: int) -> Tree:
  """Returns empty columns for the tokens of one dispatch, k [S, K, F, steps], v [S, K, steps, F]."""
  t = s.config.text
  k, v = (slots, t.kv_heads, t.head_dim, s.steps), (slots, t.kv_heads, s.steps, t.head_dim)
  return {
    'k': tuple(jnp.zeros(k, s.dtype) for _ in range(t.layers)),
    'v': tuple(jnp.zeros(v, s.dtype) for _ in range(t.layers)),
  }


def _merge(caches: Tree, side: Tree, length_S: jax.Array) -> Tree:
  """Writes each slot's side columns after its first `length` columns."""

  def one(slot, caches):
    put = lambda c, x, *at: jax.lax.dynamic_update_slice(
      c, jax.lax.dynamic_slice_in_dim(x, slot, 1, 0), (slot, *at)
    )
    end = length_S[slot]
    return {
      'k': tuple(put(c, x, 0, 0, end) for c, x in zip(caches['k'], side['k'])),
      'v': tuple(put(c, x, 0, end, 0) for c, x in zip(caches['v'], side['v'])),
    }

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


def admission(s: Shapes, pages: int) -> Tree:
  """Returns zeroed host arrays for one call of `admit` on a lane with `pages` pages per context."""
  whole = lambda *shape: np.zeros((ADMIT_ROWS, *shape), np.int32)
  return {
    'slot': whole(),
    'table': np.full((ADMIT_ROWS, pages), s.pages, np.int32),
    'last': whole(),
    'length': whole(),
    'position': whole(),
    'sampling': jax.tree.map(np.array, sampling.zeros(ADMIT_ROWS, s.stops, np)),
  }

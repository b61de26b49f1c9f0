"""The engine's device programs: encode images, prefill pages, and the tokens of a decode call.

`slots.py` and `paged.py` hold the programs that admit contexts to slots and decode them, in the two
forms of `layouts.py`. Every program has one fixed shape. What it computes for a row depends on that row's inputs alone, so
a request's result does not depend on other requests in the batch. On a mesh, weights, keys and
values are split by heads, hidden units and vocabulary (`models/sharding.RULES`); features, states
and what is sampled are whole on every device. The axis letters are those of
`paravt_jax.shapes`: R rows of a prefill, T tokens of its chunk (a page), S contexts in slots, U
columns of a slot's cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
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
from paravt_jax.serving.embedded import layouts, sampling
from paravt_jax.serving.embedded.options import EngineOptions

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
  layout: layouts.Layout = layouts.SlotPages()  # of pages, and what attends over them

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


def shapes_of(
  config: Config, options: EngineOptions, place: Place, layout: layouts.Layout
) -> Shapes:
  """Returns the sizes of an engine's programs."""
  return Shapes(
    config=config,
    dtype=options.dtype,
    chunk=options.chunk_tokens,
    rows=options.prefill_rows,
    pages=options.pages,
    context=options.lanes[-1][0],
    steps=options.decode_steps,
    image_batch=options.image_batch,
    image_slots=options.image_slots,
    patches=options.max_image_patches,
    stops=options.max_stop_ids,
    biases=options.bias_rows,
    place=place,
    layout=layout,
  )


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
    where = _where(place, array.shape, axes)
    if where is None:
      return jnp.asarray(array, dtype)
    # cast first: half the bytes travel. An array of the host is cut there, so no device has it whole
    own = isinstance(array, jax.Array)
    return jax.device_put(array.astype(dtype) if own else np.asarray(array).astype(dtype), where)

  return _unstacked(config, params, put, lambda stacked, i: stacked[i])


def abstract_params(config: Config, dtype: str, place: Place = anywhere) -> Tree:
  """Returns the forms of what `prepare` returns."""

  def put(form: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(form.shape, dtype, sharding=_where(place, form.shape, axes))

  one_layer = lambda stacked, _: jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype)
  return _unstacked(config, model.abstract_params(config), put, one_layer)


def _where(place: Place, shape: Sequence[int], axes: Sequence[str]) -> NamedSharding | None:
  if place.mesh is None or place.spec is None:
    return None
  return NamedSharding(place.mesh, place.spec(shape, axes))


def _unstacked(config: Config, params: Tree, put: Callable, take: Callable) -> Tree:
  """Returns the parameters with one tree per text layer.

  Args:
    put: from an array and its logical axes to what is returned for it.
    take: from a stacked array and an index to the array of that layer.
  """

  def put_all(tree: Tree, axes: Tree) -> Tree:
    return jax.tree.map(lambda names, array: put(array, names), axes, tree, is_leaf=is_axes)

  axes = model.logical_axes(config)
  layers, layer_axes = params['text']['layers'], axes['text']['layers']
  apart = tuple(
    jax.tree.map(
      lambda names, stacked, i=i: put(take(stacked, i), names[1:]),
      layer_axes,
      layers,
      is_leaf=is_axes,
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

  layers: the arrays of each layer, as `s.layout` says. tail: [pages, D], the last hidden state.
  """
  text, pages = s.config.text, s.pages + 1
  shapes = s.layout.shapes(pages, text.kv_heads, s.chunk, text.head_dim)
  layer = lambda: tuple(s.zeros(s.dtype, shape, *s.layout.axes) for shape in shapes)
  return {
    'layers': tuple(layer() for _ in range(text.layers)),
    'tail': s.zeros(s.dtype, (pages, text.width)),
  }


def new_features(s: Shapes) -> Tree:
  """Returns empty image features, with one extra slot that padding images write to.

  merged: [slots * Y, D], deepstack: [J, slots * Y, D]. An axis of Y alone would be padded on a TPU.
  """
  tokens, width = (s.image_slots + 1) * s.merged, s.config.text.width
  return {
    'merged': s.zeros(s.dtype, (tokens, width)),
    'deepstack': s.zeros(s.dtype, (len(s.config.vision.taps), tokens, width)),
  }


def new_state(s: Shapes, slots: int) -> Tree:
  """Returns the state of empty slots."""
  zeros = lambda dtype, *shape: s.zeros(dtype, (slots, *shape))
  everywhere = s.sharding(())
  return {
    'hidden': zeros(s.dtype, s.config.text.width),
    'length': zeros('int32'),
    'position': zeros('int32'),
    'active': zeros('bool'),
    'sampling': jax.tree.map(
      lambda x: x if everywhere is None else jax.device_put(x, everywhere),
      sampling.zeros(slots, s.stops),
    ),
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
    first = slot_N[n] * s.merged
    merged = jax.lax.dynamic_update_slice(merged, new.merged_BNYD[0, n], (first, 0))
    deepstack = jax.lax.dynamic_update_slice(deepstack, new.deepstack_JBNYD[:, 0, n], (0, first, 0))
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
  layers = list(pool['layers'])
  page_R = jnp.take_along_axis(page_table, chunk_R[:, None], axis=1)[:, 0]

  def attend(layer, q, k, v):
    # Write every row's page before any row reads it.
    layers[layer] = s.layout.write_pages(layers[layer], k, v, page_R)
    return s.layout.attend_chunks(q, layers[layer], page_table, chunk_R, s.place.mesh)

  # Gather the features of image tokens [R, T, D]; text tokens gather slot 0 and ignore it.
  seen_RT = jnp.where(visual_index_RT >= 0, jnp.arange(s.chunk), -1)
  place_RT = jnp.maximum(visual_index_RT, 0)
  own = model.Features(
    features['merged'][place_RT][:, None], features['deepstack'][:, place_RT][:, :, None]
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
  return {'layers': tuple(layers), 'tail': tail}


def admitted(state: Tree, pool: Tree, rows: Tree, a: jax.Array) -> Tree:
  """Returns the state with row `a` of an admission in its slot."""
  slot = rows['slot'][a]
  put = lambda into, row: jax.lax.dynamic_update_slice(
    into, row[None].astype(into.dtype), (slot,) + (0,) * row.ndim
  )
  return {
    **state,
    'hidden': put(state['hidden'], pool['tail'][rows['last'][a]]),
    'length': put(state['length'], rows['length'][a]),
    'position': put(state['position'], rows['position'][a]),
    'active': put(state['active'], jnp.bool_(True)),
    'sampling': jax.tree.map(
      lambda into, row: put(into, row[a]), state['sampling'], rows['sampling']
    ),
  }


# attend(step, state, arrays of the layer, layer, q, k, v) -> (output, arrays of the layer)
AttendToken = Callable[..., tuple[jax.Array, layouts.Layer]]


def sample_tokens(
  s: Shapes,
  params: Tree,
  state: Tree,
  layers: tuple[layouts.Layer, ...],
  bias_table: jax.Array,
  keep_S: jax.Array,
  attend: AttendToken,
) -> tuple[Tree, tuple[layouts.Layer, ...], jax.Array, jax.Array]:
  """Samples up to `steps` tokens per slot. Slots that are done or not in `keep_S` sample none.

  Args:
    layers: arrays of each layer, to which `attend` writes the keys and values of new tokens.

  Returns:
    state, layers, int32[steps, S] tokens (-1: none), float32[steps, S] log-probs.
  """
  stacked, slots = with_indexed_layers(params), keep_S.shape[0]
  matrix = model.head(params, s.config)
  state = {**state, 'active': state['active'] & keep_S}
  first = state['active']

  def step(i, carry):
    state, layers, tokens, logprobs = carry
    # Sample token i from the hidden state of the token before.
    logits_SV = jnp.einsum('SD,DV->SV', state['hidden'], matrix, preferred_element_type=jnp.float32)
    # Each device computes the logits of its part of the vocabulary: else XLA gathers the matrix.
    # Then every device samples from all logits, with the operations of one device.
    logits_SV = s.place(s.place(logits_SV, None, 'vocab'), None, None)
    token_S, logprob_S, more, done_S = sampling.sample(
      logits_SV, bias_table, state['sampling'], state['active']
    )
    tokens = tokens.at[i].set(jnp.where(state['active'], token_S, -1))
    logprobs = logprobs.at[i].set(logprob_S)
    written = list(layers)

    def attend_one(layer, q, k, v):
      out, written[layer] = attend(i, state, written[layer], layer, q, k, v)
      return out

    x_S1D = model.embed(stacked, token_S[:, None], None, None, jnp.dtype(s.dtype), s.place)
    position_AS1 = jnp.broadcast_to(state['position'][None, :, None], (3, slots, 1))
    x_S1D = model.run_layers(
      s.config, stacked, x_S1D, position_AS1, None, None, attend_one, s.place
    )
    state = {
      **state,
      'hidden': x_S1D[:, 0],
      'length': state['length'] + 1,
      'position': state['position'] + 1,
      'active': state['active'] & ~done_S,
      'sampling': more,
    }
    return state, tuple(written), tokens, logprobs

  empty = (jnp.full((s.steps, slots), -1, jnp.int32), jnp.zeros((s.steps, slots), jnp.float32))
  state, layers, tokens, logprobs = jax.lax.fori_loop(0, s.steps, step, (state, layers, *empty))
  return {**state, 'length': jnp.where(first, state['length'], 0)}, layers, tokens, logprobs


def admission(s: Shapes, pages: int) -> Tree:
  """Returns zeroed host arrays for one call of `admit` on a lane with `pages` pages per context."""
  whole = lambda *shape: np.zeros((ADMIT_ROWS, *shape), np.int32)
  return {
    'slot': whole(),
    'table': np.full((ADMIT_ROWS, pages), s.pages, np.int32),
    'last': whole(),
    # paged: a page to copy, and where to
    'copied': np.full((ADMIT_ROWS, 2), s.pages, np.int32),
    'length': whole(),
    'position': whole(),
    'sampling': jax.tree.map(np.array, sampling.zeros(ADMIT_ROWS, s.stops, np)),
  }

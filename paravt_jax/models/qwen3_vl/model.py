"""Qwen3-VL (Qwen Team 2025) as pure functions of (config, params, arrays); its blocks are linen
modules (text.py, vision.py).

`params` is a plain nested dict; layers of one kind are stacked on a leading axis and run by
`lax.scan`:

  visual: patch_embed, pos_embed, blocks (stacked), merger, deepstack (stacked)
  text:   embed, layers (stacked), norm          head: kernel (only when the head is not tied to the embedding)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes
from paravt_jax.errors import DataError
from paravt_jax.models import attention
from paravt_jax.models.layers import RMSNorm, stacked_init
from paravt_jax.models.qwen3_vl import positions, text, vision
from paravt_jax.models.qwen3_vl.config import Config

Params = dict[str, Any]
_UNROLL = (
  4  # a stack of at most so many layers is unrolled: a scan's copies cost more than they save
)


class Inputs(NamedTuple):
  """Packed rows; axes: B rows, T tokens, A = 3 M-RoPE axes, N images of a row, X patches, P frames
  of a patch, C pixels, G = 2.

  segments: 0 padding, 1.. documents. branches: 0 a shared prefix or plain document, 1.. its
  suffixes. visual: index into the row's own N * Y merged image tokens (Y = X / merge^2), those of
  the stills after them, -1 for text. patches: uint8 in merge order; P = 1 is an image (its frame
  doubled in time), 2 a pair of a native video. grids: height and width in patches; 0, 0 is padding.
  N may be 0. stills, still_grids: a second class of images, fewer and larger, with N and X of their
  own; None for none.
  """

  tokens_BT: jax.Array
  positions_ABT: jax.Array
  segments_BT: jax.Array
  branches_BT: jax.Array
  visual_BT: jax.Array
  patches_BNXPC: jax.Array
  grids_BN2: jax.Array
  stills_BNXPC: jax.Array | None = None
  still_grids_BN2: jax.Array | None = None


class Features(NamedTuple):
  """Merged image tokens of text width, and the DeepStack feature that is added after each of the
  first J text layers.
  """

  merged_BNYD: jax.Array
  deepstack_JBNYD: jax.Array


def _boxed(config: Config, key: jax.Array) -> Params:
  """Random parameters in flax's boxes, which carry the logical axes."""
  t, v, f32 = config.text, config.vision, jnp.float32
  keys = iter(jax.random.split(key, 8))
  box = lambda init, axes, shape: nn.LogicallyPartitioned(init(next(keys), shape, f32), axes)
  small, fan_in = nn.initializers.normal(0.02), nn.initializers.normal(t.width**-0.5)
  one = lambda module, *args: lambda k: module.init(k, *args)['params']
  patches = jnp.zeros((1, v.merge**2, v.width), f32)
  angle = jnp.zeros((1, v.merge**2, v.width // v.heads // 2), f32)
  block = one(vision.VisionBlock(v, f32), patches, angle, jnp.ones((1, v.merge**2), bool))
  turn = jnp.zeros((1, 1, t.head_dim // 2), f32)
  layer = one(text.TextLayer(t, f32), jnp.zeros((1, 1, t.width), f32), turn, lambda q, k, v: q)
  pixels = jnp.zeros((1, v.temporal, 3 * v.patch**2), jnp.uint8)
  params = {
    'visual': {
      'patch_embed': one(vision.PatchEmbed(v, f32), pixels)(next(keys)),
      'pos_embed': {
        'embedding': box(small, ('vision_positions', 'vision_embed'), (v.positions, v.width))
      },
      'blocks': stacked_init(block, next(keys), v.depth),
      'merger': one(vision.Merger(v, t.width, False, f32), patches)(next(keys)),
      'deepstack': stacked_init(
        one(vision.Merger(v, t.width, True, f32), patches), next(keys), len(v.taps)
      ),
    },
    'text': {
      'embed': {'embedding': box(small, ('vocab', 'embed'), (t.vocab, t.width))},
      'layers': stacked_init(layer, next(keys), t.layers),
      'norm': {'scale': nn.LogicallyPartitioned(jnp.ones(t.width, f32), ('norm',))},
    },
  }
  if not config.tied:
    params['head'] = {'kernel': box(fan_in, ('embed', 'vocab'), (t.width, t.vocab))}
  return params


@functools.partial(jax.jit, static_argnums=0)
def init(config: Config, key: jax.Array) -> Params:
  """Random float32 parameters: normal with std 1 / sqrt(fan in), ends of residual branches over
  sqrt(2 * layers).
  """
  return nn.unbox(_boxed(config, key))


def abstract_params(config: Config) -> Params:
  """The tree of `init` as ShapeDtypeStructs; costs no memory."""
  return jax.eval_shape(functools.partial(init, config), jax.eval_shape(lambda: jax.random.key(0)))


def logical_axes(config: Config) -> Params:
  """The tree of `init` with a tuple of logical axis names per parameter; stacked ones begin with
  'layers' or 'taps'.

  Names: vocab embed heads kv_heads head_dim mlp norm, vision_positions vision_embed vision_qkv
  vision_heads vision_mlp vision_norm merged merged_norm time pixels.
  """
  boxed = jax.eval_shape(
    functools.partial(_boxed, config), jax.eval_shape(lambda: jax.random.key(0))
  )
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  names = jax.tree.map(lambda b: tuple(b.names), boxed, is_leaf=is_box)
  under = lambda first, tree: jax.tree.map(
    lambda n: (first, *n), tree, is_leaf=lambda x: isinstance(x, tuple)
  )
  names['visual']['blocks'] = under('layers', names['visual']['blocks'])
  names['visual']['deepstack'] = under('taps', names['visual']['deepstack'])
  names['text']['layers'] = under('layers', names['text']['layers'])
  return names


def encode_images(
  config: Config,
  params: Params,
  patches_BNXPC: jax.Array,
  grids_BN2: jax.Array,
  dtype: jnp.dtype,
  *,
  remat: bool = False,
) -> Features:
  """Runs the vision tower; every image by itself.

  Returns:
    Features with Y = X / merge^2, in `dtype`; tokens beyond an image's grid are garbage. With N or
    X = 0 they are empty.
  """
  sizes = shapes.check(patches_BNXPC=patches_BNXPC, grids_BN2=grids_BN2)
  v, visual, (rows, images, patches) = config.vision, params['visual'], patches_BNXPC.shape[:3]
  merged_shape = (rows, images, patches // v.merge**2, config.text.width)
  if 0 in (rows, images, patches):
    return Features(jnp.zeros(merged_shape, dtype), jnp.zeros((len(v.taps), *merged_shape), dtype))
  if sizes['X'] % v.merge**2:
    raise ValueError(
      f'patches_BNXPC has X={sizes["X"]}, wanted a multiple of merge^2 = {v.merge**2}; pad '
      'with zeros'
    )
  row, column, exists = vision.patch_places(v, grids_BN2, patches)
  x = vision.PatchEmbed(v, dtype).apply({'params': visual['patch_embed']}, patches_BNXPC)
  x = x + vision.interpolated_positions(
    visual['pos_embed']['embedding'], row, column, grids_BN2
  ).astype(dtype)
  x_IXW = x.reshape(rows * images, patches, v.width)
  angle_IXF, exists_IX = (
    vision.rotary_angles(v, row, column),
    exists.reshape(rows * images, patches),
  )

  def block(x, layer_params):
    return vision.VisionBlock(v, dtype).apply({'params': layer_params}, x, angle_IXF, exists_IX)

  x_IXW, tapped_JIXW = _run_blocks(
    v, visual['blocks'], x_IXW, jax.checkpoint(block) if remat else block
  )
  merge = lambda p, x, wide: (
    vision.Merger(v, config.text.width, wide, dtype).apply({'params': p}, x).reshape(merged_shape)
  )
  merged = merge(visual['merger'], x_IXW, False)
  if not v.taps:
    return Features(merged, jnp.zeros((0, *merged_shape), dtype))
  return Features(
    merged, jax.vmap(lambda p, x: merge(p, x, True))(visual['deepstack'], tapped_JIXW)
  )


def encode_inputs(
  config: Config, params: Params, inputs: Inputs, dtype: jnp.dtype, *, remat: bool = False
) -> Features:
  """`encode_images` of all images of packed rows, as `visual` counts them.

  Stills are skipped where no row has one: their slots are large, and most batches of video leave
  them empty.
  """
  frames = encode_images(config, params, inputs.patches_BNXPC, inputs.grids_BN2, dtype, remat=remat)
  if inputs.stills_BNXPC is None:
    return frames
  encode = lambda: encode_images(
    config, params, inputs.stills_BNXPC, inputs.still_grids_BN2, dtype, remat=remat
  )
  nothing = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(encode))
  stills = jax.lax.cond((inputs.still_grids_BN2 > 0).any(), encode, nothing)
  flat = lambda a: a.reshape(*a.shape[:-3], 1, -1, a.shape[-1])
  return jax.tree.map(
    lambda *both: jnp.concatenate([flat(a) for a in both], axis=-2), frames, stills
  )


def _nth(stack: Params, i: int) -> Params:
  return jax.tree.map(lambda p: p[i], stack)


def _run_blocks(
  v: vision.VisionConfig, blocks: Params, x_IXW: jax.Array, block: Callable
) -> tuple[jax.Array, jax.Array]:
  """All blocks, and the outputs of the tapped ones [J, I, X, W]."""
  if v.depth <= _UNROLL:
    outputs = []
    for i in range(v.depth):
      x_IXW = block(x_IXW, _nth(blocks, i))
      outputs.append(x_IXW)
    return x_IXW, jnp.stack([outputs[t] for t in v.taps]) if v.taps else jnp.zeros(
      (0, *x_IXW.shape), x_IXW.dtype
    )
  tap_of_layer = np.full(v.depth, -1, np.int32)
  tap_of_layer[list(v.taps)] = np.arange(len(v.taps))

  def step(carry, layer):
    x, tapped = carry
    layer_params, tap = layer
    x = block(x, layer_params)
    tapped = jax.lax.cond(
      tap >= 0, lambda: jax.lax.dynamic_update_index_in_dim(tapped, x, tap, 0), lambda: tapped
    )
    return (x, tapped), None

  empty = jnp.zeros((len(v.taps), *x_IXW.shape), x_IXW.dtype)
  return jax.lax.scan(step, (x_IXW, empty), (blocks, jnp.asarray(tap_of_layer)))[0]


def _placed(features_BNYD: jax.Array, visual_BT: jax.Array) -> jax.Array:
  """[B, T, D]: each token's own visual feature, by a gather within its row; text tokens get
  zeros.
  """
  flat = features_BNYD.reshape(features_BNYD.shape[0], -1, features_BNYD.shape[-1])
  found = jnp.take_along_axis(flat, jnp.maximum(visual_BT, 0)[..., None], axis=1)
  return jnp.where((visual_BT >= 0)[..., None], found, 0)


def embed(
  config: Config,
  params: Params,
  tokens_BT: jax.Array,
  features: Features | None,
  visual_BT: jax.Array | None,
  dtype: jnp.dtype,
) -> jax.Array:
  """Token embeddings [B, T, D] in `dtype`, visual tokens replaced by their features (None, or none
  of them: text only).
  """
  x_BTD = jnp.take(params['text']['embed']['embedding'], tokens_BT, axis=0).astype(dtype)
  if not _has_images(features):
    return x_BTD
  return jnp.where(
    (visual_BT >= 0)[..., None], _placed(features.merged_BNYD, visual_BT).astype(dtype), x_BTD
  )


def _has_images(features: Features | None) -> bool:
  return features is not None and 0 not in features.merged_BNYD.shape


def hidden(
  config: Config,
  params: Params,
  inputs: Inputs,
  *,
  dtype: jnp.dtype,
  remat: bool,
  freeze_vision: bool,
  features: Features | None = None,
  backend: str = 'chunked',
) -> jax.Array:
  """Runs the model up to and including its final norm.

  Args:
    inputs: packed rows.
    dtype: of matrix products and the residual stream; norms, rotary and softmax are float32.
    remat: recompute each layer in the backward pass.
    freeze_vision: no gradient reaches the vision tower and its mergers.
    features: of `encode_images`, when already known; else they are computed from `inputs`.
    backend: see `attention.attend`.

  Returns:
    [B, T, D] in `dtype`; padding gets garbage.
  """
  shapes.check(**{name: array for name, array in inputs._asdict().items() if name.endswith('T')})
  if features is None:
    features = encode_inputs(config, params, inputs, dtype, remat=remat)
  if freeze_vision:
    features = jax.lax.stop_gradient(features)
  x_BTD = embed(config, params, inputs.tokens_BT, features, inputs.visual_BT, dtype)
  angle_BTF = text.rotary_angles(config.text, inputs.positions_ABT)
  attend = functools.partial(
    attention.attend,
    segments_BT=inputs.segments_BT,
    branches_BT=inputs.branches_BT,
    backend=backend,
  )

  def layer(x, layer_params):
    return text.TextLayer(config.text, dtype).apply({'params': layer_params}, x, angle_BTF, attend)

  run = jax.checkpoint(layer) if remat else layer
  x_BTD = _run_layers(config, params['text']['layers'], x_BTD, features, inputs.visual_BT, run)
  return _final_norm(config, params, x_BTD)


def _run_layers(
  config: Config,
  layers: Params,
  x_BTD: jax.Array,
  features: Features,
  visual_BT: jax.Array,
  layer: Callable,
) -> jax.Array:
  taps = len(config.vision.taps) if _has_images(features) else 0
  if config.text.layers <= _UNROLL:
    for i in range(config.text.layers):
      x_BTD = layer(x_BTD, _nth(layers, i))
      x_BTD = x_BTD + _placed(features.deepstack_JBNYD[i], visual_BT) if i < taps else x_BTD
    return x_BTD

  def step(x, numbered):
    i, layer_params = numbered
    x = layer(x, layer_params)
    if taps:
      deeper = lambda: x + _placed(features.deepstack_JBNYD[jnp.minimum(i, taps - 1)], visual_BT)
      x = jax.lax.cond(i < taps, deeper, lambda: x)
    return x, None

  return jax.lax.scan(step, x_BTD, (jnp.arange(config.text.layers), layers))[0]


def _final_norm(config: Config, params: Params, x_BTD: jax.Array) -> jax.Array:
  return RMSNorm(config.text.norm_eps, 'norm').apply({'params': params['text']['norm']}, x_BTD)


def run_layers(
  config: Config,
  params: Params,
  x_BTD: jax.Array,
  positions_ABT: jax.Array,
  features: Features | None,
  visual_BT: jax.Array | None,
  attend: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """The decoder for a server with its own cache: an unrolled loop over layers.

  Args:
    x_BTD: of `embed`; its dtype is the compute dtype. positions_ABT: M-RoPE positions of these
    tokens. features, visual_BT: for DeepStack; None when none of these tokens is visual. attend:
    (layer index, q_BTHF, k_BTKF, v_BTKF) -> o_BTHF; rotary is already applied, so k and v are what
    a cache keeps.

  Returns:
    [B, T, D] after the final norm, ready for `head`.
  """
  angle_BTF = text.rotary_angles(config.text, positions_ABT)
  taps = len(config.vision.taps) if _has_images(features) else 0
  for i in range(config.text.layers):
    layer = functools.partial(
      text.TextLayer(config.text, x_BTD.dtype).apply, {'params': _nth(params['text']['layers'], i)}
    )
    x_BTD = layer(x_BTD, angle_BTF, functools.partial(attend, i))
    if i < taps:
      x_BTD = x_BTD + _placed(features.deepstack_JBNYD[i], visual_BT)
  return _final_norm(config, params, x_BTD)


def head(params: Params, config: Config) -> jax.Array:
  """The output matrix [D, V]."""
  return params['text']['embed']['embedding'].T if config.tied else params['head']['kernel']


def logits(
  config: Config,
  params: Params,
  input_ids: Sequence[int] | np.ndarray,
  images: Sequence[np.ndarray],
) -> jax.Array:
  """Scores of the next token after every position of one sequence, in float32 throughout; compiled
  once per shape.

  Args:
    input_ids: int[T], image placeholders expanded (one per merged token). images: uint8[H, W, 3]
    RGB, sides multiples of patch * merge (32), in order of their placeholders. Not resized.

  Returns:
    float32[T, V].

  Raises:
    DataError: an image's shape, or the number of placeholders, is wrong.
  """
  return _logits(config, params, single_inputs(config, np.asarray(input_ids, np.int32), images))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: Config, params: Params, inputs: Inputs) -> jax.Array:
  x_BTD = hidden(config, params, inputs, dtype=jnp.float32, remat=False, freeze_vision=True)
  return jnp.einsum('TD,DV->TV', x_BTD[0], head(params, config).astype(jnp.float32))


def single_inputs(config: Config, ids: np.ndarray, images: Sequence[np.ndarray]) -> Inputs:
  """Inputs of one row that holds one sequence (see `logits`); images of different sizes are padded
  to the largest.
  """
  v = config.vision
  unit = v.patch * v.merge
  for i, image in enumerate(images):
    whole = (
      image.ndim == 3
      and image.shape[2] == 3
      and image.size
      and not image.shape[0] % unit
      and not image.shape[1] % unit
    )
    if image.dtype != np.uint8 or not whole:
      raise DataError(
        f'image {i}: got {image.dtype}{list(image.shape)}, wanted uint8[H, W, 3] with sides '
        f'multiples of {unit}; '
        'resize it'
      )
  grids = np.array(
    [(i.shape[0] // v.patch, i.shape[1] // v.patch) for i in images], np.int32
  ).reshape(1, -1, 2)
  spots, _ = positions.mrope_positions(
    ids, config.image_id, [tuple(g) for g in grids[0] // v.merge]
  )
  most = int((grids[0, :, 0] * grids[0, :, 1]).max()) if len(images) else 0
  patches = np.zeros((1, len(images), most, 1, 3 * v.patch**2), np.uint8)
  visual = np.full((1, len(ids)), -1, np.int32)
  tokens = [
    i * (most // v.merge**2) + np.arange(h * w // v.merge**2) for i, (h, w) in enumerate(grids[0])
  ]
  visual[0, ids == config.image_id] = np.concatenate(tokens) if tokens else []
  for i, image in enumerate(images):
    flat = patchify(image, v.patch, v.merge)
    patches[0, i, : len(flat), 0] = flat
  ones = np.ones((1, len(ids)), np.int32)
  return Inputs(ids[None], spots[:, None], ones, 0 * ones, visual, patches, grids)


def patchify(image: np.ndarray, patch: int, merge: int) -> np.ndarray:
  """uint8[H, W, 3] -> uint8[X, 3 * patch^2] in merge order, pixels of a patch ordered (channel,
  row, column).
  """
  height, width, _ = image.shape
  tiles = image.reshape(
    height // (patch * merge), merge, patch, width // (patch * merge), merge, patch, 3
  )
  return tiles.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * patch * patch)

"""Qwen3-VL (Qwen Team 2025) as pure functions of (config, params, arrays).

The blocks are linen modules (text.py, vision.py). `params` is a plain nested dict. Layers of one
kind are stacked on a leading axis, and `lax.scan` runs them:

  visual: patch_embed, pos_embed, blocks (stacked), merger, deepstack (stacked)
  text:   embed, layers (stacked), norm
  head:   kernel (only when the head is not tied to the embedding)
  adapter: layers (stacked; only with config.adapter, see models/lora.py)
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
from paravt_jax.models import attention, lora
from paravt_jax.models import remat as remats
from paravt_jax.models.layers import RMSNorm, stacked_init
from paravt_jax.models.placement import Place, anywhere
from paravt_jax.models.qwen3_vl import positions, text, vision
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.models.qwen3_vl.stack import run_stack
from paravt_jax.models.qwen3_vl.tower import UNROLL, Features, encode_images
from paravt_jax.video import patches

Params = dict[str, Any]
__all__ = [
  'Features',
  'Inputs',
  'Params',
  'abstract_params',
  'adds_to_sums',
  'embed',
  'encode_images',
  'encode_inputs',
  'head',
  'hidden',
  'init',
  'logical_axes',
  'logits',
  'run_layers',
  'single_inputs',
]


class Inputs(NamedTuple):
  """The model's input: packed rows. `paravt_jax.shapes` explains the axis letters."""

  tokens_BT: jax.Array
  positions_ABT: jax.Array  # M-RoPE: time, height, width
  segments_BT: jax.Array  # 0 padding, 1.. documents
  branches_BT: jax.Array  # 0 a shared prefix or a plain document, 1.. its suffixes
  # index into the merged image tokens of the same row, -1 for text. The first N * Y (Y =
  # X / merge^2) belong to the images below, the rest to the large images.
  visual_index_BT: jax.Array
  # uint8 in merge order. P = 1: an image, used as both frames; P = 2: two frames of a native video
  patches_BNXPC: jax.Array  # N may be 0
  grids_BN2: jax.Array  # height and width in patches; 0, 0 is padding
  # a second class of images, fewer and larger, with a different N and X; None if there are none
  large_images_BNXPC: jax.Array | None = None
  large_image_grids_BN2: jax.Array | None = None


def _apply(module: nn.Module, params: Params, *args: Any) -> Any:
  return module.apply({'params': params}, *args)


def _init_boxes(config: Config, key: jax.Array) -> Params:
  """Returns random parameters in Flax's boxes, which carry the logical axes."""
  t, v, f32 = config.text, config.vision, jnp.float32
  keys = iter(jax.random.split(key, 8))
  small = nn.initializers.normal(0.02)
  fan_in = nn.initializers.normal(t.width**-0.5)

  def box(init, axes, shape):
    return nn.LogicallyPartitioned(init(next(keys), shape, f32), axes)

  def one(module: nn.Module, *args: Any) -> Callable[[jax.Array], Any]:
    return lambda key: module.init(key, *args)['params']

  # every parameter shape follows from one merged token of one image and one text token
  x_IXW = jnp.zeros((1, v.merge**2, v.width), f32)
  angle_IXF = jnp.zeros((1, v.merge**2, v.width // v.heads // 2), f32)
  pixels_XPC = jnp.zeros((1, v.temporal, 3 * v.patch**2), jnp.uint8)
  x_BTD = jnp.zeros((1, 1, t.width), f32)
  angle_BTF = jnp.zeros((1, 1, t.head_dim // 2), f32)

  block = one(vision.VisionBlock(v, f32), x_IXW, angle_IXF, jnp.ones((1, v.merge**2), bool))
  layer = one(text.TextLayer(t, f32), x_BTD, angle_BTF, lambda q, k, v: q)
  params = {
    'visual': {
      'patch_embed': one(vision.PatchEmbed(v, f32), pixels_XPC)(next(keys)),
      'pos_embed': {
        'embedding': box(small, ('vision_positions', 'vision_embed'), (v.positions, v.width))
      },
      'blocks': stacked_init(block, next(keys), v.depth),
      'merger': one(vision.Merger(v, t.width, False, f32), x_IXW)(next(keys)),
      'deepstack': stacked_init(
        one(vision.Merger(v, t.width, True, f32), x_IXW), next(keys), len(v.taps)
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
  if config.adapter is not None:
    # an address of its own, so that the base has the same draws with and without an adapter
    last = jax.random.fold_in(key, len(params))
    params[lora.PART] = lora.init_boxes(config.adapter, params['text']['layers'], last)
  return params


@functools.partial(jax.jit, static_argnums=0)
def init(config: Config, key: jax.Array) -> Params:
  """Returns random float32 parameters: normal with standard deviation 1 / sqrt(fan in).

  The last kernel of each residual branch is divided by sqrt(2 * layers).
  """
  return nn.unbox(_init_boxes(config, key))


def abstract_params(config: Config) -> Params:
  """Returns the tree of `init` as ShapeDtypeStructs, without allocating arrays."""
  return jax.eval_shape(functools.partial(init, config), jax.eval_shape(lambda: jax.random.key(0)))


def logical_axes(config: Config) -> Params:
  """Returns the tree of `init` with a tuple of logical axis names in place of each parameter.

  Names: vocab embed heads kv_heads head_dim mlp norm, vision_positions vision_embed vision_qkv
  vision_heads vision_mlp vision_norm merged merged_norm time pixels rank. Stacked parameters begin with
  'layers' or 'taps'.
  """
  boxed = jax.eval_shape(
    functools.partial(_init_boxes, config), jax.eval_shape(lambda: jax.random.key(0))
  )
  names = jax.tree.map(
    lambda box: tuple(box.names),
    boxed,
    is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
  )

  def under(first, tree):
    return jax.tree.map(
      lambda axes: (first, *axes), tree, is_leaf=lambda node: isinstance(node, tuple)
    )

  names['visual']['blocks'] = under('layers', names['visual']['blocks'])
  names['visual']['deepstack'] = under('taps', names['visual']['deepstack'])
  for part in ('text', lora.PART):
    if part in names:
      names[part]['layers'] = under('layers', names[part]['layers'])
  return names


def encode_inputs(
  config: Config,
  params: Params,
  inputs: Inputs,
  dtype: jnp.dtype,
  *,
  remat: str = 'none',
  place: Place = anywhere,
  backend: str = 'auto',
) -> Features:
  """Returns the features of all images of packed rows, in the order of `visual_index_BT`.

  If no row has a large image, their encoder is skipped. Their slots are large, and most batches of
  video leave them empty.
  """
  run = functools.partial(
    encode_images, config, params, dtype=dtype, remat=remat, place=place, backend=backend
  )
  frames = run(inputs.patches_BNXPC, inputs.grids_BN2)
  large_images_BNXPC, grids_BN2 = inputs.large_images_BNXPC, inputs.large_image_grids_BN2
  if large_images_BNXPC is None or grids_BN2 is None:
    return frames

  def encode():
    return run(large_images_BNXPC, grids_BN2)

  def nothing():
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(encode))

  large_images = jax.lax.cond((grids_BN2 > 0).any(), encode, nothing)

  # one slot per row with all merged tokens, large images last: [..., B, 1, N * Y, D]
  def flat(a):
    return a.reshape(*a.shape[:-3], 1, -1, a.shape[-1])

  return jax.tree.map(
    lambda *both: jnp.concatenate([flat(a) for a in both], axis=-2), frames, large_images
  )


def _nth(stack: Params, i: int) -> Params:
  return jax.tree.map(lambda p: p[i], stack)


def _gather_features(
  features_BNYD: jax.Array, visual_index_BT: jax.Array, place: Place = anywhere
) -> jax.Array:
  """Returns each token's visual feature [B, T, D], gathered within its row.

  Text tokens get zeros.
  """
  flat = features_BNYD.reshape(features_BNYD.shape[0], -1, features_BNYD.shape[-1])
  if place.splits(visual_index_BT.shape[1], 'tokens'):
    flat = place(flat, 'rows', None, None)  # a token's image may lie in another slice of its row
  found_BTD = jnp.take_along_axis(flat, jnp.maximum(visual_index_BT, 0)[..., None], axis=1)
  found_BTD = place(found_BTD, 'rows', 'tokens', None)
  return jnp.where((visual_index_BT >= 0)[..., None], found_BTD, 0)


def _deepstack(
  features: Features, visual_index_BT: jax.Array, place: Place
) -> Callable[[jax.Array | int], jax.Array]:
  """Returns f(j) -> [B, T, D], what the j-th layer adds to its output.

  Where tokens are split, each device first fetches the features of its own tokens, once for all
  passes through the layers.
  """
  find = functools.partial(_gather_features, visual_index_BT=visual_index_BT, place=place)
  if not place.splits(visual_index_BT.shape[1], 'tokens') or not _has_images(features):
    return lambda j: find(features.deepstack_JBNYD[j])
  found_JBTD = jax.lax.map(find, features.deepstack_JBNYD)
  found_JBTD = place(found_JBTD, None, 'rows', 'tokens', None)
  return lambda j: found_JBTD[j]


def embed(
  params: Params,
  tokens_BT: jax.Array,
  features: Features | None,
  visual_index_BT: jax.Array | None,
  dtype: jnp.dtype,
  place: Place = anywhere,
) -> jax.Array:
  """Returns embeddings [B, T, D] in `dtype`, with features in place of visual tokens.

  Without features (None or empty) all tokens are text.
  """
  # the table's width is gathered first: else XLA may look up all rows everywhere, a part of the width
  table_VD = place(params['text']['embed']['embedding'], 'vocab', None)
  x_BTD = place(jnp.take(table_VD, tokens_BT, axis=0).astype(dtype), 'rows', 'tokens', None)
  if features is None or visual_index_BT is None or not _has_images(features):
    return x_BTD
  image_BTD = _gather_features(features.merged_BNYD, visual_index_BT, place).astype(dtype)
  x_BTD = jnp.where((visual_index_BT >= 0)[..., None], image_BTD, x_BTD)
  return place(x_BTD, 'rows', 'tokens', None)


def _has_images(features: Features) -> bool:
  return 0 not in features.merged_BNYD.shape


def hidden(
  config: Config,
  params: Params,
  inputs: Inputs,
  *,
  dtype: jnp.dtype,
  remat: str,
  freeze_vision: bool,
  features: Features | None = None,
  backend: str = 'chunked',
  place: Place = anywhere,
  layer_sums: Params | None = None,
) -> jax.Array:
  """Runs the model up to and including its final norm.

  Args:
    inputs: packed rows.
    dtype: for matrix products and the residual stream; norms, rotary and softmax are float32.
    remat: what layers keep for the backward pass, a name of `remat.POLICIES`.
    freeze_vision: no gradient reaches the vision tower and its mergers.
    features: the result of `encode_inputs`; None computes it from `inputs`.
    backend: see `attention.attend`.
    place: where activations lie on a mesh.
    layer_sums: where `adds_to_sums`, sums that the layers' gradients are added to (`stack.py`).

  Returns:
    [B, T, D] in `dtype`; outputs at padding are garbage.
  """
  shapes.check(**{name: array for name, array in inputs._asdict().items() if name.endswith('T')})
  params = jax.tree.map(jnp.asarray, params)  # models/layers.py takes no NumPy constants
  # image features, [B, N, Y, D]
  if features is None:
    options: Any = {'remat': remat, 'place': place, 'backend': backend}
    features = encode_inputs(config, params, inputs, dtype, **options)
  if freeze_vision:
    features = jax.lax.stop_gradient(features)

  # token embeddings [B, T, D], with image features at their placeholders
  x_BTD = embed(params, inputs.tokens_BT, features, inputs.visual_index_BT, dtype, place)

  # decoder layers; `attend` masks by segment and branch
  angle_BTF = text.rotary_angles(config.text, inputs.positions_ABT)
  attend = functools.partial(
    attention.attend,
    segments_BT=inputs.segments_BT,
    branches_BT=inputs.branches_BT,
    backend=backend,
    mesh=place.mesh,
  )

  def layer(x_BTD, layer_params):
    return _apply(text.TextLayer(config.text, dtype, place), layer_params, x_BTD, angle_BTF, attend)

  # a stack that adds to sums keeps the inputs of layers itself
  run = remats.apply(layer, remat) if layer_sums is None else layer
  taps = len(config.vision.taps) if _has_images(features) else 0
  deeper = _deepstack(features, inputs.visual_index_BT, place)
  layers = lora.join(config.adapter, params)
  x_BTD = _run_layers(config, layers, x_BTD, taps, deeper, run, layer_sums)
  return _final_norm(config, params, x_BTD)


def adds_to_sums(config: Config, remat: str, freeze_vision: bool) -> bool:
  """Returns whether `hidden` can take `layer_sums`: long stacks that keep their inputs alone.

  The sums need gradients by the layers alone, so the tower must be frozen. With an adapter, the
  gradients are small.
  """
  long = config.text.layers > UNROLL
  return remat == 'layers' and freeze_vision and long and config.adapter is None


def _run_layers(
  config: Config,
  layers: Params,
  x_BTD: jax.Array,
  taps: int,
  deepstack: Callable[[jax.Array | int], jax.Array],
  layer: Callable,
  layer_sums: Params | None,
) -> jax.Array:
  """Runs all decoder layers. The first `taps` each add their DeepStack feature to image tokens."""
  if config.text.layers <= UNROLL:
    for i in range(config.text.layers):
      x_BTD = layer(x_BTD, _nth(layers, i))
      x_BTD = x_BTD + deepstack(i) if i < taps else x_BTD
    return x_BTD

  def step(i, x_BTD, layer_params):
    x_BTD = layer(x_BTD, layer_params)
    if not taps:
      return x_BTD

    def deeper():
      return x_BTD + deepstack(jnp.minimum(i, taps - 1))

    return jax.lax.cond(i < taps, deeper, lambda: x_BTD)

  if layer_sums is not None:
    return run_stack(step, x_BTD, layers, layer_sums)
  numbered = (jnp.arange(config.text.layers), layers)
  return jax.lax.scan(lambda x_BTD, one: (step(one[0], x_BTD, one[1]), None), x_BTD, numbered)[0]


def _final_norm(config: Config, params: Params, x_BTD: jax.Array) -> jax.Array:
  return _apply(RMSNorm(config.text.norm_eps, 'norm'), params['text']['norm'], x_BTD)


def run_layers(
  config: Config,
  params: Params,
  x_BTD: jax.Array,
  positions_ABT: jax.Array,
  features: Features | None,
  visual_index_BT: jax.Array | None,
  attend: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
  place: Place = anywhere,
) -> jax.Array:
  """Runs the decoder in an unrolled loop over layers, for a server that manages its own KV cache.

  Args:
    x_BTD: the result of `embed`; its dtype is the compute dtype.
    positions_ABT: M-RoPE positions of these tokens.
    features, visual_index_BT: for DeepStack; None when none of these tokens is visual.
    attend: (layer index, q_BTHF, k_BTKF, v_BTKF) -> o_BTHF. Rotary is already applied, so a cache
      can store k and v as they are.
    place: where activations lie on a mesh.

  Returns:
    [B, T, D] after the final norm, ready for `head`.
  """
  angle_BTF = text.rotary_angles(config.text, positions_ABT)
  for i in range(config.text.layers):
    layer = text.TextLayer(config.text, x_BTD.dtype, place)
    layer_params = _nth(params['text']['layers'], i)
    x_BTD = _apply(layer, layer_params, x_BTD, angle_BTF, functools.partial(attend, i))
    if features is None or visual_index_BT is None or not _has_images(features):
      continue
    if i < len(config.vision.taps):
      x_BTD = x_BTD + _gather_features(features.deepstack_JBNYD[i], visual_index_BT)
  return _final_norm(config, params, x_BTD)


def head(params: Params, config: Config) -> jax.Array:
  """Returns the output matrix [D, V]."""
  return params['text']['embed']['embedding'].T if config.tied else params['head']['kernel']


def logits(
  config: Config,
  params: Params,
  input_ids: Sequence[int] | np.ndarray,
  images: Sequence[np.ndarray],
) -> jax.Array:
  """Returns next-token logits at every position of one sequence, computed in float32.

  Args:
    input_ids: int[T] with expanded image placeholders (one per merged token).
    images: uint8[H, W, 3] RGB with sides that are multiples of patch * merge (32), in the order of
      their placeholders. They are not resized.

  Returns:
    float32[T, V].

  Raises:
    DataError: an image's shape, or the number of placeholders, is wrong.

  JAX compiles the function once per shape.
  """
  return _logits(config, params, single_inputs(config, np.asarray(input_ids, np.int32), images))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: Config, params: Params, inputs: Inputs) -> jax.Array:
  x_BTD = hidden(config, params, inputs, dtype=jnp.float32, remat='none', freeze_vision=True)
  return jnp.einsum('TD,DV->TV', x_BTD[0], head(params, config).astype(jnp.float32))


def single_inputs(config: Config, ids: np.ndarray, images: Sequence[np.ndarray]) -> Inputs:
  """Returns numpy Inputs of one row with one sequence (see `logits`).

  Images are padded to the number of patches of the largest one.
  """
  # check the images, then cut them into patches in merge order
  v = config.vision
  unit = v.patch * v.merge
  for i, image in enumerate(images):
    if image.dtype != np.uint8 or not patches.is_whole(image, unit):
      raise DataError(
        f'image {i}: got {image.dtype}{list(image.shape)}, wanted uint8[H, W, 3] with sides '
        f'multiples of {unit}; resize it'
      )
  cut = [patches.patchify(image, v.patch, v.merge) for image in images]
  grids = np.array([grid for _, grid in cut], np.int32).reshape(1, -1, 2)

  # every image slot has as many patches as the largest image
  most = max((len(rows) for rows, _ in cut), default=0)
  pixels = np.zeros((1, len(images), most, 1, 3 * v.patch**2), np.uint8)
  for i, (rows, _) in enumerate(cut):
    pixels[0, i, : len(rows), 0] = rows

  # placeholders point to the merged tokens of their image's slot
  slot = most // v.merge**2
  merged = [(h // v.merge, w // v.merge) for _, (h, w) in cut]
  places = [i * slot + np.arange(h * w) for i, (h, w) in enumerate(merged)]
  spots, _ = positions.mrope_positions(ids, config.image_id, merged)
  visual = np.full((1, len(ids)), -1, np.int32)
  visual[0, ids == config.image_id] = np.concatenate(places) if places else []

  # one document without branches: segment 1, branch 0
  ones = np.ones((1, len(ids)), np.int32)
  arrays: Any = (ids[None], spots[:, None], ones, 0 * ones, visual, pixels, grids)
  return Inputs(*arrays)  # JAX accepts numpy arrays

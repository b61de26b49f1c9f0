"""Right and wrong servers of a model of 28 layers of random weights, and what each would reply.

The model is narrow, so that hundreds of servers are cheap. Its depth is that of Qwen3-VL 2B.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.rollout.supervisor import FleetOptions
from paravt_jax.serving import manifest
from paravt_jax.serving.canary import Canary, Continuation, canary_image
from paravt_jax.serving.protocol import GenerateReply
from paravt_jax.train import greedy
from paravt_jax.train.step import ModelOptions

LAYERS = 28
START, END, IMAGE, VIDEO = 58, 59, 60, 61
BANNED = (START, END, IMAGE, VIDEO)
CONFIG = Config(
  text=TextConfig(
    vocab=512,
    width=64,
    layers=LAYERS,
    heads=4,
    kv_heads=2,
    head_dim=32,
    mlp=192,
    rope_theta=5e6,
    rope_sections=(6, 5, 5),
    norm_eps=1e-6,
    max_positions=4096,
  ),
  vision=VisionConfig(
    width=32,
    depth=6,
    mlp=64,
    heads=2,
    patch=16,
    merge=2,
    temporal=2,
    positions=36,
    taps=(1, 2, 3),
  ),
  tied=False,
  image_id=IMAGE,
  video_id=VIDEO,
  vision_start_id=START,
  vision_end_id=END,
)
PICTURE = canary_image(64)
WORDS = (300, 301, START, IMAGE, END, 302, 303, 304, 305, 306)
EXPANDED = (300, 301, START, *[IMAGE] * 16, END, 302, 303, 304, 305, 306)
TOKENS, CONTINUATIONS = 8, 4
RULE = {
  'tolerance': FleetOptions.published().tolerance,
  'ratio': FleetOptions.published().rounding_ratio,
}


class Seen(NamedTuple):
  """What a server sees besides its weights."""

  image: np.ndarray | None = PICTURE  # None: the prompt comes without picture and placeholders
  text_positions: bool = False  # image tokens get the positions of text
  features: bool = True  # False: the placeholders stay, and nothing is put in their place
  temperature: float = 1.0  # that its log-probs are of


RIGHT = Seen()


def sized(width: int, layers: int = LAYERS, vocab: int = 512) -> Config:
  """CONFIG with another text decoder."""
  text = dataclasses.replace(
    CONFIG.text, width=width, layers=layers, vocab=vocab, mlp=3 * width, heads=width // 16
  )
  return dataclasses.replace(CONFIG, text=text)


def weights(seed: int, config: Config = CONFIG) -> Any:
  """Random weights, rounded to bfloat16; norms and biases random, too."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    noise = rng.standard_normal(leaf.shape, np.float32)
    if name == 'scale':
      value = 1 + 0.2 * noise
    elif name == 'bias':
      value = 0.2 * noise
    elif name == 'embedding':
      value = noise
    else:
      value = noise * _deviation(jax.tree_util.keystr(path), leaf.shape, config.text.layers)
    return value.astype(ml_dtypes.bfloat16).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, model.abstract_params(config))


def _deviation(path: str, shape: tuple[int, ...], layers: int) -> float:
  """The standard deviation of model.init: 1 / sqrt(fan in), less at the ends of branches."""
  last = any(name in path for name in ("['down']", "['o']", "['proj']", "['fc2']"))
  fan_in = math.prod(shape[1:-1] if len(shape) > 2 else shape[:1])
  return float(fan_in**-0.5 * ((2 * layers) ** -0.5 if last else 1))


@functools.cache
def _predictor(config: Config) -> Callable[[Any], greedy.Said]:
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  options = ModelOptions('bfloat16', False, 'chunked', 64, 1.0, BANNED)
  return greedy.make_canary(
    config,
    mesh,
    options,
    greedy.Prompt(np.array(EXPANDED), PICTURE),
    tokens=TOKENS,
    continuations=CONTINUATIONS,
    published='bfloat16',
  )


def canary(params: Any, config: Config = CONFIG) -> tuple[Canary, np.ndarray]:
  """The learner's canary of these weights, and all its ids [R, T]."""
  said = _predictor(config)(params)
  rows = []
  for row in range(CONTINUATIONS):
    begin = greedy.SAMPLED if row else 0
    ids, logprobs, margins = (values[row].tolist() for values in said[:3])
    rows.append(
      Continuation(
        tuple(ids[:begin]), tuple(ids[begin:]), tuple(logprobs[begin:]), tuple(margins[begin:])
      )
    )
  costs = float(said.rounding), float(said.sampled_rounding)
  return Canary(WORDS, PICTURE, BANNED, tuple(rows), *costs), np.asarray(said.ids_RT)


@functools.partial(jax.jit, static_argnames=('config', 'places', 'dtype', 'backend'))
def _score(params, inputs, temperature, config, places, dtype, backend):
  x_BTD = model.hidden(
    config,
    params,
    inputs,
    dtype=jnp.dtype(dtype),
    remat='none',
    freeze_vision=True,
    backend=backend,
  )
  x_BTD = x_BTD[:, -places - 1 : -1]
  kernel_DV = model.head(params, config).astype(x_BTD.dtype)
  logits = jnp.einsum('BTD,DV->BTV', x_BTD, kernel_DV, preferred_element_type=jnp.float32)
  logits = logits.at[..., jnp.asarray(BANNED)].set(-jnp.inf)
  return jax.nn.log_softmax(logits / temperature)


def logprobs(
  params: Any,
  ids_RT: np.ndarray,
  seen: Seen = RIGHT,
  dtype: str = 'bfloat16',
  config: Config = CONFIG,
  backend: str = 'xla',
) -> np.ndarray:
  """float32[R, T, V]: log-probs at the learner's places, as a server of `params` computes them."""
  picture = () if seen.image is None else (seen.image,)
  merged = sum(image.shape[0] * image.shape[1] // 32**2 for image in picture)
  middle = (START, *[IMAGE] * merged, END) if picture else ()
  rows = []
  for ids_T in ids_RT:
    ids = (*WORDS[:2], *middle, *WORDS[5:], *ids_T)
    row = model.single_inputs(config, np.array(ids, np.int32), picture)
    if seen.text_positions:
      places = np.broadcast_to(np.arange(row.tokens_BT.shape[1]), row.positions_ABT.shape)
      row = row._replace(positions_ABT=places.astype(np.int32))
    if not seen.features:
      row = row._replace(visual_index_BT=np.full_like(row.visual_index_BT, -1))
    rows.append(row)
  joined: Any = {
    name: np.concatenate([getattr(row, name) for row in rows], axis=int(name == 'positions_ABT'))
    for name in model.Inputs._fields
    if getattr(rows[0], name) is not None
  }
  given = (params, model.Inputs(**joined), seen.temperature)
  return np.asarray(_score(*given, config, ids_RT.shape[1], dtype, backend))


def replies(expected: Canary, found_RTV: np.ndarray) -> list[GenerateReply]:
  """What a server with these log-probs replies to the canary's requests.

  After the first id that is not the learner's, its text is not known from these log-probs, and the
  rule does not look at it.
  """
  made = []
  for row, one in enumerate(expected.continuations):
    own_TV = found_RTV[row, len(one.sampled_ids) :]
    ids = own_TV.argmax(-1)
    own = own_TV[np.arange(len(ids)), ids]
    made.append(
      GenerateReply(ids.tolist(), own.tolist(), 'length', len(EXPANDED), 0, 16, [(1, 0, len(ids))])
    )
  return made


def rollout_gap(server_RTV: np.ndarray, learner_RTV: np.ndarray) -> float:
  """What `policy/gap_current_mean` is of many tokens that the server samples at these places."""
  allowed = np.isfinite(learner_RTV)  # a nan of the server stays one
  server_RTV, learner_RTV = (np.where(allowed, x, 0.0) for x in (server_RTV, learner_RTV))
  terms = np.where(allowed, np.exp(server_RTV) * np.abs(server_RTV - learner_RTV), 0.0)
  return float(terms.sum(-1).mean())


# axes of the residual stream in the parameters that read or write it
_WIDTH = {
  'head/kernel': 0,
  'text/embed/embedding': 1,
  'text/norm/scale': 0,
  'text/layers/norm1/scale': 1,
  'text/layers/norm2/scale': 1,
  **{f'text/layers/{name}/kernel': 1 for name in ('q', 'k', 'v', 'gate', 'up')},
  **{f'text/layers/{name}/kernel': 2 for name in ('o', 'down')},
  'visual/merger/fc2/kernel': 1,
  'visual/merger/fc2/bias': 0,
  'visual/deepstack/fc2/kernel': 2,
  'visual/deepstack/fc2/bias': 1,
}
_UNITS = {'text/layers/gate/kernel': 2, 'text/layers/up/kernel': 2, 'text/layers/down/kernel': 1}


def reordered(params: Any, seed: int, config: Config = CONFIG) -> Any:
  """The same function with the residual stream and the MLP units in another order.

  Equal in exact arithmetic; every sum of products runs in another order.
  """
  rng = np.random.default_rng(seed)
  width, units = rng.permutation(config.text.width), rng.permutation(config.text.mlp)

  def change(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name in _UNITS:
      leaf = np.take(leaf, units, axis=_UNITS[name])
    return np.take(leaf, width, axis=_WIDTH[name]) if name in _WIDTH else leaf

  return jax.tree_util.tree_map_with_path(change, params)


class Wrong(NamedTuple):
  """A server that is wrong in one way."""

  family: str  # a row of the table of paravt_jax/serving/README.md
  kind: str
  params: Any
  seen: Seen


Named = dict[str, np.ndarray]  # parameters by path, such as 'text/layers/q/kernel'
# pairs of tensors that have one shape, so that a loader may take one for the other
_ALIKE = (
  ('gate/kernel', 'up/kernel'),
  ('k/kernel', 'v/kernel'),
  ('norm1/scale', 'norm2/scale'),
  ('q_norm/scale', 'k_norm/scale'),
)


def wrong_servers(right: Any, other: Any, rng: np.random.Generator) -> Iterator[Wrong]:
  """Yields every kind of wrong server, made of `right` and of other weights."""
  named, others = (dict(_leaves(tree)) for tree in (right, other))
  yield from _wrong_tensors(named, others, rng)
  yield from _wrong_layers(named, others)
  yield from _wrong_versions(named, others, rng)
  yield from _wrong_requests(right)


def _wrong_tensors(named: Named, others: Named, rng: np.random.Generator) -> Iterator[Wrong]:
  """One tensor is wrong, in all its layers or in one."""

  def put(family, name, value):
    return Wrong(family, name, manifest.nest({**named, name: value}), Seen())

  for name, leaf in named.items():
    part = 'vision' if name.startswith('visual') else 'text'
    yield put(f'a whole {part} tensor of other weights', name, others[name])
    yield put(f'exponent bits of a {part} tensor', name, _flip(leaf, rng))
    if leaf.ndim > 1 and name.endswith('kernel') and 'patch' not in name:
      turned = np.swapaxes(leaf, -1, -2).reshape(leaf.shape)
      yield put(f'a {part} tensor transposed', name, turned)
    if part == 'text':
      yield put('the top exponent bit of one value', name, _break(leaf))
    if name.startswith('text/layers'):
      layers = len(leaf)
      swapped, stale = leaf.copy(), leaf.copy()
      first, second, old = layers // 5, 2 * layers // 3, 2 * layers // 5
      swapped[[first, second]] = leaf[[second, first]]
      stale[old] = others[name][old]
      yield put('a tensor of two layers swapped', name, swapped)
      yield put('a tensor of one layer stale', name, stale)


def _wrong_layers(named: Named, others: Named) -> Iterator[Wrong]:
  """Whole layers, or tensors under each other's names."""
  layers = len(named['text/layers/q/kernel'])

  def stale(first, last):
    mixed = {
      name: np.concatenate([leaf[:first], others[name][first:last], leaf[last:]])
      for name, leaf in named.items()
      if name.startswith('text/layers')
    }
    return manifest.nest({**named, **mixed}), Seen()

  for layer in range(0, layers, 3):
    yield Wrong('one layer stale', f'layer {layer}', *stale(layer, layer + 1))
  yield Wrong('half of the layers stale', 'the first', *stale(0, layers // 2))
  yield Wrong('half of the layers stale', 'the last', *stale(layers // 2, layers))
  for one, two in _ALIKE:
    one, two = f'text/layers/{one}', f'text/layers/{two}'
    changed = {**named, one: named[two], two: named[one]}
    yield Wrong('two tensors of one shape swapped', one, manifest.nest(changed), Seen())
  for name, axis in (('text/embed/embedding', 0), ('head/kernel', 1)):
    shifted = {**named, name: np.roll(named[name], 1, axis)}
    yield Wrong('vocabulary shifted by one', name, manifest.nest(shifted), Seen())


def _wrong_versions(named: Named, others: Named, rng: np.random.Generator) -> Iterator[Wrong]:
  """Many weights are those of another model or version."""
  for part in ('visual', 'text', ''):
    changed = {name: others[name] for name in named if name.startswith(part)}
    mixed = manifest.nest({**named, **changed})
    yield Wrong('a part of other weights', part or 'all', mixed, Seen())
  for share in (0.003, 0.01, 0.03, 0.1, 0.3):
    moved = {
      name: _round(leaf + share * _spread(leaf) * rng.standard_normal(leaf.shape))
      for name, leaf in named.items()
    }
    yield Wrong(f'another version, {share:g} away', 'all', manifest.nest(moved), Seen())
  # what a step of RL does to weights in bfloat16: most values round to what they were
  for share, family in ((0.01, 'last version'), (0.3, 'version 30 steps ago')):
    moved = {name: _step(leaf, share, rng) for name, leaf in named.items()}
    yield Wrong(family, f'{share:.0%} of values', manifest.nest(moved), Seen())


def _wrong_requests(right: Any) -> Iterator[Wrong]:
  """The weights are right, and what the server makes of a request is not."""
  for temperature in (0.5, 0.7, 0.9, 1.1, 1.5):
    seen = Seen(temperature=temperature)
    yield Wrong('another temperature', f'{temperature:g}', right, seen)
  for kind, image in (
    ('black', PICTURE * 0),
    ('upside down', PICTURE[::-1].copy()),
    ('channels reversed', PICTURE[..., ::-1].copy()),
    ('darker', PICTURE // 2),
    ('cut to a quarter', PICTURE[:64, :64].copy()),
  ):
    yield Wrong('another picture', kind, right, Seen(image))
  yield Wrong('a missing frame', 'without placeholders', right, Seen(None))
  yield Wrong('a missing frame', 'with placeholders', right, Seen(features=False))
  yield Wrong('positions of text at image tokens', '', right, Seen(text_positions=True))


def _leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _round(values: np.ndarray) -> np.ndarray:
  return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def _spread(leaf: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(leaf))))


def _flip(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The lowest exponent bit of one bfloat16 in 50 flipped: doubled or halved."""
  bits = leaf.astype(ml_dtypes.bfloat16).view(np.uint16)
  chosen = rng.random(leaf.shape) < 0.02
  return np.where(chosen, bits ^ 0x80, bits).view(ml_dtypes.bfloat16).astype(np.float32)


def _break(leaf: np.ndarray) -> np.ndarray:
  """The top exponent bit of the largest value of the middle row flipped: about 1e38 times that."""
  bits = leaf.astype(ml_dtypes.bfloat16).view(np.uint16).copy()
  flat = np.abs(leaf.reshape(len(leaf), -1)[len(leaf) // 2])
  bits.reshape(len(leaf), -1)[len(leaf) // 2, flat.argmax()] ^= 0x4000
  return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def _step(leaf: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
  """A share of the values moved to the next bfloat16, up or down."""
  bits = leaf.astype(ml_dtypes.bfloat16).view(np.uint16)
  moved = bits + rng.choice(np.array([1, -1]), leaf.shape).astype(np.uint16)
  chosen = rng.random(leaf.shape) < share
  return np.where(chosen, moved, bits).view(ml_dtypes.bfloat16).astype(np.float32)

"""Right and wrong servers of a model of 28 layers of random weights, and what each would reply.

The model is narrow, so that hundreds of servers are cheap. Its depth is that of Qwen3-VL 2B.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.serving import manifest
from paravt_jax.serving.canary import Canary, Continuation, canary_image
from paravt_jax.serving.protocol import GenerateReply
from paravt_jax.train import greedy, sharding
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
# what `FleetOptions.published()` says
RULE = {'tolerance': 0.001, 'ratio': 1.5}


class Seen(NamedTuple):
  """What a server sees besides its weights."""

  image: np.ndarray
  text_positions: bool = False  # image tokens get the positions of text
  temperature: float = 1.0  # that its log-probs are of


def weights(seed: int) -> Any:
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
      value = noise * _deviation(jax.tree_util.keystr(path), leaf.shape)
    return value.astype(ml_dtypes.bfloat16).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, model.abstract_params(CONFIG))


def _deviation(path: str, shape: tuple[int, ...]) -> float:
  """The standard deviation of model.init: 1 / sqrt(fan in), less at the ends of branches."""
  last = any(name in path for name in ("['down']", "['o']", "['proj']", "['fc2']"))
  fan_in = np.prod(shape[1:-1]) if len(shape) > 2 else shape[0]
  return float(fan_in**-0.5 * ((2 * LAYERS) ** -0.5 if last else 1))


@functools.cache
def _predictor() -> Callable[[Any], greedy.Said]:
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  options = ModelOptions('bfloat16', False, 'chunked', 64, 1.0, BANNED)
  return greedy.make_canary(
    CONFIG,
    mesh,
    options,
    greedy.Prompt(np.array(EXPANDED), PICTURE),
    tokens=TOKENS,
    continuations=CONTINUATIONS,
    published='bfloat16',
  )


def canary(params: Any) -> tuple[Canary, np.ndarray]:
  """The learner's canary of these weights, and all its ids [R, T]."""
  said = _predictor()(params)
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
  return Canary(WORDS, PICTURE, BANNED, tuple(rows), *costs), said.ids_RT


@functools.partial(jax.jit, static_argnames='dtype')
def _score(params, inputs, temperature, dtype):
  x_BTD = model.hidden(
    CONFIG, params, inputs, dtype=jnp.dtype(dtype), remat='none', freeze_vision=True, backend='xla'
  )
  x_BTD = x_BTD[:, len(EXPANDED) - 1 : -1]
  kernel_DV = model.head(params, CONFIG).astype(x_BTD.dtype)
  logits = jnp.einsum('BTD,DV->BTV', x_BTD, kernel_DV, preferred_element_type=jnp.float32)
  logits = logits.at[..., jnp.asarray(BANNED)].set(-jnp.inf)
  return jax.nn.log_softmax(logits / temperature)


def logprobs(params: Any, ids_RT: np.ndarray, seen: Seen, dtype: str) -> np.ndarray:
  """float32[R, T, V]: log-probs at the learner's places, as a server of `params` computes them."""
  rows = []
  for ids_T in ids_RT:
    row = model.single_inputs(CONFIG, np.array([*EXPANDED, *ids_T], np.int32), (seen.image,))
    if seen.text_positions:
      places = np.broadcast_to(np.arange(row.tokens_BT.shape[1]), row.positions_ABT.shape)
      row = row._replace(positions_ABT=places.astype(np.int32))
    rows.append(row)
  joined: Any = {
    name: np.concatenate([getattr(row, name) for row in rows], axis=int(name == 'positions_ABT'))
    for name in model.Inputs._fields
    if getattr(rows[0], name) is not None
  }
  inputs = model.Inputs(**joined)
  return np.asarray(_score(params, inputs, seen.temperature, dtype))


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


def reordered(params: Any, seed: int) -> Any:
  """The same function with the residual stream and the MLP units in another order.

  Equal in exact arithmetic; every sum of products runs in another order.
  """
  rng = np.random.default_rng(seed)
  width, units = rng.permutation(CONFIG.text.width), rng.permutation(CONFIG.text.mlp)

  def change(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name in _UNITS:
      leaf = np.take(leaf, units, axis=_UNITS[name])
    return np.take(leaf, width, axis=_WIDTH[name]) if name in _WIDTH else leaf

  return jax.tree_util.tree_map_with_path(change, params)


Server = tuple[Any, Seen]  # its weights, and what it sees


def wrong_servers(
  right: Any, other: Any, rng: np.random.Generator
) -> Iterator[tuple[str, str, Server]]:
  """Yields (family, kind, server): every kind of wrong server, made of `right` and other weights.

  Families: the table of paravt_jax/serving/README.md.
  """
  seen = Seen(PICTURE)
  named, others = (dict(_leaves(tree)) for tree in (right, other))

  def put(**changes):
    return _nest({**named, **{name.replace('__', '/'): value for name, value in changes.items()}})

  for name, leaf in named.items():
    key = name.replace('/', '__')
    part = 'vision' if name.startswith('visual') else 'text'
    yield f'a whole {part} tensor of other weights', name, (put(**{key: others[name]}), seen)
    yield f'exponent bits of a {part} tensor', name, (put(**{key: _flip(leaf, rng)}), seen)
    if name.startswith('text/layers'):
      swapped, stale = leaf.copy(), leaf.copy()
      swapped[[5, 19]] = leaf[[19, 5]]
      stale[11] = others[name][11]
      yield 'a tensor of two layers swapped', name, (put(**{key: swapped}), seen)
      yield 'a tensor of one layer stale', name, (put(**{key: stale}), seen)
    if leaf.ndim > 1 and name.endswith('kernel') and 'patch' not in name:
      turned = np.swapaxes(leaf, -1, -2).reshape(leaf.shape)
      yield f'a {part} tensor transposed', name, (put(**{key: turned}), seen)
  for layer in range(0, LAYERS, 3):
    stale = {
      name.replace('/', '__'): np.concatenate(
        [leaf[:layer], others[name][layer : layer + 1], leaf[layer + 1 :]]
      )
      for name, leaf in named.items()
      if name.startswith('text/layers')
    }
    yield 'one layer stale', f'layer {layer}', (put(**stale), seen)
  embedding = named['text/embed/embedding']
  shifted = np.roll(embedding, 1, axis=0)
  yield 'vocabulary shifted by one', 'embedding', (put(text__embed__embedding=shifted), seen)
  shifted = np.roll(named['head/kernel'], 1, axis=1)
  yield 'vocabulary shifted by one', 'head', (put(head__kernel=shifted), seen)
  tree = lambda name: _nest({**named, **{n: others[n] for n in named if n.startswith(name)}})
  yield 'a part of other weights', 'tower', (tree('visual'), seen)
  yield 'a part of other weights', 'decoder', (tree('text'), seen)
  yield 'a part of other weights', 'all', (other, seen)
  for share in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3):
    mixed = {
      name: _round(leaf + share * _spread(leaf) * rng.standard_normal(leaf.shape))
      for name, leaf in named.items()
    }
    yield f'another version, {share:g} away', 'all', (_nest(mixed), seen)
  for temperature in (0.5, 0.7, 0.9, 1.1, 1.5):
    warm = seen._replace(temperature=temperature)
    yield 'another temperature', f'{temperature:g}', (right, warm)
  yield 'another picture', 'black, as if a frame were missing', (right, Seen(PICTURE * 0))
  yield 'another picture', 'upside down', (right, Seen(PICTURE[::-1].copy()))
  yield 'another picture', 'channels reversed', (right, Seen(PICTURE[..., ::-1].copy()))
  yield 'another picture', 'darker', (right, Seen(PICTURE // 2))
  yield 'positions of text at image tokens', '', (right, Seen(PICTURE, text_positions=True))


def _leaves(tree: Any) -> list[tuple[str, np.ndarray]]:
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [(jax.tree_util.keystr(p, simple=True, separator='/'), leaf) for p, leaf in flat]


def _nest(named: dict[str, np.ndarray]) -> Any:
  return manifest.nest(named)


def _round(values: np.ndarray) -> np.ndarray:
  return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def _spread(leaf: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(leaf))))


def _flip(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The lowest exponent bit of one bfloat16 in 50 flipped: doubled or halved."""
  bits = leaf.astype(ml_dtypes.bfloat16).view(np.uint16)
  chosen = rng.random(leaf.shape) < 0.02
  return np.where(chosen, bits ^ 0x80, bits).view(ml_dtypes.bfloat16).astype(np.float32)

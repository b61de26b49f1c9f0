"""Suite `gaps`: how far the log-probs of each engine are from float32, on the same weights.

Every engine samples one token at places of four classes, in text as rollouts have it: frames, a
question, a turn with a tool call. The gap of a token is |its log-prob - its log-prob in float32|.
Each engine also answers the canary. That says what `server.watch.rounding_ratio` and
`rollout.gap_ratio` must allow on this machine.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from experiments.bench import engines, servers
from experiments.bench.measuring import say
from experiments.bench.recipe import BenchRecipe
from paravt_jax import seeds
from paravt_jax.chat import template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator import canary as canaries
from paravt_jax.orchestrator.parts import load_model
from paravt_jax.orchestrator.server_options import PublishOptions
from paravt_jax.rollout.supervisor import FleetOptions
from paravt_jax.serving.canary import Canary
from paravt_jax.serving.process import ServerProcess
from paravt_jax.serving.protocol import GenerateRequest
from paravt_jax.testing import tiny
from paravt_jax.train.step import ModelOptions

DTYPES = ('float32', 'bfloat16')
# classes of places: what the text has there, which is what a trained model samples
CLASSES = ('words', 'numbers', 'tags', 'after_picture')
TAGS = ('<tool_call>', '</tool_call>', '<think>', '</think>', '<answer>', '</answer>')
_ROOM = 128  # lengths of compiled programs are multiples of it


class Place(NamedTuple):
  """A text up to some token, which an engine is to sample."""

  kind: str  # one of CLASSES
  request: GenerateRequest


class Task(NamedTuple):
  """What all engines are given."""

  recipe: BenchRecipe
  folder: pathlib.Path  # of the model; all weights are values of bfloat16
  config: Config
  params: Any
  tok: ChatTokenizer
  places: list[Place]
  canary: Canary
  capacity: engines.Capacity


def suite(recipe: BenchRecipe) -> dict[str, Any]:
  """{'learner_float32': {'words': {'mean': ..., 'largest': ...}, ..., 'canary_ratio': ...,
  'rollout_ratio': ...}, ..., 'rounding': ..., 'sampled_rounding': ...}, gaps in nats.

  `canary_ratio` is the smallest `server.watch.rounding_ratio` at which the canary believes the
  engine; `rollout_ratio` is its mean gap to the learner in bfloat16 over `policy/rounding`, which
  is compared with `rollout.gap_ratio`.
  """
  task = _task(recipe)

  @functools.cache  # an engine that is used twice is compiled once
  def forward(dtype: str, backend: str) -> engines.Forward:
    return engines.learner(task.config, task.params, dtype, backend, task.capacity)

  requests, image_id = [place.request for place in task.places], task.config.image_id
  say(f'{len(requests)} places in float32 and in the learner')
  exact_RV, learner_RV = (
    engines.rows(forward(*way), requests, image_id)
    for way in (('float32', 'xla'), ('bfloat16', 'chunked'))
  )
  report: dict[str, Any] = {}
  for name, engine in _engines(task, forward):
    say(name)
    replies = engine(requests)
    gaps = engines.gaps(replies, exact_RV)
    kinds = np.array([place.kind for place in task.places])
    row: dict[str, Any] = {
      kind: {'mean': float(gaps[kinds == kind].mean()), 'largest': float(gaps[kinds == kind].max())}
      for kind in CLASSES
    }
    found = task.canary.measure(engine(task.canary.requests(f'canary-{name}')))
    tolerance = FleetOptions.published().tolerance
    row['canary_ratio'] = task.canary.needed_ratio(found, tolerance=tolerance)
    apart = float(engines.gaps(replies, learner_RV).mean())
    row['rollout_ratio'] = apart / task.canary.sampled_rounding
    report[name] = row
  costs = {
    'rounding': task.canary.rounding,
    'sampled_rounding': task.canary.sampled_rounding,
    'places': len(requests),
  }
  return report | costs


def table(report: Mapping[str, Any]) -> str:
  """The report in Markdown: mean / largest gap in nats of each engine and class."""
  heads = ('engine', *(name.replace('_', ' ') for name in CLASSES), 'canary', 'rollouts')
  lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
  for name, row in report.items():
    if not isinstance(row, Mapping):
      continue
    cells = [f'{row[kind]["mean"]:.1g} / {row[kind]["largest"]:.1g}' for kind in CLASSES]
    ratios = [f'{row[key]:.2f}' for key in ('canary_ratio', 'rollout_ratio')]
    lines.append(f'| {" | ".join([name.replace("_", ", "), *cells, *ratios])} |')
  return '\n'.join(lines)


# What is compared


def _task(recipe: BenchRecipe) -> Task:
  folder = _folder(recipe)
  config, params, tok = load_model(folder)
  places = list(_places(recipe, tok))
  canary = _canary(recipe, config, params, tok)
  every = [*(place.request for place in places), *canary.requests('size')]
  longest = max(len(engines.expanded(one, config.image_id)) + one.max_new_tokens for one in every)
  tokens = -(-longest // _ROOM) * _ROOM
  capacity = engines.Capacity(tokens, max(len(one.images) for one in every))
  return Task(recipe, folder, config, params, tok, places, canary, capacity)


def _folder(recipe: BenchRecipe) -> pathlib.Path:
  """A copy of the model whose weights bfloat16 can hold, so that all engines have the same."""
  target = (pathlib.Path(recipe.run.folder) / 'gaps').absolute()
  target.mkdir(parents=True, exist_ok=True)
  if recipe.model.folder:
    source = pathlib.Path(recipe.model.folder)
    config, params, _ = load_model(source)
  else:
    source = target / 'tokenizer'
    knobs = recipe.gaps
    tokenizer = tiny.build_tokenizer(source)
    config = tiny.tiny_config(tokenizer, layers=knobs.layers, width=knobs.width)
    # a head of its own: a tied one makes a random model say nearly the same of all tokens
    config = dataclasses.replace(config, tied=False)
    params = model.init(config, jax.random.key(recipe.seed))
  rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params)
  weights.save_hf(target / 'model', config, rounded, source)
  return target / 'model'


def _places(recipe: BenchRecipe, tok: ChatTokenizer) -> Iterator[Place]:
  """Up to `places` of each class in each text."""
  knobs = recipe.gaps
  for number in range(knobs.texts):
    rng = seeds.rng(recipe.seed, 'gaps', number)
    shape = (knobs.frames, knobs.side, knobs.side, 3)
    frames = tuple(rng.integers(0, 256, shape, np.uint8))
    ids, start = _text(tok, frames, rng)
    kinds = np.array([_kind(tok, ids, place, start) for place in range(len(ids))])
    for kind in CLASSES:
      found = np.flatnonzero(kinds == kind)
      for place in rng.permutation(found)[: knobs.places]:
        before = ids[:place].tolist()
        shown = frames[: before.count(tok.image_pad)]
        rid, banned = f'{number}-{place}', tok.vision_ids
        rest = (knobs.temperature, 1.0, -1, 1, (), banned, recipe.seed, True)
        yield Place(kind, GenerateRequest(rid, before, shown, *rest))


def _text(
  tok: ChatTokenizer, frames: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, int]:
  """(ids, index of the first one of the answer): frames, a question, a turn that calls a tool."""
  times = np.sort(rng.choice(64, len(frames), replace=False))
  begin, end = sorted(rng.choice(64, 2, replace=False).tolist())
  asked = f'What appears at {begin}, and what at {end}?'
  prompt = template.opening(tok, None, [*template.frame_pieces(frames, times), asked], '').ids
  reasoning = f'Between {begin} and {end} the frames are too coarse. I look again.'
  calls = [('crop_video', {'start_time': float(at), 'end_time': at + 4.0}) for at in (begin, end)]
  said = template.assistant_text('', reasoning, calls)
  return np.concatenate([prompt, tok.encode(said, trusted=True)]), len(prompt)


def _kind(tok: ChatTokenizer, ids: np.ndarray, place: int, start: int) -> str:
  """The class of a token of a text; '' for those of the prompt that follow no picture."""
  if place and ids[place - 1] == tok.vision_end:
    return 'after_picture'
  if place < start:
    return ''
  text = tok.decode(ids[place : place + 1])
  if text.strip() in TAGS:
    return 'tags'
  return 'numbers' if any(letter.isdigit() for letter in text) else 'words'


def _canary(recipe: BenchRecipe, config: Config, params: Any, tok: ChatTokenizer) -> Canary:
  """The canary as a run publishes it, of a learner in bfloat16."""
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  options = ModelOptions(
    'bfloat16', 'none', 'chunked', 1024, recipe.gaps.temperature, tuple(tok.vision_ids)
  )
  asked = canaries.prompt(tok, (recipe.gaps.side // 16) ** 2)
  make = canaries.make(config, mesh, options, tok, asked, PublishOptions.published())
  return make(params)


# The engines


def _engines(
  task: Task, forward: Callable[[str, str], engines.Forward]
) -> Iterator[tuple[str, engines.Answer]]:
  """Each engine in each dtype; servers run while theirs is in use."""
  chosen, image_id = task.recipe.gaps.engines, task.config.image_id
  for dtype in DTYPES if 'learner' in chosen else ():
    yield f'learner_{dtype}', engines.local(forward(dtype, 'chunked'), image_id)
  for dtype in DTYPES if 'transformers' in chosen else ():
    theirs = engines.transformers(str(task.folder), dtype, task.recipe.threads)
    yield f'transformers_{dtype}', engines.local(theirs, image_id)
  for name, start in (('embedded', _embedded), ('sglang', _sglang)):
    python = pathlib.Path(task.recipe.server.sglang.python)
    if name == 'sglang' in chosen and not python.is_file():
      say(f'there is no {python}: SGLang is left out; install it with `make sglang`')
      continue
    for dtype in DTYPES if name in chosen else ():
      process = start(task, dtype)
      try:
        yield f'{name}_{dtype}', engines.served(process.url, task.recipe.gaps.concurrency)
      finally:
        process.stop(servers.GRACE_S)


def _embedded(task: Task, dtype: str) -> ServerProcess:
  lanes = ((max(task.capacity.tokens, 128), task.recipe.gaps.concurrency),)
  changes = {
    'dtype': dtype,
    'lanes': lanes,
    'max_image_patches': (task.recipe.gaps.side // 16) ** 2,
  }
  return servers.embedded(task.recipe, task.folder, task.tok, **changes)


def _sglang(task: Task, dtype: str) -> ServerProcess:
  return servers.real_sglang(task.recipe, task.folder, dtype=dtype)

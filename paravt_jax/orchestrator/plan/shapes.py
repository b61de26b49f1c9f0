"""Episodes and conversations of stated shapes, packed as the learner packs them.

A plan cannot know how long episodes will be. It states their shape in tokens, and packs such
episodes with the learner's own packer, so fill, padding and attention pairs are counted.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from paravt_jax import packing
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan.job import Job
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.row_layout import Shape as BatchShape

# Attention backends by the side of the square tiles that they multiply; 0: every pair of a row;
# None: blocks of queries with all keys before their end, as models/attention.py cuts them.
TILES: dict[str, int | None] = {'xla': 0, 'chunked': None, 'tiled': 512, 'triton': 64}
TILE = 128  # of every other backend, which skips tiles without a visible pair


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of an episode, in tokens. Frames are counted without their pixels' tokens."""

  prompt: int  # text of the prompt: system, tools, question
  frame: int  # text beside each frame: its time and delimiters
  call: int  # written by the main agent for one call
  think: int  # written before calls
  result: int  # given back beside each sub-agent's text
  answer: int  # written in the last turn
  calls: int  # of an episode
  call_frames: int  # that a sub-agent sees
  task: int  # text of a sub-agent's prompt
  summary: int  # written by a sub-agent


# Lengths as they are with the published tokenizer and prompts, and with the tiny tokenizer, in
# which a time stamp and each of the fixed phrases is one token.
PUBLISHED = Shape(
  prompt=420,
  frame=9,
  call=30,
  think=120,
  result=15,
  answer=180,
  calls=5,
  call_frames=16,
  task=120,
  summary=80,
)
TINY = Shape(
  prompt=40,
  frame=3,
  call=24,
  think=15,
  result=8,
  answer=17,
  calls=1,
  call_frames=4,
  task=24,
  summary=6,
)
# Times of quarter seconds are six tokens there, not one.
TINY_LONG = dataclasses.replace(TINY, frame=8)
BY_SCALE = {'tiny': TINY, 'tiny_long': TINY_LONG}


@dataclasses.dataclass(frozen=True)
class Document:
  """A prefix and its suffixes, in tokens; one row holds it whole."""

  prefix: int
  suffixes: tuple[int, ...]
  images: int
  trained: int  # tokens

  @property
  def size(self) -> tuple[int, int]:
    """Returns (tokens, images)."""
    return self.prefix + sum(self.suffixes), self.images

  @property
  def visible(self) -> int:
    """Returns the pairs of tokens that see each other."""
    inside = [n * (n + 1) // 2 for n in (self.prefix, *self.suffixes)]
    return sum(inside) + self.prefix * sum(self.suffixes)


@dataclasses.dataclass(frozen=True)
class OwnData:
  """The documents of one step, measured in a recipe's own rows (`plan/own_data.py`)."""

  documents: tuple[Document, ...]
  bins: tuple[tuple[int, ...], ...] | None  # those of each row, where the run plans them so


@dataclasses.dataclass(frozen=True)
class Load:
  """One step's data in the learner's rows, over all devices."""

  documents: int
  tokens: int
  trained: int
  images: int
  rows: int  # with a document in them
  micro_batches: int  # that are run
  fill: float  # share of the tokens of these micro-batches that are not padding
  image_fill: float  # share of their image slots
  visible_pairs: int  # pairs of tokens that see each other
  multiplied_pairs: int  # pairs that the attention backend multiplies
  scored: int  # tokens that the head computes, in whole chunks
  limit: str  # what fills rows first: tokens or images
  shape: BatchShape  # of the batch, with room for at least `micro_batches`
  full_micro_batches: int  # that the data would fill in the longest rows


def shape_of(recipe: RLRecipe | SFTRecipe | EvalRecipe, given: str) -> Shape:
  """Returns the shape that a plan counts with: the longest usual episode of a recipe.

  That is one round of as many calls as may run, each with as many frames as a sub-agent may see.

  Args:
    given: changes, as in 'calls=2,think=300'.

  Raises:
    ConfigError: an unknown name, a value that is no whole number, or more than the agent may do.
  """
  shape = BY_SCALE.get(recipe.scale, PUBLISHED)
  if recipe.scale not in BY_SCALE and not isinstance(recipe, SFTRecipe):
    calls = recipe.agent.max_parallel if recipe.agent.max_turns else 0
    shape = dataclasses.replace(shape, calls=calls, call_frames=recipe.subagent.max_frames)
  changes: dict[str, int] = {}
  for part in filter(None, given.split(',')):
    name, _, value = part.partition('=')
    if name not in {field.name for field in dataclasses.fields(Shape)} or not value.isdigit():
      names = ', '.join(field.name for field in dataclasses.fields(Shape))
      raise ConfigError(f'--shape: got {part!r}, wanted NAME=NUMBER with a name of {names}')
    changes[name] = int(value)
  if not isinstance(recipe, SFTRecipe):
    agent = recipe.agent
    calls, turn = agent.max_turns * agent.max_parallel, agent.max_new_tokens
    for name, most, why in (
      ('calls', calls, f'agent.max_turns={agent.max_turns} rounds of {agent.max_parallel}'),
      ('think', turn * (agent.max_turns + 1), f'agent.max_new_tokens={turn} a turn'),
    ):
      if changes.get(name, 0) > most:
        raise ConfigError(f'--shape: got {name}={changes[name]}, wanted at most {most}: {why}')
  return dataclasses.replace(shape, **changes)


def frame_tokens(max_pixels: int) -> int:
  """Returns the tokens of a frame's pixels at its largest size."""
  return max(1, max_pixels // packing.SIDE**2)


def opening_tokens(shape: Shape, frames: int, max_pixels: int) -> int:
  """Returns the tokens of a prompt with so many frames."""
  return shape.prompt + frames * (shape.frame + frame_tokens(max_pixels))


def subagent_tokens(shape: Shape, max_pixels: int) -> int:
  """Returns the tokens of a sub-agent's document."""
  seen = shape.call_frames * (shape.frame + frame_tokens(max_pixels))
  return shape.task + seen + shape.summary


def rollout_tokens(shape: Shape) -> tuple[int, int]:
  """Returns (tokens behind the prompt, of them written by the main agent) of one rollout."""
  written = shape.think + shape.calls * shape.call + shape.answer
  return written + shape.calls * (shape.result + shape.summary), written


def documents_of_rl(
  recipe: RLRecipe, shape: Shape, openings: Sequence[tuple[int, int]] = ()
) -> list[Document]:
  """Returns the documents of one RL step: a group per prompt, a document per sub-agent.

  openings: (tokens, frames) of the prompts, in turn; () takes the largest budget for all.
  """
  pixels, size = recipe.video.max_pixels, recipe.rollout.group_size
  most = largest_budget(recipe)
  openings = openings or ((opening_tokens(shape, most, pixels), most),)
  suffix, written = rollout_tokens(shape)
  found = []
  for number in range(recipe.rollout.prompts):
    prefix, frames = openings[number % len(openings)]
    # a group that is longer than a row becomes several trees, each with the prompt
    together = max(1, min(size, (recipe.train.row_tokens - prefix) // max(suffix, 1)))
    for first in range(0, size, together):
      count = min(together, size - first)
      found.append(Document(prefix, (suffix,) * count, frames, written * count))
  if recipe.rollout.subagent_credit == 'episode':
    one = Document(subagent_tokens(shape, pixels), (), shape.call_frames, shape.summary)
    found += [one] * (recipe.rollout.prompts * size * shape.calls)
  return found


def largest_budget(recipe: RLRecipe) -> int:
  """Returns the most frames that a prompt of the recipe may show."""
  return max(recipe.frames.budgets) if recipe.frames.gating else recipe.frames.frames


def documents_of_sft(recipe: SFTRecipe, shape: Shape) -> list[Document]:
  """Returns conversations for one SFT step: a dialogue, then its sub-agents, again and again.

  There are as many as the rows of a step hold.
  """
  pixels, train = recipe.video.max_pixels, recipe.train
  frames = min(recipe.frames.max_frames, max(train.row_images, 1))
  suffix, written = rollout_tokens(shape)
  dialogue = Document(opening_tokens(shape, frames, pixels) + suffix, (), frames, written)
  look = Document(subagent_tokens(shape, pixels), (), shape.call_frames, shape.summary)
  turn = [dialogue] + [look] * shape.calls
  rows = train.rows * train.micro_batches
  limits = (train.row_tokens, train.row_images)
  taken = [max(1, sum(one.size[axis] for one in turn)) for axis in (0, 1)]
  most = min(limits[axis] * rows // taken[axis] for axis in (0, 1))
  found = turn * max(1, most)
  while len(found) > 1 and _row_count(found, limits) > rows:
    found = found[: -max(1, len(found) // 100)]
  return found


def _row_count(documents: Sequence[Document], limits: tuple[int, int]) -> int:
  return len(packing.first_fit_decreasing([one.size for one in documents], limits))


def pack(
  job: Job, documents: Sequence[Document], planned: Sequence[Sequence[int]] | None = None
) -> Load:
  """Lays documents out in rows as the learner does, and counts what it will compute.

  An RL step takes the shape of its ladder that pads least (`row_layout.Layouts`).

  Args:
    planned: the documents of each row of an SFT batch; None: first fit, largest first.

  Raises:
    DataError: a document is larger than a row.
  """
  train, sizes = job.train, [one.size for one in documents]
  full = packing.first_fit_decreasing(sizes, (train.row_tokens, train.row_images))
  if job.layouts is None:
    shape, bins = job.ladder[0], full if planned is None else planned
    micro = train.micro_batches
  else:
    layout = job.layouts.choose(sizes, [one.trained for one in documents])
    shape, bins = layout.shape, layout.bins
    micro = max(1, -(-len(bins) // train.rows))
  rows = [[documents[index] for index in members] for members in bins]
  tokens = sum(one.size[0] for one in documents)
  images = sum(one.images for one in documents)
  slots = micro * train.rows * shape.row_images
  by_tokens, by_images = tokens / shape.row_tokens, images / max(shape.row_images, 1)
  return Load(
    documents=len(documents),
    tokens=tokens,
    trained=sum(one.trained for one in documents),
    images=images,
    rows=len(rows),
    micro_batches=micro,
    fill=tokens / (micro * train.rows * shape.row_tokens),
    image_fill=images / slots if slots else 0.0,
    visible_pairs=sum(one.visible for one in documents),
    multiplied_pairs=_multiplied(job.at(shape), rows, micro * train.rows),
    scored=_scored(job.at(shape), rows),
    limit='images' if by_images > by_tokens else 'tokens',
    shape=shape,
    full_micro_batches=max(1, -(-len(full) // train.rows)),
  )


def _scored(job: Job, rows: Sequence[Sequence[Document]]) -> int:
  """Returns the tokens that the head computes: each device gets an equal share of whole chunks."""
  chunk, found = min(job.train.head_chunk, job.row_tokens) * job.train.rows, 0
  for first in range(0, len(rows), job.train.rows):
    wanted = sum(one.trained for row in rows[first : first + job.train.rows] for one in row)
    found += -(-wanted // chunk) * chunk
  return found


def _multiplied(job: Job, rows: Sequence[Sequence[Document]], count: int) -> int:
  """Returns the pairs of tokens that the attention backend multiplies in `count` rows."""
  length, tile = job.row_tokens, TILES.get(job.backend, TILE)
  if tile == 0:
    return count * length**2
  if tile is None:
    chunk = max(128, -(-length // (16 * 128)) * 128)
    ends = [min(first + chunk, length) for first in range(0, length, chunk)]
    return count * sum((end - first) * end for first, end in zip(range(0, length, chunk), ends))
  return sum(visited_tiles(row, length, tile) for row in rows) * tile**2


def visited_tiles(row: Sequence[Document], length: int, tile: int) -> int:
  """Returns how many tiles of queries and keys hold a visible pair.

  A query sees its document's prefix, from the start of the document, and its own branch.
  """
  start_T, branch_T, prefix_T = (np.zeros(length, np.int64) for _ in range(3))
  used_T = np.zeros(length, bool)
  at = 0
  for one in row:
    end = at + one.size[0]
    start_T[at:end], prefix_T[at:end], used_T[at:end] = at, at + one.prefix, True
    branch_T[at : at + one.prefix] = -1
    here = at + one.prefix
    for suffix in one.suffixes:
      branch_T[here : here + suffix] = here
      here += suffix
    at = end
  found = 0
  for first in range(0, at, tile):
    query_Q = np.flatnonzero(used_T[first : first + tile]) + first
    touched: set[int] = set()
    for low_Q, high_Q, holds_Q in (
      (start_T[query_Q], np.minimum(prefix_T[query_Q], query_Q + 1), query_Q >= 0),
      (branch_T[query_Q], query_Q + 1, branch_T[query_Q] >= 0),
    ):
      if holds_Q.any():
        low, high = int(low_Q[holds_Q].min()), int(high_Q[holds_Q].max())
        touched |= set(range(low // tile, -(-high // tile)))
    found += len(touched)
  return found

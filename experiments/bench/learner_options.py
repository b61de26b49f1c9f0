"""The typed section of the suite `learner`; the numbers stand in configs/bench.py."""

import dataclasses
from typing import Annotated

from paravt_jax.models import remat
from paravt_jax.options import (
  COUNT,
  FLAG,
  POSITIVE,
  Options,
  from_,
  multiple_of,
  one_of,
  span,
  whole,
)


@dataclasses.dataclass(frozen=True)
class ModelSize(Options):
  """Sizes of the text decoder; the tower is the tiny model's."""

  vocab: Annotated[int, COUNT]  # entries of the embedding table
  width: Annotated[int, COUNT]  # of the residual stream
  layers: Annotated[int, COUNT]  # of the decoder
  heads: Annotated[int, COUNT]  # query heads
  kv_heads: Annotated[int, COUNT]  # key heads
  head_dim: Annotated[int, multiple_of(8)]  # width of a head
  mlp: Annotated[int, COUNT]  # hidden units


@dataclasses.dataclass(frozen=True)
class TextBench(Options):
  """Documents of one length that fill their rows."""

  documents: Annotated[int, COUNT]  # of a step
  tokens: Annotated[int, whole(2)]  # of a document
  row_tokens: Annotated[int, COUNT]  # of our rows


@dataclasses.dataclass(frozen=True)
class FramesBench(Options):
  """Overviews of videos and windows of them, each with text: documents of different lengths."""

  overviews: Annotated[int, COUNT]  # of a step
  overview_frames: Annotated[tuple[int, int], span(1)]  # of an overview
  windows: Annotated[int, COUNT]  # of a step
  window_frames: Annotated[tuple[int, int], span(1)]  # of a window
  frame_side: Annotated[int, multiple_of(32)]  # pixels
  words: Annotated[tuple[int, int], span(2)]  # tokens of text behind the frames
  row_tokens: Annotated[int, COUNT]  # of our rows
  row_images: Annotated[int, COUNT]  # image slots of our rows


@dataclasses.dataclass(frozen=True)
class GroupBench(Options):
  """Rollouts of one prompt."""

  rollouts: Annotated[int, COUNT]  # of the prompt
  frames: Annotated[int, COUNT]  # of the prompt
  frame_side: Annotated[int, multiple_of(32)]  # pixels
  words: Annotated[int, COUNT]  # tokens of the question
  new_tokens: Annotated[int, COUNT]  # of a rollout
  row_multiple: Annotated[int, COUNT]  # our row is rounded up to a multiple of so many tokens


@dataclasses.dataclass(frozen=True)
class AttentionBench(Options):
  """Rows of episodes that share their prompt."""

  pair_row_tokens: Annotated[int, COUNT]  # of the row whose pairs are counted
  prompt: Annotated[int, COUNT]  # tokens of a prompt in it
  reply: Annotated[int, COUNT]  # tokens of a reply in it
  replies: Annotated[int, COUNT]  # of a prompt
  row_tokens: Annotated[int, COUNT]  # of the row that is timed, a smaller one of the same kind
  repeats: Annotated[int, COUNT]  # turns of each backend


@dataclasses.dataclass(frozen=True)
class LearnerBench(Options):
  """The suite `learner`."""

  model: ModelSize  # where BenchRecipe.model names no folder
  dtype: Annotated[str, one_of('float32', 'bfloat16')]  # of products
  remat: Annotated[str, one_of(*remat.POLICIES)]  # what our layers keep for their backward pass
  head_chunk: Annotated[int, COUNT]  # tokens per row whose logits are in memory at once
  rows: Annotated[int, COUNT]  # of a micro-batch, at most
  freeze_vision: Annotated[bool, FLAG]  # no gradient reaches the tower, in both programs
  learning_rate: Annotated[float, from_(0)]  # of AdamW, in both programs
  temperature: Annotated[float, POSITIVE]  # of the policy step
  repeats: Annotated[int, COUNT]  # turns of each program
  text: TextBench
  packed: FramesBench
  group: GroupBench
  attention: AttentionBench

"""Requests on their way through the engine: jobs, the pages they wait for, and their slots."""

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from paravt_jax.serving.embedded import compiled, programs
from paravt_jax.serving.embedded.prompts import Prompt
from paravt_jax.serving.protocol import GenerateReply, ParsedGenerate

COUNTS = (  # sums since the start of an engine
  'requests',
  'prompt_tokens',
  'cached_tokens',
  'prefilled_tokens',
  'prefill_calls',
  'images_encoded',
  'sampled_tokens',
  'decode_calls',
  'retractions',
  'aborted',
  'updates',
)


@dataclasses.dataclass(eq=False)
class Job:
  """One request in the engine."""

  rid: str  # unique among running requests
  prompt: Prompt  # as received
  context: Prompt  # as received, followed by the tokens generated before a retraction
  lane: int  # index of its lane in the options
  request: ParsedGenerate
  seed: int
  stops: frozenset[int]  # ids that end the reply
  # Called from the engine's thread with (reply, reason). It is called once at the end. For a stream
  # it is also called with reason None after every dispatch that gave the job tokens.
  answer: Callable[[GenerateReply, dict[str, Any] | None], None]
  ids: list[int] = dataclasses.field(default_factory=list)  # sampled so far
  logprobs: list[float] = dataclasses.field(default_factory=list)  # of ids
  spans: list[list[int]] = dataclasses.field(default_factory=list)  # [version, start, end) over ids
  retractions: int = 0  # how often it went back to the queue
  cached: int | None = None  # tokens of its first prefill that were in the cache
  held: list[Any] = dataclasses.field(default_factory=list)  # its keys in the pool of pages
  # int32[pages]: the pages of the context, while staged; paged: then those for new tokens
  table: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  ticket: int = 0  # number of the last chunk it waits for
  aborted: bool = False

  def reply(self, finish: str, version: int) -> GenerateReply:
    """Returns a copy of the tokens so far, because the job may continue.

    version: the weight version to report if there is no token yet.
    """
    spans = [(sampler, start, end) for sampler, start, end in self.spans]
    return GenerateReply(
      output_ids=list(self.ids),
      logprobs=list(self.logprobs),
      finish=finish,
      prompt_tokens=len(self.prompt),
      cached_tokens=self.cached or 0,
      image_tokens=int((self.prompt.image_T >= 0).sum()),
      weight_versions=spans or [(version, 0, 0)],
      retractions=self.retractions,
    )

  def add(self, ids: list[int], logprobs: list[float], version: int) -> None:
    """Appends tokens that the weights of `version` sampled."""
    start = len(self.ids)
    self.ids += ids
    self.logprobs += logprobs
    if self.spans and self.spans[-1][0] == version:
      self.spans[-1][2] = len(self.ids)
    elif ids:
      self.spans.append([version, start, len(self.ids)])


@dataclasses.dataclass(frozen=True)
class Chunk:
  """One page to compute."""

  context: Prompt
  table: np.ndarray  # pages of the context, int32[pages]
  index: int  # of the page in its context
  size: int  # tokens of a whole page
  key: bytes  # of the page in the cache
  digests: frozenset[bytes]  # of its images, pinned in the feature pool

  def __len__(self) -> int:
    """Returns its tokens."""
    return min(self.size, len(self.context) - self.index * self.size)


class Block:
  """Slots that are decoded together, and the jobs in them."""

  def __init__(self, shapes: programs.Shapes, context: int, slots: int):
    self.slots = slots
    self.state, self.caches = compiled.make_block(shapes, context, slots)
    self.running: dict[int, Job] = {}
    self.free = list(range(slots - 1, -1, -1))

  def leave(self, slot: int) -> Job:
    """Empties a slot."""
    self.free.append(slot)
    return self.running.pop(slot)


class Lane:
  """Blocks of one shape, and the jobs that wait for a slot in any of them.

  One program decodes every block of a lane, so the choice of block does not change results.
  """

  def __init__(self, shapes: programs.Shapes, context: int, slots: int, blocks: int):
    self.context = context
    self.blocks = [Block(shapes, context, slots) for _ in range(blocks)]
    self.staged: deque[Job] = deque()

  @property
  def running(self) -> list[Job]:
    """Returns the jobs in slots."""
    return [job for block in self.blocks for job in block.running.values()]

  @property
  def free(self) -> int:
    """Returns the number of empty slots."""
    return sum(len(block.free) for block in self.blocks)

  @property
  def slots(self) -> int:
    """Returns the number of slots."""
    return sum(block.slots for block in self.blocks)

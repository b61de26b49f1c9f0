"""One more stretch of a context: segments in, one sampled segment out. Main agent and sub-agents
differ only in what they send.
"""

import dataclasses
import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from paravt_jax import seeds
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.options import COUNT, TEMPERATURE, TOP_K, TOP_P, Options
from paravt_jax.rollout.client import Client, image_tokens
from paravt_jax.serving.protocol import GenerateRequest
from paravt_jax.types import Segment, TokenClass

MAIN = -1  # the main agent's place in an address, where a sub-agent has its call's number


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
  """How tokens are sampled, and the size of a context."""

  temperature: Annotated[float, TEMPERATURE]  # logits are divided by it
  top_p: Annotated[float, TOP_P]  # the smallest set of tokens that has this share; 1: all
  top_k: Annotated[int, TOP_K]  # the most likely tokens; -1: all
  context: Annotated[int, COUNT]  # tokens that prompt and reply may fill, images expanded

  @classmethod
  def published(cls) -> 'SamplingOptions':
    """The numbers of the paper; the learner scores the whole distribution."""
    return SamplingOptions(temperature=0.7, top_p=1.0, top_k=-1, context=32768)


@dataclasses.dataclass(frozen=True)
class ContextOptions(SamplingOptions):
  """What all contexts of a run share."""

  min_pixels: int  # area of a frame, at least
  max_pixels: int  # area of a frame, at most


@dataclasses.dataclass(frozen=True)
class Address:
  """Which rollout. With a turn and a call it names one random draw."""

  seed: int  # of the run
  task_id: str
  epoch: int
  rollout: int  # its number in the group

  @property
  def affinity(self) -> int:
    """Equal for the rollouts of one prompt: they go to one server, which computes their prefix
    once.
    """
    return seeds.at(self.task_id, self.epoch)

  def sampling_seed(self, turn: int, call: int) -> int:
    """Returns 31 bits that depend only on (seed, task, epoch, rollout, turn, call).

    The main agent's call is MAIN.
    """
    return seeds.at(self.seed, self.task_id, self.epoch, self.rollout, turn, call) & 0x7FFFFFFF


def expanded(segments: Sequence[Segment]) -> int:
  """Returns the tokens of segments with each image placeholder expanded to its image's tokens."""
  return sum(
    len(segment.ids) + image_tokens(segment.images) - len(segment.images) for segment in segments
  )


class Sampler:
  """Turns contexts into requests."""

  def __init__(self, client: Client, tok: ChatTokenizer, options: ContextOptions):
    self.tok, self.options = tok, options
    self._client = client
    self._tag = uuid.uuid4().hex[
      :8
    ]  # request ids must differ between processes; results do not depend on them
    self._serial = itertools.count()

  def remaining(self, segments: Sequence[Segment], reserved: int = 0) -> int:
    """Returns how many tokens may follow these segments, minus `reserved`. It may be negative."""
    return self.options.context - expanded(segments) - reserved

  async def sample(
    self,
    segments: Sequence[Segment],
    *,
    address: Address,
    turn: int,
    call: int,
    max_new_tokens: int,
    token_class: TokenClass,
    on_tokens: Callable[[list[int]], None] | None = None,
  ) -> tuple[Segment, str]:
    """Samples the next segment. Returns it with the finish reason: 'stop', 'length' or 'abort'.

    The ids are exactly those that the server returned.

    on_tokens: receives all ids of the segment so far, as they arrive.

    Raises:
      RolloutError: the server failed, or broke the protocol.
    """
    request = GenerateRequest(
      rid=f'{self._tag}-{next(self._serial)}',
      input_ids=np.concatenate([segment.ids for segment in segments]).tolist(),
      images=tuple(image for segment in segments for image in segment.images),
      temperature=self.options.temperature,
      top_p=self.options.top_p,
      top_k=self.options.top_k,
      max_new_tokens=max_new_tokens,
      stop_token_ids=(self.tok.im_end,),
      banned_ids=tuple(self.tok.vision_ids),
      seed=address.sampling_seed(turn, call),
      ignore_eos=False,
    )
    got = await self._client.generate(request, affinity=address.affinity, on_tokens=on_tokens)
    return Segment(
      got.ids, sampled=True, logprobs=got.logprobs, versions=got.versions, token_class=token_class
    ), got.finish

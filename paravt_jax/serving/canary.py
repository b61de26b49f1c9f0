"""Canaries: a prompt with an image, and what the learner expects a server to say after it.

A server that gives the same log-probs has the learner's weights. In bfloat16 no two programs give
the same log-probs, so a canary carries what rounding costs the learner itself on the same tokens.
`Canary.limit` is the rule that follows, and README.md has its rates of false alarms and detection.

All versions use the same image, which detects a server that keeps vision features of old weights.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paravt_jax.errors import SyncError
from paravt_jax.serving.protocol import (
  GenerateReply,
  GenerateRequest,
  RequestError,
  decode_image,
  encode_image,
)

FORMAT = 2  # of the JSON; 1 had one continuation and no rounding
# A mean of few tokens scatters around its expectation. The gap of a token is about half-normal, of
# relative deviation .75, so 3 / sqrt(tokens) is four deviations of the mean.
SPREAD = 3.0


@dataclasses.dataclass(frozen=True)
class Continuation:
  """What the learner expects after the prompt and the ids that it sampled."""

  sampled_ids: tuple[int, ...]  # sent after the prompt; () for the first continuation
  output_ids: tuple[int, ...]  # the most likely ids that follow, in turn
  logprobs: tuple[float, ...]  # of output_ids, in nats, at temperature 1, computed in float32
  margins: tuple[float, ...]  # nats between each id and the runner-up

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'Continuation':
    """Reads a continuation's part of a manifest. Raises ValueError if its lengths differ."""
    found = cls(
      tuple(int(x) for x in value['sampled_ids']),
      tuple(int(x) for x in value['output_ids']),
      tuple(float(x) for x in value['logprobs']),
      tuple(float(x) for x in value['margins']),
    )
    if not len(found.output_ids) == len(found.logprobs) == len(found.margins) > 0:
      raise ValueError(
        f'{len(found.output_ids)} ids, {len(found.logprobs)} log-probs, '
        f'{len(found.margins)} margins'
      )
    return found


@dataclasses.dataclass(frozen=True)
class Measured:
  """How far a server is from a canary."""

  mean: float  # |log-prob - the learner's| in nats, over `tokens`; may be nan
  tokens: int  # that were compared
  worst: str  # the token that is farthest off, for a message


@dataclasses.dataclass(frozen=True)
class Canary:
  """A prompt, the continuations that the learner expects, and what rounding costs the learner."""

  input_ids: tuple[int, ...]  # unexpanded, with one placeholder for the image
  image: np.ndarray  # uint8[H, W, 3]
  banned_ids: tuple[int, ...]  # ids that are never sampled
  continuations: tuple[Continuation, ...]
  # mean |log-prob in the learner's own dtype - in float32| of all output_ids, in nats
  rounding: float
  # the same for ids sampled from the policy, its expectation at the places of all continuations
  sampled_rounding: float

  def to_json(self) -> dict[str, Any]:
    """Returns the canary as JSON values for a manifest."""
    values = {**dataclasses.asdict(self), 'image': encode_image(self.image)}
    return {'format': FORMAT, **values}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'Canary':
    """Reads the output of `to_json`.

    Raises:
      SyncError: the values are broken, or of another format.
    """
    try:
      found = 1 if 'logprobs' in value else value['format']
      if found != FORMAT:
        raise SyncError(
          f'canary of a manifest: got format {found}, wanted {FORMAT}: another release published '
          'this version; start its run again with this one, which publishes the version anew'
        )
      canary = cls(
        tuple(int(x) for x in value['input_ids']),
        decode_image(value['image']),
        tuple(int(x) for x in value['banned_ids']),
        tuple(Continuation.from_json(one) for one in value['continuations']),
        float(value['rounding']),
        float(value['sampled_rounding']),
      )
      if not canary.continuations or not canary.rounding >= 0:
        raise ValueError(
          f'{len(canary.continuations)} continuations, rounding {canary.rounding}; wanted some, and '
          'a rounding of at least 0'
        )
      return canary
    except (KeyError, TypeError, ValueError, AttributeError, RequestError) as error:
      raise SyncError(
        f'canary of a manifest: broken ({type(error).__name__}: {error}); publish the version again'
      ) from error

  def requests(self, rid: str) -> list[GenerateRequest]:
    """Returns a server's requests, one for each continuation. `problem` judges the replies."""
    return [
      GenerateRequest(
        rid=f'{rid}-{number}',
        input_ids=[*self.input_ids, *one.sampled_ids],
        images=(self.image,),
        temperature=0.0,
        top_p=1.0,
        top_k=-1,
        max_new_tokens=len(one.output_ids),
        stop_token_ids=(),
        banned_ids=self.banned_ids,
        seed=0,
        ignore_eos=True,
      )
      for number, one in enumerate(self.continuations)
    ]

  def limit(self, tokens: int, *, tolerance: float, ratio: float) -> float:
    """Returns the largest mean gap in nats at which a server of these weights is believed.

    Args:
      tokens: number of tokens that the mean is over.
      tolerance: nats that are always allowed.
      ratio: how many times coarser than the learner's own rounding a server's may be.
    """
    return tolerance + (ratio + SPREAD / math.sqrt(tokens)) * self.rounding

  def problem(
    self, replies: Sequence[GenerateReply], *, tolerance: float, ratio: float
  ) -> str | None:
    """Returns what is wrong with a server's replies to `requests`, or None.

    The mean gap between the server's log-probs and the learner's must be within `limit`. Tokens are
    compared up to the first one that differs, because other text follows it. That one counts with
    at least half of the learner's margin: so far must one of the two ids have moved.
    """
    for number, (one, reply) in enumerate(zip(self.continuations, replies, strict=True)):
      if len(reply.output_ids) != len(one.output_ids):
        return (
          f'continuation {number}: got {len(reply.output_ids)} tokens, wanted {len(one.output_ids)}'
        )
    found = self.measure(replies)
    limit = self.limit(found.tokens, tolerance=tolerance, ratio=ratio)
    if found.mean <= limit:  # false for nan
      return None
    return (
      f"mean |log-prob - the learner's| of {found.tokens} tokens is {found.mean:.2g} nats, allowed "
      f'{limit:.2g} (server.watch.tolerance={tolerance:g}, and rounding costs the learner itself '
      f'{self.rounding:.2g}), most at {found.worst}; it has other weights or images, or it '
      'rounds more than the learner (its dtype or kernels; then raise server.watch.rounding_ratio)'
    )

  def measure(self, replies: Sequence[GenerateReply]) -> Measured:
    """Returns how far a server's replies to `requests` are from what the learner expects.

    Each reply must have as many tokens as its continuation.
    """
    gaps: list[float] = []
    places: list[str] = []
    for number, (one, reply) in enumerate(zip(self.continuations, replies, strict=True)):
      for gap, text in _compare(one, reply):
        gaps.append(gap)
        places.append(f'continuation {number}, {text}')
    worst = int(np.argmax(np.nan_to_num(gaps, nan=np.inf)))
    return Measured(sum(gaps) / len(gaps), len(gaps), places[worst])

  def needed_ratio(self, found: Measured, *, tolerance: float) -> float:
    """Returns the smallest `ratio` at which `problem` believes this server; below 0: any.

    Without rounding no ratio helps: it is infinite above `tolerance`.
    """
    above = found.mean - tolerance
    if math.isnan(above) or (above > 0 and not self.rounding):
      return math.inf
    if not self.rounding:
      return -math.inf
    return above / self.rounding - SPREAD / math.sqrt(found.tokens)


def _compare(one: Continuation, reply: GenerateReply) -> list[tuple[float, str]]:
  """Returns (gap in nats, what was said) of the tokens up to the first one that differs."""
  found = []
  for place, (token, wanted) in enumerate(zip(reply.output_ids, one.output_ids)):
    gap = abs(reply.logprobs[place] - one.logprobs[place])
    text = (
      f'token {place}: log-prob {reply.logprobs[place]:.6g}, the learner says '
      f'{one.logprobs[place]:.6g}'
    )
    if token != wanted:
      text += f' (id {token}, the learner says {wanted} by a margin of {one.margins[place]:.2g})'
      # `max` would let a nan pass where it is the second argument
      return [*found, (gap if not gap < one.margins[place] / 2 else one.margins[place] / 2, text)]
    found.append((gap, text))
  return found


def canary_image(patches: int) -> np.ndarray:
  """Returns uint8[H, W, 3], the canary's image.

  It is noise, so that no two patches are alike, and as large as the limit allows up to 128 x 128:
  16 merged tokens, which is enough to see a wrong vision tower.

  Args:
    patches: maximum number of 16x16 patches of an image; at least 4.
  """
  if patches >= 64:
    shape = (128, 128, 3)
  else:
    shape = (64 if patches >= 8 else 32, 32, 3)
  return np.random.Generator(np.random.PCG64(20260521)).integers(0, 256, shape, np.uint8)

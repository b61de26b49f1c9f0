"""Canaries: prompts whose greedy continuation the learner predicts.

A server that gives the same continuation has the learner's weights.

All versions use the same image, which detects a server that keeps vision features of old weights.
"""

import dataclasses
from collections.abc import Mapping
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


@dataclasses.dataclass(frozen=True)
class Canary:
  """A prompt, and the greedy continuation that the learner expects."""

  input_ids: tuple[int, ...]  # unexpanded, with one placeholder for the image
  image: np.ndarray  # uint8[H, W, 3]
  banned_ids: tuple[int, ...]  # ids that are never sampled
  output_ids: tuple[int, ...]  # the n most likely ids in turn
  logprobs: tuple[float, ...]  # of output_ids, in nats, at temperature 1
  # nats between each id and the runner-up. Below the tolerance either id is right.
  margins: tuple[float, ...]

  def to_json(self) -> dict[str, Any]:
    """Returns the canary as JSON values for a manifest."""
    return {**dataclasses.asdict(self), 'image': encode_image(self.image)}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'Canary':
    """Reads the output of `to_json`.

    Raises:
      SyncError: the values are broken.
    """
    try:
      numbers = {
        name: tuple(int(x) for x in value[name])
        for name in ('input_ids', 'banned_ids', 'output_ids')
      }
      found = cls(
        image=decode_image(value['image']),
        logprobs=tuple(float(x) for x in value['logprobs']),
        margins=tuple(float(x) for x in value['margins']),
        **numbers,
      )
      if not len(found.output_ids) == len(found.logprobs) == len(found.margins) > 0:
        raise ValueError(
          f'{len(found.output_ids)} ids, {len(found.logprobs)} log-probs, '
          f'{len(found.margins)} margins'
        )
      return found
    except (KeyError, TypeError, ValueError, AttributeError, RequestError) as error:
      raise SyncError(
        f'canary of a manifest: broken ({type(error).__name__}: {error}); publish the version again'
      ) from error

  def request(self, rid: str) -> GenerateRequest:
    """Returns the request for a server. `problem` judges its reply."""
    return GenerateRequest(
      rid=rid,
      input_ids=list(self.input_ids),
      images=(self.image,),
      temperature=0.0,
      top_p=1.0,
      top_k=-1,
      max_new_tokens=len(self.output_ids),
      stop_token_ids=(),
      banned_ids=self.banned_ids,
      seed=0,
      ignore_eos=True,
    )

  def problem(self, reply: GenerateReply, tolerance: float) -> str | None:
    """Returns what is wrong with a server's reply, or None.

    Every log-prob must be within `tolerance` nats of the learner's.

    If the two best ids are closer than the tolerance, the reply may use either one. The text after
    it then differs and is not compared.
    """
    if len(reply.output_ids) != len(self.output_ids):
      return f'got {len(reply.output_ids)} tokens, wanted {len(self.output_ids)}'
    for place, (token, wanted) in enumerate(zip(reply.output_ids, self.output_ids)):
      gap = abs(reply.logprobs[place] - self.logprobs[place])
      if not gap <= tolerance:  # nan also counts as disagreement
        return (
          f'token {place}: log-prob {reply.logprobs[place]:.6g}, the learner says '
          f'{self.logprobs[place]:.6g} '
          f'(apart {gap:.2g}, allowed {tolerance:g})'
        )
      if token != wanted:
        if self.margins[place] > tolerance:
          return (
            f'token {place}: got id {token}, the learner says {wanted}, by a margin of '
            f'{self.margins[place]:.2g}'
          )
        return None
    return None


def canary_image(patches: int) -> np.ndarray:
  """Returns uint8[H, 32, 3], the canary's image.

  It is noise, so that no two patches are alike. It is higher than wide if the limit allows it.

  Args:
    patches: maximum number of 16x16 patches of an image; at least 4.
  """
  height = 64 if patches >= 8 else 32
  return np.random.Generator(np.random.PCG64(20260521)).integers(0, 256, (height, 32, 3), np.uint8)

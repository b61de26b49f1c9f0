"""Weights for single servers, and the proof that a server has them."""

import asyncio
import dataclasses
import pathlib
import uuid
from collections.abc import Sequence

from paravt_jax.errors import SyncError
from paravt_jax.rollout.client import check_counts
from paravt_jax.rollout.control import Control
from paravt_jax.serving.canary import Canary
from paravt_jax.serving.protocol import GenerateReply


@dataclasses.dataclass(frozen=True)
class Weights:
  """The weights that all servers must have."""

  folder: pathlib.Path  # as the servers load it
  version: int
  canary: Canary | None  # the expected replies with these weights; None skips the check


class Delivery:
  """Sends weights to one server at a time. `current` are the weights that all servers must have.

  base: the canary expected on the weights that servers start with, while `current` is None.
  tolerance, rounding_ratio: how far a server may be from a canary, see `Canary.limit`.
  """

  def __init__(self, control: Control, tolerance: float, rounding_ratio: float):
    self._control = control
    self._tolerance, self._ratio = tolerance, rounding_ratio
    self.current: Weights | None = None
    self.base: Canary | None = None

  async def push(self, url: str, weights: Weights) -> None:
    """Swaps a server's weights and proves that it has the new ones.

    Raises:
      SyncError: the server refuses them, or does not match the canary.
      RolloutError: it does not answer.
    """
    await self._control.swap_weights(url, str(weights.folder), weights.version)
    await self.prove(url, weights.canary, weights.version)

  async def prove(self, url: str, canary: Canary | None, version: int | None) -> None:
    """Verifies that the server reports `version` (None: any) and continues the canary as expected.

    Raises:
      SyncError: it reports another version, or continues the canary differently.
      RolloutError: it does not answer.
    """
    said = await self._control.version(url)
    if version is not None and said != version:
      raise SyncError(
        f'{url}: says it holds version {said} of the weights, wanted {version}; does another '
        'run use this server?'
      )
    if canary is None:
      return
    requests = canary.requests(f'canary-{said}-{uuid.uuid4().hex[:8]}')
    replies = await asyncio.gather(*(self._control.generate(url, one) for one in requests))
    for request, reply in zip(requests, replies, strict=True):
      check_counts(request, reply)
    problem = canary.problem(replies, tolerance=self._tolerance, ratio=self._ratio)
    if problem is None and version is not None:
      problem = _other_version(replies, version)
    if problem is not None:
      raise SyncError(f'{url}: weights {said} do not match the canary: {problem}')

  async def sync_and_verify(self, url: str, weights: Weights | None) -> None:
    """Updates a returning server to these weights, and verifies it. None: its initial weights.

    Raises:
      SyncError, RolloutError: as `push`, or the server is not one that we know how to use.
    """
    await self._control.inspect(url)
    await self._control.resume(url)
    if weights is None:
      await self.prove(url, self.base, None)
    else:
      await self.push(url, weights)


def _other_version(replies: Sequence[GenerateReply], version: int) -> str | None:
  for reply in replies:
    if set(reply.versions().tolist()) != {version}:
      return f'its tokens are of versions {reply.weight_versions}, wanted all of {version}'
  return None

"""Weights for single servers, and the proof that a server has them."""

import asyncio
import logging
import pathlib
import uuid
from collections.abc import Callable, Sequence

from paravt_jax.errors import SyncError
from paravt_jax.rollout.client import check_counts
from paravt_jax.rollout.control import Control
from paravt_jax.serving.canary import Canary
from paravt_jax.serving.protocol import GenerateReply

log = logging.getLogger('paravt.fleet')


class Weights:
  """The weights that all servers must have.

  version, canary: their number, and the expected replies with them; None skips the check.
  changes: as servers load what changed since the version before; None if there is no such folder.
  whole: blocks until all arrays are where servers load them, and returns their folder. It raises
  SyncError.
  """

  def __init__(
    self,
    version: int,
    canary: Canary | None,
    whole: Callable[[], pathlib.Path],
    changes: pathlib.Path | None = None,
  ):
    self.version, self.canary, self.changes = version, canary, changes
    self._whole, self._folder, self._lock = whole, None, asyncio.Lock()

  async def folder(self) -> pathlib.Path:
    """Returns the folder of all arrays, made once. Raises SyncError."""
    async with self._lock:
      if self._folder is None:
        self._folder = await asyncio.to_thread(self._whole)
      return self._folder


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
    if weights.changes is None or not await self._push_changes(url, weights.changes, weights):
      await self._control.swap_weights(url, str(await weights.folder()), weights.version)
    await self.prove(url, weights.canary, weights.version)

  async def _push_changes(self, url: str, changes: pathlib.Path, weights: Weights) -> bool:
    """Returns whether the server took the changes. One without the version before does not."""
    try:
      await self._control.swap_weights(url, str(changes), weights.version)
    except SyncError as error:
      log.info('%s gets weights %d whole: %s', url, weights.version, error)
      return False
    return True

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

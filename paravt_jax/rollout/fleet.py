"""A fleet of rollout servers.

It sends weights to all servers, verifies them, and brings lost servers back.

`delivery` updates one server, `supervisor` watches all of them, and a run uses Fleet.
"""

import asyncio
import collections
import functools
import pathlib
from collections.abc import Callable, Sequence

from paravt_jax.errors import ConfigError, RolloutError, SyncError
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.delivery import Delivery, Weights
from paravt_jax.rollout.gateway import Gateway, GatewayWatch
from paravt_jax.rollout.router import Router, State
from paravt_jax.rollout.supervisor import FleetOptions, Member, ServerState, Supervisor
from paravt_jax.serving.canary import Canary

__all__ = ['Fleet', 'FleetOptions', 'Member']


class Fleet:
  """The fleet of servers that a run uses.

        fleet = Fleet(members, control, router, staging.stage, options)
        await fleet.open()                               # and watches from here on
        await fleet.deliver(published, version, canary)  # after every step
        fleet.check()                                    # now and then
        await fleet.close()

  counts: lost (found dead, silent or wrong), restarts, drained, back (served again).
  stage: turns a published version into the folder that the servers load. It runs in a thread and
  raises SyncError.
  gateway: SGLang's router in front of the servers, if there is one.
  """

  def __init__(
    self,
    members: Sequence[Member],
    control: Control,
    router: Router,
    stage: Callable[[pathlib.Path], pathlib.Path],
    options: FleetOptions,
    gateway: Gateway | None = None,
  ):
    self._control = control
    self._router = router
    self._stage = stage
    self._gateway: GatewayWatch | None = None
    if gateway is not None:
      deadline_s = control.options.ready_timeout_s
      self._gateway = GatewayWatch(gateway, router, options.every_s, deadline_s)
    self._options = options
    self._delivery = Delivery(control, options.tolerance, options.rounding_ratio)
    self._supervisor = Supervisor(members, control, router, self._delivery, options)
    router.supervised = True

  @property
  def counts(self) -> collections.Counter[str]:
    """Returns the number of server events since the start, by name."""
    return self._supervisor.counts

  @property
  def members(self) -> tuple[Member, ...]:
    """Returns the current members. A restart changes a member's process, and may change its URL."""
    return tuple(server.member for server in self._supervisor.servers)

  async def open(self, canary: Canary | None = None) -> None:
    """Checks every server before the first rollout, resumes paused ones, and starts the watch.

    A killed run may have left servers paused.

    Args:
      canary: expected on the weights that the servers were started with. None leaves that to the
      first `deliver`.

    Raises:
      RolloutError: a server is not there, refuses the key, speaks another protocol version, or
      serves another model.
      ConfigError: memory_mb is less than a new server uses.
    """
    self._delivery.base = canary
    outcomes = await asyncio.gather(
      *(self._check_new_server(server) for server in self._supervisor.servers),
      return_exceptions=True,
    )
    for outcome in outcomes:
      if isinstance(outcome, BaseException):
        raise outcome
    if self._gateway is not None:
      await self._gateway.align()
    self.watch()

  async def _check_new_server(self, server: ServerState) -> None:
    url = server.member.url
    await self._control.wait_ready(url)
    await self._control.inspect(url)
    await self._control.resume(url)
    if self._delivery.base is not None:
      try:
        await self._delivery.prove(url, self._delivery.base, None)
      except (SyncError, RolloutError) as error:
        raise RolloutError(
          f'{error}; does {url} serve another model? start it with the model folder of this run'
        ) from error
    if self._options.memory_mb and server.member.process is not None:
      used = await asyncio.to_thread(server.member.process.memory_mb)
      if used >= self._options.memory_mb:
        raise ConfigError(
          f'fleet.memory_mb: got {self._options.memory_mb}, but {url} holds {used:.0f} MiB '
          'before its first rollout and would be restarted for ever; raise it, or 0 for no limit'
        )

  async def deliver(
    self,
    published: pathlib.Path | Callable[[], pathlib.Path],
    version: int,
    canary: Canary | None,
    changes: pathlib.Path | None = None,
  ) -> None:
    """Sends a published version to every server that is UP. On return, at least one is verified.

    Generation continues meanwhile, but the gate is closed. A server that fails is set aside if
    another one succeeds. Servers that come back later get this version. Only one delivery may run
    at a time.

    Args:
      published: the version, or a function that waits for it.
      changes: what it changes in the version before. Servers that have that one then need no more,
      and `published` is asked for only where another server does.

    Raises:
      SyncError: the version cannot be staged, or no server took it.
      RolloutError: no server is left.
    """
    small = None if changes is None else await asyncio.to_thread(self._stage, changes)
    weights = Weights(version, canary, functools.partial(self._stage_whole, published), small)
    if small is None:
      await weights.folder()
    self._router.pause()
    try:
      self._delivery.current = weights
      chosen = [
        server
        for server in self._supervisor.servers
        if self._router.state(server.member.url) is State.UP
      ]
      outcomes = await asyncio.gather(*(self._offer(server, weights) for server in chosen))
      _refuse_unwanted(version, outcomes)
      # Servers may be about to come back, and one of them is enough.
      while not self._router.up_urls():
        self.check()
        await asyncio.sleep(min(self._options.every_s, 0.2))
      # A server that failed gets no request from a gateway once the gate is open.
      if self._gateway is not None:
        await self._gateway.align()
      self._router.version = version
    finally:
      self._router.resume()

  def _stage_whole(self, published: pathlib.Path | Callable[[], pathlib.Path]) -> pathlib.Path:
    return self._stage(published() if callable(published) else published)

  async def _offer(self, server: ServerState, weights: Weights) -> RolloutError | SyncError | None:
    """Sends weights to a server that is UP. If it fails, sets it aside and returns the reason."""
    url = server.member.url
    try:
      await self._supervisor.run_guarded(server, self._delivery.push(url, weights))
    except SyncError as error:
      self._supervisor.set_aside(server, str(error), restart=True)
      return error
    except RolloutError as error:
      self._supervisor.set_aside(server, str(error), restart=server.dead)
      return error
    except asyncio.CancelledError:  # its current weights are unverified
      self._router.lost(server.member.url, 'its update was broken off')
      raise
    return None

  def watch(self) -> asyncio.Task[None]:
    """Starts to watch all servers, once. The watch runs until `close`."""
    if self._gateway is not None:
      self._gateway.watch()
    return self._supervisor.watch()

  def check(self) -> None:
    """Raises RolloutError, with the end of a log, if no server is UP and none can come back."""
    self._supervisor.check()
    lost = None if self._gateway is None else self._gateway.fatal_message()
    if lost is not None:
      raise RolloutError(lost)

  async def close(self) -> None:
    """Ends the watch and every server that this run started."""
    if self._gateway is not None:
      await self._gateway.close()
    await self._supervisor.close()


def _refuse_unwanted(version: int, outcomes: Sequence[RolloutError | SyncError | None]) -> None:
  """Raises SyncError if servers were UP and all of them refused the weights."""
  refusals = [outcome for outcome in outcomes if isinstance(outcome, SyncError)]
  if refusals and len(refusals) == len(outcomes):
    raise SyncError(
      f'weights {version}: no server took them: {refusals[0]}; no episode has seen them. '
      'Start the same command again: it continues from the last checkpoint; if it fails again, '
      'the servers serve another model'
    )

"""Watches rollout servers, and brings lost ones back.

A server that is lost, too large or wrong leaves the router. If this run started it, it is
restarted. A server by URL may come back by itself. Either gets the current weights and must match
the canary before it serves again.
"""

import asyncio
import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from paravt_jax.errors import ConfigError, RolloutError, SyncError
from paravt_jax.options import COUNT, POSITIVE, Options, from_, whole
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.delivery import Delivery
from paravt_jax.rollout.router import Router, State
from paravt_jax.serving.process import StartedServer

log = logging.getLogger('paravt.fleet')

T = TypeVar('T')
_GRACE_S = 5.0  # between asking a server to end and killing it
_FAILURES = (RolloutError, SyncError, ConfigError)


@dataclasses.dataclass(frozen=True)
class FleetOptions(Options):
  """How servers are watched."""

  every_s: Annotated[float, POSITIVE]  # between pings; also how long one may take
  misses: Annotated[int, COUNT]  # pings missed in a row before a server counts as lost
  restarts: Annotated[int, whole(0)]  # of one server in a row, without a reply in between
  # MiB of a started server's processes; above it, the server is drained and restarted
  memory_mb: Annotated[int, whole(0, note='0: no limit')]
  drain_s: Annotated[float, from_(0)]  # that its requests may take to end by themselves
  # mean nats between a canary's log-probs and the learner's that are allowed besides rounding
  tolerance: Annotated[float, POSITIVE]
  # how many times coarser than the learner's own rounding a server's may be
  rounding_ratio: Annotated[float, POSITIVE]

  @classmethod
  def published(cls) -> 'FleetOptions':
    """Limits that suit servers of 8B in bfloat16."""
    return cls(
      every_s=5.0,
      misses=12,
      restarts=3,
      memory_mb=0,
      drain_s=120.0,
      tolerance=0.001,
      rounding_ratio=1.5,
    )


@dataclasses.dataclass
class Member:
  """A rollout server: one that we started, or one by URL."""

  url: str
  process: StartedServer | None  # of a server that this run started, else None
  # restarts our server and blocks until it answers; its URL may change
  start: Callable[[], StartedServer] | None


@dataclasses.dataclass
class ServerState:
  """A member, and what is done about it."""

  member: Member
  task: asyncio.Task[None] | None = None  # drains it or brings it back
  starting: asyncio.Future[StartedServer] | None = None  # its new process, on its way
  missed: int = 0  # pings in a row
  attempts: int = 0  # restarts since it last served
  lost_at: float = 0.0  # time.monotonic(); 0 while it is not lost
  reason: str = ''  # why it was lost

  @property
  def busy(self) -> bool:
    """Whether something is done about it now."""
    return self.task is not None and not self.task.done()

  @property
  def dead(self) -> bool:
    """Whether this run started the server and its process has ended."""
    return self.member.process is not None and not self.member.process.alive


class Supervisor:
  """Watches servers and brings lost ones back with the weights of `delivery`.

  `counts`: lost (found dead, silent or wrong), restarts, drained, back (served again).
  """

  def __init__(
    self,
    members: Sequence[Member],
    control: Control,
    router: Router,
    delivery: Delivery,
    options: FleetOptions,
  ):
    self.servers = tuple(ServerState(member) for member in members)
    self.counts: collections.Counter[str] = collections.Counter()
    self._control = control
    self._router = router
    self._delivery = delivery
    self._options = options
    self._watching: asyncio.Task[None] | None = None

  def watch(self) -> asyncio.Task[None]:
    """Starts the watch over all servers, once; it continues until `close`."""
    if self._watching is None:
      self._watching = asyncio.create_task(self._watch())
    return self._watching

  async def _watch(self) -> None:
    while True:
      await asyncio.sleep(self._options.every_s)
      await asyncio.gather(*(self._health_check(server) for server in self.servers))
      last = self._fatal_message()
      if last is not None:
        self._router.fail(last)

  async def _health_check(self, server: ServerState) -> None:
    """Checks one server, and acts if it is lost, dead, silent or too large."""
    if server.task is not None and server.task.done():
      server.task.result()  # an error in our own code ends the watch, and `check` raises it
    url = server.member.url
    if server.busy:
      return
    if self._router.state(url) is State.DOWN:
      if not self._is_lost_for_good(server):
        self.set_aside(server, self._router.reason(url), restart=False)
      return
    server.missed = 0 if await self._ping(server) else server.missed + 1
    # While the ping was under way, somebody else may have acted.
    if server.busy or server.member.url != url or self._router.state(url) is not State.UP:
      return
    if server.dead or server.missed >= self._options.misses:
      what = 'its process has ended' if server.dead else f'{server.missed} pings missed in a row'
      self.set_aside(server, f'{url}: {what}', restart=True)
      return
    await self._check_memory(server)

  async def _check_memory(self, server: ServerState) -> None:
    """Drains a server of ours that uses too much memory.

    It drains one at a time if another server can take its requests.
    """
    process, limit = server.member.process, self._options.memory_mb
    if not limit or process is None or server.member.start is None:
      return
    used = await asyncio.to_thread(process.memory_mb)
    others = [other for other in self.servers if other is not server]
    alone = bool(others) and all(other.busy for other in others)
    if used < limit or server.busy or self._router.paused or alone:
      return
    if self._router.state(server.member.url) is State.UP:
      reason = f'{server.member.url}: holds {used:.0f} MiB, fleet.memory_mb is {limit}'
      log.warning('%s; it is drained and started again', reason)
      self._router.drain(server.member.url, reason)
      server.task = asyncio.create_task(self._drain(server, reason))

  async def _drain(self, server: ServerState, reason: str) -> None:
    """Waits for running requests, aborts the rest, and restarts the server.

    Clients resume aborted requests on other servers, from their tokens.
    """
    url = server.member.url
    await self._wait_until_idle(url, self._options.drain_s)
    if self._router.load(url):
      try:
        await self.run_guarded(server, self._control.abort(url))
        await self._wait_until_idle(url, self._options.every_s * self._options.misses)
      except RolloutError as error:
        log.warning('%s', error)
    self.counts['drained'] += 1
    self._mark_lost(server, reason)
    await self._revive(server, restart=True)

  async def _wait_until_idle(self, url: str, limit_s: float) -> None:
    """Returns once the server has no requests, or after limit_s seconds."""
    end = time.monotonic() + limit_s
    while self._router.load(url) and time.monotonic() < end:
      await asyncio.sleep(min(0.05, self._options.every_s))

  def set_aside(self, server: ServerState, reason: str, *, restart: bool) -> None:
    """Removes a server from the router, and starts to bring it back.

    restart: restart a server of ours even if it answers.
    """
    self._mark_lost(server, reason)
    if not server.busy:
      log.warning('%s; set aside', reason)
      self.counts['lost'] += 1
      server.task = asyncio.create_task(self._revive(server, restart=restart))

  def _mark_lost(self, server: ServerState, reason: str) -> None:
    self._router.lost(server.member.url, reason)
    if self._router.replies(server.member.url):
      server.attempts = 0
    server.reason = reason
    server.lost_at = time.monotonic()
    server.missed = 0

  async def _revive(self, server: ServerState, *, restart: bool) -> None:
    """Brings a lost server back, or gives it up."""
    if server.member.start is None:
      await self._await_return(server)
      return
    # A server that answers may only have lost a connection: it needs no new process.
    answers = not restart and not server.dead and await self._ping(server)
    if answers and await self._succeeds(server, self._catch_up(server)):
      return
    while server.attempts < self._options.restarts:
      server.attempts += 1
      self.counts['restarts'] += 1
      started = await self._succeeds(server, self._restart(server, server.member.start))
      if started and await self._succeeds(server, self._catch_up(server)):
        return
    log.warning(
      '%s: given up after %d restarts: %s', server.member.url, server.attempts, server.reason
    )

  async def _await_return(self, server: ServerState) -> None:
    while True:
      if await self._ping(server) and await self._succeeds(server, self._catch_up(server)):
        return
      await asyncio.sleep(self._options.every_s)

  async def _succeeds(self, server: ServerState, work: Coroutine[Any, Any, None]) -> bool:
    try:
      await work
      return True
    except _FAILURES as error:
      log.warning('%s', error)
      server.reason = str(error)
      return False

  async def _restart(self, server: ServerState, start: Callable[[], StartedServer]) -> None:
    member = server.member
    if member.process is not None:
      await asyncio.to_thread(member.process.stop, _GRACE_S)
    server.starting = asyncio.ensure_future(asyncio.to_thread(start))
    process = await asyncio.shield(server.starting)
    server.starting = None
    member.process = process  # before anything can fail: `close` ends the processes of members
    self._router.replace(member.url, process.url)
    member.url = process.url

  async def _catch_up(self, server: ServerState) -> None:
    """Sends the current weights to a DOWN server. It is UP once it is verified."""
    url = server.member.url
    while True:
      weights = self._delivery.current
      await self.run_guarded(server, self._delivery.sync_and_verify(url, weights))
      # Newer weights may have arrived. There is no await between this check and UP.
      if weights is self._delivery.current:
        break
    self.counts['back'] += 1
    server.lost_at = 0.0
    self._router.up(url)
    log.info('%s serves again', url)

  async def run_guarded(self, server: ServerState, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of `work`, which talks to a server.

    Raises:
      RolloutError: the server is dead or misses its pings while `work` waits.
    """
    task = asyncio.ensure_future(work)
    missed = 0
    try:
      while True:
        done, _ = await asyncio.wait({task}, timeout=self._options.every_s)
        if done:
          return task.result()
        missed = 0 if await self._ping(server) else missed + 1
        if server.dead or missed >= self._options.misses:
          raise RolloutError(f'{server.member.url}: stopped answering in the middle of a command')
    finally:
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)

  async def _ping(self, server: ServerState) -> bool:
    return not server.dead and await self._control.ready(server.member.url, self._options.every_s)

  def _is_lost_for_good(self, server: ServerState) -> bool:
    """Whether a DOWN server will not come back: ours has used up its restarts, or one by URL its
    ready_timeout_s.
    """
    if self._router.state(server.member.url) is not State.DOWN or server.lost_at == 0.0:
      return False
    if server.member.start is None:
      return time.monotonic() - server.lost_at > self._control.options.ready_timeout_s
    return not server.busy and server.attempts >= self._options.restarts

  def _fatal_message(self) -> str | None:
    """Returns why no server is left, or None."""
    if not all(self._is_lost_for_good(server) for server in self.servers):
      return None
    server = max(self.servers, key=lambda server: server.lost_at)
    end = ''
    if server.member.process is not None:
      end = f'; its log {server.member.process.log} ends:\n{server.member.process.tail()}'
    return (
      f'no rollout server is left, the last: {server.reason}{end}\nthe same command continues from '
      'the last checkpoint'
    )

  def check(self) -> None:
    """Raises RolloutError, with the end of a log, when no server is UP and none can come back."""
    if self._watching is not None and self._watching.done() and not self._watching.cancelled():
      self._watching.result()
    last = self._fatal_message()
    if last is not None:
      raise RolloutError(last)

  async def close(self) -> None:
    """Ends the watch, and every server of ours."""
    tasks = [
      task
      for task in (self._watching, *(server.task for server in self.servers))
      if task is not None
    ]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(self._stop_process(server) for server in self.servers))

  async def _stop_process(self, server: ServerState) -> None:
    # The thread that starts a server cannot be cancelled, so wait for its server and stop it.
    if server.starting is not None:
      (started,) = await asyncio.gather(server.starting, return_exceptions=True)
      if not isinstance(started, BaseException):
        await asyncio.to_thread(started.stop, _GRACE_S)
    if server.member.process is not None:
      await asyncio.to_thread(server.member.process.stop, _GRACE_S)

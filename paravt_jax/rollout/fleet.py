"""Several rollout servers as one: weights to all of them, proof that they hold them, and a watch
that brings lost ones back.

A server that is lost, too large or wrong leaves the router. Ours is started again, one by URL is
waited for; either gets the current weights and must match the canary before it serves again.
"""

import asyncio
import collections
import dataclasses
import logging
import pathlib
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from paravt_jax.errors import ConfigError, RolloutError, SyncError
from paravt_jax.rollout.client import check_counts
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.router import Router, State
from paravt_jax.serving.canary import Canary
from paravt_jax.serving.process import ServerProcess

log = logging.getLogger('paravt.fleet')

T = TypeVar('T')
_GRACE_S = 5.0  # between asking a server to end and killing it
_FAILURES = (RolloutError, SyncError, ConfigError)


@dataclasses.dataclass(frozen=True)
class FleetOptions:
  """every_s: between pings; also how long one may take. misses: pings missed in a row until a
  server counts as lost. restarts: of one server in a row, without a reply in between. memory_mb:
  MiB of a server's processes that drain it, 0 for no limit. drain_s: its requests may take to end
  by themselves. tolerance: nats between a canary's log-probs and the learner's.
  """

  every_s: float
  misses: int
  restarts: int
  memory_mb: int
  drain_s: float
  tolerance: float


@dataclasses.dataclass
class Member:
  """A rollout server: one that we started, or one by URL."""

  url: str
  process: ServerProcess | None  # of a server that is ours, else None
  # starts ours again and blocks until it answers; its URL may be another one
  # starts ours again and blocks until it answers; its URL may be another one
  start: Callable[[], ServerProcess] | None


@dataclasses.dataclass(frozen=True)
class _Weights:
  """What all servers must hold."""

  folder: pathlib.Path  # as the servers load it
  version: int
  canary: Canary | None  # expected on these weights; None where nothing is checked


@dataclasses.dataclass
class _Seat:
  """A member and what is done about it. task: drains it or brings it back; attempts: restarts since
  it last served.
  """

  member: Member
  task: asyncio.Task | None = None
  starting: asyncio.Future | None = None
  missed: int = 0
  attempts: int = 0
  lost_at: float = 0.0
  reason: str = ''

  @property
  def busy(self) -> bool:
    return self.task is not None and not self.task.done()

  @property
  def dead(self) -> bool:
    return self.member.process is not None and not self.member.process.alive


class Fleet:
  """See the module. `counts`: lost (found dead, silent or wrong), restarts, drained, back (served
  again).

      fleet = Fleet(members, control, router, staging.stage, options)
      await fleet.open()                                   # and watches from here on
      await fleet.deliver(published, version, canary)      # after every step; fleet.check() now and then
      await fleet.close()

  stage: turns a published version into the folder that the servers load; runs in a thread, raises
  SyncError.
  """

  def __init__(
    self,
    members: Sequence[Member],
    control: Control,
    router: Router,
    stage: Callable[[pathlib.Path], pathlib.Path],
    options: FleetOptions,
  ):
    self._seats = [_Seat(member) for member in members]
    self._control = control
    self._router = router
    self._stage = stage
    self._options = options
    self._weights: _Weights | None = None
    self._base: Canary | None = None
    self._watching: asyncio.Task | None = None
    self.counts: collections.Counter[str] = collections.Counter()
    router.supervised = True

  @property
  def members(self) -> tuple[Member, ...]:
    """As they are now: a restart changes a member's process, and may change its URL."""
    return tuple(seat.member for seat in self._seats)

  async def open(self, canary: Canary | None = None) -> None:
    """Checks every server before the first rollout, wakes those that a killed run left paused, and
    starts the watch.

    Args:
      canary: foretold on the weights that the servers were started with; None leaves that to the
        first `deliver`.

    Raises:
      RolloutError: a server is not there, refuses the key, speaks another version or serves another
        model.
      ConfigError: memory_mb is less than a fresh server holds.
    """
    self._base = canary
    outcomes = await asyncio.gather(
      *(self._meet(seat) for seat in self._seats), return_exceptions=True
    )
    for outcome in outcomes:
      if isinstance(outcome, BaseException):
        raise outcome
    self.watch()

  async def _meet(self, seat: _Seat) -> None:
    url = seat.member.url
    await self._control.wait_ready(url)
    await self._control.inspect(url)
    await self._control.resume(url)
    if self._base is not None:
      try:
        await self._prove(url, self._base, None)
      except (SyncError, RolloutError) as error:
        raise RolloutError(
          f'{error}; does {url} serve another model? start it with the model folder of this run'
        ) from error
    if self._options.memory_mb and seat.member.process is not None:
      held = await asyncio.to_thread(seat.member.process.memory_mb)
      if held >= self._options.memory_mb:
        raise ConfigError(
          f'fleet.memory_mb: got {self._options.memory_mb}, but {url} holds {held:.0f} MiB '
          'before its first '
          'rollout and would be restarted for ever; raise it, or 0 for no limit'
        )

  async def deliver(self, published: pathlib.Path, version: int, canary: Canary | None) -> None:
    """Brings a published version to every server that is UP; when it returns, one at least has
    proven that it holds it.

    Meanwhile generation goes on, but the gate is held. A server that fails is set aside while
    another is right. Servers that come back later get this version. One delivery at a time.

    Raises:
      SyncError: the version cannot be staged, or no server took it.
      RolloutError: no server is left.
    """
    folder = await asyncio.to_thread(self._stage, pathlib.Path(published))
    self._router.hold()
    try:
      self._weights = _Weights(folder, version, canary)
      chosen = [seat for seat in self._seats if self._router.state(seat.member.url) is State.UP]
      problems = [
        p
        for p in await asyncio.gather(*(self._offer(seat, self._weights) for seat in chosen))
        if p is not None
      ]
      if (
        problems
        and len(problems) == len(chosen)
        and all(isinstance(problem, SyncError) for problem in problems)
      ):
        raise SyncError(
          f'weights {version}: no server took them: {problems[0]}; no episode has seen them. '
          'Start the same command '
          'again: it goes on from the last checkpoint; if it fails again, the servers serve '
          'another model'
        )
      while not self._router.up_urls():
        self.check()
        await asyncio.sleep(min(self._options.every_s, 0.2))
    finally:
      self._router.release()

  async def _offer(self, seat: _Seat, weights: _Weights) -> RolloutError | SyncError | None:
    """Weights for a server that is UP; one that fails is set aside and the reason returned."""
    try:
      await self._guarded(seat, self._push(seat.member.url, weights))
    except SyncError as error:
      self._set_aside(seat, str(error), restart=True)
      return error
    except RolloutError as error:
      self._set_aside(seat, str(error), restart=seat.dead)
      return error
    except asyncio.CancelledError:  # whatever it holds now, nobody has proven it
      self._router.lost(seat.member.url, 'its update was broken off')
      raise
    return None

  async def _push(self, url: str, weights: _Weights) -> None:
    await self._control.swap_weights(url, str(weights.folder), weights.version)
    await self._prove(url, weights.canary, weights.version)

  async def _prove(self, url: str, canary: Canary | None, version: int | None) -> None:
    """Raises SyncError unless the server says `version` (None: any) and continues the canary as
    foretold.
    """
    said = await self._control.version(url)
    if version is not None and said != version:
      raise SyncError(
        f'{url}: says it holds version {said} of the weights, wanted {version}; does another '
        'run use this server?'
      )
    if canary is None:
      return
    request = canary.request(f'canary-{said}-{uuid.uuid4().hex[:8]}')
    reply = await self._control.generate(url, request)
    check_counts(request, reply)
    problem = canary.problem(reply, self._options.tolerance)
    if problem is None and version is not None and set(reply.versions().tolist()) != {version}:
      problem = f'its tokens are of versions {reply.weight_versions}, wanted all of {version}'
    if problem is not None:
      raise SyncError(f'{url}: weights {said} do not match the canary: {problem}')

  def watch(self) -> asyncio.Task:
    """Starts the watch over all servers, once; it goes on until `close`."""
    if self._watching is None:
      self._watching = asyncio.create_task(self._watch())
    return self._watching

  async def _watch(self) -> None:
    while True:
      await asyncio.sleep(self._options.every_s)
      await asyncio.gather(*(self._look(seat) for seat in self._seats))
      last = self._last_word()
      if last is not None:
        self._router.fail(last)

  async def _look(self, seat: _Seat) -> None:
    """One round at one server: found lost by a client, dead, silent, too large, or well."""
    if seat.task is not None and seat.task.done():
      seat.task.result()  # a fault of ours ends the watch, and `check` tells it
    url = seat.member.url
    if seat.busy:
      return
    if self._router.state(url) is State.DOWN:
      if not self._hopeless(seat):
        self._set_aside(seat, self._router.reason(url), restart=False)
      return
    seat.missed = 0 if await self._ping(seat) else seat.missed + 1
    if (
      seat.busy or seat.member.url != url or self._router.state(url) is not State.UP
    ):  # somebody acted meanwhile
      return
    if seat.dead or seat.missed >= self._options.misses:
      what = 'its process has ended' if seat.dead else f'{seat.missed} pings missed in a row'
      self._set_aside(seat, f'{url}: {what}', restart=True)
      return
    await self._weigh(seat)

  async def _weigh(self, seat: _Seat) -> None:
    """Drains a server of ours that holds too much memory; one at a time where another can take its
    requests.
    """
    process, limit = seat.member.process, self._options.memory_mb
    if not limit or process is None or seat.member.start is None:
      return
    held = await asyncio.to_thread(process.memory_mb)
    others = [other for other in self._seats if other is not seat]
    if (
      held < limit
      or seat.busy
      or self._router.held
      or (others and all(other.busy for other in others))
    ):
      return
    if self._router.state(seat.member.url) is State.UP:
      reason = f'{seat.member.url}: holds {held:.0f} MiB, fleet.memory_mb is {limit}'
      log.warning('%s; it is drained and started again', reason)
      self._router.drain(seat.member.url, reason)
      seat.task = asyncio.create_task(self._drain(seat, reason))

  async def _drain(self, seat: _Seat, reason: str) -> None:
    """Waits for what runs, aborts the rest (clients go on from its tokens elsewhere), and starts
    the server again.
    """
    url = seat.member.url
    await self._emptied(url, self._options.drain_s)
    if self._router.load(url):
      try:
        await self._guarded(seat, self._control.abort(url))
        await self._emptied(url, self._options.every_s * self._options.misses)
      except RolloutError as error:
        log.warning('%s', error)
    self.counts['drained'] += 1
    self._lose(seat, reason)
    await self._revive(seat, restart=True)

  async def _emptied(self, url: str, limit_s: float) -> None:
    """Returns when the server has no requests left, or after limit_s."""
    end = time.monotonic() + limit_s
    while self._router.load(url) and time.monotonic() < end:
      await asyncio.sleep(min(0.05, self._options.every_s))

  def _set_aside(self, seat: _Seat, reason: str, *, restart: bool) -> None:
    """DOWN, and on its way back. restart: ours is started anew even if it answers."""
    self._lose(seat, reason)
    if not seat.busy:
      log.warning('%s; set aside', reason)
      self.counts['lost'] += 1
      seat.task = asyncio.create_task(self._revive(seat, restart=restart))

  def _lose(self, seat: _Seat, reason: str) -> None:
    self._router.lost(seat.member.url, reason)
    if self._router.replies(seat.member.url):
      seat.attempts = 0
    seat.reason = reason
    seat.lost_at = time.monotonic()
    seat.missed = 0

  async def _revive(self, seat: _Seat, *, restart: bool) -> None:
    """Brings a lost server back, or gives it up."""
    if seat.member.start is None:
      await self._await_return(seat)
      return
    if (
      not restart
      and not seat.dead
      and await self._ping(seat)
      and await self._tried(seat, self._catch_up(seat))
    ):
      return
    while seat.attempts < self._options.restarts:
      seat.attempts += 1
      self.counts['restarts'] += 1
      if await self._tried(seat, self._restart(seat)) and await self._tried(
        seat, self._catch_up(seat)
      ):
        return
    log.warning('%s: given up after %d restarts: %s', seat.member.url, seat.attempts, seat.reason)

  async def _await_return(self, seat: _Seat) -> None:
    while True:
      if await self._ping(seat) and await self._tried(seat, self._catch_up(seat)):
        return
      await asyncio.sleep(self._options.every_s)

  async def _tried(self, seat: _Seat, work: Coroutine[Any, Any, None]) -> bool:
    try:
      await work
      return True
    except _FAILURES as error:
      log.warning('%s', error)
      seat.reason = str(error)
      return False

  async def _restart(self, seat: _Seat) -> None:
    member = seat.member
    if member.process is not None:
      await asyncio.to_thread(member.process.stop, _GRACE_S)
    seat.starting = asyncio.ensure_future(asyncio.to_thread(member.start))
    process = await asyncio.shield(seat.starting)
    seat.starting = None
    member.process = process  # first of all: whatever comes now, it is ended with the others
    self._router.replace(member.url, process.url)
    member.url = process.url

  async def _catch_up(self, seat: _Seat) -> None:
    """A DOWN server gets what is current, and proves it; then it is UP."""
    url = seat.member.url
    while True:
      weights = self._weights
      await self._guarded(seat, self._settle(url, weights))
      if (
        weights is self._weights
      ):  # no newer ones came meanwhile; nothing happens between this and UP
        break
    self.counts['back'] += 1
    seat.lost_at = 0.0
    self._router.up(url)
    log.info('%s serves again', url)

  async def _settle(self, url: str, weights: _Weights | None) -> None:
    await self._control.inspect(url)
    await self._control.resume(url)
    if weights is None:
      await self._prove(url, self._base, None)
    else:
      await self._push(url, weights)

  async def _guarded(self, seat: _Seat, work: Coroutine[Any, Any, T]) -> T:
    """The result of talking to a server; RolloutError as soon as it is dead or misses its pings,
    whatever `work` waits for.
    """
    task, missed = asyncio.ensure_future(work), 0
    try:
      while True:
        done, _ = await asyncio.wait({task}, timeout=self._options.every_s)
        if done:
          return task.result()
        missed = 0 if await self._ping(seat) else missed + 1
        if seat.dead or missed >= self._options.misses:
          raise RolloutError(f'{seat.member.url}: stopped answering in the middle of a command')
    finally:
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)

  async def _ping(self, seat: _Seat) -> bool:
    return not seat.dead and await self._control.ready(seat.member.url, self._options.every_s)

  def _hopeless(self, seat: _Seat) -> bool:
    """Whether a DOWN server can come back: one of ours has restarts left; one by URL has
    ready_timeout_s.
    """
    if self._router.state(seat.member.url) is not State.DOWN or seat.lost_at == 0.0:
      return False
    if seat.member.start is None:
      return time.monotonic() - seat.lost_at > self._control.options.ready_timeout_s
    return not seat.busy and seat.attempts >= self._options.restarts

  def _last_word(self) -> str | None:
    """Why no server is left, or None."""
    if not all(self._hopeless(seat) for seat in self._seats):
      return None
    seat = max(self._seats, key=lambda seat: seat.lost_at)
    end = ''
    if seat.member.process is not None:
      end = f'; its log {seat.member.process.log} ends:\n{seat.member.process.tail()}'
    return (
      f'no rollout server is left, the last: {seat.reason}{end}\nthe same command goes on from '
      'the last checkpoint'
    )

  def check(self) -> None:
    """Raises RolloutError, with the end of a log, when no server is UP and none can come back."""
    if self._watching is not None and self._watching.done() and not self._watching.cancelled():
      self._watching.result()
    last = self._last_word()
    if last is not None:
      raise RolloutError(last)

  async def close(self) -> None:
    """Ends the watch, and every server of ours."""
    tasks = [
      task for task in (self._watching, *(seat.task for seat in self._seats)) if task is not None
    ]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(self._stopped(seat) for seat in self._seats))

  async def _stopped(self, seat: _Seat) -> None:
    if (
      seat.starting is not None
    ):  # a thread cannot be broken off: its server is ended when it is there
      (started,) = await asyncio.gather(seat.starting, return_exceptions=True)
      if not isinstance(started, BaseException):
        await asyncio.to_thread(started.stop, _GRACE_S)
    if seat.member.process is not None:
      await asyncio.to_thread(seat.member.process.stop, _GRACE_S)

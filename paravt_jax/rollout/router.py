"""Routes requests to servers, behind one gate.

A request goes to the server that has its group's prefix, else to the least loaded one.

While the gate is closed, no request is sent. No reply of new weights reaches an episode until a
canary proves the weights.
"""

import asyncio
import collections
import dataclasses
import enum
from collections.abc import Sequence

from paravt_jax.errors import RolloutError

_REMEMBERED = 65536  # prompts whose server is known


class State(enum.Enum):
  """UP takes requests; DRAINING finishes what it has; DOWN has lost what it had."""

  UP = 'up'
  DRAINING = 'draining'
  DOWN = 'down'


@dataclasses.dataclass
class _Server:
  """What the router knows of a server."""

  state: State = State.UP
  load: int = 0  # requests under way
  served: int = 0  # replies that were believed since it came up
  reason: str = ''  # why it is not UP
  gone: asyncio.Event = dataclasses.field(
    default_factory=asyncio.Event
  )  # one per life of the server


class Router:
  """Routes requests as the module describes. It is not thread-safe: use one event loop.

  supervised: a fleet brings lost servers back, so requests wait. Otherwise the loss of the last
  server is final.
  behind_gateway: SGLang's router chooses the server, and must hear of a loss before more requests
  go out.
  version: the weights that servers which are UP have at least; None before the first delivery.
  last_loss: why a server, or the gateway, was lost last.
  """

  def __init__(self, urls: Sequence[str]):
    if not urls or len(set(urls)) != len(urls):
      raise RolloutError(
        f'rollout servers: got {list(urls)}, wanted one or more URLs, each once; set server.urls'
      )
    self.supervised = False
    self.behind_gateway = False
    self.version: int | None = None
    self.last_loss = ''
    self._servers = {url: _Server() for url in urls}
    self._homes: collections.OrderedDict[int, str] = (
      collections.OrderedDict()
    )  # affinity -> url, least recently used first
    self._pauses = 0
    self._held = ''
    self._failure: str | None = None
    self._change = asyncio.Event()

  @property
  def urls(self) -> tuple[str, ...]:
    """All servers, in any state."""
    return tuple(self._servers)

  def state(self, url: str) -> State:
    """Of one server."""
    return self._servers[url].state

  def up_urls(self) -> tuple[str, ...]:
    """Servers that take requests."""
    return tuple(url for url, server in self._servers.items() if server.state is State.UP)

  def reason(self, url: str) -> str:
    """Returns why a server is not UP. Empty if it is UP or its address has changed."""
    return self._servers[url].reason if url in self._servers else ''

  # Requests.

  async def choose(self, affinity: int) -> str:
    """The server for a request: where its affinity is at home, or the least loaded (which then is
    its home).

    Waits while the gate is closed or no server is UP.

    Raises:
      RolloutError: no server will ever be UP.
    """
    await self.opened()
    home = self._homes.get(affinity)
    if home not in self._servers or self._servers[home].state is not State.UP:
      tenants = collections.Counter(self._homes.values())
      home = min(self.up_urls(), key=lambda url: (self._servers[url].load, tenants[url]))
    self.settle(affinity, home)
    return home

  async def opened(self) -> None:
    """Returns once a request may go out, to whichever server a gateway chooses.

    Raises:
      RolloutError: no server will ever be UP.
    """
    self._refuse_failed()
    while self._pauses or self._held or not self.up_urls():
      await self._changed()

  def settle(self, affinity: int, url: str) -> None:
    """Remembers the server that has an affinity's prefix."""
    self._homes[affinity] = url
    self._homes.move_to_end(affinity)
    if len(self._homes) > _REMEMBERED:
      self._homes.popitem(last=False)

  def home(self, affinity: int) -> str | None:
    """Returns the server that has an affinity's prefix, if one is known."""
    return self._homes.get(affinity)

  def lives(self) -> dict[str, asyncio.Event]:
    """Returns the servers that are UP, each with the event that is set when it is lost."""
    return {url: server.gone for url, server in self._servers.items() if server.state is State.UP}

  def started(self, url: str) -> asyncio.Event:
    """Counts a request to the server. The returned event is set when the server is lost."""
    self._servers[url].load += 1
    return self._servers[url].gone

  def finished(self, url: str, gone: asyncio.Event) -> None:
    """Counts the end of a request. `gone` is the event from `started`."""
    server = self._servers.get(url)
    if server is not None and server.gone is gone and not gone.is_set():
      server.load -= 1
      self._notify()

  def served(self, url: str) -> None:
    """A reply of the server was believed."""
    if url in self._servers:
      self._servers[url].served += 1

  def load(self, url: str) -> int:
    """Requests on their way at a server."""
    return self._servers[url].load

  def replies(self, url: str) -> int:
    """Replies that were believed since the server came up."""
    return self._servers[url].served

  # Servers.

  def up(self, url: str) -> None:
    """Marks the server as UP, with no load. Its loads start again from zero."""
    self._servers[url] = _Server()
    self._notify()

  def drain(self, url: str, reason: str) -> None:
    """The server gets no new requests."""
    self._servers[url].state, self._servers[url].reason = State.DRAINING, reason
    self._notify()

  def lost(self, url: str, reason: str) -> None:
    """The server is DOWN: what is on its way there, or arrived but was not believed yet, is to be
    sent again.
    """
    server = self._servers.get(url)
    if server is None or server.state is State.DOWN:
      return
    server.state = State.DOWN
    server.reason = self.last_loss = reason
    server.load = 0
    server.gone.set()
    if self.behind_gateway:
      self._held = reason
    if not self.supervised and not self.up_urls():
      self.fail(reason)
    self._notify()

  def replace(self, url: str, new: str) -> None:
    """Changes the address of a DOWN server, which stays DOWN."""
    if url != new:
      if new in self._servers:
        raise RolloutError(
          f'{new}: two servers have this address; give each a port of its own, or 0'
        )
      self._servers = {new if key == url else key: server for key, server in self._servers.items()}
      self._notify()

  def fail(self, reason: str) -> None:
    """No server will be UP again: all who wait get a RolloutError with this reason."""
    self._failure = reason
    self._notify()

  # The gate.

  @property
  def held(self) -> str:
    """Returns why a gateway takes no requests now, or an empty string."""
    return self._held

  def hold(self, reason: str) -> None:
    """The gateway takes no requests until `release`. Without a fleet that is final."""
    new, self._held, self.last_loss = not self._held, reason, reason
    if not self.supervised:
      self.fail(reason)
    elif new:
      self._notify()

  def release(self) -> None:
    """The gateway takes requests again."""
    if self._held:
      self._held = ''
      self._notify()

  @property
  def paused(self) -> bool:
    """Whether the gate is closed."""
    return self._pauses > 0

  def pause(self) -> None:
    """Closes the gate. It opens after as many calls of `resume` as of `pause`."""
    self._pauses += 1

  def resume(self) -> None:
    """Opens the gate."""
    self._pauses -= 1
    self._notify()

  async def passed(self, url: str) -> None:
    """Returns once a reply of this server may be believed: the gate is open, or the server drains
    and gets no new weights.

    Raises:
      RolloutError: no server will ever be UP.
    """
    while self._pauses and url in self._servers and self._servers[url].state is not State.DRAINING:
      await self._changed()

  async def changed_within(self, seconds: float) -> None:
    """Returns when anything about servers or the gate changes, at the latest after `seconds`."""
    try:
      await asyncio.wait_for(self._change.wait(), seconds)
    except TimeoutError:
      return

  async def _changed(self) -> None:
    self._refuse_failed()
    await self._change.wait()
    self._refuse_failed()

  def _refuse_failed(self) -> None:
    if self._failure is not None:
      raise RolloutError(self._failure)

  def _notify(self) -> None:
    self._change.set()
    self._change = asyncio.Event()

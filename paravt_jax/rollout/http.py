"""Requests to rollout servers: kept-alive connections, a limit on them, a bearer token, errors of
one line.

A broken connection raises `Lost`, and the request may be sent again. A timeout raises `Silent`.
Other failures raise RolloutError.
"""

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import aiohttp
import orjson

from paravt_jax.errors import RolloutError
from paravt_jax.options import COUNT, POSITIVE, RETRIES, TEXT, Options, whole

JSON, BYTES = 'application/json', 'application/octet-stream'
_BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


@dataclasses.dataclass(frozen=True)
class ConnectionOptions(Options):
  """How a client speaks to rollout servers."""

  connections: Annotated[int, COUNT]  # open at once, per client
  timeout_s: Annotated[float, POSITIVE]  # for one request, queueing included
  ready_timeout_s: Annotated[float, POSITIVE]  # for a server to come up, or to come back
  retries: Annotated[int, RETRIES]  # of a request, before its server is given up
  backoff_s: Annotated[float, POSITIVE]  # before the first retry; it doubles with each
  image_cache: Annotated[int, whole(0, note='0: none is kept')]  # encoded frames kept
  # a folder that SGLang servers see too, such as '/dev/shm/paravt': frames go there once, and
  # requests name the files; '': frames go inside requests
  image_folder: Annotated[str, TEXT]

  @classmethod
  def published(cls) -> 'ConnectionOptions':
    """Limits that suit servers of 8B."""
    return ConnectionOptions(
      connections=256,
      timeout_s=600.0,
      ready_timeout_s=600.0,
      retries=5,
      backoff_s=0.5,
      image_cache=4096,
      image_folder='',
    )


@dataclasses.dataclass(frozen=True)
class ClientOptions(ConnectionOptions):
  """The same with the servers' key."""

  api_key: str | None = dataclasses.field(repr=False)  # bearer token


class Lost(RolloutError):
  """The connection broke before the reply was whole."""


class Silent(RolloutError):
  """No reply in time: the server may work on it still."""


class Http:
  """One HTTP session. Use as `async with`. `counts`: 'retried', and the counts of subclasses."""

  def __init__(self, options: ClientOptions):
    self.options = options
    self.counts: collections.Counter[str] = collections.Counter()
    self._session: aiohttp.ClientSession | None = None

  async def __aenter__(self):
    headers = {'Authorization': f'Bearer {self.options.api_key}'} if self.options.api_key else {}
    self._session = aiohttp.ClientSession(
      connector=aiohttp.TCPConnector(limit=self.options.connections, keepalive_timeout=60),
      timeout=aiohttp.ClientTimeout(total=self.options.timeout_s),
      headers=headers,
    )
    return self

  async def __aexit__(self, *exception):
    session, self._session = self._session, None
    if session is not None:
      await session.close()

  async def once(
    self,
    method: str,
    url: str,
    body: bytes | None = None,
    timeout_s: float | None = None,
    on_event: Callable[[bytes], None] | None = None,
    kind: str = JSON,
    send: Mapping[str, str] | None = None,
    received: Callable[[dict[str, str]], Any] | None = None,
  ) -> tuple[int, bytes]:
    """Sends a request once. Returns (status, reply body).

    kind: the body's content type.
    on_event: receives the events of a stream of server-sent events. The last event is also the
    reply body. send: headers of the request. received: gets those of the reply, by lower-case name.

    Raises:
      Lost: no connection, or it broke.
      Silent: no reply within timeout_s; None means the options' own.
      RolloutError: the reply is not HTTP.
    """
    limit = self.options.timeout_s if timeout_s is None else timeout_s
    if self._session is None:
      raise AssertionError('a client is used inside `async with`')
    try:
      async with self._session.request(
        method,
        url,
        data=body,
        headers={'Content-Type': kind, **(send or {})},
        timeout=aiohttp.ClientTimeout(total=limit),
      ) as reply:
        if received is not None:
          received({name.lower(): value for name, value in reply.headers.items()})
        if on_event is not None and reply.content_type == 'text/event-stream':
          return reply.status, await _last_event(url, reply.content, on_event)
        return reply.status, await reply.read()
    except TimeoutError as error:
      raise Silent(
        f'{method} {url}: no reply within {limit:g} s; is the server overloaded or paused? '
        'raise client.timeout_s'
      ) from error
    except _BROKEN as error:
      raise Lost(
        f'{method} {url}: connection lost ({type(error).__name__}: {error}); is the server '
        'up? see its log'
      ) from error
    except (aiohttp.ClientError, ValueError) as error:  # no address, or a reply that is no HTTP
      raise RolloutError(
        f'{method} {url}: {type(error).__name__}: {error}; is this the address of a rollout server?'
      ) from error

  async def call(self, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Sends a request, up to `retries` more times if the connection is lost.

    Returns (status, reply body).

    Raises:
      Lost: it was lost every time.
      RolloutError: as `once`.
    """
    return await self.trying(lambda attempt: self.once(method, url, body))

  async def trying(self, send: Callable[[int], Any]) -> tuple[int, bytes]:
    """Awaits `send(attempt)`, from attempt 0, until the connection succeeds. See `call`."""
    for attempt in range(self.options.retries + 1):
      try:
        return await send(attempt)
      except Lost as error:
        if attempt == self.options.retries:
          raise Lost(f'{error} (tried {attempt + 1} times)') from error
        await self.back_off(attempt)
    raise AssertionError('unreachable: the last attempt returns or raises')

  async def back_off(self, attempt: int) -> None:
    """Counts a retry and waits before it."""
    self.counts['retried'] += 1
    await asyncio.sleep(self.options.backoff_s * 2**attempt)

  async def json(self, method: str, url: str, body: bytes | None = None) -> dict[str, Any]:
    """The reply as an object.

    Raises:
      RolloutError: as `call`, or as `parsed`.
    """
    return parse_reply(f'{method} {url}', *await self.call(method, url, body))

  async def ready(self, url: str, timeout_s: float) -> bool:
    """Returns whether the server answers within timeout_s, paused or not.

    It uses GET /get_model_info, because a paused SGLang answers 503 to /ready and may hang on
    /health.
    """
    try:
      status, _ = await self.once('GET', f'{url}/get_model_info', timeout_s=timeout_s)
    except RolloutError:
      return False
    return status == 200


async def _last_event(
  url: str, content: aiohttp.StreamReader, on_event: Callable[[bytes], None]
) -> bytes:
  """Reads `data: ...` lines until `data: [DONE]`. Raises Lost if the stream ends earlier."""
  last, line = b'', bytearray()
  async for part in content.iter_any():
    *whole, rest = part.split(b'\n')
    for piece in whole:
      line += piece
      name, _, data = bytes(line).strip().partition(b':')
      line.clear()
      if name == b'data' and data.strip() == b'[DONE]':
        return last
      if name == b'data':
        last = data.strip()
        on_event(last)
    line += rest
  raise Lost(f'POST {url}: the stream ended before its last event; is the server up? see its log')


def parse_reply(what: str, status: int, reply: bytes) -> dict[str, Any]:
  """Parses a reply as a JSON object. `what`: method and URL, for errors.

  Raises:
    RolloutError: a status other than 200, or no JSON object.
  """
  if status in (401, 403):
    raise RolloutError(
      f'{what}: the server refuses our key (status {status}); set server.api_key to the key '
      'it was started with'
    )
  if status != 200:
    raise RolloutError(
      f'{what}: got status {status}, wanted 200; the server says: {excerpt(reply)}'
    )
  try:
    value = orjson.loads(reply)
  except orjson.JSONDecodeError as error:
    raise RolloutError(
      f'{what}: got {excerpt(reply)}, wanted JSON; is this a rollout server?'
    ) from error
  if not isinstance(value, dict):
    raise RolloutError(
      f'{what}: got {excerpt(reply)}, wanted a JSON object; is this a rollout server?'
    )
  return value


def excerpt(reply: bytes) -> str:
  """The beginning of a reply, quoted."""
  return repr(reply[:300].decode('utf-8', 'replace'))

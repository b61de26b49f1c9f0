"""SGLang's router, `smg`, in front of the servers, which are its workers.

`Gateway` asks the router about its workers, adds them and removes them. `GatewayWatch` keeps them
equal to the servers that are UP. `passage` sends rollout requests through it. Weights, canaries and
pings do not pass it: they go to the servers themselves.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Collection, Mapping, Sequence

import orjson

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.rollout.http import ClientOptions, Http, Lost, Silent, excerpt, parse_reply
from paravt_jax.rollout.router import Router
from paravt_jax.serving import protocol

log = logging.getLogger('paravt.fleet')

ROUTING_KEY = 'X-SMG-Routing-Key'  # requests that share it go to one worker
ANSWERED = 'x-smg-routed-worker-id'  # of a reply: the worker that it comes from
START = (
  'start it as `smg launch --policy manual --assignment-mode min_load '
  '--max-buffered-request-bytes 0`'
)
_ASK_S = 5.0  # for one question to the router
_REGISTER_S = 30.0  # for the router to add or remove a worker
_POLL_S = 0.1
_SETTLED_S = 0.5  # in which no worker joins a router that has just started
_SAMPLES = 8  # requests of one routing key that must meet on one worker


class Gateway(Http):
  """Questions and commands to the router. Use as `async with Gateway(options, url) as gateway`.

  url: without a slash at the end.
  """

  def __init__(self, options: ClientOptions, url: str):
    super().__init__(options)
    self.url = url

  async def workers(self) -> dict[str, str]:
    """Returns the router's workers: their ids by address, without a slash at the end.

    A worker that it removes gets no requests any more, and is left out.

    Raises:
      RolloutError: the router is not there, refuses our key, or is something else.
    """
    what = f'GET {self.url}/workers'
    reply = parse_reply(what, *await self.once('GET', f'{self.url}/workers', timeout_s=_ASK_S))
    try:
      return {
        worker['url'].rstrip('/'): worker['id']
        for worker in reply['workers']
        if worker.get('status') != 'draining'
      }
    except (KeyError, TypeError, AttributeError) as error:
      raise RolloutError(
        f"{what}: got {excerpt(orjson.dumps(reply))}, wanted SGLang's router; is {self.url} a "
        'rollout server? name those by server.urls'
      ) from error

  async def members(self, urls: Sequence[str]) -> tuple[str, ...]:
    """Returns the servers of a run: `urls`, or where there are none, the router's workers.

    It waits up to ready_timeout_s for the router. A worker of `urls` that the router lost may be
    missing there: `serve_only` adds it.

    Raises:
      ConfigError: the router has no workers, or some that are not among `urls`.
      RolloutError: as `workers`.
    """
    found = await self._wait_for_workers()
    if not urls and not found:
      raise ConfigError(
        f'--config.server.router: {self.url} has no workers; give it some with `smg launch '
        '--worker-urls URL ...`, or name them by server.urls'
      )
    strange = sorted(found.keys() - set(urls)) if urls else []
    if strange:
      raise ConfigError(
        f'--config.server.urls: got {list(urls)}, but the router {self.url} sends requests to '
        f'{strange}, too: name the same addresses at both, or leave server.urls empty to take '
        "the router's"
      )
    return tuple(urls) or tuple(found)

  async def _wait_for_workers(self) -> dict[str, str]:
    """Returns the workers of a router that may be starting: twice the same, or none in time."""
    end = time.monotonic() + self.options.ready_timeout_s
    found: dict[str, str] = {}
    said = False
    while True:
      before = found
      try:
        found = await self.workers()
      except (Lost, Silent) as error:
        found = {}
        if time.monotonic() >= end:
          raise RolloutError(
            f'{error}; no router after {self.options.ready_timeout_s:g} s, see its log or raise '
            'client.ready_timeout_s'
          ) from error
      if (found and found == before) or time.monotonic() >= end:
        return found
      if not found and not said:
        log.warning('%s: no workers yet; waiting', self.url)
        said = True
      await asyncio.sleep(min(_SETTLED_S, self.options.ready_timeout_s))

  async def serve_only(self, urls: Collection[str]) -> None:
    """Makes `urls` the router's only workers. Returns once it lists them.

    Raises:
      RolloutError: the router is not there, or did not do it in time.
    """
    asked: set[str] = set()
    found: dict[str, str] = {}
    try:
      async with asyncio.timeout(_REGISTER_S):
        while (found := await self.workers()).keys() != set(urls):
          for url in found.keys() - set(urls) - asked:
            log.warning('%s: no more requests from the router %s', url, self.url)
            await self._command('DELETE', f'/workers/{found[url]}', b'')
            asked.add(url)
          for url in set(urls) - found.keys() - asked:
            # 409: it is on its way out still, so it is added once it is gone.
            if await self._command('POST', '/workers', orjson.dumps(self._worker(url))) != 409:
              log.warning('%s: requests from the router %s again', url, self.url)
              asked.add(url)
          await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
      raise RolloutError(
        f'{self.url}: has the workers {sorted(found)} after {_REGISTER_S:g} s, wanted '
        f'{sorted(urls)}; can it reach them? see its log'
      ) from error

  def _worker(self, url: str) -> dict[str, str]:
    key = self.options.api_key
    return {'url': url, **({'api_key': key} if key else {})}

  async def _command(self, method: str, path: str, body: bytes) -> int:
    """Sends a command about workers. Returns the status: that a worker is there, or gone, already
    is no error.
    """
    status, reply = await self.once(method, self.url + path, body or None, timeout_s=_ASK_S)
    if status not in (200, 202, 404, 409):
      raise RolloutError(
        f'{method} {self.url}{path}: got status {status}, wanted 202; the router says: '
        f'{excerpt(reply)}; the run adds and removes workers, so its server.api_key must allow that'
      )
    return status

  async def check(self, prompt: Sequence[int]) -> None:
    """Checks that requests reach the workers as they were sent, and one group one worker.

    Args:
      prompt: some ids of the vocabulary.

    Raises:
      RolloutError: the router changes requests, spreads a group, or does not say who answered.
    """
    request = protocol.GenerateRequest(
      'gateway-check', list(prompt), (), 0.0, 1.0, -1, 1, (), (), 0, True
    )
    first, worker = await self._sample(request)
    homes = {worker}
    for n in range(_SAMPLES):
      banned = dataclasses.replace(request, rid=f'{request.rid}-{n}', banned_ids=(first,))
      token, worker = await self._sample(banned)
      homes.add(worker)
      if token == first:
        raise RolloutError(
          f'{self.url}: the router drops logit_bias on the way, so servers would sample banned '
          f'ids; {START}'
        )
    if len(homes) > 1:
      raise RolloutError(
        f'{self.url}: the router sends requests of one prompt to {len(homes)} workers, each of '
        f'which would compute the same prefix; {START}'
      )

  async def _sample(self, request: protocol.GenerateRequest) -> tuple[int, str]:
    """Returns the one token of a greedy request, and the worker that sampled it."""
    headers: dict[str, str] = {}
    reply = await self.once(
      'POST',
      f'{self.url}/generate',
      orjson.dumps(request.to_json()),
      send={ROUTING_KEY: 'gateway-check'},
      received=headers.update,
    )
    parsed = protocol.GenerateReply.from_json(parse_reply(f'POST {self.url}/generate', *reply))
    return parsed.output_ids[0], worker_of(self.url, headers)


def worker_of(url: str, headers: Mapping[str, str]) -> str:
  """Returns the worker that a reply comes from. headers: with lower-case names.

  Raises:
    RolloutError: the reply does not say.
  """
  if ANSWERED not in headers:
    raise RolloutError(
      f'POST {url}/generate: the reply does not say which worker answered ({ANSWERED}), so its '
      "weights cannot be trusted; wanted SGLang's router smg 1.13 or later"
    )
  return headers[ANSWERED].rstrip('/')


class GatewayWatch:
  """Keeps the router's workers equal to the servers that are UP.

  A server that is set aside gets no more requests, one that comes back gets some again. While the
  router is lost, requests wait.

  every_s: between questions to the router. deadline_s: for a lost router to come back.
  """

  def __init__(self, gateway: Gateway, router: Router, every_s: float, deadline_s: float):
    self._gateway = gateway
    self._router = router
    self._every_s, self._deadline_s = every_s, deadline_s
    self._lost_at = 0.0  # time.monotonic(); 0 while the router answers
    self._turn = asyncio.Lock()
    self._task: asyncio.Task[None] | None = None
    router.supervised = router.behind_gateway = True

  def watch(self) -> None:
    """Starts to watch, once; it continues until `close`."""
    if self._task is None:
      self._task = asyncio.create_task(self._watch())

  async def _watch(self) -> None:
    while True:
      await self._router.changed_within(self._every_s)
      await self.align()
      if (last := self.fatal_message()) is not None:
        self._router.fail(last)

  async def align(self) -> None:
    """Makes the servers that are UP the router's only workers, and lets requests through.

    If the router does not do that, requests wait.
    """
    async with self._turn:
      try:
        while True:
          wanted = set(self._router.up_urls())
          await self._gateway.serve_only(wanted)
          # Another one may have been lost meanwhile. There is no await between this and `release`.
          if wanted == set(self._router.up_urls()):
            break
      except RolloutError as error:
        if not self._lost_at:
          log.warning('%s; rollout requests wait', error)
          self._lost_at = time.monotonic()
        self._router.hold(str(error))
        return
      self._lost_at = 0.0
      self._router.release()

  def fatal_message(self) -> str | None:
    """Returns why the run cannot go on without its router, or None."""
    if not self._lost_at or time.monotonic() - self._lost_at <= self._deadline_s:
      return None
    return (
      f'the router {self._gateway.url} is lost for {self._deadline_s:g} s '
      f'(client.ready_timeout_s), the last: {self._router.held}; start it again, then the same '
      'command continues from the last checkpoint'
    )

  async def close(self) -> None:
    """Ends the watch. The router keeps its workers."""
    if self._task is not None:
      self._task.cancel()
      await asyncio.gather(self._task, return_exceptions=True)

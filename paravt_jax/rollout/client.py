"""The way to a rollout server, ours or SGLang's: send ids and frames, get ids and log-probs, and believe nothing unchecked.

`Client.generate` resumes what a weight update interrupted; `Control` carries weights, pauses and aborts to every server.
"""

import asyncio
import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import numpy as np
import orjson

from paravt_jax import seeds
from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.serving import protocol
from paravt_jax.video import patches

_JSON = {'Content-Type': 'application/json'}
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)   # the connection broke: the one thing worth sending again
_ROUNDING = 1e-3             # a log-prob may exceed 0 by so much, in nats


@dataclasses.dataclass(frozen=True)
class ClientOptions:
  """urls: servers, 'http://host:port' each; a group keeps to one. api_key: bearer token, or None. connections: open at once,
  per client.

  timeout_s: for one request, queueing included. ready_timeout_s: for a server to come up. retries: after a lost connection,
  backoff_s apart and doubling. image_cache: encoded frames kept.
  """
  urls: tuple[str, ...]
  api_key: str | None
  connections: int
  timeout_s: float
  ready_timeout_s: float
  retries: int
  backoff_s: float
  image_cache: int


@dataclasses.dataclass(frozen=True)
class Sampled:
  """What a request came to. ids: int32[n], stop token included; logprobs: float32[n]; versions: int32[n]; finish as in the
  protocol."""
  ids: np.ndarray
  logprobs: np.ndarray
  versions: np.ndarray
  finish: str


def image_tokens(images: Sequence[np.ndarray]) -> int:
  """Tokens that images uint8[H, W, 3] become; sides are multiples of 32."""
  return sum((image.shape[0] // patches.SIDE) * (image.shape[1] // patches.SIDE) for image in images)


class ImageCache:
  """Frames as JSON strings of base64 PNG, encoded once per stretch of memory: rollouts and turns send the same ones again.

  An entry keeps its array alive, so no other frame can take its address; frames are never written to.
  """

  def __init__(self, capacity: int):
    self._capacity = capacity
    self._entries: collections.OrderedDict[tuple, tuple[np.ndarray, asyncio.Task, int]] = collections.OrderedDict()

  async def encode(self, images: Sequence[np.ndarray]) -> list[orjson.Fragment]:
    """One fragment per image. Encoding runs in a thread, and once even if eight rollouts ask at the same moment."""
    keys = [_memory(image) for image in images]
    missing = {key: image for key, image in zip(keys, images) if key not in self._entries}
    if missing:
      task = asyncio.create_task(asyncio.to_thread(_fragments, list(missing.values())))
      for place, (key, image) in enumerate(missing.items()):
        self._entries[key] = (image, task, place)
    entries = [self._entries[key] for key in keys]
    for key in keys:
      self._entries.move_to_end(key)
    while len(self._entries) > self._capacity:
      self._entries.popitem(last=False)
    for task in {task for _, task, _ in entries if not task.done()}:
      await asyncio.shield(task)
    return [task.result()[place] for _, task, place in entries]


def _memory(image: np.ndarray) -> tuple:
  return image.__array_interface__['data'][0], image.shape, image.strides


def _fragments(images: Sequence[np.ndarray]) -> list[orjson.Fragment]:
  return [orjson.Fragment(b'"%s"' % protocol.encode_image(image).encode()) for image in images]


class _Http:
  """One session: keep-alive connections, a limit on them, retries on lost connections only."""

  def __init__(self, options: ClientOptions):
    self.options = options
    self.counts: collections.Counter[str] = collections.Counter()
    self._session: aiohttp.ClientSession | None = None

  async def __aenter__(self):
    headers = {'Authorization': f'Bearer {self.options.api_key}'} if self.options.api_key else {}
    self._session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=self.options.connections, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=self.options.timeout_s), headers=headers)
    return self

  async def __aexit__(self, *exception):
    session, self._session = self._session, None
    await session.close()

  async def call(self, method: str, url: str, body: bytes | Callable[[int], bytes] | None = None) -> tuple[int, bytes]:
    """(status, reply body). `body` may be a function of the attempt, 0 first: a request that is sent again needs another rid.

    Raises:
      RolloutError: no connection after all retries, or no reply within timeout_s.
    """
    for attempt in range(self.options.retries + 1):
      try:
        payload = body(attempt) if callable(body) else body
        async with self._session.request(method, url, data=payload, headers=_JSON) as reply:
          return reply.status, await reply.read()
      except TimeoutError as error:
        raise RolloutError(f'{method} {url}: no reply within {self.options.timeout_s:g} s; is the server overloaded or paused? '
                           'raise client.timeout_s') from error
      except _LOST as error:
        if attempt == self.options.retries:
          raise RolloutError(f'{method} {url}: connection lost {attempt + 1} times ({type(error).__name__}: {error}); '
                             'is the server up? see its log') from error
        self.counts['retried'] += 1
        await asyncio.sleep(self.options.backoff_s * 2**attempt)
    raise AssertionError('unreachable: the last attempt returns or raises')

  async def json(self, method: str, url: str, body: Callable[[int], bytes] | None = None) -> dict[str, Any]:
    """The reply as an object.

    Raises:
      RolloutError: as `call`; or a status other than 200, or a reply that is no JSON object.
    """
    status, reply = await self.call(method, url, body)
    if status != 200:
      raise RolloutError(f'{method} {url}: got status {status}, wanted 200; the server says: {_excerpt(reply)}')
    try:
      value = orjson.loads(reply)
    except orjson.JSONDecodeError as error:
      raise RolloutError(f'{method} {url}: got {_excerpt(reply)}, wanted JSON; is this a rollout server?') from error
    if not isinstance(value, dict):
      raise RolloutError(f'{method} {url}: got {_excerpt(reply)}, wanted a JSON object; is this a rollout server?')
    return value


def _excerpt(reply: bytes) -> str:
  return repr(reply[:300].decode('utf-8', 'replace'))


class Client(_Http):
  """Generates. Use as `async with Client(options, vocab_size) as client`; safe for any number of concurrent requests.

  vocab_size: rows of the model's embedding table, padding rows included: a policy may sample those, so not the tokenizer's.
  """

  def __init__(self, options: ClientOptions, vocab_size: int):
    super().__init__(options)
    self._vocab_size = vocab_size
    self._images = ImageCache(options.image_cache)
    self._sent: dict[str, tuple[str, str]] = {}       # rid -> (server, rid on the wire) of what is in flight
    self._given_up: set[str] = set()
    self._tasks: set[asyncio.Task] = set()

  async def __aexit__(self, *exception):
    if self._tasks:
      await asyncio.gather(*self._tasks, return_exceptions=True)
    await super().__aexit__(*exception)

  async def generate(self, request: protocol.GenerateRequest, affinity: int = 0) -> Sampled:
    """Samples until a stop token or `max_new_tokens`.

    A request that the server aborts (a weight update) goes on from its tokens with what is left of its budget; each token
    keeps the version that sampled it. `finish` is 'abort' only after `abort(rid)`, or when no token comes in `retries` + 1
    goes.

    Args:
      request: its rid is unique among those in flight. Resumed parts carry a suffix and draw from their own seed.
      affinity: requests of one group share a number, hence a server, which then computes their prefix once.

    Raises:
      RolloutError: transport (see `call`), or a reply that breaks the protocol: counts, ids or image tokens that are not ours.
    """
    server = self.options.urls[affinity % len(self.options.urls)]
    fragments = await self._images.encode(request.images)
    parts: list[protocol.GenerateReply] = []
    done: list[int] = []
    idle = 0
    try:
      while True:
        reply = await self._part(server, request, done, len(parts), fragments)
        parts.append(reply)
        done = done + reply.output_ids
        left = request.max_new_tokens - len(done)
        idle = 0 if reply.output_ids else idle + 1
        if reply.finish != 'abort' or request.rid in self._given_up or idle > self.options.retries:
          return _joined(parts, reply.finish)
        if left <= 0:
          return _joined(parts, 'length')
        self.counts['interrupted'] += 1
        if idle:
          await asyncio.sleep(self.options.backoff_s * 2**(idle - 1))
    except (asyncio.CancelledError, RolloutError):
      self._abandon(request.rid)
      raise
    finally:
      self._sent.pop(request.rid, None)
      self._given_up.discard(request.rid)

  async def abort(self, rid: str) -> None:
    """Ends a request of this client; its `generate` returns what it has, with finish 'abort'. Unknown rids do nothing."""
    if rid in self._sent:
      self._given_up.add(rid)
      server, wire = self._sent[rid]
      await self.call('POST', f'{server}/abort_request', orjson.dumps({'rid': wire}))

  async def _part(self, server: str, request: protocol.GenerateRequest, done: list[int], index: int,
                  fragments: list[orjson.Fragment]) -> protocol.GenerateReply:
    part = request
    if index:
      part = dataclasses.replace(request, rid=f'{request.rid}~{index}', input_ids=list(request.input_ids) + done,
                                 max_new_tokens=request.max_new_tokens - len(done), seed=resumed_seed(request.seed, len(done)))
    body = part.to_json(fragments)

    def payload(attempt: int) -> bytes:
      wire = f'{part.rid}!{attempt}' if attempt else part.rid
      self._sent[request.rid] = (server, wire)
      return orjson.dumps({**body, 'rid': wire})

    reply = protocol.GenerateReply.from_json(await self.json('POST', f'{server}/generate', payload))
    check(part, reply, self._vocab_size)
    self.counts.update(requests=1, prompt_tokens=reply.prompt_tokens, cached_tokens=reply.cached_tokens,
                       sampled_tokens=len(reply.output_ids))
    return reply

  def _abandon(self, rid: str) -> None:
    """Tells the server, in the background, that nobody waits any more: it notices a closed connection late."""
    if rid in self._sent and self._session is not None:
      server, wire = self._sent[rid]
      task = asyncio.create_task(self._quietly(f'{server}/abort_request', orjson.dumps({'rid': wire})))
      self._tasks.add(task)
      task.add_done_callback(self._tasks.discard)

  async def _quietly(self, url: str, body: bytes) -> None:
    try:
      async with self._session.post(url, data=body, headers=_JSON, timeout=aiohttp.ClientTimeout(total=2)) as reply:
        await reply.read()
    except (TimeoutError, *_LOST):
      self.counts['abort_failed'] += 1


def resumed_seed(seed: int, done: int) -> int:
  """The sampling seed (31 bits) of a request that goes on after `done` tokens: its own, or the same draws would come twice."""
  return seed if done == 0 else seeds.at(seed, 'resume', done) & 0x7fffffff


def _joined(parts: list[protocol.GenerateReply], finish: str) -> Sampled:
  ids = [token for part in parts for token in part.output_ids]
  logprobs = [value for part in parts for value in part.logprobs]
  versions = np.concatenate([part.versions() for part in parts])
  return Sampled(np.asarray(ids, np.int32), np.asarray(logprobs, np.float32), versions.astype(np.int32), finish)


def check(request: protocol.GenerateRequest, reply: protocol.GenerateReply, vocab_size: int) -> None:
  """Compares a reply with what was asked.

  Raises:
    RolloutError: too many ids, one out of range or banned, a log-prob that is none, version spans that do not cover the ids, an
      unknown finish reason, or a number of image tokens that is not our own (the server resized our frames).
  """
  ids, where = reply.output_ids, f'reply to {request.rid}'
  expected = image_tokens(request.images)
  if reply.image_tokens != expected:
    raise RolloutError(f'{where}: the server counts {reply.image_tokens} image tokens, we {expected}: it resized our frames; '
                       'set size to {"shortest_edge": 1024, "longest_edge": 50176} in the served preprocessor_config.json')
  if reply.finish not in protocol.FINISH_REASONS:
    raise RolloutError(f'{where}: got finish reason {reply.finish!r}, wanted one of {protocol.FINISH_REASONS}')
  if len(ids) != len(reply.logprobs):
    raise RolloutError(f'{where}: got {len(ids)} ids and {len(reply.logprobs)} log-probs, wanted as many of each')
  if len(ids) > request.max_new_tokens:
    raise RolloutError(f'{where}: got {len(ids)} ids, wanted at most {request.max_new_tokens}')
  if ids and (min(ids) < 0 or max(ids) >= vocab_size):
    raise RolloutError(f'{where}: got ids in {min(ids)}..{max(ids)}, wanted 0..{vocab_size - 1}; does the server '
                       'hold another model?')
  banned = set(request.banned_ids).intersection(ids)
  if banned:
    raise RolloutError(f'{where}: got banned id {min(banned)}; does the server honour logit_bias?')
  if not all(math.isfinite(value) and value <= _ROUNDING for value in reply.logprobs):
    raise RolloutError(f'{where}: got a log-prob that is not finite or above 0; is return_logprob served?')
  edges = [0, *(end for _, _, end in reply.weight_versions)]
  if edges[-1] != len(ids) or [start for _, start, _ in reply.weight_versions] != edges[:-1]:
    raise RolloutError(f'{where}: got weight version spans {reply.weight_versions}, wanted them to cover {len(ids)} ids '
                       'in order')


class Control(_Http):
  """Weights, pauses and aborts, sent to every server at once. Has its own connections: a full client cannot hold up an
  update."""

  async def _tell(self, path: str, body: dict) -> None:
    """A command whose reply holds nothing of use (some servers answer it with plain text)."""
    replies = await asyncio.gather(*(self.call('POST', url + path, orjson.dumps(body)) for url in self.options.urls))
    for url, (status, reply) in zip(self.options.urls, replies):
      if status != 200:
        raise RolloutError(f'POST {url}{path}: got status {status}, wanted 200; the server says: {_excerpt(reply)}')

  async def pause(self, mode: str = 'retract') -> None:
    """Stops generation; 'retract' keeps what is in flight for later, with its keys and values recomputed on the new weights."""
    await self._tell('/pause_generation', {'mode': mode})

  async def resume(self) -> None:
    """Lets generation go on after `pause`."""
    await self._tell('/continue_generation', {})

  async def abort(self, rid: str = '') -> None:
    """Aborts one request by its rid on the wire, or all of them."""
    await self._tell('/abort_request', {'rid': rid} if rid else {'rid': '', 'abort_all': True})

  async def flush(self) -> None:
    """Drops every server's cached prefixes. SGLang refuses while anything runs."""
    await self._tell('/flush_cache', {})

  async def update_weights(self, folder: str, version: int) -> None:
    """Loads weights from `folder` on every server as `version`, without pausing by itself.

    Raises:
      SyncError: a server refused them. RolloutError: a server did not answer.
    """
    body = {'model_path': str(folder), 'weight_version': str(version), 'flush_cache': True}
    replies = await asyncio.gather(*(self.call('POST', f'{url}/update_weights_from_disk', orjson.dumps(body))
                                     for url in self.options.urls))
    for url, (status, reply) in zip(self.options.urls, replies):
      if status != 200 or not _succeeded(reply):
        raise SyncError(f'{url}: refused weights {version} from {folder} (status {status}): {_excerpt(reply)}; '
                        'is the folder complete, and visible to the server?')

  async def swap_weights(self, folder: str, version: int) -> None:
    """Pause, update, continue: what is in flight goes on under the new weights. Continues even when the update is refused."""
    await self.pause()
    try:
      await self.update_weights(folder, version)
    finally:
      await self.resume()

  async def info(self) -> list[dict[str, Any]]:
    """`/get_model_info` of every server, in the order of the urls."""
    return list(await asyncio.gather(*(self.json('GET', f'{url}/get_model_info') for url in self.options.urls)))

  async def wait_ready(self) -> None:
    """Returns when every server is healthy.

    Raises:
      RolloutError: one was not within ready_timeout_s.
    """
    await asyncio.gather(*(self._ready(url) for url in self.options.urls))

  async def _ready(self, url: str) -> None:
    problem = 'nothing yet'
    try:
      async with asyncio.timeout(self.options.ready_timeout_s):
        while True:
          try:
            async with self._session.get(f'{url}/health') as reply:
              if reply.status == 200:
                return
              problem = f'status {reply.status}'
          except _LOST as error:
            problem = f'{type(error).__name__}: {error}'
          await asyncio.sleep(min(self.options.backoff_s, 0.2))
    except TimeoutError as error:
      raise RolloutError(f'{url}: not ready after {self.options.ready_timeout_s:g} s (last: {problem}); see the server\'s log, '
                         'or raise client.ready_timeout_s') from error


def _succeeded(reply: bytes) -> bool:
  try:
    value = orjson.loads(reply)
  except orjson.JSONDecodeError:
    return False
  return isinstance(value, dict) and value.get('success') is True

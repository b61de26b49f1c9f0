"""The client of rollout servers, embedded or SGLang.

It sends ids and frames, receives ids and log-probs, and checks every reply.

`Client.generate` resumes requests that a weight update interrupted. It resends requests of a lost
server, starting from the tokens that arrived.
"""

import asyncio
import dataclasses
import math
import time
import urllib.parse
from collections.abc import Callable, Sequence

import numpy as np
import orjson

from paravt_jax import seeds
from paravt_jax.errors import RolloutError
from paravt_jax.rollout.http import ClientOptions, Http, Lost, excerpt, parse_reply
from paravt_jax.rollout.images import Images
from paravt_jax.rollout.passage import Passage
from paravt_jax.rollout.router import Router, State
from paravt_jax.serving import protocol
from paravt_jax.timeline import Timeline
from paravt_jax.video import patches

__all__ = [
  'Client',
  'ClientOptions',
  'Sampled',
  'check',
  'check_counts',
  'image_tokens',
  'resumed_seed',
]

_Event = Callable[[bytes], None] | None
_Images = Sequence[np.ndarray]
_Payload = Callable[[str, Sequence[object]], bytes]  # (url, image_data) -> body
_ROUNDING = 1e-3  # a log-prob may exceed 0 by so much, in nats
_JUDGED = 8  # replies of a server from which its speed is told
_NOTICE_S = 2.0  # timeout in seconds of aborts and of health checks


@dataclasses.dataclass(frozen=True)
class Sampled:
  """What a request came to."""

  ids: np.ndarray  # int32[n], stop token included
  logprobs: np.ndarray  # float32[n], in nats
  versions: np.ndarray  # int32[n]: the weights that sampled each id
  finish: str  # stop | length | abort


def image_tokens(images: Sequence[np.ndarray]) -> int:
  """Returns the number of tokens of images uint8[H, W, 3], whose sides are multiples of 32."""
  return sum(
    (image.shape[0] // patches.SIDE) * (image.shape[1] // patches.SIDE) for image in images
  )


class Client(Http):
  """Generates tokens on the rollout servers, for any number of concurrent requests.

  Use as `async with Client(options, vocab_size, router, image_id=...) as client`.

  vocab_size: rows of the model's embedding table, including padding rows, which a policy may
  sample. So it is not the size of the tokenizer. image_id: the id of an image placeholder.
  gateway: the address of SGLang's router, if requests go through it. timeline: gets a lane per server. `counts`: requests, tokens
  (prompt, cached, sampled), images (all, sent, bytes), and of requests 'interrupted' (by an update
  or a drain), 'retried' (connection lost), 'moved' (sent again because their server was lost).
  """

  def __init__(
    self,
    options: ClientOptions,
    vocab_size: int,
    router: Router,
    *,
    image_id: int,
    gateway: str | None = None,
    timeline: Timeline | None = None,
  ):
    super().__init__(options)
    self._vocab_size = vocab_size
    self._router = router
    self._image_id = image_id
    self._timeline = timeline or Timeline(None)
    self.images = Images(self, options.image_cache, options.image_folder)
    self._passage = None if gateway is None else Passage(self, self.images, router, gateway)
    self._sent: dict[
      str, tuple[str, str]
    ] = {}  # rid -> (server, rid on the wire) of what is in flight
    self._given_up: set[str] = set()
    # url -> (replies, sampled tokens, seconds) since `take_speeds`
    self._speeds: dict[str, tuple[int, int, float]] = {}
    self._tasks: set[asyncio.Task] = set()

  async def __aexit__(self, *exception):
    if self._tasks:
      await asyncio.gather(*self._tasks, return_exceptions=True)
    await self.images.close()
    await super().__aexit__(*exception)

  async def generate(
    self,
    request: protocol.GenerateRequest,
    affinity: int = 0,
    on_tokens: Callable[[list[int]], None] | None = None,
  ) -> Sampled:
    """Samples until a stop token or `max_new_tokens`.

    If the server aborts a request (a weight update), the client resumes it from its tokens with the
    remaining budget. Each token keeps the version that sampled it. A request of a lost server is
    resent from the tokens that arrived, with the same seed. `finish` is 'abort' only after
    `abort(rid)`, or if no token arrives in `retries` + 1 attempts.

    Args:
      request: its rid must be unique among those in flight. Resumed parts have a suffix and a
        different seed.
      affinity: requests of one group share this number and therefore a server, which computes their
        prefix once.
      on_tokens: receives all ids so far as they arrive, unchecked. After a lost connection the ids
        may start over.

    Raises:
      RolloutError: an id is out of the vocabulary; images and placeholders differ in number; no
        server is left, or more than `retries` + 1 were lost over this request; a server is silent,
        or its reply breaks the protocol: counts, ids or image tokens that are not ours.
    """
    self._refuse_harmful(request)
    parts: list[protocol.GenerateReply] = []
    done: list[int] = []
    idle = 0
    try:
      while True:
        reply, steady = await self._part(request, done, len(parts), affinity, on_tokens)
        parts.append(reply)
        done = done + reply.output_ids
        left = request.max_new_tokens - len(done)
        idle = idle + 1 if steady and not reply.output_ids else 0
        if reply.finish != 'abort' or request.rid in self._given_up or idle > self.options.retries:
          return _concatenate(parts, reply.finish)
        if left <= 0:
          return _concatenate(parts, 'length')
        self.counts['interrupted'] += 1
        if idle:
          await asyncio.sleep(self.options.backoff_s * 2 ** (idle - 1))
    except (asyncio.CancelledError, RolloutError):
      self._abandon(request.rid)
      raise
    finally:
      self._sent.pop(request.rid, None)
      self._given_up.discard(request.rid)

  def _count_speed(self, url: str, tokens: int, seconds: float) -> None:
    replies, before, spent = self._speeds.get(url, (0, 0, 0.0))
    self._speeds[url] = replies + 1, before + tokens, spent + seconds

  def take_speeds(self) -> dict[str, float]:
    """Returns each server's sampled tokens per second of a request, since the previous call.

    A request's seconds include its wait at the server. Servers with fewer than 8 replies, of which
    one long prompt could decide, are left out.
    """
    taken, self._speeds = self._speeds, {}
    return {
      url: tokens / max(seconds, 1e-9)
      for url, (replies, tokens, seconds) in taken.items()
      if replies >= _JUDGED
    }

  def _refuse_harmful(self, request: protocol.GenerateRequest) -> None:
    ids = request.input_ids
    placeholders = sum(token == self._image_id for token in ids)
    if placeholders != len(request.images):
      raise RolloutError(
        f'request {request.rid}: got {placeholders} image placeholders (id {self._image_id}) for '
        f'{len(request.images)} images, wanted one each; a server would answer it with garbage'
      )
    if not ids or min(ids) < 0 or max(ids) >= self._vocab_size:
      got = f'ids in {min(ids)}..{max(ids)}' if ids else 'no ids'
      raise RolloutError(
        f'request {request.rid}: got {got}, wanted some in 0..{self._vocab_size - 1}; SGLang '
        'would end on one '
        'beyond its vocabulary'
      )

  async def abort(self, rid: str) -> None:
    """Ends a request of this client. Its `generate` returns the tokens so far, with finish 'abort'.

    Unknown rids are ignored.
    """
    if rid in self._sent:
      self._given_up.add(rid)
      await self._send_abort(*self._sent[rid])

  async def _part(
    self,
    request: protocol.GenerateRequest,
    done: list[int],
    index: int,
    affinity: int,
    on_tokens: Callable[[list[int]], None] | None,
  ) -> tuple[protocol.GenerateReply, bool]:
    """Returns a checked reply, and whether its server was still UP when the reply arrived."""
    # A resumed part continues after `done` with the remaining budget and a new seed.
    part = request
    if index:
      part = dataclasses.replace(
        request,
        rid=f'{request.rid}~{index}',
        input_ids=list(request.input_ids) + done,
        max_new_tokens=request.max_new_tokens - len(done),
        seed=resumed_seed(request.seed, len(done)),
      )
    event = None if on_tokens is None else _stream_to(on_tokens, done, self._vocab_size)
    sent = 0

    def payload(url: str, image_data: Sequence[object]) -> bytes:
      nonlocal sent
      wire = f'{part.rid}!{sent}' if sent else part.rid  # the earlier attempt may still run there
      sent += 1
      self._sent[request.rid] = (url, wire)
      body = part.to_json(image_data) | ({} if on_tokens is None else {'stream': True})
      return orjson.dumps({**body, 'rid': wire})

    for _ in range(self.options.retries + 2):
      await self._router.opened()
      floor = self._router.version
      start = time.monotonic()
      came = await self._ask_some_server(affinity, part.images, payload, event)
      if came is not None:
        url, status, answer = came
        value = parse_reply(f'POST {url}/generate', status, answer)
        reply = protocol.GenerateReply.from_json(value)
        check(part, reply, self._vocab_size)
        if self._is_outdated(url, reply, floor):
          self.counts['moved'] += 1
          continue
        self.counts.update(
          requests=1,
          prompt_tokens=reply.prompt_tokens,
          cached_tokens=reply.cached_tokens,
          sampled_tokens=len(reply.output_ids),
          images=len(part.images),
        )
        self._router.served(url)
        self._count_speed(url, len(reply.output_ids), time.monotonic() - start)
        return reply, self._router.state(url) is State.UP
      self.counts['moved'] += 1
    raise RolloutError(
      f'request {request.rid}: {self.options.retries + 2} servers in a row were lost over '
      'it, the last: '
      f'{self._router.last_loss}; see their logs, or raise client.retries'
    )

  def _is_outdated(self, url: str, reply: protocol.GenerateReply, floor: int | None) -> bool:
    """Returns whether a reply has tokens of older weights than servers had when it was asked for.

    Then its server was restarted, unseen, with the weights of its start: it is lost.
    """
    oldest = min((version for version, _, _ in reply.weight_versions), default=floor)
    if floor is None or oldest is None or oldest >= floor:
      return False
    self._router.lost(
      url, f'{url}: answers with weights {oldest}, wanted {floor} or later; was it restarted?'
    )
    return True

  async def _ask_some_server(
    self, affinity: int, images: _Images, payload: _Payload, event: _Event
  ) -> tuple[str, int, bytes] | None:
    """Returns as `_ask_one_server`, from the server of an affinity or the one that a gateway
    chooses.
    """
    if self._passage is not None:
      with self._timeline.busy('servers behind the router'):
        return await self._passage.ask(affinity, images, payload, event)
    url = await self._router.choose(affinity)
    with self._timeline.busy(f'server {urllib.parse.urlsplit(url).netloc}'):
      return await self._ask_one_server(url, images, payload, event)

  async def _ask_one_server(
    self, url: str, images: _Images, payload: _Payload, event: _Event
  ) -> tuple[str, int, bytes] | None:
    """Returns (url, status, body) once the gate is open. None if the server was lost."""
    gone = self._router.started(url)
    work = asyncio.ensure_future(self._ask(url, gone, images, payload, event))
    leave = asyncio.ensure_future(gone.wait())
    try:
      await asyncio.wait({work, leave}, return_when=asyncio.FIRST_COMPLETED)
      if gone.is_set():
        return None
      # A reply counts only once the gate is open, because a closed gate means unproven weights.
      came = work.result()
      await self._router.passed(url)
      return None if gone.is_set() else (url, *came)
    except Lost as error:
      self._router.lost(url, str(error))
      return None
    finally:
      self._router.finished(url, gone)
      work.cancel()
      leave.cancel()
      await asyncio.gather(work, leave, return_exceptions=True)

  async def _ask(
    self, url: str, life: object, images: _Images, payload: _Payload, event: _Event
  ) -> tuple[int, bytes]:
    """Sends until the connection succeeds.

    A 5xx reply counts as a lost connection, except a 500 from a server that still answers.
    """

    async def send(image_data: Sequence[object]) -> tuple[int, bytes]:
      return await self.once('POST', f'{url}/generate', payload(url, image_data), on_event=event)

    for attempt in range(self.options.retries + 1):
      status, reply = await self.trying(lambda _: self.images.request(url, life, images, send))
      if status < 500:
        return status, reply
      # a dying server may reply 500 just before it exits
      await asyncio.sleep(self.options.backoff_s)
      if status == 500 and await self.ready(url, _NOTICE_S):
        return status, reply
      if attempt < self.options.retries:
        await self.back_off(attempt)
    raise Lost(
      f'POST {url}/generate: got status {status} {attempt + 1} times; the server says: '
      f'{excerpt(reply)}'
    )

  def _abandon(self, rid: str) -> None:
    """Aborts the request on the server in the background, because it notices a closed connection
    late.
    """
    if rid in self._sent and self._session is not None:
      task = asyncio.create_task(self._send_abort(*self._sent[rid]))
      self._tasks.add(task)
      task.add_done_callback(self._tasks.discard)

  async def _send_abort(self, url: str, wire: str) -> None:
    # Whoever has a request behind a gateway is not known, and others ignore an unknown rid.
    urls = (url,) if self._passage is None else self._router.up_urls()
    await asyncio.gather(*(self._abort_one(one, wire) for one in urls))

  async def _abort_one(self, url: str, wire: str) -> None:
    try:
      await self.once(
        'POST', f'{url}/abort_request', orjson.dumps({'rid': wire}), timeout_s=_NOTICE_S
      )
    except RolloutError:
      self.counts['abort_failed'] += 1


def resumed_seed(seed: int, done: int) -> int:
  """Returns the sampling seed (31 bits) of a request that resumes after `done` tokens.

  A new seed avoids repeating the same draws.
  """
  return seed if done == 0 else seeds.at(seed, 'resume', done) & 0x7FFFFFFF


def _stream_to(on_tokens: Callable[[list[int]], None], done: list[int], vocab_size: int) -> _Event:
  """Returns a callback that passes the ids of stream events, after `done`, to `on_tokens`."""

  def event(data: bytes) -> None:
    on_tokens(done + _ids_of(data, vocab_size))

  return event


def _ids_of(event: bytes, vocab_size: int) -> list[int]:
  """Returns the ids of a stream event for display, or none if it has no valid ids.

  The final reply is complete and is checked separately.
  """
  try:
    ids = orjson.loads(event)['output_ids']
  except (orjson.JSONDecodeError, KeyError, TypeError):
    return []
  right = isinstance(ids, list) and all(
    type(token) is int and 0 <= token < vocab_size for token in ids
  )
  return ids if right else []


def _concatenate(parts: list[protocol.GenerateReply], finish: str) -> Sampled:
  ids = [token for part in parts for token in part.output_ids]
  logprobs = [value for part in parts for value in part.logprobs]
  versions = np.concatenate([part.versions() for part in parts])
  return Sampled(
    np.asarray(ids, np.int32), np.asarray(logprobs, np.float32), versions.astype(np.int32), finish
  )


def check(
  request: protocol.GenerateRequest, reply: protocol.GenerateReply, vocab_size: int
) -> None:
  """Compares a reply with its request.

  Raises:
    RolloutError: too many ids, one out of range or banned, an invalid log-prob, version spans
      that do not cover the ids, an unknown finish reason, or numbers of image or prompt tokens that
      are not our own (the server resized our frames, say).
  """
  check_counts(request, reply)
  ids, where = reply.output_ids, f'reply to {request.rid}'
  if reply.finish not in protocol.FINISH_REASONS:
    raise RolloutError(
      f'{where}: got finish reason {reply.finish!r}, wanted one of {protocol.FINISH_REASONS}'
    )
  if len(ids) != len(reply.logprobs):
    raise RolloutError(
      f'{where}: got {len(ids)} ids and {len(reply.logprobs)} log-probs, wanted as many of each'
    )
  if len(ids) > request.max_new_tokens:
    raise RolloutError(f'{where}: got {len(ids)} ids, wanted at most {request.max_new_tokens}')
  if ids and (min(ids) < 0 or max(ids) >= vocab_size):
    raise RolloutError(
      f'{where}: got ids in {min(ids)}..{max(ids)}, wanted 0..{vocab_size - 1}; does the server '
      'hold another model?'
    )
  banned = set(request.banned_ids).intersection(ids)
  if banned:
    raise RolloutError(f'{where}: got banned id {min(banned)}; does the server honour logit_bias?')
  if not all(math.isfinite(value) and value <= _ROUNDING for value in reply.logprobs):
    raise RolloutError(
      f'{where}: got a log-prob that is not finite or above 0; is return_logprob served?'
    )
  edges = [0, *(end for _, _, end in reply.weight_versions)]
  if edges[-1] != len(ids) or [start for _, start, _ in reply.weight_versions] != edges[:-1]:
    raise RolloutError(
      f'{where}: got weight version spans {reply.weight_versions}, wanted them to cover '
      f'{len(ids)} ids '
      'in order'
    )


def check_counts(request: protocol.GenerateRequest, reply: protocol.GenerateReply) -> None:
  """Compares the server's token counts of a prompt with our own counts.

  SGLang counts nothing of a request that is aborted before it has looked at the prompt.

  Raises:
    RolloutError: the counts differ, so the server resized our frames or changed our ids.
  """
  if reply.finish == 'abort' and not reply.output_ids and not reply.prompt_tokens:
    return
  expected = image_tokens(request.images)
  if reply.image_tokens != expected:
    raise RolloutError(
      f'reply to {request.rid}: the server counts {reply.image_tokens} image tokens, we '
      f'{expected}: it resized '
      'our frames; set size to {"shortest_edge": 1024, "longest_edge": 50176} in the served '
      'preprocessor_config.json'
    )
  prompt = len(request.input_ids) + expected - len(request.images)
  if reply.prompt_tokens != prompt:
    raise RolloutError(
      f'reply to {request.rid}: the server counts {reply.prompt_tokens} prompt tokens, we '
      f'{prompt}: it does not '
      'keep our ids; is it SGLang 0.5.21 or later?'
    )

"""A scripted rollout server: a function computes its replies.

It implements the HTTP API of `serving/protocol` and runs in a separate thread.

    with ScriptedServer(lambda request: Reply(ids=(5, 6, 2))) as server:
      router = Router((server.url,))

The function receives each `/generate` request. It returns a `Reply`, or one of the failures of a
server: `Hang`, `Die`, `Garbage`, `Refuse`.
"""

import asyncio
import base64
import dataclasses
import pathlib
import struct
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from aiohttp import web

from paravt_jax.serving import images as by_content

_START_S = 300.0  # limit for hangs; a normal start takes milliseconds
_SIDE = 32  # pixels of a merged token's side


@dataclasses.dataclass(frozen=True)
class Request:
  """A received `/generate` request."""

  rid: str
  input_ids: tuple[int, ...]
  images: tuple[tuple[int, int], ...]  # (height, width) each
  sampling: dict[str, Any]  # the body's sampling_params
  order: int  # number of earlier requests
  body: dict[str, Any]  # the whole body

  @property
  def paths(self) -> tuple[str, ...]:
    """Returns the file URLs among its images."""
    found = self.body.get('image_data', ())
    return tuple(text for text in found if text.startswith('file://'))


@dataclasses.dataclass(frozen=True)
class Reply:
  """A successful reply of the server."""

  ids: Sequence[int]  # sampled token ids, stop token included
  finish: str = 'stop'  # stop | length | abort
  logprobs: Sequence[float] | None = None  # None: -0.5 each
  # (version, start, end) spans; None: the server's version for all tokens
  versions: Sequence[tuple[int, int, int]] | None = None
  image_tokens: int | None = None  # None: counted from the request
  prompt_tokens: int | None = None  # None: counted from the request
  cached_tokens: int = 0
  delay: float = 0.0  # seconds before the reply is sent
  until: threading.Event | None = None  # the reply waits for this to be set
  broken_after: int | None = None  # number of events after which a stream breaks off


@dataclasses.dataclass(frozen=True)
class Hang:
  """The server never replies."""


@dataclasses.dataclass(frozen=True)
class Die:
  """The server closes the connection without a reply."""


@dataclasses.dataclass(frozen=True)
class Garbage:
  """The server sends status 200 and an invalid body."""

  body: bytes = b'<html>not a rollout server</html>'
  kind: str = 'application/json'  # content type


@dataclasses.dataclass(frozen=True)
class Refuse:
  """The server sends an error status and a text."""

  status: int = 400
  text: str = 'refused'


Script = Callable[[Request], Reply | Hang | Die | Garbage | Refuse]


def turns(*replies: Reply | Hang | Die | Garbage | Refuse) -> Script:
  """Returns a script that replies to the requests in order of arrival; the last reply repeats."""
  return lambda request: replies[min(request.order, len(replies) - 1)]


class ScriptedServer:
  """A rollout server whose `script` computes the replies; see the module docstring.

  Args:
    script: maps each `/generate` request to a reply or failure.
    api_key: the key that requests must send; None accepts every request.
    weights_ok: False refuses weight updates; or a function of the folder that says so.
    ready_after: number of health checks that fail first; until then `/get_model_info` fails, too.
    facts: extra fields of `/get_server_info`.
    port: 0 for a free one.
    images_kept: number of images that it keeps by content; None: it has no such path, as SGLang.
    reads_files: True accepts images by file URL, as SGLang.

  Attributes:
    requests: all `/generate` requests received.
    commands: (path, body) of all control commands received.
    uploads: the names of the images of each upload.
    silent: True accepts requests without replying, like a stopped process.
  """

  def __init__(
    self,
    script: Script,
    *,
    api_key: str | None = None,
    weights_ok: bool | Callable[[str], bool] = True,
    ready_after: int = 0,
    facts: dict[str, Any] | None = None,
    port: int = 0,
    images_kept: int | None = None,
    reads_files: bool = False,
  ):
    self.script = script
    self.weights_ok, self.silent = weights_ok, False
    self.facts = {'version': 'paravt_jax', **(facts or {})}
    self.paused = False
    self.requests: list[Request] = []
    self.commands: list[tuple[str, dict[str, Any]]] = []
    self.connections: set[object] = set()
    self.most_at_once = 0
    self.url = ''
    self._api_key = api_key
    self._ready_after = ready_after
    self._port = port
    self._images_kept = images_kept
    self._reads_files = reads_files
    self._images: dict[str, tuple[int, int]] = {}  # name -> (height, width)
    self.uploads: list[tuple[str, ...]] = []
    self._at_once = 0
    self._weights: tuple[str, str] = ('', 'default')
    self._loop = asyncio.new_event_loop()
    self._started = threading.Event()
    self._thread = threading.Thread(target=self._main, name='scripted-server', daemon=True)

  def __enter__(self):
    self._thread.start()
    if not self._started.wait(_START_S):
      raise RuntimeError(f'scripted server: did not listen within {_START_S:g} s')
    return self

  def __exit__(self, *exception):
    self._loop.call_soon_threadsafe(self._stop.set)
    self._thread.join(_START_S)

  def forget(self) -> None:
    """Drops its weights for those of its start, as a restart at the same address does."""
    self._weights = ('', 'default')

  def _main(self) -> None:
    asyncio.set_event_loop(self._loop)
    self._loop.run_until_complete(self._serve())
    self._loop.close()

  async def _serve(self) -> None:
    self._stop = asyncio.Event()
    app = web.Application(client_max_size=2**30, middlewares=[self._door])
    app.router.add_post('/generate', self._generate)
    if self._images_kept is not None:
      app.router.add_post(by_content.PATH, self._receive_images)
    app.router.add_get('/health', self._health)
    app.router.add_get('/ready', self._ready)
    app.router.add_get('/get_model_info', self._info)
    app.router.add_get('/get_server_info', self._facts)
    app.router.add_get('/v1/models', self._models)
    for path in (
      '/update_weights_from_disk',
      '/pause_generation',
      '/continue_generation',
      '/abort_request',
      '/flush_cache',
    ):
      app.router.add_post(path, self._command)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', self._port)
    await site.start()
    self.url = f'http://127.0.0.1:{runner.addresses[0][1]}'
    self._started.set()
    await self._stop.wait()
    await runner.cleanup()

  def _allowed(self, request: web.Request) -> bool:
    return (
      self._api_key is None or request.headers.get('Authorization') == f'Bearer {self._api_key}'
    )

  @web.middleware
  async def _door(self, request: web.Request, handler: Any) -> web.StreamResponse:
    if self.silent:
      await self._stop.wait()
    if request.path != '/health' and not self._allowed(request):
      return web.Response(status=401, text='wrong api key')
    return await handler(request)

  async def _generate(self, http: web.Request) -> web.StreamResponse:
    self.connections.add(http.transport)
    self._at_once += 1
    self.most_at_once = max(self.most_at_once, self._at_once)
    try:
      return await self._answer(http, orjson.loads(await http.read()))
    finally:
      self._at_once -= 1

  async def _answer(self, http: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    try:
      images = self._sizes(body.get('image_data', ()))
    except by_content.MissingImages as error:
      return web.json_response(error.to_json(), status=by_content.MISSING_STATUS)
    request = Request(
      body['rid'],
      tuple(body['input_ids']),
      images,
      body['sampling_params'],
      len(self.requests),
      body,
    )
    self.requests.append(request)
    outcome = self.script(request)
    if isinstance(outcome, Hang):
      await self._stop.wait()
      return web.Response(status=503)
    if isinstance(outcome, Die):
      _hang_up(http)
      return web.Response()
    if isinstance(outcome, Garbage):
      return web.Response(body=outcome.body, content_type=outcome.kind)
    if isinstance(outcome, Refuse):
      return web.Response(status=outcome.status, text=outcome.text)
    await asyncio.sleep(outcome.delay)
    while outcome.until is not None and not outcome.until.is_set() and not self._stop.is_set():
      await asyncio.sleep(0.01)
    if body.get('stream'):
      return await self._stream(http, request, outcome)
    return web.Response(
      body=orjson.dumps(reply_json(request, outcome, self._weights[1])),
      content_type='application/json',
    )

  def _sizes(self, image_data: Sequence[str]) -> tuple[tuple[int, int], ...]:
    missing = [
      text
      for text in dict.fromkeys(image_data)
      if by_content.is_name(text) and text not in self._images
    ]
    if missing:
      raise by_content.MissingImages(missing)
    return tuple(self._images.get(text) or png_size(self._text(text)) for text in image_data)

  def _text(self, text: str) -> str:
    """Returns the base64 text of an image that is one, or a file URL."""
    if not (self._reads_files and text.startswith('file://')):
      return text
    content = pathlib.Path(urllib.parse.urlparse(text).path).read_bytes()
    return base64.b64encode(content).decode()

  async def _receive_images(self, http: web.Request) -> web.Response:
    received = by_content.unpack(await http.read(), 1 << 18)
    names = tuple(by_content.content_name(image) for image in received)
    self._images |= dict.fromkeys(names, received.shape[1:3])
    while len(self._images) > (self._images_kept or 0):
      del self._images[next(iter(self._images))]
    self.uploads += [names] if names else []
    return web.json_response({'images': names})

  def forget_images(self) -> None:
    """Drops all images, as a restart does."""
    self._images = {}

  async def _stream(self, http: web.Request, request: Request, reply: Reply) -> web.StreamResponse:
    """Streams the reply as SGLang does.

    Each token has one event with all ids so far. The last event also has the finish reason.
    """
    response = web.StreamResponse(headers={'Content-Type': 'text/event-stream'})
    await response.prepare(http)
    whole = reply_json(request, reply, self._weights[1])
    for number in range(1, len(whole['output_ids'])):
      if number - 1 == reply.broken_after:
        _hang_up(http)
        return response
      begun = {
        **whole,
        'output_ids': whole['output_ids'][:number],
        'meta_info': {'finish_reason': None},
      }
      await response.write(b'data: ' + orjson.dumps(begun) + b'\n\n')
    await response.write(b'data: ' + orjson.dumps(whole) + b'\n\ndata: [DONE]\n\n')
    return response

  async def _health(self, http: web.Request) -> web.Response:
    self._ready_after -= 1
    return web.Response(status=503 if self._ready_after >= 0 else 200)

  async def _ready(self, http: web.Request) -> web.Response:
    """Replies 503 while paused, as SGLang does."""
    return web.Response(status=503) if self.paused else await self._health(http)

  async def _info(self, http: web.Request) -> web.Response:
    if self._ready_after > 0:
      return web.Response(status=503)
    return web.json_response({'model_path': self._weights[0], 'weight_version': self._weights[1]})

  async def _facts(self, http: web.Request) -> web.Response:
    return web.json_response(self.facts)

  async def _models(self, http: web.Request) -> web.Response:
    """Tells SGLang's router that this server speaks SGLang's protocol."""
    return web.json_response({'data': [{'id': 'scripted', 'owned_by': 'sglang'}]})

  async def _command(self, http: web.Request) -> web.Response:
    body = orjson.loads(await http.read() or b'{}')
    self.commands.append((http.path, body))
    if http.path != '/update_weights_from_disk':
      self.paused = {'/pause_generation': True, '/continue_generation': False}.get(
        http.path, self.paused
      )
      return web.Response(text='ok')
    ok = self.weights_ok
    if not (ok(body['model_path']) if callable(ok) else ok):
      return web.json_response({'success': False, 'message': 'wrong shapes'}, status=400)
    self._weights = (body['model_path'], body['weight_version'])
    return web.json_response({'success': True, 'message': 'ok'})


def _hang_up(http: web.Request) -> None:
  """Closes the connection of a request, unless the other side has closed it."""
  if http.transport is not None:
    http.transport.close()


def reply_json(request: Request, reply: Reply, version: str = 'default') -> dict[str, Any]:
  """Returns the body of a reply in SGLang's format; `version` is that of the server's weights."""
  ids = [int(token) for token in reply.ids]
  logprobs = (
    [-0.5] * len(ids) if reply.logprobs is None else [float(value) for value in reply.logprobs]
  )
  spans = [(version, 0, len(ids))] if reply.versions is None else reply.versions
  counted = sum((height // _SIDE) * (width // _SIDE) for height, width in request.images)
  return {
    'text': '',
    'output_ids': ids,
    'meta_info': {
      'id': request.rid,
      'finish_reason': {'type': reply.finish},
      'completion_tokens': len(ids),
      'cached_tokens': reply.cached_tokens,
      'prompt_tokens': (
        len(request.input_ids) + counted - len(request.images)
        if reply.prompt_tokens is None
        else reply.prompt_tokens
      ),
      'image_tokens': counted if reply.image_tokens is None else reply.image_tokens,
      'weight_version': str(spans[-1][0]) if spans else 'default',
      'weight_versions': [
        {'version': str(version), 'start': start, 'end': end} for version, start, end in spans
      ],
      'num_retractions': 0,
      'output_token_logprobs': [[logprob, token, None] for logprob, token in zip(logprobs, ids)],
    },
  }


def png_size(text: str) -> tuple[int, int]:
  """Returns (height, width) of a base64 PNG from its header. Raises ValueError if it is no PNG."""
  header = base64.b64decode(text[:44])
  if header[:8] != b'\x89PNG\r\n\x1a\n':
    raise ValueError(f'scripted server: got an image that begins with {header[:8]!r}, wanted PNG')
  width, height = struct.unpack('>II', header[16:24])
  return height, width

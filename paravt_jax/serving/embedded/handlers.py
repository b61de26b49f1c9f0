"""SGLang's HTTP protocol over an engine: one handler per path, and errors as JSON."""

import asyncio
import contextlib
import functools
import pathlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import jax
import numpy as np
import orjson
from aiohttp import web

from paravt_jax import seeds
from paravt_jax.errors import ConfigError, DataError, SyncError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving import changes, images, manifest, publish, reading
from paravt_jax.serving.base_model import BaseModel
from paravt_jax.serving.embedded import openai, programs, replies
from paravt_jax.serving.embedded.engine import Engine, Job
from paravt_jax.serving.embedded.images import ImagePatches, ImageStore, cut
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.embedded.prompts import Prompt, expand
from paravt_jax.serving.embedded.replies import json_body, json_reply, raw_body
from paravt_jax.serving.fields import finite, flag, request_id, short_repr, text
from paravt_jax.serving.protocol import (
  FIRST_VERSION,
  GenerateReply,
  ParsedGenerate,
  RequestError,
  parse_generate,
  version_number,
)

PAUSE_MODES = ('retract', 'abort', 'in_place')


Events = asyncio.Queue[
  tuple[GenerateReply, dict[str, Any] | None]
]  # events of one request; only the last one has a reason


class Server:
  """HTTP handlers of one engine.

  The handlers run on the event loop. The engine runs on its own thread.
  """

  def __init__(self, engine: Engine, options: ServerOptions):
    self.engine, self.options = engine, options
    self.model_path, self.weight_version = options.model_path, FIRST_VERSION
    self.image_store = ImageStore(options.image_cache_mb << 20, options.max_image_patches)
    self._abstract = model.abstract_params(engine.config)
    self._names = tuple(manifest.leaves(self._abstract))
    self._hashes: dict[str, str] = {}  # of the served arrays that versions left out
    self._replaced: set[str] = set()  # arrays that differ from those of the first folder
    self._rids: set[str] = set()
    self._updating = asyncio.Lock()

  @property
  def vocab_size(self) -> int:
    """Returns the rows of the embedding table: ids are below it."""
    return self.engine.config.text.vocab

  def app(self) -> web.Application:
    """Returns the aiohttp application with its routes."""
    app = web.Application(
      client_max_size=self.options.max_body_mb << 20,
      middlewares=[openai.error_shape, replies.errors, replies.key(self.options.api_key)],
    )
    app.add_routes(
      [
        web.post(path, handler)
        for path, handler in {
          '/generate': self.generate,
          images.PATH: self.receive_images,
          '/update_weights_from_disk': self.update_weights,
          '/pause_generation': self.pause,
          '/continue_generation': self.resume,
          '/abort_request': self.abort,
          '/flush_cache': self.flush,
        }.items()
      ]
    )
    app.add_routes(
      [
        web.get(path, handler)
        for path, handler in {
          '/health': self.health,
          '/ready': self.health,
          '/get_model_info': self.model_info,
          '/get_server_info': self.server_info,
          '/flush_cache': self.flush,
        }.items()
      ]
    )
    app.add_routes(openai.OpenAI(self).routes())
    return app

  async def generate(self, request: web.Request) -> web.StreamResponse:
    """POST /generate: see `protocol`.

    With stream=true it sends server-sent events, each with all tokens so far.
    """
    start = time.monotonic()
    parsed = parse_generate(await json_body(request), self.vocab_size)
    async with self.running(parsed, self._prompt(parsed)) as (rid, events):
      if parsed.stream:
        return await _stream(request, rid, events, start)
      reply, reason = await events.get()
      return json_reply(check_finite(reply).to_json(rid, reason, time.monotonic() - start))

  @contextlib.asynccontextmanager
  async def running(
    self, parsed: ParsedGenerate, prompt: Prompt
  ) -> AsyncIterator[tuple[str, 'Events']]:
    """Runs one request inside the block. Yields its rid and its events."""
    events: Events = asyncio.Queue()
    job = self._job(parsed, prompt, events)
    self._rids.add(job.rid)
    self.engine.submit(job)
    try:
      yield job.rid, events
    except (asyncio.CancelledError, ConnectionError):  # the client closed the connection
      self.drop(job.rid, 'client disconnected')
      raise
    finally:
      self._rids.discard(job.rid)

  def drop(self, rid: str, why: str) -> None:
    """Aborts a request. Its last event has the tokens so far."""
    self.engine.call(lambda: self.engine.abort(lambda job: job.rid == rid, why), lambda _: None)

  async def receive_images(self, request: web.Request) -> web.Response:
    """POST /images: pixels for later requests that name them, see `serving.images`."""
    raw = await raw_body(request)
    received = await asyncio.to_thread(self._cut, raw)
    for image in received:
      self.image_store.add(image)
    return json_reply({'images': [image.name for image in received]})

  def _cut(self, raw: bytes) -> list[ImagePatches]:
    return [cut(image) for image in images.unpack(raw, self.options.max_image_patches)]

  def _prompt(self, parsed: ParsedGenerate) -> Prompt:
    # Refuse a request that is far too long before its images are decoded.
    if len(parsed.input_ids) > self.options.context:
      raise RequestError(
        f'input_ids: got {len(parsed.input_ids)} ids, wanted at most {self.options.context} '
        'with new tokens'
      )
    if len(set(parsed.image_data)) > self.options.image_slots:
      raise RequestError(
        f'image_data: got {len(parsed.image_data)} images, this server keeps '
        f'{self.options.image_slots}; raise image_slots'
      )
    return self.expanded(parsed.input_ids, self.image_store.get_all(parsed.image_data))

  def expanded(self, ids: list[int], found: tuple[ImagePatches, ...]) -> Prompt:
    """Returns the prompt of ids, with one placeholder per image.

    Raises:
      RequestError: the numbers of placeholders and images differ.
    """
    return expand(ids, found, self.engine.config.image_id, self.options.chunk_tokens)

  def _job(self, parsed: ParsedGenerate, prompt: Prompt, events: 'Events') -> Job:
    rid = uuid.uuid4().hex if parsed.rid is None else parsed.rid
    if rid in self._rids:
      raise RequestError(
        f'rid: got {short_repr(rid)}, which is running already; wanted one that is unique'
      )
    stops = frozenset(parsed.stop_token_ids) | frozenset(
      () if parsed.ignore_eos else self.options.eos_token_ids
    )
    if len(stops) > self.options.max_stop_ids:
      raise RequestError(
        f'stop_token_ids: got {len(stops)} with the end-of-text ids, this server '
        f'takes {self.options.max_stop_ids}; raise max_stop_ids'
      )
    loop = asyncio.get_running_loop()

    def answer(reply: GenerateReply, reason: dict[str, Any] | None) -> None:
      loop.call_soon_threadsafe(events.put_nowait, (reply, reason))

    seed = seeds.at('serving', rid) if parsed.seed is None else parsed.seed
    return Job(
      rid, prompt, prompt, self._lane(prompt, parsed.max_new_tokens), parsed, seed, stops, answer
    )

  def _lane(self, prompt: Prompt, budget: int) -> int:
    for number, (context, _) in enumerate(self.options.lanes):
      if len(prompt) + budget <= context:
        return number
    raise RequestError(
      f'prompt of {len(prompt)} tokens (images expanded) + max_new_tokens {budget} = '
      f'{len(prompt) + budget}, '
      f'wanted at most {self.options.context}; shorten the prompt or lower max_new_tokens'
    )

  async def _in_engine(self, function: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def done(result: Any) -> None:  # on the engine's thread
      loop.call_soon_threadsafe(future.set_result, result)

    self.engine.call(function, done)
    return await future

  async def update_weights(self, request: web.Request) -> web.Response:
    """POST /update_weights_from_disk {model_path, weight_version}.

    It verifies the new weights first, and keeps the old weights after any error.
    """
    body = await json_body(
      request, ('model_path', 'weight_version', 'abort_all_requests', 'flush_cache')
    )
    folder = text('model_path', body.get('model_path'))
    wanted = _version(body.get('weight_version'))
    everyone = flag('abort_all_requests', body.get('abort_all_requests', False))
    # This is only checked. The cache is always flushed: old pages are invalid under new weights.
    flag('flush_cache', body.get('flush_cache', True))
    async with self._updating:
      try:
        version, params = await asyncio.to_thread(self._load, folder, wanted)
      except (SyncError, DataError, ConfigError) as error:
        return json_reply({'success': False, 'message': str(error)}, 400)
      if everyone:
        await self._in_engine(
          lambda: self.engine.abort(lambda job: True, 'update_weights_from_disk')
        )
      await self._swap(params, version)
      self.model_path = folder
      self.weight_version = str(version)
    return json_reply(
      {
        'success': True,
        'message': f'weights of {folder} as version {version}',
        'num_paused_requests': 0,
      }
    )

  async def _swap(self, params: Any, version: int) -> None:
    """Returns when the engine samples with these weights."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def done() -> None:  # on the engine's thread
      loop.call_soon_threadsafe(future.set_result, None)

    self.engine.call(lambda: self.engine.update(params, version, done), lambda _: None)
    await future

  def _load(self, folder: str, wanted: str | int | None) -> tuple[int, Any]:
    # Read a published version (manifest.json) or a Hugging Face folder (config.json).
    path = pathlib.Path(folder)
    if not _is_folder(path):
      raise SyncError(
        f'model_path: {short_repr(str(path))} is no folder here, wanted a published version (with '
        'manifest.json) or a '
        'Hugging Face folder'
      )
    kept = self._own
    if (path / publish.MANIFEST).exists() or not (path / 'config.json').exists():
      if publish.read_manifest(path).adapter is not None:
        # an adapter is a change of the folder's weights, whatever is served now
        page, params = self._base.load(path)
        version, kept = page.version, self._own_or_base
      elif changes.is_changes(path):
        version, params = self._changed(path)
      else:
        version, params = reading.load(
          path, self._abstract, {name: self._own_hash(name) for name in self._names}
        )
    else:
      config, params = weights.load_hf(path)
      version = self.engine.version
      if config != self.engine.config:
        raise SyncError(
          f'{path}: config.json is of another model than the one served; publish the model '
          'that was started'
        )
    version = version if wanted is None else version_number(wanted)
    # A version leaves out frozen arrays: take them from the served model.
    new = manifest.leaves(params)
    whole = manifest.nest({name: new[name] if name in new else kept(name) for name in self._names})
    prepared = jax.block_until_ready(
      programs.prepare(self.engine.config, whole, self.options.dtype, self.engine.shapes.place)
    )
    self._hashes = {name: found for name, found in self._hashes.items() if name not in new}
    self._replaced |= new.keys()
    return version, prepared

  def _changed(self, path: pathlib.Path) -> tuple[int, Any]:
    """Returns a version that is written as changes of the one that is served. Raises SyncError."""
    own = {name: self._own_hash(name) for name in self._names}
    page = reading.check(path, self._abstract, own)
    base, served = changes.base(path), self.engine.version
    if base != served:
      raise SyncError(f'{path}: changes version {base}, served is {served}; send the whole version')
    for name, entry in page.arrays.items():
      if np.dtype(entry.dtype).itemsize > np.dtype(self.options.dtype).itemsize:
        raise SyncError(
          f'{path}: {name!r} is {entry.dtype}, and served as {self.options.dtype}, from which its '
          'bits cannot be told; send the whole version'
        )
    old = {
      name: np.asarray(self._own_whole(name)).astype(entry.dtype)
      for name, entry in page.arrays.items()
    }
    return page.version, manifest.nest(changes.apply(path, page, old))

  @functools.cached_property
  def _base(self) -> BaseModel:
    """The folder that the server was started with, which adapters are a change of."""
    return BaseModel(self.options.model_path)

  def _own_or_base(self, name: str) -> Any:
    """Returns an array of the folder that the server was started with."""
    return self._base.read(name) if name in self._replaced else self._own(name)

  def _own(self, name: str) -> Any:
    """Returns the served array of this name.

    For text layers, which are separate, it returns an object that `[i]` indexes.
    """
    return functools.reduce(
      lambda node, key: node[key], name.split('/'), programs.with_indexed_layers(self.engine.params)
    )

  def _own_whole(self, name: str) -> Any:
    """Returns the served array of this name, with its layers stacked."""
    own = self._own(name)
    if hasattr(own, 'shape'):
      return own
    return np.stack([own[i] for i in range(self.engine.config.text.layers)])

  def _own_hash(self, name: str) -> Callable[[], str]:
    def compute() -> str:
      if name not in self._hashes:
        self._hashes |= manifest.frozen_hashes({name: self._own_whole(name)})
      return self._hashes[name]

    return compute

  async def pause(self, request: web.Request) -> web.Response:
    """POST /pause_generation {mode: retract | abort | in_place}.

    The default mode is abort, as in SGLang.
    """
    mode = (await json_body(request, ('mode',))).get('mode', 'abort')
    if mode not in PAUSE_MODES:
      raise RequestError(f'mode: got {short_repr(mode)}, wanted one of {PAUSE_MODES}')
    await self._in_engine(lambda: self.engine.pause(mode))
    return json_reply({'status': 'ok', 'message': f'paused ({mode})'})

  async def resume(self, request: web.Request) -> web.Response:
    """POST /continue_generation {}."""
    await json_body(request, ())
    await self._in_engine(self.engine.resume)
    return json_reply({'status': 'ok', 'message': 'running'})

  async def abort(self, request: web.Request) -> web.Response:
    """POST /abort_request {rid} or {abort_all: true}.

    Aborted requests are answered with their tokens so far.
    """
    body = await json_body(request, ('rid', 'abort_all'))
    rid, everyone = body.get('rid'), flag('abort_all', body.get('abort_all', False))
    if not everyone:
      request_id('rid', rid)

    def is_chosen(job: Job) -> bool:
      return everyone or job.rid == rid

    count = await self._in_engine(lambda: self.engine.abort(is_chosen, 'abort_request'))
    return json_reply({'aborted': count})

  async def flush(self, request: web.Request) -> web.Response:
    """GET or POST /flush_cache. Status 400 while any request runs."""
    await json_body(request, ())
    if await self._in_engine(self.engine.flush):
      return json_reply({'success': True})
    raise RequestError(
      'flush_cache: requests are running, wanted an idle server; pause or wait first'
    )

  async def health(self, request: web.Request) -> web.Response:
    """GET /health, /ready. They answer at once, paused or not."""
    return web.Response()

  async def model_info(self, request: web.Request) -> web.Response:
    """GET /get_model_info."""
    return json_reply(
      {
        'model_path': self.model_path,
        'tokenizer_path': self.options.model_path,
        'is_generation': True,
        'weight_version': self.weight_version,
        'paused': self.engine.paused,
      }
    )

  async def server_info(self, request: web.Request) -> web.Response:
    """GET /get_server_info: options and cumulative counts."""
    options = orjson.loads(self.options.to_json())
    running = [len(lane.running) for lane in self.engine.lanes]
    return json_reply(
      {
        'version': 'paravt_jax',
        'weight_version': self.weight_version,
        'options': options,
        'counts': self.engine.counts,
        'images': self.image_store.counts | self.image_store.size,
        'running': running,
        'waiting': len(self.engine.waiting),
      }
    )


def check_finite(reply: GenerateReply) -> GenerateReply:
  """Returns the reply, or raises SyncError if a log-prob is not finite.

  JSON cannot express such a value, and no training could use it.
  """
  if not finite(reply.logprobs):
    raise SyncError(
      f'/generate: weights of version {reply.weight_versions[-1][0]} give log-probs that are '
      'not finite; '
      'load other weights with /update_weights_from_disk'
    )
  return reply


async def _stream(
  request: web.Request, rid: str, events: Events, start: float
) -> web.StreamResponse:
  """Streams a job's tokens until it ends.

  Tokens that arrive while an event is being sent go into the next event together.
  """
  response = web.StreamResponse(
    headers={'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache'}
  )
  await response.prepare(request)
  reason = None
  while reason is None:
    reply, reason = await events.get()
    while reason is None and not events.empty():
      reply, reason = events.get_nowait()
    if not finite(reply.logprobs) and reason is None:
      continue  # the last event contains these tokens too
    try:
      body = check_finite(reply).to_json(rid, reason, time.monotonic() - start)
    except SyncError as error:
      body = {'error': {'message': str(error)}}
    await response.write(b'data: ' + orjson.dumps(body) + b'\n\n')
  await response.write(b'data: [DONE]\n\n')
  await response.write_eof()
  return response


def _is_folder(path: pathlib.Path) -> bool:
  try:
    return path.is_dir()
  except OSError:  # the name is too long for the file system
    return False


def _version(value: Any) -> int | None:
  try:
    return None if value is None else version_number(value)
  except ValueError as error:
    raise RequestError(str(error)) from error

"""OpenAI's protocol over the same engine: `/v1/models` and `/v1/chat/completions`."""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ChatError, RolloutError, SyncError
from paravt_jax.serving.embedded import openai_reply, openai_request
from paravt_jax.serving.embedded.images import ImagePatches, cut
from paravt_jax.serving.embedded.openai_request import ChatRequest
from paravt_jax.serving.embedded.prompts import Prompt
from paravt_jax.serving.embedded.replies import json_body, json_reply
from paravt_jax.serving.fields import RequestError, finite, short_repr
from paravt_jax.serving.protocol import BANNED_BIAS, GenerateReply, ParsedGenerate

if TYPE_CHECKING:
  from paravt_jax.serving.embedded.handlers import Server

_UNKNOWN = re.compile(r"unknown key '(\w+)'")
_NAMED = re.compile(r'(\w+)[:\[.]')
_Events = AsyncIterator[tuple[GenerateReply, dict[str, Any] | None]]


class ModelNotFound(RolloutError):
  """A request names another model than the one that is served."""


class OpenAI:
  """The handlers of OpenAI's paths. The tokenizer is read when the first request comes."""

  def __init__(self, server: 'Server'):
    self._server = server
    self._options = server.options
    self._created = int(time.time())
    self._tokenizer: ChatTokenizer | None = None
    self._loading = asyncio.Lock()

  def routes(self) -> list[web.RouteDef]:
    """Returns the routes."""
    return [
      web.get('/v1/models', self.models),
      web.get('/v1/models/{name:.+}', self.model),
      web.post(openai_request.PATH, self.complete),
    ]

  async def models(self, request: web.Request) -> web.Response:
    """GET /v1/models."""
    return json_reply({'object': 'list', 'data': [self._model()]})

  async def model(self, request: web.Request) -> web.Response:
    """GET /v1/models/{name}."""
    self._check_name(request.match_info['name'])
    return json_reply(self._model())

  def _model(self) -> dict[str, Any]:
    return {
      'id': self._options.served_name,
      'object': 'model',
      'created': self._created,
      'owned_by': 'paravt_jax',
      'max_model_len': self._options.context,
    }

  def _check_name(self, name: str) -> None:
    if name != self._options.served_name:
      raise ModelNotFound(
        f'model: got {short_repr(name)}, wanted {self._options.served_name!r}, which is served'
      )

  async def complete(self, request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions. With stream=true it sends server-sent events."""
    chat = openai_request.parse(await json_body(request), self._server.engine.config.text.vocab)
    self._check_name(chat.model)
    if chat.image_count > self._options.image_slots:
      raise RequestError(
        f'messages: got {chat.image_count} images, this server keeps {self._options.image_slots}; '
        'raise image_slots'
      )
    tok = await self._load()
    made, images = await asyncio.to_thread(self._prompt, tok, chat)
    if len(made.ids) > self._options.context:
      raise RequestError(
        f'messages: got {len(made.ids)} tokens, wanted at most {self._options.context} with new '
        'tokens; shorten the conversation'
      )
    for image in images:
      self._server.images.add(image)
    prompt = self._server.expanded(made.ids, images)
    parsed = self._parsed(tok, chat, prompt)
    ends = (tok.im_end, *self._options.eos_token_ids)
    writer = openai_reply.Writer(tok, made.begun, chat.stop, ends, chat.calls_tools)
    async with self._server.running(parsed, prompt) as (rid, events):
      head = {'id': f'chatcmpl-{rid}', 'created': int(time.time()), 'model': chat.model}
      replies = self._until_stop(rid, events.get, writer)
      if chat.stream:
        return await _stream(request, chat, head, replies, writer)
      reply, reason = [pair async for pair in replies][-1]
      turn = writer.turn(reply.output_ids, _cut_off(reason))
      return json_reply(openai_reply.completion(head, turn, _usage(reply)))

  async def _load(self) -> ChatTokenizer:
    async with self._loading:
      if self._tokenizer is None:
        try:
          self._tokenizer = await asyncio.to_thread(ChatTokenizer.load, self._options.model_path)
        except ChatError as error:
          raise SyncError(str(error)) from error
    return self._tokenizer

  def _prompt(
    self, tok: ChatTokenizer, chat: ChatRequest
  ) -> tuple[openai_request.ChatPrompt, tuple[ImagePatches, ...]]:
    made = openai_request.prompt(
      tok,
      chat,
      think_prefix=self._options.think_prefix,
      context=self._options.context,
      max_patches=self._options.max_image_patches,
    )
    return made, tuple(map(cut, made.images))

  def _parsed(self, tok: ChatTokenizer, chat: ChatRequest, prompt: Prompt) -> ParsedGenerate:
    """Returns the request to the engine, as agents send it: no image can be sampled."""
    remaining = self._options.context - len(prompt)
    if remaining < 1:
      raise RequestError(
        f'messages: got {len(prompt)} tokens with images, wanted less than '
        f'{self._options.context}; shorten the conversation'
      )
    banned = dict.fromkeys(tok.vision_ids, BANNED_BIAS)
    return ParsedGenerate(
      rid=uuid.uuid4().hex,
      input_ids=[],  # the prompt has them
      image_data=[],
      temperature=chat.temperature,
      top_p=chat.top_p,
      top_k=chat.top_k,
      max_new_tokens=remaining if chat.max_tokens is None else chat.max_tokens,
      stop_token_ids=(tok.im_end,),
      logit_bias=tuple(sorted({**dict(chat.logit_bias), **banned}.items())),
      seed=chat.seed,
      ignore_eos=False,
      return_logprob=False,
      stream=chat.stream or bool(chat.stop),
    )

  async def _until_stop(
    self,
    rid: str,
    following: Callable[[], Awaitable[tuple[GenerateReply, dict[str, Any] | None]]],
    writer: openai_reply.Writer,
  ) -> _Events:
    """Yields the events of a request until it ends, or until its text holds a stop text.

    Raises:
      SyncError: the request was aborted, or its log-probs are not finite.
    """
    reason = None
    while reason is None:
      reply, reason = await following()
      if not finite(reply.logprobs):
        raise SyncError('the weights give log-probs that are not finite; load other weights')
      _, stopped = writer.text(reply.output_ids)
      if stopped and reason is None:
        self._server.drop(rid, 'stop text')
      if stopped:
        reason = {'type': 'stop'}
      elif reason is not None and reason['type'] == 'abort':
        raise SyncError(f'the request was aborted ({reason.get("message", "")}); send it again')
      yield reply, reason


def _cut_off(reason: dict[str, Any] | None) -> bool:
  return reason is not None and reason['type'] == 'length'


def _usage(reply: GenerateReply) -> dict[str, Any]:
  return {
    'prompt_tokens': reply.prompt_tokens,
    'completion_tokens': len(reply.output_ids),
    'total_tokens': reply.prompt_tokens + len(reply.output_ids),
    'prompt_tokens_details': {'cached_tokens': reply.cached_tokens},
  }


async def _stream(
  request: web.Request,
  chat: ChatRequest,
  head: dict[str, Any],
  replies: _Events,
  writer: openai_reply.Writer,
) -> web.StreamResponse:
  """Streams a reply: each event has the new part of the text. An error is the last event."""
  response = web.StreamResponse(
    headers={'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache'}
  )
  await response.prepare(request)

  async def send(*bodies: dict[str, Any]) -> None:
    for body in bodies:
      await response.write(b'data: ' + orjson.dumps(body) + b'\n\n')

  sent = ''
  await send(openai_reply.chunk(head, {'role': 'assistant', 'content': ''}))
  try:
    async for reply, reason in replies:
      if reason is None:
        text = writer.settled(writer.text(reply.output_ids)[0])
        if len(text) > len(sent):
          await send(openai_reply.chunk(head, {'content': text[len(sent) :]}))
          sent = text
        continue
      turn = writer.turn(reply.output_ids, _cut_off(reason))
      usage = _usage(reply) if chat.include_usage else None
      await send(*openai_reply.last_chunks(head, turn, sent, usage))
  except SyncError as error:
    await send(_error(500, str(error)))
  await response.write(b'data: [DONE]\n\n')
  await response.write_eof()
  return response


@web.middleware
async def error_shape(
  request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
  """Gives errors of OpenAI's paths the fields that its clients read."""
  try:
    response = await handler(request)
  except ModelNotFound as error:
    return json_reply(_error(404, str(error)), 404)
  if not request.path.startswith('/v1/') or response.status < 400:
    return response
  message = ''
  if isinstance(response, web.Response) and isinstance(response.body, bytes):
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
      message = orjson.loads(response.body)['error']['message']
  return json_reply(_error(response.status, message), response.status)


def _error(status: int, message: str) -> dict[str, Any]:
  kinds = {401: 'authentication_error', 404: 'not_found_error'}
  kind = 'server_error' if status >= 500 else kinds.get(status, 'invalid_request_error')
  found = _UNKNOWN.search(message) or _NAMED.match(message)
  param = found[1] if found is not None else None
  known = found is not None and (found.re is _UNKNOWN or param in openai_request.KEYS)
  code = (
    'invalid_api_key' if status == 401 else 'model_not_found' if status == 404 and known else None
  )
  return {
    'error': {'message': message, 'type': kind, 'param': param if known else None, 'code': code}
  }

"""An OpenAI-compatible server by script, in a thread of its own: what it answers is a function of
the request.
"""

import asyncio
import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests import patience

CAPTION = 'A grey board of squares changes its pattern.'
QUESTION = """QUESTION: Why does the board change?
OPTIONS:
A. It counts
B. It rains
C. It is night
D. It is broken
ANSWER: A
REASONS:
[0 to 2] The board shows a small number.
[2 to 4] It shows a larger number, so it counts."""
REWRITTEN = (
  'First the board shows a small number, then a larger one; so what we watch is counting, step '
  'by step.'
)


@dataclasses.dataclass(frozen=True)
class Raw:
  """Any status, bytes and headers; close: the connection is cut instead; hang: no reply, ever."""

  status: int = 200
  body: bytes = b''
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  close: bool = False
  hang: bool = False


def completion(text: Any, finish: Any = 'stop') -> Raw:
  """A chat completion with this content."""
  return Raw(
    body=json.dumps(
      {'choices': [{'message': {'role': 'assistant', 'content': text}, 'finish_reason': finish}]}
    ).encode()
  )


def kind(body: dict) -> str:
  """'caption', 'ask' or 'rewrite', by the prompt."""
  content = body['messages'][0]['content']
  if isinstance(content, list):
    return 'caption'
  return 'rewrite' if 'Tell these reasons again' in content else 'ask'


def good(body: dict, number: int) -> str:
  """A model that does as asked."""
  return {
    'caption': CAPTION,
    'ask': f'<think>Options: A. no B. no</think>\n{QUESTION}',
    'rewrite': REWRITTEN,
  }[kind(body)]


class ChatServer:
  """`script(body, number)` gives a text, or a Raw reply. `bodies`: what came, in order;
  `most_at_once`: requests in flight.
  """

  def __init__(
    self,
    script: Callable[[dict, int], str | Raw] = good,
    *,
    models: Any = ('seer', 'thinker'),
    api_key: str = '',
  ):
    self.script, self.models, self.api_key = script, models, api_key
    self.bodies: list[dict] = []
    self.most_at_once = self._at_once = 0
    self._started = threading.Event()
    self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

  def __enter__(self):
    self._thread.start()
    assert self._started.wait(patience.seconds(120)), 'the chat server did not start'
    return self

  def __exit__(self, *exception):
    self._loop.call_soon_threadsafe(self._stop.set)
    self._thread.join(patience.seconds(120))

  async def _serve(self):
    self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
    app = web.Application(client_max_size=2**28)
    app.router.add_post('/v1/chat/completions', self._chat)
    app.router.add_get('/v1/models', self._models)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    self.url = f'http://127.0.0.1:{runner.addresses[0][1]}/v1'
    self._started.set()
    await self._stop.wait()
    await runner.cleanup()

  def _refused(self, request):
    return self.api_key and request.headers.get('Authorization') != f'Bearer {self.api_key}'

  async def _models(self, request):
    if self._refused(request):
      return web.Response(status=401)
    if self.models is None:
      return web.Response(status=404)
    return web.json_response({'object': 'list', 'data': [{'id': name} for name in self.models]})

  async def _chat(self, request):
    if self._refused(request):
      return web.Response(status=401)
    body = await request.json()
    number = len(self.bodies)
    self.bodies.append(body)
    self._at_once += 1
    self.most_at_once = max(self.most_at_once, self._at_once)
    try:
      await asyncio.sleep(0)  # lets the others in, so that what is in flight is seen
      reply = self.script(body, number)
      reply = reply if isinstance(reply, Raw) else completion(reply)
      if reply.hang:
        await self._stop.wait()
      if reply.close:
        request.transport.abort()
      return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
    finally:
      self._at_once -= 1

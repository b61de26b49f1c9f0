"""The door of the embedded server: who is let in."""

import asyncio
import hmac
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from paravt_jax.serving.embedded import replies

ODD = b'Bearer \xff\xfe'  # bytes of no character


def status(key: str | None, header: str | bytes | None, path: str = '/generate') -> int:
  """Returns the status with which a real server answers a request with this header."""
  raw = header.encode() if isinstance(header, str) else header
  line = b'' if raw is None else b'Authorization: ' + raw + b'\r\n'
  sent = b'GET %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n' % (path.encode(), line)

  async def answer() -> bytes:
    async def handler(_: web.Request) -> web.StreamResponse:
      return web.Response(status=204)

    app = web.Application(middlewares=[replies.key(key)])
    app.router.add_get('/{rest:.*}', handler)
    async with TestServer(app) as server:
      reader, writer = await asyncio.open_connection('127.0.0.1', server.port)
      writer.write(sent)
      found = await reader.readline()
      writer.close()
      return found

  return int(asyncio.run(answer()).split()[1])


@pytest.mark.parametrize(
  'key, header, wanted',
  [
    ('secret', 'Bearer secret', 204),
    ('secret', 'Bearer secre', 401),
    ('secret', 'Bearer secrets', 401),
    ('secret', 'bearer secret', 401),
    ('secret', 'secret', 401),
    ('secret', '', 401),
    ('secret', None, 401),
    ('secret', 'Bearer секрет', 401),
    ('secret', ODD, 401),
    ('секрет 🔑', 'Bearer секрет 🔑', 204),
    ('секрет', 'Bearer secret', 401),
    ('', None, 401),
    (None, None, 204),
    (None, ODD, 204),
  ],
)
def test_the_key_alone_opens_and_odd_characters_are_no_error(key, header, wanted):
  assert status(key, header) == wanted


def test_health_needs_no_key_and_nothing_else_is_open():
  for path in ('/health', '/ready'):
    assert status('secret', None, path) == 204
  for path in ('/health/', '/v1/models', '/get_server_info', '/Health', '/'):
    assert status('secret', None, path) == 401


def test_keys_are_compared_in_constant_time():
  with mock.patch.object(hmac, 'compare_digest', wraps=hmac.compare_digest) as compare:
    assert status('secret', 'Bearer wrong!') == 401
  compare.assert_called_once_with(b'Bearer wrong!', b'Bearer secret')


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
  monkeypatch.setattr(replies, 'BODY_S', 0.2)

  async def handler(request: web.Request) -> web.StreamResponse:
    return replies.json_reply(await replies.json_body(request))

  async def answer() -> bytes:
    app = web.Application(middlewares=[replies.errors])
    app.router.add_post('/generate', handler)
    async with TestServer(app) as server:
      reader, writer = await asyncio.open_connection('127.0.0.1', server.port)
      writer.write(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"a"')
      found = await reader.readuntil(b'}}')
      writer.close()
      return found

  said = asyncio.run(answer())
  assert said.startswith(b'HTTP/1.1 400') and b'the body was not there after 0.2 s' in said

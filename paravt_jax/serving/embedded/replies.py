"""What all handlers share: bodies in, JSON out, errors as one line, and the key."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from paravt_jax.errors import SyncError
from paravt_jax.serving import images
from paravt_jax.serving.fields import json_object, refuse_unknown, short_repr
from paravt_jax.serving.protocol import RequestError

BODY_S = 300.0  # seconds for a body to arrive, after which its client has left or never meant it
OPEN = ('/health', '/ready')  # paths that need no key


def json_reply(value: Any, status: int = 200) -> web.Response:
  """Returns a reply with a JSON body."""
  return web.Response(body=orjson.dumps(value), status=status, content_type='application/json')


async def json_body(request: web.Request, known: Collection[str] | None = None) -> dict[str, Any]:
  """Returns the body as an object.

  known: the allowed keys, or None if the caller checks them.
  """
  body = json_object(request.path, await raw_body(request))
  if known is not None:
    refuse_unknown(request.path, body, known)
  return body


async def raw_body(request: web.Request) -> bytes:
  """Returns the body. Raises RequestError if it cannot be read, or takes longer than BODY_S."""
  try:
    async with asyncio.timeout(BODY_S):
      return await request.read()
  except TimeoutError:
    raise RequestError(
      f'{request.path}: the body was not there after {BODY_S:g} s; send it faster, or less of it'
    ) from None
  except (web.RequestPayloadError, HttpProcessingError) as error:
    raise RequestError(
      f'{request.path}: the body cannot be read ({" ".join(str(error).split())[:160]})'
    ) from error


@web.middleware
async def errors(
  request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
  """Turns errors into replies of one line."""
  try:
    return await handler(request)
  except images.MissingImages as error:
    return json_reply(error.to_json(), images.MISSING_STATUS)
  except RequestError as error:
    return json_reply({'error': {'message': str(error)}}, 400)
  except SyncError as error:
    return json_reply({'error': {'message': str(error)}}, 500)
  except web.HTTPClientError as error:  # unknown path, wrong method, or a body that is too large
    message = (
      f'{request.method} {short_repr(request.path)}: '
      f'{" ".join((error.text or error.reason).split())}'
    )
    return json_reply({'error': {'message': message}}, error.status)


def key(api_key: str | None) -> Any:
  """Returns what refuses requests without the key, except /health and /ready, as SGLang does.

  The comparison takes the same time wherever the first wrong character is.
  """
  wanted = None if api_key is None else _bytes(f'Bearer {api_key}')

  @web.middleware
  async def check(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
  ) -> web.StreamResponse:
    got = _bytes(request.headers.get('Authorization', ''))
    closed = request.path not in OPEN
    if wanted is not None and closed and not hmac.compare_digest(got, wanted):
      return json_reply(
        {
          'error': {
            'message': f'{request.path}: wrong or no api key; send "Authorization: Bearer <key>"'
          }
        },
        401,
      )
    return await handler(request)

  return check


def _bytes(header: str) -> bytes:
  """Returns the bytes of a header as they were sent; aiohttp keeps those of no character apart."""
  return header.encode('utf-8', 'surrogateescape')

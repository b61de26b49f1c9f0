"""A client of any OpenAI-compatible server. A failed request is a value, counted by reason.

The number of concurrent requests and the size of replies are bounded. The client retries after a
lost connection and after status 408, 429 and 5xx, with growing delays. Replies are parsed strictly.
Redirects are not followed, so only the given address receives the key. If a server refuses a
parameter by name (see `chat_dialect`), later requests leave it out.
"""

import asyncio
import base64
import collections
import dataclasses
import email.utils
import io
import logging
import pathlib
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import aiohttp
import numpy as np
import orjson
from aiohttp.http_exceptions import HttpProcessingError
from PIL import Image

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.options import COUNT, POSITIVE, RETRIES, TEXT, URL, Options
from paravt_jax.rollout.chat_dialect import Dialect, error_in, message_text
from paravt_jax.rollout.outcomes import Failed, Rejected

log = logging.getLogger(__name__)

_LOST = (aiohttp.ClientError, HttpProcessingError)  # no connection, or invalid HTTP on it
_AGAIN = (408, 429)
# Only this request fails, because it is too long or the server refuses its image.
_REFUSED = (400, 413, 422)
_CHUNK = 1 << 16
_SHOWN = 200  # characters of a reply in a message


@dataclasses.dataclass(frozen=True)
class RequestOptions(Options):
  """How requests to a server behind the OpenAI protocol are made."""

  # bearer token; '' sends none; env:NAME or file:PATH keeps it off the command line
  api_key: Annotated[str, TEXT] = dataclasses.field(repr=False)
  timeout_s: Annotated[float, POSITIVE]  # for one request
  retries: Annotated[int, RETRIES]  # of a request that fails
  backoff_s: Annotated[float, POSITIVE]  # before the first retry; it doubles with each
  max_backoff_s: Annotated[float, POSITIVE]  # at most; a server's own Retry-After counts, up to it
  concurrency: Annotated[int, COUNT]  # requests at once
  max_reply_bytes: Annotated[int, COUNT]  # a longer reply is refused unread
  max_failures: Annotated[int, COUNT]  # consecutive failed requests that end the run

  @classmethod
  def published(cls) -> 'RequestOptions':
    """Returns limits for a server that you run yourself."""
    return RequestOptions(
      api_key='',
      timeout_s=600.0,
      retries=5,
      backoff_s=1.0,
      max_backoff_s=60.0,
      concurrency=64,
      max_reply_bytes=4_000_000,
      max_failures=20,
    )


@dataclasses.dataclass(frozen=True)
class ServerOptions(RequestOptions):
  """A server behind the OpenAI protocol."""

  url: Annotated[str, URL]  # up to and without '/chat/completions'
  model: Annotated[str, TEXT]  # its name there


@dataclasses.dataclass(frozen=True)
class Reply:
  """A model's complete text, not cut off by a limit."""

  text: str


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a chat server samples."""

  max_tokens: int  # of a reply
  temperature: float  # 0 is greedy
  seed: int  # sent to the server, which may ignore it


class Server:
  """The client of one server. Use as `async with Server(options, where) as server`.

  `where` names the knobs in messages. `counts` has outcomes by name.
  """

  def __init__(self, options: ServerOptions, where: str):
    self.options = options
    self._where = where
    self._url = options.url.rstrip('/')
    self._gate = asyncio.Semaphore(options.concurrency)
    self._session: aiohttp.ClientSession | None = None
    self._in_a_row = 0
    self._down = ''
    self._dialect = Dialect()
    self.counts: collections.Counter[str] = collections.Counter()

  async def __aenter__(self):
    headers = {'Content-Type': 'application/json'}
    if self.options.api_key:
      headers['Authorization'] = f'Bearer {self.options.api_key}'
    self._session = aiohttp.ClientSession(
      headers=headers,
      timeout=aiohttp.ClientTimeout(total=self.options.timeout_s),
      connector=aiohttp.TCPConnector(limit=self.options.concurrency),
    )
    return self

  async def __aexit__(self, *exception):
    if self._session is not None:
      await self._session.close()

  async def check(self) -> None:
    """Requests the list of models. This checks the server, the key, and the model's name.

    A server without such a list (404 and the like) passes.

    Raises:
      RolloutError: one line that says which of the three is wrong.
    """
    outcome = await self._once('GET', '/models', None)
    if isinstance(outcome, Failed):
      raise RolloutError(
        f'{self._where}.url={self._url}: no server answers there ({outcome.detail}); start '
        'it, or correct the url'
      )
    status, content, _ = outcome
    if status in (401, 403):
      sent = 'the key was refused' if self.options.api_key else 'it wants a key and got none'
      raise RolloutError(
        f'{self._where}.api_key: {self._url} answered {status}: {sent}; set {self._where}.api_key'
      )
    if status >= 500:
      raise RolloutError(
        f'{self._where}.url={self._url}: answered {status} when asked for its models, wanted '
        '200; wait until it is up'
      )
    names = _model_names(content) if status == 200 else []
    if names and self.options.model not in names:
      raise RolloutError(
        f'{self._where}.model={self.options.model!r}: {self._url} serves '
        f'{", ".join(names[:8])}; name one of these'
      )

  async def complete(
    self,
    messages: Sequence[dict[str, Any]],
    sampling: Sampling,
    more: Mapping[str, Any] | None = None,
    read: Callable[[bytes], Reply | Rejected] | None = None,
  ) -> Reply | Rejected | Failed:
    """Requests one chat completion.

    Args:
      more: further fields of the request; None removes a field.
      read: parses a completion; None stands for `read_completion`.

    Returns:
      Reply.
      Rejected: the server refuses this request, or the reply is not a complete text ('refused',
      'truncated', 'filtered', 'no_text', 'unreadable', 'too_large').
      Failed: a later request may succeed ('connection', 'timeout', 'status').

    Raises:
      RolloutError: the last `max_failures` requests failed.
    """
    own = {
      'max_tokens': sampling.max_tokens,
      'temperature': sampling.temperature,
      'seed': sampling.seed,
      'stream': False,
    }
    given = {'model': self.options.model, 'messages': list(messages), **(more or {})}
    async with self._gate:
      outcome = await self._ask_in_dialect(own, given, read or read_completion)
    self.counts['replies' if isinstance(outcome, Reply) else outcome.reason] += 1
    if not isinstance(outcome, Failed):
      self._in_a_row = 0
      return outcome
    self._in_a_row += 1
    if self._in_a_row >= self.options.max_failures:
      self._down = (
        f'{self._where}.url={self._url}: {self._in_a_row} requests in a row failed, the last with '
        f'{outcome.reason} ({outcome.detail}); mend the server, then run the same command '
        'again: it continues'
      )
      raise RolloutError(self._down)
    return outcome

  async def _ask_in_dialect(
    self, own: dict[str, Any], given: dict[str, Any], read: Callable[[bytes], Reply | Rejected]
  ) -> Reply | Rejected | Failed:
    """Sends the request. Repeats it without each parameter that the server refuses by name.

    The number of repetitions is limited.
    """
    while True:
      spoken, said = self._dialect.translate(own), []
      fields = {name: value for name, value in {**spoken, **given}.items() if value is not None}
      outcome = await self._ask(orjson.dumps(fields), read, said)
      if isinstance(outcome, Reply) or not said:
        return outcome
      # no concurrent request has learned it in the meantime
      if self._dialect.translate(own) == spoken:
        learned = self._dialect.learn(said[-1], own.keys() - given.keys(), fields.keys())
        if not learned:
          return outcome
        log.warning(
          '%s.url=%s: %s; it says: %s',
          self._where,
          self._url,
          learned,
          ' '.join(said[-1].split())[:_SHOWN],
        )

  async def probe(
    self,
    messages: Sequence[dict[str, Any]],
    sampling: Sampling,
    more: Mapping[str, Any],
    read: Callable[[bytes], Reply | Rejected],
    *,
    ways_out: Mapping[str, str],
  ) -> None:
    """Requests one completion before the work starts, with the usual limits and retries.

    So a server that cannot be used is reported at the start.

    ways_out: outcome's reason -> what the user may change, with names of knobs. 'busy' is for
    status 429 and 5xx, '' for all others.

    Raises:
      RolloutError: no readable reply. One line has the server's answer and the way out.
    """
    outcome = await self.complete(messages, sampling, more, read)
    if not isinstance(outcome, Reply):
      refused_key = outcome.detail[:4] in ('401:', '403:')
      busy = outcome.reason == 'status' and outcome.detail.startswith(('429:', '5'))
      way = (
        f'set {self._where}.api_key'
        if refused_key
        else ways_out.get('busy' if busy else outcome.reason, ways_out[''])
      )
      raise RolloutError(
        f'{self._where}.url={self._url}, model {self.options.model!r}: cannot be used: '
        f'{outcome.reason} '
        f'({" ".join(outcome.detail.split())}); {way}'
      )

  def check_up(self) -> None:
    """Raises the RolloutError of `max_failures` again, if it was ever raised.

    For callers that run episodes, which turn errors into outcomes.
    """
    if self._down:
      raise RolloutError(self._down)

  async def _ask(
    self, body: bytes, read: Callable[[bytes], Reply | Rejected], said: list[str]
  ) -> Reply | Rejected | Failed:
    """Returns the outcome after all retries. It appends the server's error messages to `said`."""
    failure, pause = Failed('connection', 'not asked'), 0.0
    for attempt in range(self.options.retries + 1):
      # Exponential backoff, or the server's Retry-After if it is longer, up to max_backoff_s.
      if attempt:
        self.counts['retries'] += 1
        await asyncio.sleep(
          min(max(self.options.backoff_s * 2 ** (attempt - 1), pause), self.options.max_backoff_s)
        )
      outcome = await self._once('POST', '/chat/completions', body)
      if isinstance(outcome, Failed):
        failure, pause = outcome, 0.0
        if outcome.reason == 'timeout':
          return failure
        continue
      status, content, pause = outcome
      if content is None:
        return Rejected('too_large', f'over {self.options.max_reply_bytes} bytes')
      # Some servers report an error in the body of a reply with status 200.
      if status == 200:
        status = error_in(content)
      if status == 200:
        return read(content)
      said.append(content[:_CHUNK].decode(errors='replace'))
      detail = f'{status}: {content[:_SHOWN]!r}'
      if status in _REFUSED:
        return Rejected('refused', detail)
      failure = Failed('status', detail)
      if status not in _AGAIN and status < 500:
        return failure
    return failure

  async def _once(
    self, method: str, path: str, body: bytes | None
  ) -> tuple[int, bytes | None, float] | Failed:
    """Returns (status, content, seconds to wait as the server requests).

    The content is None if it is too large.
    """
    if self._session is None:
      raise AssertionError('a chat server is used inside `async with`')
    try:
      async with self._session.request(
        method, self._url + path, data=body, allow_redirects=False
      ) as reply:
        content = await self._read_bounded(reply)
        return reply.status, content, _retry_after(reply.headers.get('Retry-After', ''))
    except TimeoutError:
      return Failed('timeout', f'no reply within {self.options.timeout_s:g} s')
    except aiohttp.InvalidURL as error:
      raise RolloutError(
        f'{self._where}.url={self._url!r}: not a URL ({error}), wanted one such as '
        'http://127.0.0.1:30000/v1'
      ) from error
    except _LOST as error:
      return Failed('connection', f'{type(error).__name__}: {error}'[:_SHOWN])

  async def _read_bounded(self, reply: aiohttp.ClientResponse) -> bytes | None:
    parts, size = [], 0
    async for part in reply.content.iter_chunked(_CHUNK):
      parts.append(part)
      size += len(part)
      if size > self.options.max_reply_bytes:
        reply.close()
        return None
    return b''.join(parts)


def read_completion(content: bytes) -> Reply | Rejected:
  """Parses a chat completion strictly: one choice, whose text the model itself ended."""
  try:
    choice = orjson.loads(content)['choices'][0]
    message, finish = choice['message'], choice.get('finish_reason')
    text = message_text(message['content'])
    refusal = message.get('refusal')
  except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
    return Rejected('unreadable', repr(content[:_SHOWN]), content[:_CHUNK].decode(errors='replace'))
  if not isinstance(text, str) or not text.strip():
    if refusal:
      return Rejected('filtered', f'the model refuses: {refusal!r:.120}')
    return Rejected('no_text', f'content {text!r:.80}, finish_reason {finish!r:.40}')
  if finish == 'length':
    return Rejected('truncated', 'the reply ran into max_tokens', text)
  if finish == 'content_filter':
    return Rejected('filtered', 'the server filtered the reply', text)
  return Reply(text.replace('\0', '').replace('\r\n', '\n'))


def image_part(pixels: np.ndarray, quality: int) -> dict[str, Any]:
  """Returns uint8[H, W, 3] as a data URL in a message's content.

  It is a JPEG of the given quality. Quality 0 gives a PNG, which preserves every pixel.
  """
  buffer, kind = io.BytesIO(), 'jpeg' if quality else 'png'
  Image.fromarray(pixels).save(
    buffer, kind, **({'quality': quality} if quality else {'compress_level': 1})
  )
  return {
    'type': 'image_url',
    'image_url': {
      'url': f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'
    },
  }


def video_part(path: str) -> dict[str, Any]:
  """Returns a `file://` video for a message's content. The server must be able to read the file."""
  return {
    'type': 'video_url',
    'video_url': {'url': 'file://' + urllib.parse.quote(str(pathlib.Path(path).absolute()))},
  }


def text_part(text: str) -> dict[str, Any]:
  """Returns text for a message's content."""
  return {'type': 'text', 'text': text}


def _model_names(content: bytes | None) -> list[str]:
  try:
    return [str(model['id']) for model in orjson.loads(content or b'')['data']]
  except (orjson.JSONDecodeError, KeyError, TypeError):
    return []


def more(text: str, knob: str) -> dict[str, Any]:
  """Returns further fields of a request, from a JSON object as text. '' gives no fields.

  Raises ConfigError with the knob's name if the text is not an object.
  """
  try:
    value = orjson.loads(text) if text else {}
  except orjson.JSONDecodeError as error:
    raise ConfigError(
      f'{knob}={text!r}: is no JSON ({error}), wanted an object or nothing'
    ) from error
  if not isinstance(value, dict):
    raise ConfigError(f'{knob}={text!r}: got {type(value).__name__}, wanted a JSON object')
  return value


def _retry_after(value: str) -> float:
  """Returns the seconds to wait, from a header with seconds or a date. 0 for anything else."""
  if value.isascii() and value.replace('.', '', 1).isdigit() and len(value) < 7:
    return float(value)
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except ValueError:
    return 0.0

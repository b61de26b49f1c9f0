"""The load on a rollout server, over HTTP: its speed, and what the prompt of a group costs."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson

from experiments.bench.generate import Question, question
from experiments.bench.recipe import BenchRecipe
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import RolloutError
from paravt_jax.serving.protocol import GenerateReply, GenerateRequest, encode_image

_POLL_S = 0.01


async def drive(recipe: BenchRecipe, tok: ChatTokenizer, name: str, url: str) -> dict[str, Any]:
  """{'speeds': {concurrency: tokens/s}, 'prefix': ...} of a server at a URL, 'embedded' or 'sglang'."""
  async with session(url) as http:
    speeds = {n: await _speed(recipe, tok, http, n) for n in recipe.serve.concurrencies}
    measured = await (
      _prefix_counts(recipe, tok, http)
      if name == 'embedded'
      else _prefix_replies(recipe, tok, http)
    )
  return {'speeds': speeds, 'prefix': measured}


@contextlib.asynccontextmanager
async def session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
  """Connections to the server at a URL."""
  timeout, connector = aiohttp.ClientTimeout(total=600.0), aiohttp.TCPConnector(limit=0)
  async with aiohttp.ClientSession(base_url=url, timeout=timeout, connector=connector) as session:
    yield session


def _body(
  tok: ChatTokenizer, asked: Question, rid: str, new_tokens: int, temperature: float, seed: int
) -> bytes:
  banned = (tok.vision_start, tok.vision_end, tok.image_pad, tok.video_pad)
  request = GenerateRequest(
    rid, asked.ids, asked.frames, temperature, 1.0, -1, new_tokens, (), banned, seed, True
  )
  return orjson.dumps(request.to_json([encode_image(frame) for frame in asked.frames]))


async def _ask(http: aiohttp.ClientSession, path: str, body: bytes | None = None) -> Any:
  """What a server answers; None for text. Raises RolloutError for another status than 200."""
  method, headers = (
    ('GET', None) if body is None else ('POST', {'Content-Type': 'application/json'})
  )
  async with http.request(method, path, data=body, headers=headers) as reply:
    said = await reply.read()
  if reply.status != 200:
    raise RolloutError(
      f'bench: {path} answered {reply.status}: {said[:200]!r}; see the log of the server in '
      'run.folder'
    )
  return orjson.loads(said) if said[:1] in (b'{', b'[') else None


async def _generate(http: aiohttp.ClientSession, body: bytes) -> GenerateReply:
  return GenerateReply.from_json(await _ask(http, '/generate', body))


async def _speed(
  recipe: BenchRecipe, tok: ChatTokenizer, http: aiohttp.ClientSession, concurrency: int
) -> float:
  """Sampled tokens per second with that many requests under way: the median of turns, after one
  that warms up.

  Every turn has prompts that no turn had before; within a group they are the same, as in rollouts.
  """
  knobs = recipe.serve
  speeds = []
  for turn in range(knobs.turns + 1):
    bodies = []
    for n in range(2 * concurrency):
      asked = question(
        tok, knobs.frames, knobs.words, recipe.seed, 'serve', concurrency, turn, n // knobs.group
      )
      bodies.append(
        _body(tok, asked, f'{concurrency}-{turn}-{n}', knobs.new_tokens, knobs.temperature, n)
      )
    seconds, replies = await timed(http, bodies, concurrency)
    speeds.append(sum(len(reply.output_ids) for reply in replies) / seconds)
  return statistics.median(speeds[1:])


async def timed(
  http: aiohttp.ClientSession, bodies: list[bytes], concurrency: int
) -> tuple[float, list[GenerateReply]]:
  """(seconds, replies in order); a new request goes out when one comes back."""
  replies: dict[int, GenerateReply] = {}
  left = iter(enumerate(bodies))

  async def worker() -> None:
    for n, body in left:
      replies[n] = await _generate(http, body)

  start = time.perf_counter()
  await asyncio.gather(*(worker() for _ in range(concurrency)))
  return time.perf_counter() - start, [replies[n] for n in range(len(bodies))]


# The shared prompt of a group


def _group(recipe: BenchRecipe, tok: ChatTokenizer, name: str) -> list[bytes]:
  knobs = recipe.prefix
  asked = question(tok, knobs.frames, knobs.words, recipe.seed, 'prefix', name)
  return [_body(tok, asked, f'{name}-{n}', knobs.new_tokens, 1.0, n) for n in range(knobs.rollouts)]


async def _prefix_counts(
  recipe: BenchRecipe, tok: ChatTokenizer, http: aiohttp.ClientSession
) -> dict[str, Any]:
  """Prefilled tokens per token of the prompt, by the server's own counts: rollouts that come one by
  one, and all in one instant.

  For the one instant the server is paused until all of them wait.
  """
  found = {}
  for name in ('one_by_one', 'at_once'):
    bodies = _group(recipe, tok, name)
    before = (await _ask(http, '/get_server_info'))['counts']['prefilled_tokens']
    if name == 'one_by_one':
      replies = [await _generate(http, body) for body in bodies]
    else:
      await _ask(http, '/pause_generation', b'{"mode": "retract"}')
      pending = [asyncio.create_task(_generate(http, body)) for body in bodies]
      while (await _ask(http, '/get_server_info'))['waiting'] < len(bodies):
        await asyncio.sleep(_POLL_S)
      await _ask(http, '/continue_generation', b'{}')
      replies = await asyncio.gather(*pending)
    after = (await _ask(http, '/get_server_info'))['counts']['prefilled_tokens']
    found[name] = (after - before) / replies[0].prompt_tokens
  both = {f'{name}_prefills': value for name, value in found.items()}
  return {
    'prefills': max(found.values()),
    **both,
    'prompt_tokens': replies[0].prompt_tokens,
    'rollouts': len(replies),
  }


async def _prefix_replies(
  recipe: BenchRecipe, tok: ChatTokenizer, http: aiohttp.ClientSession
) -> dict[str, Any]:
  """The same of SGLang, by what its replies call cached, all sent together."""
  replies = await asyncio.gather(
    *(_generate(http, body) for body in _group(recipe, tok, 'at_once'))
  )
  return {
    'prefills': sum(reply.prompt_tokens - reply.cached_tokens for reply in replies)
    / replies[0].prompt_tokens
  }

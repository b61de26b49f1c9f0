"""A judge in a process of its own: `python -m paravt_jax.testing.judge_server --port P [--delay S]`.

It speaks the part of the OpenAI protocol that `rollout.judge` uses. An answer is right if it has all
words of the reference, so its verdicts are the same each time, and no model is needed. It says its
address once it listens.
"""

import argparse
import asyncio
import re
from typing import Any

from aiohttp import web

MODEL = 'words'  # its name there
_FIELD = r'^{}: (.*?)$(?=\n(?:Answer|Reply with))'


def verdict(message: str) -> str:
  """Returns the reply to the judge's prompt: 'VERDICT: right' or 'VERDICT: wrong'.

  A message without a reference or an answer is wrong.
  """
  found = [
    re.search(_FIELD.format(name), message, re.MULTILINE | re.DOTALL)
    for name in ('Reference', 'Answer')
  ]
  reference, answer = (set() if one is None else _words(one[1]) for one in found)
  return f'VERDICT: {"right" if reference and reference <= answer else "wrong"}'


def _words(text: str) -> set[str]:
  return set(re.findall(r'\w+', text.lower()))


def app(delay_s: float) -> web.Application:
  """Returns the server. Each reply takes `delay_s` seconds."""

  async def models(_: web.Request) -> web.Response:
    return web.json_response({'object': 'list', 'data': [{'id': MODEL}]})

  async def complete(request: web.Request) -> web.Response:
    body: dict[str, Any] = await request.json()
    await asyncio.sleep(delay_s)
    message = {'role': 'assistant', 'content': verdict(body['messages'][-1]['content'])}
    return web.json_response({'choices': [{'message': message, 'finish_reason': 'stop'}]})

  made = web.Application()
  made.router.add_get('/v1/models', models)
  made.router.add_post('/v1/chat/completions', complete)
  return made


async def serve(port: int, delay_s: float) -> None:
  """Serves on 127.0.0.1 until the process ends. Port 0 is a free one."""
  runner = web.AppRunner(app(delay_s), access_log=None)
  await runner.setup()
  await web.TCPSite(runner, '127.0.0.1', port, reuse_address=True).start()
  print(f'http://127.0.0.1:{runner.addresses[0][1]}/v1', flush=True)
  await asyncio.Event().wait()


def main() -> None:
  """Reads the command line and serves."""
  parser = argparse.ArgumentParser(description='A judge without a model, for tests.')
  parser.add_argument('--port', type=int, default=0, help='0: a free one')
  parser.add_argument('--delay', type=float, default=0.0, help='seconds that each reply takes')
  given = parser.parse_args()
  asyncio.run(serve(given.port, given.delay))


if __name__ == '__main__':
  main()

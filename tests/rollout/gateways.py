"""Routers in front of servers: a scripted one, and the real `smg` of the SGLang environment."""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import threading
import urllib.error
import urllib.request
import uuid

import aiohttp
import orjson
from aiohttp import web

from paravt_jax.rollout.gateway import ANSWERED, ROUTING_KEY
from tests import patience

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / '.venv-sglang' / 'bin' / 'python'
FLAGS = (
  *('--policy', 'manual', '--assignment-mode', 'min_load'),
  *('--max-buffered-request-bytes', '0'),
)


@dataclasses.dataclass
class Faults:
  """What a router does wrong."""

  bias: bool = False  # drops logit_bias
  spread: bool = False  # sends requests of one key to all workers in turn
  nameless: bool = False  # does not say who answered
  stuck: bool = False  # accepts commands about workers and does nothing


class ScriptedGateway:
  """Does what was seen of the real router: it keeps keys on workers, says who answered, adds and
  removes workers, and answers 500 for a worker that is gone.
  """

  def __init__(self, urls, faults=None, port=0):
    self.workers = {url: str(uuid.uuid4()) for url in urls}
    self.homes = {}
    self.faults = Faults() if faults is None else faults
    self.url = ''
    self._turn = 0
    self._port = port
    self._loop = asyncio.new_event_loop()
    self._started = threading.Event()
    self._thread = threading.Thread(target=self._main, daemon=True)

  def __enter__(self):
    self._thread.start()
    assert self._started.wait(patience.seconds(60))
    return self

  def __exit__(self, *exception):
    self._loop.call_soon_threadsafe(self._stop.set)
    self._thread.join(patience.seconds(60))

  def _main(self):
    asyncio.set_event_loop(self._loop)
    self._loop.run_until_complete(self._serve())

  async def _serve(self):
    self._stop = asyncio.Event()
    app = web.Application(client_max_size=2**30)
    app.router.add_post('/generate', self._generate)
    app.router.add_get('/workers', self._list)
    app.router.add_post('/workers', self._add)
    app.router.add_delete('/workers/{id}', self._remove)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', self._port).start()
    self.url = f'http://127.0.0.1:{runner.addresses[0][1]}'
    async with aiohttp.ClientSession() as self._session:
      self._started.set()
      await self._stop.wait()
    await runner.cleanup()

  async def _list(self, http):
    found = [{'url': url, 'id': name, 'is_healthy': True} for url, name in self.workers.items()]
    return web.json_response({'workers': found})

  async def _add(self, http):
    if not self.faults.stuck:
      self.workers[(await http.json())['url']] = str(uuid.uuid4())
    return web.json_response({'status': 'accepted'}, status=202)

  async def _remove(self, http):
    if not self.faults.stuck:
      name = http.match_info['id']
      self.workers = {url: other for url, other in self.workers.items() if other != name}
    return web.json_response({'status': 'accepted'}, status=202)

  async def _generate(self, http):
    body = await http.read()
    if self.faults.bias:
      changed = orjson.loads(body)
      changed['sampling_params'].pop('logit_bias')
      body = orjson.dumps(changed)
    try:
      worker = self._choose(http.headers[ROUTING_KEY])
      headers = {'Content-Type': 'application/json'}
      async with self._session.post(f'{worker}/generate', data=body, headers=headers) as reply:
        named = {} if self.faults.nameless else {ANSWERED: worker}
        return web.Response(
          body=await reply.read(),
          status=reply.status,
          headers={**named, 'Content-Type': reply.content_type},
        )
    except (aiohttp.ClientError, IndexError):
      return web.json_response({'error': 'error sending request'}, status=500)

  def _choose(self, key):
    if self.faults.spread or self.homes.get(key) not in self.workers:
      self.homes[key] = list(self.workers)[self._turn % len(self.workers)]
      self._turn += 1
    return self.homes[key]


@contextlib.contextmanager
def scripted(urls, log, faults=None):
  """A scripted router. log: not used."""
  with ScriptedGateway(urls, faults) as gateway:
    yield gateway.url


@contextlib.contextmanager
def real(urls, log, *flags, key=None, port=0):
  """The real router over these workers, once it lists them all. flags: in place of `FLAGS`."""
  port, metrics = port or free_port(), free_port()
  command = [PYTHON, '-m', 'smg', 'launch', '--host', '127.0.0.1', '--port', port]
  command += ['--prometheus-host', '127.0.0.1', '--prometheus-port', metrics]
  command += ['--log-level', 'info', '--worker-urls', *urls, *(flags or FLAGS)]
  command += [] if key is None else ['--api-key', key]
  url = f'http://127.0.0.1:{port}'
  with log.open('w') as output:
    process = subprocess.Popen(
      list(map(str, command)),
      env={**os.environ, 'NO_PROXY': '127.0.0.1', 'HF_HUB_OFFLINE': '1'},
      stdout=output,
      stderr=subprocess.STDOUT,
    )
  try:
    patience.until(lambda: process.poll() is not None or listed(url, key) == set(urls))
    assert process.poll() is None, log.read_text()
    yield url
  finally:
    process.kill()
    process.wait()


def listed(url, key=None):
  """The router's workers; none while it does not answer."""
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  headers = {} if key is None else {'Authorization': f'Bearer {key}'}
  try:
    with opener.open(urllib.request.Request(f'{url}/workers', headers=headers)) as reply:
      workers = json.loads(reply.read())['workers']
      return {worker['url'] for worker in workers if worker.get('status') != 'draining'}
  except (urllib.error.URLError, ConnectionError):
    return set()


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]

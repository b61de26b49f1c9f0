"""The embedded engine behind SGLang's HTTP: `python -m paravt_jax.serving.embedded.server --options
'<json>'`.
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
from aiohttp import web

from paravt_jax import apart, files
from paravt_jax.errors import ConfigError, ParavtError
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving.embedded.engine import Engine
from paravt_jax.serving.embedded.handlers import Server
from paravt_jax.serving.embedded.options import ServerOptions

log = logging.getLogger('paravt.server')


def bind(host: str, port: int) -> socket.socket:
  """Returns a bound socket.

  Raises:
    ConfigError: the port is taken, or the host is not an address of this machine.
  """
  sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
  sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    sock.bind((host, port))
    sock.listen(1024)
  except OSError as error:
    sock.close()
    raise ConfigError(
      f'server: cannot listen on {host}:{port} ({error.strerror}); set server.ports to free ones, '
      'or to (), and server.host to an address of this machine'
    ) from error
  return sock


def use_cache(folder: str) -> None:
  """Keeps all compiled programs of this process in a folder."""
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def build(
  options: ServerOptions, devices: Sequence[Any] | None = None, log: logging.Logger = log
) -> Engine:
  """Reads the model and compiles the engine. Returns a server that is ready for requests.

  Args:
    devices: those of the engine, in a process with other work (`programs.place_on`).
    log: gets the times.
  """
  start = time.monotonic()
  config, params = weights.load_hf(options.model_path)
  engine = Engine(config, params, 0, options, devices)
  compiled = time.monotonic() - start
  engine.warm_up()
  log.info(
    'loaded and compiled in %.1f s, warmed up in %.1f s',
    compiled,
    time.monotonic() - start - compiled,
  )
  return engine


async def serve(
  engine: Engine,
  options: ServerOptions,
  sock: socket.socket,
  done: asyncio.Event,
  log: logging.Logger = log,
) -> None:
  """Serves until `done`, or until the engine fails. Raises the engine's error."""
  server = Server(engine, options)
  life = apart.start(engine.run, name='engine')
  runner = web.AppRunner(
    server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=2.0, logger=log
  )
  try:
    await runner.setup()
    await web.SockSite(runner, sock).start()
    if options.port_file:
      files.write(options.port_file, str(sock.getsockname()[1]).encode(), sync=False)
    log.info('listening on http://%s:%d', *sock.getsockname()[:2])
    waiter = asyncio.create_task(done.wait())
    await asyncio.wait([life, waiter], return_when=asyncio.FIRST_COMPLETED)
    if not life.done():
      engine.call(engine.stop, lambda _: None)
    await life
  finally:
    await runner.cleanup()


async def serve_until_signal(engine: Engine, options: ServerOptions, sock: socket.socket) -> None:
  """Serves until SIGTERM or SIGINT, or until the engine fails. Raises the engine's error."""
  loop, done = asyncio.get_running_loop(), asyncio.Event()
  for name in (signal.SIGTERM, signal.SIGINT):
    loop.add_signal_handler(name, done.set)
  await serve(engine, options, sock, done)


def watch_parent(pid: int) -> None:
  """Ends this process when its parent `pid` is gone, so that no server outlives its run."""

  def watch() -> None:
    while os.getppid() == pid:
      time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5.0)
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=watch, daemon=True, name='watch-parent').start()


def main() -> int:
  """Runs the server. A wrong option or model gives one line on stderr and status 2."""
  logging.basicConfig(
    level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S', stream=sys.stderr
  )
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--options', required=True)
  parser.add_argument('--key-on-stdin', action='store_true', help='one line of JSON: the key')
  try:
    given = parser.parse_args()
    options = ServerOptions.from_json(given.options)
    if given.key_on_stdin:
      options = dataclasses.replace(options, api_key=json.loads(sys.stdin.readline()))
    if options.parent_pid is not None:
      watch_parent(options.parent_pid)
    sock = bind(options.host, options.port)
    if options.compile_cache:
      use_cache(options.compile_cache)
    engine = build(options)
  except ParavtError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  asyncio.run(serve_until_signal(engine, options, sock))
  return 0


if __name__ == '__main__':
  sys.exit(main())

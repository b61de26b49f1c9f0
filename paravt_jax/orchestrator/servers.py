"""The rollout servers of a run: by URL, or started here (embedded, sglang)."""

import asyncio
import os
import pathlib
from collections.abc import Callable
from typing import Any

from paravt_jax import packing
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError
from paravt_jax.options import KnobError, extended, require
from paravt_jax.orchestrator import compile_cache, split
from paravt_jax.orchestrator.host import Host
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.rollout.fleet import Member
from paravt_jax.rollout.gateway import Gateway
from paravt_jax.serving import sglang
from paravt_jax.serving.embedded import launch, threads
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.process import StartedServer

LOOPBACK = ('127.0.0.1', 'localhost')  # addresses that only this machine reaches
LAUNCHERS = {'cpu': 'launch_cpu.py', 'cuda': 'launch_gpu.py'}

Start = Callable[[], StartedServer]


def check(setup: AgentSetup, *, installed: bool = True) -> None:
  """Raises ConfigError for knobs of `server` that do not fit each other, before anything is made.

  The message names the knob. `members` checks the addresses later.

  Args:
    setup: the agent's sections.
    installed: whether SGLang must be there. A plan for another machine does not ask.
  """
  section = setup.server
  if section.kind == 'url':
    return
  wanted = "'' where the run starts its servers: a router needs server.kind=url"
  require(section.router, wanted, not section.router, 'server.router')
  ports, count = section.ports, section.count
  wanted = f'{count} ports, one per server, or ()'
  require(ports, wanted, len(ports) in (0, count), 'server.ports')
  wanted = f'a key, because server.host={section.host} is open to other machines: env:NAME'
  closed = section.host in LOOPBACK or bool(section.api_key)
  require(section.api_key, wanted, closed, 'server.api_key')
  if section.kind == 'sglang':
    _check_sglang(setup, installed)
  else:
    _check_embedded(setup)


def _check_sglang(setup: AgentSetup, installed: bool) -> None:
  section = setup.server.sglang
  wide = section.tensor_parallel * setup.server.count
  wanted = f'{wide} GPUs (server.count x tensor_parallel), or ()'
  require(section.devices, wanted, len(section.devices) in (0, wide), 'server.sglang.devices')
  wanted = "SGLang's interpreter, which is not there: run `make sglang`"
  there = not installed or pathlib.Path(section.python).is_file()
  require(section.python, wanted, there, 'server.sglang.python')
  _sglang(setup, 0, pathlib.Path(), pathlib.Path())  # the options check themselves


def _check_embedded(setup: AgentSetup) -> None:
  _embedded(setup, 0, pathlib.Path(), ())
  slot, pixels = setup.server.embedded.max_image_patches, setup.video.max_pixels
  wanted = f'at least {-(-pixels // packing.PATCH**2)}, what video.max_pixels={pixels} may need'
  fits = slot * packing.PATCH**2 >= pixels
  require(slot, wanted, fits, 'server.embedded.max_image_patches')
  if split.is_split(setup.server):
    _check_in_process(setup)


def _check_in_process(setup: AgentSetup) -> None:
  section = setup.server
  wanted = 'False: only RL has a learner, whose process its servers may share'
  require(True, wanted, setup.mesh_devices > 0, 'server.embedded.in_process')
  threads = section.embedded.threads
  wanted = '0 with server.embedded.in_process: the threads are those of the learner too'
  require(threads, wanted, not threads, 'server.embedded.threads')
  limit = section.watch.memory_mb
  wanted = "0 with server.embedded.in_process: a server's memory is that of the learner's process"
  require(limit, wanted, not limit, 'server.watch.memory_mb')


async def members(
  setup: AgentSetup,
  host: Host,
  model_folder: pathlib.Path,
  tok: ChatTokenizer,
  folder: pathlib.Path,
  gateway: Gateway | None = None,
) -> list[Member]:
  """Returns servers that answer. It starts the servers of this run at the same time.

  Args:
    folder: the run folder, for the servers' logs.
    gateway: SGLang's router in front of servers that run already.

  Raises:
    ConfigError: a knob of `server` is wrong.
    RolloutError: a server did not start; all others were ended.
  """
  check(setup)
  section = setup.server
  if section.kind == 'url':
    urls = [url.rstrip('/') for url in section.urls]
    if gateway is not None:
      urls = await gateway.members(urls)
    if not urls:
      raise ConfigError(
        '--config.server.urls is empty: start a rollout server and name it, as in '
        '--config.server.urls="(\'http://127.0.0.1:30000\',)", or its router by '
        '--config.server.router, or let the run start its own '
        'with --config.server.kind=embedded or sglang'
      )
    return [Member(url, None, None) for url in urls]
  starts = [_start(setup, host, n, model_folder, tok, folder) for n in range(section.count)]
  found = await asyncio.gather(
    *(asyncio.to_thread(start) for start in starts), return_exceptions=True
  )
  started = [one for one in found if not isinstance(one, BaseException)]
  failed = [one for one in found if isinstance(one, BaseException)]
  if failed:
    for one in started:
      one.stop(1.0)
    raise failed[0]
  return [Member(process.url, process, start) for process, start in zip(started, starts)]


def _start(
  setup: AgentSetup,
  host: Host,
  number: int,
  model_folder: pathlib.Path,
  tok: ChatTokenizer,
  folder: pathlib.Path,
) -> Start:
  """Returns a function that starts server `number`, now or after a crash.

  The function blocks until the server answers.
  """
  section = setup.server
  how: dict[str, Any] = {
    'log': folder / f'server{number}.log',
    'deadline_s': section.ready_timeout_s,
  }
  own_process = {**how, 'parent_pid': os.getpid()}
  if section.kind == 'embedded':
    options = _embedded(setup, number, model_folder, (tok.im_end, tok.endoftext))
    embedded = section.embedded
    if split.is_split(section):
      devices = split.of_server(setup.mesh_devices, section, number)
      return lambda: threads.launch(options, devices=devices, **how)
    environment = host.child_environment(embedded.threads, embedded.memory_fraction)
    return lambda: launch.launch(options, env=environment, **own_process)
  sglang_options = _sglang(setup, number, model_folder, host.launchers)
  environment = dict(host.environment)
  return lambda: sglang.launch(sglang_options, env=environment, **own_process)


def _embedded(
  setup: AgentSetup, number: int, model_folder: pathlib.Path, ends: tuple[int, ...]
) -> ServerOptions:
  section = setup.server
  try:
    return extended(
      ServerOptions,
      section.embedded,
      model_path=str(model_folder.absolute()),
      host=section.host,
      port=section.ports[number] if section.ports else 0,
      port_file=None,
      api_key=section.api_key or None,
      served_name=setup.name,
      think_prefix=setup.agent.think_prefix,
      eos_token_ids=ends,
      compile_cache=str(compile_cache.FOLDER.absolute()),
      parent_pid=None,
    )
  except KnobError as error:
    raise error.at('server.embedded') from None


def _sglang(
  setup: AgentSetup, number: int, model_folder: pathlib.Path, launchers: pathlib.Path
) -> sglang.SGLangOptions:
  section = setup.server
  width = section.sglang.tensor_parallel
  try:
    return extended(
      sglang.SGLangOptions,
      section.sglang,
      devices=section.sglang.devices[number * width : (number + 1) * width],
      launcher=str(launchers / LAUNCHERS[section.sglang.device]),
      model_path=str(model_folder.absolute()),
      served_name=setup.name,
      host=section.host,
      port=section.ports[number] if section.ports else 0,
      api_key=section.api_key or None,
      context_length=setup.sampling.context,
      vision_frozen=setup.vision_frozen,
    )
  except KnobError as error:
    raise error.at('server.sglang') from None

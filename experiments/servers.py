"""The rollout servers that a recipe asks for: by URL, or started here (embedded, sglang), as
members of a watched fleet.
"""

import asyncio
import os
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments import wiring
from experiments.launch import build, require
from paravt_jax import packing
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError
from paravt_jax.rollout.fleet import Member
from paravt_jax.serving import sglang
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.process import ServerProcess

KINDS = ('url', 'embedded', 'sglang')
LAUNCHERS = {'cpu': 'launch_cpu.py', 'cuda': 'launch_gpu.py'}
THIRD_PARTY = pathlib.Path(__file__).resolve().parent.parent / 'third_party' / 'sglang'

Start = Callable[[], ServerProcess]


def check(config: ConfigDict) -> None:
  """Refuses knobs of `server` that do not go together, before anything is made; addresses are asked
  for by `members`.

  Raises:
    ConfigError: naming the knob.
  """
  section = config.server
  require(section.kind, f'one of {", ".join(KINDS)}', section.kind in KINDS, 'server.kind')
  if section.kind == 'url':
    return
  ports = section.ports
  require(
    ports,
    f'{section.count} ports, one per server, or ()',
    len(ports) in (0, section.count),
    'server.ports',
  )
  if section.kind == 'sglang':
    wide = section.sglang.tensor_parallel * section.count
    devices, python = section.sglang.devices, section.sglang.python
    require(
      devices,
      f'{wide} GPUs (server.count x tensor_parallel), or ()',
      len(devices) in (0, wide),
      'server.sglang.devices',
    )
    require(
      python,
      "SGLang's interpreter, which is not there: run `make sglang`",
      pathlib.Path(python).is_file(),
      'server.sglang.python',
    )
    _sglang(config, 0, pathlib.Path())  # the options check themselves
  else:
    _embedded(config, 0, pathlib.Path(), ())
    slot, pixels = section.embedded.max_image_patches * packing.PATCH**2, config.video.max_pixels
    wanted = f'at least {-(-pixels // packing.PATCH**2)}, what video.max_pixels={pixels} may need'
    require(
      section.embedded.max_image_patches,
      wanted,
      slot >= pixels,
      'server.embedded.max_image_patches',
    )


async def members(
  config: ConfigDict, model_folder: pathlib.Path, tok: ChatTokenizer, folder: pathlib.Path
) -> list[Member]:
  """Servers that answer; those to be started are started side by side.

  Raises:
    ConfigError: a knob of `server` is wrong. RolloutError: one did not come up; none is left
    running.
  """
  check(config)
  section = config.server
  if section.kind == 'url':
    if not section.urls:
      raise ConfigError(
        '--config.server.urls is empty: start a rollout server and name it, as in '
        '--config.server.urls="(\'http://127.0.0.1:30000\',)", or let the run start its own '
        'with --config.server.kind=embedded or sglang'
      )
    return [Member(url.rstrip('/'), None, None) for url in section.urls]
  starts = [_start(config, number, model_folder, tok, folder) for number in range(section.count)]
  found = await asyncio.gather(
    *(asyncio.to_thread(start) for start in starts), return_exceptions=True
  )
  started = [one for one in found if isinstance(one, ServerProcess)]
  failed = [one for one in found if isinstance(one, BaseException)]
  if failed:
    for one in started:
      one.stop(1.0)
    raise failed[0]
  return [Member(process.url, process, start) for process, start in zip(started, starts)]


def _start(
  config: ConfigDict,
  number: int,
  model_folder: pathlib.Path,
  tok: ChatTokenizer,
  folder: pathlib.Path,
) -> Start:
  """What starts server `number`, now and after a crash; it blocks until the server answers."""
  section = config.server
  how = {
    'log': folder / f'server{number}.log',
    'deadline_s': section.ready_timeout_s,
    'parent_pid': os.getpid(),
  }
  if section.kind == 'embedded':
    options = _embedded(config, number, model_folder, (tok.im_end, tok.endoftext))
    return lambda: launch.launch(
      options, env=wiring.child_environment(section.embedded.threads), **how
    )
  sglang_options = _sglang(config, number, model_folder)
  return lambda: sglang.launch(sglang_options, env=dict(os.environ), **how)


def _embedded(
  config: ConfigDict, number: int, model_folder: pathlib.Path, ends: tuple[int, ...]
) -> ServerOptions:
  section = config.server
  return build(
    ServerOptions,
    {name: value for name, value in section.embedded.items() if name != 'threads'},
    'server.embedded',
    model_path=str(model_folder.absolute()),
    host=section.host,
    port=section.ports[number] if section.ports else 0,
    port_file=None,
    api_key=section.api_key or None,
    eos_token_ids=ends,
    compile_cache=str(pathlib.Path('runs/compile_cache').absolute()),
    parent_pid=None,
  )


def _sglang(config: ConfigDict, number: int, model_folder: pathlib.Path) -> sglang.SGLangOptions:
  section = config.server
  width = section.sglang.tensor_parallel
  return build(
    sglang.SGLangOptions,
    {
      name: value
      for name, value in section.sglang.to_dict().items()
      if name not in ('staging', 'devices')
    },
    'server.sglang',
    devices=section.sglang.devices[number * width : (number + 1) * width],
    launcher=str(THIRD_PARTY / LAUNCHERS.get(section.sglang.device, LAUNCHERS['cuda'])),
    model_path=str(model_folder.absolute()),
    served_name=config.name,
    host=section.host,
    port=section.ports[number] if section.ports else 0,
    api_key=section.api_key or None,
    context_length=config.sampling.context,
    vision_frozen=config.train.freeze_vision,
  )

"""Starts SGLang servers.

SGLang has its own environment (third_party/sglang). This module does not import SGLang.
"""

import contextlib
import dataclasses
import pathlib
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Annotated

import psutil

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.options import COUNT, DTYPE, GPUS, INSIDE, NAME, WORDS, Options, one_of, whole
from paravt_jax.serving import process
from paravt_jax.serving.process import ServerProcess

DEVICES = ('cpu', 'cuda')
# a package beside the launchers: Qwen3-VL with DeepStack added in the published order
MODELS = 'published_order'
_DROPPED = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', '__PYVENV_LAUNCHER__')
_CLASH = 'address already in use'
_HEALTH_S = 5.0
_EDGE = 2  # tokens of its context length that SGLang never uses


@dataclasses.dataclass(frozen=True)
class EngineOptions(Options):
  """How SGLang servers run."""

  python: Annotated[str, NAME]  # the interpreter of SGLang's environment
  device: Annotated[str, one_of(*DEVICES)]  # what it runs on
  dtype: Annotated[str, DTYPE]  # of weights, cache and products
  max_total_tokens: Annotated[int, COUNT]  # of the key-value cache
  max_running_requests: Annotated[int, COUNT]  # decoded together
  # share of the memory that is free when it starts, for weights and cache
  mem_fraction: Annotated[float, INSIDE]
  tensor_parallel: Annotated[int, COUNT]  # devices of one server
  devices: Annotated[tuple[int, ...], GPUS]  # their numbers; (): CUDA_VISIBLE_DEVICES decides
  # MiB of image features that the server keeps. They outlive a weight update, so only a frozen
  # vision tower allows them.
  vision_cache_mb: Annotated[int, whole(0, note='0: none')]
  extra: Annotated[tuple[str, ...], WORDS]  # further arguments of sglang.launch_server

  @classmethod
  def published(cls) -> 'EngineOptions':
    """Returns settings for the 8B model in bfloat16, one 80 GB device per server.

    The cache takes 36 GiB.
    """
    return EngineOptions(
      python='.venv-sglang/bin/python',
      device='cuda',
      dtype='bfloat16',
      max_total_tokens=262144,
      max_running_requests=64,
      mem_fraction=0.8,
      tensor_parallel=1,
      devices=(),
      vision_cache_mb=1024,
      extra=(),
    )


@dataclasses.dataclass(frozen=True)
class SGLangOptions(EngineOptions):
  """All that one SGLang server is started with."""

  threads: Annotated[int, COUNT]  # of the CPU, for each of its processes
  launcher: str  # the script of third_party/sglang that runs it
  model_path: str  # a Hugging Face folder
  served_name: str  # the model's name in replies
  host: str  # where it listens
  port: int  # 0: a free one
  # of all requests but health and readiness; the launcher gets it on its stdin
  api_key: str | None = dataclasses.field(repr=False)
  context_length: int  # tokens of a request, images expanded, sampled ones included
  vision_frozen: bool  # weight updates leave the vision tower as it is

  def __post_init__(self) -> None:
    super().__post_init__()
    _check(self)


def _check(options: SGLangOptions) -> None:
  wide = not options.devices or len(options.devices) == options.tensor_parallel
  needed = options.context_length + _EDGE
  if not 0 <= options.port < 65536:
    options.refuse('port', '0..65535, 0 picks a free one')
  if options.context_length < 1:
    options.refuse('context_length', 'at least 1')
  if not wide:
    numbers = f'{options.tensor_parallel} device numbers, as many as tensor_parallel, or none'
    options.refuse('devices', numbers)
  if options.vision_cache_mb and not options.vision_frozen:
    options.refuse(
      'vision_cache_mb',
      '0: features that the server keeps outlive a weight update; freeze the vision tower to '
      'keep them',
    )
  if options.max_total_tokens < needed:
    options.refuse('max_total_tokens', f'at least context_length + {_EDGE} ({needed})')


def command(options: SGLangOptions, parent_pid: int) -> list[str]:
  """Returns the command line. `options.port` must be a real port here.

  The launcher ends the server when process `parent_pid` is gone. It takes the key from its stdin,
  because all users of the machine see command lines.
  """
  o = options
  words = [
    o.python,
    o.launcher,
    '--parent-pid',
    str(parent_pid),
    *([] if o.api_key is None else ['--key-on-stdin']),
    '--model-path',
    o.model_path,
    '--served-model-name',
    o.served_name,
    '--host',
    o.host,
    '--port',
    str(o.port),
    '--device',
    o.device,
    '--dtype',
    o.dtype,
    '--context-length',
    str(o.context_length + _EDGE),
    '--max-total-tokens',
    str(o.max_total_tokens),  # required, because a CPU server takes most of the memory by default
    '--max-running-requests',
    str(o.max_running_requests),
    '--mem-fraction-static',
    str(o.mem_fraction),
    '--tensor-parallel-size',
    str(o.tensor_parallel),
    '--enable-fp32-lm-head',  # else logits are rounded to `dtype`; ours are float32
  ]
  if o.device == 'cpu':
    words += [
      '--attention-backend',
      'torch_native',  # the default needs kernels that exist only in a source build
      '--sampling-backend',
      'pytorch',
      '--sleep-on-idle',
    ]  # otherwise an idle scheduler spins on a core
  return [*words, *o.extra]


def environment(options: SGLangOptions, base: Mapping[str, str]) -> dict[str, str]:
  """Returns the server's environment: `base` without our Python's variables, plus the server's own.

  third_party/sglang/README.md has the reasons at length.
  """
  ours = {
    'SGLANG_VLM_CACHE_SIZE_MB': str(
      options.vision_cache_mb
    ),  # cached image features survive a weight update
    # else /health samples a token, takes 20 s, and returns 503 while paused
    'SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION': '0',
    'SGLANG_EXTERNAL_MODEL_PACKAGE': MODELS,
    'HF_HUB_OFFLINE': '1',  # a wrong path fails at once; nothing is downloaded
    'OMP_NUM_THREADS': str(options.threads),  # else each process would take all cores
    'NO_PROXY': _without_proxy(options.host, base.get('NO_PROXY')),  # its warm-up uses HTTP
    'no_proxy': _without_proxy(options.host, base.get('no_proxy')),
  }
  if options.device == 'cpu':
    ours |= {
      'SGLANG_USE_CPU_ENGINE': '1',  # SGLang reads it at import, before its arguments
      'TORCH_COMPILE_DISABLE': '1',  # nothing is compiled while it runs
      'CUDA_VISIBLE_DEVICES': '',
    }
  elif options.devices:
    ours['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, options.devices))
  return {name: value for name, value in base.items() if name not in _DROPPED} | ours


def _without_proxy(host: str, given: str | None) -> str:
  return ','.join(dict.fromkeys(filter(None, (given, host, '127.0.0.1', 'localhost'))))


def launch(
  options: SGLangOptions,
  *,
  env: Mapping[str, str],
  log: pathlib.Path,
  deadline_s: float,
  parent_pid: int,
) -> ServerProcess:
  """Starts a server in its own session. Returns once it has warmed up and accepts requests.

  Args:
    env: the environment that `environment` starts from.
    log: the file to which the server's output is appended.
    parent_pid: the server and its children end after this process (the caller) ends.

  Raises:
    ConfigError: the environment, the launcher or the model folder is missing.
    RolloutError: the server ended, or did not accept requests within `deadline_s` seconds. The
    message contains the end of its log.
  """
  _check_paths(options)
  start = log.stat().st_size if log.exists() else 0
  try:
    return _start_on_free_port(options, env, log, deadline_s, parent_pid)
  except RolloutError:
    with contextlib.suppress(FileNotFoundError):
      said = log.read_bytes()[start:].decode(errors='replace').lower()
      if options.port == 0 and _CLASH in said:  # another process took the port after the check
        return _start_on_free_port(options, env, log, deadline_s, parent_pid)
    raise


def _start_on_free_port(
  options: SGLangOptions,
  env: Mapping[str, str],
  log: pathlib.Path,
  deadline_s: float,
  parent_pid: int,
) -> ServerProcess:
  given = dataclasses.replace(options, port=free_port(options.host, options.port))
  url = f'http://{given.host}:{given.port}'
  words, variables = command(given, parent_pid), environment(given, env)
  child = process.start(words, env=variables, log=log, key=given.api_key)
  try:
    process.wait_until(
      child, lambda: answers(child, given.host, given.port), log, deadline_s, 'SGLang'
    )
  except BaseException:  # also on Ctrl-C: leave no child process
    process.end(child, 1.0)
    raise
  return ServerProcess(url, child, log)


def _check_paths(options: SGLangOptions) -> None:
  for name, path, way in (
    ('python', options.python, 'run `make sglang`, or `make sglang SGLANG=gpu`'),
    ('launcher', options.launcher, 'it stands in third_party/sglang'),
    (
      'model_path',
      str(pathlib.Path(options.model_path) / 'config.json'),
      'give a checkpoint folder',
    ),
  ):
    if not pathlib.Path(path).is_file():
      raise ConfigError(f'server.{name}: there is no {path}; {way}')


def free_port(host: str, port: int) -> int:
  """Returns `port` if it is free, or any free port for 0. Another process may still take it later.

  Raises:
    ConfigError: the port is taken, or `host` is not an address of this machine.
  """
  with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      sock.bind((host, port))
    except OSError as error:
      raise ConfigError(
        f'server: cannot listen on {host}:{port} ({error.strerror}); set server.ports to '
        'free ones, '
        'or to (), and server.host to an address of this machine'
      ) from error
    return sock.getsockname()[1]


def answers(child: subprocess.Popen, host: str, port: int) -> bool:
  """Returns whether `child` listens at the port and is healthy, that is, has warmed up.

  /health needs no key and samples nothing. The function checks that the listener is the child: a
  server that loses the race for its port also warms up before it ends.
  """
  try:
    sockets = psutil.Process(child.pid).net_connections('tcp')
  except (psutil.NoSuchProcess, psutil.AccessDenied):
    return False
  if not any(sock.status == psutil.CONN_LISTEN and sock.laddr.port == port for sock in sockets):
    return False
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(f'http://{host}:{port}/health', timeout=_HEALTH_S) as reply:
      return reply.status == 200
  except (urllib.error.URLError, OSError):
    return False

"""Two SGLang servers on the CPU, which belong to no run: at 8B they stand on other machines."""

import concurrent.futures
import contextlib
import os
import pathlib
import urllib.request
from collections.abc import Iterator

from paravt_jax.options import to_dict
from paravt_jax.serving import sglang
from paravt_jax.serving.process import ServerProcess

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = 2
# what a CPU needs, in place of the published device and sizes
CPU = {'device': 'cpu', 'max_total_tokens': 32768, 'mem_fraction': 0.2, 'vision_cache_mb': 64}


def options(model: pathlib.Path, context: int) -> sglang.SGLangOptions:
  """The published settings of a server in bfloat16, on the CPU."""
  published = {**to_dict(sglang.EngineOptions.published()), **CPU}
  return sglang.SGLangOptions(
    **{**published, 'python': str(ROOT / '.venv-sglang' / 'bin' / 'python')},
    threads=1,
    launcher=str(ROOT / 'third_party' / 'sglang' / 'launch_cpu.py'),
    model_path=str(model.absolute()),
    served_name='para_grpo',
    host='127.0.0.1',
    port=0,
    api_key=None,
    context_length=context,
    vision_frozen=True,
  )


@contextlib.contextmanager
def running(
  model: pathlib.Path, logs: pathlib.Path, context: int, deadline_s: float
) -> Iterator[list[ServerProcess]]:
  """Servers that answer; all of them have ended afterwards.

  Raises:
    RolloutError: one did not answer in time. Its log is in `logs`.
  """
  given = options(model, context)

  def start(number: int) -> ServerProcess:
    return sglang.launch(
      given,
      env=dict(os.environ),
      log=logs / f'server{number}.log',
      deadline_s=deadline_s,
      parent_pid=os.getpid(),
    )

  with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
    starts = [pool.submit(start, number) for number in range(COUNT)]
    concurrent.futures.wait(starts)
  servers = [one.result() for one in starts if one.exception() is None]
  try:
    for one in starts:
      one.result()
    yield servers
  finally:
    for server in servers:
      server.stop(10.0)


def get(url: str, path: str) -> bytes:
  """What a server answers to a GET."""
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with opener.open(url + path, timeout=60) as reply:
    return reply.read()

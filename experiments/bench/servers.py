"""The two rollout servers that suites measure."""

import os
import pathlib
from typing import Any

from experiments import launch as launches
from experiments.bench.recipe import BenchRecipe
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.options import extended
from paravt_jax.serving import sglang
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.process import ServerProcess

GRACE_S = 10.0  # that a server gets to end by itself


def embedded(
  recipe: BenchRecipe, folder: pathlib.Path, tok: ChatTokenizer, **changes: Any
) -> ServerProcess:
  """Starts the embedded server on a model folder.

  Args:
    changes: engine options other than the recipe's.
  """
  knobs = recipe.server.embedded.replace(**changes)
  options = extended(
    ServerOptions,
    knobs,
    model_path=str(folder.absolute()),
    served_name='bench',
    think_prefix='',
    eos_token_ids=(tok.im_end, tok.endoftext),
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key=None,
    parent_pid=None,
    compile_cache=None,
  )
  environment = launches.host().child_environment(recipe.threads)
  return launch.launch(options, env=environment, **_how(recipe, 'embedded'))


def real_sglang(recipe: BenchRecipe, folder: pathlib.Path, **changes: Any) -> ServerProcess:
  """Starts SGLang on a model folder. The arguments are those of `embedded`."""
  options = extended(
    sglang.SGLangOptions,
    recipe.server.sglang.replace(**changes),
    launcher=str(launches.host().launchers / 'launch_cpu.py'),
    model_path=str(folder.absolute()),
    served_name='bench',
    host='127.0.0.1',
    port=0,
    api_key=None,
    context_length=recipe.server.embedded.lanes[-1][0],
    vision_frozen=True,
    threads=recipe.threads,
  )
  return sglang.launch(options, env=dict(os.environ), **_how(recipe, 'sglang'))


def _how(recipe: BenchRecipe, name: str) -> dict[str, Any]:
  log = pathlib.Path(recipe.run.folder) / f'{name}.log'
  return {'log': log, 'deadline_s': recipe.server.ready_timeout_s, 'parent_pid': os.getpid()}

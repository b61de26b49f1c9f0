"""Suite `rollout`: the embedded server against transformers and SGLang, the cost of a group's
shared prompt, weights on their way.
"""

import asyncio
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.bench import drive as bench_drive
from experiments.bench import generate as bench_generate
from experiments.bench import publish as bench_publish
from experiments.bench import servers
from experiments.bench.generate import limit_cores
from experiments.bench.measuring import say
from experiments.bench.recipe import BenchRecipe
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.orchestrator import parts
from paravt_jax.serving.process import ServerProcess


def suite(recipe: BenchRecipe) -> dict[str, Any]:
  """{'embedded_vs_transformers': ..., 'embedded_vs_sglang': ..., 'prefix_reuse': ..., 'publish':
  ...}; see configs/bench.py.
  """
  folder = (
    pathlib.Path(recipe.model.folder) if recipe.model.folder else parts.tiny_model(recipe.seed)
  )
  tok = ChatTokenizer.load(folder)
  say('embedded engine and transformers take turns')
  report = {'embedded_vs_transformers': bench_generate.measure(recipe, folder, tok)}
  ours = _serve(recipe, tok, 'embedded', lambda: servers.embedded(recipe, folder, tok))
  theirs: dict[str, Any] | None = None
  if pathlib.Path(recipe.server.sglang.python).is_file():
    theirs = _serve(recipe, tok, 'sglang', lambda: servers.real_sglang(recipe, folder))
  else:
    say(
      f'there is no {recipe.server.sglang.python}: nothing is compared with SGLang; install '
      'it with `make sglang`'
    )
  report['embedded_vs_sglang'] = _versus(
    recipe, ours['speeds'], theirs['speeds'] if theirs else None
  )
  report['prefix_reuse'] = {
    **ours['prefix'],
    'sglang_prefills': theirs['prefix']['prefills'] if theirs else None,
  }
  say(f'publish: {recipe.publish.bytes / 1e9:g} GB through every stage')
  return report | {
    'publish': bench_publish.measure(
      recipe.publish.bytes, pathlib.Path(recipe.run.folder) / 'publish'
    )
  }


def _versus(
  recipe: BenchRecipe, ours: dict[int, float], theirs: dict[int, float] | None
) -> dict[str, Any]:
  """The ratio is that of the concurrency where we do worst."""
  ratios = {n: ours[n] / theirs[n] for n in ours} if theirs else {}
  each = {
    f'concurrency_{n}': {
      'tokens_per_second_ratio': ratios.get(n),
      'embedded_tokens_per_second': ours[n],
      'sglang_tokens_per_second': theirs[n] if theirs else None,
    }
    for n in ours
  }
  return {
    'tokens_per_second_ratio': min(ratios.values(), default=None),
    **each,
    'threads': recipe.threads,
  }


# The two servers


def _serve(
  recipe: BenchRecipe, tok: ChatTokenizer, name: str, start: Callable[[], ServerProcess]
) -> dict[str, Any]:
  """{'speeds': {concurrency: tokens/s}, 'prefix': ...} of one server, started on `recipe.threads`
  cores and ended again.

  The client that drives it may use the other cores.
  """
  say(f'{name} server, {recipe.threads} threads; log {recipe.run.folder}/{name}.log')
  with limit_cores(recipe.threads):
    process = start()
  try:
    return asyncio.run(bench_drive.drive(recipe, tok, name, process.url))
  finally:
    process.stop(servers.GRACE_S)

"""Evaluation of a checkpoint: `python -m experiments.eval --config=configs/eval.py[:scale] --config.model=DIR [...]`.

The same command resumes. The last line on standard output is the results folder. Exit
status: 0 done, 1 more errors than eval.max_error_rate, 2 wrong input. Of finished results:

python -m experiments.eval --compare RESULTS RESULTS
python -m experiments.eval --merge RESULTS RESULTS ... [--out DIR]

compare: paired differences by benchmark; the flips go to <second>/compare_<first>.json.
merge: joins the shards of one evaluation.
"""

import asyncio
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from experiments import launch
from paravt_jax.errors import ConfigError, DataError, ParavtError
from paravt_jax.eval import protocols, results
from paravt_jax.eval.run import EvalOptions
from paravt_jax.options import to_dict
from paravt_jax.orchestrator import (
  checks,
  eval_speed,
  evaluated_model,
  host_journal,
  parts,
  put,
  results_folders,
)
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator import suites as suites_
from paravt_jax.orchestrator.recipes import EvalRecipe
from paravt_jax.orchestrator.run_folder import Interrupts, RunFolder, fingerprint, write_json

COMMANDS = {'--compare': results_folders.compare, '--merge': results_folders.merge}


def main(recipe: EvalRecipe) -> None:
  """Evaluates the samples that the results folder lacks, then writes the table."""
  shard, protocol, model = identified(recipe)
  hosts = hosts_.current()
  with hosts.first_before('eval/suites'):  # what is made or unpacked is so once
    suites = suites_.suites(recipe)
  about = {suite.name: suite.about(shard) for suite in suites}
  if not any(one['keys'] for one in about.values()):
    raise ConfigError(
      f'--config.shard={recipe.shard}: no sample is in this shard, because a video goes to one '
      'shard whole; choose at most as many shards as there are videos'
    )
  plan = results.Plan(settings(recipe, model, protocol), about, shard)
  name = f'eval_{model.name}_{fingerprint(plan.common)}{_suffix(shard)}'
  path = pathlib.Path(recipe.run.folder or f'runs/{name}')
  results.refuse_other(path, plan)
  # without the samples of other benchmarks in the folder
  ours = {key for one in plan.benchmarks.values() for key in one['keys']}
  folder = RunFolder.named(recipe, folder=str(path), default='')
  own = hosts.folder(path)
  own.mkdir(exist_ok=True)
  if hosts.is_first:
    plan = results.write_plan(path, plan)
    _say(
      f'results folder {path}   (the same command continues where it stopped; Ctrl-C ends it cleanly)'
    )
  with (
    Interrupts() as interrupts,
    host_journal.opened(hosts, path, ours) as journal,
    folder.phase('eval'),
  ):
    todo = put.list_unanswered(suites, host_journal.share(hosts, shard), journal)
    if any(todo.values()):
      work = session(recipe, model, protocol, own, suites, todo, journal, interrupts)
      speed = asyncio.run(work)
      write_json(own / 'speed.json', speed)
      _say(eval_speed.describe(speed))
  if not hosts.is_first:
    return
  samples = recipe.eval.bootstrap
  found, table = results_folders.finish(path, plan, model.name, samples, recipe.seed)
  print(table)
  results_folders.report(recipe.video, recipe.eval, path)
  print(path)
  worst = results_folders.error_rate({suite.name: found[suite.name] for suite in suites})
  if worst > recipe.eval.max_error_rate:
    _say(
      f'errors: {worst:.1%} of the samples of a benchmark, above '
      f'eval.max_error_rate={recipe.eval.max_error_rate:g}; {path}/table.md counts them by reason; '
      'the same command tries them again'
    )
    hosts.barrier('end')
    sys.exit(1)


def identified(
  recipe: EvalRecipe,
) -> tuple[tuple[int, int], protocols.Protocol, evaluated_model.Model]:
  """Returns the shard, the protocol and the model that a recipe names.

  Raises:
    ConfigError: one of them is wrong. The message also lists what benchmarks lack.
  """
  try:
    shard = check(recipe)
    asked = recipe.protocol
    protocol = protocols.choose_protocol(asked.name, asked.prompt_file, asked.dispatch)
    model = evaluated_model.identify(recipe)
    if model.folder is not None:
      parts.model_of_scale(model.folder, recipe.scale, 'configs/eval.py')
  except (ConfigError, DataError) as error:
    others = suites_.also_refused(recipe)
    if not others:
      raise
    raise ConfigError(f'{error}\nand {others}') from error
  return shard, protocol, model


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def check(recipe: EvalRecipe) -> tuple[int, int]:
  """Raises ConfigError for knobs that do not fit each other, before anything is made.

  Returns:
    The shard as (number, count).
  """
  if checks.WORLD in recipe.benchmarks.split(','):
    checks.check_heldout(recipe.world)
  if recipe.model.url:
    evaluated_model.check_url(recipe)
  else:
    checks.check_eval_servers(recipe)
  return _shard(recipe.shard)


def _shard(text: str) -> tuple[int, int]:
  match = re.fullmatch(r'([1-9]\d*)/([1-9]\d*)', text or '1/1')
  if match is None or int(match[1]) > int(match[2]):
    raise ConfigError(
      f"--config.shard={text!r}: wanted its number and how many there are, such as 3/16, or ''"
    )
  return int(match[1]), int(match[2])


def _suffix(shard: tuple[int, int]) -> str:
  return '' if shard == (1, 1) else '_shard{}of{}'.format(*shard)


def settings(
  recipe: EvalRecipe, model: evaluated_model.Model, protocol: protocols.Protocol
) -> dict[str, Any]:
  """Returns the settings that determine the results, apart from the questions."""
  kind = 'chat' if recipe.model.url else recipe.server.kind
  sections = {'embedded': recipe.server.embedded, 'sglang': recipe.server.sglang}
  section = to_dict(sections[kind]) if kind in sections else {}
  server = {
    name: section[name]
    for name in ('attention', 'dtype', 'tensor_parallel', 'extra')
    if name in section
  }
  video = to_dict(recipe.video)
  return {
    'model': dict(model.parts),
    'server': {'kind': kind, **server},
    'chat': to_dict(recipe.chat) if recipe.model.url else {},
    'protocol': {
      'name': recipe.protocol.name,
      'dispatch': recipe.protocol.dispatch,
      'prompt': results.digest(protocol.prompt),
    },
    'agent': to_dict(recipe.agent),
    'subagent': to_dict(recipe.subagent),
    'sampling': to_dict(recipe.sampling),
    'reward': to_dict(recipe.reward),
    'video': {name: video[name] for name in ('min_pixels', 'max_pixels', 'backend')},
    'seed': recipe.seed,
    'code': evaluated_model.code(),
  }


async def session(
  recipe: EvalRecipe,
  model: evaluated_model.Model,
  protocol: protocols.Protocol,
  folder: pathlib.Path,
  suites: Sequence[suites_.Suite],
  todo: dict[str, list[put.Question]],
  journal: results.Journal,
  interrupts: Interrupts,
) -> dict[str, Any]:
  """Serves the model and puts the remaining questions. Returns the speed of the evaluation."""
  options = EvalOptions(recipe.eval.concurrent, recipe.seed, -1)
  opened = evaluated_model.open_model(recipe, model, protocol, launch.host(), folder)
  async with opened as served, eval_speed.poll_load(served.control, served.urls) as load:
    speed = eval_speed.Speed()
    await put.put(
      {suite.name: served.agent for suite in suites},
      suites,
      todo,
      journal,
      protocol=protocol,
      options=options,
      server=served,
      interrupts=interrupts,
      speed=speed,
    )
    await eval_speed.ask(served.control, served.urls, load)
    return speed.found(load, served.frames.counts)


def command(name: str, arguments: Sequence[str]) -> int:
  """Runs one of COMMANDS.

  Returns the exit status: 0, or 2 after a one-line error.
  """
  try:
    COMMANDS[name](arguments)
  except ParavtError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except OSError as error:
    print(
      f'error: {error.filename or name}: {error.strerror}; free space or check permissions, then '
      'run it again',
      file=sys.stderr,
    )
    return 2
  return 0


if __name__ == '__main__':
  if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
    sys.exit(command(sys.argv[1], sys.argv[2:]))
  sys.exit(launch.run(main, EvalRecipe, {'model': 'model.folder'}))

"""Evaluation of a checkpoint: `python -m experiments.eval --config=configs/eval.py[:scale] --config.model=DIR [...]`.

The same command goes on where it was. `--compare RESULTS RESULTS` and `--merge RESULTS RESULTS ...`
work on finished results. The last line on standard output is the results folder. Exit status: 0
done, 1 more errors than eval.max_error_rate, 2 wrong input.
"""

import asyncio
import pathlib
import re
import sys
from typing import Any

from ml_collections import ConfigDict

from experiments import (
  crosschecks,
  eval_data,
  eval_models,
  eval_speed,
  eval_tools,
  evaluation,
  runs,
  servers,
  wiring,
)
from experiments.launch import require, require_recipe, run
from paravt_jax.errors import ConfigError
from paravt_jax.eval import protocols, results
from paravt_jax.eval.run import EvalOptions, Record, each


def main(config: ConfigDict) -> None:
  """Runs the recipe from wherever its results folder stands to the table."""
  shard = check(config)
  protocol = protocols.chosen(
    config.protocol.name, config.protocol.prompt_file, config.protocol.dispatch
  )
  model = eval_models.identify(config)
  if model.folder is not None:
    wiring.model_of_scale(model.folder, config.scale, 'configs/eval.py')
  suites = eval_data.suites(config)
  plan = results.Plan(
    settings(config, model, protocol), {suite.name: suite.about(shard) for suite in suites}, shard
  )
  path = pathlib.Path(
    config.run.folder or f'runs/eval_{model.name}_{runs.fingerprint(plan.common)}{_suffix(shard)}'
  )
  results.refuse_other(path, plan)
  ours = {
    key for about in plan.benchmarks.values() for key in about['keys']
  }  # not those of benchmarks that the folder has beside
  folder = runs.RunFolder.named(config, folder=str(path), default='')
  plan = results.write_plan(path, plan)
  print(
    f'results folder {path}   (the same command goes on where it was; Ctrl-C ends it cleanly)',
    file=sys.stderr,
    flush=True,
  )
  with (
    runs.Interrupts() as interrupts,
    results.Journal(path, again=ours) as journal,
    folder.phase('eval'),
  ):
    todo = {
      suite.name: [
        (s, k)
        for s, k in suite.questions(shard)
        if results.key_of(suite.name, s.task.id, k) not in journal.answered
      ]
      for suite in suites
    }
    if any(todo.values()):
      speed = asyncio.run(session(config, model, protocol, path, suites, todo, journal, interrupts))
      runs.write_json(path / 'speed.json', speed)
      print(eval_speed.told(speed), file=sys.stderr, flush=True)
  found = eval_tools.finish(path, plan, model.name, config.eval.bootstrap, config.seed)
  eval_tools.report(config, path)
  print(path)
  worst = eval_tools.error_rate({suite.name: found[suite.name] for suite in suites})
  if worst > config.eval.max_error_rate:
    print(
      f'errors: {worst:.1%} of the samples of a benchmark, above '
      f'eval.max_error_rate={config.eval.max_error_rate:g}; {path}/table.md '
      f'counts them by reason; the same command tries them again',
      file=sys.stderr,
    )
    sys.exit(1)


def check(config: ConfigDict) -> tuple[int, int]:
  """Refuses knobs out of range, before anything is made; the shard as (number, count)."""
  require_recipe(config, 'protocol', 'configs/eval.py')
  if eval_data.WORLD in config.benchmarks.split(','):
    crosschecks.require_heldout(config)
  if config.model.url:
    eval_models.check_url(config)
  else:
    servers.check(config)
    urls = tuple(config.server.urls)
    require(
      urls,
      "a server's address, or server.kind=embedded or sglang",
      bool(urls) or config.server.kind != 'url',
      'server.urls',
    )
  return _shard(config.shard)


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
  config: ConfigDict, model: eval_models.Model, protocol: protocols.Protocol
) -> dict[str, Any]:
  """All that results are a function of, besides the questions."""
  kind = 'chat' if config.model.url else config.server.kind
  section = config.server.get(kind, {})
  server = {
    name: section[name] for name in ('dtype', 'tensor_parallel', 'extra') if name in section
  }
  return {
    'model': dict(model.parts),
    'server': {'kind': kind, **server},
    'chat': config.chat.to_dict() if config.model.url else {},
    'protocol': {
      'name': config.protocol.name,
      'dispatch': config.protocol.dispatch,
      'prompt': results.digest(protocol.prompt),
    },
    **{name: config[name].to_dict() for name in ('agent', 'subagent', 'sampling', 'reward')},
    'video': {name: config.video[name] for name in ('min_pixels', 'max_pixels', 'backend')},
    'seed': config.seed,
    'code': eval_models.code(),
  }


async def session(
  config: ConfigDict,
  model: eval_models.Model,
  protocol: protocols.Protocol,
  folder: pathlib.Path,
  suites: list[eval_data.Suite],
  todo: dict[str, list],
  journal: results.Journal,
  interrupts: runs.Interrupts,
) -> dict[str, Any]:
  """Puts what is left to do, a benchmark after another; every finished sample is on disk at once.
  Returns how fast it went.
  """
  options = EvalOptions((), config.eval.concurrent, config.seed, -1)
  async with (
    eval_models.opened(config, model, protocol, folder) as crew,
    eval_speed.watched(crew.control, crew.urls) as load,
  ):
    speed = eval_speed.Speed()
    for suite in suites:
      samples = {sample.task.id: sample for sample, _ in todo[suite.name]}
      with wiring.bar(len(todo[suite.name]), suite.name) as progress:

        def keep(record: Record, suite=suite, samples=samples, progress=progress) -> None:
          line = eval_data.outcome(suite, samples[record.task.id], record, protocol)
          journal.append(line)
          speed.add(line)
          progress.update()

        questions = ((sample.task, k) for sample, k in todo[suite.name])
        work = each(crew.agent, questions, lambda _, suite=suite: suite.reward, options, keep)
        await evaluation.unless_stopped(work, interrupts, crew)
    await eval_speed.ask(crew.control, crew.urls, load)
    return speed.found(load, crew.frames.counts)


if __name__ == '__main__':
  if len(sys.argv) > 1 and sys.argv[1] in eval_tools.COMMANDS:
    sys.exit(eval_tools.run(sys.argv[1], sys.argv[2:]))
  sys.exit(run(main, {'model': 'model.folder'}))

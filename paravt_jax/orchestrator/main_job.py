"""The main job, from its recipe to its report (`experiments.rl`).

corpus -> cold start (made if it does not exist) -> rollout servers -> evaluation -> PARA-GRPO ->
evaluation -> report. Running it again resumes it.
"""

import asyncio
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from paravt_jax.errors import ConfigError, ParavtError
from paravt_jax.orchestrator import checks, evaluation, outlook, rollouts, run_folder, split
from paravt_jax.orchestrator import cold_start as sft
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator.corpus import Questions, rl_corpus, rl_questions
from paravt_jax.orchestrator.host import Host
from paravt_jax.orchestrator.learner import Learner
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.run_folder import Interrupts, RunFolder
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.orchestrator.training import train

Make = Callable[[RLRecipe, pathlib.Path, pathlib.Path], Learner]


def run(recipe: RLRecipe, host: Host, make: Make = Learner) -> pathlib.Path:
  """Runs the recipe to its report, from the last recorded step of its folder.

  Args:
    recipe: all settings.
    host: of the processes that are started.
    make: (recipe, model folder, run folder) -> the learner; your own may be a subclass.

  Returns:
    The run folder.

  Raises:
    ParavtError: a setting, a file or a server is wrong, or an alarm ended the run.
    KeyboardInterrupt: an end was requested; the record of the last finished step is written.
  """
  checks.check_rl(recipe)
  rollouts.check_judge(recipe)
  hosts = hosts_.current()
  hosts_.open_devices()
  split.check(recipe.mesh, recipe.server)
  outlook.check_attention(recipe)
  name = f'{recipe.name}_{recipe.scale}'
  folder = RunFolder.named(recipe, folder=recipe.run.folder, default=name)
  run_folder.announce(recipe.name, recipe.scale, folder)
  outlook.announce(recipe)
  reopen(recipe, folder)
  own = hosts.folder(folder.path)
  own.mkdir(exist_ok=True)
  with folder.phase('world' if recipe.data.kind == 'world' else 'corpus'):
    with hosts.first_before('rl/corpus'):  # a world is written once
      corpus = rl_corpus(recipe)
    questions = rl_questions(recipe, corpus, own)
  with folder.phase('cold_start'):
    given = recipe.model.folder
    model_folder = pathlib.Path(given) if given else cold_start(recipe, folder)
  with Interrupts() as interrupts:
    work = session(recipe, folder, model_folder, questions, interrupts, host, make)
    try:
      summary = asyncio.run(work)
    except ParavtError:  # such as that of an alarm: the page shows what led to it
      if hosts.is_first:
        evaluation.leave_page(recipe, folder, model_folder)
      raise
  if hosts.is_first:
    run_folder.write_json(folder.path / 'summary.json', summary)
    evaluation.finish(recipe, folder, summary, model_folder)
  return folder.path


def reopen(recipe: RLRecipe, folder: RunFolder) -> None:
  """Removes the final results of a finished run if the recipe wants more steps.

  They are made again after the last step.
  """
  done = run_folder.steps_done(folder.path)
  if done is not None and done < recipe.rollout.steps:
    folder.forget('after')
    if not hosts_.current().is_first:
      return
    (folder.path / 'summary.json').unlink(missing_ok=True)
    shutil.rmtree(evaluation.folder_of(folder.path, 'after'), ignore_errors=True)
    shutil.rmtree(folder.path / 'hf', ignore_errors=True)


def cold_start(recipe: RLRecipe, folder: RunFolder) -> pathlib.Path:
  """Returns the recipe's cold start, and trains it if it does not exist.

  A copy of its training curve goes into the run folder, for the report.
  """
  if recipe.cold_start is None:
    raise ConfigError(
      '--config.model.folder is empty, and this scale has no cold start: train one '
      'with experiments.sft'
    )
  model_folder = sft.cold_start(recipe.cold_start)
  curve = model_folder.parent / 'metrics.jsonl'
  if curve.is_file() and hosts_.current().is_first:
    (folder.path / 'sft').mkdir(exist_ok=True)
    shutil.copyfile(curve, folder.path / 'sft' / 'metrics.jsonl')
  return model_folder


async def session(
  recipe: RLRecipe,
  folder: RunFolder,
  model_folder: pathlib.Path,
  questions: Questions,
  interrupts: Interrupts,
  host: Host,
  make: Make = Learner,
) -> dict[str, Any]:
  """Runs everything that needs learner and servers at once: evaluation, training, evaluation.

  Returns:
    The run's summary.
  """
  with hosts_.ending_together(recipe.hosts, last=False):
    return await _session(recipe, folder, model_folder, questions, interrupts, host, make)


async def _session(
  recipe: RLRecipe,
  folder: RunFolder,
  model_folder: pathlib.Path,
  questions: Questions,
  interrupts: Interrupts,
  host: Host,
  make: Make = Learner,
) -> dict[str, Any]:
  with folder.phase('start'):
    learner = make(recipe, model_folder, folder.path)
    base = learner.canary()
    position = learner.restore()
    opened = rollouts.open_rollouts(
      AgentSetup.of(recipe),
      host,
      model_folder,
      learner.tok,
      learner.model_config.text.vocab,
      hosts_.current().folder(folder.path),
      base,
      timeline=hosts_.current().folder(folder.path) / 'timeline.json',
    )
    server = await opened.__aenter__()

  async def evaluate(name: str) -> None:
    asked, version = questions.heldout, learner.version
    await evaluation.phase(name, recipe, folder, server, asked, version, interrupts)

  try:
    # a server by URL may still have weights of an earlier run
    await server.deliver(learner.publish(), learner.version)
    await evaluate('before')
    with folder.phase('rl'):
      await train(recipe, folder, learner, server, questions, position, interrupts)
    await evaluate('after')
  finally:
    await opened.__aexit__(None, None, None)
  with folder.phase('export'):
    learner.export(folder.path / 'hf')
  return evaluation.summary(recipe, folder) if hosts_.current().is_first else {}

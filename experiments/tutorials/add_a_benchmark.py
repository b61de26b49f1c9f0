"""A benchmark of your own: `python -m experiments.tutorials.add_a_benchmark QUESTIONS.jsonl OUT
[--model=DIR]`.

QUESTIONS.jsonl has one question a line: {"id", "video", "question", "answer"}. A benchmark is a
`Suite`: samples, frame budgets, and how an episode is scored. What is written to OUT is an ordinary
results folder: the same command continues, and `experiments.eval --compare` works on it.
"""

import asyncio
import json
import pathlib

from absl import app

from configs import eval as evaluation
from experiments import launch
from experiments.tutorials import MODEL
from paravt_jax.eval import protocols, results
from paravt_jax.eval.run import EvalOptions
from paravt_jax.eval.sample import Sample
from paravt_jax.options import to_dict
from paravt_jax.orchestrator import (
  eval_speed,
  evaluated_model,
  parts,
  put,
  results_folders,
  suites,
)
from paravt_jax.orchestrator.recipes import EvalRecipe
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.rewards.answer import extract_answer
from paravt_jax.rollout import groups
from paravt_jax.types import Episode, Task

NAME, WHOLE = 'mine', (1, 1)


def load(path: pathlib.Path) -> list[Sample]:
  """The samples of a file, one video's side by side."""
  found = []
  for line in path.read_text().split('\n'):
    if line.strip():
      row = json.loads(line)
      video = str((path.parent / row['video']).absolute())
      task = Task(row['id'], (video,), row['question'], 'oe', row['answer'])
      found.append(Sample(NAME, task, {'length': str(len(row['question'].split()))}))
  return suites.by_video(found)


def scores(sample: Sample, episode: Episode, given: str | None) -> dict[str, float]:
  """Whether the answer holds the gold one; `given` is the answer where a protocol reads it."""
  said = extract_answer(episode.turns[-1].text) if given is None else given
  return {'holds_gold': float(sample.gold.lower() in said.lower())}


def suite(samples: list[Sample], recipe: EvalRecipe) -> suites.Suite:
  """The benchmark."""
  reward = groups.rewarder(recipe.reward.replace(open_ended='exact'), None)
  rule = 'the answer holds the gold one'
  return suites.Suite(NAME, samples, (8, 16), 'holds_gold', reward, scores, None, rule)


def main(argv: list[str]) -> None:
  """Puts the questions and prints the table."""
  if len(argv) != 3:
    raise app.UsageError('wanted a file of questions and a folder for the results')
  samples = load(pathlib.Path(argv[1]))
  recipe = launch.typed(EvalRecipe, evaluation.get_config())
  folder = MODEL.value or str(parts.tiny_model(recipe.seed))
  recipe = recipe.replace(model=recipe.model.replace(folder=folder))
  print(asyncio.run(evaluate(recipe, samples, pathlib.Path(argv[2]))))


async def evaluate(recipe: EvalRecipe, samples: list[Sample], out: pathlib.Path) -> str:
  """Asks what is not answered yet; returns the table."""
  mine, model = suite(samples, recipe), evaluated_model.identify(recipe)
  protocol = protocols.choose_protocol('tools', '', 'parallel')
  common = {'model': dict(model.parts), 'agent': to_dict(recipe.agent), 'seed': recipe.seed}
  out.mkdir(parents=True, exist_ok=True)
  plan = results.write_plan(out, results.Plan(common, {NAME: mine.about(WHOLE)}, WHOLE))
  options = EvalOptions(recipe.eval.concurrent, recipe.seed, -1)
  opened = evaluated_model.open_model(recipe, model, protocol, launch.host(), out)
  with Interrupts() as interrupts, results.Journal(out) as journal:
    async with opened as served:
      await put.put(
        {NAME: served.agent},
        [mine],
        put.list_unanswered([mine], WHOLE, journal),
        journal,
        protocol=protocol,
        options=options,
        server=served,
        interrupts=interrupts,
        speed=eval_speed.Speed(),
      )
  return results_folders.finish(out, plan, model.name, recipe.eval.bootstrap, recipe.seed)[1]


if __name__ == '__main__':
  launch.run_script(main)

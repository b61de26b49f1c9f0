"""The questions of an evaluation: benchmarks from their snapshots, and the synthetic world.

Their order lets questions on one video share its frames.
"""

import collections
import dataclasses
import difflib
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paravt_jax.data import fields, rows
from paravt_jax.errors import ConfigError, DataError, ParavtError
from paravt_jax.eval import benchmarks, protocols, results
from paravt_jax.eval.run import Record
from paravt_jax.eval.sample import Sample, describe_faults
from paravt_jax.orchestrator import rollouts
from paravt_jax.orchestrator.corpus import make_world
from paravt_jax.orchestrator.recipes import EvalRecipe
from paravt_jax.report import episodes
from paravt_jax.rewards import total
from paravt_jax.rewards.answer import extract_answer
from paravt_jax.rewards.total import RewardOptions
from paravt_jax.rollout import groups
from paravt_jax.rollout.sampler import expanded
from paravt_jax.types import Episode, Task

WORLD = 'world'


@dataclasses.dataclass(frozen=True)
class Suite:
  """One benchmark of an evaluation."""

  name: str
  samples: Sequence[Sample]  # of all shards; samples of one video are adjacent
  budgets: tuple[int, ...]  # K, each put to every sample
  metric: str  # which of the metrics is the score
  reward: groups.Reward
  # (sample, episode) -> metrics, with the answer if the protocol reads it by its own rule
  metrics: Callable[[Sample, Episode, str | None], dict[str, float]]
  # (sample, text of the last turn) -> scores by the benchmark's own rule; None without one
  official: Callable[[Sample, str], dict[str, float]] | None
  rule: str  # everything else that determines scores
  # scores by the rule of lmms-eval
  lmms_eval: Callable[[Sample, str], dict[str, float]] | None = None
  draw: Callable[[Sample], int] | None = None  # the single K of a sample; replaces `budgets`

  def questions(self, shard: tuple[int, int]) -> Iterator[tuple[Sample, int]]:
    """Returns the (sample, K) pairs of a shard, by video and then by K.

    Each video goes to one shard, in turn.
    """
    for number, (_, group) in enumerate(
      itertools.groupby(self.samples, key=lambda sample: sample.task.videos)
    ):
      if number % shard[1] == shard[0] - 1:
        members = list(group)
        if self.draw is not None:
          yield from ((sample, self.draw(sample)) for sample in members)
        else:
          yield from ((sample, k) for k in self.budgets for sample in members)

  def about(self, shard: tuple[int, int]) -> dict[str, Any]:
    """Returns the suite's entry in a plan."""
    asked = [
      [
        s.task.id,
        s.task.question,
        s.task.question_type,
        s.task.answer,
        list(s.task.options),
        s.subtitles,
        *s.golds,
      ]
      for s in self.samples
    ]
    return {
      'parts': {
        'budgets': list(self.budgets),
        'samples': len(asked),
        'questions': results.digest(asked),
        'rule': self.rule,
      },
      'metric': self.metric,
      'keys': [results.key_of(self.name, sample.task.id, k) for sample, k in self.questions(shard)],
    }


def suites(recipe: EvalRecipe) -> list[Suite]:
  """Returns the benchmarks that the recipe names, read and checked.

  Raises:
    ConfigError: a name is unknown.
    DataError: files are missing (the message names all of them), or a row is broken.
  """
  names = _names(recipe)
  folders = {name: str(folder(recipe, name)) for name in names if name != WORLD}
  for line in _problems(recipe, folders, recipe.data.cache):
    print(f'questions without their video are errors: {line}', file=sys.stderr, flush=True)
  return [
    _world(recipe) if name == WORLD else _benchmark(recipe, name, folders[name]) for name in names
  ]


def also_refused(recipe: EvalRecipe) -> str:
  """Returns the error message that `suites` would raise, or '' without an error.

  It unpacks, makes and prints nothing.
  """
  try:
    names = _names(recipe)
    _problems(recipe, {name: str(folder(recipe, name)) for name in names if name != WORLD}, None)
  except ParavtError as error:
    return str(error)
  return ''


def _names(recipe: EvalRecipe) -> list[str]:
  """Returns the requested benchmarks. Raises ConfigError for an unknown or repeated name."""
  names = [name.strip() for name in recipe.benchmarks.split(',') if name.strip()]
  known = (*benchmarks.BENCHMARKS, WORLD)
  unknown = [name for name in names if name not in known]
  if unknown or not names or len(set(names)) < len(names):
    near = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
    hints = [f'{name!r}: did you mean {found[0]}?' for name, found in near.items() if found]
    wanted = f'wanted different names, separated by commas, of {", ".join(known)}'
    raise ConfigError(
      f'--config.benchmarks={recipe.benchmarks}: '
      f'{" ".join([*hints, wanted] if hints else [wanted])}'
    )
  return names


def _problems(recipe: EvalRecipe, folders: dict[str, str], cache: str | None) -> list[str]:
  """Returns messages about benchmarks that lack some of their videos, if the recipe allows that.

  Raises:
    DataError: files are missing; the message names all of them, by benchmark.
  """
  missing, some_videos = benchmarks.problems(folders, cache, recipe.eval.limit)
  if missing or (some_videos and not recipe.eval.skip_missing_videos):
    way_out = (
      ''
      if missing
      else ('; to count their questions as errors, set --config.eval.skip_missing_videos=True')
    )
    raise DataError(
      f'files of benchmarks are missing (configs/eval.py says where they are expected{way_out}):'
      + ''.join(f'\n  {line}' for line in [*missing, *some_videos])
    )
  return some_videos


def folder(recipe: EvalRecipe, name: str) -> pathlib.Path:
  """Returns the folder where a benchmark's snapshot is expected.

  It is the path that the recipe gives. Otherwise it is the first of the benchmark's names on the
  hub that exists below the root, as a folder or in the layout of a hub cache
  (datasets--owner--name).
  """
  if recipe.paths[name]:
    return pathlib.Path(recipe.paths[name])
  about, root = benchmarks.BENCHMARKS[name], pathlib.Path(recipe.data.root)
  hubs = (about.hub, *about.also)
  places = [root / hub for hub in hubs] + [
    root / f'datasets--{hub.replace("/", "--")}' for hub in hubs
  ]
  return next((place for place in places if place.is_dir()), places[0])


def _world(recipe: EvalRecipe) -> Suite:
  """Returns the held-out questions of the synthetic corpus, scored as in training's own
  evaluation.
  """
  world, root = make_world(recipe.world)
  strict = fields.RowOptions(skip_bad_rows=False, require_media=True)
  tasks = rows.rl_tasks([world.heldout], root, strict, collections.Counter())
  tasks = tasks[: recipe.eval.world_questions]
  rule = f'tvg at IoU {recipe.eval.grounding_threshold}; videos of world {world.folder.name}'
  kept = tasks[: recipe.eval.limit] if recipe.eval.limit else tasks
  options = rollouts.evaluation_options(recipe)
  return heldout(WORLD, kept, recipe.eval.world_budgets, options, rule)


def heldout(
  name: str,
  tasks: Sequence[Task],
  budgets: tuple[int, ...],
  options: RewardOptions,
  rule: str,
  draw: Callable[[Sample], int] | None = None,
) -> Suite:
  """Returns RL rows as a benchmark, scored by R_acc.

  Args:
    options: of the reward.
    rule: everything else that determines scores.
    draw: the single K of a sample; replaces the budgets.
  """
  samples = [Sample(name, task, _windows(task)) for task in tasks]
  reward, metrics = groups.rewarder(options, None), accuracy_metrics(options)
  ordered = by_video(samples)
  return Suite(name, ordered, budgets, 'accuracy', reward, metrics, None, rule, draw=draw)


def _windows(task: Task) -> dict[str, str]:
  """Returns the number of windows that a question needs, if the generator knows it."""
  return {'windows': str(task.facts['windows'])} if 'windows' in task.facts else {}


def accuracy_metrics(
  options: total.RewardOptions,
) -> Callable[[Sample, Episode, str | None], dict[str, float]]:
  """Returns R_acc as `Suite.metrics`, also if a protocol reads the answer by its own rule."""

  def metrics(sample: Sample, episode: Episode, given: str | None) -> dict[str, float]:
    if given is not None:
      last = dataclasses.replace(episode.turns[-1], text=f'<answer>{given}</answer>')
      episode = dataclasses.replace(episode, turns=(*episode.turns[:-1], last))
    return {'accuracy': float(total.accuracy(episode, options))}

  return metrics


def _benchmark(recipe: EvalRecipe, name: str, where: str) -> Suite:
  about = benchmarks.BENCHMARKS[name]
  samples = benchmarks.load(name, where, recipe.data.cache, recipe.eval.limit)
  broken = describe_faults(benchmarks.faults(samples))
  if broken:
    print(
      f'{name}: of {len(samples)} rows, {broken}; they are asked as they are and marked',
      file=sys.stderr,
      flush=True,
    )
  if notes := benchmarks.subtitle_notes(samples):
    print(f'{name}: {notes}', file=sys.stderr, flush=True)
  scored = recipe.reward.replace(open_ended='exact', grounding_threshold=None)
  reward = groups.rewarder(scored, None)
  metrics = lambda sample, episode, given: benchmarks.scores(sample, episode.turns[-1].text, given)
  return Suite(
    name,
    by_video(samples),
    recipe.eval.budgets,
    about.metric,
    reward,
    metrics,
    about.official,
    '',
    about.lmms_eval,
  )


def by_video(samples: Sequence[Sample]) -> list[Sample]:
  """Groups the samples by video. Videos keep their order of first appearance."""
  found: dict[tuple[str, ...], list[Sample]] = {}
  for sample in samples:
    found.setdefault(sample.task.videos, []).append(sample)
  return [sample for group in found.values() for sample in group]


def outcome(
  suite: Suite, sample: Sample, record: Record, protocol: protocols.Protocol
) -> results.Outcome:
  """Returns the results line of a finished sample. Its frames are needed to count their tokens."""
  task: Task = sample.task
  common = {
    'key': results.key_of(suite.name, task.id, record.budget),
    'benchmark': suite.name,
    'id': task.id,
    'k': record.budget,
    'gold': sample.gold,
    'fields': {'question_type': task.question_type, **sample.fields},
    'seconds': {name: round(value, 4) for name, value in record.seconds.items()},
  }
  if record.scored is None:
    return results.Outcome(
      status=results.ERROR,
      reason=record.reason,
      error=record.error or record.reason,
      score=None,
      metrics={},
      official=None,
      lmms_eval=None,
      answer='',
      tokens={'prompt': 0, 'sampled': 0},
      episode=None,
      question=task.facts.get('asked', task.question),
      **common,
    )
  episode = record.scored.episode
  said, text = protocols.answer(protocol, episode), episode.turns[-1].text
  # The protocol decides where an answer is. Format scores and published rules
  # read the original text.
  metrics = suite.metrics(sample, episode, None if said == extract_answer(text) else said)
  contexts = [
    episode.trajectory,
    *(result.subagent for result in episode.results if result.subagent is not None),
  ]
  segments = [segment for context in contexts for segment in context.segments]
  tokens = {
    'prompt': expanded([segment for segment in segments if not segment.sampled]),
    'sampled': sum(len(segment.ids) for segment in segments if segment.sampled),
  }
  return results.Outcome(
    status=results.ANSWERED,
    reason='',
    error='',
    score=metrics[suite.metric],
    metrics=metrics,
    official=None if suite.official is None else suite.official(sample, text),
    lmms_eval=None if suite.lmms_eval is None else suite.lmms_eval(sample, text),
    answer=said,
    tokens=tokens,
    episode=episodes.to_json(0, record.scored),
    **common,
  )

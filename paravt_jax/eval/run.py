"""Every question at every frame budget, by the very agent loop that RL trains; errors are outcomes
of their own, also those of a single call: what server, file or clock did to an episode says nothing
about the model.

Scores are given over all samples (`accuracy`: an error earns nothing, and is counted in `errors`)
and over the answered ones.
"""

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from paravt_jax.chat.toolcalls import is_well_formed
from paravt_jax.errors import MediaError
from paravt_jax.eval import scoring, subtitles
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.groups import Dropped, Reward, judged
from paravt_jax.rollout.sampler import Address, expanded
from paravt_jax.types import (
  Episode,
  ResultStatus,
  Scored,
  StopReason,
  Task,
  ToolCall,
  ToolResult,
  Trajectory,
)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
  """budgets: K, each put to every question. concurrency: episodes in flight. seed, epoch: of the
  draws, when sampling is not greedy.
  """

  budgets: tuple[int, ...]
  concurrency: int
  seed: int
  epoch: int


@dataclasses.dataclass(frozen=True)
class Record:
  """One question at one budget."""

  task: Task
  budget: int
  scored: Scored | None  # the episode with its parts; None after an error
  reason: str = ''  # of an error, a countable word
  error: str = ''  # its text
  # 'wall', and of it 'open' (frames, prompt), 'episode' and 'reward'
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)

  @property
  def key(self) -> tuple[str, int]:
    """What identifies a record within an evaluation."""
    return self.task.id, self.budget

  @property
  def accuracy(self) -> float:
    """R_acc; 0 after an error."""
    return 0.0 if self.scored is None else float(self.scored.parts['accuracy'])


async def evaluate(
  agent: Agent,
  tasks: Sequence[Task],
  reward: Reward,
  options: EvalOptions,
  on_record: Callable[[Record], None] | None = None,
) -> tuple[list[Record], dict[str, Any]]:
  """Runs all tasks at all budgets.

  Args:
    agent: greedy or sampling, as its context options say. reward: its parts must hold 'accuracy'
    (in [0, 1]) and 'compliant'; here tvg is usually scored by a threshold, oe exactly. on_record:
    hears of each record as it finishes, frames included.

  Returns:
    (records in the order tasks x budgets, `summarize` of them). Errors of server, video and judge
    are records too. Trajectories come back without their frames, which would fill the memory at
    thousands of questions.
  """
  places = {
    (task.id, budget): i
    for i, (task, budget) in enumerate(
      (task, budget) for task in tasks for budget in options.budgets
    )
  }
  records: list[Record | None] = [None] * len(places)

  def keep(record: Record) -> None:
    if on_record is not None:
      on_record(record)
    records[places[record.key]] = light(record)

  await each(
    agent,
    ((task, budget) for task in tasks for budget in options.budgets),
    lambda task: reward,
    options,
    keep,
  )
  finished = [record for record in records if record is not None]  # all: `each` has ended
  return finished, summarize(finished)


async def each(
  agent: Agent,
  questions: Iterable[tuple[Task, int]],
  reward: Callable[[Task], Reward],
  options: EvalOptions,
  on_record: Callable[[Record], None],
) -> None:
  """Runs (task, budget) pairs in their order, `options.concurrency` at a time; nothing is kept, and
  nothing runs ahead.

  Args:
    questions: taken one by one; those of one video, side by side, share its frames. reward: of a
    task; see `evaluate`. on_record: hears of each record as it finishes, frames included, in the
    event loop. What it raises ends the evaluation.
  """
  waiting = iter(questions)

  async def work() -> None:
    for task, budget in waiting:
      on_record(await _record(agent, task, budget, reward(task), options))

  workers = [asyncio.create_task(work()) for _ in range(options.concurrency)]
  try:
    await asyncio.gather(*workers)
  finally:
    for worker in workers:
      worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def _record(
  agent: Agent, task: Task, budget: int, reward: Reward, options: EvalOptions
) -> Record:
  start = time.monotonic()
  if problem := task.facts.get(subtitles.BROKEN):  # without them it would be another question
    return Record(task, budget, None, 'subtitles', problem, _laps(start, time.monotonic()))
  try:
    opening = await agent.open(task, budget)
  except MediaError as error:
    return Record(
      task, budget, None, f'media_{error.reason}', str(error), _laps(start, time.monotonic())
    )
  opened = time.monotonic()
  episode = await agent.run(task, opening, Address(options.seed, task.id, options.epoch, 0))
  ended = time.monotonic()
  outcome = await judged(episode, reward)
  seconds = _laps(start, opened, ended, time.monotonic())
  failed = next(filter(_failed, episode.results), None)
  if isinstance(outcome, Scored) and failed is not None:
    return Record(
      task,
      budget,
      None,
      f'call_{failed.status}',
      f"a call failed, which is not the model's doing: {failed.text}",
      seconds,
    )
  if isinstance(outcome, Dropped):
    return Record(
      task, budget, None, outcome.reason, episode.error or _why(outcome.reason, episode), seconds
    )
  return Record(task, budget, outcome, seconds=seconds)


def _why(reason: str, episode: Episode) -> str:
  """What a reason of ours means, where no server or file has said more."""
  if reason != 'prompt_too_long':
    return reason
  return (
    f'the prompt of {expanded(episode.trajectory.segments)} tokens leaves no room in the '
    'context: raise sampling.context (and a lane of server.embedded.lanes that holds it), or '
    f'lower K={episode.budget}; both make another evaluation, in another folder'
  )


def _failed(result: ToolResult) -> bool:
  """Whether a call got no answer because server, file or time failed it, and not for what a model
  wrote.
  """
  if result.status is ResultStatus.SUBAGENT_ERROR:
    # one that wrote nothing to the purpose did answer
    return result.subagent is None or result.subagent.stop is StopReason.ABORT
  return result.status in (ResultStatus.TIMEOUT, ResultStatus.MEDIA_ERROR)


def _laps(start: float, *ends: float) -> dict[str, float]:
  """Seconds of the stages that were reached, and of all."""
  stages = zip(('open', 'episode', 'reward'), (start, *ends), ends)
  return {'wall': ends[-1] - start, **{stage: end - begin for stage, begin, end in stages}}


def light(record: Record) -> Record:
  """The record without its frames."""
  if record.scored is None:
    return record

  def bare(trajectory: Trajectory) -> Trajectory:
    segments = tuple(dataclasses.replace(s, images=()) for s in trajectory.segments)
    return dataclasses.replace(trajectory, segments=segments)

  def result(one: ToolResult) -> ToolResult:
    inner = one.subagent
    return one if inner is None else dataclasses.replace(one, subagent=bare(inner))

  episode = record.scored.episode
  turns = tuple(
    dataclasses.replace(turn, results=tuple(map(result, turn.results))) for turn in episode.turns
  )
  episode = dataclasses.replace(episode, turns=turns, trajectory=bare(episode.trajectory))
  return dataclasses.replace(record, scored=dataclasses.replace(record.scored, episode=episode))


def summarize(records: Sequence[Record]) -> dict[str, Any]:
  """The numbers of an evaluation, JSON-able; budgets and types are keys as text.

  episodes: all samples; errors: those without an outcome, by reason; error_rate. accuracy, interval
  (95 %, drawn by question): over all samples; accuracy_answered: over those with an outcome.
  accuracy_by_k, accuracy_by_type, calls_by_k: the same by budget and question type.
  format_compliance, calls_per_episode (executed), calls_well_formed, calls_other (of another form,
  run too), calls_failed, truncated, frames_repeated (left out of overviews and crops, for they were
  shown already): means over the answered. No samples give nulls.
  """
  answered = [record for record in records if record.scored is not None]
  scored = [record.scored for record in records if record.scored is not None]
  episodes = [one.episode for one in scored]
  return {
    'episodes': len(records),
    'errors': dict(
      collections.Counter(record.reason for record in records if record.scored is None)
    ),
    'error_rate': 1 - len(answered) / len(records) if records else 0.0,
    'accuracy': _mean([record.accuracy for record in records]),
    'interval': list(
      scoring.share_interval(
        [r.accuracy for r in records], [r.task.id for r in records], samples=2000, seed=0
      )
    ),
    'accuracy_answered': _mean([record.accuracy for record in answered]),
    'accuracy_by_k': _by(records, lambda record: record.budget, lambda record: record.accuracy),
    'accuracy_by_type': _by(
      records, lambda record: record.task.question_type, lambda record: record.accuracy
    ),
    'format_compliance': _mean([float(one.parts['compliant']) for one in scored]),
    'calls_per_episode': _mean([episode.executed for episode in episodes]),
    'calls_by_k': _by(
      answered,
      lambda record: record.budget,
      lambda record: record.scored.episode.executed if record.scored else 0,
    ),
    'calls_failed': _mean([len(episode.results) - episode.executed for episode in episodes]),
    'calls_well_formed': _mean([sum(map(is_well_formed, _calls(episode))) for episode in episodes]),
    'calls_other': _mean(
      [sum(not call.well_formed for call in _calls(episode)) for episode in episodes]
    ),
    'truncated': _mean(
      [any(turn.stop is StopReason.LENGTH for turn in episode.turns) for episode in episodes]
    ),
    'frames_repeated': _mean(
      [
        sum(seen.repeated for seen in (*episode.overviews, *episode.results))
        for episode in episodes
      ]
    ),
    'stops': dict(collections.Counter(str(episode.stop) for episode in episodes)),
  }


def _calls(episode: Episode) -> list[ToolCall]:
  return [result.call for result in episode.results if isinstance(result.call, ToolCall)]


def _by(
  records: Sequence[Record], key: Callable[[Record], Any], value: Callable[[Record], float]
) -> dict[str, float | None]:
  """Means of `value` by `key`, keys ascending."""
  groups: dict[Any, list[float]] = collections.defaultdict(list)
  for record in records:
    groups[key(record)].append(float(value(record)))
  return {str(name): _mean(groups[name]) for name in sorted(groups)}


def _mean(values: Sequence[float]) -> float | None:
  return sum(values) / len(values) if values else None


def compare(
  before: Sequence[Record], after: Sequence[Record], *, samples: int, seed: int
) -> dict[str, Any]:
  """The paired difference in accuracy of two evaluations of the same questions: {difference, low,
  high, pairs}.

  Pairs are matched by (task, budget) and drawn task by task, for the budgets of one question are
  not independent. A pair with an error on either side is left out and counted in `unpaired`.
  """
  first = {record.key: record for record in before if record.scored is not None}
  second = {record.key: record for record in after if record.scored is not None}
  keys = [key for key in first if key in second]
  difference, low, high = scoring.paired_bootstrap(
    [first[key].accuracy for key in keys],
    [second[key].accuracy for key in keys],
    clusters=[task for task, _ in keys],
    samples=samples,
    seed=seed,
  )
  unpaired = len({record.key for record in (*before, *after)}) - len(keys)
  return {
    'difference': difference,
    'low': low,
    'high': high,
    'pairs': len(keys),
    'unpaired': unpaired,
  }

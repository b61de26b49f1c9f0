"""Runs questions at frame budgets through the same agent loop that RL trains.

Errors are a separate kind of outcome, including errors of a single call. A failure of a server, a
file or a deadline says nothing about the model.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping

from paravt_jax.errors import MediaError
from paravt_jax.eval import subtitles
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.groups import Dropped, Reward, score_episode
from paravt_jax.rollout.sampler import Address, expanded
from paravt_jax.types import Episode, ResultStatus, Scored, StopReason, Task, ToolResult


@dataclasses.dataclass(frozen=True)
class EvalOptions:
  """How questions are put."""

  concurrency: int  # episodes in flight
  seed: int  # of the draws, where sampling is not greedy
  epoch: int  # likewise


@dataclasses.dataclass(frozen=True)
class Record:
  """The result of one question at one frame budget."""

  task: Task
  budget: int
  scored: Scored | None  # the episode with its parts; None after an error
  reason: str = ''  # short name of the error, used for counts
  error: str = ''  # full text of the error
  # 'wall', and its stages 'open' (frames, prompt), 'episode' and 'reward'
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)


async def each(
  agent: Agent,
  questions: Iterable[tuple[Task, int]],
  reward: Callable[[Task], Reward],
  options: EvalOptions,
  on_record: Callable[[Record], None],
) -> None:
  """Runs (task, budget) pairs in order, with `options.concurrency` episodes at a time.

  The function stores no records, and reads a question only when its episode starts.

  Args:
    agent: the agent. Its context options select greedy decoding or sampling.
    questions: the pairs. Adjacent questions on one video share its frames.
    reward: returns the reward of a task. The reward's parts must contain 'compliant'.
    on_record: called in the event loop with each finished record, including its frames. An
      exception in it ends the evaluation. Errors of server, video and judge are also records.
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
  if problem := task.facts.get(subtitles.BROKEN):  # without subtitles it would be another question
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
  outcome = await score_episode(episode, reward)
  seconds = _laps(start, opened, ended, time.monotonic())
  failed = next(filter(_has_failed, episode.results), None)
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
  """Returns a message for an error that no server or file explained."""
  if reason != 'prompt_too_long':
    return reason
  return (
    f'the prompt of {expanded(episode.trajectory.segments)} tokens fills the '
    'context: raise sampling.context (and a lane of server.embedded.lanes that holds it), or '
    f'lower K={episode.budget}; both make another evaluation, in another folder'
  )


def _has_failed(result: ToolResult) -> bool:
  """Whether a call failed because of a server, a file or a deadline, not the model's text."""
  if result.status is ResultStatus.SUBAGENT_ERROR:
    # a sub-agent that wrote a useless text did answer, so this is no failure
    return result.subagent is None or result.subagent.stop is StopReason.ABORT
  return result.status in (ResultStatus.TIMEOUT, ResultStatus.MEDIA_ERROR)


def _laps(start: float, *ends: float) -> dict[str, float]:
  """Returns the seconds of each finished stage, and their total as 'wall'."""
  stages = zip(('open', 'episode', 'reward'), (start, *ends), ends)
  return {'wall': ends[-1] - start, **{stage: end - begin for stage, begin, end in stages}}

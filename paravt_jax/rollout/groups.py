"""A group: one prompt, G rollouts of it, their rewards. Episodes that cannot be scored are dropped
by name and counted.
"""

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from paravt_jax.chat.prompts import question_text
from paravt_jax.errors import ConfigError, MediaError
from paravt_jax.options import BUDGETS, COUNT, FLAG, Options
from paravt_jax.rewards import answer, total
from paravt_jax.rollout.agent import Agent, Opening
from paravt_jax.rollout.judge import Judge, JudgeFailure
from paravt_jax.rollout.sampler import Address
from paravt_jax.types import (
  Episode,
  Group,
  Scored,
  Segment,
  StopReason,
  Task,
  ToolResult,
  Trajectory,
  Turn,
)
from paravt_jax.video import sampling


@dataclasses.dataclass(frozen=True)
class Dropped:
  """Why an episode has no reward."""

  reason: str  # a short word that can be counted


Reward = Callable[[Episode], Awaitable[tuple[float, dict[str, float]] | Dropped]]
"""An episode's reward and its parts, or why there is none (a judge that failed)."""


@dataclasses.dataclass(frozen=True)
class BudgetOptions(Options):
  """How many frames the overview of a prompt shows (nFrames gating)."""

  gating: Annotated[bool, FLAG]  # K is drawn from `budgets` per prompt; off: K is `frames`
  budgets: Annotated[tuple[int, ...], BUDGETS]  # what K is drawn from
  frames: Annotated[int, COUNT]  # K without gating

  @classmethod
  def published(cls) -> 'BudgetOptions':
    """The numbers of the paper."""
    return BudgetOptions(gating=True, budgets=(4, 8, 16, 32, 64), frames=64)


@dataclasses.dataclass(frozen=True)
class GroupOptions(BudgetOptions):
  """How groups are made."""

  size: int  # G, rollouts of a prompt
  seed: int  # of the run


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A group to run."""

  task: Task
  epoch: int
  budget: int | None = None  # frames of the overview; None: as the options say


def rewarder(options: total.RewardOptions, judge: Judge | None) -> Reward:
  """Returns the reward function of the method.

  If the options say so, a judge scores open-ended answers. A failure of the judge drops the
  episode.

  Raises:
    ConfigError: reward.open_ended is 'judge' and there is none.
  """
  if options.open_ended == 'judge' and judge is None:
    raise ConfigError(
      'reward.open_ended: got judge, but no judge is configured; set judge.url and '
      'judge.model, or f1 or exact'
    )

  async def reward(episode: Episode) -> tuple[float, dict[str, float]] | Dropped:
    task = episode.task
    if task.question_type != 'oe' or options.open_ended != 'judge':
      return total.score(episode, options)
    if judge is None:
      raise AssertionError('`rewarder` refuses options that ask a judge who is not there')
    verdict = await judge.compare(
      question_text(task), task.answer, answer.extract_answer(episode.turns[-1].text)
    )
    if isinstance(verdict, JudgeFailure):
      return Dropped(verdict.reason)
    return total.score(episode, options, judged=float(verdict.right))

  return reward


def budget_of(prompt: Prompt, options: GroupOptions) -> int:
  """Returns K of a prompt: forced, drawn from (seed, task id, epoch) alone, or fixed without
  gating.
  """
  if prompt.budget is not None:
    return prompt.budget
  choices = options.budgets if options.gating else (options.frames,)
  return sampling.draw_budget(options.seed, prompt.task.id, prompt.epoch, choices)


async def run_group(agent: Agent, prompt: Prompt, reward: Reward, options: GroupOptions) -> Group:
  """Runs all rollouts of one prompt concurrently, with one shared opening.

  Returns:
    A group in rollout order. `dropped` holds a reason per lost rollout: 'media_<reason>',
    'prompt_too_long', 'server', 'abort', or what the reward says.
  """
  task = prompt.task
  try:
    opening = await agent.open(task, budget_of(prompt, options))
  except MediaError as error:
    return Group(task.id, prompt.epoch, (), (f'media_{error.reason}',) * options.size)
  outcomes = await asyncio.gather(
    *(
      _rollout(agent, prompt, opening, reward, options.seed, index) for index in range(options.size)
    )
  )
  return Group(
    task.id,
    prompt.epoch,
    tuple(o for o in outcomes if isinstance(o, Scored)),
    tuple(o.reason for o in outcomes if isinstance(o, Dropped)),
  )


async def _rollout(
  agent: Agent, prompt: Prompt, opening: Opening, reward: Reward, seed: int, index: int
) -> Scored | Dropped:
  address = Address(seed, prompt.task.id, prompt.epoch, index)
  return await score_episode(await agent.run(prompt.task, opening, address), reward)


async def score_episode(episode: Episode, reward: Reward) -> Scored | Dropped:
  """Returns the episode with its reward, or the reason why it has none."""
  if episode.stop is StopReason.ERROR:
    logging.getLogger(__name__).warning(
      '%s, rollout %d is dropped: %s', episode.task.id, episode.rollout, episode.error
    )
    return Dropped('server')
  if episode.stop is StopReason.ABORT:
    return Dropped('abort')
  if not episode.turns:
    return Dropped('prompt_too_long')
  outcome = await reward(episode)
  return (
    outcome
    if isinstance(outcome, Dropped)
    else Scored(episode, float(outcome[0]), dict(outcome[1]))
  )


def oldest_version(group: Group) -> int | None:
  """Returns the oldest weight version of a sampled token, None if no token was sampled.

  Tokens of sub-agents count, whether or not they are trained: the episode rests on them.
  """
  contexts = [
    context
    for one in group.scored
    for context in (one.episode.trajectory, *(r.subagent for r in one.episode.results))
    if context is not None
  ]
  return min(
    (
      int(segment.versions.min())
      for context in contexts
      for segment in context.segments
      if len(segment.versions)
    ),
    default=None,
  )


def map_segments(group: Group, change: Callable[[Segment], Segment]) -> Group:
  """Returns a group with other segments, those of sub-agents too.

  change: is called with every segment, always in the same order.
  """

  def context(one: Trajectory) -> Trajectory:
    return dataclasses.replace(one, segments=tuple(map(change, one.segments)))

  def result(one: ToolResult) -> ToolResult:
    subagent = None if one.subagent is None else context(one.subagent)
    return dataclasses.replace(one, subagent=subagent)

  def turn(one: Turn) -> Turn:
    return dataclasses.replace(one, results=tuple(map(result, one.results)))

  def scored(one: Scored) -> Scored:
    episode = dataclasses.replace(
      one.episode,
      turns=tuple(map(turn, one.episode.turns)),
      trajectory=context(one.episode.trajectory),
    )
    return dataclasses.replace(one, episode=episode)

  return dataclasses.replace(group, scored=tuple(map(scored, group.scored)))


def count_dropped(groups: Sequence[Group]) -> dict[str, int]:
  """Returns the number of dropped rollouts by reason."""
  return dict(collections.Counter(reason for group in groups for reason in group.dropped))

"""The turn loop, one for RL and evaluation: look, think, call sub-agents, read their results, answer. Tokens only grow.

    opening (given) | turn (sampled) | results, header, pinned prefix (given) | turn (sampled) | ... | <|im_end|> (if missing)
"""

import asyncio
import dataclasses
from collections.abc import Sequence

from paravt_jax.chat import prompts, tags, template, toolcalls
from paravt_jax.errors import RolloutError
from paravt_jax.rollout.sampler import MAIN, Address, Sampler
from paravt_jax.rollout.subagent import Subagents
from paravt_jax.types import (
  Clip,
  Episode,
  Overview,
  ParseFailure,
  ResultStatus,
  Segment,
  StopReason,
  Task,
  TokenClass,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
)
from paravt_jax.video import sampling
from paravt_jax.video.readers import VideoInfo
from paravt_jax.video.store import FrameStore


@dataclasses.dataclass(frozen=True)
class AgentOptions:
  """think_prefix: pinned opening of every turn ('' for none). max_turns: rounds of tools; max_parallel: calls of a round that
  run; max_new_tokens: of a turn."""
  think_prefix: str
  max_turns: int
  max_parallel: int
  max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Opening:
  """A prompt, shared by the rollouts of a group. overviews: one per video of the task, in its order."""
  segment: Segment
  budget: int
  overviews: tuple[Overview, ...]


class Agent:
  """Runs episodes; any number at once."""

  def __init__(self, sampler: Sampler, subagents: Subagents, frames: FrameStore, options: AgentOptions):
    self._sampler, self._subagents, self._frames, self._options = sampler, subagents, frames, options
    self._closing_room = len(template.closing(sampler.tok, False).ids)

  async def open(self, task: Task, budget: int) -> Opening:
    """The first segment: system prompt, the question, and min(budget, frames available) overview frames with their times.

    Several videos share the budget evenly, the first ones taking what is left over; what a short one cannot use goes to the
    others. Each shows a frame at least, also where there are more videos than frames to share.

    Raises:
      MediaError: a video cannot be read.
    """
    infos = await asyncio.gather(*map(self._frames.probe, task.videos))
    shares = _shares(budget, [sampling.available(info.duration, info.fps) for info in infos])
    found = await asyncio.gather(*map(self._overview, task.videos, infos, shares))
    user = prompts.user(task, [template.frame_pieces(clip.frames, overview.seconds) for clip, overview in found])
    segment = template.opening(self._sampler.tok, prompts.system(task.facts.get('system')), user, self._options.think_prefix)
    return Opening(segment, budget, tuple(overview for _, overview in found))

  async def _overview(self, path: str, info: VideoInfo, budget: int) -> tuple[Clip, Overview]:
    """min(budget, frames available) frames of a video."""
    context = self._sampler.options
    times = sampling.budget_times(info.duration, budget, info.fps)
    clip = await self._frames.frames(path, times, context.min_pixels, context.max_pixels)
    return clip, Overview(tuple(float(second) for second in clip.seconds), info.duration)

  async def run(self, task: Task, opening: Opening, address: Address) -> Episode:
    """One episode from its opening to its end.

    Never raises for what model or server did: a server's failure ends the episode with StopReason.ERROR and its message in
    `error`.
    """
    run = _Run(task, opening, address, [opening.segment])
    try:
      stop = await self._turns(run)
    except RolloutError as error:
      return run.episode(StopReason.ERROR, str(error))
    return run.episode(stop)

  async def _turns(self, run: '_Run') -> StopReason:
    """Turns until one ends the episode. After max_turns rounds of tools one last turn is asked for, whose calls do not run."""
    options = self._options
    for turn in range(options.max_turns + 1):
      room = min(options.max_new_tokens, self._room(run.segments))
      if room < 1:
        return StopReason.CONTEXT
      segment, finish = await self._sampler.sample(
          run.segments, address=run.address, turn=turn, call=MAIN, max_new_tokens=room,
          token_class=TokenClass.AFTER_TOOL if turn else run.opening_class)
      forced = turn == options.max_turns
      text = template.turn_text(self._sampler.tok, segment.ids, options.think_prefix)
      blocks = () if forced or finish == 'abort' else toolcalls.parse(text)
      answered = tags.has_answer(text)
      goes_on = bool(blocks) and (any(isinstance(block, ToolCall) for block in blocks) or not answered)
      stop = _stop(finish, answered and not goes_on)
      run.segments.append(segment)
      run.turns.append(Turn(text, await self._results(run, blocks, turn), stop, forced))
      if not self._follow(run, segment, goes_on, request=turn + 1 == options.max_turns):
        return StopReason.CONTEXT if goes_on else stop
    raise AssertionError('the forced turn returns')

  def _room(self, segments: Sequence[Segment]) -> int:
    """Tokens that may be sampled next, with place left for a closing."""
    return self._sampler.room(segments, reserved=self._closing_room)

  def _follow(self, run: '_Run', segment: Segment, goes_on: bool, *, request: bool) -> bool:
    """Appends what follows a turn: its results and the next header where the context holds them and a token more (True); else
    the `<|im_end|>` that the turn may lack (False)."""
    tok = self._sampler.tok
    closed = template.is_closed(tok, segment.ids)
    if goes_on:
      continuation = template.continuation(
          tok, closed=closed, results=[result.text for result in run.turns[-1].results],
          request=prompts.FINAL_REQUEST if request else None, think_prefix=self._options.think_prefix)
      if self._room([*run.segments, continuation]) >= 1:
        run.segments.append(continuation)
        return True
    closing = template.closing(tok, closed)
    if len(closing.ids):
      run.segments.append(closing)
    return False

  async def _results(self, run: '_Run', blocks: Sequence[ToolCall | ParseFailure], turn: int) -> tuple[ToolResult, ...]:
    """Results in the order of the blocks; the first max_parallel at once, one shared error for the rest."""
    limit = self._options.max_parallel
    results = await asyncio.gather(*(self._result(run, block, turn, index) for index, block in enumerate(blocks[:limit])))
    if len(blocks) > limit:
      results.append(ToolResult(blocks[limit], ResultStatus.OVER_LIMIT, prompts.error(ResultStatus.OVER_LIMIT)))
    return tuple(results)

  async def _result(self, run: '_Run', block: ToolCall | ParseFailure, turn: int, index: int) -> ToolResult:
    if isinstance(block, ParseFailure):
      return ToolResult(block, ResultStatus.PARSE_FAILURE, prompts.error(ResultStatus.PARSE_FAILURE))
    return await self._subagents.run(block, task=run.task, durations=[view.duration for view in run.opening.overviews],
                                     address=run.address, turn=turn, index=index)


@dataclasses.dataclass
class _Run:
  """An episode while it runs."""
  task: Task
  opening: Opening
  address: Address
  segments: list[Segment]
  turns: list[Turn] = dataclasses.field(default_factory=list)

  @property
  def opening_class(self) -> TokenClass:
    """Of the first turn's tokens."""
    return TokenClass.AFTER_FRAME if self.opening.overviews else TokenClass.TEXT

  def episode(self, stop: StopReason, error: str = '') -> Episode:
    first, *others = self.opening.overviews or (Overview((), 0.0),)
    return Episode(self.task, self.address.rollout, self.opening.budget, first.seconds, first.duration, tuple(self.turns),
                   Trajectory(tuple(self.segments), stop), stop, error, tuple(others))


def _shares(budget: int, available: Sequence[int]) -> list[int]:
  """A budget of frames split over videos that have so many: 10 over [9, 9, 9, 9] -> [3, 3, 2, 2], over [1, 9] -> [1, 9]; at least
  1 each."""
  shares = [1] * len(available)
  left = budget - len(available)
  while left > 0 and (able := [i for i, most in enumerate(available) if shares[i] < most]):
    least = min(shares[i] for i in able)
    for i in [i for i in able if shares[i] == least][:left]:
      shares[i] += 1
      left -= 1
  return shares


def _stop(finish: str, answered: bool) -> StopReason:
  """Why a turn ended. A truncated one is LENGTH, whatever it holds."""
  if finish != 'stop':
    return {'length': StopReason.LENGTH, 'abort': StopReason.ABORT}[finish]
  return StopReason.ANSWER if answered else StopReason.STOP

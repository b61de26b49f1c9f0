"""The turn loop, one for RL and evaluation: look, think, call sub-agents, read their results,
answer. Tokens only grow.

opening (given) | turn (sampled) | results, header, pinned prefix (given) | turn (sampled) | ...
  ... | <|im_end|> (if missing)
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from paravt_jax.chat import prompts, tags, template, toolcalls
from paravt_jax.errors import RolloutError
from paravt_jax.options import COUNT, PROSE, Options, whole
from paravt_jax.rollout.sampler import MAIN, Address, Sampler
from paravt_jax.rollout.subagent import Response, Subagents
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

_CUT = '\ufffd'  # what a part of a character decodes to


@dataclasses.dataclass(frozen=True)
class AgentOptions(Options):
  """Limits of an episode's main agent."""

  think_prefix: Annotated[str, PROSE]  # pinned opening of each turn; '' for none
  max_turns: Annotated[int, whole(0)]  # rounds of tools before the answer is asked for
  max_parallel: Annotated[int, COUNT]  # calls of one round that run; the others are refused
  max_new_tokens: Annotated[int, COUNT]  # of one turn

  @classmethod
  def published(cls) -> 'AgentOptions':
    """The numbers of the paper and its release."""
    return cls(think_prefix='<think>\n', max_turns=3, max_parallel=5, max_new_tokens=2048)


@dataclasses.dataclass(frozen=True)
class Opening:
  """A prompt, shared by the rollouts of a group."""

  segment: Segment
  budget: int  # frames that the overviews could have in all
  overviews: tuple[Overview, ...]  # one per video of the task, in the task's order


@dataclasses.dataclass(frozen=True)
class Opened:
  """An episode begins."""

  opening: Opening


@dataclasses.dataclass(frozen=True)
class TurnDone:
  """The main agent wrote a turn."""

  turn: int  # from 0
  text: str  # with the pinned prefix


@dataclasses.dataclass(frozen=True)
class CallStarted:
  """A call of a turn begins. Calls of a turn run at once."""

  turn: int  # from 0
  index: int  # of the call in its turn, from 0
  call: ToolCall | ParseFailure


@dataclasses.dataclass(frozen=True)
class CallDone:
  """A call finished. Calls over the limit share one result, and none of them started."""

  turn: int  # from 0
  index: int  # of the call in its turn, from 0
  result: ToolResult


Event = Opened | TurnDone | CallStarted | CallDone


@dataclasses.dataclass(frozen=True)
class DialogueFormat:
  """How an agent speaks and listens. An evaluation may use another one than
  TRAINING_FORMAT.
  """

  system: Callable[[Task], str | None]  # the system text of a task; None for no system message
  # the pieces of a task's user message, from the pieces of each video
  user: Callable[[Task, Sequence[Sequence[template.Piece]]], list[template.Piece]]
  parse: Callable[[str], Sequence[ToolCall | ParseFailure]]  # a turn's calls and failures, in order
  answered: Callable[[str], bool]  # whether a turn's text holds an answer
  request: str  # what asks for the final answer
  # the pieces of a video's frames and their seconds
  frames: Callable[[np.ndarray, Sequence[float]], Sequence[template.Piece]]
  # the text that answers a call that did not run
  refused: Callable[[ToolResult], str | Sequence[template.Piece]]
  requests: Mapping[str, str]  # question type -> a text in place of `request`
  # question type -> the most tokens of the forced turn, in place of any turn's
  forced_tokens: Mapping[str, int]
  forced_prefix: bool  # whether the forced turn opens with the pinned prefix like the others


TRAINING_FORMAT = DialogueFormat(
  system=lambda task: prompts.system(task.facts.get('system')),
  user=prompts.user,
  parse=toolcalls.parse,
  answered=tags.has_answer,
  request=prompts.FINAL_REQUEST,
  frames=template.frame_pieces,
  refused=lambda result: result.text,
  requests={},
  forced_tokens={},
  forced_prefix=True,
)


class Agent:
  """Runs any number of episodes concurrently.

  `watch` receives each episode's events in the event loop. `on_text` receives the main agent's
  turns as they are sampled: (turn, text so far).
  """

  def __init__(
    self,
    sampler: Sampler,
    subagents: Subagents,
    frames: FrameStore,
    options: AgentOptions,
    dialogue_format: DialogueFormat = TRAINING_FORMAT,
    watch: Callable[[Event], None] | None = None,
    on_text: Callable[[int, str], None] | None = None,
  ):
    self._sampler = sampler
    self._subagents = subagents
    self._frames = frames
    self._options = options
    self._format = dialogue_format
    self._watch = watch
    self._on_text = on_text
    self._closing_tokens = len(template.closing(sampler.tok, False).ids)

  def with_watch(
    self, watch: Callable[[Event], None], on_text: Callable[[int, str], None] | None = None
  ) -> 'Agent':
    """The same agent, with `watch` and `on_text`."""
    return Agent(
      self._sampler, self._subagents, self._frames, self._options, self._format, watch, on_text
    )

  async def open(self, task: Task, budget: int) -> Opening:
    """Builds the first segment: system prompt, question, and overview frames with their times.

    The number of frames is min(budget, distinct frames).

    Several videos share the budget evenly, and the first ones take the remainder. Other videos get
    the frames that a short video cannot use. Each video has at least one frame, even if there are
    more videos than frames.

    Raises:
      MediaError: a video cannot be read.
    """
    infos = await asyncio.gather(*map(self._frames.probe, task.videos))
    available = [sampling.available(info.duration, info.fps) for info in infos]
    shares = _shares(budget, available)
    wanted = [
      budget if share == limit else share for share, limit in zip(shares, available)
    ]  # use every frame of the video
    found = await asyncio.gather(*map(self._overview, task.videos, infos, wanted))
    user = self._format.user(
      task, [self._format.frames(clip.frames, overview.seconds) for clip, overview in found]
    )
    segment = template.opening(
      self._sampler.tok, self._format.system(task), user, self._options.think_prefix
    )
    return Opening(segment, budget, tuple(overview for _, overview in found))

  async def _overview(self, path: str, info: VideoInfo, budget: int) -> tuple[Clip, Overview]:
    """Returns min(budget, distinct frames) frames of a video, each once."""
    context = self._sampler.options
    times = sampling.overview_times(info.duration, budget, info.fps)
    clip, repeated = sampling.once(
      await self._frames.frames(path, times, context.min_pixels, context.max_pixels), times
    )
    return clip, Overview(tuple(float(second) for second in clip.seconds), info.duration, repeated)

  async def run(self, task: Task, opening: Opening, address: Address) -> Episode:
    """Runs one episode from its opening to its end.

    Errors of the model or a server never raise. A server's failure ends the episode with
    StopReason.ERROR and its message in `error`.
    """
    run = _Run(task, opening, address, [opening.segment])
    self._notify(Opened, opening)
    try:
      stop = await self._turns(run)
    except RolloutError as error:
      return run.episode(StopReason.ERROR, str(error))
    return run.episode(stop)

  async def _turns(self, run: '_Run') -> StopReason:
    """Samples turns until one ends the episode.

    After max_turns rounds of tools, one last turn must answer. Its calls do not run.
    """
    options = self._options
    for turn in range(options.max_turns + 1):
      # Sample the turn within its limit and the remaining context.
      forced = turn == options.max_turns
      remaining = min(self._turn_limit(run.task, turn), self._remaining(run.segments))
      if remaining < 1:
        return StopReason.CONTEXT
      segment, finish = await self._sampler.sample(
        run.segments,
        address=run.address,
        turn=turn,
        call=MAIN,
        max_new_tokens=remaining,
        token_class=TokenClass.AFTER_TOOL if turn else run.opening_class,
        **self._streaming(turn),
      )
      # Parse the calls. An answer ends the episode unless the turn also has valid calls.
      text = template.turn_text(self._sampler.tok, segment.ids, self._turn_prefix(turn))
      self._notify(TurnDone, turn, text)
      blocks = () if forced or finish == 'abort' else self._format.parse(text)
      answered = self._format.answered(text)
      goes_on = bool(blocks) and (
        any(isinstance(block, ToolCall) for block in blocks) or not answered
      )
      stop = _stop(finish, answered and not goes_on)
      # Run the calls, then append their results and the next turn's header.
      run.segments.append(segment)
      responses = await self._responses(run, blocks, turn)
      run.turns.append(Turn(text, tuple(response.result for response in responses), stop, forced))
      replies = [self._reply_pieces(response) for response in responses] if goes_on else None
      if not self._append_next(run, segment, replies, turn=turn + 1):
        return StopReason.CONTEXT if goes_on else stop
    raise AssertionError('the forced turn returns')

  def _turn_limit(self, task: Task, turn: int) -> int:
    """Returns the token limit of a turn. The dialogue format may lower it for the final answer."""
    limit = self._options.max_new_tokens
    return (
      min(limit, self._format.forced_tokens.get(task.question_type, limit))
      if self._is_forced(turn)
      else limit
    )

  def _is_forced(self, turn: int) -> bool:
    """Returns whether a turn must give the final answer."""
    return 0 < turn == self._options.max_turns

  def _turn_prefix(self, turn: int) -> str:
    """What a turn is made to begin with."""
    return (
      '' if self._is_forced(turn) and not self._format.forced_prefix else self._options.think_prefix
    )

  def _remaining(self, segments: Sequence[Segment]) -> int:
    """Returns how many tokens may be sampled next, with a closing reserved."""
    return self._sampler.remaining(segments, reserved=self._closing_tokens)

  def _append_next(
    self,
    run: '_Run',
    segment: Segment,
    replies: Sequence[str | Sequence[template.Piece]] | None,
    *,
    turn: int,
  ) -> bool:
    """Appends results and the header of `turn` if they and one more token fit, and returns True.

    Otherwise it appends a missing `<|im_end|>` and returns False. replies: the results' content, or
    None if no turn follows.
    """
    tok = self._sampler.tok
    closed = template.is_closed(tok, segment.ids)
    if replies is not None:
      request = (
        self._format.requests.get(run.task.question_type, self._format.request)
        if self._is_forced(turn)
        else None
      )
      continuation = template.continuation(
        tok, closed=closed, results=replies, request=request, think_prefix=self._turn_prefix(turn)
      )
      if self._remaining([*run.segments, continuation]) >= 1:
        run.segments.append(continuation)
        return True
    closing = template.closing(tok, closed)
    if len(closing.ids):
      run.segments.append(closing)
    return False

  def _reply_pieces(self, response: Response) -> str | Sequence[template.Piece]:
    ran = response.result.status is ResultStatus.EXECUTED
    return response.shown if ran else self._format.refused(response.result)

  async def _responses(
    self, run: '_Run', blocks: Sequence[ToolCall | ParseFailure], turn: int
  ) -> list[Response]:
    """Returns responses in the order of the blocks.

    The first max_parallel calls run concurrently. The others share one error."""
    limit = self._options.max_parallel
    responses = await asyncio.gather(
      *(self._response(run, block, turn, index) for index, block in enumerate(blocks[:limit]))
    )
    if len(blocks) > limit:
      rest = ToolResult(
        blocks[limit], ResultStatus.OVER_LIMIT, prompts.error(ResultStatus.OVER_LIMIT)
      )
      self._notify(CallDone, turn, limit, rest)
      responses.append(Response.of(rest))
    return responses

  async def _response(
    self, run: '_Run', block: ToolCall | ParseFailure, turn: int, index: int
  ) -> Response:
    self._notify(CallStarted, turn, index, block)
    if isinstance(block, ParseFailure):
      response = Response.of(
        ToolResult(block, ResultStatus.PARSE_FAILURE, prompts.error(ResultStatus.PARSE_FAILURE))
      )
    else:
      response = await self._subagents.respond(
        block,
        task=run.task,
        address=run.address,
        turn=turn,
        index=index,
        durations=[view.duration for view in run.opening.overviews],
      )
    self._notify(CallDone, turn, index, response.result)
    return response

  def _streaming(self, turn: int) -> dict[str, Callable[[list[int]], None]]:
    """Returns the arguments of `sample` that report a turn's text so far.

    An incomplete last character is cut off.
    """
    on_text = self._on_text
    if on_text is None:
      return {}

    def on_tokens(ids: Sequence[int]) -> None:
      text = template.turn_text(self._sampler.tok, ids, self._turn_prefix(turn))
      on_text(turn, text.rstrip(_CUT))

    return {'on_tokens': on_tokens}

  def _notify(self, event: Callable[..., Event], *facts: Any) -> None:
    if self._watch is not None:
      self._watch(event(*facts))


@dataclasses.dataclass
class _Run:
  """An episode while it runs."""

  task: Task
  opening: Opening
  address: Address
  segments: list[Segment]  # the context so far; it only grows
  turns: list[Turn] = dataclasses.field(default_factory=list)  # of the main agent

  @property
  def opening_class(self) -> TokenClass:
    """Of the first turn's tokens."""
    return TokenClass.AFTER_FRAME if self.opening.overviews else TokenClass.TEXT

  def episode(self, stop: StopReason, error: str = '') -> Episode:
    first, *others = self.opening.overviews or (Overview((), 0.0),)
    return Episode(
      self.task,
      self.address.rollout,
      self.opening.budget,
      first.seconds,
      first.duration,
      tuple(self.turns),
      Trajectory(tuple(self.segments), stop),
      stop,
      error,
      tuple(others),
      first.repeated,
    )


def _shares(budget: int, available: Sequence[int]) -> list[int]:
  """Splits a budget of frames over videos with `available` frames, at least 1 each.

  10 over [9, 9, 9, 9] -> [3, 3, 2, 2]. 10 over [1, 9] -> [1, 9].
  """
  shares = [1] * len(available)
  left = budget - len(available)
  while left > 0 and (able := [i for i, limit in enumerate(available) if shares[i] < limit]):
    least = min(shares[i] for i in able)
    for i in [i for i in able if shares[i] == least][:left]:
      shares[i] += 1
      left -= 1
  return shares


def _stop(finish: str, answered: bool) -> StopReason:
  """Returns why a turn ended. A truncated turn is LENGTH, even with an answer."""
  if finish != 'stop':
    return {'length': StopReason.LENGTH, 'abort': StopReason.ABORT}[finish]
  return StopReason.ANSWER if answered else StopReason.STOP

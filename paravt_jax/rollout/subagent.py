"""Sub-agents: each call gets the window's frames, a fresh context, and returns a short text.

Every failure is a typed result.
"""

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from paravt_jax.chat import prompts, template, toolcalls
from paravt_jax.errors import MediaError, RolloutError
from paravt_jax.options import COUNT, FLAG, POSITIVE, Options
from paravt_jax.rollout.sampler import Address, Sampler
from paravt_jax.types import (
  Clip,
  ResultStatus,
  Segment,
  StopReason,
  Task,
  TokenClass,
  ToolCall,
  ToolResult,
  Trajectory,
  Window,
)
from paravt_jax.video import sampling
from paravt_jax.video.store import FrameStore

_LABEL = re.compile(r'(?:video\s*)?([1-9][0-9]{0,3})', re.IGNORECASE)
_CUT = '\ufffd'  # what a cut through a character decodes to
_STOPS = {'stop': StopReason.STOP, 'length': StopReason.LENGTH, 'abort': StopReason.ABORT}


@dataclasses.dataclass(frozen=True)
class SubagentOptions(Options):
  """What a sub-agent sees of its window, and how much it may write."""

  rate: Annotated[float, POSITIVE]  # frames per second of the window
  min_frames: Annotated[int, COUNT]  # of a window, however short it is
  max_frames: Annotated[int, COUNT]  # of a window, however long it is
  see_question: Annotated[bool, FLAG]  # whether its prompt includes the main agent's question
  max_new_tokens: Annotated[int, COUNT]  # that it may write
  summary_tokens: Annotated[int, COUNT]  # of its text, that the main agent gets
  deadline_s: Annotated[float, POSITIVE]  # for the whole call, decoding included

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_order('min_frames', 'max_frames')

  @classmethod
  def published(cls) -> 'SubagentOptions':
    """The numbers of the paper and its release."""
    return cls(
      rate=1.0,
      min_frames=2,
      max_frames=16,
      see_question=True,
      max_new_tokens=512,
      summary_tokens=512,
      deadline_s=120.0,
    )


@dataclasses.dataclass(frozen=True)
class Response:
  """The response to a call."""

  result: ToolResult
  # the text of a tool response, or the pieces of a user message
  shown: str | Sequence[template.Piece]

  @classmethod
  def of(cls, result: ToolResult) -> 'Response':
    """A result that comes back as its text."""
    return cls(result, result.text)


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What a sub-agent saw and wrote, before its text is judged."""

  seconds: tuple[float, ...]  # of the frames
  segments: tuple[Segment, ...]  # the opening, then the turn where there was room for one
  finish: str  # stop | length | abort


class Subagents:
  """Runs any number of calls concurrently."""

  def __init__(self, sampler: Sampler, frames: FrameStore, options: SubagentOptions):
    self._sampler = sampler
    self._frames = frames
    self._options = options

  async def respond(
    self,
    call: ToolCall,
    *,
    task: Task,
    durations: Sequence[float],
    address: Address,
    turn: int,
    index: int,
  ) -> Response:
    """Runs one call of `task`'s main agent.

    Failures of a model, a file or a server are results, and never raise.

    Args:
      call: the parsed call. Its arguments are checked here.
      durations: of the task's videos, seconds.
      address, turn, index: which rollout, turn and call this is; they seed the sampling.
    """
    video = choose_video(call.arguments.get('video_path'), task.videos)
    response = await self._run(call, video, task, durations, address, turn, index)
    return dataclasses.replace(response, result=dataclasses.replace(response.result, video=video))

  async def _run(
    self,
    call: ToolCall,
    video: int,
    task: Task,
    durations: Sequence[float],
    address: Address,
    turn: int,
    index: int,
  ) -> Response:
    if call.name == prompts.TOOL_NAME and not task.videos:
      refused = prompts.error(ResultStatus.BAD_ARGUMENTS, 'There is no video.')
      return Response.of(ToolResult(call, ResultStatus.BAD_ARGUMENTS, refused))
    window = toolcalls.resolve_window(
      call,
      durations[video] if durations else 0.0,
      min_frames=self._options.min_frames,
      max_frames=self._options.max_frames,
    )
    if not isinstance(window, Window):
      return Response.of(ToolResult(call, window.status, window.message))
    try:
      async with asyncio.timeout(self._options.deadline_s):
        clip, repeated = await self._clip(window, task.videos[video])
        response = await self._answer(call, window, clip, video, task, address, turn, index)
        return dataclasses.replace(
          response, result=dataclasses.replace(response.result, repeated=repeated)
        )
    except TimeoutError:
      return _failure(call, window, ResultStatus.TIMEOUT)
    except MediaError as error:
      status = ResultStatus.TIMEOUT if error.reason == 'timeout' else ResultStatus.MEDIA_ERROR
      return _failure(call, window, status)
    except RolloutError as error:
      logging.getLogger(__name__).warning('sub-agent of %s: %s', task.id, error)
      return _failure(call, window, ResultStatus.SUBAGENT_ERROR)

  async def _clip(self, window: Window, path: str) -> tuple[Clip, int]:
    """Returns the window's distinct frames with time labels, and the number of repeats omitted."""
    options, context = self._options, self._sampler.options
    times = sampling.window_times(
      window, fps=options.rate, min_frames=options.min_frames, max_frames=options.max_frames
    )
    clip = await self._frames.frames(path, times, context.min_pixels, context.max_pixels)
    return sampling.once(clip, times, window.start)

  async def _answer(
    self,
    call: ToolCall,
    window: Window,
    clip: Clip,
    video: int,
    task: Task,
    address: Address,
    turn: int,
    index: int,
  ) -> Response:
    return Response.of(
      self._check_answer(
        call, window, await self._view_window(window, clip, video, task, address, turn, index)
      )
    )

  async def _view_window(
    self,
    window: Window,
    clip: Clip,
    video: int,
    task: Task,
    address: Address,
    turn: int,
    index: int,
  ) -> _Seen:
    """Opening and one sampled turn."""
    options = self._options
    question = prompts.question_text(task) if options.see_question else None
    name = prompts.label(video + 1) if len(task.videos) > 1 else ''
    user = [
      *template.frame_pieces(clip.frames, clip.seconds),
      prompts.subagent(window, question, name),
    ]
    opening = template.opening(self._sampler.tok, None, user, '')
    seconds = tuple(float(second) for second in clip.seconds)
    remaining = min(options.max_new_tokens, self._sampler.remaining([opening]))
    if remaining < 1:
      return _Seen(seconds, (opening,), 'length')
    sampled, finish = await self._sampler.sample(
      [opening],
      address=address,
      turn=turn,
      call=index,
      max_new_tokens=remaining,
      token_class=TokenClass.AFTER_FRAME,
    )
    return _Seen(seconds, (opening, sampled), finish)

  def _check_answer(self, call: ToolCall, window: Window, seen: _Seen) -> ToolResult:
    """Returns the answer, cut to its limit, or an error if there is none."""
    trajectory = Trajectory(seen.segments, _STOPS[seen.finish])
    text = self._summary(seen.segments[-1]) if len(seen.segments) > 1 else ''
    status = ResultStatus.EXECUTED
    if not text or trajectory.stop is StopReason.ABORT:
      status = ResultStatus.SUBAGENT_ERROR
      text = prompts.error(status)
    return ToolResult(call, status, text, window, seen.seconds, trajectory)

  def _summary(self, segment: Segment) -> str:
    """The text after any `</think>`, at most summary_tokens long. The template encodes it as
    untrusted: no special tokens.
    """
    tok = self._sampler.tok
    text = prompts.result(template.turn_text(tok, segment.ids, ''))
    ids = tok.encode(text, trusted=False)
    return (
      text
      if len(ids) <= self._options.summary_tokens
      else tok.decode(ids[: self._options.summary_tokens]).rstrip(_CUT)
    )


class Crops(Subagents):
  """Calls whose frames come back as they are into the main agent's own context: nobody looks at
  them before.

  shown: the pieces of the user message for a window and its clip.
  """

  def __init__(
    self,
    sampler: Sampler,
    frames: FrameStore,
    options: SubagentOptions,
    shown: Callable[[Window, Clip], Sequence[template.Piece]],
  ):
    super().__init__(sampler, frames, options)
    self._shown = shown

  async def _answer(
    self,
    call: ToolCall,
    window: Window,
    clip: Clip,
    video: int,
    task: Task,
    address: Address,
    turn: int,
    index: int,
  ) -> Response:
    """The frames, and as the result's text what stands beside them; no sub-agent, so no
    trajectory.
    """
    pieces = tuple(self._shown(window, clip))
    text = prompts.frames(len(clip.frames), window)
    return Response(
      ToolResult(
        call, ResultStatus.EXECUTED, text, window, tuple(float(second) for second in clip.seconds)
      ),
      pieces,
    )


def choose_video(video_path: Any, videos: Sequence[str]) -> int:
  """Returns the index of the video that a call names, by 'n', 'Video n' or the base name; else 0.

  The policy's text only selects one of `videos`. It is never opened as a path.
  """
  if type(video_path) is int and 0 < video_path <= len(videos):
    return video_path - 1
  name = video_path.strip() if isinstance(video_path, str) else ''
  if (match := _LABEL.fullmatch(name)) and int(match[1]) <= len(videos):
    return int(match[1]) - 1
  base = name.rpartition('/')[2]
  return next((i for i, path in enumerate(videos) if path.rpartition('/')[2] == base), 0)


def _failure(call: ToolCall, window: Window, status: ResultStatus) -> Response:
  return Response.of(ToolResult(call, status, prompts.error(status), window))

"""Data types that rollouts, rewards, reports and the learner share.

All classes are frozen, and none needs JAX.

In an episode the main agent receives a `Task`. Each of its turns is a sampled `Segment`. Each tool
call of a turn gets a `ToolResult`, usually from a sub-agent's `Trajectory`, which is appended as a
given segment. Image ids are not expanded here: each image is one `<|image_pad|>`.
"""

import dataclasses
import enum
from typing import Any, cast

import numpy as np


class StopReason(enum.StrEnum):
  """Why an episode, or a turn, ended."""

  ANSWER = 'answer'  # a turn with an answer and no calls
  STOP = 'stop'  # <|im_end|> without calls or answer
  LENGTH = 'length'  # the turn's token budget ran out
  CONTEXT = 'context'  # the next prompt would not fit the context
  ABORT = 'abort'  # the server aborted the request
  ERROR = 'error'  # the server failed; the episode is dropped and counted


class ResultStatus(enum.StrEnum):
  """The outcome of one tool call."""

  EXECUTED = 'executed'
  PARSE_FAILURE = 'parse_failure'
  UNKNOWN_TOOL = 'unknown_tool'
  BAD_ARGUMENTS = 'bad_arguments'
  OVER_LIMIT = 'over_limit'
  MEDIA_ERROR = 'media_error'
  TIMEOUT = 'timeout'
  SUBAGENT_ERROR = 'subagent_error'


class TokenClass(enum.IntEnum):
  """The context of a trained token; log-prob gaps are reported per class."""

  TEXT = 0
  # first turn of a context with frames: the main agent's first turn, a sub-agent's answer
  AFTER_FRAME = 1
  AFTER_TOOL = 2  # turns after a tool response


@dataclasses.dataclass(frozen=True)
class Task:
  """One question on any number of videos."""

  id: str
  videos: tuple[str, ...]  # paths
  question: str  # the question text, options included
  question_type: str  # mcq | tvg | oe
  answer: str  # the letter, 'start,end' in seconds, or the text
  options: tuple[str, ...] = ()  # empty unless mcq
  source: str = ''  # the data set
  # facts that only the generator knows (windows needed, events)
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  # videos[i] is placed before question[slots[i]:]; slots do not decrease. Without slots all videos
  # come first.
  slots: tuple[int, ...] = ()

  @property
  def video(self) -> str:
    """The first video; '' when the task is text only."""
    return self.videos[0] if self.videos else ''


@dataclasses.dataclass(frozen=True)
class Clip:
  """Decoded frames of one video."""

  frames: np.ndarray  # uint8[frames, height, width, 3] RGB, already resized
  # float64[frames], the time label of each frame: its presentation time minus the stream's start.
  # A frame that stays on screen longer than a nominal frame interval gets the requested time.
  seconds: np.ndarray
  duration: float  # of the whole video, seconds
  # float64[frames], the presentation times themselves; equal times are the same frame. None: the
  # same as `seconds`.
  own: np.ndarray = cast(np.ndarray, None)

  def __post_init__(self):
    if self.own is None:
      object.__setattr__(self, 'own', self.seconds)


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """One call as the policy wrote it."""

  name: str
  arguments: dict[str, Any]  # not validated against a video yet
  # True if its block is closed and holds exactly one JSON object with a name and an arguments
  # object. Other calls also run, but they earn no reward.
  well_formed: bool = True


@dataclasses.dataclass(frozen=True)
class ParseFailure:
  """One tool block that does not parse as a call."""

  reason: str  # a short, countable word
  text: str  # the raw text of the block


@dataclasses.dataclass(frozen=True)
class Window:
  """A validated crop: 0 <= start < end <= duration."""

  start: float  # seconds
  end: float
  num_frames: int | None = None  # replaces the sampling rate


@dataclasses.dataclass(frozen=True)
class Segment:
  """A run of tokens, all given or all sampled."""

  ids: np.ndarray  # int32[n], image placeholders not expanded
  sampled: bool
  images: tuple[np.ndarray, ...] = ()  # uint8[H, W, 3] each, one per `<|image_pad|>`, in order
  # float32[n], at the sampling temperature, banned ids masked; empty for given tokens
  logprobs: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
  # int32[n], the weights that sampled each token; empty for given tokens
  versions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  token_class: TokenClass = TokenClass.TEXT


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """The segments of one context; tokens are only ever appended."""

  segments: tuple[Segment, ...]
  stop: StopReason

  @property
  def ids(self) -> np.ndarray:
    """Returns int32[n]: every id sent and received, in order."""
    if not self.segments:
      return np.zeros(0, np.int32)
    return np.concatenate([np.asarray(segment.ids, np.int32) for segment in self.segments])

  @property
  def images(self) -> tuple[np.ndarray, ...]:
    """Returns all images, in the order of their placeholders."""
    return tuple(image for s in self.segments for image in s.images)


@dataclasses.dataclass(frozen=True)
class ToolResult:
  """The result of one call (or parse failure) of a turn."""

  call: ToolCall | ParseFailure
  status: ResultStatus
  text: str  # the text that the main agent sees
  window: Window | None = None  # None when the call did not name one
  seconds: tuple[float, ...] = ()  # times of the frames that the sub-agent saw
  subagent: Trajectory | None = None  # None when the sub-agent did not run
  video: int = 0  # index of the task's video that the window refers to
  repeated: int = 0  # frames left out because they were shown already


@dataclasses.dataclass(frozen=True)
class Turn:
  """One assistant turn of the main agent."""

  text: str  # with the pinned prefix, without `<|im_end|>`
  results: tuple[ToolResult, ...] = ()  # in call order
  stop: StopReason = StopReason.STOP
  forced: bool = False  # the final turn after max_turns: calls in it are not run and earn nothing


@dataclasses.dataclass(frozen=True)
class Overview:
  """The overview frames of one video in the opening."""

  seconds: tuple[float, ...]  # times of its frames
  duration: float  # of the video, seconds
  repeated: int = 0  # frames left out because they were shown already


@dataclasses.dataclass(frozen=True)
class Episode:
  """A finished rollout."""

  task: Task
  rollout: int  # index in the group, from 0
  budget: int  # K, the overview frame budget drawn for this prompt, summed over its videos
  seconds: tuple[float, ...]  # times of the first video's overview frames; none in a text-only task
  duration: float  # of the first video, seconds; 0.0 in a text-only task
  turns: tuple[Turn, ...]
  trajectory: Trajectory  # of the main agent
  stop: StopReason
  error: str = ''  # the server's failure, when stop is ERROR
  others: tuple[Overview, ...] = ()  # of the further videos
  repeated: int = 0  # frames that the first overview left out because they were shown already

  @property
  def overviews(self) -> tuple[Overview, ...]:
    """Returns one overview per video of the task, in the task's order."""
    return (Overview(self.seconds, self.duration, self.repeated), *self.others)[
      : len(self.task.videos)
    ]

  @property
  def results(self) -> tuple[ToolResult, ...]:
    """Returns the tool results of all turns, in order."""
    return tuple(result for turn in self.turns for result in turn.results)

  @property
  def executed(self) -> int:
    """Returns the number of calls that a sub-agent answered."""
    return sum(result.status is ResultStatus.EXECUTED for result in self.results)


@dataclasses.dataclass(frozen=True)
class Scored:
  """An episode with its reward."""

  episode: Episode
  reward: float
  parts: dict[str, float]  # reward terms by name, such as 'accuracy', 'format', 'tool'


@dataclasses.dataclass(frozen=True)
class Group:
  """The rollouts of one prompt."""

  id: str  # of the task
  epoch: int  # of the data
  scored: tuple[Scored, ...]  # the episodes that were not dropped
  dropped: tuple[str, ...] = ()  # the reason of each dropped episode

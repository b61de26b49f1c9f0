"""The data that rollouts, rewards, reports and the learner share. All classes are frozen, and none
needs JAX.

One episode: the main agent gets a `Task`. Each of its turns is a sampled `Segment`. `ToolResult`s
(a sub-agent's `Trajectory` each) answer it and come back as given segments. Ids of images are not
expanded here: one `<|image_pad|>` per image.
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
  """What became of one tool call."""

  EXECUTED = 'executed'
  PARSE_FAILURE = 'parse_failure'
  UNKNOWN_TOOL = 'unknown_tool'
  BAD_ARGUMENTS = 'bad_arguments'
  OVER_LIMIT = 'over_limit'
  MEDIA_ERROR = 'media_error'
  TIMEOUT = 'timeout'
  SUBAGENT_ERROR = 'subagent_error'


class TokenClass(enum.IntEnum):
  """Where a trained token stands; log-prob gaps are split by it."""

  TEXT = 0
  # first turn of a context with frames: the main agent's first turn, a sub-agent's answer
  AFTER_FRAME = 1
  AFTER_TOOL = 2  # turns after a tool response


@dataclasses.dataclass(frozen=True)
class Task:
  """One question on any number of videos."""

  id: str
  videos: tuple[str, ...]  # paths
  question: str  # what the user is asked, options included
  question_type: str  # mcq | tvg | oe
  answer: str  # the letter, 'start,end' in seconds, or the text
  options: tuple[str, ...] = ()  # empty unless mcq
  source: str = ''  # the data set
  # what only the generator knows (windows needed, events)
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  # videos[i] stands before question[slots[i]:], slots never fall; without slots all stand first
  slots: tuple[int, ...] = ()

  @property
  def video(self) -> str:
    """The first video; '' when the task is text only."""
    return self.videos[0] if self.videos else ''


@dataclasses.dataclass(frozen=True)
class Clip:
  """Decoded frames of one video."""

  frames: np.ndarray  # uint8[frames, height, width, 3] RGB, already resized
  # float64[frames], the label of each: its presentation time minus the stream's start; of one that
  # stays on screen longer than a nominal frame interval, the time that was looked at
  seconds: np.ndarray
  duration: float  # of the whole video, seconds
  # float64[frames], the presentation times themselves; equal ones are one frame. None: the labels.
  own: np.ndarray = cast(np.ndarray, None)

  def __post_init__(self):
    if self.own is None:
      object.__setattr__(self, 'own', self.seconds)


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """One call as the policy wrote it."""

  name: str
  arguments: dict[str, Any]  # not validated against a video yet
  # its block is closed and holds exactly one JSON object with a name and an object of arguments;
  # other calls run too, but earn nothing
  well_formed: bool = True


@dataclasses.dataclass(frozen=True)
class ParseFailure:
  """One block that is no call."""

  reason: str  # a short, countable word
  text: str  # the block as written


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
  """One context's stream of segments; tokens only grow."""

  segments: tuple[Segment, ...]
  stop: StopReason

  @property
  def ids(self) -> np.ndarray:
    """int32[n]: every id sent and received, in order."""
    if not self.segments:
      return np.zeros(0, np.int32)
    return np.concatenate([np.asarray(segment.ids, np.int32) for segment in self.segments])

  @property
  def images(self) -> tuple[np.ndarray, ...]:
    """All images, in the order of their placeholders."""
    return tuple(image for s in self.segments for image in s.images)


@dataclasses.dataclass(frozen=True)
class ToolResult:
  """What one call (or failure) of a turn came to."""

  call: ToolCall | ParseFailure
  status: ResultStatus
  text: str  # what the main agent is shown
  window: Window | None = None  # None when the call did not name one
  seconds: tuple[float, ...] = ()  # times of the frames that the sub-agent saw
  subagent: Trajectory | None = None  # None when it never ran
  video: int = 0  # which of the task's videos the window lies in
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
  """What the opening shows of one video."""

  seconds: tuple[float, ...]  # times of its frames
  duration: float  # of the video, seconds
  repeated: int = 0  # frames left out because they were shown already


@dataclasses.dataclass(frozen=True)
class Episode:
  """A finished rollout."""

  task: Task
  rollout: int  # its number in the group, from 0
  budget: int  # K, the overview frame budget drawn for this prompt; all overviews together
  seconds: tuple[float, ...]  # times of the first video's overview frames; none in a text-only task
  duration: float  # of the first video, seconds; 0.0 in a text-only task
  turns: tuple[Turn, ...]
  trajectory: Trajectory  # the main agent's
  stop: StopReason
  error: str = ''  # what the server did, when stop is ERROR
  others: tuple[Overview, ...] = ()  # of the further videos
  repeated: int = 0  # frames that the first overview left out because they were shown already

  @property
  def overviews(self) -> tuple[Overview, ...]:
    """One per video of the task, in its order."""
    return (Overview(self.seconds, self.duration, self.repeated), *self.others)[
      : len(self.task.videos)
    ]

  @property
  def results(self) -> tuple[ToolResult, ...]:
    """All tool results, over turns, in order."""
    return tuple(result for turn in self.turns for result in turn.results)

  @property
  def executed(self) -> int:
    """Number of calls whose sub-agent answered."""
    return sum(result.status is ResultStatus.EXECUTED for result in self.results)


@dataclasses.dataclass(frozen=True)
class Scored:
  """An episode with its reward."""

  episode: Episode
  reward: float
  parts: dict[str, float]  # the terms by name, such as 'accuracy', 'format', 'tool'


@dataclasses.dataclass(frozen=True)
class Group:
  """The rollouts of one prompt."""

  id: str  # of the task
  epoch: int  # of the data
  scored: tuple[Scored, ...]  # those that survived
  dropped: tuple[str, ...] = ()  # the reason of each that did not

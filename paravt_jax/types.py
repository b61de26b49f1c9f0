"""The nouns. Frozen, free of JAX; everything that rollouts, rewards, reports and the learner's
arrays speak of.

One episode: a `Task` is put to the main agent; each of its turns is a sampled `Segment`, answered
by `ToolResult`s (a sub-agent's `Trajectory` each) that come back as given segments. Ids of images
are not expanded here: one `<|image_pad|>` per image.
"""

import dataclasses
import enum
from typing import Any

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
  AFTER_FRAME = (
    1  # first turn of a context with frames (main agent's first turn, a sub-agent's answer)
  )
  AFTER_TOOL = 2  # turns after a tool response


@dataclasses.dataclass(frozen=True)
class Task:
  """One question on any number of videos. `options` is empty unless mcq; `answer` is the letter,
  the text, or 'start,end' in seconds.

  `question` is what the user is asked, options included; videos[i] stands before
  question[slots[i]:] (slots never fall), without slots all stand at its start. `facts` holds what
  only the generator knows (windows needed, events).
  """

  id: str
  videos: tuple[str, ...]
  question: str
  question_type: str  # mcq | tvg | oe
  answer: str
  options: tuple[str, ...] = ()
  source: str = ''
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  slots: tuple[int, ...] = ()

  @property
  def video(self) -> str:
    """The first video; '' when the task is text only."""
    return self.videos[0] if self.videos else ''


@dataclasses.dataclass(frozen=True)
class Clip:
  """Decoded frames. frames: uint8[N, H, W, 3] RGB, already resized.

  seconds: float64[N], what each is labelled with: its presentation time minus the stream's start;
  of one that stays on screen longer than a nominal frame interval, the time that was looked at.
  own: float64[N], the presentation times themselves (where they are not given: the labels); equal
  ones are one frame.
  """

  frames: np.ndarray
  seconds: np.ndarray
  duration: float  # of the whole video, seconds
  own: np.ndarray | None = None

  def __post_init__(self):
    if self.own is None:
      object.__setattr__(self, 'own', self.seconds)


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """One call as the policy wrote it; arguments are not validated against a video yet.

  `well_formed`: its block is closed and holds exactly one JSON object with a name and an object of
  arguments. Others run too, but earn nothing.
  """

  name: str
  arguments: dict[str, Any]
  well_formed: bool = True


@dataclasses.dataclass(frozen=True)
class ParseFailure:
  """One block that is no call. `reason` is a short, countable word; `text` the block as written."""

  reason: str
  text: str


@dataclasses.dataclass(frozen=True)
class Window:
  """A validated crop: 0 <= start < end <= duration, seconds. `num_frames` replaces the sampling
  rate when given.
  """

  start: float
  end: float
  num_frames: int | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
  """A run of tokens, all given or all sampled.

  ids: int32[n], image placeholders not expanded. images: uint8[H, W, 3] each, one per
  `<|image_pad|>` in ids, in order. For sampled tokens, logprobs float32[n] (at the sampling
  temperature, banned ids masked) and versions int32[n]; else empty.
  """

  ids: np.ndarray
  sampled: bool
  images: tuple[np.ndarray, ...] = ()
  logprobs: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
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
    return (
      np.concatenate([np.asarray(s.ids, np.int32) for s in self.segments])
      if self.segments
      else np.zeros(0, np.int32)
    )

  @property
  def images(self) -> tuple[np.ndarray, ...]:
    """All images, in the order of their placeholders."""
    return tuple(image for s in self.segments for image in s.images)


@dataclasses.dataclass(frozen=True)
class ToolResult:
  """What one call (or failure) of a turn came to, in call order. `text` is what the main agent is
  shown.

  `seconds` holds the times of the frames that the sub-agent saw; `subagent` its trajectory, None
  when it never ran; `video` says which of the task's videos the window lies in, from 0; `repeated`
  counts the frames left out because they were shown already.
  """

  call: ToolCall | ParseFailure
  status: ResultStatus
  text: str
  window: Window | None = None
  seconds: tuple[float, ...] = ()
  subagent: Trajectory | None = None
  video: int = 0
  repeated: int = 0


@dataclasses.dataclass(frozen=True)
class Turn:
  """One assistant turn of the main agent. `text` includes the pinned prefix, excludes `<|im_end|>`;
  `results` in call order.
  """

  text: str
  results: tuple[ToolResult, ...] = ()
  stop: StopReason = StopReason.STOP
  forced: bool = False  # the final turn after max_turns: calls in it are not run and earn nothing


@dataclasses.dataclass(frozen=True)
class Overview:
  """What the opening shows of one video: the times of its frames, and how long it is, seconds;
  repeated: as of ToolResult.
  """

  seconds: tuple[float, ...]
  duration: float
  repeated: int = 0


@dataclasses.dataclass(frozen=True)
class Episode:
  """A finished rollout. `trajectory` is the main agent's. `seconds` and `duration`: the times of
  the overview frames and the length of the first video (none and 0.0 in a text-only task), `others`
  the same of the further ones; together they show K frames. `repeated` counts what the first
  overview left out because it was shown already.
  """

  task: Task
  rollout: int
  budget: int  # K, the overview frame budget drawn for this prompt
  seconds: tuple[float, ...]
  duration: float
  turns: tuple[Turn, ...]
  trajectory: Trajectory
  stop: StopReason
  error: str = ''  # what the server did, when stop is ERROR
  others: tuple[Overview, ...] = ()
  repeated: int = 0

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
  """An episode with its reward. `parts` maps names such as 'accuracy', 'format', 'tool' to their
  values.
  """

  episode: Episode
  reward: float
  parts: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Group:
  """The rollouts of one prompt that survived, with the reasons and number of those that did not."""

  id: str
  epoch: int
  scored: tuple[Scored, ...]
  dropped: tuple[str, ...] = ()

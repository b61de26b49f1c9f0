"""The nouns of the pipeline: what a step makes of an item, and how an item may fail. Times are
seconds from a video's start.
"""

import dataclasses
from typing import Any

from paravt_jax.rollout.outcomes import Failed, Rejected

__all__ = [
  'Caption',
  'Clip',
  'Failed',
  'Question',
  'Rejected',
  'Step',
  'Video',
  'seconds',
  'to_json',
]


@dataclasses.dataclass(frozen=True)
class Video:
  """One input. id: its path below the folder of videos, '/' between parts; path: absolute."""

  id: str
  path: str


@dataclasses.dataclass(frozen=True)
class Clip:
  """One piece of a video as a file of its own, which shows [start, end) of the video exactly.
  copied: not encoded again.
  """

  start: float
  end: float
  file: str
  copied: bool


@dataclasses.dataclass(frozen=True)
class Caption:
  """What a vision model said of [start, end) of a video."""

  start: float
  end: float
  text: str


@dataclasses.dataclass(frozen=True)
class Step:
  """One block of reasons: the window it cites, and its sentences."""

  start: float
  end: float
  reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Question:
  """A parsed reply. options: the texts of A to D; answer: a letter; reasoning: fluent text, ''
  unless it was rewritten.
  """

  question: str
  options: tuple[str, ...]
  answer: str
  steps: tuple[Step, ...]
  reasoning: str = ''


def seconds(value: float) -> str:
  """A time as texts show it: '10', '10.01'."""
  return f'{round(value, 2):.10g}'


def to_json(value: Any) -> Any:
  """A noun as JSON values."""
  return dataclasses.asdict(value)

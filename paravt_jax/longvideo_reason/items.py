"""Data types of the pipeline: the result of each step for an item, and how an item may fail. Times
are seconds from a video's start.
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
  """One input."""

  id: str  # its path below the folder of videos, '/' between parts
  path: str  # absolute


@dataclasses.dataclass(frozen=True)
class Clip:
  """One piece of a video as a file of its own, which shows [start, end) of it exactly."""

  start: float  # seconds
  end: float  # seconds
  file: str
  copied: bool  # not encoded again


@dataclasses.dataclass(frozen=True)
class Caption:
  """A vision model's description of [start, end) of a video."""

  start: float  # seconds
  end: float  # seconds
  text: str


@dataclasses.dataclass(frozen=True)
class Step:
  """One block of reasons and the window that it cites."""

  start: float  # seconds
  end: float  # seconds
  reasons: tuple[str, ...]  # its sentences


@dataclasses.dataclass(frozen=True)
class Question:
  """A parsed reply."""

  question: str
  options: tuple[str, ...]  # the texts of A to D
  answer: str  # a letter
  steps: tuple[Step, ...]
  reasoning: str = ''  # fluent text; empty if it was not rewritten


def seconds(value: float) -> str:
  """A time as texts show it: '10', '10.01'."""
  return f'{round(value, 2):.10g}'


def to_json(value: Any) -> Any:
  """Returns an item as JSON values."""
  return dataclasses.asdict(value)

"""The typed sections of the suite `survival`, and of weights on their way; the numbers stand in configs/bench.py."""

import dataclasses
from typing import Annotated

from paravt_jax.options import COUNT, POSITIVE, WORDS, Options, multiple_of, whole


@dataclasses.dataclass(frozen=True)
class CropBench(Options):
  """Several calls of a turn against one."""

  crops: Annotated[int, whole(2)]  # calls of the turn that is compared with a single call
  repeats: Annotated[int, COUNT]  # turns of each kind, of which the median counts
  height: Annotated[int, multiple_of(2)]  # pixels of the video
  width: Annotated[int, multiple_of(2)]  # pixels of the video
  latency_s: Annotated[float, POSITIVE]  # that is injected into each reply to a sub-agent
  deadline_s: Annotated[float, POSITIVE]  # of a decode, a request and a call


@dataclasses.dataclass(frozen=True)
class PaceBench(Options):
  """Rollouts beside steps against rollouts between them."""

  step_seconds: Annotated[float, POSITIVE]  # that each step takes, without a core
  staleness: Annotated[int, COUNT]  # of the run that is compared with 0
  steps: Annotated[int, whole(8)]  # of each of the two runs
  skip: Annotated[int, COUNT]  # first steps that do not count, nor does the last one


@dataclasses.dataclass(frozen=True)
class MemoryBench(Options):
  """A long run."""

  requests: Annotated[int, whole(8)]  # for frames of a video, after the first third of the run


@dataclasses.dataclass(frozen=True)
class KillBench(Options):
  """A learner that is killed."""

  moments: Annotated[int, COUNT]  # kills
  steps: Annotated[int, whole(2)]  # of the run that is killed


@dataclasses.dataclass(frozen=True)
class PublishBench(Options):
  """Weights on their way."""

  bytes: Annotated[int, COUNT]  # of the weights


@dataclasses.dataclass(frozen=True)
class SurvivalBench(Options):
  """The suite `survival`."""

  job: Annotated[tuple[str, ...], WORDS]  # knobs of the main job that is run, as `knob=value`
  limit_s: Annotated[float, POSITIVE]  # for one run of it
  crops: CropBench
  pace: PaceBench
  memory: MemoryBench
  kill: KillBench

"""Recipe sections of evaluations: the questions, the model, and the content of the page."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from paravt_jax.options import (
  BUDGETS,
  COUNT,
  DIFFERENT_BUDGETS,
  FLAG,
  NAME,
  PART,
  PROSE,
  SHARE,
  TEXT,
  URL,
  Members,
  Options,
  one_of,
  whole,
)


@dataclasses.dataclass(frozen=True)
class PageOptions(Options):
  """What the page of an evaluation shows."""

  report_right: Annotated[bool, FLAG]  # the page shows right answers too
  report_samples: Annotated[int, whole(0)]  # at most so many on the page
  report_pictures: Annotated[int, whole(0)]  # at most so many on the page


@dataclasses.dataclass(frozen=True)
class HeldOutOptions(PageOptions):
  """The evaluation before and after RL."""

  questions: Annotated[int, whole(0, note='0: no evaluation')]  # held-out rows that are asked
  budgets: Annotated[tuple[int, ...], BUDGETS]  # K, each put to every question
  concurrent: Annotated[int, COUNT]  # episodes in flight
  grounding_threshold: Annotated[float, PART]  # IoU from which a tvg answer counts as right
  bootstrap: Annotated[int, COUNT]  # samples of an interval

  @classmethod
  def published(cls) -> 'HeldOutOptions':
    """Returns settings for 300 questions at the largest budget."""
    return cls(
      questions=300,
      budgets=(64,),
      concurrent=64,
      grounding_threshold=0.5,
      bootstrap=2000,
      report_right=False,
      report_samples=600,
      report_pictures=3000,
    )


@dataclasses.dataclass(frozen=True)
class EvaluatedModelOptions(Options):
  """The model of an evaluation: exactly one of folder, run and url."""

  folder: Annotated[str, TEXT]  # of Hugging Face files; --config.model=DIR says the same
  run: Annotated[str, TEXT]  # a run folder of experiments.rl or experiments.sft
  url: Annotated[str, URL]  # of a server behind the OpenAI protocol, without /chat/completions
  name: Annotated[str, TEXT]  # the server's name of the model
  tokenizer: Annotated[str, TEXT]  # with url: a folder that holds tokenizer.json


@dataclasses.dataclass(frozen=True)
class SnapshotOptions(Options):
  """Where benchmarks lie."""

  root: Annotated[str, TEXT]  # above the snapshots
  cache: Annotated[str, NAME]  # for what is unpacked from their archives


@dataclasses.dataclass(frozen=True)
class ProtocolOptions(Options):
  """How the agent of an evaluation speaks."""

  # tools (as trained), raw_crops, no_tools, direct, think, or another agent's
  name: Annotated[str, PROSE]
  dispatch: Annotated[str, one_of('parallel', 'sequential')]  # calls of a turn, or one
  prompt_file: Annotated[str, TEXT]  # of the protocols of other agents


@dataclasses.dataclass(frozen=True)
class SuiteOptions(PageOptions):
  """How benchmarks are put, and what the page shows."""

  budgets: Annotated[tuple[int, ...], DIFFERENT_BUDGETS]  # K of each benchmark
  world_budgets: Annotated[tuple[int, ...], DIFFERENT_BUDGETS]  # K of the synthetic world
  world_questions: Annotated[int, COUNT]  # held-out tasks of the world, the first ones
  limit: Annotated[int, whole(0, note='0: all')]  # samples of each benchmark
  concurrent: Annotated[int, COUNT]  # samples in flight
  max_error_rate: Annotated[float, SHARE]  # above it the command ends with status 1
  # do without some videos of a benchmark; their questions are errors then
  skip_missing_videos: Annotated[bool, FLAG]
  # servers by server.urls must say so many tokens as the model folder would, as predicted here
  canary_tokens: Annotated[int, whole(0, note='0: servers are believed')]
  grounding_threshold: Annotated[float, PART]  # IoU from which the world's tvg answers are right
  bootstrap: Annotated[int, COUNT]  # samples of an interval


@dataclasses.dataclass(frozen=True)
class FrozenOptions(Options):
  """Which weights are not trained."""

  freeze_vision: Annotated[bool, FLAG]  # a server may keep what it computed of a frame


Paths = Annotated[Mapping[str, str], Members(TEXT)]

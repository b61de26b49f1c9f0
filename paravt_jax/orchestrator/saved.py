"""Reads the saved recipe of a folder, its `config.json`.

The folder may be of an older version, so only what is used is looked at. Knobs and sections beside
it may be missing, unknown, or broken.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, TypeVar

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.options import COUNT, SEED, Options, build_used
from paravt_jax.orchestrator.eval_options import FrozenOptions, PageOptions
from paravt_jax.orchestrator.options import ModelOptions, VideoOptions
from paravt_jax.train.optimizer import OptimizerOptions

T = TypeVar('T', bound=Options)
FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class FirstModel(Options):
  """The model that a cold start began with."""

  seed: Annotated[int, SEED]  # of the random tiny model, where there is no folder
  model: ModelOptions


@dataclasses.dataclass(frozen=True)
class TrainedModel(FirstModel):
  """Of a run of experiments.rl or experiments.sft: what its records are read by."""

  optimizer: OptimizerOptions
  train: FrozenOptions
  cold_start: FirstModel | None  # of RL without a model folder

  @property
  def first(self) -> FirstModel:
    """Returns the model that the run started from."""
    return self.cold_start if self.cold_start is not None and not self.model.folder else self


@dataclasses.dataclass(frozen=True)
class ScoredPage(PageOptions):
  """What the page of an evaluation shows, and its intervals."""

  bootstrap: Annotated[int, COUNT]  # samples of an interval


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
  """Of a results folder of experiments.eval: what its page and its intervals are made by."""

  seed: Annotated[int, SEED]  # of the bootstrap
  video: VideoOptions
  eval: ScoredPage


def read(kind: type[T], folder: pathlib.Path, wanted: str) -> tuple[T, dict[str, Any]]:
  """What `kind` names of a folder's recipe, and all of it as it stands in the file.

  Raises:
    DataError: the file is not there, is no JSON object, or what is used of it is missing or breaks
      its rule; `wanted` ends the message.
  """
  try:
    values = json.loads((folder / FILE).read_text())
    return build_used(kind, values), values
  except (OSError, ValueError, RecursionError, ConfigError) as error:
    raise DataError(f'{folder}/{FILE}: {error}; {wanted}') from error

"""Reads the saved recipe of a folder, its `config.json`.

An older version may have written the folder, so only the needed knobs are checked. Other knobs and
sections may be missing, unknown, or broken.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, TypeVar

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.options import COUNT, DTYPE, SEED, Options, build_used
from paravt_jax.orchestrator.eval_options import FrozenOptions, PageOptions
from paravt_jax.orchestrator.options import AdapterOptions, ModelOptions, VideoOptions
from paravt_jax.train.optimizer import OptimizerOptions

T = TypeVar('T', bound=Options)
FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class FirstModel(Options):
  """The model that a cold start began with."""

  seed: Annotated[int, SEED]  # of the random tiny model, if there is no folder
  model: ModelOptions


@dataclasses.dataclass(frozen=True)
class TrainedWeights(FrozenOptions):
  """Which weights a run trained."""

  dtype: Annotated[str, DTYPE]  # of products, and of the base beside an adapter
  adapter: AdapterOptions | None  # None: the run is older than adapters


@dataclasses.dataclass(frozen=True)
class TrainedModel(FirstModel):
  """What reads the records of a run of experiments.rl or experiments.sft."""

  optimizer: OptimizerOptions
  train: TrainedWeights
  cold_start: FirstModel | None  # of RL without a model folder

  @property
  def first(self) -> FirstModel:
    """Returns the model that the run started from."""
    return self.cold_start if self.cold_start is not None and not self.model.folder else self


@dataclasses.dataclass(frozen=True)
class ScoredPage(PageOptions):
  """Settings of an evaluation's page and intervals."""

  bootstrap: Annotated[int, COUNT]  # samples of an interval


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
  """Settings that determine the page and intervals of a results folder of experiments.eval."""

  seed: Annotated[int, SEED]  # of the bootstrap
  video: VideoOptions
  eval: ScoredPage


def read(kind: type[T], folder: pathlib.Path, wanted: str) -> tuple[T, dict[str, Any]]:
  """Returns the part of a folder's recipe that `kind` describes, and the whole recipe as in the
  file.

  Raises:
    DataError: the file is missing or not a JSON object, or a needed knob is missing or breaks its
    rule. `wanted` ends the message.
  """
  try:
    values = json.loads((folder / FILE).read_text())
    return build_used(kind, values), values
  except (OSError, ValueError, RecursionError, ConfigError) as error:
    raise DataError(f'{folder}/{FILE}: {error}; {wanted}') from error

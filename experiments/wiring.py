"""From a recipe to running parts: ConfigDict at the door, frozen dataclasses inside. Used by every
entry point.
"""

import collections
import dataclasses
import glob
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import runs
from experiments.launch import build
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import fields, rows, unpack
from paravt_jax.data.world import corpus, questions, scene, traces, write
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.testing import tiny
from paravt_jax.train import optimizer as optimizers
from paravt_jax.train import sharding, step
from paravt_jax.types import Task
from paravt_jax.video.decode import DecodePool

TINY_WIDTH = 512  # of the text model; what is narrower was trained at the tiny scale's frame size


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Where the rows and media of a run lie."""

  train: tuple[pathlib.Path, ...]
  heldout: tuple[pathlib.Path, ...]
  media_root: pathlib.Path


def bar(total: int, what: str, done: int = 0) -> tqdm:
  """A progress bar with ETA on stderr; without a terminal, a line every few seconds."""
  return tqdm(
    total=total,
    initial=done,
    desc=what,
    file=sys.stderr,
    dynamic_ncols=True,
    leave=True,
    mininterval=0.2 if sys.stderr.isatty() else 15.0,
    bar_format='{l_bar}{bar:24}{r_bar}',
  )


def world_options(config: ConfigDict) -> corpus.WorldOptions:
  """The `world` section of a recipe."""
  section = config.world
  return corpus.WorldOptions(
    build(scene.SceneOptions, section.scene, 'world.scene'),
    build(questions.QuestionOptions, section.questions, 'world.questions'),
    build(traces.TraceOptions, section.traces, 'world.traces'),
    build(corpus.CorpusOptions, section.corpus, 'world.corpus'),
  )


def make_world(config: ConfigDict) -> tuple[write.World, pathlib.Path]:
  """The synthetic corpus of the recipe, written and unpacked under runs/worlds unless it is there:
  (world, media root).
  """
  section, options = config.world, world_options(config)
  folder = pathlib.Path('runs/worlds') / runs.fingerprint(write.fingerprint(options, section.seed))
  folder.parent.mkdir(parents=True, exist_ok=True)
  with bar(options.corpus.videos + options.corpus.heldout_videos, 'world: videos') as progress:
    world = write.write(
      folder,
      options,
      section.seed,
      workers=section.workers,
      progress=lambda done, _: progress.update(done - progress.n),
    )
    progress.update(progress.total - progress.n)
  root = folder.with_name(folder.name + '_media')
  unpack.unpack(folder / 'source', root)
  return world, root


def rl_corpus(config: ConfigDict) -> Corpus:
  """Parquet files and media root of an RL recipe."""
  if config.data.kind == 'world':
    world, root = make_world(config)
    heldout = (world.heldout,) if config.world.corpus.heldout_tasks else ()
    return Corpus((world.rl,), heldout, root)
  heldout = (
    existing(config.data.eval, 'data.eval') if config.data.eval else ()
  )  # none: no evaluation
  return Corpus(
    existing(config.data.train, 'data.train'), heldout, pathlib.Path(config.data.media_root)
  )


def existing(files: tuple[str, ...], knob: str) -> tuple[pathlib.Path, ...]:
  """The files of a knob, each a path or a pattern such as 'rows/paravt_sft_*.parquet', which stands
  for its matches in their order.

  Raises:
    ConfigError: there are none. DataError: a path that does not exist, or a pattern without a
    match; both name the knob.
  """
  if not files:
    raise ConfigError(
      f'--config.{knob} is empty: wanted parquet files, as in '
      f'--config.{knob}="(\'rows/paravt_*.parquet\',)"'
    )
  found: list[pathlib.Path] = []
  for file in files:
    matches = [file] if pathlib.Path(file).is_file() else sorted(glob.glob(file))
    if not matches:
      raise DataError(f'--config.{knob}: {file} does not exist; check the path')
    found += map(pathlib.Path, matches)
  return tuple(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Questions:
  """The RL rows of a run, and how many broken ones were left out, by reason."""

  train: list[Task]
  heldout: list[Task]
  skipped: Mapping[str, int]

  def metrics(self) -> dict[str, float]:
    """The same as metrics."""
    return {
      f'{fields.SKIPPED}/reason={reason}': float(count) for reason, count in self.skipped.items()
    }


def rl_questions(config: ConfigDict, corpus: Corpus, folder: pathlib.Path) -> Questions:
  """The rows of a corpus, media resolved. The filters choose among the training rows; held-out rows
  are all read, for they measure, and the first eval.questions of them are kept.

  Broken rows that were left out are listed in the run folder's skipped_rows.txt. Raises DataError
  as `rows.rl_tasks`.
  """
  counts, listed = collections.Counter(), []
  options, data = (
    fields.RowOptions(skip_bad_rows=config.data.skip_bad_rows, require_media=True),
    config.data,
  )
  every = dataclasses.replace(rows.EVERY, max_bad_share=data.max_bad_share)
  wanted = rows.Wanted(
    tuple(data.question_types), tuple(data.sources), data.max_rows, data.max_bad_share
  )
  read = lambda files, which: (
    rows.rl_tasks(files, corpus.media_root, options, counts, listed, which, config.seed)
    if files
    else []
  )
  try:
    return Questions(
      read(corpus.train, wanted), read(corpus.heldout, every)[: config.eval.questions], counts
    )
  finally:  # refused above the share: then the list is what one needs
    list_skipped(folder / 'skipped_rows.txt', counts, listed)


def list_skipped(path: pathlib.Path, counts: Mapping[str, int], listed: Sequence[str]) -> None:
  """Writes broken rows, a line each, and says in one line how many there are; without any the file
  goes.
  """
  path.unlink(missing_ok=True)
  if listed:
    path.write_text(''.join(f'{line}\n' for line in listed), 'utf-8', 'backslashreplace')
    print(
      f'data: left out {sum(counts.values())} broken rows ({fields.worded(counts)}), listed '
      f'in {path}',
      file=sys.stderr,
    )


def decode_pool(config: ConfigDict) -> DecodePool:
  """The killable decoding workers of the recipe."""
  return DecodePool(config.video.workers, config.video.deadline_s, config.video.backend)


def model_options(
  section: ConfigDict, temperature: float, banned: tuple[int, ...]
) -> step.ModelOptions:
  """How the learner runs the model, from a `train` section."""
  return step.ModelOptions(
    section.dtype, section.remat, section.backend, section.head_chunk, temperature, banned
  )


def model_of_scale(folder: str | pathlib.Path, scale: str, recipe: str) -> Config:
  """The sizes of the model in a folder, which must be those of the scale: frames are given to it as
  it was trained on them.

  Raises: ConfigError: they are of another scale (the message names `recipe`). DataError: there is
  no model's config.json.
  """
  file = pathlib.Path(folder) / 'config.json'
  try:
    model = Config.from_hf(json.loads(file.read_text()))
  except (OSError, ValueError) as error:
    raise DataError(
      f'--config.model.folder: {file} cannot be read; wanted a Hugging Face folder of the '
      'Qwen3-VL family'
    ) from error
  fits = recipe if model.text.width < TINY_WIDTH else f'{recipe}:8b (or :2b)'
  if (fits == recipe) != (scale == 'tiny'):
    raise ConfigError(
      f'--config.model.folder={folder}: its width of {model.text.width} is not of scale '
      f':{scale}; wanted --config={fits}'
    )
  return model


def load_model(folder: str | pathlib.Path) -> tuple[Config, Any, ChatTokenizer]:
  """(config, parameters, tokenizer) of a Hugging Face folder.

  Raises:
    DataError: it is not there, or not whole.
  """
  if not pathlib.Path(folder).is_dir():
    raise DataError(
      f'--config.model.folder: {folder} does not exist; wanted a Hugging Face checkpoint '
      'folder of the Qwen3-VL family'
    )
  config, params = weights.load_hf(folder)
  return config, params, ChatTokenizer.load(folder)


def tiny_model(seed: int) -> pathlib.Path:
  """A random tiny checkpoint folder under runs/models, made if it is not there."""
  folder = (
    pathlib.Path('runs/models')
    / f'tiny_{runs.fingerprint(seed, tiny.VERSION, tiny.make_tokenizer().to_str())}'
  )
  if not folder.exists():
    tiny.build_model_folder(folder, seed)
  return folder


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """The recipe's mesh over the first devices it needs. Raises ConfigError when there are too
  few.
  """
  sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  needed = sizes[0] * sizes[1] * sizes[2]
  if len(jax.devices()) < needed:
    raise ConfigError(
      f'--config.mesh: data {sizes[0]} x fsdp {sizes[1]} x tensor {sizes[2]} = {needed} '
      'devices, but this process has '
      f'{len(jax.devices())} ({jax.devices()[0].platform}); lower config.mesh, or choose '
      'another scale'
    )
  return sharding.make_mesh(*sizes, jax.devices()[:needed])


def make_optimizer(config: ConfigDict, model_config: Config) -> optimizers.Optimizer:
  """The recipe's optimizer over the trainable parameters."""
  frozen = ('visual',) if config.train.freeze_vision else ()
  return optimizers.make_optimizer(
    build(optimizers.OptimizerOptions, config.optimizer, 'optimizer'),
    model.logical_axes(model_config),
    frozen,
  )


def wandb_options(config: ConfigDict, folder: pathlib.Path) -> Mapping[str, Any] | None:
  """Arguments for wandb.init, or None when no project is named."""
  run = config.run
  if not run.wandb_project:
    return None
  return {
    'project': run.wandb_project,
    'entity': run.wandb_entity or None,
    'mode': run.wandb_mode,
    'name': folder.name,
    'dir': str(folder),
    'config': runs.shown(config),
  }


def child_environment(threads: int) -> dict[str, str]:
  """The environment that a rollout server gets: this process's, on the CPU with `threads` threads
  (0: as it is).
  """
  environment = dict(os.environ)
  if threads:
    environment['XLA_FLAGS'] = (
      f'{environment.get("XLA_FLAGS", "")} --xla_cpu_multi_thread_eigen=true '
      f'intra_op_parallelism_threads={threads}'
    )
    environment['OMP_NUM_THREADS'] = str(threads)
  return environment

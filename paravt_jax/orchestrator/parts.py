"""Builds running parts from options: decoder, model, mesh, optimizer, and a progress bar."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.models import lora, sharding
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.options import require
from paravt_jax.orchestrator import split
from paravt_jax.orchestrator.options import AdapterOptions, MeshOptions, TrainOptions, VideoOptions
from paravt_jax.orchestrator.recipes import RLRecipe, SFTRecipe
from paravt_jax.orchestrator.run_folder import fingerprint, to_json
from paravt_jax.orchestrator.server_options import ServersOptions
from paravt_jax.testing import tiny
from paravt_jax.train import optimizer as optimizers
from paravt_jax.train import step
from paravt_jax.train.optimizer import OptimizerOptions
from paravt_jax.video.decode import DecodePool

# Models with a narrower text model and fewer tokens were trained at the tiny scale's frame size.
TINY_WIDTH = 512
TINY_VOCAB = 32768


def bar(total: int, what: str, done: int = 0, show: bool = True) -> tqdm:
  """Returns a progress bar with ETA on stderr. Without a terminal it prints a line every few
  seconds.
  """
  return tqdm(
    total=total,
    disable=not show,
    initial=done,
    desc=what,
    file=sys.stderr,
    dynamic_ncols=True,
    leave=True,
    mininterval=0.2 if sys.stderr.isatty() else 15.0,
    bar_format='{l_bar}{bar:24}{r_bar}',
  )


def decode_pool(video: VideoOptions) -> DecodePool:
  """Returns the pool of decoding workers, which can be killed."""
  return DecodePool(video.workers, video.deadline_s, video.backend)


def model_options(
  section: TrainOptions, temperature: float, banned: tuple[int, ...]
) -> step.ModelOptions:
  """Returns how the learner runs the model, from a `train` section."""
  return step.ModelOptions(
    section.dtype, section.remat, section.backend, section.head_chunk, temperature, banned
  )


def named_or_newest_model(folder: str) -> pathlib.Path:
  """Returns the named model folder, else the newest runs/*/hf, or raises ConfigError."""
  if folder:
    return pathlib.Path(folder)
  found = sorted(
    pathlib.Path('runs').glob('*/hf/config.json'), key=lambda file: file.stat().st_mtime
  )
  if not found:
    raise ConfigError(
      '--config.model.folder is empty and there is no runs/*/hf: name a Hugging Face folder of '
      'the Qwen3-VL family, or train one with python -m experiments.rl '
      '--config=configs/para_grpo.py'
    )
  return found[-1].parent


def model_of_scale(folder: str | pathlib.Path, scale: str, recipe: str) -> Config:
  """Returns the sizes of the model in a folder, and checks that they belong to the scale.

  A model must see frames of the size that it was trained on.

  Raises:
    ConfigError: the sizes belong to another scale; the message names `recipe`.
    DataError: the folder is of something else, or the model's config.json is missing.
  """
  folder = pathlib.Path(folder)
  if (folder / 'hf' / 'config.json').is_file():
    raise DataError(
      f'--config.model.folder={folder} is the folder of a run; its model is '
      f'--config.model.folder={folder / "hf"}'
    )
  file = folder / 'config.json'
  if (folder / 'adapter_config.json').is_file() and not file.is_file():
    raise DataError(
      f'--config.model.folder={folder} is an adapter alone; name the folder of the merged model, '
      'which a run exports as hf'
    )
  try:
    model = Config.from_hf(json.loads(file.read_text()))
  except (OSError, ValueError) as error:
    raise DataError(
      f'--config.model.folder: {file} cannot be read; wanted a Hugging Face folder of the '
      'Qwen3-VL family'
    ) from error
  width, vocab = model.text.width, model.text.vocab
  tiny_model = width < TINY_WIDTH and vocab < TINY_VOCAB
  fits = recipe if tiny_model else f'{recipe}:8b (or :2b)'
  if (fits == recipe) != (scale == 'tiny'):
    raise ConfigError(
      f'--config.model.folder={folder}: its width of {width} and its {vocab} tokens are not of '
      f'scale :{scale}; wanted --config={fits}'
    )
  return model


def open_model(folder: str | pathlib.Path) -> tuple[Config, ChatTokenizer]:
  """Returns (config, tokenizer) of a Hugging Face folder.

  Raises:
    DataError: the folder is missing or incomplete.
  """
  if not pathlib.Path(folder).is_dir():
    raise DataError(
      f'--config.model.folder: {folder} does not exist; wanted a Hugging Face checkpoint '
      'folder of the Qwen3-VL family'
    )
  return weights.read_config(folder), ChatTokenizer.load(folder)


def load_model(folder: str | pathlib.Path) -> tuple[Config, Any, ChatTokenizer]:
  """Returns (config, parameters on the host, tokenizer) of a Hugging Face folder.

  Raises:
    DataError: the folder is missing or incomplete.
  """
  config, tok = open_model(folder)
  return config, weights.load_hf(folder)[1], tok


def tiny_model(seed: int) -> pathlib.Path:
  """Returns the folder of a random tiny checkpoint under runs/models. Creates it if it is
  missing.
  """
  folder = (
    pathlib.Path('runs/models')
    / f'tiny_{fingerprint(seed, tiny.VERSION, tiny.make_tokenizer().to_str())}'
  )
  if not folder.exists():
    tiny.build_model_folder(folder, seed)
  return folder


def make_mesh(options: MeshOptions, server: ServersOptions | None = None) -> jax.sharding.Mesh:
  """Returns the mesh over the first devices that it needs.

  server: of a run whose servers may be in this process. Then the first devices are those of each
  host.

  Raises ConfigError if there are too few devices.
  """
  shared = server is not None and split.is_split(server)
  if server is not None:
    split.check(options, server)
  if not shared and jax.process_count() > 1 and len(jax.devices()) != options.devices:
    raise ConfigError(
      f'--config.mesh: {sharding.product_of(options.sizes)} devices, but the '
      f'{jax.process_count()} hosts have {len(jax.devices())}; the mesh of several hosts takes all '
      'of them'
    )
  if len(jax.devices()) < options.devices:
    raise ConfigError(
      f'--config.mesh: {sharding.product_of(options.sizes)} devices, but this process has '
      f'{len(jax.devices())} ({jax.devices()[0].platform}); lower config.mesh, or choose '
      'another scale'
    )
  pick = split.of_mesh(jax.devices(), options.devices) if shared else jax.devices()
  devices = pick[: options.devices]
  sizes = (options.data, options.fsdp, options.tensor)
  return sharding.make_mesh(*sizes, devices, context=options.context)


def with_adapter(config: Config, options: AdapterOptions) -> Config:
  """Returns the model with the adapter that a recipe asks for, if any.

  Raises:
    ConfigError: its rank is above the model's width, where it would be larger than the weights.
  """
  if not options.rank:
    return config
  width = config.text.width
  wanted = f"at most {width}, the model's width; 0 trains the weights themselves"
  require(options.rank, wanted, options.rank <= width, 'train.adapter.rank')
  form = lora.Adapter(options.rank, options.alpha, options.products)
  return dataclasses.replace(config, adapter=form)


def make_optimizer(
  options: OptimizerOptions, model_config: Config, *, freeze_vision: bool, dtype: str
) -> optimizers.Optimizer:
  """Returns the optimizer of the trainable parameters.

  An adapter is trained alone, and the state keeps the base in `dtype`, that of the products.
  """
  axes = model.logical_axes(model_config)
  if model_config.adapter is not None:
    frozen = tuple(name for name in axes if name != lora.PART)
    return optimizers.make_optimizer(options, axes, frozen, dtype)
  return optimizers.make_optimizer(options, axes, ('visual',) if freeze_vision else ())


def wandb_options(recipe: RLRecipe | SFTRecipe, folder: pathlib.Path) -> Mapping[str, Any] | None:
  """Returns arguments for wandb.init, or None if no project is named."""
  run = recipe.run
  if not run.wandb_project:
    return None
  return {
    'project': run.wandb_project,
    'entity': run.wandb_entity or None,
    'mode': run.wandb_mode,
    'name': folder.name,
    'dir': str(folder),
    'config': to_json(recipe),
  }

"""Canaries of the learner's weights: expected server replies, computed by `train/greedy.py`."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from paravt_jax import packing
from paravt_jax.chat import template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator.parts import load_model
from paravt_jax.serving.canary import Canary, canary_image
from paravt_jax.train import greedy, sharding
from paravt_jax.train.step import ModelOptions
from paravt_jax.types import Segment

TEXT = 'What appears in the picture, and when?'


def prompt(tok: ChatTokenizer, patches: int) -> Segment:
  """Returns the context: one image with its time, and one question."""
  return template.opening(
    tok, None, [*template.frame_pieces([canary_image(patches)], [0.0]), TEXT], ''
  )


def make(
  config: Config, mesh: Mesh, options: ModelOptions, tok: ChatTokenizer, asked: Segment, tokens: int
) -> Callable[[Any], Canary]:
  """Returns a function from parameters on the mesh to the canary of `prompt`'s segment."""
  expanded = packing.expand(packing.Sample(asked.ids, asked.images, {}), tok.image_pad).ids
  predict = greedy.make_greedy(config, mesh, options, expanded, asked.images[0], tokens)
  return lambda params: Canary(
    tuple(asked.ids.tolist()),
    asked.images[0],
    tuple(tok.vision_ids),
    *(tuple(values.tolist()) for values in predict(params)),
  )


def cpu() -> Mesh:
  """Returns a mesh of this host's CPU. Raises ConfigError if JAX_PLATFORMS excludes the CPU."""
  try:
    return sharding.make_mesh(1, 1, 1, jax.local_devices(backend='cpu')[:1])
  except RuntimeError as error:
    raise ConfigError(
      f'JAX_PLATFORMS leaves out the CPU, which this is done on ({error}); set '
      'JAX_PLATFORMS=cuda,cpu or tpu,cpu'
    ) from error


def of_folder(folder: pathlib.Path, patches: int, tokens: int) -> Canary:
  """Returns the canary of a Hugging Face folder's own weights.

  It computes in float32 on the CPU. That takes 4 bytes per parameter, and minutes for 8B.

  Raises:
    DataError: the folder does not exist or is incomplete.
  """
  config, params, tok = load_model(folder)
  mesh = cpu()
  options = ModelOptions('float32', False, 'chunked', 1024, 1.0, tuple(tok.vision_ids))
  return make(config, mesh, options, tok, prompt(tok, patches), tokens)(params)

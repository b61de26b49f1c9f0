"""Canaries of the learner's weights: expected server replies, computed by `train/greedy.py`."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from paravt_jax import packing
from paravt_jax.chat import template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import stored
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator.parts import load_model
from paravt_jax.orchestrator.server_options import PublishOptions
from paravt_jax.serving.canary import Canary, Continuation, canary_image
from paravt_jax.train import greedy
from paravt_jax.train.step import ModelOptions
from paravt_jax.types import Segment

TEXT = 'What appears in the picture, and when?'


def prompt(tok: ChatTokenizer, patches: int) -> Segment:
  """Returns the context: one image with its time, and one question."""
  return template.opening(
    tok, None, [*template.frame_pieces([canary_image(patches)], [0.0]), TEXT], ''
  )


def make(
  config: Config,
  mesh: Mesh,
  options: ModelOptions,
  tok: ChatTokenizer,
  asked: Segment,
  publish: PublishOptions,
) -> Callable[[Any], Canary]:
  """Returns a function from parameters on the mesh to the canary of `prompt`'s segment.

  The canary is of the weights as `publish` rounds them.
  """
  expanded = packing.expand(packing.Sample(asked.ids, asked.images, {}), tok.image_pad).ids
  say = greedy.make_canary(
    config,
    mesh,
    options,
    greedy.Prompt(expanded, asked.images[0]),
    tokens=publish.canary_tokens,
    continuations=publish.canary_continuations,
    published=publish.dtype,
  )
  return lambda params: _canary(say(params), asked, tuple(tok.vision_ids))


def _canary(said: greedy.Said, asked: Segment, banned: tuple[int, ...]) -> Canary:
  """Returns the canary of what the learner said. All rows but the first begin with sampled ids."""

  def continuation(row: int) -> Continuation:
    sampled = greedy.SAMPLED if row else 0
    ids, logprobs, margins = (np.asarray(values[row]).tolist() for values in said[:3])
    return Continuation(
      tuple(ids[:sampled]),
      tuple(ids[sampled:]),
      tuple(logprobs[sampled:]),
      tuple(margins[sampled:]),
    )

  continuations = tuple(continuation(row) for row in range(len(said.ids_RT)))
  costs = float(said.rounding), float(said.sampled_rounding)
  return Canary(tuple(asked.ids.tolist()), asked.images[0], banned, continuations, *costs)


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

  It computes in float32 on the CPU. That takes 4 bytes per parameter, and minutes for 8B. Rounding
  is measured in the dtype of the folder, which a server runs unless it is told otherwise. Where it
  rounds, the canary has as many continuations as a published one: the gaps of a few tokens scatter
  so much that right weights would be refused.

  Raises:
    DataError: the folder does not exist or is incomplete.
  """
  config, params, tok = load_model(folder)
  dtype = stored.main_dtype(
    list(stored.tensors(sorted(pathlib.Path(folder).glob('*.safetensors'))).values())
  ).name
  rows = 1 if dtype == 'float32' else PublishOptions.published().canary_continuations
  publish = dataclasses.replace(
    PublishOptions.published(), dtype=dtype, canary_tokens=tokens, canary_continuations=rows
  )
  options = ModelOptions('float32', 'none', 'chunked', 1024, 1.0, tuple(tok.vision_ids))
  return make(config, cpu(), options, tok, prompt(tok, patches), publish)(params)

"""Greedy decoding on the learner's mesh: the learner's half of a canary."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.train import sharding
from paravt_jax.train.step import ModelOptions


def make_greedy(
  config: Config,
  mesh: Mesh,
  options: ModelOptions,
  input_ids: np.ndarray,
  image: np.ndarray,
  tokens: int,
) -> Callable[[Any], tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Builds `f(params) -> (ids, logprobs, margins)`, each of length `tokens`, by whole forward
  passes on the learner's mesh.

  Args:
    config, mesh, options: as of the step. Its temperature is not used: greedy decoding reports
      temperature 1. `options.banned` are never chosen.
    input_ids: int[n], one placeholder per merged token of the image.
    image: uint8[H, W, 3], sides multiples of 32.
    tokens: number of tokens to predict.

  Returns:
    A function: ids int32, log-probs float32, and margins float32, the distance in nats from the
    best id to the second.
  """
  # one row with places for the answer, which the loop fills
  padded = np.concatenate([np.asarray(input_ids, np.int32), np.zeros(tokens, np.int32)])
  inputs = model.single_inputs(config, padded, (image,))
  start = len(input_ids)
  dtype, place = jnp.dtype(options.dtype), sharding.activations(mesh)
  run_options = {'dtype': dtype, 'remat': False, 'backend': options.backend, 'place': place}
  forward = functools.partial(model.hidden, config, freeze_vision=True, **run_options)

  def greedy(params):
    features = model.encode_inputs(config, params, inputs, dtype, place=place)
    kernel_DV = model.head(params, config)

    def one(place, carry):
      tokens_BT, ids, logprobs, margins = carry
      hidden_BTD = forward(params, inputs._replace(tokens_BT=tokens_BT), features=features)
      last_D = jax.lax.dynamic_index_in_dim(hidden_BTD[0], start + place - 1, keepdims=False)
      best, found = _two_best(last_D, kernel_DV.astype(dtype), options.banned)
      return (
        tokens_BT.at[0, start + place].set(found[0]),
        ids.at[place].set(found[0]),
        logprobs.at[place].set(best[0]),
        margins.at[place].set(best[0] - best[1]),
      )

    zeros = jnp.zeros(tokens, jnp.float32)
    begin = (jnp.asarray(inputs.tokens_BT), jnp.zeros(tokens, jnp.int32), zeros, zeros)
    return jax.lax.fori_loop(0, tokens, one, begin)[1:]

  places = sharding.parameter_shardings(
    model.logical_axes(config), model.abstract_params(config), mesh
  )
  run = jax.jit(greedy, in_shardings=(places,), out_shardings=sharding.replicated(mesh))

  def on_host(params):
    ids, logprobs, margins = run(params)
    return np.asarray(ids), np.asarray(logprobs), np.asarray(margins)

  return on_host


def _two_best(
  last_D: jax.Array, kernel_DV: jax.Array, banned: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probs [2] and ids [2] of the two best tokens after a hidden state. Banned ids
  never count."""
  logits_V = jnp.einsum('D,DV->V', last_D, kernel_DV, preferred_element_type=jnp.float32)
  if banned:
    logits_V = logits_V.at[jnp.asarray(banned)].set(-jnp.inf)
  return jax.lax.top_k(jax.nn.log_softmax(logits_V), 2)

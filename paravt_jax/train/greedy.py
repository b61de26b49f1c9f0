"""The learner's half of a canary: what it says after a prompt, and what rounding costs it there."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from paravt_jax.models import lora, sharding
from paravt_jax.models.placement import Place
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.train.step import ModelOptions

SAMPLED = 4  # ids that are sampled after the prompt, in all continuations but the first
_SEED = 20260521  # of the sampled ids, the same for all versions
_EXACT = 'chunked'  # the attention of the float32 pass, which every platform has


class Said(NamedTuple):
  """What the learner says in R continuations of T ids. README.md of serving explains the use."""

  # int32; the first SAMPLED of rows 1.. are sampled, all others the most likely
  ids_RT: np.ndarray | jax.Array
  logprobs_RT: np.ndarray | jax.Array  # float32, nats at temperature 1
  margins_RT: np.ndarray | jax.Array  # float32, nats between the most likely id and the second
  # mean |log-prob in the run's dtype - in float32| in nats: of the most likely ids, and of ids
  # sampled at the run's temperature (an expectation, over the places of all ids)
  rounding: np.ndarray | jax.Array
  sampled_rounding: np.ndarray | jax.Array


class Prompt(NamedTuple):
  """What is continued."""

  input_ids: np.ndarray  # int[n], one placeholder per merged token of the image
  image: np.ndarray  # uint8[H, W, 3], sides multiples of 32


def make_canary(
  config: Config,
  mesh: Mesh,
  options: ModelOptions,
  prompt: Prompt,
  *,
  tokens: int,
  continuations: int,
  published: str,
) -> Callable[[Any], Said]:
  """Builds `f(params) -> Said`, by whole forward passes on the learner's mesh.

  Log-probs are those of the published weights in float32, which no engine's rounding is part of. A
  last pass in the run's dtype measures what rounding costs the learner.

  Args:
    config, mesh, options: as of the step. `options.banned` are never chosen. Its temperature counts
      for `sampled_rounding` alone.
    tokens: ids to predict in each continuation, after SAMPLED sampled ones where there are several.
      The first continuation has no sampled ids, and as many ids as the others in all.
    continuations: their number R, at least 1.
    published: dtype of the published weights, 'float32' or 'bfloat16'.

  Returns:
    A function of the parameters on the mesh.
  """
  length = tokens + (SAMPLED if continuations > 1 else 0)
  # one row with places for the answer, which the loop fills; the rows differ in their ids only
  padded = np.concatenate([np.asarray(prompt.input_ids, np.int32), np.zeros(length, np.int32)])
  single = model.single_inputs(config, padded, (prompt.image,))
  start = len(prompt.input_ids)
  coarse = 'bfloat16' if 'bfloat16' in (options.dtype, published) else 'float32'
  # on a CPU, float32 is float32: there is nothing to measure
  measure = coarse != 'float32' or mesh.devices.flat[0].platform != 'cpu'
  place = sharding.activations(mesh)
  scorer = functools.partial(
    _scorer, config.base, place, single, continuations, banned=options.banned
  )

  def say(params):
    params = _served(config, params, published)
    # 'highest': by default GPUs and TPUs multiply float32 in fewer bits
    with jax.default_matmul_precision('highest' if measure else None):
      exact = scorer(params, jnp.float32, _EXACT)
      ids_RT, logprobs_RT, margins_RT = _continue(exact, start, length, continuations)
      if not measure:
        return Said(ids_RT, logprobs_RT, margins_RT, jnp.zeros(()), jnp.zeros(()))
      fine_RTV = exact(ids_RT, start - 1 + jnp.arange(length), start)
    rough = scorer(params, jnp.dtype(coarse), options.backend)
    rough_RTV = rough(ids_RT, start - 1 + jnp.arange(length), start)
    costs = _rounding_costs(fine_RTV, rough_RTV, ids_RT, options.temperature)
    return Said(ids_RT, logprobs_RT, margins_RT, *costs)

  places = sharding.parameter_shardings(
    model.logical_axes(config), model.abstract_params(config), mesh
  )
  run = jax.jit(say, in_shardings=(places,), out_shardings=sharding.replicated(mesh))
  return lambda params: Said(*map(np.asarray, run(params)))


def _served(config: Config, params: Any, published: str) -> Any:
  """Returns the weights that servers have: rounded as published, with an adapter folded in."""
  params = _rounded(params) if published == 'bfloat16' else params
  if config.adapter is None:
    return params
  folded = lora.fold(config.adapter, params)
  return _rounded(folded) if published == 'bfloat16' else folded


def _rounded(params: Any) -> Any:
  """Returns the values that bfloat16 weights have. A pair of casts would be optimized away."""
  return jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), params)


def _scorer(
  config: Config,
  place: Place,
  single: model.Inputs,
  rows: int,
  params: Any,
  dtype: jnp.dtype,
  backend: str,
  banned: tuple[int, ...],
) -> Callable[..., jax.Array]:
  """Returns `f(ids_RT, places, start)`: log-probs float32 [R, places, V] after the given places of
  the prompt with `ids_RT` from `start` on. Banned ids have -inf."""
  one = model.encode_inputs(config, params, single, dtype, place=place, backend=backend)
  # every row sees the same image, which is encoded once
  features = model.Features(
    jnp.repeat(one.merged_BNYD, rows, axis=0), jnp.repeat(one.deepstack_JBNYD, rows, axis=1)
  )
  inputs = single._replace(
    **{
      name: jnp.repeat(jnp.asarray(value), rows, axis=int(name == 'positions_ABT'))
      for name, value in single._asdict().items()
      if value is not None
    }
  )
  kernel_DV = model.head(params, config).astype(dtype)
  run_options = {'dtype': dtype, 'remat': 'none', 'backend': backend, 'place': place}
  forward = functools.partial(model.hidden, config, freeze_vision=True, **run_options)

  def score(ids_RT, places, start):
    tokens_BT = jax.lax.dynamic_update_slice(inputs.tokens_BT, ids_RT, (0, start))
    hidden_BTD = forward(params, inputs._replace(tokens_BT=tokens_BT), features=features)
    hidden_RTD = jnp.take(hidden_BTD, places, axis=1)
    logits_RTV = jnp.einsum(
      'RTD,DV->RTV', hidden_RTD, kernel_DV, preferred_element_type=jnp.float32
    )
    if banned:
      logits_RTV = logits_RTV.at[..., jnp.asarray(banned)].set(-jnp.inf)
    return jax.nn.log_softmax(logits_RTV)

  return score


def _continue(
  score: Callable[..., jax.Array], start: int, length: int, rows: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns ids, log-probs and margins [R, T] of the continuations."""

  def one(place, carry):
    ids_RT, logprobs_RT, margins_RT = carry
    last_RV = score(ids_RT, start + place - 1 + jnp.arange(1), start)[:, 0]
    best_R2, found_R2 = jax.lax.top_k(last_RV, 2)
    # row 0 is greedy throughout; the others first sample, each for itself
    key = jax.random.fold_in(jax.random.key(_SEED), place)
    samples_R = jax.random.categorical(key, last_RV)
    sampling_R = (jnp.arange(rows) > 0) & (place < SAMPLED)
    chosen_R = jnp.where(sampling_R, samples_R, found_R2[:, 0]).astype(jnp.int32)
    logprob_R = jnp.take_along_axis(last_RV, chosen_R[:, None], axis=1)[:, 0]
    return (
      ids_RT.at[:, place].set(chosen_R),
      logprobs_RT.at[:, place].set(logprob_R),
      margins_RT.at[:, place].set(best_R2[:, 0] - best_R2[:, 1]),
    )

  zeros = jnp.zeros((rows, length), jnp.float32)
  begin = (jnp.zeros((rows, length), jnp.int32), zeros, zeros)
  return jax.lax.fori_loop(0, length, one, begin)


def _rounding_costs(
  fine_RTV: jax.Array, rough_RTV: jax.Array, ids_RT: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean gap of the predicted ids, and the expected gap of sampled ids, in nats."""
  rows, length = ids_RT.shape
  allowed_RTV = jnp.isfinite(fine_RTV)
  gap_RTV = jnp.where(allowed_RTV, jnp.abs(rough_RTV - fine_RTV), 0.0)
  gap_RT = jnp.take_along_axis(gap_RTV, ids_RT[..., None], axis=2)[..., 0]
  predicted_RT = (jnp.arange(rows)[:, None] == 0) | (jnp.arange(length) >= SAMPLED)
  greedy = jnp.where(predicted_RT, gap_RT, 0.0).sum() / predicted_RT.sum()
  # the same at the run's temperature, weighted by the probability of each id
  fine_RTV, rough_RTV = (jax.nn.log_softmax(x / temperature) for x in (fine_RTV, rough_RTV))
  warm_RTV = jnp.where(allowed_RTV, jnp.exp(fine_RTV) * jnp.abs(rough_RTV - fine_RTV), 0.0)
  return greedy, warm_RTV.sum(-1).mean()

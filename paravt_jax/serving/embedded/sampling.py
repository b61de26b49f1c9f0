"""Computes the next token of every slot from logits, on the device.

A slot's result depends only on its own row and seed. Axis letters as in `paravt_jax.shapes`: S
contexts in slots, V vocabulary entries.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any

_COLD, _STRONG = 0.05, 1e3  # a temperature and a logit that ordinary requests do not reach


def zeros(slots: int, stops: int, xp: Any = jnp) -> Tree:
  """Returns the sampling state of `slots` idle slots.

  `count` tokens of `budget` are sampled. `bias` is a row of the bias table.
  """
  return {
    'count': xp.zeros(slots, np.int32),
    'budget': xp.zeros(slots, np.int32),
    'seed': xp.zeros((slots, 2), np.uint32),
    'temperature': xp.zeros(slots, np.float32),
    'top_p': xp.ones(slots, np.float32),
    'top_k': xp.zeros(slots, np.int32),
    'stop': xp.full((slots, stops), -1, np.int32),
    'bias': xp.zeros(slots, np.int32),
  }


def sample(
  logits_SV: jax.Array, bias_table: jax.Array, state: Tree, active_S: jax.Array
) -> tuple[jax.Array, jax.Array, Tree, jax.Array]:
  """Draws one token per slot from one uniform number, a function of (seed, index of the token).

  Returns:
    int32[S] tokens; float32[S] log-probs; the state with the tokens counted; bool[S], whether the
    slot is finished (a stop id, or the budget is used up).
    Log-probs are of (logits + bias) / temperature, before top-p and top-k. Greedy slots use
    temperature 1.
  """
  hot_S = state['temperature'] > 0
  biased_SV = logits_SV + bias_table[state['bias']]
  scaled_SV = (biased_SV - _shift(biased_SV, state['temperature'])[:, None]) / jnp.where(
    hot_S, state['temperature'], 1.0
  )[:, None]
  # Unnormalized probabilities; the maximum has mass 1.
  top_S = scaled_SV.max(axis=-1)
  mass_SV = jnp.exp(scaled_SV - top_S[:, None])
  # Top-p and top-k need a sort over the vocabulary, so skip it if no slot uses them.
  cut_S = hot_S & ((state['top_p'] < 1) | (state['top_k'] > 0)) & active_S
  kept_SV = jax.lax.cond(
    cut_S.any(), lambda: _cut(mass_SV, state['top_p'], state['top_k'], cut_S), lambda: mass_SV
  )
  drawn_S = _draw(kept_SV, jax.vmap(_uniform)(state['seed'], state['count']))
  best_S = jax.lax.cond(
    (active_S & ~hot_S).any(),
    lambda: jnp.argmax(scaled_SV, axis=-1).astype(jnp.int32),
    lambda: drawn_S,
  )
  token_S = jnp.where(hot_S, drawn_S, best_S)
  # The log-prob is of the full distribution, before top-p and top-k.
  chosen_S = jnp.take_along_axis(scaled_SV, token_S[:, None], axis=1)[:, 0]
  logprob_S = chosen_S - top_S - jnp.log(mass_SV.sum(axis=-1))
  count_S = state['count'] + active_S
  done_S = (token_S[:, None] == state['stop']).any(-1) | (count_S >= state['budget'])
  return token_S, logprob_S, {**state, 'count': count_S}, done_S


def _shift(biased_SV: jax.Array, temperature_S: jax.Array) -> jax.Array:
  """Returns the value to subtract from a row before division by the temperature.

  It is the row's maximum if the quotients are so large that one rounding matters, else 0.

  Two kernels may round x / temperature differently; near 1e36 the difference of two such x is inf,
  and so is the log-prob.
  """
  best_S = biased_SV.max(axis=-1)
  return jnp.where((temperature_S < _COLD) | (jnp.abs(best_S) > _STRONG), best_S, 0.0)


def _uniform(seed_2: jax.Array, count: jax.Array) -> jax.Array:
  key = jax.random.fold_in(jax.random.wrap_key_data(seed_2, impl='threefry2x32'), count)
  return jax.random.uniform(key, ())


def _draw(mass_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
  """Returns the token at which the cumulative mass exceeds uniform * total.

  It finds the block first, then the index within the block.

  Two short cumulative sums replace one long sum. Noise for every token (Gumbel-max) would cost more
  than the rest of this program. A token of mass 0 is never drawn.
  """
  slots, vocab = mass_SV.shape
  width = 32
  padded = jnp.pad(mass_SV, ((0, 0), (0, -vocab % width))).reshape(slots, -1, width)
  block_mass = padded.sum(-1)
  target_S = uniform_S * block_mass.sum(-1)
  block_S, before_S = _passes(block_mass, target_S)
  place_S, _ = _passes(
    jnp.take_along_axis(padded, block_S[:, None, None], axis=1)[:, 0], target_S - before_S
  )
  return block_S * width + place_S


def _passes(masses: jax.Array, target_S: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the first index at which the running sum exceeds the target, and the sum before it.

  If rounding leaves no such index, it is the last one with mass.
  """
  running = jnp.cumsum(masses, axis=-1)
  index = jnp.arange(masses.shape[1], dtype=jnp.int32)
  last_S = jnp.where(masses > 0, index, 0).max(-1)
  first_S = jnp.where((running > target_S[:, None]) & (masses > 0), index, last_S[:, None]).min(-1)
  before_S = jnp.take_along_axis(running - masses, first_S[:, None], axis=1)[:, 0]
  return first_S, before_S


def _cut(mass_SV: jax.Array, top_p_S: jax.Array, top_k_S: jax.Array, cut_S: jax.Array) -> jax.Array:
  """Sets the mass of tokens outside top-p and top-k to 0.

  Top-p is the smallest set whose share reaches p, including its last member.
  """
  # Descending masses; a token stays if the share before it is below p and its rank below k.
  sorted_SV = -jnp.sort(-mass_SV, axis=-1)
  share_SV = jnp.cumsum(sorted_SV, axis=-1) / sorted_SV.sum(-1, keepdims=True)
  before_SV = jnp.concatenate([jnp.zeros_like(share_SV[:, :1]), share_SV[:, :-1]], axis=1)
  rank_V = jnp.arange(mass_SV.shape[1])
  kept_SV = (before_SV < top_p_S[:, None]) & ((rank_V < top_k_S[:, None]) | (top_k_S <= 0)[:, None])
  least_S = jnp.where(kept_SV, sorted_SV, jnp.inf).min(axis=-1)
  return jnp.where(cut_S[:, None] & (mass_SV < least_S[:, None]), 0.0, mass_SV)

"""Advantages of tokens from rewards of episodes (Shao et al. 2024, GRPO; spec, section 6).

All functions are pure functions of arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes

EPSILON = 1e-6
BATCH_NORMS = ('std', 'mean_std', 'none')


def group_normalize(reward_E, group_E) -> np.ndarray:
  """Returns (r - mean) / (std + 1e-6) within each group, with ddof 1 for the standard deviation.

  Args:
    reward_E: rewards of the episodes that survived, in any order, any real dtype (numpy or concrete
      JAX arrays).
    group_E: their group ids, integers or strings. Members of a group need not be neighbours, and
      groups may differ in size.

  Returns:
    advantage_E, float32. Equal rewards and a group of one give exactly 0; no episodes give an empty
    array.
  """
  reward_E, group_E = np.asarray(reward_E, np.float64), np.asarray(group_E)
  shapes.check(reward_E=reward_E, group_E=group_E)
  # group ids become numbers from 0
  _, index_E = np.unique(group_E, return_inverse=True)
  # equal rewards keep 0, so rounding of the mean cannot become a signal
  advantage_E = np.zeros(reward_E.shape)
  for group in range(index_E.max(initial=-1) + 1):
    members = np.flatnonzero(index_E == group)
    rewards = reward_E[members]
    if np.ptp(rewards) != 0:
      advantage_E[members] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)
  return advantage_E.astype(np.float32)


def batch_normalize(advantage_ST: jax.Array, mask_ST: jax.Array, mode: str) -> jax.Array:
  """Rescales the group part of the advantage over all trained tokens of the global batch.

  Args:
    advantage_ST: group part; any leading axes; garbage (nan included) is allowed outside the mask.
    mask_ST: 1 on trained tokens.
    mode: 'std' divides by (std + 1e-6), ddof 0, without centring, so that a batch without signal
      stays at 0. 'mean_std' also subtracts the mean. 'none' changes nothing.

  Returns:
    The same shape, 0 outside the mask.

  Raises:
    ValueError: an unknown mode.
  """
  if mode not in BATCH_NORMS:
    raise ValueError(f'rl.batch_norm: got {mode!r}, wanted one of {BATCH_NORMS}')
  # garbage outside the mask must not reach the sums
  trained = mask_ST > 0
  values = jnp.where(trained, advantage_ST, 0.0)
  if mode == 'none':
    return values
  # moments over the trained tokens only
  count = jnp.maximum(trained.sum(), 1)
  mean = values.sum() / count
  std = jnp.sqrt(jnp.where(trained, jnp.square(values - mean), 0.0).sum() / count)
  centred = values - mean if mode == 'mean_std' else values
  return jnp.where(trained, centred / (std + EPSILON), 0.0)


def kl_k1(
  logprob_ST: jax.Array, reference_ST: jax.Array, mask_ST: jax.Array, limit: float
) -> jax.Array:
  """Returns the k1 estimate of KL(policy || reference) per trained token, 0 outside the mask.

  The estimate is log p - log p_ref, clamped to +-limit.
  """
  shapes.check(logprob_ST=logprob_ST, reference_ST=reference_ST, mask_ST=mask_ST)
  trained_ST = mask_ST > 0
  gap_ST = jnp.where(trained_ST, logprob_ST - reference_ST, 0.0)
  return jnp.where(trained_ST, jnp.clip(gap_ST, -limit, limit), 0.0)


def reward_to_go(reward_ST: jax.Array, stream_ST: jax.Array) -> jax.Array:
  """Returns the sum of a token's reward and all later ones of its stream (gamma = lambda = 1).

  Args:
    reward_ST: finite rewards per token.
    stream_ST: integers; neighbours with the same number belong to one stream, which is one branch
      of one packed document.
  """
  shapes.check(reward_ST=reward_ST, stream_ST=stream_ST)
  # a stream ends where the next token belongs to another one
  changes_ST = stream_ST[:, 1:] != stream_ST[:, :-1]
  last_ST = jnp.concatenate([changes_ST, jnp.ones_like(stream_ST[:, :1], bool)], axis=1)

  # a sum from right to left that starts at 0 where a stream ends
  def combine(later, earlier):
    return earlier[0] + jnp.where(earlier[1], 0.0, later[0]), earlier[1] | later[1]

  total_ST, _ = jax.lax.associative_scan(combine, (reward_ST, last_ST), axis=1, reverse=True)
  return total_ST


def token_advantage(
  advantage_ST: jax.Array,
  kl_ST: jax.Array,
  mask_ST: jax.Array,
  stream_ST: jax.Array,
  *,
  beta: float,
) -> jax.Array:
  """Returns the advantage of each trained token, 0 outside the mask.

  It is the episode's advantage plus the KL reward -beta * kl of this token and of all later ones
  in its stream. The group reward sits on the last generated token, so tokens that the policy did
  not write (prompts, observations, a trajectory's end) change nothing.
  """
  shapes.check(advantage_ST=advantage_ST, kl_ST=kl_ST, mask_ST=mask_ST, stream_ST=stream_ST)
  trained = mask_ST > 0
  # only trained tokens pay for their KL
  kl_to_go = reward_to_go(jnp.where(trained, -beta * kl_ST, 0.0), stream_ST)
  return jnp.where(trained, advantage_ST + kl_to_go, 0.0)

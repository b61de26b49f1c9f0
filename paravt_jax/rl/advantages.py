"""Credit: rewards of episodes to advantages of tokens (Shao et al. 2024, GRPO; spec, section 6).
Pure functions of arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes

EPSILON = 1e-6
BATCH_NORMS = ('std', 'mean_std', 'none')


def group_normalize(reward_E, group_E) -> np.ndarray:
  """(r - mean) / (std + 1e-6) within each group id, with the sample standard deviation (ddof 1).

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
  _, index_E = np.unique(group_E, return_inverse=True)
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
  trained = mask_ST > 0
  values = jnp.where(trained, advantage_ST, 0.0)
  if mode == 'none':
    return values
  count = jnp.maximum(trained.sum(), 1)
  mean = values.sum() / count
  std = jnp.sqrt(jnp.where(trained, jnp.square(values - mean), 0.0).sum() / count)
  centred = values - mean if mode == 'mean_std' else values
  return jnp.where(trained, centred / (std + EPSILON), 0.0)


def kl_k1(
  logprob_ST: jax.Array, reference_ST: jax.Array, mask_ST: jax.Array, limit: float
) -> jax.Array:
  """The k1 estimate of KL(policy || reference) per trained token, log p - log p_ref clamped to
  +-limit; 0 outside the mask.
  """
  shapes.check(logprob_ST=logprob_ST, reference_ST=reference_ST, mask_ST=mask_ST)
  trained_ST = mask_ST > 0
  gap_ST = jnp.where(trained_ST, logprob_ST - reference_ST, 0.0)
  return jnp.where(trained_ST, jnp.clip(gap_ST, -limit, limit), 0.0)


def reward_to_go(reward_ST: jax.Array, stream_ST: jax.Array) -> jax.Array:
  """Sum of the rewards still to come in the same run, a token's own included (gamma = lambda = 1).

  Args:
    reward_ST: finite rewards per token.
    run_ST: integers; neighbours with the same number belong to one run (one branch of one packed
      document).
  """
  shapes.check(reward_ST=reward_ST, stream_ST=stream_ST)
  # where a run ends: the next token belongs to another one
  changes_ST = stream_ST[:, 1:] != stream_ST[:, :-1]
  last_ST = jnp.concatenate([changes_ST, jnp.ones_like(stream_ST[:, :1], bool)], axis=1)

  # a sum from right to left that starts anew where a run ends
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
  """A trained token's credit: its episode's advantage plus the KL reward -beta * kl still to come
  in its run.

  The group reward sits on the last generated token, so given tokens (prompts, observations, a
  trajectory's end) change nothing.

  Returns:
    credit_ST, 0 outside the mask.
  """
  shapes.check(advantage_ST=advantage_ST, kl_ST=kl_ST, mask_ST=mask_ST, stream_ST=stream_ST)
  trained = mask_ST > 0
  kl_to_go = reward_to_go(jnp.where(trained, -beta * kl_ST, 0.0), stream_ST)
  return jnp.where(trained, advantage_ST + kl_to_go, 0.0)

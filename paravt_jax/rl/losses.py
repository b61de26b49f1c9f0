"""The policy loss: PPO's clip decoupled from the policy that sampled (Hilton et al. 2022; Schulman
et al. 2017, eq. 7).
"""

import jax
import jax.numpy as jnp

from paravt_jax import shapes

LOG_RATIO_LIMIT = 20.0  # keeps exp finite, so that a clipped token's zero gradient is not 0 * inf


def decoupled_policy_loss(
  logprob_ST: jax.Array,
  prox_logprob_ST: jax.Array,
  behavior_logprob_ST: jax.Array,
  advantage_ST: jax.Array,
  mask_ST: jax.Array,
  *,
  clip: float,
  weight_cap: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """sum_t w * max(-A * ratio, -A * clip(ratio, 1 - clip, 1 + clip)) / N, over the N trained tokens.

  ratio = exp(logprob - prox) carries the gradient; w = exp(prox - behavior) corrects for the policy
  that sampled, without gradient. A token with w > weight_cap is dropped from the sum but stays in
  N.

  Args:
    logprob_ST: log-probs under the policy being trained, at the sampling temperature.
    prox_logprob_ST: under the policy before this batch's updates; its gradient is stopped here.
    behavior_logprob_ST: as the server reported them.
    advantage_ST: credit per token.
    mask_ST: 1 on trained tokens; outside, every array may hold garbage, nan included.
    clip: half width of the ratio's interval.
    weight_cap: largest behaviour weight that is used.

  Returns:
    The loss (0 when nothing is trained) and its parts, float32 scalars, all but `loss_sum` without
    gradient. Sums over trained tokens: `loss_sum`, `ratio_sum`, `clipped` (tokens where the clip
    decides), `dropped`, `weight_sum` and `weight_square_sum` (of the weights used), `gap_sum` (of
    |prox - behavior|), `tokens` (N). Their maximum: `gap_max`.
  """
  shapes.check(
    logprob_ST=logprob_ST,
    prox_logprob_ST=prox_logprob_ST,
    behavior_logprob_ST=behavior_logprob_ST,
    advantage_ST=advantage_ST,
    mask_ST=mask_ST,
  )
  # nothing outside the mask counts, whatever stands there
  trained_ST = mask_ST > 0
  logprob_ST, prox_ST, behavior_ST, advantage_ST = (
    jnp.where(trained_ST, x, 0.0)
    for x in (logprob_ST, prox_logprob_ST, behavior_logprob_ST, advantage_ST)
  )
  prox_ST, behavior_ST, advantage_ST = jax.lax.stop_gradient((prox_ST, behavior_ST, advantage_ST))

  weight_ST, kept_ST = _weights(trained_ST, prox_ST, behavior_ST, weight_cap)

  # PPO's clip
  ratio_ST = jnp.exp(jnp.clip(logprob_ST - prox_ST, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
  plain_ST = -advantage_ST * ratio_ST
  clipped_ST = -advantage_ST * jnp.clip(ratio_ST, 1 - clip, 1 + clip)
  worse_ST = jnp.where(kept_ST, jnp.maximum(plain_ST, clipped_ST), 0.0)
  loss_sum = (weight_ST * worse_ST).sum()

  counts = jax.lax.stop_gradient(
    _counts(trained_ST, kept_ST, ratio_ST, weight_ST, clipped_ST > plain_ST, prox_ST, behavior_ST)
  )
  return loss_sum / jnp.maximum(counts['tokens'], 1.0), {'loss_sum': loss_sum, **counts}


def _weights(
  trained_ST: jax.Array, prox_ST: jax.Array, behavior_ST: jax.Array, cap: float
) -> tuple[jax.Array, jax.Array]:
  """exp(prox - behavior) of the tokens that are used, else 0; and which tokens are used: a weight
  above the cap drops its token.
  """
  weight_ST = jnp.exp(prox_ST - behavior_ST)
  kept_ST = trained_ST & (weight_ST <= cap)
  return jnp.where(kept_ST, weight_ST, 0.0), kept_ST


def _counts(
  trained_ST: jax.Array,
  kept_ST: jax.Array,
  ratio_ST: jax.Array,
  weight_ST: jax.Array,
  decides_ST: jax.Array,
  prox_ST: jax.Array,
  behavior_ST: jax.Array,
) -> dict[str, jax.Array]:
  """The parts beside the loss. decides_ST: where the clip decides. |prox - behavior| is the gap
  between learner and server.
  """
  gap_ST = jnp.where(trained_ST, jnp.abs(prox_ST - behavior_ST), 0.0)
  return {
    'ratio_sum': jnp.where(trained_ST, ratio_ST, 0.0).sum(),
    'clipped': (trained_ST & decides_ST).sum().astype(jnp.float32),
    'dropped': (trained_ST & ~kept_ST).sum().astype(jnp.float32),
    'weight_sum': weight_ST.sum(),
    'weight_square_sum': jnp.square(weight_ST).sum(),
    'gap_sum': gap_ST.sum(),
    'gap_max': gap_ST.max(initial=0.0),
    'tokens': trained_ST.sum().astype(jnp.float32),
  }

"""The policy loss: PPO's clip (Schulman et al. 2017, eq. 7), decoupled from the policy that sampled
the tokens (Hilton et al. 2022).
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
  """Returns the mean loss of the N trained tokens, and the sums that it is made of.

  loss = sum_t w * max(-A * ratio, -A * clip(ratio, 1 - clip, 1 + clip)) / N.
  ratio = exp(logprob - prox) carries the gradient. w = exp(prox - behavior) has none; it corrects
  for the policy that sampled. A token with w > weight_cap leaves the sum but stays in N.

  Args:
    logprob_ST: log-probs under the policy being trained, at the sampling temperature.
    prox_logprob_ST: under the policy before this batch's updates; its gradient is stopped here.
    behavior_logprob_ST: as the server reported them.
    advantage_ST: advantage per token.
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
  # arrays may hold nan outside the mask, and nan * 0 is nan: replace it
  trained_ST = mask_ST > 0
  logprob_ST, prox_ST, behavior_ST, advantage_ST = (
    jnp.where(trained_ST, x, 0.0)
    for x in (logprob_ST, prox_logprob_ST, behavior_logprob_ST, advantage_ST)
  )
  prox_ST, behavior_ST, advantage_ST = jax.lax.stop_gradient((prox_ST, behavior_ST, advantage_ST))

  # the weight of each token under the policy that sampled it
  weight_ST, kept_ST = _weights(trained_ST, prox_ST, behavior_ST, weight_cap)

  # PPO's clip: the worse of the plain and the clipped term
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
  """Returns exp(prox - behavior) of the used tokens, else 0; and which tokens are used.

  A weight above the cap drops its token.
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
  """Returns the logged sums. decides_ST: where the clip decides.

  |prox - behavior| is the gap between learner and server.
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

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
    The loss (0 when nothing is trained) and parts, float32 scalars, all but `loss_sum` without
    gradient: sums over trained tokens `loss_sum`, `ratio_sum`, `clipped` (tokens where the clip
    decides), `dropped`, `weight_sum` and `weight_square_sum` (of the weights used), `gap_sum` (of
    |prox - behavior|), `tokens` (N); and `gap_max`.
  """
  shapes.check(
    logprob_ST=logprob_ST,
    prox_logprob_ST=prox_logprob_ST,
    behavior_logprob_ST=behavior_logprob_ST,
    advantage_ST=advantage_ST,
    mask_ST=mask_ST,
  )
  trained = mask_ST > 0
  logprob, prox, behavior, advantage = (
    jnp.where(trained, x, 0.0)
    for x in (logprob_ST, prox_logprob_ST, behavior_logprob_ST, advantage_ST)
  )
  prox, behavior, advantage = jax.lax.stop_gradient((prox, behavior, advantage))
  weight = jnp.exp(prox - behavior)
  kept = trained & (weight <= weight_cap)
  weight = jnp.where(kept, weight, 0.0)
  ratio = jnp.exp(jnp.clip(logprob - prox, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
  plain, clipped = -advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)
  loss_sum = (weight * jnp.where(kept, jnp.maximum(plain, clipped), 0.0)).sum()
  tokens = trained.sum().astype(jnp.float32)
  gap = jnp.where(trained, jnp.abs(prox - behavior), 0.0)
  counts = {
    'ratio_sum': jnp.where(trained, ratio, 0.0).sum(),
    'clipped': (trained & (clipped > plain)).sum().astype(jnp.float32),
    'dropped': (trained & ~kept).sum().astype(jnp.float32),
    'weight_sum': weight.sum(),
    'weight_square_sum': jnp.square(weight).sum(),
    'gap_sum': gap.sum(),
    'gap_max': gap.max(initial=0.0),
    'tokens': tokens,
  }
  return loss_sum / jnp.maximum(tokens, 1.0), {
    'loss_sum': loss_sum,
    **jax.lax.stop_gradient(counts),
  }

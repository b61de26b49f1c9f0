"""Log-probs and entropy of given tokens, in chunks, so that [tokens, V] is never whole in
memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes

_BANNED = -1e30  # finite, so that entropy's p * logit is 0 and not nan


class Scores(NamedTuple):
  """Per token, float32, 0 where not asked: log-prob (with gradient), entropy of its distribution, 1
  if it is the arg-max.
  """

  logprob_RT: jax.Array
  entropy_RT: jax.Array
  correct_RT: jax.Array


def token_scores(
  hidden_RTD: jax.Array,
  head_DV: jax.Array,
  tokens_RT: jax.Array,
  previous_RT: jax.Array,
  wanted_RT: jax.Array,
  *,
  temperature: float,
  banned: tuple[int, ...],
  chunk: int,
) -> Scores:
  """Scores each wanted token under the hidden state that predicts it.

  The distribution is softmax(logits / temperature) over the tokens that are not banned, in float32:
  what the server samples from. Wanted tokens are moved to the front of their row, so that chunks
  beyond the fullest row are skipped.

  Args:
    hidden_RTD: after the final norm, in the compute dtype. head_DV: output matrix; cast to the
    compute dtype. tokens_RT: the tokens to score. previous_RT: row index of the hidden state that
    predicts each; -1 for none (then the token is not scored). wanted_RT: bool, which tokens to
    score. temperature: > 0. banned: token ids that cannot be sampled; a banned token that is wanted
    gets a hugely negative log-prob. chunk: tokens per row in memory at once; the largest array is
    [R, chunk, V].

  Returns:
    Scores; 0 for tokens that are not scored.
  """
  sizes = shapes.check(
    hidden_RTD=hidden_RTD,
    head_DV=head_DV,
    tokens_RT=tokens_RT,
    previous_RT=previous_RT,
    wanted_RT=wanted_RT,
  )
  length = sizes['T']
  wanted_RT = wanted_RT & (previous_RT >= 0)
  order_RT = jnp.argsort(~wanted_RT, axis=1, stable=True)
  pick = lambda x: jnp.take_along_axis(x, order_RT, axis=1)
  source_RT, target_RT, asked_RT = (
    pick(jnp.maximum(previous_RT, 0)),
    pick(tokens_RT),
    pick(wanted_RT),
  )
  sorted_RTD = jnp.take_along_axis(hidden_RTD, source_RT[..., None], axis=1)
  chunk = min(chunk, length)
  split = functools.partial(_split, chunk=chunk)
  head_DV = head_DV.astype(hidden_RTD.dtype)
  allowed_V = np.ones(sizes['V'], bool)
  allowed_V[list(banned)] = False
  score = jax.checkpoint(
    functools.partial(_chunk, head_DV=head_DV, allowed_V=allowed_V, temperature=temperature)
  )

  def body(_, part):
    zeros = Scores(*(jnp.zeros(part[1].shape, jnp.float32) for _ in range(3)))
    return None, jax.lax.cond(part[2].any(), score, lambda *_: zeros, *part)

  _, chunks = jax.lax.scan(body, None, (split(sorted_RTD), split(target_RT), split(asked_RT)))
  back_RT = jnp.argsort(order_RT, axis=1)
  join = lambda x: jnp.take_along_axis(
    jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length], back_RT, axis=1
  )
  return Scores(*map(join, chunks))


def _split(x_RT: jax.Array, chunk: int) -> jax.Array:
  """[R, T, ...] -> [chunks, R, chunk, ...], the end padded with zeros."""
  padding = -x_RT.shape[1] % chunk
  padded = jnp.pad(x_RT, [(0, 0), (0, padding)] + [(0, 0)] * (x_RT.ndim - 2))
  return jnp.moveaxis(padded.reshape(x_RT.shape[0], -1, chunk, *x_RT.shape[2:]), 1, 0)


def _chunk(hidden_RTD, target_RT, asked_RT, *, head_DV, allowed_V, temperature) -> Scores:
  logits_RTV = (
    jnp.einsum('RTD,DV->RTV', hidden_RTD, head_DV, preferred_element_type=jnp.float32) / temperature
  )
  if not allowed_V.all():
    logits_RTV = jnp.where(allowed_V, logits_RTV, _BANNED)
  is_target = jnp.arange(logits_RTV.shape[-1]) == target_RT[..., None]
  target_logit = jnp.where(is_target, logits_RTV, 0.0).sum(-1)
  top = jax.lax.stop_gradient(logits_RTV.max(-1))
  normalizer = top + jnp.log(jnp.exp(logits_RTV - top[..., None]).sum(-1))
  frozen_RTV, frozen_normalizer = jax.lax.stop_gradient((logits_RTV, normalizer))
  entropy = frozen_normalizer - (
    jnp.exp(frozen_RTV - frozen_normalizer[..., None]) * frozen_RTV
  ).sum(-1)
  zero = lambda x: jnp.where(asked_RT, x, 0.0)
  return Scores(
    zero(target_logit - normalizer), zero(entropy), zero((target_logit >= top).astype(jnp.float32))
  )

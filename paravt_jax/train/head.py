"""Log-probs and entropy of given tokens, in chunks: the whole [tokens, V] is never in memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes

_BANNED = -1e30  # finite, so that entropy's p * logit is 0 and not nan


class Scores(NamedTuple):
  """Scores of tokens, float32; 0 for tokens that were not to be scored."""

  logprob_RT: jax.Array  # nats, with gradient
  entropy_RT: jax.Array  # of the distribution that the token came from, nats
  correct_RT: jax.Array  # 1 where the token is the arg-max


def token_scores(
  hidden_RTD: jax.Array,
  head_DV: jax.Array,
  tokens_RT: jax.Array,
  predecessor_RT: jax.Array,
  wanted_RT: jax.Array,
  *,
  temperature: float,
  banned: tuple[int, ...],
  chunk: int,
) -> Scores:
  """Scores each wanted token under the hidden state that predicts it.

  The distribution is softmax(logits / temperature) over the tokens that are not banned, in float32:
  what the server samples from. Wanted tokens move to the front, so that later chunks are skipped.

  Args:
    hidden_RTD: after the final norm, in the compute dtype. head_DV: output matrix; it is cast to
    the compute dtype. tokens_RT: the tokens to score. predecessor_RT: row index of the hidden state
    that predicts each; a token with -1 is not scored. wanted_RT: bool, which tokens to score.
    temperature: > 0. banned: token ids that cannot be sampled. A banned token that is wanted gets a
    hugely negative log-prob. chunk: tokens per row in memory at once; the largest array is [R,
    chunk, V].

  Returns:
    Scores; 0 for tokens that are not scored.
  """
  sizes = shapes.check(
    hidden_RTD=hidden_RTD,
    head_DV=head_DV,
    tokens_RT=tokens_RT,
    predecessor_RT=predecessor_RT,
    wanted_RT=wanted_RT,
  )
  # wanted tokens to the front of their row, each with the hidden state that predicts it
  wanted_RT = wanted_RT & (predecessor_RT >= 0)
  order_RT = jnp.argsort(~wanted_RT, axis=1, stable=True)
  source_RT = jnp.take_along_axis(jnp.maximum(predecessor_RT, 0), order_RT, axis=1)
  target_RT = jnp.take_along_axis(tokens_RT, order_RT, axis=1)
  scored_RT = jnp.take_along_axis(wanted_RT, order_RT, axis=1)
  sorted_RTD = jnp.take_along_axis(hidden_RTD, source_RT[..., None], axis=1)

  # what every chunk shares
  allowed_V = np.ones(sizes['V'], bool)
  allowed_V[list(banned)] = False
  fixed = {
    'head_DV': head_DV.astype(hidden_RTD.dtype),
    'allowed_V': allowed_V,
    'temperature': temperature,
  }
  split = functools.partial(_split, chunk=min(chunk, sizes['T']))
  chunks = _by_chunk(fixed, (split(sorted_RTD), split(target_RT), split(scored_RT)))

  # chunks to rows, and back to the order of the tokens
  back_RT = jnp.argsort(order_RT, axis=1)
  return Scores(*(_join_chunks(scores, back_RT) for scores in chunks))


def _by_chunk(fixed: dict[str, Any], parts: tuple[jax.Array, jax.Array, jax.Array]) -> Scores:
  """Returns scores [chunks, R, chunk] of `parts`: hidden states, targets, and which to score.

  Only one chunk's logits are in memory at a time; the backward pass computes them again. Chunks
  without a token to score are skipped.
  """
  score = jax.checkpoint(functools.partial(_chunk, **fixed))

  def body(_, part):
    zeros = Scores(*(jnp.zeros(part[1].shape, jnp.float32) for _ in range(3)))
    return None, jax.lax.cond(part[2].any(), score, lambda *_: zeros, *part)

  return jax.lax.scan(body, None, parts)[1]


def _split(x_RT: jax.Array, chunk: int) -> jax.Array:
  """[R, T, ...] -> [chunks, R, chunk, ...], the end padded with zeros."""
  padding = -x_RT.shape[1] % chunk
  padded = jnp.pad(x_RT, [(0, 0), (0, padding)] + [(0, 0)] * (x_RT.ndim - 2))
  return jnp.moveaxis(padded.reshape(x_RT.shape[0], -1, chunk, *x_RT.shape[2:]), 1, 0)


def _join_chunks(chunks: jax.Array, back_RT: jax.Array) -> jax.Array:
  """[chunks, R, chunk] -> [R, T], each row in the order of `back_RT`."""
  rows, length = back_RT.shape
  return jnp.take_along_axis(
    jnp.moveaxis(chunks, 0, 1).reshape(rows, -1)[:, :length], back_RT, axis=1
  )


def _chunk(hidden_RTD, target_RT, scored_RT, *, head_DV, allowed_V, temperature) -> Scores:
  # logits of what may be sampled
  logits_RTV = (
    jnp.einsum('RTD,DV->RTV', hidden_RTD, head_DV, preferred_element_type=jnp.float32) / temperature
  )
  if not allowed_V.all():
    logits_RTV = jnp.where(allowed_V, logits_RTV, _BANNED)

  # log-prob: the target's logit minus the log of the sum of exponentials
  is_target_RTV = jnp.arange(logits_RTV.shape[-1]) == target_RT[..., None]
  target_logit_RT = jnp.where(is_target_RTV, logits_RTV, 0.0).sum(-1)
  top_RT = jax.lax.stop_gradient(logits_RTV.max(-1))
  normalizer_RT = top_RT + jnp.log(jnp.exp(logits_RTV - top_RT[..., None]).sum(-1))

  # entropy without gradient: log-sum minus the mean logit
  frozen_RTV, frozen_RT = jax.lax.stop_gradient((logits_RTV, normalizer_RT))
  entropy_RT = frozen_RT - (jnp.exp(frozen_RTV - frozen_RT[..., None]) * frozen_RTV).sum(-1)

  correct_RT = (target_logit_RT >= top_RT).astype(jnp.float32)
  return Scores(
    jnp.where(scored_RT, target_logit_RT - normalizer_RT, 0.0),
    jnp.where(scored_RT, entropy_RT, 0.0),
    jnp.where(scored_RT, correct_RT, 0.0),
  )

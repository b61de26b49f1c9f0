"""Log-probs and entropy of given tokens, in chunks: the whole [tokens, V] is never in memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes
from paravt_jax.models.layers import product
from paravt_jax.models.placement import Place, anywhere

__all__ = ['Scores', 'token_scores']

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
  shares: int = 1,
  slices: int = 1,
  place: Place = anywhere,
) -> Scores:
  """Scores each wanted token under the hidden state that predicts it.

  The distribution is softmax(logits / temperature) over the tokens that are not banned, in float32:
  what the server samples from. Every device gets an equal share of each row's tokens. Wanted tokens
  move to the front of their share, so that later chunks are skipped.

  Args:
    hidden_RTD: after the final norm, in the compute dtype. head_DV: output matrix; it is cast to
    the compute dtype. tokens_RT: the tokens to score. predecessor_RT: row index of the hidden state
    that predicts each; a token with -1 is not scored. wanted_RT: bool, which tokens to score.
    temperature: > 0. banned: token ids that cannot be sampled. A banned token that is wanted gets a
    hugely negative log-prob. chunk: tokens per row in memory at once; the largest array has R *
    chunk * V logits over all devices. shares: number of devices that hold different rows
    (sharding.row_shards). slices: number of devices that share a row (sharding.token_shards).
    place: where activations lie.

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
  states_BUD, source_BT = _predictors(hidden_RTD, predecessor_RT, shares, slices, place)
  shares *= slices
  target_BT, scored_BT = (
    _balance(x, shares, place) for x in (tokens_RT, wanted_RT & (predecessor_RT >= 0))
  )

  # wanted tokens to the front of their row, then chunks of it: [chunks, B, chunk, ...]
  order_BT, source_BT, target_BT, scored_BT = _wanted_first(source_BT, target_BT, scored_BT)
  sorted_BTD = jnp.take_along_axis(states_BUD, source_BT[..., None], axis=1)
  size = min(max(chunk * sizes['R'] // shares, 1), order_BT.shape[1])
  score = functools.partial(
    _chunk,
    head=_copies(head_DV.astype(hidden_RTD.dtype), shares, place),
    allowed_V=_allowed(sizes['V'], banned),
    temperature=temperature,
    place=place,
  )
  chunks = _by_chunk(score, tuple(_split(x, size) for x in (sorted_BTD, target_BT, scored_BT)))

  # chunks to rows of the head, then back to the order of the tokens and to their own rows
  back_BT = jnp.argsort(order_BT, axis=1)
  unbalance = functools.partial(_unbalance, like_RT=tokens_RT, place=place)
  return Scores(*(unbalance(_join_chunks(x, back_BT)) for x in chunks))


def _wanted_first(
  source_BT: jax.Array, target_BT: jax.Array, scored_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns an order of each row with its scored tokens first, and the arrays in this order."""
  order_BT = jnp.argsort(~scored_BT, axis=1, stable=True)
  source_BT, target_BT, scored_BT = (
    jnp.take_along_axis(x, order_BT, axis=1) for x in (source_BT, target_BT, scored_BT)
  )
  return order_BT, source_BT, target_BT, scored_BT


def _predictors(
  hidden_RTD: jax.Array, predecessor_RT: jax.Array, shares: int, slices: int, place: Place
) -> tuple[jax.Array, jax.Array]:
  """Returns the hidden states of each share, and which of them predicts each token of the share.

  The head has one row per share, B = shares * slices, with states [B, U, D] and indices [B, T].
  """
  rows, length = predecessor_RT.shape
  source_RT = jnp.maximum(predecessor_RT, 0)
  if shares * slices == 1:
    first_R1 = length * jnp.arange(rows)[:, None]
    return hidden_RTD.reshape(1, rows * length, -1), (source_RT + first_R1).reshape(1, -1)
  # a predecessor is in the token's row, but not always in its slice or share: gather the row, look
  # up token t on the device with slice t % slices, then exchange over rows as `_balance` does
  hidden_RTD = place(hidden_RTD, 'rows', None, None)
  source_RT = jnp.pad(source_RT, ((0, 0), (0, -length % (shares * slices))))
  by_slice = jnp.moveaxis(source_RT.reshape(rows, -1, slices), 2, 1)

  def find(source_RT):
    return jnp.take_along_axis(hidden_RTD, source_RT[..., None], axis=1)

  found = jax.vmap(find, 1, 1)(place(by_slice, 'rows', 'tokens', None))
  # [R, slices, T / slices, D] -> [R, slices, U, shares, D] -> [shares, slices, R, U, D]
  found = place(found, 'rows', 'tokens', None, None)
  split = found.reshape(rows, slices, -1, shares, found.shape[-1])
  moved = jnp.transpose(place(split, 'rows', 'tokens', None, None, None), (3, 1, 0, 2, 4))
  moved = place(moved, 'rows', 'tokens', None, None, None)
  states_BUD = place(moved.reshape(shares * slices, -1, found.shape[-1]), 'shares', None, None)
  return states_BUD, jnp.broadcast_to(jnp.arange(states_BUD.shape[1]), states_BUD.shape[:2])


def _allowed(vocab: int, banned: tuple[int, ...]) -> np.ndarray:
  allowed_V = np.ones(vocab, bool)
  allowed_V[list(banned)] = False
  return allowed_V


def _copies(head_DV: jax.Array, shares: int, place: Place) -> jax.Array:
  """Gathers the output matrix once; with several shares, one copy for each: [B, D, V].

  Each device holds the copy of its own share. So the backward pass sums a copy's gradient over all
  chunks on its device, and the sum over copies is the only reduction.
  """
  head_DV = place(head_DV, None, 'vocab')
  if shares == 1:
    return head_DV
  return place(jnp.broadcast_to(head_DV, (shares, *head_DV.shape)), 'shares', None, 'vocab')


def _balance(x_RT: jax.Array, shares: int, place: Place) -> jax.Array:
  """[R, T, ...] -> [B, R * ceil(T / B), ...]: token t of every row goes to share t % B.

  Rows differ in their number of wanted tokens, and all devices wait for the last one. Wanted tokens
  stand together, so each share gets its part of them. On a mesh this is one all-to-all.
  """
  rest = (None,) * (x_RT.ndim - 2)
  padded = jnp.pad(x_RT, [(0, 0), (0, -x_RT.shape[1] % shares)] + [(0, 0)] * len(rest))
  split = padded.reshape(x_RT.shape[0], -1, shares, *x_RT.shape[2:])
  moved = jnp.moveaxis(place(split, 'rows', None, None, *rest), 2, 0)
  return place(moved, 'shares', None, None, *rest).reshape(shares, -1, *x_RT.shape[2:])


def _unbalance(x_BT: jax.Array, like_RT: jax.Array, place: Place) -> jax.Array:
  """Inverts `_balance` of an array of the shape of `like_RT`."""
  rows, length = like_RT.shape
  split = place(x_BT.reshape(x_BT.shape[0], rows, -1), 'shares', None, None)
  moved = place(jnp.moveaxis(split, 0, 2), 'rows', None, None)
  return moved.reshape(rows, -1)[:, :length]


def _by_chunk(score: Callable[..., Scores], parts: tuple[jax.Array, ...]) -> Scores:
  """Returns scores [chunks, B, chunk] of `parts`: hidden states, targets, and which to score.

  Only one chunk's logits are in memory at a time; the backward pass computes them again. Chunks
  without a token to score are skipped. A single chunk is computed once.
  """
  if parts[0].shape[0] == 1:
    # its logits live until the backward pass, which begins with them
    return jax.tree.map(lambda x: x[None], score(*(part[0] for part in parts)))

  # checkpoint around the cond: inside, the backward pass would keep a copy of the head per chunk
  @jax.checkpoint
  def one(needed, *part):
    zeros = Scores(*(jnp.zeros(part[1].shape, jnp.float32) for _ in range(3)))
    return jax.lax.cond(needed, score, lambda *_: zeros, *part)

  # one reduction over devices for all chunks
  needed = parts[2].any(axis=(1, 2))
  return jax.lax.scan(lambda _, part: (None, one(*part)), None, (needed, *parts))[1]


def _split(x_BT: jax.Array, chunk: int) -> jax.Array:
  """[B, T, ...] -> [chunks, B, chunk, ...], the end padded with zeros."""
  padding = -x_BT.shape[1] % chunk
  padded = jnp.pad(x_BT, [(0, 0), (0, padding)] + [(0, 0)] * (x_BT.ndim - 2))
  return jnp.moveaxis(padded.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:]), 1, 0)


def _join_chunks(chunks: jax.Array, back_BT: jax.Array) -> jax.Array:
  """[chunks, B, chunk] -> [B, T], each row in the order of `back_BT`."""
  rows, length = back_BT.shape
  return jnp.take_along_axis(
    jnp.moveaxis(chunks, 0, 1).reshape(rows, -1)[:, :length], back_BT, axis=1
  )


def _chunk(hidden_BTD, target_BT, scored_BT, *, head, allowed_V, temperature, place) -> Scores:
  # float32 logits of what may be sampled; `head` has one copy for all rows or one for each
  if head.ndim == 2 and head.dtype == jnp.float32:
    logits_BTV = product(hidden_BTD, head)
  else:
    axes = 'BTD,DV->BTV' if head.ndim == 2 else 'BTD,BDV->BTV'
    logits_BTV = jnp.einsum(axes, hidden_BTD, head, preferred_element_type=jnp.float32)
  logits_BTV = logits_BTV / temperature
  logits_BTV = place(logits_BTV, 'shares', None, 'vocab')
  if not allowed_V.all():
    logits_BTV = jnp.where(allowed_V, logits_BTV, _BANNED)

  # log-prob: the target's logit minus the log of the sum of exponentials
  is_target_BTV = jnp.arange(logits_BTV.shape[-1]) == target_BT[..., None]
  target_logit_BT = jnp.where(is_target_BTV, logits_BTV, 0.0).sum(-1)
  top_BT = jax.lax.stop_gradient(logits_BTV.max(-1))
  normalizer_BT = top_BT + jnp.log(jnp.exp(logits_BTV - top_BT[..., None]).sum(-1))

  # entropy without gradient: log-sum minus the mean logit
  frozen_BTV, frozen_BT = jax.lax.stop_gradient((logits_BTV, normalizer_BT))
  entropy_BT = frozen_BT - (jnp.exp(frozen_BTV - frozen_BT[..., None]) * frozen_BTV).sum(-1)

  correct_BT = (target_logit_BT >= top_BT).astype(jnp.float32)
  return Scores(
    jnp.where(scored_BT, target_logit_BT - normalizer_BT, 0.0),
    jnp.where(scored_BT, entropy_BT, 0.0),
    jnp.where(scored_BT, correct_BT, 0.0),
  )

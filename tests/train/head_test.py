"""The chunked head equals the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.train.head import token_scores

R, T, D, V = 2, 7, 4, 11
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(R, T, D)), jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(2, V, (R, T)))
PREVIOUS = jnp.asarray([[-1, 0, 1, 2, 1, 4, 5], [-1, 0, 1, -1, 3, 4, 5]])
WANTED = jnp.asarray([[1, 0, 1, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1, 1]], bool)
ASKED = np.asarray(WANTED & (PREVIOUS >= 0))


def scores(chunk, temperature=1.0, banned=(), hidden=HIDDEN):
  return token_scores(
    hidden, HEAD, TOKENS, PREVIOUS, WANTED, temperature=temperature, banned=banned, chunk=chunk
  )


def whole(hidden, temperature=1.0, banned=()):
  logits = hidden @ HEAD / temperature
  logits = logits.at[..., list(banned)].set(-jnp.inf) if banned else logits
  logp_RTV = jax.nn.log_softmax(logits)[jnp.arange(R)[:, None], jnp.maximum(PREVIOUS, 0)]
  return jnp.take_along_axis(logp_RTV, TOKENS[..., None], -1)[..., 0], logp_RTV


@pytest.mark.parametrize('chunk', [1, 3, 7, 100])
def test_any_chunk_gives_the_whole_softmax_and_zero_where_nothing_is_asked(chunk):
  got, (want, logp_RTV) = scores(chunk), whole(HIDDEN)
  np.testing.assert_allclose(got.logprob_RT, np.where(ASKED, want, 0), atol=1e-5)
  np.testing.assert_allclose(
    got.entropy_RT, np.where(ASKED, -(jnp.exp(logp_RTV) * logp_RTV).sum(-1), 0), atol=1e-5
  )
  np.testing.assert_array_equal(got.correct_RT, np.where(ASKED, logp_RTV.argmax(-1) == TOKENS, 0))


def test_temperature_and_banned_ids_shape_the_distribution():
  got, (want, logp_RTV) = scores(3, 0.7, (0, 1)), whole(HIDDEN, 0.7, (0, 1))
  np.testing.assert_allclose(got.logprob_RT, np.where(ASKED, want, 0), atol=1e-5)
  kept = logp_RTV[..., 2:]
  np.testing.assert_allclose(
    got.entropy_RT, np.where(ASKED, -(jnp.exp(kept) * kept).sum(-1), 0), atol=1e-5
  )
  assert abs(np.asarray(got.logprob_RT - scores(3, 0.7).logprob_RT)[ASKED]).min() > 0
  assert abs(np.asarray(got.logprob_RT - scores(3, 1.0, (0, 1)).logprob_RT)[ASKED]).min() > 0


def test_the_gradient_is_that_of_the_whole_softmax():
  weight = jnp.asarray(RNG.normal(size=(R, T)), jnp.float32)
  got = jax.grad(lambda h: (scores(3, 0.7, (0, 1), h).logprob_RT * weight).sum())(HIDDEN)
  want = jax.grad(lambda h: jnp.where(ASKED, whole(h, 0.7, (0, 1))[0] * weight, 0).sum())(HIDDEN)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_entropy_and_accuracy_carry_no_gradient():
  got = jax.grad(
    lambda h: scores(3, hidden=h).entropy_RT.sum() + scores(3, hidden=h).correct_RT.sum()
  )(HIDDEN)
  assert not np.asarray(got).any()


def test_garbage_in_hidden_states_that_predict_nothing_asked_does_not_leak():
  used = np.zeros((R, T), bool)
  for row in range(R):
    used[row, np.asarray(PREVIOUS)[row][ASKED[row]]] = True
  dirty = jnp.where(used[..., None], HIDDEN, jnp.nan)
  np.testing.assert_allclose(scores(3, hidden=dirty).logprob_RT, scores(3).logprob_RT)


def test_the_largest_array_is_one_chunk():
  text = str(jax.make_jaxpr(jax.grad(lambda h: scores(3, hidden=h).logprob_RT.sum()))(HIDDEN))
  assert (
    f'f32[{R},3,{V}]' in text
    and f'f32[{R},{T},{V}]' not in text
    and f'f32[3,{R},3,{V}]' not in text
  )

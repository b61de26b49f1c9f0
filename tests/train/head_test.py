"""The chunked head equals the whole one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models.placement import anywhere
from paravt_jax.train import head
from paravt_jax.train.head import token_scores

R, T, D, V = 2, 7, 4, 11
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(R, T, D)), jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(2, V, (R, T)))
PREVIOUS = jnp.asarray([[-1, 0, 1, 2, 1, 4, 5], [-1, 0, 1, -1, 3, 4, 5]])
WANTED = jnp.asarray([[1, 0, 1, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1, 1]], bool)
ASKED = np.asarray(WANTED & (PREVIOUS >= 0))


def scores(chunk, temperature=1.0, banned=(), hidden=HIDDEN, head=HEAD, shares=1, slices=1):
  options = {'temperature': temperature, 'banned': banned, 'chunk': chunk}
  options |= {'shares': shares, 'slices': slices}
  return token_scores(hidden, head, TOKENS, PREVIOUS, WANTED, **options)


def whole(hidden, temperature=1.0, banned=(), head=HEAD):
  logits = hidden @ head / temperature
  logits = logits.at[..., list(banned)].set(-jnp.inf) if banned else logits
  logp_RTV = jax.nn.log_softmax(logits)[jnp.arange(R)[:, None], jnp.maximum(PREVIOUS, 0)]
  return jnp.take_along_axis(logp_RTV, TOKENS[..., None], -1)[..., 0], logp_RTV


@pytest.mark.parametrize(
  ('chunk', 'shares', 'slices'),
  [(1, 1, 1), (3, 1, 1), (100, 1, 1), (1, 2, 1), (3, 2, 1), (3, 1, 4), (3, 2, 2)],
)
def test_any_chunk_gives_the_whole_softmax_and_zero_where_nothing_is_asked(chunk, shares, slices):
  got, (want, logp_RTV) = scores(chunk, shares=shares, slices=slices), whole(HIDDEN)
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


@pytest.mark.parametrize(('shares', 'slices'), [(1, 1), (2, 1), (2, 2)])
def test_the_gradient_is_that_of_the_whole_softmax(shares, slices):
  weight = jnp.asarray(RNG.normal(size=(R, T)), jnp.float32)

  def chunked(hidden, head):
    return (scores(3, 0.7, (0, 1), hidden, head, shares, slices).logprob_RT * weight).sum()

  def plain(hidden, head):
    return jnp.where(ASKED, whole(hidden, 0.7, (0, 1), head)[0] * weight, 0).sum()

  got = jax.grad(chunked, argnums=(0, 1))(HIDDEN, HEAD)
  want = jax.grad(plain, argnums=(0, 1))(HIDDEN, HEAD)
  for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_logits_of_bfloat16_states_are_float32_and_are_never_rounded():
  width, vocab = 64, 509
  rng = np.random.default_rng(3)
  hidden = jnp.asarray(rng.normal(size=(R, T, width)), jnp.bfloat16)
  matrix = jnp.asarray(rng.normal(size=(width, vocab)), jnp.bfloat16)
  program = jax.jit(lambda *given: scores(3, hidden=given[0], head=given[1])).lower(hidden, matrix)
  # as written, and as compiled; the matrix itself is bfloat16
  for found in (
    re.findall(rf'tensor<([\dx]*){vocab}x(\w+)>', program.as_text()),
    [(shape, kind) for kind, shape in re.findall(rf'(\w+)\[([\d,]*){vocab}\]', compiled(program))],
  ):
    kinds = {kind for shape, kind in found if not shape.strip('x,').endswith(f'{width}')}
    assert 'f32' in kinds and not kinds & {'bf16', 'f16'}
  logits = np.asarray(hidden, np.float64) @ np.asarray(matrix, np.float64)
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  places = np.arange(R)[:, None], np.maximum(PREVIOUS, 0), np.asarray(TOKENS)
  got = scores(3, hidden=hidden, head=matrix).logprob_RT
  np.testing.assert_allclose(got, np.where(ASKED, logits[places], 0), atol=1e-4)
  # which logits rounded to bfloat16 would miss by 100 times as much
  rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float64)
  assert np.abs(rounded - logits).max() > 1e-2


def compiled(program) -> str:
  return str(program.compile().as_text())


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


@pytest.mark.parametrize(('shares', 'largest'), [(1, f'[1,{3 * R},{V}]'), (2, f'[2,3,{V}]')])
def test_the_largest_array_is_one_chunk(shares, largest):
  loss = lambda h: scores(3, hidden=h, shares=shares).logprob_RT.sum()
  text = str(jax.make_jaxpr(jax.grad(loss))(HIDDEN))
  sizes = {
    shape: np.prod([int(size) for size in shape.split(',')])
    for shape in re.findall(rf'f32\[([\d,]+,{V})\]', text)
    if not shape.endswith(f'{D},{V}')  # the head itself
  }
  assert f'f32{largest}' in text and max(sizes.values()) == 3 * R * V


def test_the_backward_pass_keeps_one_copy_of_the_head_whatever_the_number_of_chunks():
  tokens, width, vocab = 2048, 64, 8192
  ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  args = (
    jax.ShapeDtypeStruct((1, tokens, width), jnp.bfloat16),
    jax.ShapeDtypeStruct((width, vocab), jnp.float32),
    *(ids, ids),
    jax.ShapeDtypeStruct((1, tokens), jnp.bool_),
  )

  def temporary(chunk):
    score = functools.partial(token_scores, temperature=0.7, banned=(), chunk=chunk)
    loss = jax.grad(lambda *args: score(*args).logprob_RT.sum(), argnums=(0, 1))
    return jax.jit(loss).lower(*args).compile().memory_analysis().temp_size_in_bytes

  # 8 times as many chunks of an eighth: less memory, not 28 more copies of the head (1 MB each)
  assert temporary(64) < temporary(512)


def test_shares_hold_equal_parts_of_rows_that_differ():
  # one row wants all its 8 tokens, the other none
  wanted_RT = jnp.zeros((2, 8), bool).at[0].set(True)
  shares_BT = head._balance(wanted_RT, 2, anywhere)
  assert shares_BT.sum(1).tolist() == [4, 4]
  back_RT = head._unbalance(shares_BT, wanted_RT, anywhere)
  assert (back_RT == wanted_RT).all()

"""Drawing tokens: right frequencies, no company effects, exact log-probs."""

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.serving.embedded import sampling


def state(slots: int, **changes):
  fields = {'budget': 100, 'temperature': 1.0, **changes}
  base = sampling.zeros(slots, 2)
  base['seed'] = jnp.stack(
    [jnp.arange(slots, dtype=jnp.uint32), jnp.full(slots, 7, jnp.uint32)], axis=1
  )
  return {
    name: jnp.broadcast_to(jnp.asarray(fields[name], value.dtype), value.shape)
    if name in fields
    else value
    for name, value in base.items()
  }


sample = jax.jit(
  lambda logits, bias, s: sampling.sample(logits, bias, s, jnp.ones(logits.shape[0], bool))
)


def test_tokens_come_as_often_as_their_probabilities_say():
  probability = np.array([0.5, 0.0, 0.2, 0.3] + [0.0] * 66)
  logits = jnp.asarray(np.log(np.maximum(probability, 1e-30)), jnp.float32)[None].repeat(20000, 0)
  token, logprob, _, _ = sample(logits, jnp.zeros((1, 70)), state(20000))
  share = np.bincount(np.asarray(token), minlength=70) / 20000
  assert np.abs(share - probability).max() < 0.015  # 4 standard deviations of 0.0035
  assert share[1] == 0 and share[4:].sum() == 0
  np.testing.assert_allclose(
    np.asarray(logprob), np.log(np.maximum(probability, 1e-30))[np.asarray(token)], atol=1e-5
  )


def test_temperature_and_bias_act_before_the_log_prob():
  logits = jnp.asarray([[1.0, 2.0, 3.0, 4.0]])
  bias = jnp.asarray([[0.0, 0.0, 0.0, -1e9], [0.0] * 4])
  _, logprob, _, _ = sample(logits, bias, state(1, temperature=0.5))
  token, _, _, _ = sample(logits, bias, state(1, temperature=0.5))
  expected = np.array([2.0, 4.0, 6.0]) - np.log(np.exp([2.0, 4.0, 6.0]).sum())
  np.testing.assert_allclose(float(logprob[0]), expected[int(token[0])], atol=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_log_probs_are_not_renormalised():
  logits = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]])).repeat(500, 0)
  for changes, kept in (
    ({'top_p': 0.65}, {0, 1}),
    ({'top_k': 3}, {0, 1, 2}),
    ({'top_p': 0.65, 'top_k': 1}, {0}),
  ):
    token, logprob, _, _ = sample(logits, jnp.zeros((1, 4)), state(500, **changes))
    assert set(np.asarray(token).tolist()) == kept
    np.testing.assert_allclose(
      np.asarray(logprob), np.log([0.4, 0.3, 0.2, 0.1])[np.asarray(token)], atol=1e-5
    )


def test_a_stop_id_or_the_last_of_the_budget_ends_a_slot():
  logits = jnp.asarray([[0.0, 9.0, 0.0]]).repeat(2, 0)
  first = state(2, temperature=0.0)
  first['stop'] = jnp.asarray([[1, -1], [-1, -1]])
  token, _, more, done = sample(logits, jnp.zeros((1, 3)), first)
  assert (
    token.tolist() == [1, 1] and done.tolist() == [True, False] and more['count'].tolist() == [1, 1]
  )
  _, _, _, done = sample(logits, jnp.zeros((1, 3)), state(2, temperature=0.0, budget=1))
  assert done.tolist() == [True, True]


def test_greedy_company_does_not_change_a_draw():
  logits = jax.random.normal(jax.random.key(0), (4, 100))
  alone = state(4)
  mixed = {
    **alone,
    'temperature': jnp.asarray([1.0, 0.0, 1.0, 0.0]),
    'top_k': jnp.asarray([0, 0, 3, 0]),
  }
  bias = jnp.zeros((1, 100))
  assert sample(logits, bias, alone)[0][0] == sample(logits, bias, mixed)[0][0]
  assert sample(logits, bias, mixed)[0][1] == logits[1].argmax()


def test_a_cold_temperature_and_a_strong_bias_leave_log_probs_finite():
  logits = jax.random.normal(jax.random.key(0), (1, 512))
  half = jnp.where(jnp.arange(512) % 2 == 0, 1.0, 0.0)[None]
  for temperature, bias in (
    (1e-6, 0.0),
    (1e-6, 1e30),
    (1e-6, -1e30),
    (1.0, 1e30),
    (0.7, 1e9),
    (0.0, 1e30),
  ):
    _, logprob, _, _ = sample(logits, bias * half, state(1, temperature=temperature))
    assert -7.0 < float(logprob[0]) <= 0.0, (
      temperature,
      bias,
    )  # ln 512 is 6.2: nobody is less likely than in a draw of all


def test_what_ordinary_requests_are_given_is_the_plain_softmax():
  logits = 4 * jax.random.normal(jax.random.key(1), (8, 512))
  token, logprob, _, _ = sample(logits, jnp.zeros((1, 512)), state(8, temperature=0.7))
  plain = jax.nn.log_softmax(logits / 0.7)[jnp.arange(8), token]
  np.testing.assert_allclose(np.asarray(logprob), np.asarray(plain), atol=1e-5)

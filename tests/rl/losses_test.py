"""Section 7's loss, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.rl.losses import decoupled_policy_loss

NUMBERS = {'clip': 0.2, 'weight_cap': 5.0}


def row(*values):
  return jnp.array([values], jnp.float32)


def test_weights_above_the_cap_are_dropped_from_the_sum_and_stay_in_the_count():
  # w = exp(-1 - behave) = e^0 = 1, e^.6931 = 2, e^2 = 7.39 > 5; ratio 1, A 1: L = -(1 + 2 + 0) / 3
  # = -1
  same, ones = row(-1, -1, -1), row(1, 1, 1)
  loss, parts = decoupled_policy_loss(same, same, row(-1, -1.6931, -3), ones, ones, **NUMBERS)
  assert loss == pytest.approx(-1.0, abs=1e-4)
  assert parts['dropped'] == 1 and parts['tokens'] == 3
  assert parts['weight_sum'] == pytest.approx(3.0, abs=1e-4) and parts[
    'weight_square_sum'
  ] == pytest.approx(5.0, abs=1e-3)
  assert parts['gap_max'] == pytest.approx(2.0) and parts['gap_sum'] == pytest.approx(2.6931)


def test_the_clip_takes_the_worse_of_ratio_and_clipped_ratio():
  # ratio e^.5 = 1.649, A 1: max(-1.649, -1.2) = -1.2; ratio e^-1 = .368, A -1: max(.368, .8) = .8;
  # L = (-1.2 + .8) / 2 = -.2
  loss, parts = decoupled_policy_loss(
    row(-0.5, -2), row(-1, -1), row(-1, -1), row(1, -1), row(1, 1), **NUMBERS
  )
  assert loss == pytest.approx(-0.2, abs=1e-6)
  assert parts['clipped'] == 2 and parts['ratio_sum'] == pytest.approx(1.6487 + 0.3679, abs=1e-4)


def test_the_clip_does_not_act_where_it_would_help():
  # ratio e^-1, A 1: max(-.368, -.8) = -.368; ratio e^.5, A -1: max(1.649, 1.2) = 1.649; L = 1.2809
  # / 2
  loss, parts = decoupled_policy_loss(
    row(-2, -0.5), row(-1, -1), row(-1, -1), row(1, -1), row(1, 1), **NUMBERS
  )
  assert loss == pytest.approx(0.6404, abs=1e-4)
  assert parts['clipped'] == 0


def gradient(logprob, prox, behavior, advantage, mask, argument=0):
  value = lambda *args: decoupled_policy_loss(*args, **NUMBERS)[0]
  return jax.grad(value, argnums=argument)(logprob, prox, behavior, advantage, mask)


def test_on_policy_the_gradient_is_minus_weight_times_advantage_over_the_count():
  # d/dlogp of -w A ratio / N at ratio 1: -1 * 3 / 2, and -2 * -1 / 2 with w = e^.6931 = 2
  got = gradient(row(-1, -1), row(-1, -1), row(-1, -1.6931), row(3, -1), row(1, 1))
  np.testing.assert_allclose(got, [[-1.5, 1.0]], atol=1e-4)


def test_clipped_and_dropped_tokens_have_no_gradient():
  got = gradient(row(-0.5, -1, 80), row(-1, -1, -9), row(-1, -9, -9), row(1, 1, 1), row(1, 1, 1))
  assert got.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize('argument', [1, 2, 3])
def test_only_the_current_policy_gets_a_gradient(argument):
  got = gradient(row(-1, -2), row(-1, -1), row(-1, -1.2), row(1, -1), row(1, 1), argument)
  assert got.tolist() == [[0, 0]]


def test_garbage_outside_the_mask_reaches_neither_value_nor_gradient():
  dirty = [row(-1, x) for x in (jnp.nan, jnp.nan, jnp.inf, jnp.nan)]
  args = (*dirty, row(1, 0))
  loss, parts = decoupled_policy_loss(args[0], args[1], args[2], args[3], args[4], **NUMBERS)
  assert loss == 1.0 and all(np.isfinite(value) for value in parts.values())
  assert gradient(*args).tolist() == [[1.0, 0.0]]


def test_nothing_trained_gives_zero_loss_and_zero_gradient():
  args = (row(jnp.nan), row(jnp.nan), row(jnp.nan), row(jnp.nan), row(0))
  assert decoupled_policy_loss(*args, **NUMBERS)[0] == 0
  assert gradient(*args).tolist() == [[0]]


def test_arrays_of_different_length_are_named():
  with pytest.raises(ValueError, match='advantage_ST has T=1'):
    decoupled_policy_loss(row(-1, -1), row(-1, -1), row(-1, -1), row(1), row(1, 1), **NUMBERS)

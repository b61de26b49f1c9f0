"""Section 6 of the specification, number by number."""

import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.rl import advantages


def test_a_group_of_eight_is_centred_and_divided_by_its_sample_deviation():
  # mean 8/8 = 1; squares of (1.8, 1.2, 0, 0, -.5, -.5, -1, -1) add up to 3.24 + 1.44 + .25 + .25 +
  # 1 + 1 = 7.18; std = sqrt(7.18 / 7) = 1.01278; 1.8 / 1.01278 = 1.7773, 1.2 / 1.01278 = 1.1849, .5
  # / 1.01278 = .4937, 1 / 1.01278 = .9874
  got = advantages.group_normalize(np.array([2.8, 2.2, 1, 1, 0.5, 0.5, 0, 0]), np.zeros(8, int))
  np.testing.assert_allclose(
    got, [1.7773, 1.1849, 0, 0, -0.4937, -0.4937, -0.9874, -0.9874], atol=5e-5
  )


def test_one_success_of_eight():
  # mean 1/8; std = sqrt((49/64 + 7/64) / 7) = sqrt(1/8) = .35355; (7/8) / .35355 = 2.4749; (-1/8) /
  # .35355 = -.3536
  got = advantages.group_normalize(np.eye(8)[0], np.zeros(8, int))
  np.testing.assert_allclose(got, [2.4749] + [-0.3536] * 7, atol=5e-5)


def test_equal_rewards_and_a_group_of_one_give_exactly_zero():
  got = advantages.group_normalize(np.array([0.1, 0.1, 0.1, 7.0]), np.array(['a', 'a', 'a', 'b']))
  assert got.tolist() == [0, 0, 0, 0]


def test_groups_are_told_apart_by_id_not_by_position_or_size():
  # a: 0, 2 -> mean 1, std sqrt(2) -> -+.7071; b: 1, 1, 4 -> mean 2, std sqrt((1 + 1 + 4) / 2) =
  # 1.7321 -> -.5774 -.5774 1.1547
  got = advantages.group_normalize(
    jnp.array([0.0, 1.0, 2.0, 1.0, 4.0]), np.array(['a', 'b', 'a', 'b', 'b'])
  )
  np.testing.assert_allclose(got, [-0.7071, -0.5774, 0.7071, -0.5774, 1.1547], atol=5e-5)


def test_deviation_14_rewards_above_2_2_stay_distinguishable():
  got = advantages.group_normalize(np.array([2.2, 2.8, 3.4]), np.zeros(3, int))  # std .6
  np.testing.assert_allclose(got, [-1, 0, 1], atol=1e-5)


def test_no_episodes_give_no_advantages():
  assert advantages.group_normalize(np.zeros(0), np.zeros(0, int)).shape == (0,)


def test_a_wrong_number_of_group_ids_is_named():
  with pytest.raises(ValueError, match='group_E has E=2'):
    advantages.group_normalize(np.zeros(3), np.zeros(2, int))


def test_std_divides_without_centring_over_trained_tokens_only():
  # trained: 1, 3 -> mean 2, std 1 (ddof 0) -> 1 / 1, 3 / 1; the untrained nan is not looked at
  got = advantages.batch_normalize(
    jnp.array([[1.0, jnp.nan, 3.0]]), jnp.array([[1.0, 0.0, 1.0]]), 'std'
  )
  np.testing.assert_allclose(got, [[1, 0, 3]], atol=1e-5)


def test_mean_std_also_centres_and_none_changes_nothing():
  advantage, mask = jnp.array([[1.0, 9.0, 3.0]]), jnp.array([[1.0, 0.0, 1.0]])
  np.testing.assert_allclose(
    advantages.batch_normalize(advantage, mask, 'mean_std'), [[-1, 0, 1]], atol=1e-5
  )
  np.testing.assert_allclose(advantages.batch_normalize(advantage, mask, 'none'), [[1, 0, 3]])


@pytest.mark.parametrize('mode', advantages.BATCH_NORMS)
def test_a_batch_without_signal_or_without_tokens_stays_at_zero(mode):
  assert advantages.batch_normalize(jnp.zeros((1, 4)), jnp.ones((1, 4)), mode).tolist() == [[0] * 4]
  assert advantages.batch_normalize(jnp.ones((1, 4)), jnp.zeros((1, 4)), mode).tolist() == [[0] * 4]


def test_an_unknown_batch_norm_is_refused():
  with pytest.raises(ValueError, match=r"rl\.batch_norm: got 'centre'"):
    advantages.batch_normalize(jnp.zeros((1, 1)), jnp.ones((1, 1)), 'centre')


def test_deviation_9_a_trajectory_that_ends_on_an_observation_keeps_its_reward():
  mask = jnp.array([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]])
  got = advantages.token_advantage(
    jnp.full((1, 6), 1.5), jnp.zeros((1, 6)), mask, jnp.zeros((1, 6), int), beta=0.01
  )
  np.testing.assert_allclose(got, [[0, 0, 1.5, 1.5, 0, 0]])


def test_kl_still_to_come_is_added_own_token_included():
  # .01 * .5 = .005 per token; three, two, one still to come: 1 - .015, 1 - .010, 1 - .005
  mask = jnp.array([[0.0, 0.0, 1.0, 1.0, 1.0]])
  got = advantages.token_advantage(
    jnp.ones((1, 5)), jnp.full((1, 5), 0.5), mask, jnp.zeros((1, 5), int), beta=0.01
  )
  np.testing.assert_allclose(got, [[0, 0, 0.985, 0.990, 0.995]], atol=1e-6)


def test_kl_of_another_run_in_the_row_does_not_count():
  run = jnp.array([[1, 1, 2, 2, 2]])
  got = advantages.reward_to_go(jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0]]), run)
  assert got.tolist() == [[3, 2, 28, 24, 16]]


def test_k1_is_clamped_and_blind_outside_the_mask():
  got = advantages.kl_k1(
    jnp.array([[-1.0, -30.0, jnp.nan]]),
    jnp.array([[-1.5, -2.0, 0.0]]),
    jnp.array([[1.0, 1.0, 0.0]]),
    10.0,
  )
  np.testing.assert_allclose(got, [[0.5, -10, 0]])

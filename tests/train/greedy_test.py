"""The learner predicts what a server must say, and what rounding costs itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.testing import tiny
from paravt_jax.train import greedy
from paravt_jax.train.step import ModelOptions

BANNED = (3, 7)
OPTIONS = ModelOptions('float32', False, 'chunked', 64, 0.7, BANNED)
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)


def context(config) -> np.ndarray:
  words = np.random.default_rng(1).integers(100, 600, 9).astype(np.int32)
  return np.concatenate([words[:4], [config.image_id] * 2, words[4:]]).astype(np.int32)


@pytest.fixture(scope='module')
def config():
  return tiny.tiny_config(tiny.make_tokenizer())


@pytest.fixture(scope='module')
def params(config):
  return model.init(config, jax.random.key(0))


def say(config, params, tokens=5, rows=1, published='float32', mesh=None, **options):
  mesh = mesh or sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  return greedy.make_canary(
    config,
    mesh,
    dataclasses.replace(OPTIONS, **options),
    greedy.Prompt(context(config), IMAGE),
    tokens=tokens,
    continuations=rows,
    published=published,
  )(params)


def logprobs(config, params, ids) -> np.ndarray:
  """float64[V] after some ids, banned ones -inf."""
  scores = np.array(model.logits(config, params, ids, (IMAGE,))[-1], np.float64)
  scores[list(BANNED)] = -np.inf
  scores -= scores.max()
  return scores - np.log(np.exp(scores).sum())


def test_each_token_is_the_best_one_that_is_not_banned_and_carries_its_log_prob_and_margin(
  config, params
):
  found = say(config, params)
  ids = context(config)
  for token, logprob, margin in zip(*(values[0] for values in found[:3])):
    best_V = logprobs(config, params, ids)
    second, first = np.sort(best_V)[-2:]
    assert token == best_V.argmax()
    np.testing.assert_allclose((logprob, margin), (first, first - second), atol=1e-5)
    ids = np.append(ids, token)
  assert found.rounding == found.sampled_rounding == 0  # float32 is float32 on a CPU


def test_further_continuations_begin_with_ids_that_are_sampled_and_go_on_with_the_best(
  config, params
):
  found = say(config, params, tokens=2, rows=3)
  assert found.ids_RT.shape == (3, greedy.SAMPLED + 2)
  greedy_T = say(config, params, tokens=greedy.SAMPLED + 2).ids_RT[0]
  assert found.ids_RT[0].tolist() == greedy_T.tolist()
  starts = {tuple(row[: greedy.SAMPLED]) for row in found.ids_RT.tolist()}
  assert len(starts) == 3
  for row in (1, 2):
    for place in range(greedy.SAMPLED + 2):
      ids = np.concatenate([context(config), found.ids_RT[row, :place]])
      best_V = logprobs(config, params, ids)
      token = found.ids_RT[row, place]
      assert token not in BANNED and (place < greedy.SAMPLED or token == best_V.argmax())
      assert found.logprobs_RT[row, place] == pytest.approx(best_V[token], abs=1e-5)


@pytest.mark.slow
def test_rounding_is_the_mean_gap_between_its_own_dtype_and_float32(config, params):
  found = say(config, params, tokens=3, rows=2, published='bfloat16', dtype='bfloat16')
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
  predicted, expected = [], []
  for row in range(2):
    ids = np.concatenate([context(config), found.ids_RT[row]])
    inputs = model.single_inputs(config, ids, (IMAGE,))
    rough_TV, fine_TV = (
      both_dtypes(config, rounded, inputs, name) for name in ('bfloat16', 'float32')
    )
    begin = greedy.SAMPLED if row else 0
    places = np.arange(begin, greedy.SAMPLED + 3)
    gap_TV = np.abs(rough_TV - fine_TV)
    predicted += gap_TV[places, found.ids_RT[row, begin:]].tolist()
    np.testing.assert_allclose(
      found.logprobs_RT[row, begin:], fine_TV[places, found.ids_RT[row, begin:]], atol=1e-5
    )
    # at the run's temperature of .7, weighted by how likely each id is
    warm = [x / 0.7 - np.log(np.exp(x / 0.7).sum(-1, keepdims=True)) for x in (rough_TV, fine_TV)]
    warm_gap_TV = np.nan_to_num(np.abs(warm[0] - warm[1]), nan=0.0)
    expected += (np.exp(warm[1]) * warm_gap_TV).sum(-1).tolist()
  # two programs in bfloat16 agree about the size of their rounding only
  assert 1e-3 < found.rounding < 0.1
  assert found.rounding == pytest.approx(np.mean(predicted), rel=0.4)
  assert found.sampled_rounding == pytest.approx(np.mean(expected), rel=0.4)


def test_rounding_counts_predicted_ids_and_weighs_sampled_ones_by_their_probability():
  # two rows of SAMPLED + 1 places, two ids and a banned one
  shape = (2, greedy.SAMPLED + 1)
  fine_V, rough_V = np.log([0.75, 0.25]), np.log([0.5, 0.5])
  fine_RTV, rough_RTV = (
    np.broadcast_to(np.append(x_V, -np.inf), (*shape, 3)).copy() for x_V in (fine_V, rough_V)
  )
  # the sampled places of row 1 count for sampled ids alone
  ids_RT = np.zeros(shape, np.int32)
  ids_RT[1, : greedy.SAMPLED] = 1
  predicted, sampled = greedy._rounding_costs(
    jnp.asarray(fine_RTV), jnp.asarray(rough_RTV), jnp.asarray(ids_RT), 1.0
  )
  # log(.75 / .5), and .75 log(.75 / .5) + .25 log(.5 / .25)
  assert predicted == pytest.approx(0.405465, abs=1e-5)
  assert sampled == pytest.approx(0.477386, abs=1e-5)
  # at temperature .5 the odds of 3 become 9: .9 log(.9 / .5) + .1 log(.5 / .1)
  warm = greedy._rounding_costs(
    jnp.asarray(fine_RTV), jnp.asarray(rough_RTV), jnp.asarray(ids_RT), 0.5
  )
  assert warm[1] == pytest.approx(0.689952, abs=1e-5) and warm[0] == predicted


@functools.partial(jax.jit, static_argnums=(0, 3))
def _rows(config, params, inputs, dtype):
  x_BTD = model.hidden(
    config, params, inputs, dtype=jnp.dtype(dtype), remat='none', freeze_vision=True
  )
  kernel_DV = model.head(params, config).astype(dtype)
  return jnp.einsum('TD,DV->TV', x_BTD[0], kernel_DV, preferred_element_type=jnp.float32)


def both_dtypes(config, params, inputs, dtype) -> np.ndarray:
  """float64[T, V]: log-probs of the answer's ids at temperature 1."""
  scores_TV = np.array(_rows(config, params, inputs, dtype), np.float64)
  scores_TV = scores_TV[len(context(config)) - 1 : -1]
  scores_TV[:, list(BANNED)] = -np.inf
  scores_TV -= scores_TV.max(-1, keepdims=True)
  return scores_TV - np.log(np.exp(scores_TV).sum(-1, keepdims=True))


def test_a_mesh_of_eight_predicts_what_one_device_does(config, params):
  one, eight = (
    say(
      config,
      params,
      tokens=2,
      rows=2,
      mesh=sharding.make_mesh(1, n, t, jax.devices()[: n * t]),
    )
    for n, t in ((1, 1), (4, 2))
  )
  assert one.ids_RT.tolist() == eight.ids_RT.tolist()
  np.testing.assert_allclose(one.logprobs_RT, eight.logprobs_RT, atol=1e-5)

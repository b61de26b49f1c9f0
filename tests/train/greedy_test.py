"""The learner predicts what a server must say."""

import jax
import numpy as np

from paravt_jax.models.qwen3_vl import model
from paravt_jax.testing import tiny
from paravt_jax.train import greedy, sharding
from paravt_jax.train.step import ModelOptions

OPTIONS = ModelOptions('float32', False, 'chunked', 64, 0.7, (3, 7))
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)


def context(config) -> np.ndarray:
  words = np.random.default_rng(1).integers(100, 600, 9).astype(np.int32)
  return np.concatenate([words[:4], [config.image_id] * 2, words[4:]]).astype(np.int32)


def test_each_token_is_the_best_one_that_is_not_banned_and_carries_its_log_prob_and_margin():
  config = tiny.tiny_config(tiny.make_tokenizer())
  params = model.init(config, jax.random.key(0))
  found = greedy.make_greedy(
    config, sharding.make_mesh(1, 1, 1, jax.devices()[:1]), OPTIONS, context(config), IMAGE, 5
  )(params)
  ids = context(config)
  for token, logprob, margin in zip(*found):
    scores = np.array(model.logits(config, params, ids, (IMAGE,))[-1], np.float64)
    scores[[3, 7]] = -np.inf
    logprobs = np.sort(scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max())
    assert token == scores.argmax()
    np.testing.assert_allclose(
      (logprob, margin), (logprobs[-1], logprobs[-1] - logprobs[-2]), atol=1e-5
    )
    ids = np.append(ids, token)


def test_a_mesh_of_eight_predicts_what_one_device_does():
  config = tiny.tiny_config(tiny.make_tokenizer())
  params = model.init(config, jax.random.key(0))
  one, eight = (
    greedy.make_greedy(
      config,
      sharding.make_mesh(1, n, t, jax.devices()[: n * t]),
      OPTIONS,
      context(config),
      IMAGE,
      4,
    )(params)
    for n, t in ((1, 1), (4, 2))
  )
  assert one[0].tolist() == eight[0].tolist()
  np.testing.assert_allclose(one[1], eight[1], atol=1e-5)

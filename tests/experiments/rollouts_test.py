"""The rollout side of an entry point: which server, which agents, which reward."""

import asyncio

import pytest

from configs import para_grpo
from experiments import rollouts
from paravt_jax.errors import ConfigError
from paravt_jax.testing.scripted import ScriptedServer
from paravt_jax.types import StopReason
from tests.rewards import made
from tests.rollout.crew import LONG, TOK, play


def opened(config, use, tmp_path):
  async def run():
    async with rollouts.opened(config, tmp_path, TOK, TOK.vocab_size, tmp_path, None) as server:
      return await use(server)
  return asyncio.run(run())


@pytest.mark.parametrize(('kind', 'message'), [
  ('url', r'--config.server.urls is empty: start a rollout server and name it'),
  ('cloud', r"--config.server.kind='cloud': wanted one of url, embedded, sglang"),
])
def test_a_server_that_cannot_be_is_refused(kind, message, tmp_path):
  config = para_grpo.get_config('8b')
  config.server.kind = kind
  with pytest.raises(ConfigError, match=message):
    opened(config, None, tmp_path)


def test_servers_by_url_are_used_and_agents_differ_in_temperature_alone(tmp_path):
  config = para_grpo.get_config('8b')

  async def use(server):
    server.check()
    sampling, greedy = (agent._sampler.options for agent in (server.sampling, server.greedy))
    return sampling, greedy

  with ScriptedServer(play(LONG + '<answer>red</answer>')) as served:
    config.server.urls = (served.url + '/',)
    sampling, greedy = opened(config, use, tmp_path)
  assert (sampling.temperature, greedy.temperature, sampling.context, sampling.max_pixels) == (0.7, 0.0, 32768, 50176)
  assert (greedy.top_p, greedy.top_k, greedy.context) == (1.0, -1, 32768)


def score(config, episode, evaluation=False):
  async def run():
    if evaluation:
      return await rollouts.evaluation_reward(config)(episode)
    async with rollouts.rewards(config) as reward:
      return await reward(episode)
  return asyncio.run(run())


OPEN = made.MCQ.__class__('t', 'v.mp4', 'q?', 'oe', 'blue red car')
WINDOW = made.MCQ.__class__('t', 'v.mp4', 'q?', 'tvg', '2,4')


def test_the_reward_is_the_recipes_and_an_evaluation_scores_exactly_and_by_the_iou_threshold():
  config = para_grpo.get_config('8b')
  near = made.episode(made.LONG + '</think><answer>red car</answer>', task=OPEN)
  window = made.episode(made.LONG + '</think><answer>[1, 4]</answer>', task=WINDOW)      # IoU 2/3
  assert score(config, near)[1]['accuracy'] == pytest.approx(0.8)
  assert score(config, near, evaluation=True)[1]['accuracy'] == 0.0
  assert score(config, window)[1]['accuracy'] == pytest.approx(2 / 3)
  assert score(config, window, evaluation=True)[1]['accuracy'] == 1.0
  config.eval.grounding_threshold = 0.7
  assert score(config, window, evaluation=True)[1]['accuracy'] == 0.0
  config.reward.format_weight = 0.0
  assert score(config, near)[0] == pytest.approx(0.8)
  assert near.stop is StopReason.ANSWER


def test_a_judge_needs_an_address():
  config = para_grpo.get_config('8b')
  config.reward.open_ended = 'judge'
  with pytest.raises(ConfigError, match=r"--config.judge.url is empty, but reward.open_ended is 'judge'"):
    score(config, None)

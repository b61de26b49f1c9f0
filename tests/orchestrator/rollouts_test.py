"""The rollout side of an entry point: which server, which agents, which reward."""

import asyncio
import socket

import numpy as np
import pytest

from configs import para_grpo
from experiments import launch
from paravt_jax.errors import ConfigError, RolloutError, SyncError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import rollouts, run_folder
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.rollout import groups
from paravt_jax.serving import canary, publish
from paravt_jax.testing.scripted import Refuse, Reply, ScriptedServer, turns
from paravt_jax.types import StopReason
from tests import recipes
from tests.longvideo_reason.chat_server import ChatServer
from tests.rewards import made
from tests.rollout.gateways import ScriptedGateway
from tests.rollout.stack import LONG, TOK, play

CANARY = canary.Canary(
  (TOK.image_pad, 65),
  canary.canary_image(4),
  (),
  (canary.Continuation((), (66, 67), (-0.5, -0.5), (1.0, 1.0)),),
  0.0,
  0.0,
)
RIGHT = Reply(ids=(66, 67), finish='length')  # -0.5 nats each


def opened(config, use, tmp_path, base=None):
  setup = AgentSetup.of(recipes.typed(config))

  async def run():
    async with rollouts.open_rollouts(
      setup, launch.host(), tmp_path, TOK, TOK.vocab_size, tmp_path, base
    ) as server:
      return await use(server)

  return asyncio.run(run())


@pytest.mark.parametrize(
  ('kind', 'message'),
  [
    ('url', r'--config.server.urls is empty: start a rollout server and name it'),
    ('cloud', r"--config.server.kind='cloud': wanted one of url, embedded, sglang"),
  ],
)
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
  assert (sampling.temperature, greedy.temperature, sampling.context, sampling.max_pixels) == (
    0.7,
    0.0,
    32768,
    50176,
  )
  assert (greedy.top_p, greedy.top_k, greedy.context) == (1.0, -1, 32768)


def by_url(*urls, **client):
  """The tiny recipe over these servers, with little patience."""
  config = para_grpo.get_config()
  config.server.update({'kind': 'url', 'urls': urls})
  config.client.update({'ready_timeout_s': 2.0, 'retries': 0, 'backoff_s': 0.01, **client})
  return config


def refusal(config, tmp_path, error=RolloutError, base=None):
  """The one line that stands in for the first rollout."""

  async def use(server):
    raise AssertionError('it opened')

  with pytest.raises(error) as caught:
    opened(config, use, tmp_path, base)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_a_server_that_is_not_there_is_one_line(tmp_path):
  with socket.socket() as silent:  # bound and not listening: nobody else can be there
    silent.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{silent.getsockname()[1]}'
    said = refusal(by_url(url, ready_timeout_s=0.2), tmp_path)
  assert said.startswith(f'{url}: not ready after 0.2 s') and 'raise client.ready_timeout_s' in said


def test_requests_go_through_a_router_to_the_workers_that_it_names(tmp_path):
  """The first ten are its check; a tiny server answers them greedily and obeys logit_bias."""

  def answer(request):
    return Reply(ids=(67,) if '66' in request.sampling['logit_bias'] else (66,), finish='length')

  async def use(server):
    return [member.url for member in server.fleet.members]

  with ScriptedServer(answer) as one, ScriptedServer(answer) as other:
    with ScriptedGateway([one.url, other.url]) as gateway:
      config = by_url()
      config.server.router = gateway.url + '/'
      assert opened(config, use, tmp_path) == [one.url, other.url]
    asked = sorted([len(one.requests), len(other.requests)])
  assert asked[0] == 0 and asked[1] > 1


def test_a_router_of_other_workers_than_server_urls_is_one_line(tmp_path):
  with ScriptedServer(turns(RIGHT)) as served, ScriptedGateway(['http://b:1']) as gateway:
    config = by_url(served.url)
    config.server.router = gateway.url
    said = refusal(config, tmp_path, ConfigError)
  assert said.startswith('--config.server.urls: got') and "['http://b:1'], too" in said


def test_one_of_two_servers_by_url_that_is_not_there_is_one_line_too(tmp_path):
  with ScriptedServer(turns(RIGHT)) as there:
    assert refusal(
      by_url(there.url, 'http://127.0.0.1:1', ready_timeout_s=0.2), tmp_path
    ).startswith('http://127.0.0.1:1: not ready')


def test_a_server_that_is_named_twice_is_one_line(tmp_path):
  with ScriptedServer(turns(RIGHT)) as served:
    assert 'wanted one or more URLs, each once; set server.urls' in refusal(
      by_url(served.url, f'{served.url}/'), tmp_path
    )


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    (
      {'facts': {'version': '0.5.12'}},
      "speaks version '0.5.12' of the protocol; wanted the embedded server of paravt_jax, or "
      'SGLang',
    ),
    ({'facts': {'version': 7}}, "speaks version '7' of the protocol"),
    ({'api_key': 'theirs'}, 'refuses our key (status 401); set server.api_key'),
  ],
)
def test_a_server_of_another_version_or_another_key_is_one_line(given, words, tmp_path):
  with ScriptedServer(turns(RIGHT), **given) as served:
    config = by_url(served.url, ready_timeout_s=60.0)  # is not waited for
    config.server.api_key = 'ours'
    said = refusal(config, tmp_path, base=CANARY)
    assert served.url in said and words in said and served.requests == []


@pytest.mark.parametrize(
  ('reply', 'words'),
  [
    (
      Reply(ids=(66, 67), finish='length', logprobs=(-0.5, -0.6)),
      'token 1: log-prob -0.6, the learner says -0.5',
    ),
    (Reply(ids=(70, 71), finish='length'), 'id 70, the learner says 66 by a margin of'),
    (
      Reply(ids=(66, 67), finish='length', image_tokens=4),
      'the server counts 4 image tokens, we 1',
    ),
    (Refuse(400, 'prompt has id 700, the vocabulary 512'), "the server says: 'prompt has id 700"),
  ],
)
def test_a_server_of_another_model_is_one_line(reply, words, tmp_path):
  with ScriptedServer(turns(reply)) as served:
    said = refusal(by_url(served.url), tmp_path, base=CANARY)
  assert (
    words in said
    and f'does {served.url} serve another model? start it with the model folder of this run' in said
  )


def test_a_server_of_the_right_model_passes(tmp_path):
  async def use(server):
    server.check()

  with ScriptedServer(turns(RIGHT)) as served:
    opened(by_url(served.url), use, tmp_path, CANARY)
    assert [request.rid.startswith('canary-0-') for request in served.requests] == [True]


def test_servers_of_two_kinds_are_refused(tmp_path):
  with (
    ScriptedServer(turns(RIGHT)) as ours,
    ScriptedServer(turns(RIGHT), facts={'version': '0.5.21'}) as theirs,
  ):
    said = refusal(by_url(ours.url, theirs.url), tmp_path, ConfigError)
  assert (
    said.startswith(f'--config.server.urls: {ours.url} is an embedded server, others are SGLang')
    and 'all of one kind' in said
  )


def published(folder, version, canary=CANARY):
  """A version that is being written."""
  publisher = publish.Publisher(folder, keep=2)
  return publisher.start(
    version, {'a': np.ones(4, np.float32)}, frozen=None, canary=canary.to_json()
  )


def test_a_server_that_holds_newer_weights_is_believed_nothing_until_it_has_ours(tmp_path):
  """As after a crash: the last record on disk is of version 2, the server got 3 before, and was
  left paused.
  """

  async def use(server):
    before = len(served.requests)
    await server.deliver(published(tmp_path / 'weights', 2), 2)
    return before, server.metrics()

  with ScriptedServer(turns(RIGHT)) as served:
    served._weights, served.paused = ('/weights/3', '3'), True
    before, metrics = opened(by_url(served.url), use, tmp_path, CANARY)
    assert (
      before == 0
      and [request.rid[:9] for request in served.requests] == ['canary-2-']
      and not served.paused
    )
    (told,) = [body for path, body in served.commands if path == '/update_weights_from_disk']
  assert (told['model_path'], told['weight_version']) == (
    str((tmp_path / 'weights' / '2').absolute()),
    '2',
  )
  assert {
    name: metrics[name]
    for name in ('server/lost', 'server/restarts', 'server/drained', 'server/back')
  } == {'server/lost': 0.0, 'server/restarts': 0.0, 'server/drained': 0.0, 'server/back': 0.0}
  for name in (
    'sync/seconds/stage=write',
    'sync/seconds/stage=convert',
    'sync/seconds/stage=load',
    *metrics,
  ):
    names.lookup(name)
    assert metrics[name] >= 0


def test_weights_that_cannot_be_written_or_that_no_server_takes_are_one_line(tmp_path):
  (tmp_path / 'barred').touch()  # a file where the folder should be

  async def use(server):
    with pytest.raises(SyncError, match=r'barred.*weights cannot be written') as barred:
      await server.deliver(published(tmp_path / 'barred', 1), 1)
    with pytest.raises(
      SyncError, match=r'weights 1: no server took them: .*refused weights 1'
    ) as refused:
      await server.deliver(published(tmp_path / 'weights', 1), 1)
    return str(barred.value), str(refused.value)

  with ScriptedServer(turns(RIGHT), weights_ok=False) as served:
    assert not any('\n' in said for said in opened(by_url(served.url), use, tmp_path))
    assert [path for path, _ in served.commands if path == '/update_weights_from_disk'] == [
      '/update_weights_from_disk'
    ]


def score(config, episode, evaluation=False):
  recipe = recipes.typed(config)

  async def run():
    if evaluation:
      return await groups.rewarder(rollouts.evaluation_options(recipe), None)(episode)
    async with rollouts.rewards(recipe) as reward:
      return await reward(episode)

  return asyncio.run(run())


OPEN = made.MCQ.__class__('t', 'v.mp4', 'q?', 'oe', 'blue red car')
WINDOW = made.MCQ.__class__('t', 'v.mp4', 'q?', 'tvg', '2,4')


def test_the_reward_is_the_recipes_and_an_evaluation_scores_exactly_and_by_the_iou_threshold():
  config = para_grpo.get_config('8b')
  near = made.episode(made.LONG + '</think><answer>red car</answer>', task=OPEN)
  window = made.episode(made.LONG + '</think><answer>[1, 4]</answer>', task=WINDOW)  # IoU 2/3
  assert score(config, near)[1]['accuracy'] == pytest.approx(0.8)
  assert score(config, near, evaluation=True)[1]['accuracy'] == 0.0
  assert score(config, window)[1]['accuracy'] == pytest.approx(2 / 3)
  assert score(config, window, evaluation=True)[1]['accuracy'] == 1.0
  config.eval.grounding_threshold = 0.7
  assert score(config, window, evaluation=True)[1]['accuracy'] == 0.0
  config.reward.format_weight = 0.0
  assert score(config, near)[0] == pytest.approx(0.8)
  assert near.stop is StopReason.ANSWER


def test_a_judge_is_asked_before_anything_is_made():
  config = para_grpo.get_config()
  rollouts.check_judge(recipes.typed(config))  # there is none to be asked
  config.reward.open_ended = 'judge'
  with ChatServer(lambda body, number: 'VERDICT: right') as server:
    config.judge.update(
      {'url': server.url, 'model': 'seer', 'api_key': 'key', 'more': '{"seed": null}'}
    )
    rollouts.check_judge(recipes.typed(config))
    assert len(server.bodies) == 1 and 'seed' not in server.bodies[0]
  config.judge.update({'retries': 0})
  with pytest.raises(RolloutError, match=r'--config.judge.url=.*cannot be used: connection'):
    rollouts.check_judge(recipes.typed(config))
  config.judge.more = '{'
  with pytest.raises(ConfigError, match=r'judge.more=.* is no JSON'):
    rollouts.check_judge(recipes.typed(config))
  assert run_folder.to_json(recipes.typed(config))['judge']['api_key'] == '(set)'


def test_a_judge_needs_an_address():
  config = para_grpo.get_config('8b')
  config.reward.open_ended = 'judge'
  with pytest.raises(
    ConfigError, match=r"--config.judge.url is empty, but reward.open_ended is 'judge'"
  ):
    score(config, None)

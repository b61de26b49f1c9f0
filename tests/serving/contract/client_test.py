"""Our client and control against the embedded server and against real SGLang."""

import asyncio
import itertools

import jax
import numpy as np
import pytest

from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.models.qwen3_vl import model
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.serving.protocol import GenerateReply
from tests import patience
from tests.serving.contract.drive import (
  KEY,
  LONG,
  banned,
  frame,
  long_requests,
  request,
)


def through_client(served, scenario, key=KEY, image_folder=''):
  """What `await scenario(client, control, url)` gives."""
  options = ClientOptions(
    api_key=key,
    connections=16,
    timeout_s=patience.seconds(60.0),
    ready_timeout_s=patience.seconds(30.0),
    retries=2,
    backoff_s=0.05,
    image_cache=16,
    image_folder=image_folder,
  )

  async def run():
    url = served.process.url
    async with (
      Client(
        options, served.config.text.vocab, Router((url,)), image_id=served.config.image_id
      ) as client,
      Control(options) as control,
    ):
      return await scenario(client, control, url)

  return asyncio.run(run())


def test_the_client_gets_every_token_of_what_a_server_aborts(served):
  """A pause with mode abort is the harshest: partial replies, sent again from their tokens when
  generation goes on.
  """

  async def scenario(client, control, url):
    await control.wait_ready(url)
    for _ in range(20):
      sent = long_requests(served, 3)
      tasks = [asyncio.create_task(client.generate(one)) for one in sent]
      while not (
        await asyncio.to_thread(served.running) or all(task.done() for task in tasks)
      ):  # each look has its limit
        await asyncio.sleep(0.005)
      await control.pause(url, 'abort')
      await control.resume(url)
      results = await asyncio.gather(*tasks)
      if client.counts['interrupted']:
        return sent, results
    raise AssertionError(
      '20 times three requests of 200 tokens were done before a pause could arrive'
    )

  for one, sampled in zip(*through_client(served, scenario)):
    assert (len(sampled.ids), sampled.finish) == (LONG, 'length') and not sampled.versions.any()
    reply = GenerateReply(sampled.ids.tolist(), sampled.logprobs.tolist(), 'length', 0, 0, 0, [])
    assert served.gap(one, reply) < 1e-4


@pytest.mark.parametrize('mode', ['retract', 'abort'])
def test_what_is_heard_of_a_stream_grows_through_an_update_of_the_weights(served, mode):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(9)))
  folder = served.staged(other, 7)

  async def scenario(client, control, url):
    for _ in range(20):
      sent, heard = long_requests(served, 1)[0], []
      task = asyncio.create_task(client.generate(sent, on_tokens=heard.append))
      await patience.seen(lambda heard=heard: heard, 'the first tokens of a stream', step=0.001)
      await control.pause(url, mode)
      before = len(heard)
      await asyncio.to_thread(
        served.told, '/update_weights_from_disk', {'model_path': str(folder), 'weight_version': '7'}
      )
      await control.resume(url)
      got = await task
      if 0 < (got.versions == 0).sum() < LONG:
        return sent, got, heard, before
      await asyncio.to_thread(served.update, None, 0)
    raise AssertionError('20 times a request of 200 tokens was done before a pause could arrive')

  sent, got, heard, before = through_client(served, scenario)
  assert (
    len(got.ids) == LONG
    and got.versions.tolist() == sorted(got.versions.tolist())
    and 0 < before < len(heard)
  )
  assert heard[-1] == got.ids.tolist()
  assert all(longer[: len(ids)] == ids for ids, longer in itertools.pairwise(heard))
  reply = GenerateReply(got.ids.tolist(), got.logprobs.tolist(), 'length', 0, 0, 0, [])
  old, new = (served.expected(sent, reply, params) for params in (served.params, other))
  assert np.abs(got.logprobs - np.where(got.versions == 0, old, new)).mean() < 1e-4


def test_the_client_refuses_images_and_placeholders_that_disagree_before_a_server_sees_them(served):
  async def scenario(client, control, url):
    for ids, images in (([5, served.config.image_id], ()), ([5], (frame(1),))):
      with pytest.raises(RolloutError, match='placeholder'):
        await client.generate(request(ids, images))
    return client.counts['requests']

  assert through_client(served, scenario) == 0


def test_control_swaps_weights_under_running_requests_and_says_what_it_is_refused(served):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(9)))
  folder = served.staged(other, 2)

  async def scenario(client, control, url):
    await control.inspect(url)
    task = asyncio.create_task(client.generate(long_requests(served, 1)[0]))
    await control.swap_weights(url, str(folder), 2)
    assert await control.version(url) == 2 and len((await task).ids) == LONG
    with pytest.raises(SyncError, match='refused weights 3'):
      await control.swap_weights(url, '/not/a/folder', 3)
    assert (
      len((await client.generate(request(served.words(4, 4)))).ids) == 12
    )  # and it is not left paused
    return await control.version(url)

  assert through_client(served, scenario) == 2


def test_control_names_a_key_that_is_refused(served):
  async def scenario(client, control, url):
    with pytest.raises(RolloutError, match='refuses our key') as error:
      await control.inspect(url)
    return str(error.value)

  assert '\n' not in through_client(served, scenario, key='another')


@pytest.mark.parametrize('by_file', [False, True])
def test_frames_repeated_over_requests_reach_the_server_as_they_are(served, tmp_path, by_file):
  """The embedded server gets each once and then its name. SGLang gets them in every request, or
  reads each from one file.
  """
  frames = tuple(frame(300 + 10 * by_file + i, 32, 64) for i in range(2))

  async def scenario(client, control, url):
    two = served.with_image(4, 2, 30) + served.with_image(1, 2, 31)
    asked = [(served.with_image(5, 3, 20 + i), frames[:1], i) for i in range(3)]
    asked += [(two, frames, 9), (served.with_image(4, 2, 32), (frames[1].copy(),), 9)]
    sent = [
      request(ids, images, seed=seed, banned_ids=banned(served)) for ids, images, seed in asked
    ]
    got = [await asyncio.gather(*(client.generate(one) for one in sent)) for _ in range(2)]
    return sent, got, dict(client.counts)

  folder = str(tmp_path) if by_file else ''
  sent, waves, counts = through_client(served, scenario, image_folder=folder)
  for one, sampled in zip(sent * 2, [*waves[0], *waves[1]]):
    reply = GenerateReply(sampled.ids.tolist(), sampled.logprobs.tolist(), 'length', 0, 0, 0, [])
    assert served.gap(one, reply) < 1e-4
  assert counts['images'] == 12
  assert counts['images_sent'] == (2 if served.kind == 'embedded' or by_file else 12)

"""Two real SGLang servers behind the real router: a group's prefix is computed once, weights reach
both, and a killed one leaves its requests to the other.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal

import pytest

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.fleet import Fleet, Member
from paravt_jax.rollout.gateway import Gateway
from paravt_jax.rollout.router import Router
from paravt_jax.serving import sglang
from tests import patience
from tests.rollout import gateways
from tests.rollout.fleet_embedded_test import CLIENT, FLEET, Learner
from tests.serving.contract.drive import sglang_options

pytestmark = pytest.mark.sglang
GROUPS, ROLLOUTS = 4, 8
NEW_TOKENS = 32
SHARED = 64  # ids of a group's prompt, beside its image


def launched(learner, number):
  return sglang.launch(
    sglang_options(learner.folder, api_key='key', context_length=512),
    env=dict(os.environ),
    log=learner.root / f'server{number}.log',
    deadline_s=patience.seconds(900),
    parent_pid=os.getpid(),
  )


def short(learner, group, rollout):
  """A request of a group: an image, ids that its rollouts share, and one that they do not."""
  made = learner.request(100 * group + rollout)
  shared = [200 + (7 * group + n) % 150 for n in range(SHARED)]
  ids = learner.prompt + shared + [400 + rollout]
  return dataclasses.replace(made, input_ids=ids, max_new_tokens=4)


async def prefixes(learner, client):
  """Cached tokens of the rollouts of each group that follow its first."""
  firsts = [client.generate(short(learner, group, 0), affinity=group) for group in range(GROUPS)]
  await asyncio.gather(*firsts)
  before = client.counts['cached_tokens']
  rest = [(group, rollout) for group in range(GROUPS) for rollout in range(1, ROLLOUTS)]
  await asyncio.gather(*(client.generate(short(learner, *one), affinity=one[0]) for one in rest))
  return client.counts['cached_tokens'] - before


async def drive(learner, processes, url):
  """Returns what was seen: cached tokens, replies, the weights of both servers, who is left."""
  urls = [process.url for process in processes]
  router = Router(urls)

  def stage(published):
    folder = learner.root / f'staged{published.name}'
    weights.save_hf(folder, learner.config, learner.params[int(published.name)], learner.folder)
    return folder

  async with (
    Gateway(CLIENT, url) as gateway,
    Client(
      CLIENT, learner.config.text.vocab, router, image_id=learner.config.image_id, gateway=url
    ) as client,
    Control(CLIENT) as control,
    contextlib.AsyncExitStack() as stack,
  ):
    assert sorted(await gateway.members(())) == sorted(urls)
    members = [Member(one, None, None) for one in urls]
    options = dataclasses.replace(FLEET, misses=40)
    fleet = Fleet(members, control, router, stage, options, gateway)
    stack.push_async_callback(fleet.close)
    await fleet.open()
    await gateway.check(learner.prompt[:2])
    cached = await prefixes(learner, client)

    def ask(first):
      requests = [
        dataclasses.replace(learner.request(n), max_new_tokens=NEW_TOKENS)
        for n in range(first, first + 8)
      ]
      return [
        asyncio.create_task(client.generate(one, affinity=n)) for n, one in enumerate(requests)
      ]

    early = ask(0)
    await fleet.deliver(learner.published[1], 1, learner.canary(1))
    await asyncio.gather(*early)
    held = [await control.version(one) for one in urls]
    for one in urls:
      await control.pause(one)  # so that no request ends before the kill
    later = ask(8)
    await asyncio.sleep(0.5)
    os.kill(processes[1].pid, signal.SIGKILL)
    await control.resume(urls[0])
    replies = await asyncio.gather(*later)
    return cached, replies, held, gateways.listed(url, 'key'), client.counts['moved']


def test_two_servers_behind_the_router(tmp_path):
  learner = Learner(tmp_path)

  async def start():
    return await asyncio.gather(*(asyncio.to_thread(launched, learner, n) for n in range(2)))

  processes = asyncio.run(start())
  try:
    urls = [process.url for process in processes]
    with gateways.real(urls, tmp_path / 'router.log', key='key') as url:
      cached, replies, held, left, moved = asyncio.run(drive(learner, processes, url))
  finally:
    for process in processes:
      process.stop(5.0)
  assert cached >= GROUPS * (ROLLOUTS - 1) * SHARED
  assert [len(got.ids) for got in replies] == [NEW_TOKENS] * 8
  assert max(learner.gap(8 + n, got) for n, got in enumerate(replies)) <= 1e-4
  assert held == [1, 1] and left == {urls[0]} and moved

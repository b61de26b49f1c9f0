"""The fleet over one real SGLang: paused it still answers pings; killed, it comes back with the
current weights.
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
from paravt_jax.rollout.router import Router
from paravt_jax.serving import sglang
from tests import patience
from tests.rollout.fleet_embedded_test import CLIENT, FLEET, Learner, check_exact
from tests.serving.contract.drive import sglang_options

pytestmark = pytest.mark.sglang


def test_a_killed_sglang_comes_back_with_the_current_weights_and_every_request_is_exact(tmp_path):
  learner = Learner(tmp_path)
  options = sglang_options(learner.folder, api_key='key', context_length=512)

  def start():
    return sglang.launch(
      options,
      env=dict(os.environ),
      log=tmp_path / 'server.log',
      deadline_s=patience.seconds(900),
      parent_pid=os.getpid(),
    )

  def stage(published):
    folder = tmp_path / f'staged{published.name}'
    weights.save_hf(folder, learner.config, learner.params[int(published.name)], learner.folder)
    return folder

  async def run():
    process = await asyncio.to_thread(start)
    router = Router((process.url,))
    async with (
      Client(CLIENT, learner.config.text.vocab, router, image_id=learner.config.image_id) as client,
      Control(CLIENT) as control,
      contextlib.AsyncExitStack() as stack,
    ):
      fleet = Fleet(
        (Member(process.url, process, start),),
        control,
        router,
        stage,
        dataclasses.replace(FLEET, misses=40),
      )
      stack.push_async_callback(fleet.close)
      await fleet.open()
      tasks = [
        asyncio.create_task(client.generate(learner.request(number), affinity=number))
        for number in range(8)
      ]
      await fleet.deliver(learner.published[1], 1, learner.canary(1))
      await asyncio.gather(*tasks)
      tasks = [
        asyncio.create_task(client.generate(learner.request(number), affinity=number))
        for number in range(8)
      ]
      await patience.seen(lambda: router.load(process.url) >= 8, 'eight requests under way')
      await control.pause(process.url)
      assert await control.ready(process.url, 5.0)
      os.kill(process.pid, signal.SIGKILL)
      return (
        await asyncio.gather(*tasks),
        await control.version(fleet.members[0].url),
        fleet.counts['restarts'],
      )

  replies, version, restarts = asyncio.run(run())
  check_exact(learner, replies)
  assert version == 1 and restarts == 1

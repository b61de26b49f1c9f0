"""The fleet over two real embedded servers in processes of their own: killed, stopped, too large;
every token stays exact.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys

import jax
import numpy as np
import pytest

from paravt_jax.models.qwen3_vl import model
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.fleet import Fleet, FleetOptions, Member
from paravt_jax.rollout.router import Router
from paravt_jax.serving import canary, publish
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.process import ServerProcess
from paravt_jax.serving.protocol import GenerateRequest
from paravt_jax.testing import tiny
from tests import patience, xla
from tests.rollout.wire import OPTIONS

pytestmark = pytest.mark.slow

CLIENT = dataclasses.replace(
  OPTIONS, api_key='key', timeout_s=patience.seconds(300), ready_timeout_s=patience.seconds(300)
)
FLEET = FleetOptions(
  every_s=0.5, misses=12, restarts=2, memory_mb=0, drain_s=0.0, tolerance=1e-4, rounding_ratio=1.0
)
NEW_TOKENS = 300
IMAGE = canary.canary_image(4)


class Learner:
  """A model folder, two versions of its weights (0 in the folder, 1 published), and what the
  learner says about them.
  """

  def __init__(self, root):
    self.root, self.folder = root, root / 'model'
    self.config = tiny.build_model_folder(self.folder, 0)
    self.params = {version: model.init(self.config, jax.random.key(version)) for version in (1, 2)}
    self.published = {
      version: publish.save(root / 'weights', version, params, keep=2)
      for version, params in self.params.items()
    }
    c = self.config
    self.prompt = [300, 301, c.vision_start_id, c.image_id, c.vision_end_id, 302]
    self.banned = (c.image_id, c.video_id, c.vision_start_id, c.vision_end_id)

  def logprobs(self, version, ids):
    """float64[T, V] after every id, vision ids masked."""
    padded = np.concatenate([np.asarray(ids, np.int32), np.zeros(-len(ids) % 64, np.int32)])
    logits = np.array(
      model.logits(self.config, self.params[version], padded, (IMAGE,)), np.float64
    )[: len(ids)]
    logits[:, list(self.banned)] = -np.inf
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  def canary(self, version):
    ids, found = list(self.prompt), []
    for _ in range(4):
      last_V = self.logprobs(version, ids)[-1]
      second, best = np.argsort(last_V)[-2:]
      found.append((int(best), float(last_V[best]), float(last_V[best] - last_V[second])))
      ids.append(int(best))
    expected = canary.Continuation((), *zip(*found))
    return canary.Canary(tuple(self.prompt), IMAGE, self.banned, (expected,), 0.0, 0.0)

  def request(self, number):
    return GenerateRequest(
      f'r{number}',
      self.prompt + [400 + number],
      (IMAGE,),
      1.0,
      1.0,
      -1,
      NEW_TOKENS,
      (),
      self.banned,
      number,
      True,
    )

  def gap(self, number, got):
    """The largest distance of a reply's log-probs from the learner's, all tokens of one version."""
    (version,) = set(got.versions.tolist())
    prompt = self.request(number).input_ids
    expected_TV = self.logprobs(version, [*prompt, *got.ids.tolist()])[len(prompt) - 1 : -1]
    return float(np.abs(expected_TV[np.arange(len(got.ids)), got.ids] - got.logprobs).max())


@pytest.fixture(scope='module')
def learner(tmp_path_factory):
  return Learner(tmp_path_factory.mktemp('fleet'))


def launched(learner, number):
  options = ServerOptions(
    model_path=str(learner.folder),
    served_name='tiny',
    think_prefix='',
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key='key',
    dtype='float32',
    eos_token_ids=(),
    lanes=((512, 8),),
    chunk_tokens=32,
    prefill_rows=4,
    pages=128,
    decode_steps=4,
    image_batch=4,
    image_slots=16,
    max_image_patches=4,
    bias_rows=2,
    max_stop_ids=2,
    image_cache_mb=4,
    max_body_mb=16,
    attention='auto',
    tensor_parallel=1,
    compile_cache=str(learner.root / 'compiled'),
    parent_pid=None,
  )
  path = os.pathsep.join(path for path in sys.path if path)
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK, 'PYTHONPATH': path}
  return launch.launch(
    options,
    env=environment,
    log=learner.root / f'server{number}.log',
    deadline_s=patience.seconds(300),
    parent_pid=os.getpid(),
  )


def with_fleet(learner, use, **changes):
  """Runs `await use(fleet, client, control, router)` over two servers that hold version 1."""

  async def run():
    processes = await asyncio.gather(
      *(asyncio.to_thread(launched, learner, number) for number in range(2))
    )
    members = [
      Member(process.url, process, lambda number=number: launched(learner, number))
      for number, process in enumerate(processes)
    ]
    router = Router([member.url for member in members])
    async with (
      Client(CLIENT, learner.config.text.vocab, router, image_id=learner.config.image_id) as client,
      Control(CLIENT) as control,
      contextlib.AsyncExitStack() as stack,
    ):
      fleet = Fleet(
        members, control, router, lambda published: published, dataclasses.replace(FLEET, **changes)
      )
      stack.push_async_callback(fleet.close)
      await fleet.open()
      await fleet.deliver(learner.published[1], 1, learner.canary(1))
      return await use(fleet, client, control, router)

  return asyncio.run(run())


async def under_way(learner, fleet, client, control):
  """Eight requests, spread over both servers; those of the first have some tokens and stay under
  way: it is paused.
  """
  url = fleet.members[0].url
  while True:
    tasks = [
      asyncio.create_task(client.generate(learner.request(number), affinity=number))
      for number in range(8)
    ]
    while not all(task.done() for task in tasks):
      if sum((await control.json('GET', f'{url}/get_server_info'))['running']):
        await control.pause(url)
        if (await control.json('GET', f'{url}/get_server_info'))['waiting']:
          return tasks
        await control.resume(url)
    await asyncio.gather(*tasks)  # too fast to be caught: once more


async def restored(fleet, router, pid):
  """Returns once both servers are UP and the first is another process than `pid`."""
  await patience.seen(
    lambda: len(router.up_urls()) == 2 and fleet.members[0].process.pid != pid,
    'a server to be restored',
    300.0,
  )


def check_exact(learner, replies):
  assert [len(got.ids) for got in replies] == [NEW_TOKENS] * 8
  assert max(learner.gap(number, got) for number, got in enumerate(replies)) <= 1e-4


def test_one_of_two_is_killed_in_the_middle_and_comes_back_with_the_current_weights(learner):
  async def use(fleet, client, control, router):
    quiet = [await client.generate(learner.request(number), affinity=number) for number in range(8)]
    await fleet.deliver(learner.published[2], 2, learner.canary(2))
    tasks = await under_way(learner, fleet, client, control)
    pid = fleet.members[0].process.pid
    os.kill(pid, signal.SIGKILL)
    replies = await asyncio.gather(*tasks)
    await restored(fleet, router, pid)
    again = await asyncio.gather(
      *(client.generate(learner.request(number), affinity=number) for number in range(8))
    )
    versions = [await control.version(member.url) for member in fleet.members]
    return quiet, replies, again, versions, dict(fleet.counts), dict(client.counts)

  quiet, replies, again, versions, counts, sent = with_fleet(learner, use)
  for rounds in (quiet, replies, again):
    check_exact(learner, rounds)
  assert {version for got in quiet for version in got.versions.tolist()} == {1}
  assert {version for got in [*replies, *again] for version in got.versions.tolist()} == {2}
  assert [got.ids.tolist() for got in replies] == [
    got.ids.tolist() for got in again
  ]  # whoever answers, and however often
  assert versions == [2, 2]
  assert sent['moved'] >= 1 and counts['restarts'] >= 1 and counts['back'] >= 1


def test_a_stopped_server_is_found_by_its_missed_pings_and_replaced(learner):
  async def use(fleet, client, control, router):
    tasks = await under_way(learner, fleet, client, control)
    process = fleet.members[0].process
    os.kill(process.pid, signal.SIGSTOP)
    replies = await asyncio.gather(*tasks)
    await restored(fleet, router, process.pid)
    return replies, process.alive, [await control.version(member.url) for member in fleet.members]

  replies, alive, versions = with_fleet(learner, use, misses=4)
  check_exact(learner, replies)
  assert versions == [1, 1] and not alive


class Swollen(ServerProcess):
  """Claims to hold far too much."""

  def memory_mb(self):
    return super().memory_mb() + 1e9


def test_a_server_above_the_watermark_is_drained_and_replaced_and_no_token_is_lost(learner):
  async def use(fleet, client, control, router):
    tasks = await under_way(learner, fleet, client, control)
    process = fleet.members[0].process
    fleet.members[0].process = Swollen(process.url, process.process, process.log)
    replies = await asyncio.gather(*tasks)
    await restored(fleet, router, process.pid)
    return (
      replies,
      {**fleet.counts, **client.counts},
      [await control.version(member.url) for member in fleet.members],
    )

  replies, counts, versions = with_fleet(learner, use, memory_mb=10**6)
  check_exact(learner, replies)
  assert versions == [1, 1] and counts['drained'] == 1 and counts['interrupted'] >= 1

"""A fleet over scripted servers: processes are stand-ins that hold a server."""

import asyncio
import contextlib
import dataclasses
import pathlib

import numpy as np

from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.fleet import Fleet, FleetOptions, Member
from paravt_jax.rollout.router import Router
from paravt_jax.serving.canary import Canary, Continuation
from paravt_jax.testing.scripted import Reply, ScriptedServer
from tests import patience
from tests.rollout.wire import OPTIONS, PAD, REQUEST

FLEET = FleetOptions(
  every_s=0.05, misses=200, restarts=2, memory_mb=0, drain_s=0.2, tolerance=0.01, rounding_ratio=2.0
)


WATCHFUL = dataclasses.replace(FLEET, misses=3)  # for servers whose end only pings can tell


CANARY = Canary(
  (1, PAD, 3),
  np.zeros((32, 32, 3), np.uint8),
  (),
  (Continuation((), (8, 9), (-0.5, -0.5), (5.0, 5.0)),),
  0.0,
  0.0,
)


WRONG = Reply(ids=(8, 9), logprobs=(-0.5, -0.6))


EPISODE = Reply(ids=(5, 2))


class Script:
  """Answers canaries with `canary` and all else with `episode`; both can be changed while it
  runs.
  """

  def __init__(self, canary=None, episode=EPISODE):
    self.canary = Reply(ids=(8, 9), finish='length') if canary is None else canary
    self.episode = episode

  def __call__(self, request):
    return self.canary if request.rid.startswith('canary') else self.episode


class Process:
  """Stands in for a ServerProcess of ours: a scripted server that can be killed."""

  log = pathlib.Path('server.log')

  def __init__(self, script, memory=100.0, **given):
    self.server = ScriptedServer(script, **given).__enter__()
    self.url = self.server.url
    self.alive = True
    self.memory = memory
    self.pid = 0

  def kill(self):
    if self.alive:
      self.alive = False
      self.server.__exit__()

  def stop(self, grace_s):
    self.kill()

  def tail(self):
    return 'the last line of its log'

  def memory_mb(self):
    return self.memory


class Bench:
  """A fleet of our own servers: `launched[i]` are the processes that server i had, the running one
  last.
  """

  def __init__(self, *scripts, **given):
    self.scripts, self.given = scripts, given
    self.launched = [[] for _ in scripts]
    self.staged = []

  def start(self, i):
    process = Process(self.scripts[i], **self.given)
    self.launched[i].append(process)
    return process

  def server(self, i):
    return self.launched[i][-1].server

  def stage(self, published):
    self.staged.append(published)
    return published / 'staged'


def fleet(bench, use, *, urls=(), options=FLEET, client=OPTIONS, opening=None):
  """Runs `await use(fleet, client, router)` over the bench's servers and those at `urls`, opened;
  closes whatever happens.
  """

  async def run():
    members = [
      Member(process.url, process, lambda i=i: bench.start(i))
      for i, process in enumerate([bench.start(i) for i in range(len(bench.scripts))])
    ]
    members += [Member(url, None, None) for url in urls]
    router = Router([member.url for member in members])
    async with Client(client, 100, router, image_id=PAD) as it, Control(client) as control:
      whole = Fleet(members, control, router, bench.stage, options)
      async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(whole.close)
        await whole.open(opening)
        return await use(whole, it, router)

  try:
    return asyncio.run(asyncio.wait_for(run(), patience.seconds(120.0)))
  finally:
    assert not any(process.alive for launched in bench.launched for process in launched)


async def seen(state):
  """Returns once `state()` holds."""
  await patience.seen(state, quiet=60.0)


def ask(client, number=0, affinity=0):
  return asyncio.create_task(
    client.generate(dataclasses.replace(REQUEST, rid=f'r{number}'), affinity)
  )


def published(version):
  return pathlib.Path(f'/weights/{version}')

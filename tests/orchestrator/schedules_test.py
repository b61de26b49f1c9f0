"""A thousand random schedules of the training loop: servers that lag, groups that are lost, kills.

The loop and its queue are real; groups, steps and deliveries take a random number of turns of the
event loop, so that each seed is one schedule, always the same.
"""

import asyncio
import collections
import random
import types

import pytest

from paravt_jax import timeline
from paravt_jax.data.order import EpochOrder
from paravt_jax.orchestrator import rollout_queue, training
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.types import Group
from tests.orchestrator.rollout_queue_test import Row, at_once, kept, recipe

SCHEDULES, PARTS = 1000, 4
STEPS = 6


class Killed(Exception):
  """The process is gone."""


async def turns(count):
  """Lets others run `count` times."""
  for _ in range(count):
    await asyncio.sleep(0)


class World:
  """What outlives a kill: the record on disk, and the fates that a seed has drawn."""

  def __init__(self, seed):
    draw = self.draw = random.Random(seed)
    self.staleness, self.batch = draw.randint(0, 3), draw.randint(1, 4)
    self.most = draw.randint(self.batch, 12)
    self.every = draw.randint(1, 3)  # steps between records
    self.slowest = draw.choice((0, 3, 40))  # turns of a group
    self.lost = draw.choice((0.0, 0.1))  # share of groups that are lost
    self.behind = draw.choice((0.0, 0.1))  # share of groups on a server with old weights
    self.kills = draw.choice((0, 0, 1, 2))
    self.record = (0, None, ())
    self.trained = {}  # step -> its groups, as the surviving history has them
    self.recorded = set()  # finished groups of the record that the present life began from
    self.served = 0  # the newest version that the servers have
    self.lives = 0

  def recipe(self):
    """The run's recipe."""
    made = recipe(
      '',
      prompts=self.batch,
      max_concurrent=self.most,
      staleness=self.staleness,
      steps=STEPS,
    )
    return made.replace(run=made.run.replace(checkpoint_every=self.every))

  async def run_group(self, agent, prompt, reward, options):
    """A group whose tokens are of the versions that were served meanwhile."""
    assert (str(prompt.task), prompt.epoch) not in self.recorded  # a record has its episodes
    versions = [self.served]
    if self.draw.random() < self.behind:
      versions = [self.draw.randint(0, self.served)]
    await turns(self.draw.randint(0, self.slowest))
    if self.draw.random() < self.lost:
      return Group(str(prompt.task), prompt.epoch, (), ('media',))
    return Group(str(prompt.task), prompt.epoch, kept(*versions, self.served))


class Learner:
  """Counts steps, and remembers on what they were made."""

  rounding = 0.0

  def __init__(self, world):
    self.world, self.version = world, world.record[0]
    self.die_at = world.draw.randint(1, STEPS) if world.kills else None

  def prepare(self, batch, number, owners):
    """Checks the batch's age."""
    oldest = [rollout_queue.groups.oldest_version(group) for group in batch]
    assert len(batch) == self.world.batch
    assert all(number - self.world.staleness <= version <= number for version in oldest), (
      number,
      oldest,
    )
    return types.SimpleNamespace(groups=batch, version=number)

  def train_on(self, prepared):
    """Makes a step, or dies in it."""
    assert prepared.version == self.version
    if self.version + 1 == self.die_at:
      self.world.kills -= 1
      raise Killed
    self.world.trained[self.version] = [(int(g.id), g.epoch) for g in prepared.groups]
    self.version += 1
    return {}

  def publish(self):
    """Nothing to write."""

  def save(self, host, files):
    """Keeps a record, and its groups as they are."""
    self.world.record = (self.version, host, files)


class Server:
  """Brings versions to the servers in some turns."""

  def __init__(self, world):
    self.world, self.sampling = world, None
    self.timeline = timeline.Timeline(None)
    self.client = types.SimpleNamespace(counts=collections.Counter())

  async def deliver(self, pending, version):
    """Brings a version."""
    await turns(self.world.draw.randint(0, 20))
    self.world.served = version

  def check(self):
    """No server is lost."""

  def metrics(self):
    """Counts nothing."""
    return {}


class Watched(rollout_queue.Queue):
  """A queue that counts what it told of lost groups, and never runs ahead of its bounds."""

  def __init__(self, *arguments):
    super().__init__(*arguments)
    self.counted = collections.Counter()

  def metrics(self):
    """Sums what it logs."""
    found = super().metrics()
    self.counted.update({name: int(n) for name, n in found.items() if 'dropped' in name})
    return found

  def _fill(self):
    super()._fill()
    schedule = self.schedule
    ahead = (self._staleness + schedule.version + 1) * self._batch
    assert schedule.running <= schedule.options.max_concurrent
    assert schedule.accepted + schedule.running <= ahead


async def life(world, size):
  """One process, from the record to its end. Returns its queue."""
  version, host, finished = world.record
  world.recorded = {(one.group.id, one.group.epoch) for one in finished}
  world.lives += 1
  world.trained = {step: found for step, found in world.trained.items() if step < version}
  learner, server, run = Learner(world), Server(world), world.recipe()
  await server.deliver(None, version)
  order, tasks = EpochOrder(size, 5), list(map(Row, range(size)))
  queue = Watched(run, server, None, None, order, tasks, host, finished)
  rejected = queue.schedule.rejected
  loop = training._Loop(run, learner, server, queue, None, {}, None)
  try:
    while learner.version < STEPS:
      await loop.step(Interrupts())
  finally:
    await loop.close()
    await queue.close()
  queue.metrics()
  # none is lost without a word
  assert queue.counted.total() == queue.schedule.rejected - rejected
  return queue


async def whole(world, size):
  """The run, over all its lives. Returns the queue of the last."""
  while True:
    try:
      return await life(world, size)
    except Killed:
      continue


@pytest.mark.parametrize('part', range(PARTS))
def test_no_group_is_too_old_lost_or_trained_twice_whatever_the_schedule(monkeypatch, part):
  async def apart(work, *arguments):
    await turns(world.draw.randint(0, 10))
    return work(*arguments)

  monkeypatch.setattr(training.hosts_, 'apart', apart)
  monkeypatch.setattr(training.group_record, 'files', tuple)
  monkeypatch.setattr(rollout_queue.asyncio, 'to_thread', at_once)
  seen = collections.Counter()
  for seed in range(part, SCHEDULES, PARTS):
    world, size = World(seed), 7
    monkeypatch.setattr(rollout_queue.groups, 'run_group', world.run_group)
    queue = asyncio.run(asyncio.wait_for(whole(world, size), 20))
    assert sorted(world.trained) == list(range(STEPS)), seed
    trained = [group for step in range(STEPS) for group in world.trained[step]]
    assert len(set(trained)) == len(trained) == STEPS * world.batch, seed
    state = queue.schedule.state()
    # every position that began is trained, lost, or begins again
    waiting = len(queue.state()['ready']) + len(state['again'])
    assert state['next_position'] == len(trained) + state['rejected'] + waiting, seed
    if not world.lost and not world.behind:  # a slow group is waited for
      assert state['rejected'] == 0, seed
    if not world.staleness:  # the order of the data, but for what is lost
      order = EpochOrder(size, 5)
      places = [
        [order.at(p) for p in range(state['next_position'])].index((e, t)) for t, e in trained
      ]
      assert places == sorted(places), seed
      if not world.lost and not world.behind:
        assert places == list(range(len(trained))), seed
    seen.update(
      lost=queue.schedule.rejected > 0, killed=world.lives > 1, recorded=bool(world.recorded)
    )
  assert min(seen['lost'], seen['killed'], seen['recorded']) > 50

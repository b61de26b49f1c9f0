"""The queues of several hosts hand out, together, what the queue of one host would."""

import asyncio
import collections
import dataclasses
import types

import pytest

from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import RolloutError
from paravt_jax.orchestrator import host_queue, hosts, rollout_queue
from paravt_jax.types import Group
from tests.orchestrator import rollout_queue_test

KEPT = rollout_queue_test.KEPT


class Table:
  """Where the hosts of one event loop meet."""

  def __init__(self, count):
    self.count, self.rounds = count, []

  async def meet(self, number, index, value):
    """All values of a round, by host, once all are there."""
    while len(self.rounds) <= number:
      self.rounds.append((asyncio.Event(), {}))
    event, values = self.rounds[number]
    values[index] = value
    if len(values) == self.count:
      event.set()
    await event.wait()
    return [values[host] for host in range(self.count)]


class Seat:
  """A host's channel to a table."""

  def __init__(self, table, index):
    self.table, self.index, self.number = table, index, 0

  async def meet(self, value):
    self.number += 1
    return await self.table.meet(self.number - 1, self.index, value)


@dataclasses.dataclass(frozen=True)
class Here(hosts.Hosts):
  """A host of this event loop."""

  table: Table

  def channel(self, name):
    return Seat(self.table, self.index)


def queues(count, size=6, host=None, seed=3, **knobs):
  """The queues of `count` hosts over `size` tasks."""
  table, found = Table(count), []
  for index in range(count):
    config = rollout_queue_test.recipe(
      '', **{'prompts': 4, 'max_concurrent': 8, 'staleness': 0, **knobs}
    )
    server = types.SimpleNamespace(
      sampling=None, client=types.SimpleNamespace(counts=collections.Counter())
    )
    tasks = list(map(rollout_queue_test.Row, range(size)))
    arguments = config, server, None, None, EpochOrder(size, seed), tasks, host
    here = hosts.Hosts(0, 1) if count == 1 else Here(index, count, table)
    found.append(host_queue.make_queue(here, *arguments))
  return found


@pytest.fixture
def ends(monkeypatch):
  """How groups end: seconds by task, tasks that are lost (in the first epoch alone), and who ran."""
  log = types.SimpleNamespace(delays={}, lost=(), begun=collections.Counter())

  async def run_group(agent, prompt, reward, options):
    log.begun[prompt.task, prompt.epoch] += 1
    await asyncio.sleep(log.delays.get(prompt.task, 0))
    lost = prompt.task in log.lost and prompt.epoch == 0
    return Group(str(prompt.task), prompt.epoch, () if lost else KEPT, ('media',) * lost)

  monkeypatch.setattr(rollout_queue.groups, 'run_group', run_group)
  return log


async def steps(several, count):
  """[(task, epoch), ...] of each step over all hosts, in the order of the data; then the states."""

  async def nothing():
    pass

  handed, states = [], []
  for _ in range(count):
    parts = await asyncio.gather(*(queue.next_batch() for queue in several))
    owners = host_queue.owners(several[0])
    assert all(host_queue.owners(queue) == owners for queue in several)
    left = [list(part) for part in parts]
    whole = [left[owner].pop(0) for owner in owners] if owners else left.pop()
    assert not any(left)
    handed.append([(int(group.id), group.epoch) for group in whole])
    for queue in several:
      queue.mark_trained()
      queue.deliver(nothing(), queue.schedule.version + 1)
      await queue.delivered()
    states = [queue.state() for queue in several]
  await asyncio.gather(*(queue.close() for queue in several))
  return handed, states


@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('lost', [(), (0, 1, 4)])
@pytest.mark.parametrize('most', [8, 2])
def test_without_staleness_batches_and_counters_are_those_of_one_host(ends, count, lost, most):
  ends.lost, ends.delays = lost, {2: 0.02, 5: 0.01}
  knobs = {'size': 7, 'max_concurrent': most}
  alone, (state,) = asyncio.run(steps(queues(1, **knobs), 5))
  begun = dict(ends.begun)
  ends.begun.clear()
  together, states = asyncio.run(steps(queues(count, **knobs), 5))
  assert together == alone and states == [state] * count
  assert ends.begun == begun  # no group ran twice


def test_a_record_is_good_for_any_number_of_hosts(ends):
  whole, _ = asyncio.run(steps(queues(1), 6))
  first, (state, _) = asyncio.run(steps(queues(2), 2))
  second, (state, *_) = asyncio.run(steps(queues(4, host=state), 2))
  third, _ = asyncio.run(steps(queues(1, host=state), 2))
  assert first + second + third == whole


def test_with_staleness_the_order_is_that_of_the_data_whoever_is_slow(ends):
  ends.delays = {0: 0.05, 3: 0.03}
  handed, states = asyncio.run(steps(queues(2, staleness=1), 4))
  order = EpochOrder(6, 3)
  wanted = [order.at(position) for position in range(16)]
  assert [pair for batch in handed for pair in batch] == [(task, epoch) for epoch, task in wanted]
  assert states[0] == states[1] and states[0]['schedule']['accepted'] == 16


def test_each_host_counts_the_groups_that_it_lost_itself(ends):
  ends.lost = (0, 1, 2)

  async def run():
    several = queues(2, size=9)
    await asyncio.gather(*(queue.next_batch() for queue in several))
    found = [queue.metrics().get('groups/dropped/reason=media', 0.0) for queue in several]
    await asyncio.gather(*(queue.close() for queue in several))
    return found, ends.begun

  found, begun = asyncio.run(run())
  assert sum(found) == sum(task in ends.lost for task, _ in begun)


def test_where_all_groups_are_lost_all_hosts_give_up(ends, monkeypatch):
  monkeypatch.setattr(rollout_queue, 'LOST_IN_A_ROW', 5)
  ends.lost = range(100)

  async def run():
    several = queues(2, size=100)
    found = await asyncio.gather(*(queue.next_batch() for queue in several), return_exceptions=True)
    await asyncio.gather(*(queue.close() for queue in several))
    return found

  for error in asyncio.run(run()):
    assert isinstance(error, RolloutError) and '5 groups in a row were lost whole' in str(error)

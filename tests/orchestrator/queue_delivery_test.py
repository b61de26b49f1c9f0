"""Groups and versions on their way to the servers: what waits for what, and how it ends."""

import asyncio

import pytest

from paravt_jax.errors import RolloutError
from tests.orchestrator import rollout_queue_test
from tests.orchestrator.rollout_queue_test import queue

started = rollout_queue_test.started  # the fixture


def test_groups_go_on_while_a_version_is_on_its_way_and_count_on_it_only_once_it_is_there(started):
  async def run():
    made, arrived = queue(size=12, staleness=1, max_concurrent=64), asyncio.Event()
    await made.next_batch()
    made.mark_trained()
    made.deliver(arrived.wait(), 1)
    before = await made.next_batch(), made.schedule.version, len(started.prompts)
    arrived.set()
    await made.delivered()
    await made.next_batch()
    after = made.schedule.version, len(started.prompts)
    await made.close()
    return before, after

  (batch, version, groups), (later, more) = asyncio.run(run())
  assert (len(batch), version, groups) == (2, 0, 4)  # (staleness 1 + version 0 + 1) * batch 2
  assert (later, more) == (1, 6)


@pytest.mark.parametrize(('steps', 'more'), [(10, 2), (1, 0)])  # behind the last step none
def test_groups_of_a_version_begin_once_it_is_there_unasked(started, steps, more):
  async def run():
    made = queue(size=12, staleness=1, max_concurrent=64, steps=steps)
    await made.next_batch()
    made.mark_trained()
    made.deliver(asyncio.sleep(0), 1)
    await made.delivered()
    await asyncio.sleep(0.01)  # those that began ask for their video first

  asyncio.run(run())
  assert len(started.prompts) == 4 + more


def test_what_a_delivery_meets_is_raised_where_it_is_waited_for(started):
  async def fails():
    raise RolloutError('no server took version 1')

  async def run():
    made = queue(staleness=0)
    await made.next_batch()
    made.mark_trained()
    made.deliver(fails(), 1)
    try:
      await made.next_batch()  # without staleness nothing else can happen
    finally:
      await made.close()

  with pytest.raises(RolloutError, match='no server took version 1'):
    asyncio.run(run())


def test_who_stops_waiting_does_not_stop_a_delivery(started):
  async def run():
    made, log = queue(staleness=0), []

    async def slow():
      log.append('paused')
      await asyncio.sleep(0.05)
      log.append('resumed')

    await made.next_batch()
    made.mark_trained()
    made.deliver(slow(), 1)
    waiting = asyncio.create_task(made.delivered())
    while not log:
      await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await made.close()
    return log, made.schedule.version

  assert asyncio.run(run()) == (['paused', 'resumed'], 1)


def test_a_run_that_is_asked_to_end_waits_for_a_delivery_only_so_long(started):
  async def run():
    made = queue(staleness=0)
    await made.next_batch()
    made.mark_trained()
    made.deliver(asyncio.Event().wait(), 1)
    await asyncio.wait_for(made.close(0.01), 60)
    return made.schedule.version

  assert asyncio.run(run()) == 0

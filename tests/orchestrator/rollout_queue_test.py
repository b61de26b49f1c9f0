"""Groups on their way to the learner: in order, as far ahead as the schedule allows, and the same
after a restart.
"""

import asyncio
import collections
import types

import numpy as np
import pytest

from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import DataError, RolloutError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import rollout_queue
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.types import Group, Segment, StopReason, Task, Trajectory


def kept(*versions, subagent=()):
  """An episode whose tokens are of these weight versions: all that a queue asks of one."""
  context = lambda found: Trajectory(
    (Segment(np.zeros(len(found), np.int32), True, versions=np.array(found, np.int32)),),
    StopReason.STOP,
  )
  results = (types.SimpleNamespace(subagent=context(subagent)),) if subagent else ()
  return (
    types.SimpleNamespace(
      episode=types.SimpleNamespace(trajectory=context(versions), results=results)
    ),
  )


KEPT = kept()


def recipe(media_root, **knobs):
  """The published recipe with these knobs of `rollout`."""
  made = RLRecipe.published()
  return made.replace(
    data=made.data.replace(media_root=media_root), rollout=made.rollout.replace(**knobs)
  )


class Row(int):
  """A task that is its number, with a video of its own."""

  id = property(str)
  videos = property(lambda self: (f'{int(self)}.mp4',))


def queue(size=6, host=None, seed=3, **knobs):
  """A queue over `size` tasks 0..size-1, whose agent is never asked for anything."""
  config = recipe('', **{'prompts': 2, 'max_concurrent': 8, 'staleness': 0, **knobs})
  server = types.SimpleNamespace(
    sampling=None, client=types.SimpleNamespace(counts=collections.Counter())
  )
  return rollout_queue.Queue(
    config, server, None, None, EpochOrder(size, seed), list(map(Row, range(size))), host
  )


def test_a_run_does_not_go_on_with_other_rows():
  state = queue(size=6).state()
  assert queue(size=6, host=state).state() == state
  with pytest.raises(
    DataError,
    match=r'the 7 training rows are not those with which this run was begun .*run\.folder',
  ):
    queue(size=7, host=state)


def test_the_digest_is_of_the_rows_and_their_order():
  assert (
    len({rollout_queue.digest(tasks) for tasks in ([1, 2], [2, 1], [12], ['1', 2], [1, 2, 3])}) == 5
  )


async def at_once(work, *arguments):
  """A look at a file that takes no turn of the event loop, so that schedules are exact."""
  return work(*arguments)


@pytest.fixture
def started(monkeypatch):
  """(task, epoch) of the groups in the order of their start; `delays` and `lost` by task steer how
  they end.
  """
  log = types.SimpleNamespace(prompts=[], delays={}, lost=())

  async def run_group(agent, prompt, reward, options):
    log.prompts.append((prompt.task, prompt.epoch))
    await asyncio.sleep(log.delays.get(prompt.task, 0))
    return Group(
      str(prompt.task),
      prompt.epoch,
      () if prompt.task in log.lost else KEPT,
      ('media_missing',) * (prompt.task in log.lost),
    )

  monkeypatch.setattr(rollout_queue.groups, 'run_group', run_group)
  monkeypatch.setattr(rollout_queue.asyncio, 'to_thread', at_once)
  return log


def ids(batch):
  return [int(group.id) for group in batch]


def order(size, count, seed=3):
  made = EpochOrder(size, seed)
  return [made.at(position)[1] for position in range(count)]


def test_the_media_root_may_move_and_records_of_before_name_whole_paths():
  task = lambda *videos: Task('a', videos, 'q', 'oe', 'x')
  before, after = [task('/old/a.mp4', '/else/b.mp4')], [task('/new/a.mp4', '/else/b.mp4')]
  assert (
    rollout_queue.digest(before, '/old')
    == rollout_queue.digest(after, '/new')
    != rollout_queue.digest(after, '/old')
  )
  assert rollout_queue.digest([task('/old/c.mp4')], '/old') != rollout_queue.digest(before, '/old')
  assert rollout_queue.digest(before, '') == rollout_queue.digest(before)
  config = recipe('/old', prompts=1, max_concurrent=1, staleness=0)
  server = types.SimpleNamespace(
    sampling=None, client=types.SimpleNamespace(counts=collections.Counter())
  )
  made = lambda host: rollout_queue.Queue(
    config, server, None, None, EpochOrder(1, 0), before, host
  )
  state = made(None).state()
  assert (
    made({**state, 'rows': rollout_queue.digest(before)}).state() == state
  )  # as it was written before


def test_batches_follow_the_data_order_whatever_finishes_first(started):
  async def run():
    made = queue()
    first = order(6, 4)
    started.delays = {first[0]: 0.05}
    one = await made.next_batch()
    made.mark_trained()
    made.deliver(asyncio.sleep(0), 1)
    two = await made.next_batch()
    await made.close()
    return ids(one), ids(two)

  assert asyncio.run(run()) == (order(6, 4)[:2], order(6, 4)[2:])


@pytest.mark.parametrize('staleness', [1, 2])
def test_a_slow_group_that_newer_ones_overtook_is_waited_for_before_it_is_too_old(
  started, staleness
):
  async def run():
    made = queue(size=20, staleness=staleness)
    slow = order(20, 1)[0]
    started.delays = {slow: 0.3}
    batches = []
    for version in range(1, staleness + 3):
      batches.append(ids(await made.next_batch()))
      made.mark_trained()
      made.deliver(asyncio.sleep(0), version)
      await made.delivered()
    await made.close()
    return [slow in batch for batch in batches]

  # it began with version 0, so the step from version `staleness` is the last that may take it
  assert asyncio.run(run()) == [number == staleness for number in range(staleness + 2)]


def test_without_staleness_nothing_runs_while_the_learner_steps(started):
  async def run():
    made = queue(staleness=0)
    await made.next_batch()
    found = made.metrics()
    await made.close()
    return found

  found = asyncio.run(run())
  assert (found['rollout/running'], found['rollout/queued'], found['rollout/capacity']) == (0, 0, 0)
  assert len(started.prompts) == 2
  for name in found:
    names.lookup(name)


def test_with_staleness_the_next_groups_run_already(started):
  async def run():
    made = queue(size=12, staleness=2, max_concurrent=64)
    await made.next_batch()
    await asyncio.sleep(0)
    await made.close()

  asyncio.run(run())
  assert len(started.prompts) == 6  # (eta + version + 1) * batch


def test_a_group_that_is_lost_whole_gives_its_place_to_the_next(started):
  first = order(6, 4)
  started.lost = (first[0],)

  async def run():
    made = queue()
    batch = await made.next_batch()
    state = made.schedule.state()
    await made.close()
    return ids(batch), state

  batch, state = asyncio.run(run())
  assert batch == first[1:3] and (state['accepted'], state['rejected'], state['next_position']) == (
    2,
    1,
    3,
  )


def test_when_group_after_group_is_lost_the_run_ends_with_the_reason(started):
  started.lost = range(6)

  async def run():
    made = queue()
    try:
      await made.next_batch()
    finally:
      await made.close()

  with pytest.raises(
    RolloutError,
    match=r'64 groups in a row were lost whole \(the last: media_missing\).*media root',
  ):
    asyncio.run(run())


def test_deviation_17_a_restart_goes_on_with_what_ran_and_what_waited(started):
  """The release forgot its counters; here groups that were done but not trained on, and those in
  flight, run again first.
  """
  first = order(12, 6)

  async def run():
    made = queue(size=12, staleness=1)
    batch = await made.next_batch()
    made.mark_trained()
    made.deliver(asyncio.sleep(0), 1)
    while made.metrics()['rollout/running']:
      await asyncio.wait(made._running)
      for task in [task for task in made._running if task.done()]:
        made._take(made._running.pop(task), task.result())
    state = made.state()
    await made.close()
    started.prompts.clear()
    resumed = queue(size=12, staleness=1, host=state)
    following = await resumed.next_batch()
    await resumed.close()
    return ids(batch), state, ids(following)

  batch, state, following = asyncio.run(run())
  assert batch == first[:2] and state['ready'] == [2, 3]
  assert following == first[2:4] and [task for task, _ in started.prompts][:2] == first[2:4]


@pytest.mark.parametrize('staleness', [0, 2])
def test_a_batch_that_was_handed_out_and_never_trained_on_runs_again_after_a_restart(
  started, staleness
):
  """An interrupt may fall between a batch's last rollout and its step; the run must neither lose
  the groups nor wait for ever.
  """
  first = order(12, 4)

  async def run():
    made = queue(size=12, staleness=staleness)
    await made.next_batch()
    made.mark_trained()
    made.deliver(asyncio.sleep(0), 1)
    await made.next_batch()  # interrupted here
    state = made.state()
    await made.close()
    resumed = queue(size=12, staleness=staleness, host=state)
    batch = await resumed.next_batch()
    resumed.mark_trained()
    resumed.deliver(asyncio.sleep(0), 2)
    await resumed.delivered()
    left = resumed.state()
    await resumed.close()
    return ids(batch), left

  batch, left = asyncio.run(run())
  assert (
    batch == first[2:4]
    and left['schedule']['version'] == 2
    and left['schedule']['accepted'] - len(left['ready']) == 4
  )


def test_a_batch_handed_out_ahead_of_its_step_runs_again_after_a_restart_too(started):
  first = order(12, 6)

  async def run():
    made = queue(size=12, staleness=1)
    one = await made.next_batch()
    two = await made.next_batch()  # while the step on `one` runs
    during = made.state()['ready']
    made.mark_trained()
    after = made.state()['ready']
    await made.close()
    return ids(one), ids(two), during, after

  one, two, during, after = asyncio.run(run())
  assert (one, two) == (first[:2], first[2:4])
  assert (during, after) == ([0, 1, 2, 3], [2, 3])


def test_what_was_lost_cut_and_sent_again_is_counted_since_the_last_step(started):
  first = order(6, 4)
  started.lost = (first[0],)

  async def run():
    made = queue()
    made._client.counts.update(interrupted=3, retried=1, requests=9, images=8, image_bytes=70)
    await made.next_batch()
    found = made.metrics(), made.metrics()
    await made.close()
    return found

  once, again = asyncio.run(run())
  assert (
    once['groups/dropped/reason=media_missing'],
    once['rollout/interrupted'],
    once['rollout/retried'],
    once['rollout/images'],
    once['rollout/images_sent'],
    once['rollout/image_bytes'],
  ) == (1, 3, 1, 8, 0, 70)
  assert 'groups/dropped/reason=media_missing' not in again and (
    again['rollout/interrupted'],
    again['rollout/retried'],
    again['rollout/image_bytes'],
  ) == (0, 0, 0)
  for name in once:
    names.lookup(name)


def test_every_epoch_is_another_order_and_its_number_reaches_the_group(started):
  async def run():
    made = queue(size=2)
    for version in (1, 2):
      await made.next_batch()
      made.mark_trained()
      made.deliver(asyncio.sleep(0), version)
    await made.close()

  asyncio.run(run())
  assert [epoch for _, epoch in started.prompts[:4]] == [0, 0, 1, 1]
  assert sorted(task for task, _ in started.prompts[:2]) == [0, 1]


@pytest.mark.parametrize('staleness', [0, 1, 2])
@pytest.mark.parametrize('where', ['main', 'subagent'])
def test_a_group_of_a_server_that_fell_behind_is_lost_and_counted(started, staleness, where):
  """The schedule bounds when a group begins; a server that kept old weights is another matter."""
  behind = 2 + staleness

  async def run():
    made = queue(size=20, staleness=staleness)
    for version in range(1, behind + 1):
      await made.next_batch()
      made.mark_trained()
      made.deliver(asyncio.sleep(0), version)
      await made.delivered()
    for position, _ in made._ready:
      del made._began[position]
    old = (1, behind) if where == 'main' else ()
    made._began |= {100: behind, 101: behind}
    made._ready = [
      (100, Group('100', 0, kept(*old, subagent=(behind, 1) if where == 'subagent' else ()))),
      (101, Group('101', 0, kept(behind - staleness, behind))),
    ]
    rejected = made.schedule.rejected
    batch = await made.next_batch()
    found = made.metrics()
    await made.close()
    return ids(batch), found, made.schedule.rejected - rejected

  batch, found, rejected = asyncio.run(run())
  assert 100 not in batch and 101 in batch and len(batch) == 2
  assert (found['groups/dropped/reason=too_old'], rejected) == (1, 1)


def test_a_video_that_is_lost_again_and_again_is_left_out_counted_and_recorded(started):
  """Twelve questions on two videos; those of the bad one are asked three times, then skipped."""

  class Shared(Row):
    videos = property(lambda self: ('bad.mp4' if self % 2 else 'good.mp4',))

  config = recipe('', prompts=6, max_concurrent=1, staleness=0)
  server = types.SimpleNamespace(
    sampling=None, client=types.SimpleNamespace(counts=collections.Counter())
  )
  tasks, options = list(map(Shared, range(12))), types.SimpleNamespace(size=2)
  started.lost = range(1, 12, 2)

  def make(host):
    return rollout_queue.Queue(config, server, None, options, EpochOrder(12, 3), tasks, host)

  async def run(made):
    batch = ids(await made.next_batch())
    metrics = made.metrics()
    made.mark_trained()
    await made.close()
    return batch, metrics, made.state()

  batch, metrics, state = asyncio.run(run(make(None)))
  asked = [int(task) for task, _ in started.prompts]
  bad = [task for task in order(12, len(asked) + 3) if task % 2]
  assert sorted(batch) == [0, 2, 4, 6, 8, 10]
  assert [task for task in asked if task % 2] == bad[:3]
  assert metrics['groups/dropped/reason=media_missing'] == 3
  assert (
    metrics['groups/dropped/reason=media_quarantined'] >= 1 and metrics['data/quarantined'] == 1
  )
  for name in metrics:
    names.split(name)
  assert make(state).state()['quarantine'] == state['quarantine']

"""The training loop's own parts: the clock, the batch that is prepared ahead, and the end by
an alarm.
"""

import asyncio
import pathlib
import threading
import types

import pytest

from paravt_jax.errors import AlarmError, SyncError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import alarms, training
from paravt_jax.timeline import Timeline
from tests import patience


def test_the_clocks_stages_add_up_to_the_step_and_are_in_the_dictionary(monkeypatch):
  silent, ticks = Timeline(None), iter([0.0, 2.0, 5.0, 6.0, 6.5])
  monkeypatch.setattr(training.time, 'monotonic', lambda: next(ticks))
  clock = training.Clock(silent, 0)
  for stage in ('rollout', 'learn', 'rollout'):
    clock.lap(stage)
  found = clock.times()
  assert found == {'time/rollout': 3.0, 'time/learn': 3.0, 'time/other': 0.5, 'time/step': 6.5}
  for name in (*found, 'time/publish', 'time/sync', 'time/checkpoint'):
    names.lookup(name)


class Steps:
  """A learner, a queue and a server in one, which log what is asked of them."""

  counts = types.MappingProxyType({})
  rounding = 0.0
  timeline = Timeline(None)

  def __init__(self):
    self.version, self.log, self.handed = 0, [], 0
    self.prepared_ahead = threading.Event()
    self.saved = []
    self.delivered_versions = []  # as the record has them
    self.stops = {}  # of process 0's alarms, by step
    self.schedule = types.SimpleNamespace(publish=self.delivered_versions.append)
    self.asked = False  # whether an end is requested
    self.silent = False  # whether the servers take no version

  def prepare(self, batch, version, owners):
    assert owners == ()  # one host
    self.log.append(('prepare', batch[0], version))
    if version > self.version:
      self.prepared_ahead.set()
    return version

  def train_on(self, prepared):
    self.log.append(('begin', prepared))
    ahead = self.prepared_ahead.wait(self.patience)
    self.log.append(('end', prepared, ahead))
    self.prepared_ahead.clear()
    self.version += 1
    return {}

  async def next_batch(self):
    self.handed += 1
    return [self.handed - 1]

  async def delivered(self):
    while self.silent and self.version:
      self.asked = True  # the signal comes while the run waits for its servers
      await asyncio.sleep(0.01)

  def check(self):
    pass

  def mark_trained(self):
    pass

  def publish(self):
    pass

  def deliver(self, *_):
    pass


def loop_of(steps, staleness, count, monkeypatch):
  knobs = types.SimpleNamespace(staleness=staleness, steps=count, gap_limit=1.0, gap_ratio=1.0)
  run = types.SimpleNamespace(checkpoint_every=1000, keep=2)
  watch = alarms.WatchOptions.published()
  recipe = types.SimpleNamespace(rollout=knobs, run=run, watch=watch)
  folder = types.SimpleNamespace(path=pathlib.Path('no such folder'))

  async def write(self, number, *_):
    return steps.stops.get(number)

  monkeypatch.setattr(training._Loop, '_write', write)
  monkeypatch.setattr(
    training._Loop, '_save', lambda self: steps.saved.append(self._learner.version)
  )
  return training._Loop(recipe, steps, steps, steps, None, {}, folder)


def run_loop(steps, staleness, count, monkeypatch, made=None):
  loop = loop_of(steps, staleness, count, monkeypatch)

  async def run():
    for _ in range(made or count):
      await loop.step(steps)
    await loop.close()

  asyncio.run(run())
  return steps.log


def test_with_staleness_the_next_batch_is_prepared_while_the_step_runs(monkeypatch):
  steps = Steps()
  steps.patience = 5
  steps.prepare(['none yet'], 1, ())  # so that the last step, which has no next one, need not wait
  steps.log.clear()
  log = run_loop(steps, 1, 3, monkeypatch, made=2)
  assert log[0] == ('prepare', 0, 0)
  assert ('end', 1, True) in log and ('prepare', 2, 2) in log
  assert log.index(('prepare', 2, 2)) < log.index(('end', 1, True))
  assert steps.handed == 3  # none beyond the last step


def test_without_staleness_a_batch_waits_for_the_weights_of_the_step_before(monkeypatch):
  steps = Steps()
  steps.patience = 0.01
  assert run_loop(steps, 0, 2, monkeypatch) == [
    ('prepare', 0, 0),
    ('begin', 0),
    ('end', 0, False),
    ('prepare', 1, 1),
    ('begin', 1),
    ('end', 1, False),
  ]


@pytest.mark.parametrize(
  ('alarm', 'error', 'saved'), [('entropy', AlarmError, [1]), ('gap', SyncError, [])]
)
def test_an_alarm_ends_the_run_after_the_record_of_the_step(monkeypatch, alarm, error, saved):
  steps = Steps()
  steps.patience = 0.01
  steps.stops = {0: alarms.Stop(alarm, 0, 'step 0: got and wanted')}
  with pytest.raises(error, match='step 0: got and wanted'):
    run_loop(steps, 0, 3, monkeypatch)
  assert steps.saved == saved
  assert steps.version == 1  # no step came after it


def test_a_run_that_is_asked_to_end_records_its_step_though_the_servers_do_not_answer(monkeypatch):
  steps = Steps()
  steps.patience, steps.silent = 0.01, True
  loop = loop_of(steps, 1, 3, monkeypatch)

  async def run():
    await asyncio.wait_for(loop.step(steps), patience.seconds(10))
    with pytest.raises(KeyboardInterrupt):
      await loop.check(steps)
    loop.save_what_is_done()
    await loop.close()

  asyncio.run(run())
  assert (steps.version, steps.saved) == (1, [1])
  assert steps.delivered_versions == [1]  # the run that continues delivers it first


def test_a_step_that_is_not_in_the_log_is_not_recorded(monkeypatch):
  steps = Steps()
  steps.patience = 0.01
  loop = loop_of(steps, 0, 3, monkeypatch)
  steps.version = 1  # trained, and interrupted before it was written
  loop.save_what_is_done()
  assert steps.saved == []

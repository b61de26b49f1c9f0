"""The training loop's own parts: the guard against a learner and a server that disagree, the
clock, and the batch that is prepared ahead.
"""

import asyncio
import dataclasses
import math
import threading
import types

import pytest

from paravt_jax.errors import SyncError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import training
from paravt_jax.orchestrator.options import RolloutOptions
from paravt_jax.orchestrator.weight_delivery import guard
from paravt_jax.timeline import Timeline

LIMITS = dataclasses.replace(RolloutOptions.published(), gap_limit=1e-4, gap_ratio=4.0)


def test_a_gap_above_the_limit_ends_the_run_with_its_number():
  guard({'policy/gap_current_mean': 9e-5}, LIMITS, 0.0, 3)
  with pytest.raises(
    SyncError,
    match=r'step 3: .* is 2.00e-04, wanted at most 1.00e-04, that is rollout.gap_limit=0.0001 '
    r'.*see metrics.jsonl',
  ):
    guard({'policy/gap_current_mean': 2e-4}, LIMITS, 0.0, 3)


def test_what_rounding_costs_the_learner_itself_is_allowed_as_often_as_the_recipe_says():
  # 1e-4 + 4 * .02
  guard({'policy/gap_current_mean': 0.08}, LIMITS, 0.02, 3)
  with pytest.raises(
    SyncError, match=r'at most 8.01e-02, .*gap_ratio=4 times 2.00e-02, what rounding costs .*dtype'
  ):
    guard({'policy/gap_current_mean': 0.081}, LIMITS, 0.02, 3)


def test_a_gap_that_is_no_number_ends_the_run():
  with pytest.raises(SyncError, match='is nan'):
    guard({'policy/gap_current_mean': math.nan}, LIMITS, 0.02, 3)


def test_tokens_of_an_older_version_may_differ_and_those_of_the_current_one_may_not():
  # no token of the current version
  guard({'policy/gap_mean': 1.0, 'staleness/max': 1.0}, LIMITS, 0.0, 3)
  old = {'policy/gap_mean': 1.0, 'staleness/max': 2.0}
  with pytest.raises(SyncError):
    guard({**old, 'policy/gap_current_mean': 1.0}, LIMITS, 0.02, 3)


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
    pass

  def check(self):
    pass

  def mark_trained(self):
    pass

  def publish(self):
    pass

  def deliver(self, *_):
    pass


def loop_of(steps, staleness, count, monkeypatch):
  knobs = types.SimpleNamespace(staleness=staleness, steps=count, gap_limit=1.0)
  recipe = types.SimpleNamespace(rollout=knobs, run=types.SimpleNamespace(checkpoint_every=1000))

  async def write(*_):
    pass

  monkeypatch.setattr(training._Loop, '_write', write)
  monkeypatch.setattr(training._Loop, '_save', lambda *_: None)
  monkeypatch.setattr(training, 'guard', lambda *_: None)
  return training._Loop(recipe, steps, steps, steps, None, {})


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

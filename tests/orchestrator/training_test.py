"""The training loop's own parts: the guard against a learner and a server that disagree, the
clock.
"""

import dataclasses
import math

import pytest

from paravt_jax.errors import SyncError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import training
from paravt_jax.orchestrator.options import RolloutOptions
from paravt_jax.orchestrator.weight_delivery import guard

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
  ticks = iter([0.0, 2.0, 5.0, 6.0, 6.5])
  monkeypatch.setattr(training.time, 'monotonic', lambda: next(ticks))
  clock = training.Clock()
  for stage in ('rollout', 'learn', 'rollout'):
    clock.lap(stage)
  found = clock.times()
  assert found == {'time/rollout': 3.0, 'time/learn': 3.0, 'time/other': 0.5, 'time/step': 6.5}
  for name in (*found, 'time/publish', 'time/sync', 'time/checkpoint'):
    names.lookup(name)

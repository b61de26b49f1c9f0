"""The training loop's own parts: the guard against a learner and a server that disagree, the
clock.
"""

import math

import pytest

from paravt_jax.errors import SyncError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import training
from paravt_jax.orchestrator.weight_delivery import guard


def test_a_gap_above_the_limit_ends_the_run_with_its_number():
  guard({'policy/gap_current_mean': 9e-5}, 1e-4, 3)
  with pytest.raises(
    SyncError,
    match=r'step 3: .* is 2.00e-04, wanted at most rollout.gap_limit=0.0001: .*see metrics.jsonl',
  ):
    guard({'policy/gap_current_mean': 2e-4}, 1e-4, 3)


def test_a_gap_that_is_no_number_ends_the_run():
  with pytest.raises(SyncError, match='is nan'):
    guard({'policy/gap_current_mean': math.nan}, 1e-4, 3)


def test_tokens_of_an_older_version_may_differ_and_those_of_the_current_one_may_not():
  # no token of the current version
  guard({'policy/gap_mean': 1.0, 'staleness/max': 1.0}, 1e-4, 3)
  with pytest.raises(SyncError):
    guard({'policy/gap_mean': 1.0, 'policy/gap_current_mean': 1.0, 'staleness/max': 2.0}, 1e-4, 3)


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

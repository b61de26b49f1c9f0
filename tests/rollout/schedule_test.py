"""Staleness, counted in prompt groups; the vectors are the specification's, section 8."""

import json

import pytest

from paravt_jax.errors import CheckpointError
from paravt_jax.rollout.schedule import Schedule, ScheduleOptions, capacity


@pytest.mark.parametrize(
  'version, batch, accepted, running, expected',
  [(0, 7, 0, 0, 21), (0, 7, 7, 14, 0), (3, 7, 28, 10, 4), (3, 7, 30, 16, -4)],
)
def test_capacity_at_eta_2(version, batch, accepted, running, expected):
  assert (
    capacity(
      version=version,
      batch=batch,
      accepted=accepted,
      running=running,
      max_concurrent=64,
      staleness=2,
    )
    == expected
  )


def test_capacity_is_bounded_by_what_may_run_at_once():
  assert capacity(version=9, batch=7, accepted=0, running=60, max_concurrent=64, staleness=2) == 4


def test_eta_0_is_exactly_synchronous():
  schedule = Schedule(ScheduleOptions(batch=3, max_concurrent=64, staleness=0))
  assert [schedule.start() for _ in range(4)] == [0, 1, 2, None]
  for position in (2, 0, 1):
    schedule.accept(position)
  assert schedule.start() is None
  schedule.publish(1)
  assert [schedule.start() for _ in range(4)] == [3, 4, 5, None]


def test_a_rejected_group_gives_its_place_to_the_next():
  schedule = Schedule(ScheduleOptions(batch=1, max_concurrent=64, staleness=0))
  assert schedule.start() == 0 and schedule.start() is None
  schedule.reject(0)
  assert schedule.start() == 1 and schedule.rejected == 1


def test_deviation_17_the_counters_survive_a_resume_and_what_was_running_starts_first():
  """The release lost its staleness counters on resume and ran ahead of the learner without
  bound.
  """
  options = ScheduleOptions(batch=2, max_concurrent=64, staleness=1)
  schedule = Schedule(options)
  assert [schedule.start() for _ in range(5)] == [0, 1, 2, 3, None]
  schedule.accept(1)
  saved = json.loads(json.dumps(schedule.state()))
  again = Schedule(options)
  again.restore(saved)
  assert (again.accepted, again.running, again.free) == (1, 0, 3)
  assert [again.start() for _ in range(4)] == [0, 2, 3, None]
  lost = Schedule(options)
  lost.restore(saved, lost=[1])
  assert [lost.start() for _ in range(5)] == [0, 1, 2, 3, None]


def test_a_kept_group_that_is_retracted_gives_its_place_to_the_next_too():
  schedule = Schedule(ScheduleOptions(batch=1, max_concurrent=64, staleness=0))
  with pytest.raises(ValueError, match='group 0 was not kept'):
    schedule.retract(0)
  schedule.accept(schedule.start())
  assert schedule.start() is None
  schedule.retract(0)
  assert schedule.start() == 1 and (schedule.accepted, schedule.rejected) == (0, 1)


def test_a_state_without_a_counter_is_refused():
  with pytest.raises(CheckpointError, match='accepted'):
    Schedule(ScheduleOptions(1, 1, 0)).restore({'version': 0})


def test_ending_a_group_that_is_not_running_is_an_error():
  with pytest.raises(ValueError, match='group 4 is not running'):
    Schedule(ScheduleOptions(1, 1, 0)).accept(4)

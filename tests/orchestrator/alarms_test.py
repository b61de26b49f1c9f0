"""Alarms: when each goes on and off, what it says, what a stop leaves on disk."""

import math

import pytest

from paravt_jax.errors import AlarmError, SyncError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import alarms
from paravt_jax.orchestrator.alarms import Stop, WatchOptions

FINE = {
  'policy/loss': 0.1,
  'optim/grad_norm': 1.0,
  'optim/skipped': 0.0,
  'policy/gap_current_mean': 1e-5,
  'policy/rounding': 0.0,
  'groups/no_signal': 0.5,
  'format_compliance': 0.9,
  'calls/executed': 1.2,
  'policy/entropy': 0.2,
  'server/speed/server=0': 100.0,
  'server/speed/server=1': 90.0,
}
# the values of a step, by alarm, under which its condition holds
WRONG = {
  'nonfinite': {'optim/skipped': 1.0},
  'gap': {'policy/gap_current_mean': 2e-4},
  'no_signal': {'groups/no_signal': 1.0},
  'format': {'format_compliance': 0.4},
  'calls': {'calls/executed': 0.05},
  'entropy': {'policy/entropy': 0.01},
  'slow_server': {'server/speed/server=1': 49.0},
}


def watching(name, action, steps):
  """The alarms of RL with one knob section changed; gap_limit is 1e-4, gap_ratio 4."""
  options = WatchOptions.published()
  section = getattr(options, name).replace(action=action, steps=steps)
  return alarms.rl_alarms(options.replace(**{name: section}), 1e-4, 4.0)


def run(made, *steps):
  return [made.step(number, {**FINE, **one}) for number, one in enumerate(steps)]


@pytest.mark.parametrize('name', WRONG)
def test_an_alarm_warns_once_after_its_steps_in_a_row_and_once_when_it_is_over(name):
  bad = WRONG[name]
  found = run(watching(name, 'warn', 2), bad, {}, bad, bad, bad, {}, {})
  assert [one.metrics[f'watch/on/alarm={name}'] for one in found] == [0, 0, 0, 1, 1, 0, 0]
  assert [one.metrics['watch/on'] for one in found] == [0, 0, 0, 1, 1, 0, 0]
  lines = [(number, line) for number, one in enumerate(found) for line in one.lines]
  assert [number for number, _ in lines] == [3, 5]
  assert lines[0][1].startswith(f'alarm {name}: step 3: ')
  assert lines[0][1].endswith(', 2 steps in a row since step 2') and 'wanted' in lines[0][1]
  assert lines[1][1] == f'step 5: alarm {name} is off; it held since step 2'
  assert all(one.stop is None for one in found)


@pytest.mark.parametrize('name', WRONG)
def test_an_alarm_stops_after_its_steps_in_a_row(name):
  bad = WRONG[name]
  found = run(watching(name, 'stop', 2), bad, bad)
  assert found[0].stop is None and found[0].lines == found[1].lines == ()
  assert (found[1].stop.alarm, found[1].stop.since) == (name, 0)


@pytest.mark.parametrize('name', WRONG)
def test_an_alarm_that_is_off_says_nothing(name):
  (found,) = run(watching(name, 'off', 1), WRONG[name])
  assert found == alarms.Outcome(found.metrics, (), None)
  assert f'watch/on/alarm={name}' not in found.metrics


def test_metrics_of_alarms_are_in_the_dictionary():
  (found,) = run(watching('gap', 'warn', 1), {})
  assert len(found.metrics) == 8
  for name in (*found.metrics, 'server/speed/server=1.0'):
    names.lookup(name)


def test_a_step_without_the_metric_neither_continues_nor_breaks_a_row():
  made, bad = watching('entropy', 'stop', 2), {'policy/entropy': 0.01}
  assert made.step(0, bad).stop is None
  assert made.step(1, {}).stop is None
  assert made.step(2, bad).stop.text.endswith('2 steps in a row since step 0')


def resumed(action, steps, *records):
  """The alarms of a run that starts again with these records of metrics.jsonl."""
  made = watching('format', action, steps)
  made.replay([{'step': number, **FINE, **one} for number, one in enumerate(records)])
  return made


def test_a_run_that_starts_again_continues_its_rows():
  bad = WRONG['format']
  found = resumed('stop', 3, {}, bad, bad).step(3, {**FINE, **bad})
  assert found.stop.text.endswith('3 steps in a row since step 1')
  assert resumed('stop', 3, {}, bad, bad).step(3, FINE).stop is None  # it no longer holds
  assert resumed('warn', 2, bad, bad).step(2, {**FINE, **bad}).lines == ()  # told before


def test_a_run_that_an_alarm_has_stopped_is_stopped_again_only_after_as_many_new_steps():
  bad = {**FINE, **WRONG['format']}
  made = resumed('stop', 2, bad, bad)
  assert made.step(2, bad).stop is None
  assert made.step(3, bad).stop.text.endswith('2 steps in a row since step 2')


def test_a_value_that_was_written_as_null_was_not_finite():
  made = watching('nonfinite', 'stop', 2)
  made.replay([{'step': 0, **FINE, 'policy/loss': None}])
  assert made.step(1, {**FINE, 'policy/loss': math.nan}).stop is not None


@pytest.mark.parametrize(
  ('name', 'value'), [('policy/loss', math.nan), ('optim/grad_norm', math.inf)]
)
def test_a_loss_or_a_gradient_that_is_not_finite_counts_too(name, value):
  (found,) = run(watching('nonfinite', 'stop', 1), {name: value})
  assert found.stop.text == f'step 0: {name} is {value}, wanted a finite number'


def test_sft_has_the_alarm_of_updates_that_are_not_finite_alone():
  made = alarms.sft_alarms(alarms.SFTWatchOptions.published())
  found = [made.step(number, {'sft/loss': math.nan}) for number in range(3)]
  assert [one.metrics for one in found][1:] == [
    {'watch/on': 0.0, 'watch/on/alarm=nonfinite': 0.0},
    {'watch/on': 1.0, 'watch/on/alarm=nonfinite': 1.0},
  ]


# The gap


def gap_of(metrics):
  return alarms.rl_alarms(WatchOptions.published(), 1e-4, 4.0).step(3, metrics).stop


def test_by_default_a_gap_above_the_limit_ends_the_run_at_once_with_its_number():
  assert gap_of({'policy/gap_current_mean': 9e-5}) is None
  stop = gap_of({'policy/gap_current_mean': 2e-4})
  assert not alarms.saves_on(stop, [], 2)  # the step trained on tokens of other weights
  error = alarms.error(stop, [])
  assert isinstance(error, SyncError)
  assert str(error).startswith(
    'step 3: mean |log-prob(learner) - log-prob(server)| is 2.00e-04, wanted at most 1.00e-04, '
    'that is rollout.gap_limit=0.0001 and rollout.gap_ratio=4 times 0.00e+00, what rounding costs'
  )
  assert 'see metrics.jsonl (policy/gap_*)' in str(error) and 'dtype' in str(error)


def test_what_rounding_costs_the_learner_itself_is_allowed_as_often_as_the_recipe_says():
  # 1e-4 + 4 * .02
  assert gap_of({'policy/gap_current_mean': 0.08, 'policy/rounding': 0.02}) is None
  stop = gap_of({'policy/gap_current_mean': 0.081, 'policy/rounding': 0.02})
  assert 'at most 8.01e-02' in stop.text and 'gap_ratio=4 times 2.00e-02' in stop.text


def test_a_gap_that_is_no_number_ends_the_run():
  assert 'is nan' in gap_of({'policy/gap_current_mean': math.nan}).text


def test_tokens_of_an_older_version_may_differ_and_those_of_the_current_one_may_not():
  old = {'policy/gap_mean': 1.0, 'staleness/max': 2.0}
  assert gap_of(old) is None  # no token of the current version
  assert gap_of({**old, 'policy/gap_current_mean': 1.0}) is not None


# Slow servers


def speeds(*values):
  return {f'server/speed/server={index}': value for index, value in enumerate(values)}


def slow(*steps):
  made = watching('slow_server', 'stop', 2)
  return [made.step(number, one).stop for number, one in enumerate(steps)][-1]


def test_a_server_is_compared_with_the_median_of_the_others():
  text = slow(speeds(100.0, 45.0, 90.0, 400.0), speeds(100.0, 45.0, 90.0, 400.0)).text
  assert text.startswith(
    'step 1: server 1 samples 45 tokens/s in a request, the others 100, wanted at least 0.5 of that'
  )
  assert slow(speeds(100.0, 50.0, 90.0, 400.0), speeds(100.0, 50.0, 90.0, 400.0)) is None


def test_a_row_is_of_one_server_and_a_lone_server_has_no_siblings():
  assert slow(speeds(10.0, 100.0), speeds(100.0, 10.0)) is None
  assert slow(speeds(1.0), speeds(1.0)) is None


def test_another_server_that_becomes_slow_is_told():
  made = watching('slow_server', 'warn', 1)
  lines = [made.step(n, one).lines for n, one in enumerate((speeds(10, 100), speeds(100, 10)))]
  assert [one.split(' samples')[0] for one in lines[1]] == [
    'step 1: alarm slow_server is off; it held since step 0',
    'alarm slow_server: step 1: server 1',
  ]


# What a stop leaves, and what it says


@pytest.mark.parametrize(
  ('alarm', 'records', 'keep', 'saves'),
  [
    ('entropy', [], 2, True),  # nothing is there to go back to
    ('entropy', [5], 2, True),
    ('entropy', [5, 10], 2, True),  # 10 is from before step 12 and stays
    ('entropy', [10, 15], 2, False),  # one more would remove 10
    ('entropy', [10, 15], 3, True),
    ('entropy', [10], 1, False),
    ('entropy', [12, 15], 2, True),  # the policy of step 12 is that of record 12
    ('nonfinite', [10, 15], 2, True),
    ('slow_server', [10], 1, True),
    ('gap', [], 2, False),
  ],
)
def test_a_stop_is_recorded_unless_that_removes_the_last_record_from_before_it(
  alarm, records, keep, saves
):
  assert alarms.saves_on(Stop(alarm, 12, 'step 16: …'), records, keep) is saves


@pytest.mark.parametrize(
  ('alarm', 'records', 'says'),
  [
    ('entropy', [10, 17], 'before step 12, remove the folders after checkpoints/00000010, then'),
    ('entropy', [10], 'continues from checkpoints/00000010, from before the first of them'),
    ('entropy', [17], 'no record is left from before step 12: start again in another run.folder'),
    ('nonfinite', [10, 17], 'the same command continues from here'),
  ],
)
def test_the_line_says_where_to_go_back_to_and_which_knob_goes_on(alarm, records, says):
  error = alarms.error(Stop(alarm, 12, 'step 16: got and wanted'), records)
  assert isinstance(error, AlarmError)
  assert str(error).startswith('step 16: got and wanted: ') and '\n' not in str(error)
  assert says in str(error)
  assert str(error).endswith(f'--config.watch.{alarm}.action=warn goes on regardless')


def test_every_alarm_has_its_advice():
  assert set(alarms._ADVICE) == set(WRONG)

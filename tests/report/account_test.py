"""How a run went: a paragraph whose every figure is out of the run's own files."""

import dataclasses

from paravt_jax.report import account
from paravt_jax.report.run import Evaluation, Run

BEFORE = Evaluation(380, 0.5, (0.45, 0.547), 0.99, 1.234, {}, {})
AFTER = Evaluation(380, 0.895, (0.857, 0.929), 0.993, 1.46, {}, {})
CALM = {'server/lost': 0.0, 'server/restarts': 0.0, 'watch/on': 0.0}


def step(number, **metrics):
  times = {'time/step': 4.0, 'time/learn': 2.0, 'time/rollout': 1.5, 'time/sync': 0.5}
  return {'step': number, **times, **CALM, **metrics}


def run(*metrics, **changes):
  made = Run(
    'r',
    {'rollout': {'steps': 3}},
    '',
    metrics,
    (),
    {'rl': 7.8, 'world': 6.3},
    None,
    None,
    None,
    {},
    (),
  )
  return dataclasses.replace(made, **changes)


def on(alarm):
  return {'watch/on': 1.0, f'watch/on/alarm={alarm}': 1.0}


def test_a_finished_run_is_told_from_its_steps_to_where_time_went():
  made = run(step(0), step(1), step(2), before=BEFORE, after=AFTER, gain=(0.395, 0.342, 0.447))
  assert account.paragraph(made) == (
    '3 of 3 steps took 7.8 minutes of the 14.1 that the whole run took. Accuracy: 50.0 % '
    '[45.0, 54.7] before, 89.5 % [85.7, 92.9] after, +39.5 points [+34.2, +44.7] on the same '
    'questions. Format compliance: 99.0 % before, 99.3 % after. Executed calls per episode: 1.23 '
    'before, 1.46 after. Groups lost: none. No server was lost. No alarm was raised. A step took '
    '4.0 s on average (learn 50.0 %, rollout 37.5 %, sync 12.5 %).'
  )


def test_lost_groups_are_stated_by_reason_and_restarts_add_up_when_the_run_starts_again():
  made = run(
    step(0, **{'groups/dropped/reason=media': 2.0, 'server/lost': 2.0, 'server/restarts': 1.0}),
    step(1, **{'groups/dropped/reason=judge': 1.0, 'server/lost': 2.0, 'server/restarts': 1.0}),
    step(2, **{'groups/dropped/reason=media': 1.0, 'server/lost': 1.0}),  # started again
  )
  said = account.paragraph(made)
  assert 'Groups lost: 4 (media 3, judge 1).' in said
  assert 'Servers lost: 3, started again: 1.' in said
  assert 'It was not evaluated both before and after training.' in said


def test_an_alarm_is_a_line_with_its_meaning_and_its_steps():
  rows = [step(n, **(on('entropy') if n in (3, 4, 5, 9) else {})) for n in range(11)]
  rows[2] |= on('calls')
  made = run(*rows, sft_metrics=({'step': 7, **on('nonfinite')},))
  assert account.alarms(made) == [
    'calls (too few calls per episode) at step 2',
    'entropy (the entropy of the policy was too low) at steps 3–5, 9',
    'cold start, nonfinite (updates were not finite) at step 7',
  ]
  assert f'Alarms: {"; ".join(account.alarms(made))}.' in account.paragraph(made)


def test_a_run_without_files_or_without_alarms_in_them_claims_nothing():
  assert account.paragraph(run(minutes={})) == (
    'It was not evaluated both before and after training.'
  )
  old = {'step': 0, 'time/step': 4.0}
  said = account.paragraph(run(old))
  assert 'alarm' not in said and 'erver' not in said


def test_a_cold_start_is_told_from_its_metrics():
  metrics = [
    {
      'step': step,
      'sft/loss': 4.0 - step / 10,
      'sft/accuracy': step / 20,
      'watch/on': 0.0,
      'data/skipped/reason=too_long': 2.0,
      'time/step': 2.0,
      'time/learn': 1.5,
      'time/data': 0.5,
    }
    for step in range(20)
  ]
  assert account.cold_start(metrics, 20) == (
    'Cold start: 20 of 20 steps are done. Loss: 3.550 in the first 10 steps, 2.550 in the last. '
    'Token accuracy: 0.225 in the first 10 steps, 0.725 in the last. Rows left out: too_long 2. '
    'No alarm was raised. A step took 2.0 s on average (learn 75.0 %, data 25.0 %).'
  )
  assert account.cold_start([], 20) == 'Cold start: 0 of 20 steps are done. No row was left out.'

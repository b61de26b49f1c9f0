"""The line of a step: what it states, and where it goes."""

import sys

import pytest

from paravt_jax.errors import ParavtError
from paravt_jax.orchestrator import step_log
from paravt_jax.orchestrator.alarms import Outcome, Stop

STEP = {
  'groups/accepted': 8.0,
  'episodes/kept': 64.0,
  'policy/tokens': 2345.0,
  'reward/total': 1.834,
  'accuracy': 0.72,
  'format_compliance': 0.98,
  'calls/executed': 1.38,
  'time/step': 3.7,
  'time/rollout': 2.9,
  'time/learn': 0.6,
  'time/sync': 0.15,
  'time/other': 0.04,
}
LINE = (
  'step 7 (8 of 120 done): 8 groups, 64 episodes, 2,345 tokens; reward 1.83, accuracy 0.72, format 0.98, '
  'calls 1.38; 3.7 s (rollout 2.9, learn 0.6, sync 0.1); the learner waited 2.9 s for rollouts'
)
CALM = Outcome({}, (), None)


def test_a_line_says_what_a_step_did_and_who_waited():
  assert step_log.describe(7, 120, False, STEP) == LINE
  assert step_log.describe(7, 120, True, STEP) == f'{LINE}, the servers 0.8 s for the learner'


def test_what_was_lost_is_stated_and_what_is_unknown_is_left_out():
  lost = {'groups/dropped/reason=media': 2.0, 'groups/dropped/reason=judge': 1.0}
  line = step_log.describe(0, 3, False, {'groups/accepted': 4.0, 'optim/skipped': 1.0, **lost})
  assert line == 'step 0 (1 of 3 done): 4 groups; groups lost: 3, updates skipped as not finite: 1'


def test_lines_are_appended_to_the_file_with_their_time_and_those_of_alarms(tmp_path, capsys):
  log = step_log.StepLog(tmp_path / 'steps.log', 120, servers_wait=False)
  log.write(7, STEP, Outcome({}, ('alarm calls: …',), Stop('gap', 7, '…')))
  step_log.StepLog(tmp_path / 'steps.log', 120, servers_wait=False).write(
    8, STEP, CALM
  )  # a run that starts again
  lines = (tmp_path / 'steps.log').read_text().splitlines()
  assert [line.split(' ', 2)[2] for line in lines] == [
    LINE,
    'alarm calls: …',
    'alarm gap stops the run',
    LINE.replace('step 7 (8', 'step 8 (9'),
  ]
  assert capsys.readouterr().err.splitlines() == [
    LINE,
    'alarm calls: …',
    LINE.replace('step 7 (8', 'step 8 (9'),
  ]


def test_on_a_terminal_the_bar_stands_for_the_line_and_alarms_are_printed(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  step_log.StepLog(tmp_path / 'steps.log', 120, servers_wait=False).write(7, STEP, CALM)
  step_log.StepLog(tmp_path / 'steps.log', 120, servers_wait=False).write(
    8, STEP, Outcome({}, ('alarm',), None)
  )
  assert capsys.readouterr().err == 'alarm\n'


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'steps.log').mkdir()
  with pytest.raises(ParavtError, match='could not write step 7'):
    step_log.StepLog(tmp_path / 'steps.log', 120, servers_wait=False).write(7, STEP, CALM)


def test_a_step_of_a_cold_start_states_its_loss_and_its_wait_for_data(tmp_path, capsys):
  found = {'sft/documents': 18.0, 'sft/tokens': 1388.0, 'sft/loss': 0.1234, 'sft/accuracy': 0.97}
  times = {'time/data': 0.25, 'time/learn': 0.5, 'time/step': 0.75}
  log = step_log.StepLog(tmp_path / 'steps.log', 600, servers_wait=False, shown=False)
  log.write(0, {**found, **times}, CALM)
  assert (tmp_path / 'steps.log').read_text().split(' ', 2)[2] == (
    'step 0 (1 of 600 done): 18 documents, 1,388 tokens; loss 0.12, token accuracy 0.97; '
    '0.8 s (learn 0.5, data 0.2); the learner waited 0.2 s for data\n'
  )
  assert capsys.readouterr().err == ''  # the progress bar has it

"""Before and after: every question at every budget once per run, and the closing table."""

import asyncio
import dataclasses
import types

import pytest

from configs import para_grpo
from experiments import evaluation, runs
from paravt_jax.errors import RolloutError
from paravt_jax.eval.run import EvalOptions, Record
from paravt_jax.report import episodes
from paravt_jax.types import Episode, ResultStatus, Scored, StopReason, Task, ToolCall, ToolResult, Trajectory, Turn

TASK = Task('t', ('v.mp4',), 'q?', 'oe', 'red', facts={'windows': 1})


def record(name='t', budget=4, accuracy=1.0, calls=1, windows=1, compliant=1.0):
  results = (ToolResult(ToolCall('crop_video', {}), ResultStatus.EXECUTED, 'red'),) * calls
  task = dataclasses.replace(TASK, id=name, facts={'windows': windows})
  episode = Episode(task, 0, budget, (0.0,), 60.0, (Turn('', results),), Trajectory((), StopReason.ANSWER), StopReason.ANSWER)
  return Record(task, budget, Scored(episode, accuracy, {'accuracy': accuracy, 'compliant': compliant}))


@pytest.fixture
def config():
  made = para_grpo.get_config()
  made.eval.budgets = (4, 16)
  return made


@pytest.fixture
def asked(monkeypatch):
  """Each call of the evaluation, as (agent, budget, question ids, options); its answers are right at K=16 only."""
  log = []

  async def evaluate(agent, tasks, reward, options: EvalOptions, on_record):
    log.append((agent, options.budgets[0], [task.id for task in tasks], options))
    records = [record(task.id, options.budgets[0], float(options.budgets[0] == 16), compliant=float(agent == 'greedy')) for task in tasks]
    for one in records:
      on_record(one)
    return records, {}
  monkeypatch.setattr(evaluation.evaluations, 'evaluate', evaluate)
  return log


def run_phase(name, config, folder, count=6):
  server = types.SimpleNamespace(greedy='greedy', sampling='sampling', check=lambda: None)
  questions = [dataclasses.replace(TASK, id=f'q{i}') for i in range(count)]
  with runs.Interrupts() as interrupts:
    asyncio.run(evaluation.phase(name, config, folder, server, questions, interrupts))


def test_greedy_at_every_budget_sampled_once_per_question(config, asked, tmp_path):
  folder = runs.RunFolder(tmp_path, {})
  run_phase('before', config, folder)
  greedy = [(budget, names) for agent, budget, names, _ in asked if agent == 'greedy']
  assert greedy == [(4, [f'q{i}' for i in range(6)]), (16, [f'q{i}' for i in range(6)])]
  drawn = [name for agent, _, names, _ in asked if agent == 'sampling' for name in names]
  assert sorted(drawn) == [f'q{i}' for i in range(6)]
  found = folder.result('before')
  assert (found['episodes'], found['accuracy'], found['accuracy_by_k']) == (12, 0.5, {'4': 0.0, '16': 1.0})
  assert (found['format_compliance'], found['greedy_format_compliance'], found['sampled_episodes']) == (0.0, 1.0, 6)
  assert len(list(episodes.read(tmp_path / 'episodes' / 'before.jsonl'))) == 12


def test_a_phase_that_is_done_is_not_run_again(config, asked, tmp_path):
  folder = runs.RunFolder(tmp_path, {})
  run_phase('before', config, folder)
  asked.clear()
  run_phase('before', config, folder)
  assert asked == []
  run_phase('after', config, folder)
  assert asked != []


def test_without_questions_there_is_no_phase_and_the_table_says_why(config, asked, tmp_path):
  folder = runs.RunFolder(tmp_path, {})
  run_phase('before', config, folder, count=0)
  assert asked == [] and folder.result('before') is None
  assert evaluation.table(evaluation.summary(config, folder)) == 'no evaluation: eval.questions is 0, or there are no held-out rows'


def test_the_summary_and_its_table(config, asked, tmp_path):
  folder = runs.RunFolder(tmp_path, {})
  run_phase('before', config, folder)
  run_phase('after', config, folder)
  found = evaluation.summary(config, folder)
  assert (found['name'], found['scale'], found['steps']) == ('para_grpo', 'tiny', config.rollout.steps)
  assert (found['gain']['difference'], found['gain']['pairs']) == (0.0, 12)
  lines = evaluation.table(found).splitlines()
  assert lines[2].split() == ['accuracy', '(greedy)', '0.500', '[0.500,', '0.500]', '0.500', '[0.500,', '0.500]']
  assert [line.split() for line in lines if 'K=16' in line] == [['at', 'K=16', '1.000', '1.000'], ['at', 'K=16', '1.000', '1.000']]
  assert 'gain in accuracy +0.000' in lines[-2] and lines[-1].startswith('minutes: eval_before')
  assert not any('errors' in line for line in lines)
  found['before'].pop('calls_other')  # written before such calls ran
  found['after']['calls_other'] = 1.25
  (other,) = [line for line in evaluation.table(found).splitlines() if 'of other forms' in line]
  assert other.split() == ['calls', 'of', 'other', 'forms', 'per', 'episode', '-', '1.250']
  found['after'].update(errors={'server': 2, 'call_timeout': 1}, accuracy_answered=0.75)
  rows = [line.split() for line in evaluation.table(found).splitlines()]
  assert ['errors,', 'which', 'earn', 'nothing', '0', '3'] in rows and ['accuracy', 'of', 'those', 'answered', '0.500', '0.750'] in rows


def test_calls_are_told_apart_by_the_windows_that_a_question_needs():
  records = [record(calls=1, windows=1), record(calls=2, windows=2), record(calls=1, windows=2), Record(TASK, 4, None, 'server')]
  assert evaluation.by_windows(records) == {'1': 1.0, '2': 1.5}


def test_work_is_left_when_our_server_has_ended_or_someone_presses_ctrl_c():
  def dead():
    raise RolloutError('the rollout server ended')

  async def forever():
    await asyncio.sleep(60)
  with runs.Interrupts() as interrupts, pytest.raises(RolloutError, match='the rollout server ended'):
    asyncio.run(evaluation.unless_stopped(forever(), interrupts, types.SimpleNamespace(check=dead)))
  with runs.Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
    interrupts.asked = True
    asyncio.run(evaluation.unless_stopped(forever(), interrupts, types.SimpleNamespace(check=lambda: None)))
  with runs.Interrupts() as interrupts:
    assert asyncio.run(evaluation.unless_stopped(asyncio.sleep(0, 5), interrupts, types.SimpleNamespace(check=lambda: None))) == 5

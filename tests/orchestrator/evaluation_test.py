"""Before and after: two ordinary results folders, asked once per run, and the closing table."""

import asyncio
import dataclasses
import json
import time
import types

import pytest

from configs import para_grpo
from experiments import eval as entry
from paravt_jax.errors import RolloutError
from paravt_jax.eval import results
from paravt_jax.orchestrator import evaluation, rollouts, run_folder
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.sampler import Sampler
from paravt_jax.rollout.subagent import Subagents
from paravt_jax.testing.scripted import Refuse
from paravt_jax.types import Task
from tests.recipes import typed
from tests.rollout.stack import (
  AGENT,
  CONTEXT,
  LONG,
  SUBAGENT,
  TOK,
  Frames,
  call,
  is_subagent,
  sampled,
  turn_of,
  with_stack,
)

QUESTIONS = 6
KINDS = ('oe', 'mcq')


@pytest.fixture(autouse=True)
def pages(monkeypatch):
  """The results folders whose page was asked for; none is written, for there are no videos."""
  asked = []
  report = lambda video, options, folder: asked.append(folder.name)
  monkeypatch.setattr(evaluation.results_folders, 'report', report)
  return asked


def recipe(**changes):
  return typed(
    para_grpo.get_config(), **{'eval__budgets': (4, 16), 'eval__concurrent': 1, **changes}
  )


def question(number, kind='oe'):
  """Question `number`, which needs one window or two."""
  choice = {'question_type': 'mcq', 'answer': 'A', 'options': ('red', 'blue')}
  task = Task(f'q{number}', ('v.mp4',), f'q{number}?', 'oe', 'red')
  task = dataclasses.replace(task, facts={'windows': 1 + number % 2})
  return dataclasses.replace(task, **choice) if kind == 'mcq' else task


def asked_of(request):
  """(question, K, whether greedily): what the first request of an episode asks; else None."""
  if is_subagent(request) or turn_of(request) > 0:
    return None
  text = TOK.decode(request.input_ids)
  name = next(f'q{number}' for number in range(QUESTIONS) if f'q{number}?' in text)
  return name, len(request.images), request.sampling['temperature'] == 0.0


def policy(request):
  """Greedily: calls once per window, then is right at K=16 only. Sampled: its form is broken."""
  if is_subagent(request):
    return sampled('41 red')
  if request.sampling['temperature'] > 0:
    return sampled('<answer>red</answer>')
  if turn_of(request) == 0:
    odd = any(f'q{number}?' in TOK.decode(request.input_ids) for number in (1, 3, 5))
    return sampled(LONG + call(39, 43) + (call(10, 14) if odd else ''))
  many = len(request.images) >= 16
  return sampled(f'{LONG}<answer>{"red" if many else "blue"}</answer>')


def stop_at(number):
  """Ctrl-C at that question, while it is under way."""

  def hear(interrupts, count):
    if count == number:
      interrupts.asked = True
      time.sleep(0.5)  # longer than between two looks at it

  return hear


def run_phase(name, asked, folder, script=policy, *, questions=None, version=0, hear=None):
  """What was asked, as `asked_of`, until the phase's end; or until KeyboardInterrupt, which
  `hear(interrupts, how many were asked)` may lead to.
  """
  tasks = [question(number) for number in range(QUESTIONS)] if questions is None else questions
  count = 0

  def heard(request):
    nonlocal count
    if asked_of(request) is not None and hear is not None:
      count += 1
      hear(interrupts, count)
    return script(request)

  async def use(stack):
    hot = Sampler(stack.client, TOK, dataclasses.replace(CONTEXT, temperature=1.0))
    zero = Sampler(stack.client, TOK, dataclasses.replace(CONTEXT, temperature=0.0))
    sampling, greedy = (
      Agent(one, Subagents(one, stack.frames, SUBAGENT), stack.frames, AGENT) for one in (hot, zero)
    )
    server = types.SimpleNamespace(greedy=greedy, sampling=sampling, check=lambda: None)
    try:
      await evaluation.phase(name, asked, folder, server, tasks, version, interrupts)
    except KeyboardInterrupt:
      return True
    return False

  with run_folder.Interrupts() as interrupts:
    stopped, requests = with_stack(heard, use, frames=Frames(duration=64.0))
  found = [asked_of(request) for request in requests]
  return [one for one in found if one is not None], stopped


@pytest.fixture
def folder(tmp_path):
  return run_folder.RunFolder(tmp_path / 'run', {})


def keys(folder, name='before'):
  """The keys of a results folder's samples, in the order of writing."""
  return [one.key for one in results.read(folder.path / f'eval_{name}' / 'results.jsonl')]


def test_greedy_at_every_budget_sampled_once_per_question(folder, pages):
  asked, _ = run_phase('before', recipe(), folder)
  greedy = [(name, k) for name, k, zero in asked if zero]
  assert greedy == [(f'q{n}', k) for k in (4, 16) for n in range(QUESTIONS)]
  drawn = {name: k for name, k, zero in asked if not zero}
  assert sorted(drawn) == [f'q{n}' for n in range(QUESTIONS)] and {*drawn.values()} == {4, 16}
  found = folder.result('before')
  assert (found['episodes'], found['accuracy']) == (12, 0.5)
  assert found['accuracy_by_k'] == {'4': 0.0, '16': 1.0}
  assert found['calls_by_k'] == {'4': 1.5, '16': 1.5} and found['calls_per_episode'] == 1.5
  assert (found['format_compliance'], found['greedy_format_compliance']) == (0.0, 1.0)
  assert (found['sampled_episodes'], found['sampled_accuracy']) == (6, 1.0)
  assert (found['errors'], found['error_rate'], found['accuracy_answered']) == ({}, 0.0, 0.5)
  assert pages == ['eval_before']


def test_the_results_folder_is_one_of_experiments_eval(folder):
  run_phase('before', recipe(), folder, version=7)
  path = folder.path / 'eval_before'
  plan = results.read_plan(path)
  assert list(plan.benchmarks) == ['heldout', 'sampled'] and plan.shard == (1, 1)
  assert plan.common['model'] == {'kind': 'run', 'run': 'run', 'version': 7}
  assert plan.benchmarks['heldout']['keys'] == keys(folder)[:12]
  assert plan.benchmarks['sampled']['keys'] == keys(folder)[12:]
  summary = json.loads((path / 'summary.json').read_text())
  assert summary['heldout']['score'] == 0.5 and summary['sampled']['missing'] == 0
  assert '| heldout |' in (path / 'table.md').read_text()


def test_a_phase_that_is_done_is_not_run_again(folder):
  run_phase('before', recipe(), folder)
  assert run_phase('before', recipe(), folder) == ([], False)
  assert len(run_phase('after', recipe(), folder)[0]) == 18


def test_without_questions_there_is_no_phase_and_the_table_says_why(folder):
  assert run_phase('before', recipe(), folder, questions=[]) == ([], False)
  assert folder.result('before') is None and not (folder.path / 'eval_before').exists()
  assert (
    evaluation.table(evaluation.summary(recipe(), folder))
    == 'no evaluation: eval.questions is 0, or there are no held-out rows'
  )


# Interrupted


def test_an_interrupted_evaluation_goes_on_per_sample_and_asks_nothing_twice(folder):
  first, stopped = run_phase('before', recipe(), folder, hear=stop_at(9))
  done = keys(folder)
  assert stopped and len(done) == 8 and len(first) == 9 and folder.result('before') is None
  assert not (folder.path / 'eval_before' / 'summary.json').exists()
  second, stopped = run_phase('before', recipe(), folder)
  assert not stopped and len(second) == 18 - len(done)
  answered = {(name.split('/')[1], int(name.rpartition('=')[2])) for name in done}
  assert answered.isdisjoint((name, k) for name, k, zero in second if zero)
  assert keys(folder)[: len(done)] == done and len({*keys(folder)}) == len(keys(folder)) == 18
  other = run_folder.RunFolder(folder.path.parent / 'other', {})
  run_phase('before', recipe(), other)
  assert folder.result('before') == other.result('before')  # as if nothing had happened


def test_a_line_that_a_kill_cut_in_half_is_asked_again_and_no_other(folder):
  run_phase('before', recipe(), folder, hear=stop_at(6))
  path = folder.path / 'eval_before' / 'results.jsonl'
  whole = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(whole[:3]) + whole[3][:40])
  second, _ = run_phase('before', recipe(), folder)
  assert [one[:2] for one in second[:2]] == [('q3', 4), ('q4', 4)] and len(second) == 15
  assert path.read_bytes().startswith(b''.join(whole[:3])) and len({*keys(folder)}) == 18


def test_errors_of_an_interrupted_evaluation_are_asked_again(folder):
  def failing(request):
    return Refuse(500, 'overloaded') if 'q2?' in TOK.decode(request.input_ids) else policy(request)

  run_phase('before', recipe(client__retries=0), folder, failing, hear=stop_at(9))
  path = folder.path / 'eval_before' / 'results.jsonl'
  assert 'heldout/q2/k=4' in [one.key for one in results.read(path) if one.status == results.ERROR]
  second, _ = run_phase('before', recipe(), folder)
  assert second[0] == ('q2', 4, True) and folder.result('before')['errors'] == {}


def test_an_evaluation_that_other_code_began_is_made_anew_with_a_line(folder, monkeypatch, capsys):
  monkeypatch.setattr(evaluation.evaluated_model, 'code', lambda: 'older')
  run_phase('before', recipe(), folder, hear=stop_at(6))
  assert keys(folder)
  capsys.readouterr()
  monkeypatch.setattr(evaluation.evaluated_model, 'code', lambda: 'newer')
  asked, _ = run_phase('before', recipe(), folder)
  place = folder.path / 'eval_before'
  assert capsys.readouterr().err.splitlines()[0] == (
    f'results folder {place} was begun with other settings (code: older -> newer); it is made again'
  )
  assert len(asked) == 18 == len(keys(folder))


def test_a_finished_evaluation_is_kept_whatever_the_code_became(folder, monkeypatch):
  run_phase('before', recipe(), folder)
  monkeypatch.setattr(evaluation.evaluated_model, 'code', lambda: 'newer')
  assert run_phase('before', recipe(), folder) == ([], False) and len(keys(folder)) == 18


# Numbers


def learned(request):
  """As `policy`, but right at every K."""
  reply = policy(request)
  done = not is_subagent(request) and turn_of(request) == 1
  return sampled(f'{LONG}<answer>red</answer>') if done else reply


def test_the_summary_and_its_table(folder):
  run_phase('before', recipe(), folder)
  run_phase('after', recipe(), folder)
  found = evaluation.summary(recipe(), folder)
  assert (found['name'], found['scale'], found['steps']) == ('para_grpo', 'tiny', 120)
  assert (found['gain']['difference'], found['gain']['pairs']) == (0.0, 12)
  lines = evaluation.table(found).splitlines()
  interval = ['[0.500,', '0.500]']
  assert lines[2].split() == ['accuracy', '(greedy)', '0.500', *interval, '0.500', *interval]
  assert [line.split() for line in lines if 'K=16' in line] == [
    ['at', 'K=16', '1.000', '1.000'],
    ['at', 'K=16', '1.500', '1.500'],
  ]
  assert [line.split() for line in lines if 'window' in line] == [
    ['1-window', 'questions', '1.000', '1.000'],
    ['2-window', 'questions', '2.000', '2.000'],
  ]
  assert 'gain in accuracy +0.000' in lines[-2] and lines[-1].startswith('minutes: eval_before')
  assert not any('errors' in line or 'another form' in line for line in lines)


def test_errors_have_rows_of_their_own_when_there_are_some(folder):
  def failing(request):
    return Refuse(500, 'overloaded') if 'q2?' in TOK.decode(request.input_ids) else policy(request)

  run_phase('before', recipe(), folder)
  run_phase('after', recipe(), folder, failing)
  after = folder.result('after')
  assert after['errors'] == {'server': 2} and after['error_rate'] == pytest.approx(1 / 6)
  assert (after['accuracy'], after['accuracy_answered']) == (pytest.approx(5 / 12), 0.5)
  found = evaluation.summary(recipe(), folder)
  assert (found['gain']['pairs'], found['gain']['unpaired']) == (10, 2)
  rows = [line.split() for line in evaluation.table(found).splitlines()]
  assert ['errors,', 'which', 'earn', 'nothing', '0', '2'] in rows
  assert ['accuracy', 'of', 'those', 'answered', '0.500', '0.500'] in rows


def test_calls_of_another_form_have_a_row_when_there_are_some(folder):
  def loose(request):
    if is_subagent(request) or turn_of(request) > 0 or request.sampling['temperature'] > 0:
      return policy(request)
    return sampled(LONG + call(39, 43).replace('<tool_call>{', '<tool_call>\n```json\n{'))

  run_phase('before', recipe(), folder)
  run_phase('after', recipe(), folder, loose)
  others = [folder.result(name)['calls_other'] for name in ('before', 'after')]
  rows = [
    line.split() for line in evaluation.table(evaluation.summary(recipe(), folder)).splitlines()
  ]
  assert others == [0.0, 1.0]
  assert ['calls', 'of', 'another', 'form', '0.000', '1.000'] in rows


def test_one_budget_and_one_kind_of_question_keep_their_rows(folder):
  asked = recipe(eval__budgets=(16,))
  same = [question(number) for number in (1, 3)]
  run_phase('before', asked, folder, questions=same)
  run_phase('after', asked, folder, questions=same)
  found = folder.result('before')
  assert found['accuracy_by_k'] == {'16': 1.0} and found['calls_by_k'] == {'16': 2.0}
  assert found['accuracy_by_type'] == {'oe': 1.0} and found['calls_by_windows'] == {'2': 2.0}
  assert '  at K=16' in evaluation.table(evaluation.summary(asked, folder))


def test_accuracy_is_told_apart_by_the_kind_of_question(folder):
  mixed = [question(number, KINDS[number % 2]) for number in range(4)]
  run_phase('before', recipe(eval__budgets=(16,)), folder, questions=mixed)
  assert folder.result('before')['accuracy_by_type'] == {'mcq': 0.0, 'oe': 1.0}


def test_the_comparison_of_both_folders_is_the_runs_own_gain(folder, capsys):
  run_phase('before', recipe(), folder)
  run_phase('after', recipe(), folder, learned, version=4)
  gain = evaluation.summary(recipe(), folder)['gain']
  assert (gain['difference'], gain['pairs'], gain['unpaired']) == (0.5, 12, 0)
  capsys.readouterr()
  places = [str(folder.path / f'eval_{name}') for name in ('before', 'after')]
  assert entry.command('--compare', places) == 0
  file = folder.path / 'eval_after' / 'compare_eval_before.json'
  told = json.loads(file.read_text())
  assert told['settings'] == ['model.version: 0 -> 4']
  assert {name: told['benchmarks']['heldout'][name] for name in gain} == gain
  assert told['benchmarks']['sampled']['difference'] == 0.0
  out = capsys.readouterr().out
  assert 'settings that differ: model.version: 0 -> 4' in out
  assert out.splitlines()[-1] == str(file)


def test_a_gain_needs_both_evaluations(folder):
  run_phase('before', recipe(), folder)
  assert evaluation.gain(recipe(), folder) is None


def test_work_is_left_when_our_server_has_ended_or_someone_presses_ctrl_c():
  def dead():
    raise RolloutError('the rollout server ended')

  async def forever():
    await asyncio.sleep(60)

  alive = types.SimpleNamespace(check=lambda: None)
  with (
    run_folder.Interrupts() as interrupts,
    pytest.raises(RolloutError, match='the rollout server ended'),
  ):
    asyncio.run(rollouts.unless_stopped(forever(), interrupts, types.SimpleNamespace(check=dead)))
  with run_folder.Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
    interrupts.asked = True
    asyncio.run(rollouts.unless_stopped(forever(), interrupts, alive))
  with run_folder.Interrupts() as interrupts:
    assert asyncio.run(rollouts.unless_stopped(asyncio.sleep(0, 5), interrupts, alive)) == 5

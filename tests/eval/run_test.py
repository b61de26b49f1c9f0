"""Questions are put by the training loop with forced budgets; an error is an outcome of its own."""

import dataclasses
import re

import pytest

from paravt_jax.eval.run import EvalOptions, each
from paravt_jax.eval.subtitles import BROKEN
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rollout.groups import rewarder
from paravt_jax.testing.scripted import Refuse
from tests.rollout.stack import (
  CONTEXT,
  LONG,
  TASK,
  TOK,
  call,
  episode,
  is_subagent,
  sampled,
  turn_of,
  with_stack,
)

OPTIONS = EvalOptions(concurrency=4, seed=7, epoch=0)
REWARD = rewarder(dataclasses.replace(PUBLISHED, open_ended='exact', grounding_threshold=0.5), None)
GREEDY = dataclasses.replace(CONTEXT, temperature=0.0)
OPEN = dataclasses.replace(TASK, id='open', question='open?')
CHOICE = dataclasses.replace(
  TASK, id='choice', question='choice?', question_type='mcq', answer='B', options=('a', 'b')
)
WINDOW = dataclasses.replace(
  TASK, id='window', question='window?', question_type='tvg', answer='10,20'
)


def answering(**answers):
  """Calls once, then answers by question."""

  def script(request):
    text = TOK.decode(request.input_ids)
    if is_subagent(request):
      return sampled('41 red')
    if turn_of(request) == 0:
      return sampled(LONG + call(39, 43))
    answer = next(value for name, value in answers.items() if f'{name}?' in text)
    return sampled(f'{LONG}<answer>{answer}</answer>') if isinstance(answer, str) else answer

  return script


def run(script, tasks, budgets=(4, 64), context=GREEDY):
  """(a record of each task at each budget, in that order; the server's requests)."""
  found = {}

  def keep(record):
    found[record.task.id, record.budget] = record

  async def use(stack):
    pairs = [(task, budget) for task in tasks for budget in budgets]
    await each(stack.agent, pairs, lambda task: REWARD, OPTIONS, keep)

  requests = with_stack(script, use, context=context)[1]
  return [found[task.id, budget] for task in tasks for budget in budgets], requests


def right(records):
  """R_acc of each record; None after an error."""
  return [None if one.scored is None else one.scored.parts['accuracy'] for one in records]


def test_every_question_is_put_at_every_budget_greedily():
  records, requests = run(
    answering(open='the red', choice='B', window='[10, 17]'), [OPEN, CHOICE, WINDOW]
  )
  assert [record.scored.episode.budget for record in records] == [4, 64] * 3
  assert {request.sampling['temperature'] for request in requests} == {0.0}
  assert right(records) == [1.0] * 6
  assert {one.scored.parts['compliant'] for one in records} == {1.0}
  assert [one.scored.episode.executed for one in records] == [1] * 6


def test_open_answers_are_exact_and_grounding_has_a_threshold():
  records, _ = run(answering(open='red car', window='[10, 14]'), [OPEN, WINDOW])
  assert right(records) == [0.0] * 4


def test_deviation_18_evaluation_sends_the_very_requests_that_training_sends():
  """The release evaluated another system: raw crops instead of sub-agents, another resolution, no
  times.
  """
  script = answering(open='red')
  _, trained = episode(script, task=OPEN, budget=4, context=GREEDY)
  _, evaluated = run(script, [OPEN], (4,))
  assert len(trained) == 3
  strip = lambda requests: [{**request.body, 'rid': ''} for request in requests]
  assert strip(trained) == strip(evaluated)


def test_deviation_19_an_error_is_its_own_outcome_and_never_a_wrong_answer_silently():
  """The release scored API errors as wrong answers."""
  missing = dataclasses.replace(TASK, id='missing', videos=('missing.mp4',))
  records, _ = run(answering(open='red', choice=Refuse(500, 'overloaded')), [OPEN, CHOICE, missing])
  outcomes = [(record.reason, record.scored is None) for record in records[::2]]
  assert outcomes == [('', False), ('server', True), ('media_missing', True)]
  assert 'overloaded' in records[2].error and 'no such file' in records[4].error
  assert right(records) == [1.0, 1.0, None, None, None, None]


@pytest.mark.parametrize(
  ('reply', 'reason', 'accuracy'),
  [
    (Refuse(500, 'overloaded'), 'call_subagent_error', None),
    (sampled(''), '', 1.0),
    (sampled('41 red'), '', 1.0),
  ],
)
def test_deviation_19_a_server_that_failed_one_call_is_an_error_and_a_sub_agent_that_said_nothing_is_not(
  reply, reason, accuracy
):
  """The episode goes on without the call, but its answer says nothing about the model."""
  whole = answering(open='red')
  records, _ = run(lambda request: reply if is_subagent(request) else whole(request), [OPEN])
  assert [record.reason for record in records] == [reason] * 2
  assert right(records) == [accuracy] * 2
  assert all(('model' in one.error) is bool(reason) for one in records)


def test_a_question_whose_subtitle_file_gives_nothing_is_an_error_and_is_not_put():
  broken = dataclasses.replace(OPEN, facts={BROKEN: 'x.srt: got an empty file'})
  records, requests = run(answering(open='red'), [broken])
  assert [(record.reason, record.error) for record in records] == [
    ('subtitles', 'x.srt: got an empty file')
  ] * 2
  assert requests == []


def test_a_prompt_that_does_not_fit_says_how_long_it_is_and_what_to_change():
  context = dataclasses.replace(GREEDY, context=200)
  records, _ = run(answering(open='red'), [OPEN], context=context)
  assert [one.reason for one in records] == ['prompt_too_long'] * 2
  assert 'raise sampling.context' in records[0].error and 'K=64' in records[1].error
  short, long = (int(re.search(r'of (\d+) tokens', one.error)[1]) for one in records)
  assert 200 < short < long


def test_a_record_is_heard_with_the_frames_that_the_model_saw():
  records, _ = run(answering(open='red'), [OPEN])
  frames = lambda record: (
    len(record.scored.episode.trajectory.images)
    + len(record.scored.episode.results[0].subagent.images)
  )
  assert list(map(frames, records)) == [9, 69]


def test_what_a_record_costs_the_hearer_ends_the_evaluation():
  def refuse(record):
    raise OSError('no space')

  async def use(stack):
    await each(stack.agent, [(OPEN, 4), (OPEN, 64)], lambda task: REWARD, OPTIONS, refuse)

  with pytest.raises(OSError, match='no space'):
    with_stack(answering(open='red'), use, context=GREEDY)

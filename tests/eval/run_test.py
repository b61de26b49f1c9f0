"""Evaluation is the training loop with forced budgets; an error is an outcome of its own."""

import dataclasses
import json
import re

import pytest

from paravt_jax.eval.run import EvalOptions, Record, compare, evaluate, summarize
from paravt_jax.eval.subtitles import BROKEN
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rollout.groups import rewarder
from paravt_jax.testing.scripted import Refuse
from tests.rollout.crew import (
  CONTEXT,
  LONG,
  TASK,
  TOK,
  Frames,
  call,
  episode,
  is_subagent,
  sampled,
  turn_of,
  with_crew,
)

OPTIONS = EvalOptions(budgets=(4, 64), concurrency=4, seed=7, epoch=0)
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


def run(script, tasks, options=OPTIONS, **more):
  return with_crew(
    script, lambda crew: evaluate(crew.agent, tasks, REWARD, options), context=GREEDY, **more
  )


def test_every_question_is_put_at_every_budget_greedily_and_in_order():
  (records, summary), requests = run(
    answering(open='the red', choice='B', window='[10, 17]'), [OPEN, CHOICE, WINDOW]
  )
  assert [(record.task.id, record.budget) for record in records] == [
    ('open', 4),
    ('open', 64),
    ('choice', 4),
    ('choice', 64),
    ('window', 4),
    ('window', 64),
  ]
  assert [record.scored.episode.budget for record in records] == [4, 64] * 3
  assert {request.sampling['temperature'] for request in requests} == {0.0}
  assert (summary['episodes'], summary['accuracy'], summary['errors']) == (6, 1.0, {})
  assert summary['accuracy_by_k'] == {'4': 1.0, '64': 1.0} and summary['calls_per_episode'] == 1.0
  assert summary['format_compliance'] == 1.0 and summary['interval'][0] == pytest.approx(
    0.4385, abs=1e-3
  )
  json.dumps(summary)


def test_open_answers_are_exact_and_grounding_has_a_threshold():
  (records, summary), _ = run(answering(open='red car', window='[10, 14]'), [OPEN, WINDOW])
  assert [record.accuracy for record in records] == [0.0] * 4
  assert summary['accuracy_by_type'] == {'oe': 0.0, 'tvg': 0.0}


def test_deviation_18_evaluation_sends_the_very_requests_that_training_sends():
  """The release evaluated another system: raw crops instead of sub-agents, another resolution, no
  times.
  """
  script = answering(open='red')
  _, trained = episode(script, task=OPEN, budget=4, context=GREEDY)
  _, evaluated = run(script, [OPEN], dataclasses.replace(OPTIONS, budgets=(4,)))
  assert len(trained) == 3
  strip = lambda requests: [{**request.body, 'rid': ''} for request in requests]
  assert strip(trained) == strip(evaluated)


def test_deviation_19_an_error_is_its_own_outcome_and_never_a_wrong_answer_silently():
  """The release scored API errors as wrong answers."""
  missing = dataclasses.replace(TASK, id='missing', videos=('missing.mp4',))
  (records, summary), _ = run(
    answering(open='red', choice=Refuse(500, 'overloaded')), [OPEN, CHOICE, missing]
  )
  outcomes = [(record.reason, record.scored is None) for record in records[::2]]
  assert outcomes == [('', False), ('server', True), ('media_missing', True)]
  assert 'overloaded' in records[2].error and 'no such file' in records[4].error
  assert summary['errors'] == {'server': 2, 'media_missing': 2} and summary[
    'error_rate'
  ] == pytest.approx(4 / 6)
  assert (summary['accuracy'], summary['accuracy_answered']) == (pytest.approx(2 / 6), 1.0)


@pytest.mark.parametrize(
  ('reply', 'reason', 'right'),
  [
    (Refuse(500, 'overloaded'), 'call_subagent_error', 0.0),
    (sampled(''), '', 1.0),
    (sampled('41 red'), '', 1.0),
  ],
)
def test_deviation_19_a_server_that_failed_one_call_is_an_error_and_a_sub_agent_that_said_nothing_is_not(
  reply, reason, right
):
  """The episode goes on without the call, but its answer says nothing about the model."""
  whole = answering(open='red')
  (records, summary), _ = run(
    lambda request: reply if is_subagent(request) else whole(request), [OPEN]
  )
  assert [(record.reason, record.accuracy) for record in records] == [(reason, right)] * 2
  assert summary['errors'] == ({reason: 2} if reason else {}) and all(
    ('model' in r.error) is bool(reason) for r in records
  )


def test_a_question_whose_subtitle_file_gives_nothing_is_an_error_and_is_not_put():
  broken = dataclasses.replace(OPEN, facts={BROKEN: 'x.srt: got an empty file'})
  (records, summary), requests = run(answering(open='red'), [broken])
  assert [(record.reason, record.error) for record in records] == [
    ('subtitles', 'x.srt: got an empty file')
  ] * 2
  assert (summary['errors'], requests) == ({'subtitles': 2}, [])


def test_a_prompt_that_does_not_fit_says_how_long_it_is_and_what_to_change():
  records, summary = with_crew(
    answering(open='red'),
    lambda crew: evaluate(crew.agent, [OPEN], REWARD, OPTIONS),
    context=dataclasses.replace(GREEDY, context=200),
  )[0]
  assert (
    summary['errors'] == {'prompt_too_long': 2}
    and 'raise sampling.context' in records[0].error
    and 'K=64' in records[1].error
  )
  assert (
    200
    < int(re.search(r'of (\d+) tokens', records[0].error)[1])
    < int(re.search(r'of (\d+) tokens', records[1].error)[1])
  )


def test_calls_that_failed_and_truncations_are_counted():
  def script(request):
    return (
      sampled(LONG + call(50, 40)) if turn_of(request) == 0 else sampled('I still', closed=False)
    )

  (_, summary), _ = run(script, [OPEN], dataclasses.replace(OPTIONS, budgets=(4,)))
  assert (summary['calls_per_episode'], summary['calls_failed'], summary['truncated']) == (0, 1, 1)
  assert summary['stops'] == {'length': 1}


def test_progress_hears_every_record():
  heard = []
  use = lambda crew: evaluate(crew.agent, [OPEN], REWARD, OPTIONS, heard.append)
  (records, _), _ = with_crew(answering(open='red'), use, context=GREEDY)
  assert sorted(record.budget for record in heard) == [4, 64]
  frames = lambda record: (
    len(record.scored.episode.trajectory.images)
    + len(record.scored.episode.results[0].subagent.images)
  )
  assert sorted(map(frames, heard)) == [9, 69] and list(map(frames, records)) == [
    0,
    0,
  ]  # kept records hold no pixels


def test_no_samples_give_nulls_and_an_interval_that_knows_nothing():
  summary = summarize([])
  assert (
    summary['accuracy'] is None
    and summary['interval'] == [0.0, 1.0]
    and summary['error_rate'] == 0.0
  )


def test_two_evaluations_are_compared_pair_by_pair_and_errors_are_left_out():
  (wrong, _), _ = run(answering(open='blue', choice='B'), [OPEN, CHOICE])
  (right, _), _ = run(answering(open='red', choice='B'), [OPEN, CHOICE])
  broken = [*right[:3], Record(CHOICE, 64, None, 'server', 'x')]
  got = compare(wrong, broken, samples=200, seed=0)
  assert got['pairs'] == 3 and got['unpaired'] == 1
  assert got['difference'] == pytest.approx(2 / 3)
  assert (got['low'], got['high']) == (0.0, 1.0)  # two questions only: each may be drawn twice


def test_frames_left_out_as_repeats_are_a_mean_over_the_answered():
  script = lambda request: (
    sampled(LONG + call(0, 20)) if turn_of(request) == 0 else sampled('I still', closed=False)
  )
  options = dataclasses.replace(OPTIONS, budgets=(4,))
  summary = with_crew(
    script, lambda crew: evaluate(crew.agent, [OPEN], REWARD, options), frames=Frames(fps=2 / 64)
  )[0][1]
  assert summary['frames_repeated'] == 2 + 15

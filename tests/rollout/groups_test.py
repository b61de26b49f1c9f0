"""Groups: one prompt, one K, rewards, and every loss counted by name."""

import dataclasses

import numpy as np
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rollout import groups
from paravt_jax.rollout.groups import Dropped, Prompt, budget_of, rewarder, run_group
from paravt_jax.rollout.judge import JudgeFailure, Verdict
from paravt_jax.testing.scripted import Refuse
from paravt_jax.video import sampling
from tests.rollout.collecting import collect
from tests.rollout.stack import (
  CONTEXT,
  GROUP,
  LONG,
  TASK,
  TOK,
  call,
  is_subagent,
  play,
  sampled,
  with_stack,
)

ANSWER = LONG + '<answer>red</answer>'
REWARD = rewarder(PUBLISHED, None)


def tasks(n):
  return [dataclasses.replace(TASK, id=f'task-{i}') for i in range(n)]


def gather(script, prompts, reward=REWARD, options=GROUP, **more):
  heard = []
  got, requests = with_stack(
    script, lambda stack: collect(stack.agent, prompts, reward, options, heard.append), **more
  )
  return got, requests, heard


def test_a_group_is_g_rollouts_of_one_prompt_with_one_k_and_their_rewards():
  (group,), requests, _ = gather(play(LONG + call(39, 43), ANSWER), [Prompt(TASK, 0)])
  budget = sampling.draw_budget(7, 'task-1', 0, (4, 8, 16, 32, 64))
  assert [scored.episode.rollout for scored in group.scored] == [0, 1, 2, 3]
  assert {scored.episode.budget for scored in group.scored} == {budget}
  assert [scored.reward for scored in group.scored] == [
    pytest.approx(2.8)
  ] * 4  # row 5 of the table in section 4
  firsts = {
    scored.episode.trajectory.segments[0] is group.scored[0].episode.trajectory.segments[0]
    for scored in group.scored
  }
  assert firsts == {True}
  assert len({request.sampling['sampling_seed'] for request in requests}) == len(requests) == 12


def test_gating_draws_k_per_prompt_and_epoch_off_fixes_it_and_evaluation_forces_it():
  drawn = {budget_of(Prompt(task, epoch), GROUP) for task in tasks(20) for epoch in range(3)}
  assert drawn == {4, 8, 16, 32, 64}
  off = dataclasses.replace(GROUP, gating=False, frames=48)
  assert {budget_of(Prompt(task, 0), off) for task in tasks(20)} == {48}
  assert budget_of(Prompt(TASK, 0, budget=6), GROUP) == 6


def test_groups_come_back_in_the_order_asked_for_and_progress_hears_them_as_they_finish():
  slow = lambda request: sampled(
    ANSWER, delay=0.3 if 'first?' in TOK.decode(request.input_ids) else 0
  )
  words = ('first', 'second', 'third')
  prompts = [
    Prompt(dataclasses.replace(task, question=f'{word}?'), 0, 4)
    for task, word in zip(tasks(3), words)
  ]
  got, _, heard = gather(lambda request: slow(request), prompts)
  assert [group.id for group in got] == ['task-0', 'task-1', 'task-2']
  assert heard[-1].id == 'task-0' and len(heard) == 3


def test_the_same_seed_gives_the_same_episodes_in_any_order_of_arrival():
  def script(request):
    noise = np.random.default_rng(request.sampling['sampling_seed'])
    text = (
      '41 red' if is_subagent(request) else (LONG + call(39, 43), ANSWER)[int(noise.random() < 0.5)]
    )
    return sampled(
      text + str(int(noise.integers(100))), delay=float(np.random.default_rng().random() * 0.02)
    )

  ids = []
  for order in (1, -1):
    got, _, _ = gather(script, [Prompt(task, 0, 4) for task in tasks(3)[::order]])
    ids.append(
      [scored.episode.trajectory.ids.tolist() for group in got[::order] for scored in group.scored]
    )
  assert ids[0] == ids[1]


def test_a_broken_video_loses_the_group_by_name():
  (group,), requests, _ = gather(
    play(ANSWER), [Prompt(dataclasses.replace(TASK, videos=('missing.mp4',)), 0)]
  )
  assert group.scored == () and group.dropped == ('media_missing',) * 4 and not requests


def test_what_a_server_a_context_or_a_reward_loses_is_dropped_and_counted_and_the_rest_survives():
  fails_once = lambda request: Refuse() if request.order == 0 else sampled(ANSWER)
  (group,), _, _ = gather(fails_once, [Prompt(TASK, 0, 4)])
  assert len(group.scored) == 3 and group.dropped == ('server',)
  (group,), _, _ = gather(
    play(ANSWER), [Prompt(TASK, 0, 4)], context=dataclasses.replace(CONTEXT, context=20)
  )
  assert group.dropped == ('prompt_too_long',) * 4

  async def half(episode):
    return Dropped('judge_timeout') if episode.rollout % 2 else (1.0, {})

  (group,), _, _ = gather(play(ANSWER), [Prompt(TASK, 0, 4)], reward=half)
  assert [scored.episode.rollout for scored in group.scored] == [0, 2] and groups.count_dropped(
    [group]
  ) == {'judge_timeout': 2}


class Judge:
  def __init__(self, outcome):
    self.outcome, self.asked = outcome, []

  async def compare(self, *words):
    self.asked.append(words)
    return self.outcome


def test_the_judge_scores_open_questions_only_and_its_failure_is_no_score():
  options = dataclasses.replace(PUBLISHED, open_ended='judge')
  judge = Judge(Verdict(True))

  async def use(stack, task, reward):
    return await run_group(
      stack.agent, Prompt(task, 0, 4), reward, dataclasses.replace(GROUP, size=1)
    )

  script = play(LONG + '<answer>crimson</answer>')
  run = lambda task, judge: with_stack(
    script, lambda stack: use(stack, task, rewarder(options, judge))
  )[0]
  assert run(TASK, judge).scored[0].parts['accuracy'] == 1.0
  assert judge.asked == [('What appears at 41?', 'red', 'crimson')]
  assert run(TASK, Judge(JudgeFailure('judge_timeout', ''))).dropped == ('judge_timeout',)
  mcq = dataclasses.replace(TASK, question_type='mcq', answer='A', options=('red', 'blue'))
  assert run(mcq, judge).scored[0].parts['accuracy'] == 0.0 and len(judge.asked) == 1


def test_asking_for_a_judge_without_one_is_refused_at_the_door():
  with pytest.raises(ConfigError, match=r'judge\.url'):
    rewarder(dataclasses.replace(PUBLISHED, open_ended='judge'), None)

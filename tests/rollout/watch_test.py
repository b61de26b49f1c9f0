"""What an agent tells of an episode while it runs."""

import dataclasses

import pytest

from paravt_jax.rollout.agent import CallDone, CallStarted, Opened, TurnDone
from paravt_jax.rollout.sampler import Address
from paravt_jax.testing.scripted import Refuse
from paravt_jax.types import ParseFailure, ResultStatus, StopReason
from tests.rollout.stack import AGENT, LONG, TASK, call, episode, play, with_stack

ANSWER = LONG + '<answer>red</answer>'


def run_watched(script, agent=AGENT):
  """(the events of one episode, the episode)."""
  events = []

  async def use(stack):
    opening = await stack.agent.open(TASK, 4)
    return await stack.agent.with_watch(events.append).run(TASK, opening, Address(7, TASK.id, 0, 0))

  got, _ = with_stack(script, use, agent=agent)
  return events, got


def test_an_episode_is_told_from_its_opening_to_its_answer():
  events, got = run_watched(play(LONG + call(8, 12), ANSWER))
  assert [type(event) for event in events] == [Opened, TurnDone, CallStarted, CallDone, TurnDone]
  opened, first, started, done, last = events
  assert len(opened.opening.overviews[0].seconds) == 4
  assert (first.turn, first.text, last.turn, last.text) == (
    0,
    '<think>\n' + LONG + call(8, 12),
    1,
    '<think>\n' + ANSWER,
  )
  assert (started.turn, started.index, started.call) == (0, 0, got.results[0].call)
  assert (done.turn, done.index, done.result) == (0, 0, got.results[0])


def test_calls_of_a_turn_start_and_come_back_and_those_over_the_limit_never_start():
  events, got = run_watched(
    play(LONG + call(1, 3) + '<tool_call>{broken</tool_call>' + call(5, 7) * 3, ANSWER),
    dataclasses.replace(AGENT, max_parallel=3),
  )
  started = {event.index: event.call for event in events if isinstance(event, CallStarted)}
  done = {event.index: event.result for event in events if isinstance(event, CallDone)}
  assert sorted(started) == [0, 1, 2] and isinstance(started[1], ParseFailure)
  assert [done[index] for index in range(4)] == list(got.results) and done[
    3
  ].status is ResultStatus.OVER_LIMIT
  for index in range(3):
    order = [
      type(event)
      for event in events
      if isinstance(event, CallStarted | CallDone) and event.index == index
    ]
    assert order == [CallStarted, CallDone]


def test_a_failed_server_ends_the_story_where_it_stood():
  events, got = run_watched(play(LONG + call(1, 3), Refuse(500, 'out of memory')))
  assert got.stop is StopReason.ERROR
  assert [type(event) for event in events] == [Opened, TurnDone, CallStarted, CallDone]


@pytest.mark.parametrize(
  'script', [play(LONG + call(1, 3) * 7, ANSWER), play(LONG + '<tool_call>{"na', LONG)]
)
def test_being_watched_changes_nothing(script):
  _, got = run_watched(script)
  unwatched, _ = episode(script)
  assert got.trajectory.ids.tolist() == unwatched.trajectory.ids.tolist()
  assert [turn.text for turn in got.turns] == [turn.text for turn in unwatched.turns]


def test_the_main_agents_turns_are_told_as_they_grow_and_sub_agents_are_not():
  grown = []

  async def use(stack):
    opening = await stack.agent.open(TASK, 4)
    agent = stack.agent.with_watch(
      lambda event: grown.append(type(event)), lambda turn, text: grown.append((turn, text))
    )
    return await agent.run(TASK, opening, Address(7, TASK.id, 0, 0))

  got, requests = with_stack(play(LONG + call(8, 12), 'é ' + ANSWER), use)
  assert [request.body.get('stream') for request in requests] == [True, None, True]
  for turn, whole in enumerate(turn.text for turn in got.turns):
    texts = [event[1] for event in grown if isinstance(event, tuple) and event[0] == turn]
    assert (
      len(texts) > 5 and texts[-1] == whole and all(whole.startswith(text) for text in texts)
    )  # no half é either
    assert texts == sorted(texts, key=len)
  kinds = [event for event in grown if not isinstance(event, tuple)]
  assert kinds == [Opened, TurnDone, CallStarted, CallDone, TurnDone] and isinstance(
    grown[1], tuple
  )


def test_being_heard_changes_nothing():
  script = play(LONG + call(1, 3) * 7, ANSWER)

  async def use(stack):
    agent = stack.agent.with_watch(lambda event: None, lambda turn, text: None)
    return await agent.run(TASK, await stack.agent.open(TASK, 4), Address(7, TASK.id, 0, 0))

  got, _ = with_stack(script, use)
  assert got.trajectory.ids.tolist() == episode(script)[0].trajectory.ids.tolist()

"""Weights on their way to scripted servers: each proves them, and what fails is set aside."""

import asyncio
import dataclasses
import threading

import pytest

from paravt_jax.errors import SyncError
from paravt_jax.testing.scripted import Hang, Reply
from tests.rollout.bench import (
  CANARY,
  EPISODE,
  WATCHFUL,
  WRONG,
  Bench,
  Script,
  ask,
  fleet,
  published,
  seen,
)
from tests.rollout.wire import PAD


def test_weights_reach_every_server_between_pause_and_continue_and_each_proves_them():
  async def use(whole, client, router):
    await whole.deliver(published(3), 3, CANARY)
    return await ask(client)

  bench = Bench(Script(), Script())
  got = fleet(bench, use)
  assert got.versions.tolist() == [3, 3] and bench.staged == [published(3)]
  for i in range(2):
    assert bench.server(i).commands == [
      ('/continue_generation', {}),  # a killed run may have left it paused
      ('/pause_generation', {'mode': 'retract'}),
      (
        '/update_weights_from_disk',
        {'model_path': '/weights/3/staged', 'weight_version': '3', 'flush_cache': True},
      ),
      ('/continue_generation', {}),
    ]
    canary = next(
      request for request in bench.server(i).requests if request.rid.startswith('canary')
    )
    assert (
      canary.input_ids == (1, PAD, 3)
      and canary.images == ((32, 32),)
      and canary.sampling['temperature'] == 0.0
    )


def test_nothing_is_sent_before_the_canary_matches():
  async def use(whole, client, router):
    delivery = asyncio.create_task(whole.deliver(published(1), 1, CANARY))
    await seen(lambda: bench.server(0).requests)  # the canary is there
    asked = ask(client)
    await asyncio.sleep(0.1)
    assert [request.rid[:6] for request in bench.server(0).requests] == [
      'canary'
    ] and not delivery.done()
    answer.set()
    await delivery
    return await asked

  answer = threading.Event()
  bench = Bench(Script(canary=Reply(ids=(8, 9), finish='length', until=answer)))
  assert fleet(bench, use).versions.tolist() == [1, 1]


def test_a_server_that_fails_the_canary_is_set_aside_and_what_it_said_meanwhile_is_thrown_away():
  """Its reply of new, wrong weights arrives while the gate is held; the request is sent again to
  the right server.
  """

  async def use(whole, client, router):
    first, second = (member.url for member in whole.members)
    for affinity in range(2):
      await router.choose(affinity)  # group 0 lives on the first server
    script.episode = Reply(ids=(66, 2), until=answer)
    asked = ask(client, affinity=0)
    await seen(lambda: len(bench.server(0).requests) == 1)
    script.canary = dataclasses.replace(WRONG, until=proof)
    delivery = asyncio.create_task(whole.deliver(published(1), 1, CANARY))
    await seen(lambda: len(bench.launched[0][0].server.requests) == 2)
    answer.set()
    await asyncio.sleep(0.1)
    assert not asked.done()
    proof.set()
    await delivery
    script.canary, script.episode = Script().canary, EPISODE
    got = await asked
    await seen(lambda: len(router.up_urls()) == 2)  # restarted, with the current weights
    return got, dict(whole.counts), dict(client.counts)

  answer, proof = threading.Event(), threading.Event()
  script = Script()
  bench = Bench(script, Script())
  got, counts, sent = fleet(bench, use)
  assert got.ids.tolist() == [5, 2] and got.versions.tolist() == [1, 1]
  assert (counts['lost'], counts['restarts'], counts['back'], sent['moved']) == (1, 1, 1, 1)
  assert bench.server(0).commands[1][0] == '/pause_generation'


@pytest.mark.parametrize(
  'given, message',
  [
    ({'weights_ok': False}, r'no server took them.*refused weights 1.*wrong shapes'),
    ({}, r'no server took them.*do not match the canary: mean .* token 1: log-prob -0\.6'),
  ],
)
def test_when_no_server_is_right_the_run_ends_with_what_to_do(given, message):
  async def use(whole, client, router):
    await whole.deliver(published(1), 1, CANARY)

  bench = Bench(Script(canary=WRONG), Script(canary=WRONG), **given)
  with pytest.raises(SyncError, match=message) as caught:
    fleet(bench, use)
  assert 'continues from the last checkpoint' in str(caught.value) and '\n' not in str(caught.value)


def test_a_server_that_samples_with_other_weights_than_it_names_fails_its_canary():
  async def use(whole, client, router):
    await whole.deliver(published(2), 2, CANARY)

  bench = Bench(Script(canary=Reply(ids=(8, 9), finish='length', versions=((1, 0, 2),))))
  with pytest.raises(SyncError, match=r'tokens are of versions \[\(1, 0, 2\)\], wanted all of 2'):
    fleet(bench, use)


def test_weights_that_cannot_be_staged_reach_no_server():
  async def use(whole, client, router):
    try:
      await whole.deliver(published(1), 1, CANARY)
    finally:
      assert router.up_urls() and not router.paused
      assert [path for path, _ in bench.server(0).commands] == ['/continue_generation']

  bench = Bench(Script())

  def stage(published):
    raise SyncError('/weights/1: truncated')

  bench.stage = stage
  with pytest.raises(SyncError, match='truncated'):
    fleet(bench, use)


def test_a_server_that_dies_in_the_middle_of_an_update_does_not_end_the_run():
  async def use(whole, client, router):
    answer.clear()
    delivery = asyncio.create_task(whole.deliver(published(5), 5, CANARY))
    await seen(lambda: bench.server(0).requests)
    bench.scripts[0].canary = Script().canary
    await asyncio.to_thread(bench.launched[0][0].kill)
    await delivery
    return await ask(client), len(bench.launched[0])

  answer = threading.Event()
  bench = Bench(Script(canary=Reply(ids=(8, 9), until=answer)))
  got, lives = fleet(bench, use)
  assert got.versions.tolist() == [5, 5] and lives == 2


def test_a_server_that_falls_silent_in_the_middle_of_an_update_holds_nobody_up():
  async def use(whole, client, router):
    delivery = asyncio.create_task(whole.deliver(published(2), 2, CANARY))
    await seen(lambda: bench.server(0).requests)
    bench.launched[0][0].server.silent = True
    bench.scripts[0].canary = Script().canary
    await delivery
    return len(bench.launched[0])

  bench = Bench(Script(canary=Hang()))
  assert fleet(bench, use, options=WATCHFUL) >= 2


def test_a_server_that_comes_back_while_newer_weights_go_out_serves_the_newer_ones():
  async def use(whole, client, router):
    await whole.deliver(published(1), 1, CANARY)
    bench.scripts[0].canary = dataclasses.replace(bench.scripts[0].canary, until=proof)
    await asyncio.to_thread(bench.launched[0][0].kill)
    await seen(
      lambda: len(bench.launched[0]) == 2 and bench.server(0).requests
    )  # it is about to prove version 1
    await whole.deliver(published(2), 2, CANARY)
    proof.set()
    await seen(lambda: len(router.up_urls()) == 2)
    return [
      body['weight_version']
      for path, body in bench.server(0).commands
      if path == '/update_weights_from_disk'
    ]

  proof = threading.Event()
  bench = Bench(Script(), Script())
  assert fleet(bench, use) == ['1', '2']


def test_a_delivery_that_is_broken_off_leaves_no_unproven_server_up():
  async def use(whole, client, router):
    delivery = asyncio.create_task(whole.deliver(published(1), 1, CANARY))
    await seen(lambda: bench.server(0).requests)
    delivery.cancel()
    await asyncio.gather(delivery, return_exceptions=True)
    assert router.up_urls() == () and not router.paused
    bench.scripts[0].canary = Script().canary
    return (await ask(client)).versions.tolist()  # the watch brings it up

  bench = Bench(Script(canary=Hang()))
  assert fleet(bench, use) == [1, 1]

"""Which server a request goes to, and the gate before all of them."""

import asyncio

import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.router import Router, State

A = 'http://a:1'
B = 'http://b:1'
C = 'http://c:1'


def run(work):
  return asyncio.run(work)


async def waits(awaitable):
  """The task, once it is certain that it waits: the loop has nothing else to do."""
  task = asyncio.ensure_future(awaitable)
  for _ in range(10):
    await asyncio.sleep(0)
  assert not task.done()
  return task


def test_one_group_keeps_to_one_server_and_new_groups_go_to_the_least_loaded():
  async def use():
    router = Router((A, B))
    homes = []
    for affinity in (7, 7, 7, 8, 8, 9):  # group 7 weighs three, 8 weighs two
      url = await router.choose(affinity)
      router.started(url)
      homes.append(url)
    return homes

  assert run(use()) == [A, A, A, B, B, B]


def test_idle_servers_share_groups_evenly():
  async def use():
    router = Router((A, B, C))
    return [await router.choose(affinity) for affinity in range(6)]

  assert sorted(run(use())) == [A, A, B, B, C, C]


def test_a_finished_request_is_load_no_more():
  async def use():
    router = Router((A,))
    gone = router.started(A)
    assert router.load(A) == 1
    router.finished(A, gone)
    return router.load(A)

  assert run(use()) == 0


def test_a_group_whose_server_drains_or_is_lost_moves_and_stays_where_it_went():
  async def use():
    router = Router((A, B))
    homes = [await router.choose(1)]
    router.drain(A, 'too large')
    homes.append(await router.choose(1))
    router.lost(A, 'gone')
    router.up(A)
    return homes + [await router.choose(1)]

  assert run(use()) == [A, B, B]


def test_what_is_on_its_way_to_a_lost_server_hears_of_it_and_the_next_life_does_not():
  async def use():
    router = Router((A, B))
    before = router.started(A)
    router.lost(A, 'killed')
    assert before.is_set() and router.state(A) is State.DOWN and router.reason(A) == 'killed'
    router.up(A)
    after = router.started(A)
    router.finished(A, before)  # of the last life: no load of this one
    return after.is_set(), router.load(A)

  assert run(use()) == (False, 1)


def test_why_a_server_was_lost_is_no_question_once_it_has_another_address():
  async def use():
    router = Router((A,))
    router.supervised = True
    router.lost(A, 'killed')
    router.replace(A, B)
    return router.reason(A), router.reason(B)

  assert run(use()) == ('', 'killed')


def test_a_request_waits_while_no_server_is_up_when_somebody_brings_them_back():
  async def use():
    router = Router((A,))
    router.supervised = True
    router.lost(A, 'killed')
    task = await waits(router.choose(1))
    router.replace(A, B)
    router.up(B)
    return await task, router.urls

  assert run(use()) == (B, (B,))


def test_without_a_fleet_the_loss_of_the_last_server_is_final():
  async def use():
    router = Router((A, B))
    router.lost(A, 'first gone')
    assert await router.choose(1) == B
    router.lost(B, 'second gone')
    await router.choose(1)

  with pytest.raises(RolloutError, match='second gone'):
    run(use())


def test_who_waits_is_told_when_there_is_nothing_to_wait_for():
  async def use():
    router = Router((A,))
    router.supervised = True
    router.lost(A, 'killed')
    waiting = await waits(router.choose(1))
    router.pause()
    behind = await waits(router.passed(A))
    router.fail('no server is left')
    return [str(error) for error in await asyncio.gather(waiting, behind, return_exceptions=True)]

  assert run(use()) == ['no server is left'] * 2


def test_while_the_gate_is_held_nothing_is_sent_and_nothing_believed():
  async def use():
    router = Router((A, B))
    router.pause()
    router.pause()
    sending, believing = await waits(router.choose(1)), await waits(router.passed(A))
    router.resume()
    await waits(asyncio.shield(sending))
    assert router.paused and not believing.done()
    router.resume()
    await believing
    return await sending

  assert run(use()) == A


def test_a_draining_server_gets_no_new_weights_so_its_replies_pass_a_held_gate():
  async def use():
    router = Router((A, B))
    router.drain(A, 'too large')
    router.pause()
    await router.passed(A)
    await waits(router.passed(B))

  run(use())


@pytest.mark.parametrize('urls', [(), (A, A)])
def test_no_server_or_one_twice_is_refused(urls):
  with pytest.raises(RolloutError, match=r'each once; set server\.urls'):
    Router(urls)


def test_behind_a_gateway_requests_wait_from_a_loss_until_the_gateway_has_heard_of_it():
  async def use():
    router = Router((A, B))
    router.supervised = router.behind_gateway = True
    await router.opened()
    router.lost(A, 'its process has ended')
    assert router.held == 'its process has ended'
    waiting = await waits(router.opened())
    router.release()
    await waiting
    return list(router.lives())

  assert run(use()) == [B]


def test_a_gateway_that_is_lost_is_final_without_a_fleet():
  router = Router((A,))
  router.hold('the router is gone')
  with pytest.raises(RolloutError, match='the router is gone'):
    run(router.opened())


def test_a_group_is_at_home_where_its_last_reply_came_from():
  router = Router((A, B))
  assert router.home(7) is None
  router.settle(7, B)
  assert router.home(7) == B and run(router.choose(7)) == B


def test_a_life_of_a_server_ends_with_its_loss():
  router = Router((A, B))
  first = router.lives()[A]
  router.lost(A, 'gone')
  router.up(A)
  assert first.is_set() and not router.lives()[A].is_set()


def test_what_changes_wakes_up_and_otherwise_time_does():
  async def use():
    router = Router((A,))
    waiting = await waits(router.changed_within(60.0))
    router.pause()
    router.resume()
    await waiting
    await router.changed_within(0.01)

  run(use())

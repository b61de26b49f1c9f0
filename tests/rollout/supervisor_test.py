"""A watched fleet over scripted servers: every way they fail, and how each comes back."""

import asyncio
import dataclasses
import threading

import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.router import State
from paravt_jax.testing.scripted import Die, Hang, Reply, ScriptedServer
from tests.rollout.bench import (
  CANARY,
  EPISODE,
  FLEET,
  WATCHFUL,
  Bench,
  Process,
  Script,
  ask,
  fleet,
  published,
  seen,
)
from tests.rollout.wire import OPTIONS


def test_a_killed_server_restarts_and_proves_its_weights_while_the_other_serves():
  async def use(whole, client, router):
    await whole.deliver(published(4), 4, CANARY)
    bench.scripts[0].episode = bench.scripts[1].episode = Hang()
    under_way = [ask(client, number, affinity=number) for number in range(4)]
    await seen(lambda: len(bench.server(0).requests) + len(bench.server(1).requests) == 6)
    bench.scripts[0].episode = bench.scripts[1].episode = EPISODE
    await asyncio.to_thread(bench.launched[0][0].kill)
    moved = [task for task in under_way if not task.done()]
    await seen(lambda: len(bench.launched[0]) == 2 and len(router.up_urls()) == 2)
    await seen(lambda: sum(task.done() for task in under_way) >= 2)
    late = ask(client, 9, affinity=99)
    return (
      [task.done() for task in under_way].count(True),
      await late,
      dict(whole.counts),
      dict(client.counts),
      len(moved),
    )

  bench = Bench(Script(), Script())
  done, late, counts, sent, _ = fleet(bench, use)
  assert done == 2 and sent['moved'] == 2  # the two of the other server hang there still
  assert late.versions.tolist() == [4, 4]
  assert (counts['restarts'], counts['back']) == (1, 1)
  assert [path for path, _ in bench.server(0).commands] == [
    '/continue_generation',
    '/pause_generation',
    '/update_weights_from_disk',
    '/continue_generation',
  ]
  assert bench.server(0).requests[0].rid.startswith('canary-4')


def test_the_only_server_dies_and_its_request_goes_on_when_it_is_back():
  async def use(whole, client, router):
    asked = ask(client)
    await seen(lambda: bench.server(0).requests)
    bench.scripts[0].episode = EPISODE
    await asyncio.to_thread(bench.launched[0][0].kill)
    return await asked, bench.server(0).requests[0].rid

  bench = Bench(Script(episode=Hang()))
  got, rid = fleet(bench, use)
  assert got.ids.tolist() == [5, 2] and rid.startswith('r0') and len(bench.launched[0]) == 2


def test_a_server_that_misses_its_pings_is_replaced_and_its_request_moves():
  async def use(whole, client, router):
    asked = ask(client)
    await seen(lambda: bench.server(0).requests)
    bench.scripts[0].episode = EPISODE
    bench.server(0).silent = True
    got = await asked
    await seen(lambda: router.up_urls())
    return got, dict(whole.counts)

  bench = Bench(Script(episode=Hang()))
  got, counts = fleet(bench, use, options=WATCHFUL)
  assert got.ids.tolist() == [5, 2] and len(bench.launched[0]) >= 2 and counts['restarts'] >= 1


def test_a_server_that_falls_silent_while_it_is_brought_back_is_started_once_more():
  async def use(whole, client, router):
    await whole.deliver(published(2), 2, CANARY)
    bench.scripts[0].canary = Hang()
    await asyncio.to_thread(bench.launched[0][0].kill)
    await seen(lambda: len(bench.launched[0]) == 2 and bench.server(0).requests)
    bench.launched[0][1].server.silent = True
    bench.scripts[0].canary = Script().canary
    return (await ask(client)).versions.tolist(), len(bench.launched[0])

  bench = Bench(Script())
  lasting = dataclasses.replace(OPTIONS, timeout_s=3600.0)  # longer than a test may take
  assert fleet(bench, use, options=dataclasses.replace(WATCHFUL, restarts=9), client=lasting) == (
    [2, 2],
    3,
  )


def test_two_servers_above_the_watermark_drain_one_after_the_other():
  async def use(whole, client, router):
    for launched in bench.launched:
      launched[0].memory = 900.0
    while not all(len(launched) == 2 for launched in bench.launched) or len(router.up_urls()) < 2:
      assert router.up_urls()
      await asyncio.sleep(0)
    return whole.counts['drained']

  bench = Bench(Script(), Script())
  assert fleet(bench, use, options=dataclasses.replace(FLEET, memory_mb=500)) == 2


def test_a_connection_lost_by_a_client_alone_costs_no_restart():
  async def use(whole, client, router):
    asked = ask(client)
    await seen(lambda: router.state(bench.server(0).url) is State.DOWN)
    bench.scripts[0].episode = EPISODE
    return await asked, dict(whole.counts)

  bench = Bench(Script(episode=Die()))
  got, counts = fleet(bench, use, client=dataclasses.replace(OPTIONS, retries=1))
  assert (
    got.ids.tolist() == [5, 2]
    and len(bench.launched[0]) == 1
    and counts.get('restarts', 0) == 0
    and counts['back'] == 1
  )


def test_a_server_that_cannot_be_started_again_ends_the_run_with_its_log():
  async def use(whole, client, router):
    def fails():
      bench.launched[0].append(Process(Script()))
      bench.launched[0][-1].kill()
      raise RolloutError('embedded server: ended with status 1 before it was ready')

    whole.members[0].start = fails
    asked = ask(client)
    await seen(lambda: bench.server(0).requests)
    await asyncio.to_thread(bench.launched[0][0].kill)
    with pytest.raises(RolloutError, match='no rollout server is left'):
      await asked  # nobody waits for ever
    whole.check()

  bench = Bench(Script(episode=Hang()))
  with pytest.raises(RolloutError) as caught:
    fleet(bench, use)
  assert len(bench.launched[0]) == 3  # restarts=2
  said = str(caught.value)
  assert (
    'ended with status 1' in said
    and 'the last line of its log' in said
    and 'last checkpoint' in said
  )


def test_restarts_are_counted_in_a_row_and_forgotten_when_the_server_has_served():
  async def use(whole, client, router):
    for number in range(5):
      await ask(client, number)
      await asyncio.to_thread(bench.launched[0][-1].kill)
      await seen(lambda lives=number + 2: len(bench.launched[0]) == lives and router.up_urls())
    whole.check()
    return whole.counts['restarts']

  bench = Bench(Script())
  assert fleet(bench, use) == 5


def test_a_new_process_under_an_address_that_is_taken_is_ended_and_started_once_more():
  """A port that is free may be that of another server of ours, which is down just now."""

  async def use(whole, client, router):
    start = whole.members[0].start

    def clash():
      whole.members[0].start = start
      process = start()
      process.url = whole.members[1].url
      return process

    whole.members[0].start = clash
    await asyncio.to_thread(bench.launched[0][0].kill)
    await seen(lambda: len(bench.launched[0]) == 3 and len(router.up_urls()) == 2)
    return [process.alive for process in bench.launched[0]]

  bench = Bench(Script(), Script())
  assert fleet(bench, use) == [False, False, True]


def test_one_server_that_is_gone_for_good_does_not_stop_the_other():
  async def use(whole, client, router):
    whole.members[0].start = lambda: (_ for _ in ()).throw(RolloutError('no memory'))
    await asyncio.to_thread(bench.launched[0][0].kill)
    await seen(lambda: whole.counts['restarts'] == 2)
    await whole.deliver(published(1), 1, CANARY)
    whole.check()
    return [(await ask(client, number, number)).versions.tolist() for number in range(4)]

  bench = Bench(Script(), Script())
  assert fleet(bench, use) == [[1, 1]] * 4


def test_a_server_above_the_watermark_is_drained_started_again_and_proves_the_weights():
  """What runs may end by itself; what does not in time is aborted, and its client continues elsewhere
  from its tokens.
  """

  async def use(whole, client, router):
    await whole.deliver(published(6), 6, CANARY)
    for affinity in range(2):
      await router.choose(affinity)
    asked = ask(client, 0, affinity=0)
    await seen(
      lambda: router.load(bench.launched[0][0].url) == 1 and len(bench.server(0).requests) == 2
    )
    bench.launched[0][0].memory = 900.0
    await seen(
      lambda: (
        ('/abort_request', {'rid': '', 'abort_all': True}) in bench.launched[0][0].server.commands
      )
    )
    bench.scripts[0].episode = EPISODE
    answer.set()
    got = await asked
    await seen(lambda: len(bench.launched[0]) == 2 and len(router.up_urls()) == 2)
    return got, dict(whole.counts), dict(client.counts)

  answer = threading.Event()
  bench = Bench(Script(episode=Reply(ids=(5, 6), finish='abort', until=answer)), Script())
  got, counts, sent = fleet(bench, use, options=dataclasses.replace(FLEET, memory_mb=500))
  assert (
    got.ids.tolist() == [5, 6, 5, 2]
    and got.versions.tolist() == [6] * 4
    and sent['interrupted'] == 1
  )
  assert (counts['drained'], counts['restarts'], counts['back'], counts.get('lost', 0)) == (
    1,
    1,
    1,
    0,
  )
  assert bench.server(1).requests[-1].input_ids == (1, 2, 3, 5, 6)
  assert bench.server(0).requests[0].rid.startswith('canary-6')


def test_a_server_by_url_is_waited_for_and_gets_the_current_weights_when_it_is_back():
  async def use(whole, client, router):
    await whole.deliver(published(7), 7, CANARY)
    old.__exit__()
    await seen(lambda: router.state(old.url) is State.DOWN)
    await whole.deliver(published(8), 8, CANARY)
    with ScriptedServer(Script(), port=int(old.url.rpartition(':')[2])) as new:
      await seen(lambda: len(router.up_urls()) == 2)
      return new.commands, new.requests[0].rid

  old = ScriptedServer(Script()).__enter__()
  commands, canary = fleet(Bench(Script()), use, urls=(old.url,), options=WATCHFUL)
  assert commands[2] == (
    '/update_weights_from_disk',
    {'model_path': '/weights/8/staged', 'weight_version': '8', 'flush_cache': True},
  )
  assert canary.startswith('canary-8')


def test_when_all_servers_by_url_stay_away_the_run_ends():
  async def use(whole, client, router):
    server.__exit__()
    with pytest.raises(RolloutError, match='no rollout server is left'):
      await ask(client)
    whole.check()

  server = ScriptedServer(Script()).__enter__()
  with pytest.raises(RolloutError, match='no rollout server is left'):
    fleet(
      Bench(),
      use,
      urls=(server.url,),
      options=WATCHFUL,
      client=dataclasses.replace(OPTIONS, ready_timeout_s=0.5),
    )

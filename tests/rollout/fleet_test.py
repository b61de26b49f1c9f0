"""The fleet over scripted servers: every way they fail, and how each comes back. Processes are
stand-ins that hold a server.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import threading

import numpy as np
import pytest

from paravt_jax.errors import ConfigError, RolloutError, SyncError
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.fleet import Fleet, FleetOptions, Member
from paravt_jax.rollout.router import Router, State
from paravt_jax.serving.canary import Canary
from paravt_jax.testing.scripted import Die, Hang, Refuse, Reply, ScriptedServer
from tests import patience
from tests.rollout.client_test import OPTIONS, PAD, REQUEST

FLEET = FleetOptions(every_s=0.05, misses=200, restarts=2, memory_mb=0, drain_s=0.2, tolerance=0.01)
WATCHFUL = dataclasses.replace(FLEET, misses=3)  # for servers whose end only pings can tell
CANARY = Canary((1, PAD, 3), np.zeros((32, 32, 3), np.uint8), (), (8, 9), (-0.5, -0.5), (5.0, 5.0))
WRONG = Reply(ids=(8, 9), logprobs=(-0.5, -0.6))
EPISODE = Reply(ids=(5, 2))


class Script:
  """Answers canaries with `canary` and all else with `episode`; both can be changed while it
  runs.
  """

  def __init__(self, canary=None, episode=EPISODE):
    self.canary = Reply(ids=(8, 9), finish='length') if canary is None else canary
    self.episode = episode

  def __call__(self, request):
    return self.canary if request.rid.startswith('canary') else self.episode


class Process:
  """Stands in for a ServerProcess of ours: a scripted server that can be killed."""

  log = pathlib.Path('server.log')

  def __init__(self, script, memory=100.0, **given):
    self.server = ScriptedServer(script, **given).__enter__()
    self.url, self.alive, self.memory, self.pid = self.server.url, True, memory, 0

  def kill(self):
    if self.alive:
      self.alive = False
      self.server.__exit__()

  def stop(self, grace_s):
    self.kill()

  def tail(self):
    return 'the last line of its log'

  def memory_mb(self):
    return self.memory


class Bench:
  """A fleet of our own servers: `launched[i]` are the processes that server i had, the running one
  last.
  """

  def __init__(self, *scripts, **given):
    self.scripts, self.given = scripts, given
    self.launched = [[] for _ in scripts]
    self.staged = []

  def start(self, i):
    process = Process(self.scripts[i], **self.given)
    self.launched[i].append(process)
    return process

  def server(self, i):
    return self.launched[i][-1].server

  def stage(self, published):
    self.staged.append(published)
    return published / 'staged'


def fleet(bench, use, *, urls=(), options=FLEET, client=OPTIONS, opening=None):
  """Runs `await use(fleet, client, router)` over the bench's servers and those at `urls`, opened;
  closes whatever happens.
  """

  async def run():
    members = [
      Member(process.url, process, lambda i=i: bench.start(i))
      for i, process in enumerate([bench.start(i) for i in range(len(bench.scripts))])
    ]
    members += [Member(url, None, None) for url in urls]
    router = Router([member.url for member in members])
    async with Client(client, 100, router, image_id=PAD) as it, Control(client) as control:
      whole = Fleet(members, control, router, bench.stage, options)
      async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(whole.close)
        await whole.open(opening)
        return await use(whole, it, router)

  try:
    return asyncio.run(asyncio.wait_for(run(), patience.seconds(120.0)))
  finally:
    assert not any(process.alive for launched in bench.launched for process in launched)


async def seen(state):
  """Returns once `state()` holds."""
  await patience.seen(state, quiet=60.0)


def ask(client, number=0, affinity=0):
  return asyncio.create_task(
    client.generate(dataclasses.replace(REQUEST, rid=f'r{number}'), affinity)
  )


def published(version):
  return pathlib.Path(f'/weights/{version}')


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
    ({}, r'no server took them.*do not match the canary: token 1: log-prob -0\.6'),
  ],
)
def test_when_no_server_is_right_the_run_ends_with_what_to_do(given, message):
  async def use(whole, client, router):
    await whole.deliver(published(1), 1, CANARY)

  bench = Bench(Script(canary=WRONG), Script(canary=WRONG), **given)
  with pytest.raises(SyncError, match=message) as caught:
    fleet(bench, use)
  assert 'goes on from the last checkpoint' in str(caught.value) and '\n' not in str(caught.value)


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
      assert router.up_urls() and not router.held
      assert [path for path, _ in bench.server(0).commands] == ['/continue_generation']

  bench = Bench(Script())

  def stage(published):
    raise SyncError('/weights/1: truncated')

  bench.stage = stage
  with pytest.raises(SyncError, match='truncated'):
    fleet(bench, use)


def test_a_killed_server_is_started_again_gets_the_current_weights_proves_them_and_the_other_serves_meanwhile():
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
    assert router.up_urls() == () and not router.held
    bench.scripts[0].canary = Script().canary
    return (await ask(client)).versions.tolist()  # the watch brings it up

  bench = Bench(Script(canary=Hang()))
  assert fleet(bench, use) == [1, 1]


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
  """What runs may end by itself; what does not in time is aborted, and its client goes on elsewhere
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


def test_a_watermark_below_what_a_fresh_server_holds_is_refused_before_the_first_rollout():
  async def use(whole, client, router):
    raise AssertionError('opened')

  with pytest.raises(
    ConfigError, match=r'fleet\.memory_mb: got 50, but .* holds 100 MiB before its first rollout'
  ):
    fleet(Bench(Script()), use, options=dataclasses.replace(FLEET, memory_mb=50))


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


@pytest.mark.parametrize(
  'script, given, message',
  [
    (Script(), {'api_key': 'other'}, 'refuses our key'),
    (Script(), {'facts': {'version': '0.4.0'}}, "speaks version '0.4.0'"),
    (Script(canary=WRONG), {}, 'does .* serve another model'),
    (
      Script(canary=Reply(ids=(8, 9), image_tokens=4)),
      {},
      'counts 4 image tokens, we 1.*does .* serve another model',
    ),
    (
      Script(canary=Refuse(400, 'input_ids: got 98, wanted ids in 0..31')),
      {},
      r'wanted ids in 0\.\.31.*serve another model',
    ),
  ],
)
def test_a_wrong_server_is_one_line_before_the_first_rollout(script, given, message):
  async def use(whole, client, router):
    raise AssertionError('opened')

  with (
    ScriptedServer(script, **given) as server,
    pytest.raises(RolloutError, match=message) as caught,
  ):
    fleet(Bench(Script()), use, urls=(server.url,), opening=CANARY)
  assert '\n' not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line_before_the_first_rollout():
  async def use(whole, client, router):
    raise AssertionError('opened')

  with pytest.raises(
    RolloutError, match=r'http://127\.0\.0\.1:1: not ready after 0\.2 s'
  ) as caught:
    fleet(
      Bench(Script()),
      use,
      urls=('http://127.0.0.1:1',),
      client=dataclasses.replace(OPTIONS, ready_timeout_s=0.2),
    )
  assert '\n' not in str(caught.value)

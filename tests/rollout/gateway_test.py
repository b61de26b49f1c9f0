"""Rollout requests through SGLang's router: a scripted one, and the real one before scripted
servers.
"""

import asyncio
import contextlib
import dataclasses
import threading

import pytest

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.fleet import Fleet, Member
from paravt_jax.rollout.gateway import Gateway
from paravt_jax.rollout.router import Router, State
from paravt_jax.testing.scripted import Hang, Reply, ScriptedServer
from tests import patience
from tests.rollout import gateways
from tests.rollout.bench import CANARY, FLEET, WRONG, Script, ask, published, seen
from tests.rollout.gateways import Faults, ScriptedGateway, listed
from tests.rollout.wire import OPTIONS, PAD, REQUEST

CLIENT = dataclasses.replace(OPTIONS, ready_timeout_s=patience.seconds(60.0), retries=3)


@pytest.fixture(params=['scripted', pytest.param('real', marks=pytest.mark.sglang)])
def start(request):
  """Starts a router over these addresses."""
  return getattr(gateways, request.param)


def through(start, log, scripts, use, *, faults=None, client=CLIENT):
  """Runs `await use(job)` over scripted servers behind a router."""

  async def run(servers, ends, url):
    urls = [server.url for server in servers]
    router = Router(urls)
    async with (
      Gateway(client, url) as gateway,
      Client(client, 100, router, image_id=PAD, gateway=url) as it,
      Control(client) as control,
      contextlib.AsyncExitStack() as stack,
    ):
      members = [Member(one, None, None) for one in urls]
      fleet = Fleet(members, control, router, lambda path: path / 'staged', FLEET, gateway)
      stack.push_async_callback(fleet.close)
      await fleet.open()
      return await use(Job(servers, ends, url, gateway, router, it, fleet))

  with contextlib.ExitStack() as stack:
    ends = [contextlib.ExitStack() for _ in scripts]
    servers = [end.enter_context(ScriptedServer(script)) for end, script in zip(ends, scripts)]
    for end in ends:
      stack.callback(end.close)
    given = {} if faults is None else {'faults': faults}
    url = stack.enter_context(
      start([server.url for server in servers], log / 'router.log', **given)
    )
    return asyncio.run(asyncio.wait_for(run(servers, ends, url), patience.seconds(120.0)))


@dataclasses.dataclass
class Job:
  """What a test drives."""

  servers: list[ScriptedServer]
  ends: list[contextlib.ExitStack]  # each stops a server
  url: str
  gateway: Gateway
  router: Router
  client: Client
  fleet: Fleet

  def kill(self, i):
    """Stops server i."""
    self.ends[i].close()

  def episodes(self, i):
    """Requests that server i had, canaries aside."""
    return [one for one in self.servers[i].requests if not one.rid.startswith('canary')]


def test_a_group_keeps_to_one_server_and_requests_arrive_as_they_were_sent(start, tmp_path):
  async def use(job):
    for affinity in range(8):
      await asyncio.gather(*(ask(job.client, 10 * affinity + n, affinity) for n in range(4)))
    return [[one.body for one in job.episodes(i)] for i in range(2)]

  bodies = through(start, tmp_path, [Script(), Script()], use)
  groups = [{body['rid'][:-1] for body in some} for some in bodies]
  assert groups[0] and groups[1] and not groups[0] & groups[1]
  assert sum(map(len, bodies)) == 32
  expected = dataclasses.replace(REQUEST, rid='').to_json()
  assert all({**body, 'rid': ''} == expected for some in bodies for body in some)


def test_weights_go_to_the_servers_themselves_and_requests_wait_for_all_of_them(start, tmp_path):
  slow = threading.Event()
  scripts = [Script(), Script(canary=Reply(ids=(8, 9), finish='length', until=slow))]

  async def use(job):
    delivery = asyncio.create_task(job.fleet.deliver(published(1), 1, CANARY))
    await seen(lambda: job.servers[1].requests)  # its canary is there, and not answered
    asked = [ask(job.client, n, n) for n in range(8)]
    await asyncio.sleep(0.2)
    assert not any(job.episodes(i) for i in range(2))
    slow.set()
    await delivery
    return await asyncio.gather(*asked)

  got = through(start, tmp_path, scripts, use)
  assert [one.versions.tolist() for one in got] == [[1, 1]] * 8


def test_a_server_that_fails_its_canary_gets_no_request_and_what_it_said_is_thrown_away(
  start, tmp_path
):
  late = threading.Event()
  scripts = [Script(), Script(episode=Reply(ids=(7, 2), until=late))]

  async def use(job):
    ahead = [ask(job.client, n, n) for n in range(8)]
    await seen(lambda: job.episodes(1))
    scripts[1].canary = WRONG
    delivery = asyncio.create_task(job.fleet.deliver(published(1), 1, CANARY))
    await seen(lambda: job.router.paused)
    late.set()  # its replies are on their way while it proves its weights
    await delivery
    assert listed(job.url) == {job.servers[0].url}
    ahead = await asyncio.gather(*ahead)
    before = len(job.episodes(1))
    behind = await asyncio.gather(*(ask(job.client, 10 + n, n) for n in range(8)))
    assert len(job.episodes(1)) == before
    scripts[1].canary = scripts[0].canary
    await seen(lambda: listed(job.url) == {server.url for server in job.servers})
    await asyncio.gather(*(ask(job.client, 20 + n, 100 + n) for n in range(8)))
    return ahead + behind, len(job.episodes(1)) - before

  got, later = through(start, tmp_path, scripts, use)
  assert [one.ids.tolist() for one in got] == [[5, 2]] * 16
  assert later


def test_a_killed_server_hands_its_requests_to_the_other_one(start, tmp_path):
  async def use(job):
    scripts[1].episode = Hang()
    asked = [ask(job.client, n, n) for n in range(8)]
    await seen(lambda: job.episodes(1))
    await asyncio.to_thread(job.kill, 1)
    early = await asyncio.gather(*asked)
    await seen(lambda: listed(job.url) == {job.servers[0].url})
    later = await asyncio.gather(*(ask(job.client, 10 + n, n) for n in range(8)))
    return early + later, dict(job.client.counts), job.router.state(job.servers[1].url)

  scripts = [Script(), Script()]
  got, counts, state = through(start, tmp_path, scripts, use)
  assert [one.ids.tolist() for one in got] == [[5, 2]] * 16
  assert counts['requests'] == 16 and counts['moved'] and state is State.DOWN


def test_a_server_that_was_restarted_unseen_is_found_by_its_version(start, tmp_path):
  async def use(job):
    await job.fleet.deliver(published(4), 4, CANARY)
    job.servers[1].forget()
    got = await asyncio.gather(*(ask(job.client, n, n) for n in range(8)))
    await seen(lambda: listed(job.url) == {server.url for server in job.servers})
    return got, [body for path, body in job.servers[1].commands if path.startswith('/update')]

  got, pushed = through(start, tmp_path, [Script(), Script()], use)
  assert [one.versions.tolist() for one in got] == [[4, 4]] * 8
  assert [body['weight_version'] for body in pushed] == ['4', '4']  # it got them again


def test_an_abort_reaches_the_server_that_has_the_request(start, tmp_path):
  never = threading.Event()

  async def use(job):
    asked = ask(job.client, 1)
    await seen(lambda: job.episodes(0))
    await job.client.abort('r1')
    never.set()
    await asked
    return [body for path, body in job.servers[0].commands if path == '/abort_request']

  assert through(start, tmp_path, [Script(episode=Reply(ids=(5, 2), until=never))], use) == [
    {'rid': 'r1'}
  ]


def test_requests_wait_while_the_router_is_lost_and_go_on_when_it_is_back():
  async def use(url, restart):
    async with (
      Gateway(CLIENT, url) as gateway,
      Client(CLIENT, 100, router := Router([server.url]), image_id=PAD, gateway=url) as client,
      Control(CLIENT) as control,
      contextlib.AsyncExitStack() as stack,
    ):
      members = [Member(server.url, None, None)]
      fleet = Fleet(members, control, router, lambda path: path, FLEET, gateway)
      stack.push_async_callback(fleet.close)
      await fleet.open()
      first.__exit__()
      await seen(lambda: router.held)
      asked = ask(client)
      await asyncio.sleep(0.1)
      assert not asked.done() and not server.requests
      stack.enter_context(restart())
      return await asked

  with ScriptedServer(Script()) as server:
    first = ScriptedGateway([server.url]).__enter__()
    port = int(first.url.rpartition(':')[2])
    got = asyncio.run(use(first.url, lambda: ScriptedGateway([server.url], port=port)))
  assert got.ids.tolist() == [5, 2]


def test_a_router_that_stays_away_ends_the_run_with_one_line():
  async def use():
    impatient = dataclasses.replace(CLIENT, ready_timeout_s=0.3)
    async with (
      Gateway(impatient, gateway.url) as asked,
      Client(
        impatient, 100, router := Router([server.url]), image_id=PAD, gateway=gateway.url
      ) as it,
      Control(impatient) as control,
      contextlib.AsyncExitStack() as stack,
    ):
      members = [Member(server.url, None, None)]
      fleet = Fleet(members, control, router, lambda path: path, FLEET, asked)
      stack.push_async_callback(fleet.close)
      await fleet.open()
      gateway.__exit__()
      with pytest.raises(
        RolloutError, match=f'the router {gateway.url} is lost for 0.3 s'
      ) as caught:
        await ask(it)
      assert '\n' not in str(caught.value)
      with pytest.raises(RolloutError, match='start it again, then the same command continues'):
        fleet.check()

  with ScriptedServer(Script()) as server:
    gateway = ScriptedGateway([server.url]).__enter__()
    asyncio.run(use())


def answers(request):
  """Greedy, and obedient to logit_bias."""
  return Reply(ids=(6,) if '5' in request.sampling.get('logit_bias', ()) else (5,))


@pytest.mark.parametrize(
  'faults, message',
  [
    (Faults(bias=True), 'drops logit_bias .* --max-buffered-request-bytes 0'),
    (Faults(spread=True), 'sends requests of one prompt to 2 workers.* --policy manual'),
    (Faults(nameless=True), r'does not say which worker answered .* smg 1\.13 or later'),
  ],
)
def test_a_router_that_would_spoil_requests_is_refused(tmp_path, faults, message):
  with pytest.raises(RolloutError, match=message) as caught:
    through(
      gateways.scripted,
      tmp_path,
      [answers, answers],
      lambda job: job.gateway.check([1, 2]),
      faults=faults,
    )
  assert '\n' not in str(caught.value)


@pytest.mark.sglang
@pytest.mark.parametrize(
  'flags, message',
  [
    (('--policy', 'manual'), 'drops logit_bias'),
    (('--policy', 'cache_aware', '--max-buffered-request-bytes', '0'), 'drops logit_bias'),
    (('--policy', 'round_robin', '--max-buffered-request-bytes', '0'), 'to 2 workers'),
  ],
)
def test_the_real_router_is_refused_with_other_flags(tmp_path, flags, message):
  def start(urls, log):
    return gateways.real(urls, log, *flags)

  with pytest.raises(RolloutError, match=message):
    through(start, tmp_path, [answers, answers], lambda job: job.gateway.check([1, 2]))


def test_a_right_router_passes_the_check(start, tmp_path):
  through(start, tmp_path, [answers, answers], lambda job: job.gateway.check([1, 2]))


@pytest.mark.parametrize('known, given', [('ab', ''), ('ab', 'ab'), ('a', 'ab')])
def test_the_servers_are_those_of_server_urls_else_the_routers_workers(known, given):
  assert members(known, given) == ('http://a:1', 'http://b:1')


def members(known, given):
  """The servers of a run, whose router and server.urls know those of http://a:1 and so on."""

  async def use(url):
    async with Gateway(dataclasses.replace(CLIENT, ready_timeout_s=1.0), url) as gateway:
      return await gateway.members([f'http://{name}:1' for name in given])

  with ScriptedGateway([f'http://{name}:1' for name in known]) as it:
    return asyncio.run(use(it.url))


def test_a_worker_that_server_urls_do_not_name_is_refused():
  with pytest.raises(ConfigError, match=r"sends requests to \['http://b:1'\], too") as caught:
    members('ab', 'a')
  assert str(caught.value).startswith('--config.server.urls: got')


def test_a_router_without_workers_is_refused():
  with pytest.raises(ConfigError, match='has no workers; give it some'):
    members('', '')


def test_a_router_that_is_not_there_is_waited_for_and_named():
  async def use():
    url = f'http://127.0.0.1:{gateways.free_port()}'
    async with Gateway(dataclasses.replace(CLIENT, ready_timeout_s=0.2), url) as gateway:
      await gateway.members(())

  with pytest.raises(RolloutError, match=r'connection lost .* no router after 0\.2 s'):
    asyncio.run(use())


def test_a_worker_that_joins_during_a_run_gets_no_requests_of_it(start, tmp_path):
  async def use(job):
    with ScriptedServer(Script(episode=Reply(ids=(9, 2)))) as stranger:
      await job.gateway._command('POST', '/workers', b'{"url": "%s"}' % stranger.url.encode())
      await seen(lambda: stranger.url in listed(job.url))
      await seen(lambda: stranger.url not in listed(job.url))

  through(start, tmp_path, [Script()], use)


def test_a_router_that_does_not_obey_is_named(monkeypatch):
  monkeypatch.setattr('paravt_jax.rollout.gateway._REGISTER_S', 0.2)

  async def use(url):
    async with Gateway(CLIENT, url) as gateway:
      await gateway.serve_only(['http://b:1'])

  with (
    ScriptedGateway(['http://a:1'], Faults(stuck=True)) as it,
    pytest.raises(RolloutError, match=r"has the workers \['http://a:1'\] after 0\.2 s"),
  ):
    asyncio.run(use(it.url))


def test_a_rollout_server_in_the_routers_place_is_named():
  async def use(url):
    async with Gateway(CLIENT, url) as gateway:
      await gateway.workers()

  with ScriptedServer(Script()) as server, pytest.raises(RolloutError, match='got status 404'):
    asyncio.run(use(server.url))

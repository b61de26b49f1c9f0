"""Commands to single servers, and the questions that come before the first rollout."""

import asyncio
import dataclasses

import pytest
from aiohttp import web

from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.rollout.control import Control
from paravt_jax.serving.protocol import GenerateRequest
from paravt_jax.testing.scripted import Reply, ScriptedServer, turns
from tests import patience
from tests.rollout.wire import OPTIONS

NOBODY = 'http://127.0.0.1:1'  # a privileged port that nobody listens on


def with_control(use, **options):
  async def run():
    async with Control(dataclasses.replace(OPTIONS, **options)) as control:
      return await use(control)

  return asyncio.run(run())


def server(**given):
  return ScriptedServer(turns(Reply(ids=(2,))), **given)


def test_weights_are_swapped_between_a_pause_and_a_continue():
  with server() as it:
    with_control(lambda control: control.swap_weights(it.url, '/weights/7', 7))
    assert it.commands == [
      ('/pause_generation', {'mode': 'retract'}),
      (
        '/update_weights_from_disk',
        {'model_path': '/weights/7', 'weight_version': '7', 'flush_cache': True},
      ),
      ('/continue_generation', {}),
    ]
    assert with_control(lambda control: control.info(it.url)) == {
      'model_path': '/weights/7',
      'weight_version': '7',
    }
    assert with_control(lambda control: control.version(it.url)) == 7


def test_weights_never_updated_are_version_0_and_a_foreign_name_is_none_of_ours():
  with server() as it:
    assert with_control(lambda control: control.version(it.url)) == 0
    it._weights = ('/elsewhere', 'nightly')
    assert with_control(lambda control: control.version(it.url)) == -1


def test_a_refused_update_is_a_sync_error_and_generation_goes_on():
  with server(weights_ok=False) as it:
    with pytest.raises(SyncError, match=r'refused weights 7.*wrong shapes'):
      with_control(lambda control: control.swap_weights(it.url, '/weights/7', 7))
    assert it.commands[-1] == ('/continue_generation', {})


def test_5xx_is_no_refusal_of_the_weights_but_a_broken_server(monkeypatch):
  """SyncError from every server ends a run; one that says 5xx a moment before it is gone is to be
  started again.
  """

  async def breaks(server, http):
    return web.Response(status=500, text='the scheduler is gone')

  monkeypatch.setattr(ScriptedServer, '_command', breaks)
  with (
    server() as it,
    pytest.raises(
      RolloutError, match=r'failed while it loaded weights 7 \(status 500\): .*scheduler is gone'
    ),
  ):
    with_control(lambda control: control.update_weights(it.url, '/weights/7', 7))


def test_abort_and_flush_reach_the_server():
  async def use(control):
    await control.abort(it.url)
    await control.abort(it.url, 'a!1')
    await control.flush(it.url)

  with server() as it:
    with_control(use)
    assert it.commands == [
      ('/abort_request', {'rid': '', 'abort_all': True}),
      ('/abort_request', {'rid': 'a!1'}),
      ('/flush_cache', {}),
    ]


def test_generate_goes_straight_to_one_server():
  request = GenerateRequest('canary-1', [1, 2], (), 0.0, 1.0, -1, 4, (), (), 0, True)
  with server() as it:
    assert with_control(lambda control: control.generate(it.url, request)).output_ids == [2]
    assert it.requests[0].rid == 'canary-1'


def test_wait_ready_says_once_that_it_waits_and_gives_up_with_the_last_word(caplog):
  with server(ready_after=3) as it:
    with_control(lambda control: control.wait_ready(it.url))
  assert [record.getMessage().partition(': ')[2] for record in caplog.records] == [
    'not ready yet (status 503); waiting up to 2 s'
  ]
  with (
    server(ready_after=10**6) as it,
    pytest.raises(RolloutError, match=r'not ready after 0\.1 s \(last: status 503\)'),
  ):
    with_control(lambda control: control.wait_ready(it.url), ready_timeout_s=0.1)


def test_ready_says_no_at_once_where_nobody_is_and_in_time_where_nobody_answers():
  assert with_control(lambda control: control.ready(NOBODY, 5.0)) is False
  with server() as it:
    assert with_control(lambda control: control.ready(it.url, 5.0)) is True
    it.silent = True
    assert with_control(lambda control: control.ready(it.url, 0.05)) is False


def test_a_paused_server_answers_pings_and_is_woken_when_a_run_begins():
  """SGLang says 503 to /ready while paused: a run that was killed in the middle of an update leaves
  it like that.
  """
  with server() as it:
    it.paused = True
    assert with_control(lambda control: control.ready(it.url, 5.0)) is True
    with_control(lambda control: control.wait_ready(it.url))
    assert it.commands == [('/continue_generation', {})] and not it.paused


@pytest.mark.parametrize(
  'given, message',
  [
    ({'facts': {'version': '0.5.12'}}, r"speaks version '0\.5\.12'.*SGLang 0\.5\.21 or later"),
    ({'facts': {'version': None}}, r"speaks version 'None'"),
    ({'api_key': 'other'}, r'refuses our key \(status 401\); set server\.api_key'),
  ],
)
def test_a_server_of_another_version_or_another_key_is_one_line(given, message):
  with server(**given) as it, pytest.raises(RolloutError, match=message) as caught:
    with_control(lambda control: control.inspect(it.url))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('version', ['paravt_jax', '0.5.21', '0.5.21.post1', '0.6.0', 'v1.0.0rc1'])
def test_servers_whose_protocol_we_know_pass(version):
  with server(facts={'version': version}) as it:
    with_control(lambda control: control.inspect(it.url))


@pytest.mark.parametrize(
  'url, message',
  [
    (NOBODY, r'not ready after 0\.1 s \(last: .*connection lost'),
    ('nowhere', 'is this the address of a rollout server'),
  ],
)
def test_a_server_that_is_not_there_is_one_line(url, message):
  with pytest.raises(RolloutError, match=message) as caught:
    with_control(lambda control: control.wait_ready(url), ready_timeout_s=0.1)
  assert '\n' not in str(caught.value)


def test_a_wrong_key_is_not_waited_for():
  with server(api_key='other') as it, pytest.raises(RolloutError, match='refuses our key'):
    with_control(
      lambda control: control.wait_ready(it.url), ready_timeout_s=patience.seconds(120.0)
    )

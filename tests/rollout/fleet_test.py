"""What a fleet refuses before the first rollout: wrong servers, limits too low for a fresh one."""

import dataclasses

import pytest

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.testing.scripted import Refuse, Reply, ScriptedServer
from tests.rollout.bench import CANARY, FLEET, WRONG, Bench, Script, fleet
from tests.rollout.wire import OPTIONS


def test_a_watermark_below_what_a_fresh_server_holds_is_refused_before_the_first_rollout():
  async def use(whole, client, router):
    raise AssertionError('opened')

  with pytest.raises(
    ConfigError, match=r'fleet\.memory_mb: got 50, but .* holds 100 MiB before its first rollout'
  ):
    fleet(Bench(Script()), use, options=dataclasses.replace(FLEET, memory_mb=50))


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

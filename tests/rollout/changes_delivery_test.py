"""Versions that go out as what they change: to the servers that have the version before, and to no
other.
"""

import pytest

from paravt_jax.errors import SyncError
from tests.rollout.bench import CANARY, Bench, Script, fleet, published, seen

CHANGES = published('4-changes')


class Whole:
  """The whole version, which counts how often it is asked for."""

  def __init__(self, error=None):
    self.asked, self.error = 0, error

  def __call__(self):
    self.asked += 1
    if self.error is not None:
      raise self.error
    return published(4)


def updates(server):
  """The folders of a server's updates."""
  return [body['model_path'] for path, body in server.commands if path.startswith('/update')]


def refusing(path):
  return 'changes' not in path


def test_servers_with_the_version_before_get_its_changes_alone():
  async def use(fleet_, client, router):
    await fleet_.deliver(whole, 4, CANARY, CHANGES)
    return router.up_urls()

  bench, whole = Bench(Script(), Script()), Whole()
  assert len(fleet(bench, use)) == 2 and not whole.asked
  assert bench.staged == [CHANGES]
  for i in range(2):
    assert updates(bench.server(i)) == ['/weights/4-changes/staged']


def test_servers_that_refuse_the_changes_get_the_whole_version_made_once(caplog):
  async def use(fleet_, client, router):
    for i in (0, 2):
      bench.server(i).weights_ok = refusing
    await fleet_.deliver(whole, 4, CANARY, CHANGES)
    return router.up_urls()

  caplog.set_level('INFO')
  bench, whole = Bench(Script(), Script(), Script()), Whole()
  assert len(fleet(bench, use)) == 3 and whole.asked == 1
  assert bench.staged == [CHANGES, published(4)]
  both = ['/weights/4-changes/staged', '/weights/4/staged']
  assert [updates(bench.server(i)) for i in range(3)] == [both, both[:1], both]
  assert caplog.text.count('gets weights 4 whole') == 2


def test_a_server_that_comes_back_gets_the_whole_version():
  async def use(fleet_, client, router):
    await fleet_.deliver(whole, 4, CANARY, CHANGES)
    bench.given['weights_ok'] = refusing  # of the process that takes its place
    bench.launched[0][-1].kill()
    await seen(lambda: len(bench.launched[0]) == 2 and len(router.up_urls()) == 2)

  bench, whole = Bench(Script(), Script()), Whole()
  fleet(bench, use)
  assert updates(bench.server(0)) == ['/weights/4-changes/staged', '/weights/4/staged']
  assert whole.asked == 1


def test_a_whole_version_that_cannot_be_made_is_the_error():
  async def use(fleet_, client, router):
    bench.server(0).weights_ok = refusing
    await fleet_.deliver(Whole(SyncError('4: weights cannot be written')), 4, CANARY, CHANGES)

  bench = Bench(Script())
  with pytest.raises(SyncError, match='weights cannot be written'):
    fleet(bench, use)


def test_a_version_without_changes_is_asked_for_at_once():
  async def use(fleet_, client, router):
    with pytest.raises(SyncError, match='not there'):
      await fleet_.deliver(Whole(SyncError('not there')), 4, CANARY)
    await fleet_.deliver(whole, 4, CANARY)

  bench, whole = Bench(Script()), Whole()
  fleet(bench, use)
  assert updates(bench.server(0)) == ['/weights/4/staged']

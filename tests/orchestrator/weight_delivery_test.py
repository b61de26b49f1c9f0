"""The way of a published version to what servers load: which folder, and how long it stays."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import weight_delivery
from paravt_jax.orchestrator.server_options import PublishOptions, ServersOptions
from paravt_jax.orchestrator.weight_delivery import WeightDelivery, staging_folder
from paravt_jax.rollout.fleet import Member


def test_a_converted_version_stays_until_the_one_after_the_next_is_made():
  """A server that comes back late may still load it while the next one is on its way to the
  others.
  """
  there = []

  class Folders:
    def stage(self, published):
      there.append(published)
      return published

    def clear(self, keep):
      there[:] = [one for one in there if one == keep]

  weights, kept = WeightDelivery(), []
  weights.staging = Folders()
  for version in range(1, 5):
    weights.ready(pathlib.Path(str(version)))
    kept.append([one.name for one in there])
  assert kept == [['1'], ['1', '2'], ['2', '3'], ['3', '4']]


@pytest.mark.parametrize(
  ('url', 'staging', 'expected'),
  [
    ('http://127.0.0.1:1', '', None),
    ('http://localhost:1', '', None),
    ('http://[::1]:1', '', None),
    ('http://10.0.0.7:1', '/shared/staging', '/shared/staging'),
    ('http://127.0.0.1:1', '/fast', '/fast'),
  ],
)
def test_converted_weights_go_to_memory_or_where_the_servers_see_them(url, staging, expected):
  one, other = (
    staging_folder(staging, [Member(url, None, None)], pathlib.Path(run))
    for run in ('a/run', 'b/run')
  )
  assert (
    (one, other) == (None, None)
    if expected is None
    else {str(one.parent), str(other.parent)} == {expected}
  )
  assert expected is None or one != other  # two runs never share one


def test_sglang_on_another_machine_needs_a_folder_that_it_sees():
  with pytest.raises(
    ConfigError,
    match=r'server\.sglang\.staging is empty, but http://10\.0\.0\.7:1 is another machine: name a '
    r'folder',
  ):
    staging_folder('', [Member('http://10.0.0.7:1', None, None)], pathlib.Path('run'))


def sections(kind, form='auto', delta=False, urls=(), staging=''):
  server = ServersOptions.published()
  publish = dataclasses.replace(PublishOptions.published(), form=form, delta=delta)
  sglang = dataclasses.replace(server.sglang, staging=staging)
  return publish, dataclasses.replace(server, kind=kind, urls=urls, sglang=sglang)


HERE, FAR = ('http://127.0.0.1:1',), ('http://127.0.0.1:1', 'http://10.0.0.7:1')


@pytest.mark.parametrize(
  ('given', 'way'),
  [
    (sections('embedded'), 'memory'),
    (sections('sglang'), 'memory'),
    (sections('url', urls=HERE), 'files'),
    (sections('url', 'memory', urls=HERE), 'memory'),
    (sections('embedded', 'files'), 'files'),
    (sections('embedded', 'files', delta=True), 'changes'),
    (sections('embedded', delta=True), 'changes'),
    (sections('url', delta=True, urls=FAR), 'changes'),
  ],
)
def test_the_recipe_and_its_servers_choose_the_way_of_the_weights(given, way, tmp_path):
  weight_delivery.check(*given)
  with weight_delivery.publisher(*given, tmp_path) as made:
    found = {'memory': made._memory, 'changes': made._changes}
  assert [name for name, one in found.items() if one is not None] == (
    [] if way == 'files' else [way]
  )


def test_changes_lie_where_sglang_sees_them(tmp_path):
  place = tmp_path / 'staging'
  given = sections('url', delta=True, urls=FAR, staging=str(place))
  with weight_delivery.publisher(*given, tmp_path / 'run') as made:
    for version in (1, 2):
      pending = made.start(version, {'a': np.ones(4, np.float32)}, frozen=None, canary=None)
    assert place in pending.ready().changes.parents


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    (
      sections('url', 'memory', urls=FAR),
      'publish.form=memory, but http://10.0.0.7:1 is another machine',
    ),
    (
      sections('embedded', 'memory', delta=True),
      'publish.delta=True: wanted False with publish.form=memory',
    ),
  ],
)
def test_ways_that_servers_do_not_have_are_refused(given, said):
  with pytest.raises(ConfigError, match=re.escape(said)):
    weight_delivery.check(*given)

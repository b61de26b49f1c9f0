"""The way of a published version to what servers load: which folder, and how long it stays."""

import pathlib

import pytest

from paravt_jax.errors import ConfigError
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

"""The place of all jobs of several processes: their world and their compiled programs are shared."""

import pytest

from tests.hosts import job


@pytest.fixture(scope='session')
def place(tmp_path_factory):
  """The working directory."""
  return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='session')
def cold_start(place):
  """A short cold start on one host: the name of its run folder."""
  job.run(place, 1, 'sft', 'whole', steps=job.SFT_STEPS, **job.SFT)
  return 'whole'

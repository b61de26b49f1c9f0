"""One server of each kind per session; the embedded one in `make test`, the real SGLang in `make
test-sglang`.
"""

import psutil
import pytest

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.testing import tiny
from tests import patience
from tests.serving.contract import drive


@pytest.fixture(scope='session')
def base(tmp_path_factory):
  """The folder that servers are started with. Nobody writes into it."""
  folder = tmp_path_factory.mktemp('base') / 'base'
  tiny.build_model_folder(folder, seed=3)
  return folder


@pytest.fixture(scope='session')
def loaded(base):
  """Its (config, weights)."""
  return weights.load_hf(base)


@pytest.fixture(scope='session')
def model_folder(tmp_path_factory):
  return tmp_path_factory.mktemp('contract') / 'model'


def _serve(kind, model_folder, tmp_path_factory, **changes):
  server = drive.started(kind, model_folder, tmp_path_factory.mktemp(kind), **changes)
  try:
    yield server
    assert server.process.alive, server.process.tail()
  finally:
    members = (
      psutil.Process(server.process.pid).children(recursive=True) if server.process.alive else []
    )
    server.process.stop(20.0)
  assert not [
    member for member in members if member.is_running() and member.status() != psutil.STATUS_ZOMBIE
  ]


@pytest.fixture(scope='session')
def embedded_server(model_folder, tmp_path_factory):
  yield from _serve('embedded', model_folder, tmp_path_factory)


@pytest.fixture(scope='session')
def paged_server(model_folder, tmp_path_factory):
  yield from _serve('embedded', model_folder, tmp_path_factory, attention='pages')


@pytest.fixture(scope='session')
def sglang_server(model_folder, tmp_path_factory):
  yield from _serve('sglang', model_folder, tmp_path_factory)


@pytest.fixture(
  params=[
    'embedded',
    pytest.param('paged', marks=pytest.mark.slow),  # embedded, and decoding reads pages
    pytest.param('sglang', marks=pytest.mark.sglang),
  ]
)
def served(request):
  """A server with the weights of its folder as version 0, idle, running and with an empty prefix
  cache.
  """
  server = request.getfixturevalue(f'{request.param}_server')
  server.told('/continue_generation', {})
  patience.until(lambda: server.call('/flush_cache', {})[0] == 200)
  if server.call('/get_model_info')[1]['weight_version'] not in ('default', '0'):
    server.update(None, 0)
  return server

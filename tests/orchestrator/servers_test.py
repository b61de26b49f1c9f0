"""Which servers a recipe starts, with which options; that a failed start leaves none; what is
refused before anything is made.
"""

import asyncio
import contextlib
import os
import pathlib
import socket
import sys
import types

import pytest
from ml_collections import ConfigDict

from configs import ask, base, grpo, para_grpo, serve
from configs import eval as evaluation
from experiments import launch
from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.orchestrator import checks, server_options, servers
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.serving import process
from paravt_jax.serving.process import ServerProcess
from paravt_jax.testing import tiny
from tests import recipes
from tests.rollout.stack import TOK

ASLEEP = [sys.executable, '-c', 'import time; time.sleep(600)']


@pytest.fixture
def config(tmp_path):
  """The tiny recipe, as if SGLang were installed."""
  made = para_grpo.get_config()
  made.server.sglang.python = sys.executable
  return made


@pytest.fixture
def launched(monkeypatch, tmp_path):
  """(kind, options, how) of every launch. Stands in for both launchers by processes that sleep;
  those of `fails` do not come up.
  """
  seen = types.SimpleNamespace(calls=[], processes=[], fails=())

  def launcher(kind):
    def launch(options, **how):
      seen.calls.append((kind, options, how))
      if how['log'].name in seen.fails:
        raise RolloutError(f'{how["log"].name}: did not come up')
      child = process.start(ASLEEP, env=dict(os.environ), log=how['log'])
      seen.processes.append(
        ServerProcess(f'http://127.0.0.1:{1000 + len(seen.processes)}', child, how['log'])
      )
      return seen.processes[-1]

    return launch

  monkeypatch.setattr(servers.launch, 'launch', launcher('embedded'))
  monkeypatch.setattr(servers.sglang, 'launch', launcher('sglang'))
  yield seen
  for one in seen.processes:
    one.stop(0.0)


def members(config, tmp_path):
  setup = AgentSetup.of(recipes.typed(config))
  return asyncio.run(servers.members(setup, launch.host(), tmp_path / 'model', TOK, tmp_path))


def test_embedded_servers_get_the_recipes_sizes_the_model_and_the_end_of_a_turn(
  config, launched, tmp_path
):
  config.server.update({'api_key': 'key', 'ready_timeout_s': 77.0, 'ports': (4001,)})
  config.server.embedded.update({'lanes': ((128, 3), (256, 2)), 'chunk_tokens': 64})
  (member,) = members(config, tmp_path)
  ((kind, options, how),) = launched.calls
  assert kind == 'embedded' and (how['deadline_s'], how['parent_pid']) == (77.0, os.getpid())
  assert how['log'] == tmp_path / 'server0.log'
  assert (options.model_path, options.host, options.port, options.api_key) == (
    str(tmp_path / 'model'),
    '127.0.0.1',
    4001,
    'key',
  )
  assert options.eos_token_ids == (TOK.im_end, TOK.endoftext)
  assert (options.dtype, options.lanes, options.chunk_tokens) == (
    'float32',
    ((128, 3), (256, 2)),
    64,
  )
  assert (member.url, member.process) == (launched.processes[0].url, launched.processes[0])
  again = member.start()  # as after a crash
  assert launched.calls[1][1] == options and again is launched.processes[1]


def test_threads_of_an_embedded_server_are_set_in_its_environment_alone(config, launched, tmp_path):
  config.server.embedded.threads = 3
  members(config, tmp_path)
  ((_, _, how),) = launched.calls
  assert (
    how['env']['OMP_NUM_THREADS'] == '3'
    and 'intra_op_parallelism_threads=3' in how['env']['XLA_FLAGS']
  )
  assert 'intra_op_parallelism_threads' not in os.environ.get('XLA_FLAGS', '')


def test_sglang_servers_get_the_launcher_of_their_device_the_context_and_the_frozen_tower(
  config, launched, tmp_path
):
  config.server.update({'kind': 'sglang', 'count': 2, 'ports': (4001, 4002)})
  config.sampling.context = 640
  found = members(config, tmp_path)
  options = {options.port: options for _, options, _ in launched.calls}
  assert {kind for kind, _, _ in launched.calls} == {'sglang'} and sorted(options) == [4001, 4002]
  one = options[4001]
  assert pathlib.Path(one.launcher).name == 'launch_cpu.py' and pathlib.Path(one.launcher).is_file()
  assert (one.python, one.device, one.context_length, one.served_name) == (
    sys.executable,
    'cpu',
    640,
    'para_grpo',
  )
  assert (one.vision_frozen, one.vision_cache_mb, one.api_key, one.devices) == (True, 0, None, ())
  assert {how['log'].name for _, _, how in launched.calls} == {'server0.log', 'server1.log'}
  assert len({member.url for member in found}) == 2


def test_on_gpus_each_sglang_gets_its_own_devices_and_the_other_launcher(launched, tmp_path):
  config = para_grpo.get_config('8b_split')
  config.server.sglang.python = sys.executable
  config.server.update({'count': 2})
  config.server.sglang.tensor_parallel = 2
  members(config, tmp_path)
  assert sorted(options.devices for _, options, _ in launched.calls) == [(4, 5), (6, 7)]
  assert {pathlib.Path(options.launcher).name for _, options, _ in launched.calls} == {
    'launch_gpu.py'
  }
  assert {options.vision_cache_mb for _, options, _ in launched.calls} == {1024}


def test_image_features_of_a_tower_that_trains_may_not_be_kept(launched, tmp_path):
  config = para_grpo.get_config('8b_split')
  config.server.sglang.python = sys.executable
  config.train.freeze_vision = False
  with pytest.raises(ConfigError, match=r'server\.sglang\.vision_cache_mb=1024: wanted 0'):
    members(config, tmp_path)
  assert launched.calls == []


def test_one_of_three_that_does_not_come_up_leaves_none_running(config, launched, tmp_path):
  config.server.count = 3
  launched.fails = ('server1.log',)
  with pytest.raises(RolloutError, match=r'server1\.log: did not come up'):
    members(config, tmp_path)
  assert len(launched.processes) == 2 and not any(one.alive for one in launched.processes)


def test_servers_by_url_are_neither_started_nor_ended(config, launched, tmp_path):
  config.server.update({'kind': 'url', 'urls': ('http://a:1/', 'http://b:2')})
  assert [(member.url, member.process, member.start) for member in members(config, tmp_path)] == [
    ('http://a:1', None, None),
    ('http://b:2', None, None),
  ]
  assert launched.calls == []


@pytest.mark.parametrize(
  'changes',
  [
    {'count': 2, 'ports': (4001,)},
    {'router': 'http://a:1'},
    {'kind': 'sglang', 'sglang.devices': (0, 1)},
    {'kind': 'sglang', 'sglang.python': '.venv-nowhere/bin/python'},
  ],
)
def test_servers_that_do_not_go_together_are_refused_before_one_is_started(
  config, launched, tmp_path, changes
):
  config.server.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError):
    members(config, tmp_path)
  assert launched.calls == []


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'kind': 'cloud'}, r"server\.kind='cloud': wanted one of url, embedded, sglang"),
    ({'count': 0}, r'server\.count=0: wanted at least 1'),
    (
      {'count': 2, 'ports': (4001,)},
      r'server\.ports=\(4001,\): wanted 2 ports, one per server, or \(\)',
    ),
    ({'count': 2, 'ports': (4001, 4001)}, r'server\.ports=\(4001, 4001\): wanted different ports'),
    ({'ports': (70000,)}, r'server\.ports=\(70000,\): wanted different ports, each in 1\.\.65535'),
    ({'ports': ('4001',)}, r"server\.ports=\('4001',\): wanted different ports"),
    ({'watch.every_s': 0.0}, r'server\.watch\.every_s=0\.0: wanted above 0'),
    ({'kind': 'url', 'watch.misses': 0}, r'server\.watch\.misses=0: wanted at least 1'),
    ({'watch.restarts': -1}, r'server\.watch\.restarts=-1: wanted at least 0'),
    ({'watch.memory_mb': -1}, r'server\.watch\.memory_mb=-1: wanted at least 0'),
    ({'watch.drain_s': -1.0}, r'server\.watch\.drain_s=-1\.0: wanted at least 0'),
    ({'watch.tolerance': float('nan')}, r'server\.watch\.tolerance=nan: wanted above 0'),
    (
      {'kind': 'sglang', 'sglang.devices': (0, 1)},
      r'server\.sglang\.devices=\(0, 1\): wanted 1 GPUs',
    ),
    (
      {'kind': 'sglang', 'sglang.python': '.venv-nowhere/bin/python'},
      r"server\.sglang\.python='\.venv-nowhere/bin/python': wanted SGLang's interpreter, "
      r'which is not there: run `make sglang`',
    ),
  ],
)
def test_wrong_servers_are_refused_before_anything_is_made(
  config, launched, tmp_path, changes, message
):
  config.server.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=message) as caught:
    checks.check_rl(recipes.typed(config))
  assert '\n' not in str(caught.value) and launched.calls == []


@pytest.mark.parametrize('kind', ['embedded', 'sglang'])
def test_a_port_in_use_is_one_line_with_the_way_out(config, tmp_path, kind):
  """The real launchers: neither reads the model, nor imports what it serves with, before it has its
  port.
  """
  tiny.build_model_folder(tmp_path / 'model', seed=1)
  with contextlib.closing(socket.socket()) as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    config.server.update({'kind': kind, 'ports': (port,)})
    with pytest.raises(
      (ConfigError, RolloutError),
      match=rf'cannot listen on 127\.0\.0\.1:{port} .* set server\.ports to free ones',
    ) as caught:
      members(config, tmp_path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('kind', 'knob', 'value', 'says'),
  [
    (
      'embedded',
      'embedded.dtype',
      'float16',
      r"server\.embedded\.dtype='float16': wanted one of bfloat16",
    ),
    (
      'embedded',
      'embedded.pages',
      1,
      r'server\.embedded\.pages=1: wanted at least 17, one full context',
    ),
  ],
)
def test_wrong_options_of_a_server_are_refused_before_anything_is_made(kind, knob, value, says):
  config = para_grpo.get_config()
  config.server.kind = kind
  config.server.update_from_flattened_dict({knob: value})
  with pytest.raises(ConfigError, match=says):
    servers.check(AgentSetup.of(recipes.typed(config)))


def hosts_of(config):
  """All knobs named host of a recipe, in all of its sections."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from hosts_of(value)
    elif name == 'host':
      yield value


def test_every_recipe_listens_on_this_machine_alone():
  made = [base.rl(scale) for scale in base.SCALES]
  made += [module.get_config() for module in (para_grpo, grpo, evaluation, ask, serve)]
  found = [host for config in made for host in hosts_of(config)]
  assert len(found) >= len(made) and set(found) == {'127.0.0.1'}
  assert server_options.ServersOptions.published().host == '127.0.0.1'


def test_a_server_that_other_machines_reach_needs_a_key(config):
  config.server.host = '0.0.0.0'
  with pytest.raises(ConfigError, match=r"server.api_key='': wanted a key, because .*=0\.0\.0\.0"):
    servers.check(AgentSetup.of(recipes.typed(config)))
  config.server.api_key = 'key'
  servers.check(AgentSetup.of(recipes.typed(config)))

"""The command line and the environment of a real SGLang server: pure functions. The server itself:
./contract.
"""

import dataclasses
import pathlib
import socket
import sys

import pytest

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.serving import sglang
from tests import patience

OPTIONS = sglang.SGLangOptions(
  python='/venv/bin/python',
  launcher='/launch.py',
  model_path='/model',
  served_name='tiny',
  host='127.0.0.1',
  port=8000,
  api_key=None,
  device='cpu',
  dtype='float32',
  context_length=4096,
  max_total_tokens=16384,
  max_running_requests=16,
  mem_fraction=0.2,
  tensor_parallel=1,
  devices=(),
  vision_cache_mb=0,
  vision_frozen=False,
  threads=2,
  extra=(),
)


def changed(**changes):
  return dataclasses.replace(OPTIONS, **changes)


def value(command, flag):
  return command[command.index(flag) + 1]


def test_the_command_of_a_cpu_server():
  assert sglang.command(OPTIONS, 77) == [
    '/venv/bin/python',
    '/launch.py',
    '--parent-pid',
    '77',
    '--model-path',
    '/model',
    '--served-model-name',
    'tiny',
    '--host',
    '127.0.0.1',
    '--port',
    '8000',
    '--device',
    'cpu',
    '--dtype',
    'float32',
    '--context-length',
    '4098',
    '--max-total-tokens',
    '16384',
    '--max-running-requests',
    '16',
    '--mem-fraction-static',
    '0.2',
    '--tensor-parallel-size',
    '1',
    '--enable-fp32-lm-head',
    '--attention-backend',
    'torch_native',
    '--sampling-backend',
    'pytorch',
    '--sleep-on-idle',
  ]


def test_the_command_of_a_gpu_server_has_no_cpu_backends_and_ends_with_what_is_added():
  command = sglang.command(
    changed(
      device='cuda',
      dtype='bfloat16',
      tensor_parallel=2,
      api_key='secret',
      extra=('--attention-backend', 'fa3'),
    ),
    1,
  )
  assert (
    command[-2:] == ['--attention-backend', 'fa3'] and command.count('--attention-backend') == 1
  )
  assert '--sampling-backend' not in command
  assert value(command, '--tensor-parallel-size') == '2'
  assert '--key-on-stdin' in command and 'secret' not in ' '.join(command)


def test_the_environment_turns_off_what_would_break_a_run_and_keeps_the_rest():
  base = {
    'PATH': '/bin',
    'HOME': '/home/me',
    'PYTHONPATH': '/learner',
    'VIRTUAL_ENV': '/learner/.venv',
    'NO_PROXY': 'a.b',
    'SGLANG_VLM_CACHE_SIZE_MB': '4096',
    'OMP_NUM_THREADS': '64',
  }
  got = sglang.environment(OPTIONS, base)
  assert got == {
    'PATH': '/bin',
    'HOME': '/home/me',
    'NO_PROXY': 'a.b,127.0.0.1,localhost',
    'no_proxy': '127.0.0.1,localhost',
    'SGLANG_VLM_CACHE_SIZE_MB': '0',
    'SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION': '0',
    'SGLANG_EXTERNAL_MODEL_PACKAGE': 'published_order',
    'HF_HUB_OFFLINE': '1',
    'OMP_NUM_THREADS': '2',
    'SGLANG_USE_CPU_ENGINE': '1',
    'TORCH_COMPILE_DISABLE': '1',
    'CUDA_VISIBLE_DEVICES': '',
  }
  assert base['OMP_NUM_THREADS'] == '64'


def test_a_gpu_server_sees_its_devices_and_nothing_of_the_cpu_settings():
  got = sglang.environment(changed(device='cuda', tensor_parallel=2, devices=(4, 5)), {})
  assert got['CUDA_VISIBLE_DEVICES'] == '4,5'
  assert not {'SGLANG_USE_CPU_ENGINE', 'TORCH_COMPILE_DISABLE'} & set(got)
  assert 'CUDA_VISIBLE_DEVICES' not in sglang.environment(changed(device='cuda'), {})


def test_image_features_are_kept_only_while_the_tower_is_frozen():
  with pytest.raises(
    ConfigError, match=r'SGLangOptions.vision_cache_mb=100: wanted 0: .*outlive a weight update'
  ):
    changed(vision_cache_mb=100)
  frozen = changed(vision_cache_mb=100, vision_frozen=True)
  assert sglang.environment(frozen, {})['SGLANG_VLM_CACHE_SIZE_MB'] == '100'


@pytest.mark.parametrize(
  'change, says',
  [
    ({'device': 'tpu'}, "device='tpu': wanted one of cpu, cuda"),
    ({'dtype': 'float16'}, 'dtype'),
    ({'port': 70000}, 'port=70000: wanted 0..65535'),
    ({'mem_fraction': 1.5}, 'mem_fraction'),
    ({'threads': 0}, 'threads=0: wanted at least 1'),
    ({'tensor_parallel': 2.0}, 'tensor_parallel'),
    ({'tensor_parallel': 2, 'devices': (1,)}, 'devices=\\(1,\\): wanted 2'),
    ({'vision_cache_mb': -1}, 'vision_cache_mb'),
    (
      {'max_total_tokens': 4097},
      'max_total_tokens=4097: wanted at least context_length \\+ 2',
    ),
  ],
)
def test_a_wrong_option_is_named(change, says):
  with pytest.raises(ConfigError, match=says):
    changed(**change)


def test_a_missing_environment_launcher_or_model_says_what_to_do(tmp_path):
  launch = lambda options: sglang.launch(
    options, env={}, log=tmp_path / 'log', deadline_s=1.0, parent_pid=1
  )
  with pytest.raises(ConfigError, match='no /venv/bin/python; run `make sglang`'):
    launch(OPTIONS)
  with pytest.raises(ConfigError, match='third_party/sglang'):
    launch(changed(python=sys.executable))
  with pytest.raises(ConfigError, match=r'config\.json; give a checkpoint folder'):
    launch(changed(python=sys.executable, launcher=__file__))
  assert list(tmp_path.iterdir()) == []


def test_a_port_is_free_or_the_error_names_it():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f'cannot listen on 127.0.0.1:{port}'):
      sglang.free_port('127.0.0.1', port)
    assert sglang.free_port('127.0.0.1', 0) not in (0, port)
  with pytest.raises(ConfigError, match=r'cannot listen on 203\.0\.113\.1:0'):
    sglang.free_port('203.0.113.1', 0)


PRETEND = """
import http.server, os, pathlib, sys
place = pathlib.Path(__file__).with_name('starts')
starts = int(place.read_text()) + 1 if place.exists() else 1
place.write_text(str(starts))
if starts <= CLASHES:
  print('[Errno 98] error while attempting to bind: address already in use', flush=True)
  sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200 if self.path == '/health' else 404)
    self.end_headers()
host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ('--host', '--port'))
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.mark.parametrize(
  'clashes, port, starts', [(0, 0, 1), (1, 0, 2), (2, 0, None), (1, 'given', None)]
)
def test_a_clash_of_ports_is_tried_once_more_with_another_one_unless_the_port_was_given(
  tmp_path, clashes, port, starts
):
  launcher = tmp_path / 'launch.py'
  launcher.write_text(PRETEND.replace('CLASHES', str(clashes)))
  (tmp_path / 'config.json').write_text('{}')
  given = changed(
    python=sys.executable,
    launcher=str(launcher),
    model_path=str(tmp_path),
    port=sglang.free_port('127.0.0.1', 0) if port else 0,
  )
  launch = lambda: sglang.launch(
    given, env={}, log=tmp_path / 'log', deadline_s=patience.seconds(300), parent_pid=1
  )
  if starts is None:
    with pytest.raises(RolloutError, match='address already in use'):
      launch()
    return
  server = launch()
  try:
    assert int(pathlib.Path(tmp_path / 'starts').read_text()) == starts and server.alive
  finally:
    server.stop(10.0)
  assert not server.alive


def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path):
  """A server that loses the race for its port warms up and ends later; meanwhile the winner answers
  there.
  """
  launcher = tmp_path / 'launch.py'
  launcher.write_text('import time; time.sleep(600)')
  (tmp_path / 'config.json').write_text('{}')
  winner = tmp_path / 'winner.py'
  winner.write_text(PRETEND.replace('CLASHES', '0'))
  given = changed(python=sys.executable, launcher=str(winner), model_path=str(tmp_path), port=0)
  other = sglang.launch(
    given, env={}, log=tmp_path / 'log', deadline_s=patience.seconds(300), parent_pid=1
  )
  port = int(other.url.rsplit(':', 1)[1])
  loser = sglang.process.start([sys.executable, str(launcher)], env={}, log=tmp_path / 'loser')
  try:
    assert sglang.answers(other.process, '127.0.0.1', port) and not sglang.answers(
      loser, '127.0.0.1', port
    )
  finally:
    other.stop(10.0)
    sglang.process.end(loser, 0.0)

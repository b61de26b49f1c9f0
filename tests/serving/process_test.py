"""Child processes of ours: they are waited for, measured, and ended with everything they
started.
"""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.serving import process
from paravt_jax.serving.process import ServerProcess
from tests import patience

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / 'third_party' / 'sglang' / 'launch_gpu.py'


@pytest.fixture
def run(tmp_path):
  """Starts Python code as a server of ours; it is ended after the test."""
  started = []

  def start(code: str, *arguments: str, env=None) -> ServerProcess:
    command = [sys.executable, '-c', textwrap.dedent(code), *arguments]
    child = process.start(
      command, env=dict(os.environ) if env is None else env, log=tmp_path / 'logs' / 'server.log'
    )
    started.append(child)
    return ServerProcess('http://127.0.0.1:1', child, tmp_path / 'logs' / 'server.log')

  yield start
  for child in started:
    process.end(child, 0.0)


def gone(pid: int) -> bool:
  try:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return True


PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, {handler})
deaf = ('import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
        'print("deaf", flush=True); time.sleep(600)')
child = subprocess.Popen([sys.executable, '-c', deaf])
print('child', child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
  'handler, status',
  [
    ('signal.SIG_DFL', -signal.SIGTERM),
    ('lambda *_: sys.exit(3)', 3),
    ('signal.SIG_IGN', -signal.SIGKILL),
  ],
)
def test_stop_asks_then_kills_and_leaves_nobody_of_the_group(run, handler, status):
  server = run(PARENT.format(handler=handler))
  patience.until(lambda: 'child' in server.tail() and 'deaf' in server.tail())
  child = next(
    int(line.split()[1]) for line in server.tail().splitlines() if line.startswith('child')
  )
  assert server.alive and not gone(child)
  server.stop(0.2 if status == -signal.SIGKILL else 30.0)
  assert not server.alive and server.process.returncode == status and gone(child)
  server.stop(1.0)  # twice is no error


def test_the_orphans_of_a_server_that_was_killed_are_ended_by_stop(run):
  server = run(PARENT.format(handler='signal.SIG_DFL'))
  patience.until(lambda: 'child' in server.tail())
  child = next(
    int(line.split()[1]) for line in server.tail().splitlines() if line.startswith('child')
  )
  os.kill(server.pid, signal.SIGKILL)
  patience.until(lambda: not server.alive)
  assert not server.alive and not gone(child)  # asking twice does not lose the group
  server.stop(1.0)
  patience.until(lambda: gone(child))


def test_waiting_returns_when_ready_and_an_early_end_shows_the_end_of_the_log(run):
  server = run('import time; print("up", flush=True); time.sleep(600)')
  process.wait_until(
    server.process, lambda: 'up' in server.tail(), server.log, patience.seconds(60), 'a server'
  )
  with pytest.raises(RolloutError, match=r'a server: not ready within 0 s'):
    process.wait_until(server.process, lambda: False, server.log, 0.0, 'a server')
  assert server.alive  # waiting ends nobody
  broken = run('import sys; print("line 1\\nno such model", flush=True); sys.exit(7)')
  with pytest.raises(
    RolloutError, match=r'(?s)a server: ended with status 7 before it was ready; .*no such model'
  ):
    process.wait_until(broken.process, lambda: False, broken.log, patience.seconds(60), 'a server')


def test_a_line_that_names_the_error_stands_for_the_whole_log(run):
  server = run(
    'import sys; print("noise\\nerror: the port is taken", file=sys.stderr); sys.exit(2)'
  )
  with pytest.raises(RolloutError) as error:
    process.wait_until(server.process, lambda: False, server.log, patience.seconds(60), 'a server')
  assert str(error.value) == (
    f'a server: ended with status 2 before it was ready; the port is taken (its log: {server.log})'
  )


def test_what_cannot_be_started_is_one_clear_line(tmp_path):
  with pytest.raises(RolloutError, match='cannot start /no/such/python'):
    process.start(['/no/such/python'], env={}, log=tmp_path / 'log')
  (tmp_path / 'file').write_text('')
  with pytest.raises(RolloutError, match='check both paths'):
    process.start([sys.executable], env={}, log=tmp_path / 'file' / 'log')


def test_memory_counts_children_and_is_nothing_after_the_end(run):
  hold = 'import time; held = bytearray(64 << 20); print("held", flush=True); time.sleep(600)'
  one = run(hold)
  patience.until(lambda: one.tail().count('held') == 1)
  two = run(f'import subprocess, sys; subprocess.run([sys.executable, "-c", {hold!r}])')
  patience.until(lambda: two.tail().count('held') == 2)
  assert 64 < one.memory_mb() < 96 and 64 < two.memory_mb() < 128
  one.stop(10.0)
  assert one.memory_mb() == 0


def test_a_child_that_hides_its_memory_and_is_gone_when_it_is_asked_again_holds_nothing():
  class Vanishing:
    def memory_full_info(self):
      raise psutil.AccessDenied(1)

    def memory_info(self):
      raise psutil.NoSuchProcess(1)

  assert process._memory_bytes(Vanishing()) == 0


def test_the_environment_of_the_child_is_the_given_one(run):
  server = run(
    'import os; print(sorted(set(os.environ) - {"LC_CTYPE"}), flush=True)', env={'ONE': '1'}
  )
  patience.until(lambda: not server.alive)
  assert server.tail() == "['ONE']"


FAKE = """
import multiprocessing, os, sys, time

def work():
  time.sleep(600)

if __name__ == '__main__':
  context = multiprocessing.get_context('spawn')
  child = context.Process(target=print, args=('imported',))
  child.start(); child.join()
  child = context.Process(target=time.sleep, args=(600,))
  child.start()
  print('pids', os.getpid(), child.pid, sys.argv[1:], flush=True)
  time.sleep(600)
"""


@pytest.fixture
def fake_sglang(tmp_path):
  """An environment whose `sglang.launch_server` starts a child as the real one does, and does
  nothing to end it.
  """
  package = tmp_path / 'fake' / 'sglang'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('')
  (package / 'launch_server.py').write_text(FAKE)
  return {**os.environ, 'PYTHONPATH': str(package.parent)}


START = """
import os, pathlib, sys, time
from paravt_jax.serving import process
command = [sys.executable, sys.argv[1], '--parent-pid', str(os.getpid()), '--port', '1']
process.start(command, env=dict(os.environ), log=pathlib.Path(sys.argv[2]))
time.sleep(600)
"""


@pytest.mark.parametrize('victim', ['starter', 'server'])
def test_the_launcher_lets_no_process_outlive_the_one_above_it(fake_sglang, tmp_path, victim):
  log = tmp_path / 'log'
  path = os.pathsep.join([fake_sglang['PYTHONPATH'], str(ROOT)])
  starter = subprocess.Popen(
    [sys.executable, '-c', START, str(LAUNCHER), str(log)], env={**fake_sglang, 'PYTHONPATH': path}
  )
  try:
    patience.until(lambda: log.exists() and 'pids' in log.read_text())
    line = next(line for line in log.read_text().splitlines() if line.startswith('pids'))
    server, child = (int(word) for word in line.split()[1:3])
    assert line.endswith("['--port', '1']")  # the launcher's own argument is not passed on
    os.kill(starter.pid if victim == 'starter' else server, signal.SIGKILL)
    patience.until(lambda: gone(server) and gone(child))
  finally:
    starter.kill()
    starter.wait()


SHOW = """
import json, pathlib, sys
key = json.loads(sys.stdin.readline())
seen = [pathlib.Path('/proc/self', name).read_bytes() for name in ('cmdline', 'environ')]
print(json.dumps(key), any(key[6:12].encode() in one for one in seen))
print('rest', repr(sys.stdin.read()))
"""


def test_a_key_reaches_the_child_on_its_stdin_and_nobody_else(tmp_path):
  log = tmp_path / 'log'
  child = process.start([sys.executable, '-c', SHOW], env={}, log=log, key='open "sesame"\n')
  assert child.wait(patience.seconds(60)) == 0
  assert log.read_text().splitlines() == [r'"open \"sesame\"\n" False', "rest ''"]


def test_a_child_that_ends_before_it_reads_its_key_is_no_error(tmp_path):
  child = process.start(['/bin/true'], env={}, log=tmp_path / 'log', key='k' * 1_000_000)
  assert child.wait(patience.seconds(60)) == 0


KEYED = """
import logging, sys
logging.basicConfig(level=logging.INFO, format='%(message)s')
logging.info('all arguments: %s', sys.argv[1:])
logging.info('100%', 'wrong format')
"""


@pytest.mark.parametrize('launcher', ['launch_gpu.py', 'launch_cpu.py'])
def test_the_launcher_hands_the_key_over_inside_the_process_and_logs_none(
  fake_sglang, tmp_path, launcher
):
  package = pathlib.Path(fake_sglang['PYTHONPATH'])
  (package / 'sglang' / 'launch_server.py').write_text(KEYED)
  command = [sys.executable, str(LAUNCHER.with_name(launcher)), '--key-on-stdin', '--port', '1']
  child = process.start(command, env=fake_sglang, log=tmp_path / 'log', key='-it\'s "k"')
  assert child.wait(patience.seconds(60)) == 0
  said = (tmp_path / 'log').read_text()
  assert "all arguments: ['--api-key=***', '--port', '1']" in said.replace('"', "'")

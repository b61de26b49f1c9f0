"""One process is the trivial case; knobs that contradict each other are refused; several processes
exchange values (more of them in tests/hosts).
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import hosts
from tests import patience

ALONE = hosts.Hosts(0, 1)


def test_one_process_is_alone_and_waits_for_nobody(tmp_path):
  assert hosts.current() == ALONE and ALONE.is_alone and ALONE.is_first
  ALONE.barrier('x')
  with ALONE.first_before('y'):
    pass
  channel = ALONE.channel('z')
  assert channel.exchange(3) == [3] and channel.gather(4) == [4] and channel.any(True)
  assert asyncio.run(channel.meet(5)) == [5] and not channel.any(False)
  assert ALONE.folder(tmp_path) == tmp_path and hosts.Hosts(2, 4).folder(tmp_path).name == 'host2'
  hosts.check_shared(ALONE, tmp_path / 'never made', 0.0, 'a')
  assert not (tmp_path / 'never made').exists()


def test_an_error_of_one_process_passes_as_it_is():
  options = hosts.HostsOptions.published()
  with pytest.raises(KeyError), hosts.ending_together(options) as connect:
    assert connect() == ALONE
    raise KeyError
  with contextlib.suppress(SystemExit), hosts.ending_together(None) as connect:
    assert connect() == ALONE
    sys.exit(3)


@pytest.mark.parametrize(
  'knobs, wanted',
  [
    ({'coordinator': 'a:1'}, r"coordinator='a:1': wanted '' or an address together with"),
    ({'count': 2, 'index': 2}, 'index=2: wanted below hosts.count=2'),
    *(
      ({'coordinator': wrong, 'count': 2, 'index': 0}, 'coordinator=.*: wanted .* with its port')
      for wrong in ('head', 'head:', 'head:x', 'head:99999', 'head:0', 'http://head:1234')
    ),
    # each process of the run would take itself for the only one
    ({'index': 1}, 'index=1: wanted -1, or a number together with hosts.count'),
  ],
)
def test_knobs_that_do_not_fit_each_other_are_refused(knobs, wanted):
  with pytest.raises(ConfigError, match=wanted):
    hosts.HostsOptions.published().replace(**knobs)


@pytest.mark.parametrize('address', ['10.0.0.1:1234', 'head-0.pods.svc:8476', '[::1]:1234'])
def test_addresses_have_a_port(address):
  options = hosts.HostsOptions.published().replace(coordinator=address, count=2, index=1)
  assert options.port == int(address.rpartition(':')[2])


def test_process_0_names_a_port_that_another_program_has():
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    options = hosts.HostsOptions.published().replace(coordinator=address, count=2, index=0)
    with pytest.raises(ConfigError, match=rf"coordinator='{address}': process 0 cannot listen"):
      hosts.start(options)


PROCESS = """
import pathlib, sys
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import hosts
options = hosts.HostsOptions.published().replace(heartbeat_s=10, join_s=120)
if sys.argv[4] != 'slurm':
  options = options.replace(coordinator=sys.argv[1], count=2, index=int(sys.argv[2]))
with hosts.ending_together(options) as connect:
  me = connect()
  with me.first_before('made'):
    file = pathlib.Path(sys.argv[3]) / 'made'
    if me.is_first:
      file.write_text('by 0')
    print('MADE', file.read_text())
  channel = me.channel('c')
  for size in (1, 3_000_000):
    print('EXCHANGED', [(one, len(data)) for one, data in channel.exchange((me.index, b'x' * size))])
  for n in range(3):
    print('GATHERED', channel.gather(10 * n + me.index))
  print('ANY', channel.any(me.index == 1))
  print('TOLD', me.was_told('end'))
  me.barrier('untold')
  if not me.is_first:
    me.tell('end')
    me.tell('end')
  me.barrier('told')
  print('TOLD', me.was_told('end'), me.was_told('another'))
  hosts.check_shared(me, pathlib.Path(sys.argv[3]), 20.0, 'a')
  try:
    hosts.check_shared(me, pathlib.Path(sys.argv[3]) / f'of{me.index}', 0.5, 'b')
  except ConfigError as error:
    print('REFUSED', error)
  if sys.argv[4] == 'fails' and me.index == 1:
    raise ConfigError('host 1 lacks a file')
  if sys.argv[4] == 'fails':
    channel.exchange('never answered')
"""


def run_two(folder, how):
  """(statuses, what each printed, what each said) of two processes."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  logs = [(folder / f'{index}.out', folder / f'{index}.err') for index in (0, 1)]
  started = []
  try:
    for index, (out, err) in enumerate(logs):
      words = [sys.executable, '-c', PROCESS, address, str(index), str(folder), how]
      slurm = {
        'SLURM_JOB_ID': address.rpartition(':')[2],
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '2',
        'SLURM_PROCID': str(index),
        'SLURM_LOCALID': '0',
      }
      env = {**os.environ, **(slurm if how == 'slurm' else {})}
      with out.open('w') as out, err.open('w') as err:
        started.append(subprocess.Popen(words, env=env, stdout=out, stderr=err))
    codes = [process.wait(patience.seconds(240)) for process in started]
  finally:
    for process in started:
      process.kill()
  return codes, [out.read_text() for out, _ in logs], [err.read_text() for _, err in logs]


@pytest.mark.hosts
@pytest.mark.parametrize('how', ['named', 'slurm'])
def test_two_processes_tell_each_other_values_and_see_one_folder(tmp_path, how):
  codes, printed, said = run_two(tmp_path, how)
  assert codes == [0, 0], said
  for index, one in enumerate(printed):
    assert 'MADE by 0' in one and 'ANY True' in one
    assert 'TOLD False\n' in one and 'TOLD True False\n' in one
    assert 'EXCHANGED [(0, 1), (1, 1)]' in one and 'EXCHANGED [(0, 3000000), (1, 3000000)]' in one
    gathered = [line for line in one.splitlines() if line.startswith('GATHERED')]
    assert gathered == [f'GATHERED {[10 * n, 10 * n + 1] if index == 0 else []}' for n in range(3)]
    assert 'host 1 does not see what host 0 writes there' in one
    assert 'choose a folder on a file system that all hosts share' in one


@pytest.mark.hosts
def test_a_process_whose_others_do_not_come_says_so_in_one_line(tmp_path):
  code = (
    'from paravt_jax.orchestrator import hosts\n'
    'options = hosts.HostsOptions.published().replace(join_s=2)\n'
    "hosts.start(options.replace(coordinator='127.0.0.1:1', count=2, index=1))\n"
  )
  with (tmp_path / 'err').open('w') as err:
    words = [sys.executable, '-c', code]
    assert subprocess.run(words, stderr=err, timeout=patience.seconds(120)).returncode != 0
  patience.until(lambda: (tmp_path / 'err').read_text().endswith('\n'), 'the line')
  (line,) = (tmp_path / 'err').read_text().splitlines()
  assert line.startswith('error: the processes of this run did not all come within hosts.join_s')


@pytest.mark.hosts
def test_a_process_that_fails_ends_the_other_which_says_so_in_one_line(tmp_path):
  codes, _, said = run_two(tmp_path, 'fails')
  assert codes[1] == 2 and codes[0] != 0
  assert said[1].splitlines() == ['error: host 1 lacks a file']
  assert said[0].startswith('error: host 1 has ended or cannot be reached, so this one ends too')
  assert len(said[0].splitlines()) == 1

"""Ctrl-C in one process ends all of them after the same step, each with one line."""

import signal
import socket
import subprocess
import sys

import pytest

from tests import patience
from tests.experiments import small_job
from tests.hosts import job

pytestmark = pytest.mark.hosts
# the steps of a run without their arrays: all agree on the end as `cold_start` and `training` do
PROCESS = """
import sys
from experiments import launch
from paravt_jax.orchestrator import hosts
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.orchestrator.run_folder import Interrupts
def main(recipe):
  channel, step = hosts.current().channel('steps'), 0
  with Interrupts() as interrupts:
    while not channel.any(interrupts.asked):
      step += 1
      print('STEP', flush=True) if step == 1 else None
  print('ENDED', step)
  raise KeyboardInterrupt
launch.run(main, SFTRecipe)
"""


def test_ctrl_c_in_one_process_ends_all_after_the_same_step():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  knobs = {'coordinator': address, 'count': 2, 'heartbeat_s': job.HEARTBEAT_S}
  given = [f'--config.hosts.{name}={value}' for name, value in knobs.items()]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, f'--config={small_job.ROOT}/configs/sft.py', *given]
      + [f'--config.hosts.index={number}'],
      env=small_job.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in (0, 1)
  ]
  try:
    assert [process.stdout.readline() for process in processes] == ['STEP\n', 'STEP\n']
    processes[0].send_signal(signal.SIGINT)
    ends = [process.communicate(timeout=patience.seconds(30)) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [130, 130], ends
  assert len({out for out, _ in ends}) == 1 and ends[0][0].startswith('ENDED')
  for number, (_, said) in enumerate(ends):
    lines = [line for line in said.splitlines() if line]
    assert lines[-1] == 'interrupted; the same command continues from the last checkpoint'
    assert lines[:-1] == (
      ['ending at the next safe point (again: at once) …'] if number == 0 else []
    )

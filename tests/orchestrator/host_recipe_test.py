"""The processes of a run are started with one recipe, except for where each of them works."""

import os
import socket
import subprocess
import sys

import pytest

from configs import sft
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import host_recipe
from paravt_jax.orchestrator.hosts import Hosts
from tests import patience, xla
from tests.recipes import typed

PROCESS = """
import sys
from configs import sft
from experiments import launch
from paravt_jax.orchestrator.recipes import SFTRecipe
words = ['hosts.heartbeat_s=10', 'hosts.join_s=120', *sys.argv[1:]]
sys.argv[1:] = ['--config=configs/sft.py', *(f'--config.{word}' for word in words)]
launch.run(lambda recipe: print('MAIN'), SFTRecipe)
"""


def run_two(own):
  """(statuses, what each printed, the last line that each said); own: knobs of each process."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  started = []
  try:
    for index, knobs in enumerate(own):
      named = {'coordinator': address, 'count': 2, 'index': index}
      given = {**{f'hosts.{name}': value for name, value in named.items()}, **knobs}
      words = [sys.executable, '-c', PROCESS, *(f'{name}={given[name]}' for name in given)]
      started.append(
        subprocess.Popen(
          words,
          env={**os.environ, 'XLA_FLAGS': xla.QUICK, 'JAX_PLATFORMS': 'cpu'},
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )
    ends = [process.communicate(timeout=patience.seconds(240)) for process in started]
  finally:
    for process in started:
      process.kill()
  codes = [process.returncode for process in started]
  return codes, [out for out, _ in ends], [err.splitlines()[-1:] for _, err in ends]


def test_one_process_has_one_recipe():
  host_recipe.check(Hosts(0, 1), None)


class Second(Hosts):
  """A process beside a process 0 that was started with two."""

  def of_first(self, name, value):
    """What process 0 has sent."""
    return (2, value[1])


def test_a_process_that_counts_other_processes_waits_for_none_of_them():
  with pytest.raises(ConfigError, match=r'--config.hosts.count=3: host 0 was started with 2;'):
    host_recipe.check(Second(1, 3), typed(sft.get_config()))


@pytest.mark.parametrize(
  'knob, own',
  [
    ('hosts.index', True),
    ('server.embedded.threads', True),
    ('cold_start.video.workers', True),
    ('run.folder', True),
    ('run.checkpoint_every', False),  # all write a record together
    ('train.rows', False),
    ('mesh.fsdp', False),
    ('cold_start.seed', False),
    ('model.folder', False),
  ],
)
def test_what_changes_a_step_is_of_all_processes(knob, own):
  assert host_recipe._is_own(knob) == own


@pytest.mark.hosts
def test_a_process_with_another_recipe_is_named_by_all_before_anything_runs():
  other = {'optimizer.learning_rate': 0.5, 'video.workers': 7}
  codes, printed, said = run_two([{}, other])
  assert codes == [2, 2] and printed == ['', '']
  for [line] in said:
    assert line.startswith('error: host 1 was started with other settings than host 0 (optimizer.')
    assert '-> 0.5)' in line

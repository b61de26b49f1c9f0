"""Several processes, each with its own part of the rows, make the step of one process that has them
all.
"""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from paravt_jax.train import metric_sums, sharding, step
from tests import patience
from tests.train import common

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from paravt_jax.train import metric_sums, sharding, step
from tests.train import common, hosts_test
mesh = common.mesh_of(fsdp=4)
index, count = sharding.host_rows(mesh)
assert (index, count) == (int(sys.argv[2]), 2), (index, count)
arrays, used = hosts_test.batch()
part = {name: array[:, 2 * index:2 * index + 2] for name, array in arrays.items()}
update = step.make_sft_step(common.CONFIG, common.sgd(), mesh, common.MODEL)
_, totals = update(common.fresh(common.sgd(), mesh), step.put_batch(mesh, part, used))
found = metric_sums.reduce(totals)
from paravt_jax.orchestrator import cold_start
from paravt_jax.errors import DataError
cold_start.refuse_other_plans(7)
try:
  cold_start.refuse_other_plans(index)
except DataError as error:
  print('REFUSED', error)
print('FOUND', repr(found['sft/loss']), repr(found['optim/grad_norm']))
"""


def batch():
  """Arrays [M, 4, ...] with documents in every row."""
  rng = np.random.default_rng(5)
  return common.packed([common.group(rng) for _ in range(8)]).micro_batches(4)


def test_one_process_holds_all_rows():
  assert sharding.host_rows(common.mesh_of(2, 2, 2)) == (0, 1)


@pytest.mark.slow
def test_two_processes_with_half_of_the_rows_each_make_the_step_of_one_with_all():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  env = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  started = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, address, str(i)],
      cwd=ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in (0, 1)
  ]
  try:
    said = [process.communicate(timeout=patience.seconds(600))[0] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  assert all(
    'REFUSED SFT data: the hosts planned different batches ([0, 1])' in one for one in said
  ), said
  found = [
    [
      float(word)
      for line in one.splitlines()
      if line.startswith('FOUND')
      for word in line.split()[1:]
    ]
    for one in said
  ]
  mesh = common.mesh_of(fsdp=4)
  arrays, used = batch()
  _, totals = step.make_sft_step(common.CONFIG, common.sgd(), mesh, common.MODEL)(
    common.fresh(common.sgd(), mesh), step.put_batch(mesh, arrays, used)
  )
  alone = metric_sums.reduce(totals)
  assert (
    found[0] == found[1] == pytest.approx([alone['sft/loss'], alone['optim/grad_norm']], rel=1e-5)
  )

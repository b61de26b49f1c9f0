"""Several processes, each with its own part of the rows, make the step of one process that has them
all.
"""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.train import metric_sums, step
from tests import patience, xla
from tests.train import common

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from paravt_jax.models import sharding
from paravt_jax.train import metric_sums, step
from tests.train import common, hosts_test
mesh = common.mesh_of(fsdp=4)
index, count = sharding.host_rows(mesh)
assert (index, count) == (int(sys.argv[2]), 2), (index, count)
arrays, used = hosts_test.batch()
part = {name: array[:, 2 * index:2 * index + 2] for name, array in arrays.items()}
update = step.make_sft_step(common.CONFIG, common.sgd(), mesh, common.MODEL)
_, totals = update(common.fresh(common.sgd(), mesh), step.put_batch(mesh, part, used))
found = metric_sums.reduce(totals)
from paravt_jax.orchestrator import cold_start, hosts
from paravt_jax.errors import DataError
channel = hosts.current().channel('plans')
cold_start.refuse_other_plans(channel.exchange(7))
try:
  cold_start.refuse_other_plans(channel.exchange(index))
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


def run_two(code, folder, *arguments):
  """Runs a script as two processes with two devices each. Returns what each printed.

  If one fails, the other would wait for it in a collective: it is killed, and both are shown.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  # processes on a busy machine reach a collective minutes apart
  flags = f'{xla.devices(2)} --xla_cpu_collective_timeout_seconds=3600'
  env = {**os.environ, 'XLA_FLAGS': flags}
  logs = [folder / f'process{i}.log' for i in (0, 1)]  # a pipe that nobody reads would fill up
  started = []
  try:
    for i, log in enumerate(logs):
      with log.open('w') as out:
        words = [sys.executable, '-c', code, address, str(i), *arguments]
        started.append(
          subprocess.Popen(words, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
        )
    ended = lambda: [process.poll() for process in started]
    patience.until(lambda: None not in ended() or any(ended()), 'two processes', 600.0, 0.1)
    codes = ended()
  finally:
    for process in started:
      process.kill()
      process.wait()
  said = [log.read_text() for log in logs]
  assert codes == [0, 0], said
  return said


def test_where_one_of_two_processes_fails_the_other_is_not_waited_for(tmp_path):
  waits = "import sys, time\nprint('here', sys.argv[2])\nsys.exit(3) if sys.argv[2] == '1' else time.sleep(3600)"
  with pytest.raises(AssertionError, match='here 1'):
    run_two(waits, tmp_path)


@pytest.mark.slow
def test_two_processes_with_half_of_the_rows_each_make_the_step_of_one_with_all(tmp_path):
  said = run_two(PROCESS, tmp_path)
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


RECORDS = """
import pathlib, sys, jax, jax.numpy as jnp
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.train import checkpoint, state
from tests.train import common
mesh, root = common.mesh_of(fsdp=4), pathlib.Path(sys.argv[3])
full = common.fresh(common.sgd(), mesh)
double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
with checkpoint.Writer(root / 'records', keep=1) as writer:
  for number in (1, 2):
    writer.save(number, full, {'number': number})
    full = double(full)  # while both processes write
record = checkpoint.restore(
  root / 'records', state.abstract(common.CONFIG, common.sgd(), mesh)
)
weights.save_hf(root / 'hf', common.CONFIG, record.state.params, root, shard_bytes=20_000)
multihost_utils.sync_global_devices('written')
again = state.from_folder(root / 'hf', common.CONFIG, common.sgd(), mesh, seed=0)
print('FOUND', record.step, record.host['number'], checkpoint.steps(root / 'records'),
      state.fingerprint(double(record.state).params) == state.fingerprint(full.params),
      state.fingerprint(again.params) == state.fingerprint(double(again).params))
"""


@pytest.mark.slow
def test_two_processes_write_one_record_and_one_export_and_read_them(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  for one in run_two(RECORDS, tmp_path, str(tmp_path)):
    assert 'FOUND 2 2 (2,) True False' in one, one
  _, params = weights.load_hf(tmp_path / 'hf')
  want = [2 * leaf for leaf in jax.tree.leaves(common.params())]
  assert all(map(np.array_equal, jax.tree.leaves(params), want))

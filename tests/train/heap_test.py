"""On a CPU, a step finds the pages of the step before."""

import subprocess
import sys

import pytest

from tests import patience

# prints the page faults of the third and later calls of a program with 200 MB of temporary arrays
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from paravt_jax.train import heap
if sys.argv[1] == 'keep':
  assert heap.keep_pages()
jax.devices()

@jax.jit
def run(x):
  def step(carry, i):
    carry = carry * 1.0001 + i
    return carry, carry
  _, all_of_them = jax.lax.scan(step, x, jnp.arange(12.0))
  return jnp.flip(all_of_them, 0)[:, ::64]

x = jnp.ones((4096, 1024))
faults = []
for _ in range(20):  # a busy machine frees late, and the heap grows for some calls more
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  jax.block_until_ready(run(x))
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[2:]))
"""
PAGES = 12 * 4096 * 1024 * 4 // 4096  # of the temporary arrays


def _faults(wish: str) -> int:
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, wish],
    env={'JAX_PLATFORMS': 'cpu', 'PATH': '', 'PYTHONPATH': '.'},
    capture_output=True,
    text=True,
    check=False,
    timeout=patience.seconds(120),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc only')
def test_a_program_finds_its_pages_again_and_without_it_gets_all_of_them_anew():
  assert _faults('keep') < PAGES // 20
  assert _faults('default') > PAGES // 2

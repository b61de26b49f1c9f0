"""Tiles are not slower than blocks of queries on a CPU, by the processor time of one run."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import attention
from tests.models.attention import layouts


@pytest.mark.slow
@pytest.mark.parametrize('length', [512, 1024, 2048])
def test_tiles_take_no_more_processor_time_than_chunks(length):
  part = length // 16
  tree = (4 * part, part, part, part)
  segments, branches = layouts.rows([tree, tree], [tree, (8 * part,)], length=length)
  arrays = layouts.random(segments, heads=4, kv_heads=2, width=32)

  def run(backend):
    loss = lambda *x: jnp.sum(attention.attend(*x, segments, branches, backend=backend) ** 2)
    # compiled as a user's program is, not as quickly as the other tests'
    options = {'xla_backend_optimization_level': 3}
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)), compiler_options=options)

  calls = {backend: run(backend) for backend in ('chunked', 'tiled')}
  seconds = {backend: [] for backend in calls}
  for _ in range(6):
    for backend, call in calls.items():
      start = time.process_time()
      jax.block_until_ready(call(*arrays))
      seconds[backend].append(time.process_time() - start)
  # the first call compiles
  middle = {backend: float(np.median(x[1:])) for backend, x in seconds.items()}
  print(length, middle)
  assert middle['tiled'] <= 1.1 * middle['chunked'], middle

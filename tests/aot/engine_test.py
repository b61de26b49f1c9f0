"""An embedded server of the published 8B, compiled ahead of time for GPUs and TPUs.

As in `bounds_test.py`, nothing is executed, and `make test-aot` runs one of the cases.
"""

import pathlib

import pytest

from paravt_jax.orchestrator.plan import ahead, build, engine
from tests.aot.bounds_test import AOT, COMPILERS, MORE, environment
from tests.orchestrator.plan.requests import request

environment = environment  # the fixture
# half of a host, beside other work
ON_TWO_V6E = {
  'server__embedded__lanes': ((12288, 32),),
  'server__embedded__pages': 640,
  'sampling__context': 12288,
}
# one lane, whose contexts can have every page
ON_ONE_DEVICE = {'server__kind': 'embedded', 'server__embedded__lanes': ((32768, 32),)}


@pytest.mark.parametrize(
  ('recipe', 'target', 'changes', 'form', 'most_gib', 'most_ratio'),
  [
    # :8b_tpu: two chips of each host
    pytest.param('rl:8b_tpu', 'v5p:2x2x2', {}, 'ragged', 55, 1.1, marks=AOT, id='v5p'),
    pytest.param('rl:8b_tpu', 'v6e:4x4', ON_TWO_V6E, 'ragged', 28, 1.1, marks=MORE, id='v6e'),
    # a server on one device: no other tells the kernel for what it is compiled
    pytest.param(
      'eval:8b', 'v5p:2x2x1', ON_ONE_DEVICE, 'ragged', 71, 1.1, marks=MORE, id='v5p-one'
    ),
    pytest.param('eval:8b', 'h100:1', ON_ONE_DEVICE, 'triton', 71, 1.15, marks=MORE, id='h100'),
  ],
)
def test_a_server_fits_and_reads_little_more_than_it_must(
  recipe, target, changes, form, most_gib, most_ratio, environment
):
  plan = build.make_plan(request(recipe, target, **changes))
  compiler = ahead.find_compiler(plan, COMPILERS, environment)
  assert not compiler.target.startswith('cpu'), 'the compilers of GPUs and TPUs are not there'
  found = engine.compile_server(plan, compiler, pathlib.Path(COMPILERS, 'compiled'))
  assert found is not None and found.bytes_per_token is not None
  ratio = found.bytes_per_token / found.least_bytes_per_token
  print(
    f'\n{recipe}, a server on {found.devices} of {found.target} ({found.form}): '
    f'{found.memory_gib:.1f} of {most_gib} GiB; {found.bytes_per_token / 1e9:.3f} GB of HBM per '
    f'decoded token and device, {ratio:.2f} of the limit',
    flush=True,
  )
  assert found.error == '' and found.form == form
  assert found.memory_gib <= most_gib
  assert 1.0 <= ratio <= most_ratio

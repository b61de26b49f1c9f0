"""The published scales, compiled ahead of time for their devices, stay within stated bounds.

`make test-aot` runs three of them, and `make test-aot ARGS='-m "aot or aot_more"'` all. Nothing is
executed. Figures of a program that was compiled before are kept in .venv-aot/compiled.
"""

import dataclasses
import os
import pathlib

import pytest

from paravt_jax.orchestrator.plan import ahead, build, roofline
from paravt_jax.orchestrator.plan.table import own_figures
from tests.orchestrator.plan.requests import request

COMPILERS = pathlib.Path(__file__).parents[2] / '.venv-aot'
# all sixteen for the learner, with servers elsewhere
V6E_ALL = {'mesh__fsdp': 16, 'train__rows': 16, 'server__kind': 'url'}
V5P_ALL = {'mesh__fsdp': 8, 'train__rows': 8, 'server__kind': 'url'}
# 1,024 overview frames without a context axis: each device has whole rows
FRAMES_1024 = {
  'frames__budgets': (1024,),
  'train__row_tokens': 69632,
  'train__row_images': 1088,
  'sampling__context': 69632,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A recipe, its devices, and the most that its compiled step may take of one of them."""

  recipe: str
  target: str
  most_gib: float
  changes: dict = dataclasses.field(default_factory=dict)  # of knobs, '__' for dots
  collectives: bool = True  # whether the bound of an RL micro-batch holds
  step: bool = False  # whether the bounds of a step's seconds and MFU hold


AOT, MORE = pytest.mark.aot, pytest.mark.aot_more
CASES = [
  pytest.param(Case('rl:8b', 'h100:8', 55, step=True), marks=AOT, id='rl_8b'),
  pytest.param(Case('rl:2b', 'h100:1', 45), marks=AOT, id='rl_2b'),
  pytest.param(Case('rl:8b_tpu', 'v5p:2x2x2', 62), marks=AOT, id='rl_8b_v5p'),
  pytest.param(Case('rl:8b_tpu', 'v5p:2x2x2', 55, V5P_ALL), marks=MORE, id='rl_8b_v5p_all'),
  pytest.param(Case('rl:8b_lora', 'h100:1', 40), marks=AOT, id='rl_8b_lora'),
  pytest.param(Case('rl:2b_lora', 'rtx4090:1', 12), marks=MORE, id='rl_2b_lora'),
  pytest.param(Case('rl:8b_split', 'h100:8', 70), marks=MORE, id='rl_8b_split'),
  pytest.param(Case('sft:8b', 'h100:8', 40, collectives=False), marks=MORE, id='sft_8b'),
  pytest.param(Case('rl:8b_tpu', 'v6e:4x4', 28, V6E_ALL), marks=MORE, id='rl_8b_v6e'),
  pytest.param(Case('rl:2b_long', 'h100:1', 47.5), marks=MORE, id='rl_2b_512_frames'),
  pytest.param(
    Case('sft:2b_long', 'h100:1', 45, collectives=False), marks=MORE, id='sft_2b_512_frames'
  ),
  pytest.param(Case('rl:8b', 'h100:8', 65, FRAMES_1024), marks=MORE, id='rl_8b_1024_frames'),
  pytest.param(
    Case('rl:8b_long', 'h100:8', 50, collectives=False), marks=MORE, id='rl_8b_3600_frames'
  ),
  pytest.param(
    Case('sft:8b_long', 'h100:8', 45, collectives=False), marks=MORE, id='sft_8b_3600_frames'
  ),
]
MOST_COLLECTIVE_GB = 150  # per micro-batch and device
MOST_STEP_S, LEAST_MFU = 10.0, 0.40  # at K = 64 with 5 calls, nothing overlapped
AGREEMENT = 0.15  # of the plan's memory with the compiler's


@pytest.fixture(scope='module')
def environment():
  """The environment of the compilers: this process's, without what the tests set for the CPU."""
  if not (COMPILERS / 'bin' / 'python').is_file():
    pytest.fail(f'{COMPILERS} is missing; run: make plan-env')
  ours = ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
  return {name: value for name, value in os.environ.items() if name not in ours}


@pytest.mark.parametrize('case', CASES)
def test_a_published_scale_compiles_within_its_bounds(case, environment):
  plan = build.make_plan(
    request(case.recipe, case.target, '8b' if '8b' in case.recipe else '2b', **case.changes)
  )
  compiler = ahead.find_compiler(plan, COMPILERS, environment)
  assert not compiler.target.startswith('cpu'), 'the compilers of GPUs and TPUs are not there'
  found = ahead.compile_plan(plan, compiler, COMPILERS / 'compiled')
  own, bounds = own_figures(plan), roofline.of_compiled(plan, found) or {}
  print(f'\n{line(case, found, own, bounds)}', flush=True)

  assert 'error' not in found, found['error']
  assert found['memory_gib'] <= case.most_gib
  assert own['memory_gib'] == pytest.approx(found['memory_gib'], rel=AGREEMENT)
  if case.collectives:
    assert found['collective_gb'] <= MOST_COLLECTIVE_GB
  if case.step:
    assert bounds['seconds_per_step'][1] <= MOST_STEP_S
    assert bounds['mfu'][0] >= LEAST_MFU


def line(case, found, own, bounds):
  """The figures of a case beside its bounds and the plan's own."""
  parts = [
    f'{case.recipe} on {found["target"]}: {found["memory_gib"]:.1f} of {case.most_gib:g} GiB '
    f'(plan {own["memory_gib"]:.1f})'
  ]
  for name, unit in (('collective_gb', 'GB of collectives'), ('hbm_tb', 'TB of HBM')):
    if found.get(name) is not None:
      parts.append(f'{found[name]:.2f} {unit} a micro-batch (plan {own[name]:.2f})')
  if bounds:
    seconds, mfu = bounds['seconds_per_step'], bounds['mfu']
    parts.append(f'{seconds[0]:.1f} .. {seconds[1]:.1f} s a step, MFU {mfu[0]:.2f} .. {mfu[1]:.2f}')
  parts.append('kept' if found['kept'] else f'{found["seconds"]:.0f} s to compile')
  return '; '.join(parts)

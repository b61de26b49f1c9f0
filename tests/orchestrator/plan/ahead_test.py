"""Compiling for devices that are not there: how the compiler is chosen, and what it reports."""

import dataclasses
import json
import sys

import pytest

from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan import ahead, build, gpu_spec
from tests.orchestrator.plan.requests import request


def environment_at(folder):
  """An environment as `make plan-env` makes it, with an interpreter that only exists."""
  (folder / 'bin').mkdir(parents=True)
  (folder / 'bin' / 'python').write_text('')
  library = folder / 'lib' / 'python3.11' / 'site-packages' / 'libtpu' / 'libtpu.so'
  library.parent.mkdir(parents=True)
  library.write_text('')
  return folder


def compiler(folder, *arguments, **changes):
  plan = build.make_plan(request(*arguments, **changes))
  return ahead.find_compiler(plan, folder, {'HOME': '/home/me', 'XLA_FLAGS': '--xla_a=1'})


def test_a_gpu_is_compiled_for_by_its_environment(tmp_path):
  found = compiler(environment_at(tmp_path), 'rl:8b')
  assert found.interpreter == str(tmp_path / 'bin' / 'python')
  assert found.target == 'h100:8'
  assert found.environment['HOME'] == '/home/me'
  assert '--xla_a=1' in found.environment['XLA_FLAGS']
  assert '--xla_gpu_enable_triton_gemm=false' in found.environment['XLA_FLAGS']


def test_the_learner_is_compiled_for_its_own_devices_and_not_the_servers(tmp_path):
  assert compiler(environment_at(tmp_path), 'rl:8b_split').target == 'h100:4'


def test_a_slice_of_tpus_is_compiled_for_by_libtpu(tmp_path):
  found = compiler(environment_at(tmp_path), 'rl:8b', 'v5p:2x2x2')
  assert found.target == 'v5p:2x2x2'
  assert found.environment['TPU_LIBRARY_PATH'].endswith('libtpu/libtpu.so')


def test_tpus_need_the_name_of_a_slice(tmp_path):
  with pytest.raises(ConfigError, match='name the slice, as in v5p:2x2x2'):
    compiler(environment_at(tmp_path), 'rl:8b', 'v5p:8')


def test_without_the_environment_virtual_cpu_devices_stand_in(tmp_path):
  found = compiler(tmp_path / 'missing', 'rl:8b')
  assert (found.target, found.interpreter) == ('cpu:8', sys.executable)
  assert '--xla_force_host_platform_device_count=8' in found.environment['XLA_FLAGS']


def test_every_gpu_of_the_table_has_a_description():
  for name in gpu_spec.SPECS:
    words = gpu_spec.text(name)
    assert words.count('{') == words.count('}') and 'core_count' in words
  assert 'major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES' in gpu_spec.text('h100')


def test_an_evaluation_has_nothing_to_compile(tmp_path):
  plan = build.make_plan(request('eval:tiny'))
  found = ahead.find_compiler(plan, tmp_path, {})
  with pytest.raises(ConfigError, match='no learner'):
    ahead.compile_plan(plan, found)


def test_a_compiler_that_fails_is_one_line(tmp_path):
  plan = build.make_plan(request('sft:tiny'))
  broken = tmp_path / 'python'
  broken.write_text('#!/bin/sh\necho "the compiler is broken" >&2\nexit 3\n')
  broken.chmod(0o755)
  with pytest.raises(ConfigError, match='ended with status 3: the compiler is broken'):
    ahead.compile_plan(plan, ahead.Compiler(str(broken), 'cpu:1', {}))


@pytest.mark.slow
def test_the_compilers_arguments_are_the_plans_state_and_batch():
  asked = request('sft:tiny', 'cpu:2', mesh__fsdp=2, optimizer__name='adamw')
  plan = build.make_plan(asked)
  learner = plan.learner
  found = ahead.compile_asked(
    json.loads(
      json.dumps(
        {
          'kind': learner.job.kind,
          'recipe': options.to_dict(asked.recipe),
          'model': asked.model.to_hf('bfloat16'),
          'target': 'cpu:2',
          'platform': 'cpu',
          'topology': '2',
          'count': 2,
          'shape': dataclasses.asdict(learner.largest),
          'spec': '',
          'flags': '',
          'dump': '',
          'kept': '',
        }
      )
    )
  )
  parts = plan.memory.parts
  state = parts['weights'] + parts['optimizer'] + parts['batch']
  assert found['arguments_gib'] == pytest.approx(state, rel=0.02)
  assert found['memory_gib'] > found['arguments_gib']
  assert found['collective_gb'] > 0 and found['hbm_tb'] > 0

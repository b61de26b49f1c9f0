"""Settings of the accelerator: what is set, what of the user's stays, and that XLA knows the flags."""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import base
from configs import eval as evaluation
from experiments import launch
from paravt_jax.errors import ConfigError
from paravt_jax.options import KnobError
from paravt_jax.orchestrator import device
from paravt_jax.orchestrator.device import DeviceOptions
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe

ROOT = pathlib.Path(__file__).resolve().parents[2]
GPU = DeviceOptions(memory_fraction=0.6, xla_flags='gpu')


def test_settings_hold_the_share_of_memory_and_all_flags_of_the_set():
  found = device.settings(GPU, {})
  assert found['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.6'
  assert found['XLA_FLAGS'].split() == [flag.text for flag in device.FLAG_SETS['gpu'].flags]
  assert set(found) == {'XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_FLAGS'}


def test_flags_of_tpus_are_read_by_their_own_library_alone():
  found = device.settings(GPU.replace(xla_flags='tpu'), {})
  assert 'XLA_FLAGS' not in found
  assert '--xla_tpu_enable_latency_hiding_scheduler=true' in found['LIBTPU_INIT_ARGS']


def test_no_set_leaves_the_flags_alone():
  assert set(device.settings(GPU.replace(xla_flags='none'), {'XLA_FLAGS': '--xla_a=1'})) == {
    'XLA_PYTHON_CLIENT_MEM_FRACTION'
  }


def test_what_the_user_has_set_stays():
  given = '--xla_dump_to=/d --xla_gpu_enable_triton_gemm=true'
  found = device.settings(GPU, {'XLA_FLAGS': given})['XLA_FLAGS']
  assert found.startswith(given + ' --xla_gpu_')
  assert found.count('--xla_gpu_enable_triton_gemm') == 1
  every = ' '.join(flag.text for flag in device.FLAG_SETS['gpu'].flags)
  assert 'XLA_FLAGS' not in device.settings(GPU, {'XLA_FLAGS': every})


@pytest.mark.parametrize(
  'name',
  [
    'XLA_PYTHON_CLIENT_MEM_FRACTION',
    'XLA_CLIENT_MEM_FRACTION',  # JAX refuses both
    'XLA_PYTHON_CLIENT_PREALLOCATE',
    'XLA_PYTHON_CLIENT_ALLOCATOR',
  ],
)
def test_a_users_choice_of_memory_is_not_changed(name):
  assert device.MEMORY not in device.settings(GPU, {name: '0.3'})


def test_a_run_prints_what_it_set_and_what_the_user_did():
  environment = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  environment |= device.settings(GPU, environment)
  line = device.describe(GPU, environment)
  assert 'memory as XLA_PYTHON_CLIENT_PREALLOCATE says' in line
  assert "XLA flags 'gpu': XLA_FLAGS=--xla_gpu_enable_pipelined_all_gather=true" in line
  assert device.describe(GPU, {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.6'}) == (
    "settings  XLA_PYTHON_CLIENT_MEM_FRACTION=0.6, XLA flags 'gpu'"
  )


def test_every_flag_has_a_reason_and_stands_once():
  for chosen in device.FLAG_SETS.values():
    assert all(flag.text.startswith('--xla') and len(flag.reason) > 20 for flag in chosen.flags)
    names = [flag.name for flag in chosen.flags]
    assert len(set(names)) == len(names)


def test_an_unknown_name_is_one_line_with_the_names_that_exist():
  with pytest.raises(KnobError, match="xla_flags='fast': wanted one of none, gpu, tpu"):
    GPU.replace(xla_flags='fast')
  config = base.rl('8b')
  config.device.xla_flags = 'fast'
  with pytest.raises(
    ConfigError, match=r"^--config.device.xla_flags='fast': wanted one of none, gpu, tpu$"
  ):
    launch.typed(RLRecipe, config)
  config = base.sft('8b')
  config.train.remat = 'some'
  with pytest.raises(
    ConfigError, match=r"train.remat='some': wanted one of none, layers, attention"
  ):
    launch.typed(SFTRecipe, config)


@pytest.mark.parametrize('share', [0.0, -0.1, 1.1])
def test_a_share_of_memory_lies_in_zero_to_one(share):
  with pytest.raises(KnobError, match='memory_fraction'):
    GPU.replace(memory_fraction=share)


@pytest.mark.parametrize('name', device.FLAG_SETS)
def test_the_pinned_jax_knows_every_flag(name):
  """XLA ends the process at a flag that it does not know. libtpu reads its own variable."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  environment |= device.settings(GPU.replace(xla_flags=name), environment)
  done = subprocess.run(
    [sys.executable, '-c', 'import jax; print(jax.jit(lambda x: x + 1)(1))'],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert (done.returncode, done.stdout.strip()) == (0, '2'), done.stderr


def test_an_unknown_flag_would_be_found_by_that():
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_gpu_no_such_flag=1'}
  command = [sys.executable, '-c', 'import jax; jax.jit(lambda x: x + 1)(1)']
  done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
  assert done.returncode != 0 and b'no_such_flag' in done.stderr


@pytest.mark.parametrize(
  ('scale', 'gpus'), [('8b_split', '0,1,2,3'), ('2b', '0'), ('8b', ''), ('tiny', '')]
)
def test_jax_opens_the_learners_gpus_alone_where_the_run_starts_servers(scale, gpus):
  assert device.learner_gpus(launch.typed(RLRecipe, base.rl(scale))) == gpus


@pytest.mark.parametrize(
  ('variables', 'opened'),
  [
    ({}, [('jax_cuda_visible_devices', '0,1,2,3')]),
    ({'CUDA_VISIBLE_DEVICES': '4,5,6,7'}, []),
    ({'JAX_CUDA_VISIBLE_DEVICES': '4,5,6,7'}, []),
  ],
)
def test_an_entry_point_applies_the_settings_and_leaves_the_users(
  monkeypatch, capsys, variables, opened
):
  environment, updates = dict(variables), []
  monkeypatch.setattr(launch.os, 'environ', environment)
  monkeypatch.setattr(launch.jax.config, 'update', lambda *change: updates.append(change))
  launch.use_device(launch.typed(RLRecipe, base.rl('8b_split')))
  assert updates == opened
  assert environment['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.92'
  assert environment['XLA_FLAGS'] == device.FLAG_SETS['gpu'].text
  assert capsys.readouterr().err.startswith('settings  XLA_PYTHON_CLIENT_MEM_FRACTION=0.92')


def test_recipes_without_a_learner_have_no_settings(monkeypatch):
  environment = {}
  monkeypatch.setattr(launch.os, 'environ', environment)
  launch.use_device(launch.typed(EvalRecipe, evaluation.get_config('8b')))
  assert environment == {}


@pytest.mark.parametrize('module', ['rl', 'sft'])
def test_settings_are_in_place_before_jax_asks_for_a_device(module):
  """Importing an entry point makes no backend, so `launch.use_device` comes in time."""
  program = (
    f'import experiments.{module}; from jax._src import xla_bridge; '
    'print(xla_bridge.backends_are_initialized())'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.stdout.strip() == 'False', done.stderr

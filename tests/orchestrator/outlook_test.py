"""The first lines of a run: what the devices have, what the recipe takes, and whether it fits."""

import time

import jax
import psutil
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import outlook
from paravt_jax.orchestrator.outlook import Devices
from paravt_jax.orchestrator.plan import build
from tests.effort import loop_seconds
from tests.orchestrator.plan.requests import recipe, request

H100 = Devices(8, 'NVIDIA H100 80GB HBM3', 'gpu', 72.7)


def test_the_devices_are_those_that_jax_sees():
  found = outlook.find_devices()
  assert (found.count, found.platform) == (len(jax.devices()), 'cpu')
  assert found.memory_gib == pytest.approx(psutil.virtual_memory().total / 2**30)


def test_the_need_is_the_plans_own_count():
  devices, need = outlook.lines(recipe('rl:8b'), H100)
  assert devices == 'devices   8 x NVIDIA H100 80GB HBM3, 72.7 GiB each for JAX'
  total = build.make_plan(request('rl:8b')).memory.total
  assert need.startswith(f'needs     {total:.1f} GiB a device by the plan (activations 20.4, ')
  assert need.endswith(': it fits')


def test_a_recipe_that_does_not_fit_is_said_to_with_the_command_that_helps():
  small = Devices(8, 'NVIDIA GeForce RTX 4090', 'gpu', 21.6)
  assert outlook.lines(recipe('rl:8b'), small)[1].endswith(
    'it DOES NOT FIT: python -m experiments.plan says what would'
  )


def test_a_server_on_the_learners_gpu_is_named_apart_because_jax_does_not_hold_it():
  parts = build.make_plan(request('rl:2b')).memory.parts
  learner = sum(parts.values()) - parts['server']
  need = outlook.lines(recipe('rl:2b'), Devices(1, 'NVIDIA H100 80GB HBM3', 'gpu', 51.4))[1]
  assert f'needs     {learner:.1f} GiB a device' in need
  assert f', a server {parts["server"]:.1f} GiB beside it: it fits' in need


def test_devices_of_a_cpu_share_its_memory():
  one = build.make_plan(request('sft:tiny')).memory.total
  here = Devices(4, 'cpu', 'cpu', 23.5)
  assert outlook.lines(recipe('sft:tiny'), here) == [
    'devices   4 x cpu, 23.5 GiB of memory on this machine',
    outlook.lines(recipe('sft:tiny'), here)[1],
  ]
  four = outlook.lines(recipe('sft:tiny', mesh__fsdp=4), here)[1]
  shards = build.make_plan(request('sft:tiny', 'cpu:4', mesh__fsdp=4)).memory.total
  assert f'{4 * shards:.2f} GiB on 4 virtual devices' in four and shards < one


def test_a_recipe_that_cannot_be_counted_still_runs():
  devices, need = outlook.lines(recipe('rl:8b', scale='mine'), H100)
  assert devices.startswith('devices   8 x')
  assert need.startswith("needs     not counted: scale 'mine' has no model of its own")


def test_the_lines_of_the_tiny_recipe_cost_little():
  outlook.lines(recipe('rl:tiny'), H100)
  loops, seconds = [], []
  for _ in range(3):
    loops.append(loop_seconds())
    begin = time.thread_time()
    outlook.lines(recipe('rl:tiny'), H100)
    seconds.append(time.thread_time() - begin)
  assert min(seconds) < 3 * min(loops)  # about a third of a second on a core of a server


def test_a_kernel_that_these_devices_lack_is_refused_before_the_run_begins():
  outlook.check_attention(recipe('rl:tiny'))
  with pytest.raises(ConfigError, match=r"attention='ragged': its kernel wants a TPU, .* are cpu"):
    outlook.check_attention(recipe('rl:tiny', server__embedded__attention='ragged'))
  # of servers that the run does not start it says nothing
  elsewhere = {'server__kind': 'url', 'server__embedded__attention': 'ragged'}
  outlook.check_attention(recipe('rl:tiny', **elsewhere))

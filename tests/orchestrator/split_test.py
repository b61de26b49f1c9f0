"""Which devices of each host the mesh has, and which its servers; what is refused."""

import dataclasses

import jax
import pytest

from configs import base
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import parts, servers, split
from paravt_jax.orchestrator.setup import AgentSetup
from tests.configs_test import leaves
from tests.recipes import typed


@dataclasses.dataclass(frozen=True)
class Device:
  """One of a host."""

  id: int
  process_index: int
  platform: str = 'tpu'


# two hosts of four, not in the order of hosts
TWO = [Device(n, n // 2 % 2) for n in range(8)]


def recipe(**changes):
  """A tiny run whose servers are in its process, on the eight devices of the tests."""
  return typed(base.rl('tiny'), server__embedded__in_process=True, **changes)


def hosts(*counts):
  return {n: [Device(one, n) for one in range(count)] for n, count in enumerate(counts)}


def test_the_mesh_has_the_first_devices_of_each_host_host_by_host():
  assert [one.id for one in split.of_mesh(TWO, 4)] == [0, 1, 2, 3]
  assert [one.process_index for one in split.of_mesh(TWO, 4)] == [0, 0, 1, 1]
  assert [one.id for one in split.of_mesh(TWO, 6)] == [0, 1, 4, 2, 3, 6]
  assert split.of_mesh(TWO[:1], 1) == TWO[:1]


def test_servers_have_the_devices_behind_the_mesh_each_its_own():
  knobs = {'server__count': 2, 'server__embedded__tensor_parallel': 2}
  found = recipe(mesh__fsdp=4, **knobs)
  mesh = parts.make_mesh(found.mesh, found.server)
  assert list(mesh.devices.flat) == jax.devices()[:4]
  assert split.server_devices(found.server) == 4
  given = [split.of_server(found.mesh.devices, found.server, n) for n in range(2)]
  assert given == [jax.devices()[4:6], jax.devices()[6:8]]


def test_servers_elsewhere_take_no_device_of_the_process():
  for kind in ('url', 'sglang'):
    server = recipe(server__kind=kind).server
    assert not split.is_split(server) and split.server_devices(server) == 0
  assert not split.is_split(typed(base.rl('tiny')).server)


def test_too_few_devices_say_how_many_are_wanted_for_what():
  found = recipe(mesh__fsdp=4, train__rows=4, server__embedded__tensor_parallel=8)
  says = (
    r'--config\.server\.embedded\.in_process: host 0 has 8 devices, wanted 12: 4 for its share of '
    r'the mesh and 8 behind them for servers .* lower one of the three, or name servers elsewhere'
  )
  with pytest.raises(ConfigError, match=says):
    split.check(found.mesh, found.server)
  with pytest.raises(ConfigError, match=says):
    parts.make_mesh(found.mesh, found.server)
  split.check(found.mesh, found.server.replace(kind='url'))


def test_every_host_has_the_same_share_of_the_mesh_and_the_devices_for_it():
  found = typed(base.rl('8b_tpu'))
  split.check_devices(found.mesh, found.server, hosts(4, 4))
  with pytest.raises(ConfigError, match=r'host 1 has 3 devices, wanted 4: 2 for its share'):
    split.check_devices(found.mesh, found.server, hosts(4, 3))
  with pytest.raises(
    ConfigError, match=r'got 4 devices, wanted a multiple of 3, the number of hos'
  ):
    split.check_devices(found.mesh, found.server, hosts(4, 4, 4))


@pytest.mark.parametrize(
  ('knob', 'value', 'says'),
  [
    ('server__embedded__threads', 2, r'threads=2: wanted 0 with server\.embedded\.in_process'),
    ('server__watch__memory_mb', 9000, r'memory_mb=9000: wanted 0 with server\.embedded\.in_proc'),
  ],
)
def test_what_is_a_processs_own_is_refused_for_servers_in_the_learners(knob, value, says):
  with pytest.raises(ConfigError, match=says):
    servers.check(AgentSetup.of(recipe(**{knob: value})))
  servers.check(AgentSetup.of(recipe(**{knob: value}, server__kind='url')))


def test_a_command_without_a_learner_has_no_process_to_share():
  setup = dataclasses.replace(AgentSetup.of(recipe()), mesh_devices=0)
  with pytest.raises(ConfigError, match=r'in_process=True: wanted False: only RL has a learner'):
    servers.check(setup)


def test_8b_tpu_is_8b_on_one_slice_half_for_the_learner_half_for_servers_in_its_process():
  slice_, large = leaves(base.rl('8b_tpu')), leaves(base.rl('8b'))
  assert {knob: value for knob, value in slice_.items() if value != large[knob]} == {
    'scale': '8b_tpu',
    'device.memory_fraction': 0.95,
    'device.xla_flags': 'tpu',
    'mesh.fsdp': 4,
    'train.rows': 4,
    'train.micro_batches': 64,
    'server.kind': 'embedded',
    'server.embedded.in_process': True,
    'server.embedded.lanes': ((32768, 32),),
    'server.embedded.pages': 2048,
    'server.embedded.tensor_parallel': 2,
  }
  assert leaves(base.sft('8b_tpu'))['mesh.fsdp'] == 8

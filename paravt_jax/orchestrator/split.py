"""How the devices of each host are shared by the learner and servers in its process.

A TPU is opened by one process of a host. So on a slice that learner and servers share, the servers
run in the learner's processes (`server.embedded.in_process`). On each host, the mesh has the first
devices, and the servers have those behind: `server.embedded.tensor_parallel` for each of
`server.count`.

    host 0: mesh mesh server0 server0      host 1: mesh mesh server0 server0
"""

from collections.abc import Sequence
from typing import Any

import jax

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.options import MeshOptions
from paravt_jax.orchestrator.server_options import ServersOptions


def is_split(server: ServersOptions) -> bool:
  """Returns whether servers run in the learner's process."""
  return server.kind == 'embedded' and server.embedded.in_process


def server_devices(server: ServersOptions) -> int:
  """Returns how many devices of each host the servers in its process take."""
  return server.count * server.embedded.tensor_parallel if is_split(server) else 0


def of_mesh(devices: Sequence[Any], count: int) -> list[Any]:
  """Returns `count` of the devices of all hosts: the first ones of each, host by host.

  `count` is a multiple of the number of hosts.
  """
  hosts = _by_host(devices)
  return [device for one in hosts.values() for device in one[: count // len(hosts)]]


def of_server(mesh: int, server: ServersOptions, number: int) -> list[Any]:
  """Returns the devices of this host's server `number`, behind those of the mesh.

  mesh: devices of the mesh, over all hosts.
  """
  wide = server.embedded.tensor_parallel
  first = mesh // jax.process_count() + number * wide
  return jax.local_devices()[first : first + wide]


def check(mesh: MeshOptions, server: ServersOptions) -> None:
  """Raises ConfigError if the hosts lack devices for servers beside the mesh.

  It asks JAX for its devices. Processes with the same `server` raise the same.
  """
  if is_split(server):
    check_devices(mesh, server, _by_host(jax.devices()))


def check_devices(
  mesh: MeshOptions, server: ServersOptions, hosts: dict[int, list[Any]], where: str = ''
) -> None:
  """Raises ConfigError if hosts with these devices cannot have the split. `where`: names them."""
  if mesh.devices % len(hosts):
    raise ConfigError(
      f'--config.mesh: got {mesh.devices} devices, wanted a multiple of {len(hosts)}, the number '
      f'of hosts{where}: with server.embedded.in_process each has the same share; change config.mesh'
    )
  share, beside = mesh.devices // len(hosts), server_devices(server)
  host, found = min(hosts.items(), key=lambda one: len(one[1]))
  if len(found) < share + beside:
    raise ConfigError(
      f'--config.server.embedded.in_process: host {host}{where} has {len(found)} devices, wanted '
      f'{share + beside}: {share} for its share of the mesh and {beside} behind them for servers '
      '(server.count x server.embedded.tensor_parallel); lower one of the three, or name servers '
      'elsewhere with server.kind=url and server.urls'
    )


def _by_host(devices: Sequence[Any]) -> dict[int, list[Any]]:
  """Returns the devices of each process, in their order."""
  found: dict[int, list[Any]] = {}
  for device in devices:
    found.setdefault(device.process_index, []).append(device)
  return dict(sorted(found.items()))

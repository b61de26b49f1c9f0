"""The processes of a run, one for each host, and what they tell each other besides arrays.

JAX connects them (`jax.distributed`). It finds the others by itself under Slurm, GKE, Open MPI and
on TPU slices; elsewhere the knobs `hosts.*` name them. Arrays travel by collectives of a step. Small
facts (how many rows a step needs, which groups are finished) travel by the key-value store of JAX's
coordination service, which runs in process 0: threads may use it beside a step, and a collective
they may not.

A process that dies ends the others: JAX notices it by missing heartbeats (`hosts.heartbeat_s`), or
at once where it was process 0. `native_errors` turns JAX's report of it into one line.
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, TypeVar

import jax

# JAX has no public door to the key-value store, nor to the number of processes without asking for
# devices; the requirements bound JAX to one tested series.
from jax._src import clusters, distributed

from paravt_jax import apart as apart_
from paravt_jax import wire
from paravt_jax.errors import ConfigError, ParavtError
from paravt_jax.options import COUNT, TEXT, Options, whole
from paravt_jax.orchestrator import native_errors

T = TypeVar('T')
_LAST_REPLY_S = 1.0  # for the service in process 0 to answer the others before it ends
_ADDRESS = re.compile(r'[^\s/]+:([0-9]{1,5})')
TOKEN = '.hosts'  # below the run folder, while its processes check that they all see it
INTERRUPTED, WRONG_INPUT = 130, 2  # exit statuses (experiments/launch.py)
_FOREVER_MS = 30 * 24 * 3600 * 1000  # a wait ends earlier if a process dies, for it ends all


@dataclasses.dataclass(frozen=True)
class HostsOptions(Options):
  """The processes of a run: one for each host, with all devices that it may see."""

  # address of process 0, as in 10.0.0.1:1234; '': JAX finds it (Slurm, GKE, TPU slices, Open MPI)
  coordinator: Annotated[str, TEXT]
  # processes of the run; 1: this one, whatever cluster it is in
  count: Annotated[int, whole(0, 65536, note='0: as JAX finds, 1 without a cluster')]
  index: Annotated[int, whole(-1, 65535, note='-1: as JAX finds')]  # of this process, from 0
  join_s: Annotated[int, COUNT]  # seconds that the processes wait for each other at the start
  heartbeat_s: Annotated[int, COUNT]  # seconds after which a silent process ends the others
  shared_s: Annotated[int, COUNT]  # seconds for a file of process 0 to appear on all hosts

  @classmethod
  def published(cls) -> 'HostsOptions':
    """Returns detection, and deadlines for clusters whose hosts start minutes apart."""
    return cls(coordinator='', count=0, index=-1, join_s=600, heartbeat_s=60, shared_s=60)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.coordinator and self.port is None:
      self.refuse('coordinator', "'' or an address with its port, as in 10.0.0.1:1234")
    if self.coordinator and (self.count < 1 or self.index < 0):
      self.refuse('coordinator', "'' or an address together with hosts.count and hosts.index")
    if self.index >= 0 and not self.count:
      self.refuse('index', '-1, or a number together with hosts.count and hosts.coordinator')
    if self.count and self.index >= self.count:
      self.refuse('index', f'below hosts.count={self.count}')

  @property
  def port(self) -> int | None:
    """Returns the port of the coordinator's address, None without one."""
    found = _ADDRESS.fullmatch(self.coordinator)
    return int(found[1]) if found and 0 < int(found[1]) < 65536 else None


@dataclasses.dataclass(frozen=True)
class Hosts:
  """The processes of this run. A single process is the trivial case of all methods."""

  index: int  # of this process
  count: int  # of all

  @property
  def is_first(self) -> bool:
    """Returns whether this process writes what belongs to the whole run."""
    return self.index == 0

  @property
  def is_alone(self) -> bool:
    """Returns whether there is no other process."""
    return self.count == 1

  def folder(self, run: pathlib.Path) -> pathlib.Path:
    """Returns where this process writes its own files: the run folder, or host<n>/ in it."""
    return run if self.is_first else run / f'host{self.index}'

  def channel(self, name: str, kinds: Iterable[type] = ()) -> 'Channel':
    """Returns a channel to the same thread of the other processes. Its name is used once.

    kinds: the classes whose objects it carries, beside plain values and arrays (`wire`).
    """
    return Channel(self, name, kinds)

  def of_first(self, name: str, value: T) -> T:
    """Returns process 0's value, a plain one. It waits for no other process.

    Each name is used once in a run.
    """
    key = f'paravt/first/{name}'
    if self.is_alone:
      return value
    if self.is_first:
      _client().key_value_set_bytes(key, wire.encode(value))
      return value
    return wire.decode(_client().blocking_key_value_get_bytes(key, _FOREVER_MS))

  def tell(self, name: str) -> None:
    """Makes `was_told` true in all processes."""
    if not self.is_alone:
      _client().key_value_set(f'paravt/told/{name}', '1', allow_overwrite=True)

  def was_told(self, name: str) -> bool:
    """Returns whether some process has called `tell`. It waits for none."""
    if self.is_alone:
      return False
    try:
      _client().key_value_try_get(f'paravt/told/{name}')
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith('NOT_FOUND'):
        raise
      return False
    return True

  def barrier(self, name: str) -> None:
    """Waits for all processes. Each name is used once in a run."""
    if not self.is_alone:
      _client().wait_at_barrier(f'paravt/{name}', _FOREVER_MS)

  @contextlib.contextmanager
  def first_before(self, name: str) -> Iterator[None]:
    """Runs the body in process 0, then in all others, which find what it has made."""
    if not self.is_first:
      self.barrier(name)
    yield
    if self.is_first:
      self.barrier(name)


class Channel:
  """Exchanges values between one thread of each process, in the same order everywhere."""

  def __init__(self, hosts: Hosts, name: str, kinds: Iterable[type] = ()):
    self._hosts, self._name, self._kinds = hosts, name, tuple(kinds)
    self._sent = 0
    self._kept: list[str] = []  # own keys that some process may still have to read

  def exchange(self, value: Any) -> list[Any]:
    """Returns the values of all processes, by process. It waits for the slowest of them."""
    if self._hosts.is_alone:
      return [value]
    self._send(value)
    found = [self._read(one, value) for one in range(self._hosts.count)]
    # all have sent this value, so all have read those before it
    for key in self._kept[:-1]:
      _client().key_value_delete(key)
    self._kept = self._kept[-1:]
    return found

  def gather(self, value: Any) -> list[Any]:
    """Returns the values of all processes in process 0, [] in the others, which do not wait."""
    if self._hosts.is_alone:
      return [value]
    self._send(value)
    if not self._hosts.is_first:
      return []
    return [self._read(one, value) for one in range(self._hosts.count)]

  async def meet(self, value: Any) -> list[Any]:
    """Returns the result of `exchange` without blocking the event loop."""
    return await apart(self.exchange, value)

  def any(self, value: bool) -> bool:
    """Returns whether the value is true in some process."""
    return any(self.exchange(value))

  def _send(self, value: Any) -> None:
    self._sent += 1
    self._kept.append(self._key(self._hosts.index))
    _client().key_value_set_bytes(self._kept[-1], wire.encode(value, self._kinds))

  def _read(self, one: int, own: Any) -> Any:
    if one == self._hosts.index:
      return own
    data = _client().blocking_key_value_get_bytes(self._key(one), _FOREVER_MS)
    return wire.decode(data, self._kinds)

  def _key(self, host: int) -> str:
    return f'paravt/{self._name}/{host}/{self._sent}'


async def apart(work: Callable[..., T], *arguments: Any) -> T:
  """Returns work(*arguments), run in a thread beside the event loop.

  With several processes nothing waits for that thread after an error: it may wait for a process
  that does not come.
  """
  if current().is_alone:
    return await asyncio.to_thread(work, *arguments)
  return await apart_.start(work, *arguments)


def open_devices() -> None:
  """Asks JAX for its devices, which all processes of a run must do at the same time."""
  jax.devices()


def current() -> Hosts:
  """Returns the processes that `start` has connected; one without it. It asks for no device."""
  state = distributed.global_state
  if state.client is None:
    return Hosts(0, 1)
  return Hosts(state.process_id, state.num_processes)


def _client() -> Any:
  return distributed.global_state.client


def start(options: HostsOptions) -> Hosts:
  """Connects this process to the others of its run, before JAX asks for the first device.

  Raises:
    ConfigError: the others did not come in time, JAX does not know all of their numbers, or process
      0 cannot listen.
  """
  named = options.count or options.coordinator
  if options.count == 1 or not (named or _in_cluster()):
    return current()
  if options.index == 0 and options.port is not None:
    _check_port(options)
  native_errors.watch()
  # collectives of CPUs; other platforms have their own
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # a signal ends a run at a step that all agree on, without JAX's help
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      options.coordinator or None,
      options.count or None,
      options.index if options.index >= 0 else None,
      local_device_ids=[],  # all that it may see: under Slurm JAX would take one
      initialization_timeout=options.join_s,
      heartbeat_timeout_seconds=options.heartbeat_s,
    )
  except ValueError as error:
    raise ConfigError(
      f'--config.hosts.count={options.count}: JAX finds no cluster here ({error}); name '
      'hosts.coordinator, hosts.count and hosts.index'
    ) from error
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(
      f'hosts: the processes did not meet within hosts.join_s={options.join_s} s '
      f'({str(error).splitlines()[0]}); start all of them, with the same hosts.coordinator and '
      'hosts.count, or raise hosts.join_s'
    ) from error
  return current()


def _check_port(options: HostsOptions) -> None:
  """Refuses a port on which process 0 cannot listen, because JAX would end by a signal there."""
  with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      sock.bind(('', options.port))
    except OSError as error:
      raise ConfigError(
        f'--config.hosts.coordinator={options.coordinator!r}: process 0 cannot listen on its port '
        f'({error.strerror}); choose a free one, and start one process with hosts.index=0'
      ) from error


def _in_cluster() -> bool:
  """Returns whether JAX itself finds other processes of this run."""
  kinds = [kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method]
  found = next((kind for kind in kinds if kind.is_env_present()), None)
  return found is not None and found.get_process_count() > 1


class ending_together:
  """A context in which an error of this process ends the others too.

      with ending_together(options) as connect:
        hosts = connect()

  A process that fails ends at once: the goodbyes of libraries would wait for the others, which do
  not come. A process that is finished waits for the others. It changes nothing for a single
  process, nor for a recipe without `hosts` (None).
  """

  def __init__(self, options: HostsOptions | None, *, last: bool = True):
    """Remembers the deadlines.

    Args:
      options: of the recipe.
      last: nothing comes after the body. Else only an error in it is looked at, before an event loop
        would wait for threads that wait for other processes; Ctrl-C ends it as usual.
    """
    self._options, self._last = options, last

  def __enter__(self) -> Callable[[], Hosts]:
    options = self._options
    return current if options is None else lambda: start(options)

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
    hosts = current()
    if hosts.is_alone or self._options is None:
      return
    if not self._last and (error is None or isinstance(error, KeyboardInterrupt)):
      return
    status = error.code if isinstance(error, SystemExit) else int(error is not None)
    if not status:
      hosts.barrier('end')
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # A collective fails before JAX knows which process died. It ends this one as soon as it does.
      time.sleep(1.5 * self._options.heartbeat_s)
    if isinstance(error, ParavtError):
      status = WRONG_INPUT
      print(f'error: {error}', file=sys.stderr)
    elif error is not None and not isinstance(error, SystemExit):
      traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Where all end for the same reason, each still says so: the end of process 0 is the others'.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      ends_so = status == INTERRUPTED  # after the same step, when records are written
      _client().wait_at_barrier(f'paravt/left-{status}', 20_000 if ends_so else 10_000)
    if hosts.is_first:
      time.sleep(_LAST_REPLY_S)
    os._exit(status if isinstance(status, int) else 1)


def check_shared(hosts: Hosts, folder: pathlib.Path, seconds: float, name: str) -> None:
  """Refuses a folder that not all processes see. It creates the folder.

  Process 0 writes a file with a random text, and the others read it.

  Args:
    folder: as this process names it.
    seconds: for the file to appear.
    name: of the check, used once in a run.

  Raises:
    ConfigError: some process does not see the file within `seconds`; all processes raise it.
  """
  if hosts.is_alone:
    return
  text, file = secrets.token_hex(16), folder / TOKEN
  if hosts.is_first:
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  channel = hosts.channel(f'shared/{name}')
  wanted = channel.exchange(text)[0]
  seen = channel.exchange(_appears(lambda: file.read_text() == wanted, seconds))
  if hosts.is_first:
    file.unlink(missing_ok=True)
  blind = [str(index) for index, ok in enumerate(seen) if not ok]
  if blind:
    raise ConfigError(
      f'run folder {folder}: host {", ".join(blind)} does not see what host 0 writes there '
      f'(waited hosts.shared_s={seconds:g} s); choose a folder on a file system that all hosts '
      'share with --config.run.folder=DIR'
    )


def _appears(condition: Callable[[], bool], seconds: float) -> bool:
  end = time.monotonic() + seconds
  while True:
    with contextlib.suppress(OSError):
      if condition():
        return True
    if time.monotonic() > end:
      return False
    time.sleep(0.05)

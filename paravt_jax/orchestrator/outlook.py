"""The first lines of a run: what its devices have, and what the recipe will take of them.

The need is the plan's own count (`orchestrator/plan`), for episodes of the stated shape. It reads
neither weights nor data, so it takes a fraction of a second.
"""

import dataclasses
import sys
from collections.abc import Sequence

import jax
import psutil

from paravt_jax.errors import ParavtError
from paravt_jax.orchestrator import hosts
from paravt_jax.orchestrator.plan import build, job, shapes
from paravt_jax.orchestrator.plan.accelerators import GIB, Accelerator, Target
from paravt_jax.orchestrator.plan.memory import Memory
from paravt_jax.orchestrator.plan.rules import Request
from paravt_jax.orchestrator.recipes import RLRecipe, SFTRecipe

_SHOWN = 4  # largest parts of memory on the line


@dataclasses.dataclass(frozen=True)
class Devices:
  """The devices of a process."""

  count: int  # over all processes
  kind: str  # as JAX names it
  platform: str  # of JAX
  memory_gib: float  # that JAX may take of one; on a CPU all of the machine, which they share


def announce(recipe: RLRecipe | SFTRecipe) -> None:
  """Prints what the devices have and what the recipe will take. It asks JAX for its devices."""
  found = find_devices()
  for line in lines(recipe, found) if hosts.current().is_first else ():
    print(line, file=sys.stderr, flush=True)


def check_attention(recipe: RLRecipe) -> None:
  """Raises ConfigError for a kernel of embedded servers that these devices or the model lack.

  It asks JAX for its devices. Without it the run would end when its first server starts.
  """
  if recipe.server.kind == 'embedded':
    model, _ = job.model_of(recipe, '')
    recipe.server.embedded.form(model.text.head_dim, jax.default_backend())


def find_devices() -> Devices:
  """Returns the devices that JAX sees."""
  one = jax.local_devices()[0]
  stats = one.memory_stats() or {}
  size = stats.get('bytes_limit') or psutil.virtual_memory().total
  return Devices(jax.device_count(), one.device_kind, one.platform, size / GIB)


def lines(recipe: RLRecipe | SFTRecipe, devices: Devices) -> list[str]:
  """Returns one line on the devices and one on the recipe."""
  on_cpu = devices.platform == 'cpu'
  each = 'of memory on this machine' if on_cpu else 'each for JAX'
  first = f'devices   {devices.count} x {devices.kind}, {devices.memory_gib:.1f} GiB {each}'
  try:
    memory = _count(recipe, devices)
  except ParavtError as error:
    return [first, f'needs     not counted: {" ".join(str(error).split())}']
  return [first, _need(recipe, memory, devices)]


def _count(recipe: RLRecipe | SFTRecipe, devices: Devices) -> Memory:
  """Returns the plan's count of memory.

  Raises:
    ParavtError: the recipe cannot be counted.
  """
  model, source = job.model_of(recipe, '')
  platform = 'cuda' if devices.platform == 'gpu' else devices.platform
  # a plan of seconds is not asked for, so the speeds do not matter
  accelerator = Accelerator(
    devices.kind, devices.kind, platform, devices.memory_gib, 1.0, 1.0, 1.0, 1.0, ''
  )
  target = Target(accelerator, devices.count, str(devices.count), hosts.current().count)
  asked = Request(recipe, target, model, source, shapes.shape_of(recipe, ''))
  return build.count_memory(asked)


def _need(recipe: RLRecipe | SFTRecipe, memory: Memory, devices: Devices) -> str:
  """One line: what a device of the learner needs, its largest parts, and whether it fits.

  A server on the same GPU takes memory outside of JAX. On a CPU all devices share the machine's.
  """
  on_cpu = devices.platform == 'cpu'
  server, mesh = memory.parts['server'], recipe.mesh.devices
  parts = {name: size for name, size in memory.parts.items() if name != 'server' or on_cpu}
  apart = memory.server_alone * memory.server_devices
  needed = (memory.total - server) * mesh + server + apart if on_cpu else sum(parts.values())
  where = ' a device' if not on_cpu else f' on {mesh} virtual devices' if mesh > 1 else ''
  beside = f', a server {_size(server)} GiB beside it' if server and not on_cpu else ''
  if memory.server_alone:
    beside += f', a server {_size(memory.server_alone)} GiB on each of its own'
  fits = max(needed, memory.server_alone) <= devices.memory_gib
  verdict = 'it fits' if fits else 'it DOES NOT FIT: python -m experiments.plan says what would'
  return f'needs     {_size(needed)} GiB{where} by the plan ({_largest(parts)}){beside}: {verdict}'


def _largest(parts: dict[str, float]) -> str:
  order: Sequence[tuple[str, float]] = sorted(parts.items(), key=lambda one: -one[1])
  return ', '.join(f'{name} {_size(size)}' for name, size in order[:_SHOWN] if size > 0)


def _size(gib: float) -> str:
  return f'{gib:.1f}' if gib >= 10 else f'{gib:.2f}'

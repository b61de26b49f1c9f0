"""Memory of one device by part: the learner's, and that of a server on the same device."""

import dataclasses
import math

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import split
from paravt_jax.orchestrator.plan import activations, server
from paravt_jax.orchestrator.plan.accelerators import GIB, Target
from paravt_jax.orchestrator.plan.job import Job
from paravt_jax.orchestrator.plan.server import Share
from paravt_jax.orchestrator.plan.state import State
from paravt_jax.orchestrator.server_options import ServersOptions

# What a CUDA process takes beside its allocator: context, libraries, NCCL.
CONTEXT_GIB = 1.0
# The parts of a device's memory, in the order in which they are shown.
PARTS = (
  'weights',
  'optimizer',
  'gradients',
  'reference',
  'batch',
  'activations',
  'vision',
  'head',
  'server',
)


@dataclasses.dataclass(frozen=True)
class Memory:
  """GiB on one device of the learner, and of a server on devices of its own."""

  parts: dict[str, float]  # by the names of PARTS; they add up to the peak
  server_alone: float  # of a device that only a server uses; 0 without one
  server_devices: int  # that only servers use

  @property
  def total(self) -> float:
    """Returns the GiB of a learner's device; of a server's where there is no learner."""
    return sum(self.parts.values())


def memory_of_learner(
  job: Job,
  state: State,
  section: ServersOptions | None,
  target: Target,
) -> Memory:
  """Returns the memory of a run with a learner.

  Args:
    job: with the shape of its batches.
    section: the run's servers; None for SFT.
  """
  held = job.shape.micro_batches if job.shape else job.train.micro_batches
  found = activations.activations_of(job, held)
  platform = target.accelerator.platform
  share = server.share_of(section, job.model, state.parameters, platform) if section else None
  shared, alone = placement(section, share, job.devices, target)
  parts = {
    'weights': state.weights,
    'optimizer': state.optimizer,
    'gradients': activations.gradients(job, state.gradients),
    'reference': state.reference,
    'batch': found.batch,
    'activations': found.layers,
    'vision': found.vision,
    'head': found.head,
    'server': share.total * shared if share else 0,
  }
  by_part = {name: size / GIB for name, size in parts.items()}
  return Memory(by_part, share.total / GIB if share and alone else 0.0, alone)


def memory_of_server(section: ServersOptions, share: Share | None) -> Memory:
  """Returns the memory of an evaluation: that of one server, by its parts."""
  parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
  if share is None:
    return Memory(parts, 0.0, 0)
  parts |= {'weights': share.weights / GIB, 'server': (share.cache + share.reserve) / GIB}
  return Memory(parts, sum(parts.values()), devices_of_servers(section))


def devices_of_servers(section: ServersOptions) -> int:
  """Returns how many devices the servers take that the run starts."""
  if section.kind == 'url':
    return 0
  options = section.sglang if section.kind == 'sglang' else section.embedded
  return section.count * options.tensor_parallel


def placement(
  section: ServersOptions | None, share: Share | None, learner: int, target: Target
) -> tuple[int, int]:
  """Returns (servers on a learner's device, devices that only servers use).

  SGLang servers stand on the devices that the recipe names, else behind the learner's. Embedded
  servers run on the first devices that JAX sees, which are the learner's too, or in the learner's
  process, behind the mesh on each host.
  """
  if section is None or share is None:
    return 0, 0
  needed = devices_of_servers(section)
  if split.is_split(section):
    return 0, needed * target.hosts
  if section.kind == 'embedded':
    return section.count, 0
  devices = section.sglang.devices
  if not devices:
    devices = tuple(range(learner, learner + needed))
    if learner + needed > target.count:
      devices = tuple(range(needed))
  on_learner = [one for one in devices if one < learner]
  return int(bool(on_learner)), len(devices) - len(on_learner)


def refuse_share(memory: Memory, share: float, target: Target, in_process: bool = False) -> None:
  """Raises ConfigError if the learner does not fit its share of a device (device.memory_fraction).

  What does not fit the device as a whole is left to `find_refusals`.

  Args:
    in_process: servers in the learner's process have the same share of their devices.
  """
  learner, most = memory.total - memory.parts['server'], share * target.accelerator.memory_gib
  if most < learner and memory.total <= target.usable_gib:
    raise ConfigError(
      f'--config.device.memory_fraction={share:g}: wanted at least '
      f'{math.ceil(100 * learner / target.accelerator.memory_gib) / 100:g}, {learner:.1f} GiB for '
      f'the learner, of {target.accelerator.memory_gib:.1f}; raise it, or see what would fit'
    )
  alone = memory.server_alone
  if in_process and most < alone <= target.usable_gib:
    raise ConfigError(
      f'--config.device.memory_fraction={share:g}: wanted at least '
      f'{math.ceil(100 * alone / target.accelerator.memory_gib) / 100:g}, {alone:.1f} GiB for a '
      f"server in the learner's process, of {target.accelerator.memory_gib:.1f}; raise it, or see "
      'what would fit'
    )


def find_refusals(memory: Memory, target: Target) -> list[str]:
  """Returns one line for each device that holds less than it is asked for; [] if all fits."""
  found = []
  title, most = target.accelerator.title, target.usable_gib
  shared = memory.parts['server']
  if memory.total > most:
    learner = memory.total - shared
    trains = shared and memory.parts['gradients']
    both = f' (learner {learner:.1f}, server {shared:.1f})' if trains else ''
    found.append(
      f'memory: {memory.total:.1f} GiB per device{both}, wanted at most {most:.1f}, 95 % of '
      f'{title}; see what would fit'
    )
  if memory.server_alone > most and memory.server_alone != memory.total:
    found.append(
      f'--config.server: a server takes {memory.server_alone:.1f} GiB of its device, wanted at '
      f'most {most:.1f}, 95 % of {title}; lower its cache (server.sglang.max_total_tokens, '
      'server.embedded.pages, and its lanes with attention=slots), or raise its tensor_parallel'
    )
  return found


def check_fraction(
  section: ServersOptions, share: Share | None, target: Target, learner: float = 0.0
) -> None:
  """Raises ConfigError if a server's part of a device does not hold its weights and cache.

  SGLang's fraction counts the memory that is free when it starts, behind the learner. That of an
  embedded server on a GPU counts all memory.

  Args:
    learner: the learner's share of the servers' devices (device.memory_fraction); 0 if there is
      none.
  """
  if share is None:
    return
  memory, needed = target.accelerator.memory_gib, (share.weights + share.cache) / GIB
  if section.kind == 'embedded':
    # servers in the learner's process have its share, of other devices
    own = 0 if split.is_split(section) else section.count
    taken = learner + own * section.embedded.memory_fraction
    if target.accelerator.platform == 'cuda' and taken > 1:
      raise ConfigError(
        f'--config.server.embedded.memory_fraction={section.embedded.memory_fraction:g}: with '
        f'device.memory_fraction={learner:g} and server.count={section.count} that is {taken:.2f} '
        'of a GPU, wanted at most 1; lower one of them'
      )
    return
  fraction = section.sglang.mem_fraction
  if learner:
    memory -= learner * memory + CONTEXT_GIB
  if needed <= fraction * memory:
    return
  asked = f'{needed:.1f} GiB for weights and a cache of {section.sglang.max_total_tokens} tokens'
  least = math.ceil(100 * needed / memory) / 100 if memory > 0 else math.inf
  if least < 1:
    raise ConfigError(
      f'--config.server.sglang.mem_fraction={fraction:g}: wanted at least {least:.2f}, {asked}, of '
      f'{memory:.1f}; raise it, or lower server.sglang.max_total_tokens'
    )
  beside = f' that device.memory_fraction={learner:g} leaves' if learner else ''
  raise ConfigError(
    f'--config.server.sglang: wanted {asked}, of the {max(memory, 0):.1f} GiB{beside}; see what '
    'would fit'
  )

"""How a run uses its accelerator: the share of memory that JAX takes, and a named set of XLA flags.

JAX and XLA read these settings from the environment when the first device is asked for. So an entry
point applies `settings` before that. What the user has set stays.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from paravt_jax.options import PART, Options, one_of

MEMORY = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
# Variables that also decide what JAX takes of a GPU. With one of them set, the recipe's share would
# contradict the user, and JAX refuses two fractions.
OTHER_MEMORY = {
  'XLA_CLIENT_MEM_FRACTION',
  'XLA_PYTHON_CLIENT_PREALLOCATE',
  'XLA_PYTHON_CLIENT_ALLOCATOR',
}


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag of XLA, and why it is set."""

  text: str  # as on a command line
  reason: str

  @property
  def name(self) -> str:
    """Returns the flag's name, with its dashes and without its value."""
    return self.text.partition('=')[0]


@dataclasses.dataclass(frozen=True)
class FlagSet:
  """The flags of one platform. Programs for other platforms ignore them."""

  variable: str  # of the environment, from which the platform reads its flags
  flags: tuple[Flag, ...]

  @property
  def text(self) -> str:
    """Returns all flags as on a command line."""
    return ' '.join(flag.text for flag in self.flags)


FLAG_SETS: Mapping[str, FlagSet] = {
  'none': FlagSet('XLA_FLAGS', ()),
  'gpu': FlagSet(
    'XLA_FLAGS',
    (
      Flag(
        '--xla_gpu_enable_pipelined_all_gather=true',
        "a layer's weights are gathered beside the products of the layer before it, in the forward "
        'loops; without it the first gather of a layer waits alone',
      ),
      Flag(
        '--xla_gpu_enable_triton_gemm=false',
        'products run in cuBLAS: no minutes of tuning at the start, and the program that '
        'experiments.plan --compile has measured',
      ),
      Flag(
        '--xla_gpu_enable_command_buffer=',
        'no CUDA graphs: they take memory beside the share of JAX, and steps are long',
      ),
    ),
  ),
  'tpu': FlagSet(
    'LIBTPU_INIT_ARGS',
    (
      Flag(
        '--xla_tpu_enable_latency_hiding_scheduler=true',
        'gathers of weights and sums of gradients run beside products',
      ),
      Flag(
        '--xla_tpu_enable_async_collective_fusion=true',
        'a collective runs inside the product beside it',
      ),
      Flag(
        '--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true',
        'also the gathers of weights, which are most of the traffic',
      ),
      Flag(
        '--xla_tpu_enable_async_collective_fusion_multiple_steps=true',
        'a gather may span several products, because one is too short to hide it',
      ),
      Flag(
        '--xla_tpu_overlap_compute_collective_tc=true',
        'the core computes while it sends',
      ),
    ),
  ),
}


@dataclasses.dataclass(frozen=True)
class DeviceOptions(Options):
  """How the process of a run uses its accelerator."""

  # share of a device's memory for the learner: JAX takes it of a GPU when it starts, and the plan
  # counts with it everywhere
  memory_fraction: Annotated[float, PART]
  # a named set of flags for XLA (orchestrator/device.py); none: XLA's own defaults
  xla_flags: Annotated[str, one_of(*FLAG_SETS)]

  @classmethod
  def published(cls) -> 'DeviceOptions':
    """Returns the settings of GPUs that only the learner uses.

    The rest of the memory is for the CUDA context and the buffers of NCCL.
    """
    return cls(memory_fraction=0.92, xla_flags='gpu')


def learner_gpus(recipe: Any, hosts: int = 1) -> str:
  """Returns the GPUs that JAX may open for a recipe, as in '0,1,2,3'; '' for all.

  JAX takes memory of every GPU that it sees. So it must not see those of SGLang servers which the
  run starts. The mesh is on the first GPUs of each of `hosts` hosts.
  """
  server = getattr(recipe, 'server', None)
  if server is None or server.kind != 'sglang' or server.sglang.device != 'cuda':
    return ''
  count = recipe.mesh.devices // hosts
  return ','.join(map(str, range(count))) if server.sglang.devices else ''


def settings(options: DeviceOptions, environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables to set, without those that the user has set already.

  Flags are added to those of the user. Of a flag that both name, the user's value stays.
  """
  found: dict[str, str] = {}
  if not any(name in environment for name in (MEMORY, *OTHER_MEMORY)):
    found[MEMORY] = f'{options.memory_fraction:g}'
  chosen = FLAG_SETS[options.xla_flags]
  given = environment.get(chosen.variable, '')
  named = {word.partition('=')[0] for word in given.split()}
  added = [flag.text for flag in chosen.flags if flag.name not in named]
  if added:
    found[chosen.variable] = ' '.join([*([given] if given else []), *added])
  return found


def describe(options: DeviceOptions, environment: Mapping[str, str]) -> str:
  """Returns one line for the terminal: the settings of a run, from its final environment."""
  memory = environment.get(MEMORY)
  if memory is None:
    other = next((name for name in OTHER_MEMORY if name in environment), None)
    share = f'memory as {other} says' if other else 'memory as JAX chooses'
  else:
    share = f'{MEMORY}={memory}'
  chosen = FLAG_SETS[options.xla_flags]
  flags = environment.get(chosen.variable, '')
  return f'settings  {share}, XLA flags {options.xla_flags!r}' + (
    f': {chosen.variable}={flags}' if flags else ''
  )

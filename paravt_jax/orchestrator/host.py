"""What a run needs from the process that starts it."""

import dataclasses
import pathlib
from collections.abc import Mapping

from paravt_jax.orchestrator import device


@dataclasses.dataclass(frozen=True)
class Host:
  """The environment and checkout of an entry point. The library never reads them by itself."""

  environment: Mapping[str, str]  # for the processes that the run starts
  launchers: pathlib.Path  # third_party/sglang of a checkout, which starts SGLang servers

  def child_environment(self, threads: int, memory_fraction: float | None = None) -> dict[str, str]:
    """Returns the environment of an embedded rollout server.

    Args:
      threads: CPU threads of the server; 0: as many as it likes.
      memory_fraction: share of a GPU that the server takes, in place of the learner's; None leaves
        it unchanged.
    """
    environment = dict(self.environment)
    if memory_fraction is not None and not environment.keys() & device.OTHER_MEMORY:
      environment[device.MEMORY] = f'{memory_fraction:g}'
    if threads:
      flags = f'--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={threads}'
      environment['XLA_FLAGS'] = f'{environment.get("XLA_FLAGS", "")} {flags}'
      environment['OMP_NUM_THREADS'] = str(threads)
    return environment

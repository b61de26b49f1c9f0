"""What a run needs from the process that starts it."""

import dataclasses
import pathlib
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Host:
  """The environment and checkout of an entry point. The library never reads them by itself."""

  environment: Mapping[str, str]  # for the processes that the run starts
  launchers: pathlib.Path  # third_party/sglang of a checkout, which starts SGLang servers

  def child_environment(self, threads: int) -> dict[str, str]:
    """Returns the environment of a rollout server on the CPU.

    threads: CPU threads of the server; 0 leaves the environment unchanged.
    """
    environment = dict(self.environment)
    if threads:
      flags = f'--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={threads}'
      environment['XLA_FLAGS'] = f'{environment.get("XLA_FLAGS", "")} {flags}'
      environment['OMP_NUM_THREADS'] = str(threads)
    return environment

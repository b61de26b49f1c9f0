"""A trace of some steps, for a look at what a device does in them.

It is written by `jax.profiler`. The first steps are left out: they compile.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated

import jax

from paravt_jax.options import Options, whole

WARM_UP = 2  # steps before the trace: the first compiles, the second fills caches


@dataclasses.dataclass(frozen=True)
class ProfileOptions(Options):
  """Which steps are traced."""

  # updates, after the first two of this process; a trace takes about 1 MB per 1,000 operations
  steps: Annotated[int, whole(0, note='0: none')]

  @classmethod
  def published(cls) -> 'ProfileOptions':
    """Returns no trace."""
    return cls(steps=0)


class Profiler:
  """Traces the steps of one process, if the recipe asks for it.

  It is a context: leaving it ends a trace that a short run leaves open.
  """

  def __init__(self, options: ProfileOptions, folder: pathlib.Path):
    """Prepares a trace of `options.steps` steps into `folder`, which need not exist."""
    self._options, self._folder = options, folder
    self._begun = 0  # steps so far
    self._first: int | None = None  # the first traced step, while a trace is written

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """Counts one step. Its work must be finished when the context is left."""
    if self._begun == WARM_UP and self._options.steps:
      self._folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(str(self._folder))
      self._first = self._begun
    with jax.profiler.StepTraceAnnotation('step', step_num=self._begun):
      yield
    self._begun += 1
    if self._first is not None and self._begun - self._first >= self._options.steps:
      self.close()

  def close(self) -> None:
    """Ends the trace if one is being written, and says where it lies and how to open it."""
    if self._first is None:
      return
    jax.profiler.stop_trace()
    count, self._first = self._begun - self._first, None
    print(
      f'profile: a trace of {count} steps lies in {self._folder}; open the *.trace.json.gz below '
      f'it on https://ui.perfetto.dev, or run `xprof --logdir {self._folder}` (pip install xprof)',
      file=sys.stderr,
      flush=True,
    )

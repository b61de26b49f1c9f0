"""One question of a benchmark, whatever file it came from."""

import dataclasses
from collections.abc import Mapping

from paravt_jax.types import Task


@dataclasses.dataclass(frozen=True)
class Sample:
  """A benchmark's question.

  task: what the agent is asked; its answer is the gold one, its id is unique within the benchmark. fields: by which scores are
  broken down (duration, task_type, subject, problem_type, ...), each a text. subtitles: of the video, '' for none.
  """
  benchmark: str
  task: Task
  fields: Mapping[str, str]
  subtitles: str = ''

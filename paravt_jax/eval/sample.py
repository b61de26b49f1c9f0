"""One question of a benchmark, in the same form for all files."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from paravt_jax.types import Task

# The fields of a row that is broken as published: that it is, and what is wrong with it, joined by
# '; ' (nothing where it lacks only its options).
OPTIONS, BROKEN, FAULTS = 'options', 'broken', 'broken'
NOWHERE, NO_OPTIONS = 'gold nowhere', 'options missing'


@dataclasses.dataclass(frozen=True)
class Sample:
  """A benchmark's question."""

  benchmark: str
  task: Task  # what the agent is asked; its answer is the gold one, its id unique in the benchmark
  # texts by which scores are broken down (duration, task_type, subject, ...)
  fields: Mapping[str, str]
  subtitles: str = ''  # of the video; '' for none
  # every letter that is right where the gold text is several of the options; else ()
  golds: tuple[str, ...] = ()

  @property
  def gold(self) -> str:
    """Returns the gold answer as people read it: 'B or C' where both are right."""
    return ' or '.join(self.golds) or self.task.answer

  @property
  def unanswerable(self) -> bool:
    """Whether no answer is right, because the row's gold answer matches no option."""
    return NOWHERE in faults(self.fields)


def faults(fields: Mapping[str, str]) -> tuple[str, ...]:
  """Returns the faults of a row as published, from the fields of its sample; () when there are
  none.
  """
  text = fields.get(FAULTS, NO_OPTIONS if fields.get(OPTIONS) == BROKEN else '')
  return tuple(text.split('; ')) if text else ()


def count(rows: Iterable[Mapping[str, str]]) -> dict[str, int]:
  """Counts the rows that are broken as published, from their samples' fields: 'rows' in all,
  then by fault; {} for none.
  """
  found = [faults(fields) for fields in rows]
  counts = collections.Counter(fault for each in found for fault in each)
  return {'rows': sum(map(bool, found)), **dict(sorted(counts.items()))} if counts else {}


def describe_faults(counts: Mapping[str, int]) -> str:
  """Describes such counts: '11 rows are broken as published: 2 gold nowhere, 3 option empty'; ''
  for none.
  """
  reasons = ', '.join(f'{number} {fault}' for fault, number in counts.items() if fault != 'rows')
  one = counts.get('rows') == 1
  return (
    f'{counts["rows"]} {"row is" if one else "rows are"} broken as published: {reasons}'
    if counts
    else ''
  )

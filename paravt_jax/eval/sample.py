"""Defines a benchmark question in one form for all benchmarks."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from paravt_jax.types import Task

# A row that is broken as published has fields[OPTIONS] = BROKEN. fields[FAULTS] lists its faults,
# joined by '; '. It is absent if the row only lacks its options.
OPTIONS, BROKEN, FAULTS = 'options', 'broken', 'broken'
NOWHERE, NO_OPTIONS = 'gold nowhere', 'options missing'


@dataclasses.dataclass(frozen=True)
class Sample:
  """One benchmark question with its gold answer and fields."""

  benchmark: str
  task: Task  # input of the agent, with the gold answer and an id unique in the benchmark
  # texts for score breakdowns (duration, task_type, subject, ...)
  fields: Mapping[str, str]
  subtitles: str = ''  # subtitles of the video, '' for none
  # all right letters if several options equal the gold text, else ()
  golds: tuple[str, ...] = ()

  @property
  def gold(self) -> str:
    """Returns the gold answer as text for people, such as 'B or C' if both are right."""
    return ' or '.join(self.golds) or self.task.answer

  @property
  def unanswerable(self) -> bool:
    """Whether no answer is right, because the row's gold answer matches no option."""
    return NOWHERE in faults(self.fields)


def faults(fields: Mapping[str, str]) -> tuple[str, ...]:
  """Returns the faults of a published row from the fields of its sample, () for none."""
  text = fields.get(FAULTS, NO_OPTIONS if fields.get(OPTIONS) == BROKEN else '')
  return tuple(text.split('; ')) if text else ()


def count(rows: Iterable[Mapping[str, str]]) -> dict[str, int]:
  """Returns the number of broken published rows: {'rows': total, fault: count}, {} for none.

  Args:
    rows: the fields of each row's sample.
  """
  found = [faults(fields) for fields in rows]
  counts = collections.Counter(fault for each in found for fault in each)
  return {'rows': sum(map(bool, found)), **dict(sorted(counts.items()))} if counts else {}


def describe_faults(counts: Mapping[str, int]) -> str:
  """Returns the result of `count` as text, '' for no broken rows.

  For example: '11 rows are broken as published: 2 gold nowhere, 3 option empty'.
  """
  reasons = ', '.join(f'{number} {fault}' for fault, number in counts.items() if fault != 'rows')
  one = counts.get('rows') == 1
  return (
    f'{counts["rows"]} {"row is" if one else "rows are"} broken as published: {reasons}'
    if counts
    else ''
  )

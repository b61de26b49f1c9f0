"""Reading rows of parquet files field by field: what every published schema shares. A fault is a
`Broken`, a value to count.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from paravt_jax.data.media_paths import resolve
from paravt_jax.errors import DataError

SKIPPED = 'data/skipped'  # the metric under which skipped rows are counted, by reason
_OUT = 'fix the row or set data.skip_bad_rows=True (counted in data/skipped)'
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class RowOptions:
  """skip_bad_rows: broken rows are left out and counted instead of raised. require_media: a missing
  file makes a row broken.
  """

  skip_bad_rows: bool
  require_media: bool


class Broken(Exception):
  """A row's fault, before it is known which row: 'field: got ..., wanted ...'. `reason` is a short,
  countable word.
  """

  def __init__(self, message: str, reason: str = 'schema'):
    super().__init__(message)
    self.reason = reason


def read(
  files: Sequence,
  columns: tuple[str, ...],
  parse: Callable[[dict, str], _T | None],
  options: RowOptions,
  counts: collections.Counter,
  listed: list[str] | None = None,
  *,
  optional: tuple[str, ...] = (),
  max_bad_share: float = 1.0,
) -> list[_T]:
  """Every row of some files as `parse(row, 'file:row')` has it; a broken one raises or is left out
  and counted.

  Args:
    files: parquet files. columns: that they must have; `optional`: that are read beside them where
    they are there. parse: a row's value, or None for a row that is not asked for: it is left out
    and is no fault. counts: counts[reason] grows by the broken rows that were left out. listed:
    gets a line for each. max_bad_share: of the rows that are asked for; more broken ones are
    refused even where they may be skipped.

  Raises:
    DataError: a file is missing or no parquet file with these columns; a broken row, unless it is
    to be skipped; too many;
      broken rows and not one that is whole; files without rows.
  """
  good: list[_T] = []
  bad: collections.Counter = collections.Counter()
  total = 0
  for file in files:
    for number, row in rows(pathlib.Path(file), columns, optional):
      total += 1
      try:
        parsed = parse(row, f'{pathlib.Path(file).name}:{number}')
      except (Broken, DataError) as error:
        if not options.skip_bad_rows:
          raise DataError(f'row {number} of {file}: {error}; {_OUT}') from error
        reason = reason_of(error)
        bad[reason] += 1
        if listed is not None:
          listed.append(f'{file}:{number}\t{reason}\t{error}')
      else:
        good += [] if parsed is None else [parsed]
  counts.update(bad)
  names = [str(file) for file in files]
  if not good and (bad or not total):
    raise DataError(
      f'{names}: got no usable row ({bad.total()} '
      f'skipped{" by reason: " * bool(bad)}{format_counts(bad)}), wanted at '
      'least one; check the data files'
    )
  refuse_above(max_bad_share, len(good), bad, str(names))
  return good


def reason_of(error: Exception) -> str:
  """A short, countable word for a row's fault: of a `Broken` its own; else its media path cannot be
  one.
  """
  return error.reason if isinstance(error, Broken) else 'media_path'


def format_counts(counts: collections.Counter) -> str:
  """'schema 3, missing_media 1': most first."""
  return ', '.join(f'{reason} {count}' for reason, count in counts.most_common())


def refuse_above(share: float, good: int, bad: collections.Counter, where: str) -> None:
  """Raises DataError when more than this share of the rows is broken; the message holds the
  counts.
  """
  count, total = bad.total(), good + bad.total()
  if count > share * total:
    raise DataError(
      f'{where}: {count} of {total} rows are broken ({format_counts(bad)}), wanted a share '
      'of at most '
      f'{share:g}; fix the data (each is listed by file and number), or raise data.max_bad_share'
    )


def rows(
  file: pathlib.Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict]]:
  """(row number from 0, row) of a parquet file that must have these columns; others are read only
  if `optional` names them.
  """
  if not file.is_file():
    raise DataError(
      f'{file}: no such file, wanted a parquet file with columns {list(columns)}; check the '
      'data paths'
    )
  try:
    with pyarrow.parquet.ParquetFile(file) as parquet:
      names = parquet.schema_arrow.names
      absent = [column for column in columns if column not in names]
      if absent:
        raise DataError(
          f'{file}: got columns {names}, wanted {list(columns)} (missing: {absent}); check '
          'the data paths'
        )
      number = 0
      wanted = [name for name in names if name in columns or name in optional]
      for batch in parquet.iter_batches(batch_size=256, columns=wanted):
        for row in batch.to_pylist():
          yield number, row
          number += 1
  except (pyarrow.ArrowException, OSError) as error:
    raise DataError(
      f'{file}: not a readable parquet file ({error}); write or fetch it again'
    ) from error


def media(value: Any, where: str, root: str | os.PathLike, options: RowOptions) -> str:
  if not isinstance(value, str):
    raise Broken(f'{where}: got {short(value)}, wanted a media path')
  path = resolve(value, root)
  if options.require_media and not os.path.isfile(path):
    raise Broken(
      f'{where}: no file at {path}, wanted the media of {value!r}; unpack the archives into '
      'data.media_root',
      'missing_media',
    )
  return path


def decoded(value: Any, where: str) -> Any:
  """JSON text as its value; anything else as it is."""
  if not isinstance(value, str):
    return value
  try:
    found = json.loads(value)
    if _SURROGATE.search(value):
      # a pair is one character; one alone cannot be written, nor made into tokens
      json.dumps(found, ensure_ascii=False).encode()
  except (ValueError, RecursionError) as error:
    raise Broken(f'{where}: got {short(value)}, wanted JSON ({error})', 'not_json') from error
  return found


def list_of_dicts(value: Any, where: str) -> list[dict]:
  if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
    raise Broken(f'{where}: got {short(value)}, wanted a non-empty list of objects')
  return value


def seconds(value: Any, where: str) -> float:
  try:
    number = (
      float(value)
      if isinstance(value, (int, float, str)) and not isinstance(value, bool)
      else math.nan
    )
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise Broken(f'{where}: got {short(value)}, wanted a number')
  return number


def short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + '...'

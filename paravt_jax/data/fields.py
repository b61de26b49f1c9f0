"""Reads rows of parquet files field by field; shared by all schemas.

A fault of a row is a `Broken`, which callers raise or count.
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

from paravt_jax.data.media_paths import refuse_link_outside, resolve
from paravt_jax.errors import DataError

SKIPPED = 'data/skipped'  # the metric under which skipped rows are counted, by reason
_OUT = 'fix the row or set data.skip_bad_rows=True (counted in data/skipped)'
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class RowOptions:
  """What to do with broken rows."""

  skip_bad_rows: bool  # skip and count broken rows instead of raising
  require_media: bool  # a row with a missing media file is broken
  follow_links: bool = False  # symbolic links may lead out of the media root


class Broken(Exception):
  """A fault of a row: 'field: got ..., wanted ...'. The caller adds the row's number.

  `reason` is a short word for counting.
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
  """Reads all rows of some files; returns the values of `parse(row, 'file:row')`.

  Args:
    files: parquet files.
    columns: required columns.
    parse: returns a row's value, or None for a row that the caller does not want. Such a row is
      left out and is not a fault.
    options: whether a broken row raises or is skipped.
    counts: counts[reason] is increased by the skipped broken rows.
    listed: if given, gets a line for each skipped row.
    optional: columns that are read if the file has them.
    max_bad_share: largest allowed share of broken rows, even if broken rows are skipped.

  Raises:
    DataError: a file is missing, or is not a parquet file with these columns; a row is broken and
      broken rows are not skipped; too many rows are broken; no row is usable.
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
  """Returns a short word for a row's fault: the reason of a `Broken`, else 'media_path'."""
  return error.reason if isinstance(error, Broken) else 'media_path'


def format_counts(counts: collections.Counter) -> str:
  """Formats counts, most frequent first: 'schema 3, missing_media 1'."""
  return ', '.join(f'{reason} {count}' for reason, count in counts.most_common())


def refuse_above(share: float, good: int, bad: collections.Counter, where: str) -> None:
  """Raises DataError when more than this share of the rows is broken."""
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
  """Yields (row number from 0, row) of a parquet file.

  The file must have `columns`. Of its other columns only those in `optional` are read.
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
  # ValueError, OverflowError: a value that Python has not, such as a text that is no UTF-8
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    raise DataError(
      f'{file}: not a readable parquet file ({error}); write or fetch it again'
    ) from error


def media(value: Any, where: str, root: str | os.PathLike, options: RowOptions) -> str:
  if not isinstance(value, str):
    raise Broken(f'{where}: got {short(value)}, wanted a media path')
  path = resolve(value, root)
  if not options.follow_links:
    refuse_link_outside(path, root)
  if options.require_media and not os.path.isfile(path):
    raise Broken(
      f'{where}: no file at {path}, wanted the media of {value!r}; unpack the archives into '
      'data.media_root',
      'missing_media',
    )
  return path


def decoded(value: Any, where: str) -> Any:
  """Parses JSON text; returns any other value unchanged. Raises Broken for invalid JSON."""
  if not isinstance(value, str):
    return value
  try:
    found = json.loads(value)
    if _SURROGATE.search(value):
      # a lone surrogate cannot be encoded or tokenized; a pair is one character
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
  except (ValueError, OverflowError):  # no number, or an integer beyond every float
    number = math.nan
  if not math.isfinite(number):
    raise Broken(f'{where}: got {short(value)}, wanted a number')
  return number


def short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + '...'

"""Reading rows of parquet files field by field: what every published schema shares. A fault is a `Broken`, a value to count."""

import collections
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from paravt_jax.data.media_paths import resolve
from paravt_jax.errors import DataError

SKIPPED = 'data/skipped'     # the metric under which skipped rows are counted
_OUT = 'fix the row or set data.skip_bad_rows=True (counted in data/skipped)'
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class RowOptions:
  """skip_bad_rows: broken rows are left out and counted instead of raised. require_media: a missing file makes a row broken."""
  skip_bad_rows: bool
  require_media: bool


class Broken(Exception):
  """A row's fault, before it is known which row: 'field: got ..., wanted ...'. `reason` is a short, countable word."""

  def __init__(self, message: str, reason: str = 'schema'):
    super().__init__(message)
    self.reason = reason


def read(files: Sequence, columns: tuple[str, ...], parse: Callable[[dict, str], _T], options: RowOptions,
          counts: collections.Counter) -> list[_T]:
  """Every row of some files as `parse(row, 'file:row')` has it; a broken one raises or is left out and counted."""
  good: list[_T] = []
  for file in files:
    for number, row in rows(pathlib.Path(file), columns):
      try:
        good.append(parse(row, f'{pathlib.Path(file).name}:{number}'))
      except (Broken, DataError) as error:
        if not options.skip_bad_rows:
          raise DataError(f'row {number} of {file}: {error}; {_OUT}') from error
        counts[SKIPPED] += 1
  if not good:
    raise DataError(f'{[str(file) for file in files]}: got no usable row ({counts[SKIPPED]} skipped), wanted at least one; '
                    'check the data files')
  return good


def rows(file: pathlib.Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
  """(row number from 0, row) of a parquet file that must have these columns."""
  if not file.is_file():
    raise DataError(f'{file}: no such file, wanted a parquet file with columns {list(columns)}; check the data paths')
  try:
    with pyarrow.parquet.ParquetFile(file) as parquet:
      names = parquet.schema_arrow.names
      absent = [column for column in columns if column not in names]
      if absent:
        raise DataError(f'{file}: got columns {names}, wanted {list(columns)} (missing: {absent}); check the data paths')
      number = 0
      for batch in parquet.iter_batches(batch_size=256):
        for row in batch.to_pylist():
          yield number, row
          number += 1
  except (pyarrow.ArrowException, OSError) as error:
    raise DataError(f'{file}: not a readable parquet file ({error}); write or fetch it again') from error


def media(value: Any, where: str, root: str | os.PathLike, options: RowOptions) -> str:
  if not isinstance(value, str):
    raise Broken(f'{where}: got {short(value)}, wanted a media path')
  path = resolve(value, root)
  if options.require_media and not os.path.isfile(path):
    raise Broken(f'{where}: no file at {path}, wanted the media of {value!r}; unpack the archives into data.media_root',
                 'missing_media')
  return path


def decoded(value: Any, where: str) -> Any:
  """JSON text as its value; anything else as it is."""
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except ValueError as error:
    raise Broken(f'{where}: got {short(value)}, wanted JSON ({error})') from error


def list_of_dicts(value: Any, where: str) -> list[dict]:
  if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
    raise Broken(f'{where}: got {short(value)}, wanted a non-empty list of objects')
  return value


def seconds(value: Any, where: str) -> float:
  try:
    number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise Broken(f'{where}: got {short(value)}, wanted a number')
  return number


def short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + '...'

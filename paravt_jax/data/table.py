"""Random access to SFT rows.

A source's parquet files are opened but not parsed; a row is parsed to a `Conversation` on access.

With a cache folder the column `messages` of each file is stored as a memory-mapped Arrow file.
Opening it again is fast, and 100,000 rows take almost no memory. Without a folder the column stays
in memory as Arrow text.

  <folder>/rows/<digest of the parquet file>.arrow     column messages, in the file's order; metadata: provenance
"""

import bisect
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from paravt_jax import files
from paravt_jax.data import conversations, provenance
from paravt_jax.data.conversations import Conversation
from paravt_jax.data.fields import Broken, RowOptions
from paravt_jax.errors import DataError

VERSION = 1  # of the cached files; increase when the same parquet file gives other content
_BATCH = 1024  # rows read at a time


@dataclasses.dataclass(frozen=True)
class Shard:
  """One parquet file."""

  path: pathlib.Path
  digest: str  # of its content
  first: int  # number of its first row within the table
  rows: int  # number of rows


class Table(Sequence):
  """The conversations of some parquet files, in the order of files and rows.

  A row is parsed only on access. Safe to use from several threads.

  Args:
    files: parquet files with a column `messages`; they may be empty.
    media_root: the folder that media paths are relative to.
    options: `require_media` makes a row without its media broken; `skip_bad_rows` is not used here.
    folder: a cache folder, created if missing; None keeps the text in memory. If the folder cannot
      be written, the text is also kept in memory.

  Raises:
    DataError: a file is missing, or is not a parquet file with that column.
  """

  def __init__(
    self,
    files: Sequence[str | os.PathLike],
    media_root: str | os.PathLike,
    options: RowOptions,
    folder: str | os.PathLike | None = None,
  ):
    self._root, self._options = media_root, options
    self._columns: list[pa.ChunkedArray] = []
    self._starts: list[list[int]] = []  # of each shard: the first row of each of its chunks
    shards, first = [], 0
    for file in map(pathlib.Path, files):
      digest = _digest(file)
      column = _column(file, digest, pathlib.Path(folder) if folder else None)
      self._columns.append(column)
      self._starts.append([0, *_ends(column)])
      shards.append(Shard(file, digest, first, len(column)))
      first += len(column)
    self.shards = tuple(shards)
    self._rows = first
    self._firsts = [shard.first for shard in shards]

  def __len__(self) -> int:
    return self._rows

  def locate(self, row: int) -> tuple[int, int]:
    """Returns (number of the shard, row within it). Raises IndexError outside the table."""
    if not 0 <= row < self._rows:
      raise IndexError(f'row {row} of a table of {self._rows} rows')
    # the last shard that starts at or before the row; this skips empty shards
    shard = bisect.bisect_right(self._firsts, row) - 1
    return shard, row - self._firsts[shard]

  def name(self, row: int) -> str:
    """Returns 'file.parquet:row' of a row, even if the row is not readable."""
    shard, inner = self.locate(row)
    return f'{self.shards[shard].path.name}:{inner}'

  def __getitem__(self, row: int) -> Conversation:
    """Returns one row.

    Raises:
      fields.Broken: the row breaks the schema.
      DataError: a media path is not valid.
      IndexError: the row is outside the table.
    """
    shard, inner = self.locate(row)
    starts = self._starts[shard]
    chunk = bisect.bisect_right(starts, inner) - 1
    try:
      value = self._columns[shard].chunk(chunk)[inner - starts[chunk]].as_py()
    except (ValueError, OverflowError) as error:
      raise Broken(
        f'{conversations.COLUMN}: cannot be read ({error}), wanted UTF-8 text'
      ) from error
    return conversations.conversation(
      value, f'{self.shards[shard].path.name}:{inner}', self._root, self._options
    )

  @property
  def identity(self) -> tuple[tuple[str, str], ...]:
    """Returns (file name, digest of its content) of every shard."""
    return tuple((shard.path.name, shard.digest) for shard in self.shards)


def _ends(column: pa.ChunkedArray) -> Iterator[int]:
  end = 0
  for chunk in column.chunks:
    end += len(chunk)
    yield end


def _digest(file: pathlib.Path) -> str:
  if not file.is_file():
    raise DataError(
      f'{file}: no such file, wanted a parquet file with column {conversations.COLUMN}; '
      'check the data paths'
    )
  return provenance.digest(file)


def _column(file: pathlib.Path, digest: str, folder: pathlib.Path | None) -> pa.ChunkedArray:
  """Returns the column `messages`, mapped from the cache, else read into memory.

  Fills the cache first if the file is not cached.
  """
  if folder is None:
    return _read(file)
  target = folder / 'rows' / f'{digest}-{VERSION}.arrow'
  try:
    try:
      return _map_column(target)
    except (FileNotFoundError, pa.ArrowInvalid):  # not there yet, or damaged
      _write(file, target)
      return _map_column(target)
  except (OSError, pa.ArrowInvalid) as error:
    logging.getLogger(__name__).warning(
      '%s: cannot be used as a cache (%s); rows are kept in memory, wanted space for them: free '
      'some space or set data.cache_folder elsewhere',
      target,
      error,
    )
    return _read(file)


def _map_column(target: pathlib.Path) -> pa.ChunkedArray:
  with pa.memory_map(str(target)) as source:
    return pa.ipc.open_file(source).read_all().column(conversations.COLUMN)


def _read(file: pathlib.Path) -> pa.ChunkedArray:
  schema, batches = _batches(file)
  return pa.chunked_array([batch.column(0) for batch in batches], schema.field(0).type)


def _write(file: pathlib.Path, target: pathlib.Path) -> None:
  """Writes a file's column to the cache, one batch of rows at a time.

  Raises:
    OSError: the folder cannot be written.
  """
  schema, batches = _batches(file)
  record = json.dumps(provenance.record('data.table', VERSION, [file], {}))
  with (
    files.replacing(target, sync=True) as out,
    pa.ipc.new_file(out, schema.with_metadata({provenance.KEY: record})) as writer,
  ):
    for batch in batches:
      writer.write_batch(batch.replace_schema_metadata({provenance.KEY: record}))


def _batches(file: pathlib.Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
  """Returns (schema with the one column, its batches). Raises DataError."""
  try:
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
  except (pa.ArrowException, OSError, UnicodeError) as error:
    raise _parquet_error(file, error) from error
  if conversations.COLUMN not in names:
    parquet.close()
    raise DataError(
      f'{file}: got columns {names}, wanted {conversations.COLUMN}; check the data paths'
    )
  kind = parquet.schema_arrow.field(conversations.COLUMN).type
  plain = kind.value_type if pa.types.is_dictionary(kind) else kind
  schema = pa.schema([(conversations.COLUMN, plain)])
  return schema, _iterate(file, parquet, schema)


def _iterate(
  file: pathlib.Path, parquet: pq.ParquetFile, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
  with parquet:
    batches = parquet.iter_batches(batch_size=_BATCH, columns=[conversations.COLUMN])
    while True:
      try:
        batch = next(batches, None)
      except (pa.ArrowException, OSError, UnicodeError) as error:
        raise _parquet_error(file, error) from error
      if batch is None:
        return
      column = batch.column(0)
      yield pa.record_batch(
        [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column],
        schema=schema,
      )


def _parquet_error(file: pathlib.Path, error: Exception) -> DataError:
  return DataError(f'{file}: not a readable parquet file ({error}); write or fetch it again')

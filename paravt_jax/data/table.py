"""SFT rows by number: a source's parquet files are opened, not parsed; a row becomes a
`Conversation` when it is asked for.

With a cache folder the column `messages` of each file lies there as an Arrow file that is mapped
into memory, so that opening it again is quick and a hundred thousand rows take next to no memory;
without one it is kept in memory as Arrow text.

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
from paravt_jax.data.fields import RowOptions
from paravt_jax.errors import DataError

VERSION = 1  # of the cached files; raise when the same parquet file gives other content
_BATCH = 1024  # rows read at a time


@dataclasses.dataclass(frozen=True)
class Shard:
  """One parquet file."""

  path: pathlib.Path
  digest: str  # of its content
  first: int  # number of its first row within the table
  rows: int  # how many it has


class Table(Sequence):
  """The conversations of some parquet files, in the order of files and rows; nothing is parsed
  before it is asked for.

  Safe to use from several threads.

  Args:
    files: parquet files with a column `messages`; they may be empty. media_root: where media paths
    lie. options: `require_media` makes a row without its media broken; `skip_bad_rows` is the
    caller's business. folder: a cache, made if missing; None keeps the text in memory. What cannot
    be written there is kept in memory.

  Raises:
    DataError: a file is missing, or no parquet file with that column.
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
    """(number of the shard, row within it)."""
    if not 0 <= row < self._rows:
      raise IndexError(f'row {row} of a table of {self._rows} rows')
    # the last that begins there: empty ones before it are passed over
    shard = bisect.bisect_right(self._firsts, row) - 1
    return shard, row - self._firsts[shard]

  def name(self, row: int) -> str:
    """'file.parquet:row' of a row, whether it can be read or not."""
    shard, inner = self.locate(row)
    return f'{self.shards[shard].path.name}:{inner}'

  def __getitem__(self, row: int) -> Conversation:
    """One row. Raises fields.Broken, or DataError for a media path that cannot be one; IndexError
    beyond the end.
    """
    shard, inner = self.locate(row)
    starts = self._starts[shard]
    chunk = bisect.bisect_right(starts, inner) - 1
    value = self._columns[shard].chunk(chunk)[inner - starts[chunk]].as_py()
    return conversations.conversation(
      value, f'{self.shards[shard].path.name}:{inner}', self._root, self._options
    )

  @property
  def identity(self) -> tuple[tuple[str, str], ...]:
    """(file name, digest of its content) of every shard."""
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
  """The column `messages`: mapped from the cache, which is filled first where it can be, else read
  into memory.
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
      '%s: cannot be used as a cache (%s); rows are kept in memory, wanted room for them: free '
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
  """Fills the cache, a batch of rows at a time. Raises OSError when the folder cannot be
  written.
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
  """(schema of the one column, its batches). Raises DataError."""
  try:
    parquet = pq.ParquetFile(file)
  except (pa.ArrowException, OSError) as error:
    raise _parquet_error(file, error) from error
  names = parquet.schema_arrow.names
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
      except (pa.ArrowException, OSError) as error:
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

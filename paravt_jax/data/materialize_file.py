"""Rewrites the media paths of one parquet file, unless its output is up to date."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet

from paravt_jax import files
from paravt_jax.data import provenance
from paravt_jax.data.media_columns import COLUMNS, Direction, Rewriter
from paravt_jax.errors import DataError

VERSION = 1  # increase when the same inputs give other outputs
_TOOLS = ('paravt_jax.data.materialize', 'paravt_jax.data.sanitize')
_SCHEMA = b'ARROW:schema'


@dataclasses.dataclass(frozen=True)
class Job:
  """The arguments of one call of `rewrite_files`."""

  direction: Direction
  root: str  # absolute path of the media root
  source: pathlib.Path  # folder of the inputs
  output: pathlib.Path  # folder of the outputs

  @property
  def tool(self) -> str:
    return f'paravt_jax.data.{self.direction}'

  @property
  def options(self) -> dict[str, str]:
    """Returns the options that the outputs depend on.

    A sanitized file is meant to be published, so it stores only a hash of the root.
    """
    if self.direction == 'materialize':
      return {'root': self.root}
    return {'root_blake2b': files.digest(self.root.encode())}


def target_of(job: Job, file: pathlib.Path) -> pathlib.Path:
  return job.output / file.relative_to(job.source)


def rewrite(
  job: Job, file: pathlib.Path, tick: Callable[[int], None]
) -> tuple[list[str] | None, Rewriter]:
  """Writes one file, unless it is up to date.

  Returns (reasons, rewriter). The reasons say why an existing output was replaced. They are None if
  it was up to date and [] if there was no output. The rewriter has the counts. Raises DataError.
  """
  target = target_of(job, file)
  try:
    why = _changes(job, file, target)
    # recorded before reading, so that a later change of the input is noticed
    made = (
      None if why is None else provenance.record(job.tool, VERSION, [file], job.options, job.source)
    )
    with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as source:
      earlier = provenance.read((source.metadata.metadata or {}).get(provenance.KEY))
      rewriter = _rewriter(job, earlier, source.metadata.num_rows)
      # up to date: only count the media; else write the output
      if made is None:
        columns = [name for name in source.schema_arrow.names if name in COLUMNS]
        for number in range(source.num_row_groups):
          rewriter.table(source.read_row_group(number, columns=columns))
          tick(source.metadata.row_group(number).num_rows)
      else:
        _write(
          source,
          target,
          rewriter,
          made | {'rows': source.metadata.num_rows} | _before(earlier),
          tick,
        )
  except (pyarrow.ArrowException, OSError, UnicodeError) as error:
    raise DataError(
      f'{file}: {one_line(error)}, wanted to write it to {target}; fetch the file again, or free '
      'space and check permissions, then run again (finished files are kept)'
    ) from error
  return why, rewriter


def _changes(job: Job, file: pathlib.Path, target: pathlib.Path) -> list[str] | None:
  """Returns why the output must be written; None if it is up to date, [] if it does not exist."""
  if not target.exists():
    return []
  try:
    there = pyarrow.parquet.read_metadata(target)
  except (pyarrow.ArrowException, OSError):
    return ['it is no whole parquet file']
  known = provenance.read((there.metadata or {}).get(provenance.KEY))
  if known is None or known.get('tool') not in _TOOLS:
    raise DataError(
      f'{target}: was not written by this command, wanted a place that is free; move it away or '
      'choose another --output-dir'
    )
  found = provenance.changes(known, job.tool, VERSION, [file], job.options, job.source)
  if not found and known.get('rows') != there.num_rows:
    found = [f'it has {there.num_rows} rows, and had {known.get("rows")}']
  return found or None


def _written_root(job: Job, earlier: dict[str, Any] | None) -> str | None:
  """Returns this root's name as `materialize` wrote it into an input; None if it did not."""
  root = (
    earlier.get('options', {}).get('root')
    if earlier is not None and earlier.get('tool') == _TOOLS[0]
    else None
  )
  return (
    root if isinstance(root, str) and os.path.realpath(root) == os.path.realpath(job.root) else None
  )


def _rewriter(job: Job, earlier: dict[str, Any] | None, rows: int) -> Rewriter:
  """Returns the rewriter for an input with this record.

  It gets all names of the root, and the URIs that were in the rows before `materialize` ran.
  """
  written = _written_root(job, earlier)
  roots = [job.root, os.path.realpath(job.root), written or job.root]
  known = earlier is not None and written is not None and earlier.get('rows') == rows
  return Rewriter(job.direction, roots, earlier.get('kept', {}) if earlier and known else None)


def _before(earlier: dict[str, Any] | None) -> dict[str, Any]:
  """Returns the record of the program that made the rows, under the key `before`.

  Both commands pass it on. Their own records are dropped, since they would only accumulate.
  """
  if earlier is not None and earlier.get('tool') in _TOOLS:
    earlier = earlier.get('before')
  return {'before': earlier} if earlier else {}


def _write(
  source: pyarrow.parquet.ParquetFile,
  target: pathlib.Path,
  rewriter: Rewriter,
  made: dict[str, Any],
  tick: Callable[[int], None],
):
  """Writes the whole file to a temporary file in the same folder, then renames it."""
  own = {
    key: value
    for key, value in (source.metadata.metadata or {}).items()
    if key not in (_SCHEMA, provenance.KEY)
  }
  inside = {
    key: value
    for key, value in (source.schema_arrow.metadata or {}).items()
    if key != provenance.KEY
  }
  schema = source.schema_arrow.with_metadata(inside or None)
  with (
    files.replacing(target, sync=True) as file,
    pyarrow.parquet.ParquetWriter(file, schema, **_format(source)) as writer,
  ):
    for number in range(source.num_row_groups):
      table = rewriter.table(source.read_row_group(number))
      writer.write_table(table, row_group_size=max(1, table.num_rows))
      tick(table.num_rows)
    kept = {'kept': rewriter.kept} if rewriter.kept and made['tool'] == _TOOLS[0] else {}
    writer.add_key_value_metadata(own | {provenance.KEY: json.dumps(made | kept).encode()})


def _format(source: pyarrow.parquet.ParquetFile) -> dict[str, Any]:
  """Returns how the input was written, as arguments of the parquet writer."""
  described = source.metadata
  options: dict[str, Any] = {
    'version': described.format_version,
    'store_schema': _SCHEMA in (described.metadata or {}),
  }
  if not described.num_row_groups:
    return options
  groups = [described.row_group(number) for number in range(described.num_row_groups)]
  # an empty row group has no information on dictionaries
  group = next((group for group in groups if group.num_rows), groups[0])
  chunks = [group.column(index) for index in range(group.num_columns)]
  lists = [chunk.path_in_schema for chunk in chunks if '.list.' in chunk.path_in_schema]
  codecs = {
    chunk.path_in_schema: 'NONE' if chunk.compression == 'UNCOMPRESSED' else chunk.compression
    for chunk in chunks
  }
  coded = [
    chunk.path_in_schema
    for chunk in chunks
    if {'RLE_DICTIONARY', 'PLAIN_DICTIONARY'} & set(chunk.encodings)
  ]
  return options | {
    'compression': codecs if len(set(codecs.values())) > 1 else next(iter(codecs.values()), 'NONE'),
    'use_dictionary': coded if 0 < len(coded) < len(chunks) else bool(coded),
    'write_statistics': any(chunk.is_stats_set for chunk in chunks),
    'write_page_index': any(chunk.has_offset_index for chunk in chunks),
    'use_compliant_nested_type': not lists or any('.list.element' in path for path in lists),
    'use_deprecated_int96_timestamps': any(chunk.physical_type == 'INT96' for chunk in chunks),
    'sorting_columns': group.sorting_columns or None,
  }


def one_line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__

"""Sentinel media paths of parquet files, written as `file://` URIs under a root;
`paravt_jax.data.sanitize` is the inverse.

Run: python -m paravt_jax.data.materialize --root DIR --parquet-dir DIR --output-dir DIR

Every *.parquet below --parquet-dir is written to the same place below --output-dir, row group by
row group, with its schema, its columns, its compression and its own metadata. A file appears by
rename, says in its metadata what it was made from, and is left alone by a second run until its
input, the root or this command has changed. What has no file below the root is counted by bucket on
the screen and in materialize_report.json, and listed in missing.txt. Exit status: 0 done; 1 nothing
found (no parquet file, or none with such a path: the outputs are copies then); 2 refused, a line
each (no such root, a damaged file, a full disk).
"""

import collections
import dataclasses
import json
import os
import pathlib
import stat
import sys
from collections.abc import Callable
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet
import tqdm

from paravt_jax import files
from paravt_jax.data import command_line, media_paths, provenance
from paravt_jax.data.media_columns import COLUMNS, Direction, Rewriter
from paravt_jax.errors import DataError, ParavtError

VERSION = 1  # raised when the same inputs give other outputs
_TOOLS = ('paravt_jax.data.materialize', 'paravt_jax.data.sanitize')
_Count = collections.Counter[str]
_SCHEMA = b'ARROW:schema'
_EXAMPLES = 20  # paths per bucket that the JSON report shows; missing.txt has them all
_SAID = {
  'sentinel': 'sentinels already',
  'in_root': 'file:// URIs under the root already',
  'kept': 'file:// URIs that stood there before materialize',
  'leaves_root': 'sentinels that are no path inside the root',
  'doubled_scheme': 'doubled file://',
  'other_file_uri': 'file:// URIs of other places',
  'url': 'URLs',
  'absolute_path': 'absolute paths',
  'relative_path': 'other relative paths',
  'empty': 'empty strings',
  'elsewhere': 'sentinels in text or under unknown keys',
  'other_type': 'values of types that are not looked into',
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What `rewrite_files` did.

  files and rows: all of the input. written and up_to_date: files. redone: output file -> why it was
  made again. values: media paths changed (in up-to-date files too). unknown: values left alone, by
  `media_columns.Rewriter.left`. referenced, missing, empty: distinct media files by bucket; empty
  ones have 0 bytes. absent: the missing and empty ones by bucket, sorted. left_over: outputs of
  earlier runs whose input is gone.
  """

  files: int
  rows: int
  written: int
  up_to_date: int
  redone: dict[str, list[str]]
  values: int
  unknown: collections.Counter[str]
  referenced: collections.Counter[str]
  missing: collections.Counter[str]
  empty: collections.Counter[str]
  absent: dict[str, list[str]]
  left_over: list[str]


@dataclasses.dataclass(frozen=True)
class _Job:
  direction: Direction
  root: str
  source: pathlib.Path
  output: pathlib.Path

  @property
  def tool(self) -> str:
    return f'paravt_jax.data.{self.direction}'

  @property
  def options(self) -> dict[str, str]:
    """What the outputs depend on. A sanitized file is made to be given away: it names no folder of
    this machine.
    """
    if self.direction == 'materialize':
      return {'root': self.root}
    return {'root_blake2b': files.digest(self.root.encode())}


def rewrite_files(
  direction: Direction,
  root: str | os.PathLike,
  parquet_dir: str | os.PathLike,
  output_dir: str | os.PathLike,
  progress: Callable[[int, int], None] | None = None,
) -> Report:
  """Rewrites the media paths of every *.parquet below `parquet_dir`; see the module's docstring.
  Memory: about one row group.

  progress: called with (rows done, rows in all) after every row group.

  Raises:
    DataError: no such root or parquet folder; an output inside the parquet folder; a file that
    cannot be read or written; an
      output that some other program made. Files finished before stay, and a next run goes on after
      them.
  """
  job = _Job(direction, _root(root), _folder(parquet_dir), pathlib.Path(output_dir))
  rows = {file: _footer(file) for file in _files(job)}
  _refuse([fault for fault in rows.values() if isinstance(fault, str)])
  total, done = sum(rows.values()), 0

  def tick(count: int):
    nonlocal done
    done += count
    if progress:
      progress(done, total)

  for folder in {_target(job, file).parent for file in rows}:
    if folder.is_dir():
      files.sweep(folder)
  redone: dict[str, list[str]] = {}
  unknown: collections.Counter[str] = collections.Counter()
  found: set[str] = set()
  values = written = 0
  for file in rows:
    why, rewriter = _rewrite_one(job, file, tick)
    redone |= {str(file.relative_to(job.source)): why} if why else {}
    written, values = written + (why is not None), values + rewriter.changed
    unknown += rewriter.left
    found |= rewriter.found if direction == 'materialize' else set()
  referenced, missing, empty, absent = _look(found, job.root)
  report = Report(
    len(rows),
    total,
    written,
    len(rows) - written,
    redone,
    values,
    unknown,
    referenced,
    missing,
    empty,
    absent,
    _left_over(job, set(rows)),
  )
  if rows:
    _save(report, job)
  return report


def _root(root: str | os.PathLike) -> str:
  base = os.path.abspath(root)
  if not os.path.isdir(base):
    raise DataError(
      f'{base}: {"a file" if os.path.exists(base) else "no such folder"}, wanted the media '
      'root that the archives '
      'were unpacked into; check --root'
    )
  try:
    base.encode()
  except UnicodeEncodeError as error:
    raise DataError(
      f'{base!r}: a name that is not UTF-8, wanted a media root that a URI can hold; rename '
      'it or link to it'
    ) from error
  return base


def _folder(parquet_dir: str | os.PathLike) -> pathlib.Path:
  if not os.path.isdir(parquet_dir):
    raise DataError(
      f'{parquet_dir}: {"a file" if os.path.exists(parquet_dir) else "no such folder"}, '
      'wanted a folder with *.parquet '
      'at any depth; check --parquet-dir'
    )
  return pathlib.Path(parquet_dir)


def _files(job: _Job) -> list[pathlib.Path]:
  """The inputs in order. Raises DataError where an output would lie among them."""
  source = os.path.realpath(job.source)
  files = sorted(
    file
    for file in job.source.rglob('*.parquet')
    if not file.is_dir()
    and not any(part.startswith('.') for part in file.relative_to(job.source).parts)
  )
  for folder in {job.output, *(_target(job, file).parent for file in files)}:
    if os.path.commonpath([source, os.path.realpath(folder)]) == source:
      raise DataError(
        f'{folder}: lies in the parquet folder {job.source}, wanted outputs in a place of '
        'their own; choose another '
        '--output-dir'
      )
  return files


def _target(job: _Job, file: pathlib.Path) -> pathlib.Path:
  return job.output / file.relative_to(job.source)


def _footer(file: pathlib.Path) -> int | str:
  """How many rows a parquet file has, or what is wrong with it."""
  try:
    return pyarrow.parquet.read_metadata(file).num_rows
  except (pyarrow.ArrowException, OSError) as error:
    return f'{file}: not a readable parquet file ({_line(error)}); write or fetch it again'


def _refuse(faults: list[str]):
  if faults:
    raise DataError('\n'.join(faults))


def _rewrite_one(
  job: _Job, file: pathlib.Path, tick: Callable[[int], None]
) -> tuple[list[str] | None, Rewriter]:
  """(why an output that was there had to be made again, None if it was up to date; what was seen on
  the way).
  """
  target = _target(job, file)
  try:
    why = _changes(job, file, target)
    made = (
      None if why is None else provenance.record(job.tool, VERSION, [file], job.options, job.source)
    )  # before it is read
    with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as source:
      earlier = provenance.read((source.metadata.metadata or {}).get(provenance.KEY))
      rewriter = _rewriter(job, earlier, source.metadata.num_rows)
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
      f'{file}: {_line(error)}, wanted to write it to {target}; fetch the file again, or '
      'make room and check '
      'permissions, then run again (finished files are kept)'
    ) from error
  return why, rewriter


def _changes(job: _Job, file: pathlib.Path, target: pathlib.Path) -> list[str] | None:
  """None where the output is up to date; else why it is made again, nothing to say for one that was
  not there.
  """
  if not target.exists():
    return []
  try:
    there = pyarrow.parquet.read_metadata(target)
  except (pyarrow.ArrowException, OSError):
    return ['it is no whole parquet file']
  known = provenance.read((there.metadata or {}).get(provenance.KEY))
  if known is None or known.get('tool') not in _TOOLS:
    raise DataError(
      f'{target}: was not written by this command, wanted a place that is free; move it away '
      'or choose another '
      '--output-dir'
    )
  found = provenance.changes(known, job.tool, VERSION, [file], job.options, job.source)
  if not found and known.get('rows') != there.num_rows:
    found = [f'it has {there.num_rows} rows, and had {known.get("rows")}']
  return found or None


def _written_root(job: _Job, earlier: dict[str, Any] | None) -> str | None:
  """The name that `materialize` wrote for this very root in an input that it made."""
  root = (
    earlier.get('options', {}).get('root')
    if earlier is not None and earlier.get('tool') == _TOOLS[0]
    else None
  )
  return (
    root if isinstance(root, str) and os.path.realpath(root) == os.path.realpath(job.root) else None
  )


def _rewriter(job: _Job, earlier: dict[str, Any] | None, rows: int) -> Rewriter:
  """For an input with this record: it knows the root by all its names, and what `materialize` had
  met there already.
  """
  written = _written_root(job, earlier)
  roots = [job.root, os.path.realpath(job.root), written or job.root]
  return Rewriter(
    job.direction,
    roots,
    earlier.get('kept', {}) if written and earlier.get('rows') == rows else None,
  )


def _before(earlier: dict[str, Any] | None) -> dict[str, Any]:
  """The record of whatever made the rows, handed on through both commands; their own records would
  only pile up.
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
  """The whole file, through a temporary one beside it."""
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
  """How the input was written, as arguments of the writer."""
  described = source.metadata
  options: dict[str, Any] = {
    'version': described.format_version,
    'store_schema': _SCHEMA in (described.metadata or {}),
  }
  if not described.num_row_groups:
    return options
  groups = [described.row_group(number) for number in range(described.num_row_groups)]
  group = next(
    (group for group in groups if group.num_rows), groups[0]
  )  # an empty one says nothing about dictionaries
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


def _look(found: set[str], root: str) -> tuple[_Count, _Count, _Count, dict[str, list[str]]]:
  """(referenced, missing, empty, absent) of a `Report`, for these sentinels. Links are followed."""
  referenced, missing, empty = collections.Counter(), collections.Counter(), collections.Counter()
  absent: dict[str, list[str]] = {}
  for sentinel in sorted(found):
    bucket = media_paths.bucket(sentinel)
    referenced[bucket] += 1
    size = _size(media_paths.resolve(sentinel, root) if '..' in sentinel else f'{root}/{sentinel}')
    if not size:
      (missing if size is None else empty)[bucket] += 1
      absent.setdefault(bucket, []).append(sentinel)
  return referenced, missing, empty, absent


def _size(path: str) -> int | None:
  try:
    found = os.stat(path)
  except (OSError, ValueError):  # ValueError: half a surrogate pair, which no file's name holds
    return None
  return found.st_size if stat.S_ISREG(found.st_mode) else None


def _left_over(job: _Job, files: set[pathlib.Path]) -> list[str]:
  """Outputs of this command whose input is gone. They stay: somebody may read them."""
  targets = {_target(job, file) for file in files}
  others = [
    file for file in sorted(job.output.rglob('*.parquet')) if file not in targets and file.is_file()
  ]
  return [
    str(file) for file in others if isinstance(_footer(file), int) and _made_by(file) == job.tool
  ]


def _made_by(file: pathlib.Path) -> str | None:
  known = provenance.read((pyarrow.parquet.read_metadata(file).metadata or {}).get(provenance.KEY))
  return known.get('tool') if known else None


def _save(report: Report, job: _Job):
  """The report's files in the output folder, touched only where they say something new."""
  buckets = {
    name: {
      'referenced': count,
      'missing': report.missing[name],
      'empty': report.empty[name],
      'first': report.absent.get(name, [])[:_EXAMPLES],
    }
    for name, count in sorted(report.referenced.items())
  }
  content = {
    'tool': job.tool,
    'version': VERSION,
    'options': job.options,
    'files': report.files,
    'rows': report.rows,
    'values': report.values,
    'left_alone': dict(sorted(report.unknown.items())),
  }
  if job.direction == 'materialize':
    content['buckets'] = buckets
    _put(
      job.output / 'missing.txt',
      ''.join(f'{_printable(path)}\n' for paths in report.absent.values() for path in paths),
    )
  _put(job.output / f'{job.direction}_report.json', json.dumps(content, indent=2) + '\n')


def _put(path: pathlib.Path, text: str):
  content = text.encode('utf-8', 'backslashreplace')
  try:
    files.write_if_changed(path, content, sync=False)
  except OSError as error:
    raise DataError(
      f'{path}: {error.strerror}, wanted to write the report; make room or check '
      'permissions, then run again '
      '(finished files are kept)'
    ) from error


def _printable(path: str) -> str:
  """One line for one path, whatever characters it holds."""
  return path if path.isprintable() else json.dumps(path)[1:-1]


def _line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def show(report: Report, direction: Direction, out: TextIO):
  """The report as a person reads it."""
  for name, why in report.redone.items():
    print(f'{name}: made again, {"; ".join(why)}', file=out)
  for name in report.left_over:
    print(
      f'{name}: left over from an earlier run, its input is gone; remove it if nobody reads it',
      file=out,
    )
  if report.referenced:
    width = max(len('bucket'), *map(len, report.referenced))
    print(f'{"bucket":<{width}}  {"referenced":>10}  {"missing":>10}  {"empty":>10}', file=out)
    for name, count in sorted(report.referenced.items()):
      print(
        f'{name:<{width}}  {count:>10,}  {report.missing[name]:>10,}  {report.empty[name]:>10,}',
        file=out,
      )
  for kind, count in sorted(report.unknown.items()):
    print(f'left alone: {count:,} {_SAID[kind]}', file=out)
  done = (
    'up to date'
    if not report.written
    else f'{report.written} written, {report.up_to_date} up to date'
  )
  wanted = {
    'materialize': 'sentinels made file:// URIs',
    'sanitize': 'file:// URIs made sentinels',
  }[direction]
  print(f'{report.files} files, {report.rows:,} rows: {done}; {report.values:,} {wanted}', file=out)


def command(direction: Direction, description: str, arguments: list[str] | None = None) -> int:
  """The command line of both directions; returns the exit status."""
  parser = command_line.parser(direction, description)
  parser.add_argument(
    '--root', required=True, help='the media root that the archives were unpacked into'
  )
  parser.add_argument('--parquet-dir', required=True, help='a folder with *.parquet at any depth')
  parser.add_argument(
    '--output-dir',
    required=True,
    help='where they are written, in the same layout; outside --parquet-dir',
  )
  options = parser.parse_args(arguments)
  try:
    with tqdm.tqdm(unit='row', unit_scale=True, file=sys.stderr, delay=1) as bar:

      def progress(done: int, total: int):
        bar.total = total
        bar.update(done - bar.n)

      report = rewrite_files(
        direction, options.root, options.parquet_dir, options.output_dir, progress
      )
  except ParavtError as error:
    print(error, file=sys.stderr)
    return 2
  if not report.files:
    print(
      f'{options.parquet_dir}: got no *.parquet at any depth, wanted at least one; check '
      '--parquet-dir',
      file=sys.stderr,
    )
    return 1
  show(report, direction, sys.stdout)
  if not report.values:
    wanted = {
      'materialize': f'one that begins with {", ".join(media_paths.SENTINELS)}',
      'sanitize': f'one that begins with {media_paths.prefix(options.root)}',
    }[direction]
    print(
      f'{options.parquet_dir}: got no media path to change, wanted {wanted}; the outputs are '
      'copies',
      file=sys.stderr,
    )
    return 1
  return 0


def main(arguments: list[str] | None = None) -> int:
  """The command; returns its exit status."""
  return command('materialize', __doc__, arguments)


if __name__ == '__main__':
  sys.exit(main())

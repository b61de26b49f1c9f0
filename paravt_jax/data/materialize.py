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
import os
import pathlib
import sys
from collections.abc import Callable, Iterable

import pyarrow
import pyarrow.parquet
import tqdm

from paravt_jax import files
from paravt_jax.data import command_line, media_paths, provenance
from paravt_jax.data.materialize_file import Job, one_line, rewrite, target_of
from paravt_jax.data.materialize_report import Report, count_media, save, show
from paravt_jax.data.media_columns import Direction
from paravt_jax.errors import DataError, ParavtError


def rewrite_files(
  direction: Direction,
  root: str | os.PathLike,
  parquet_dir: str | os.PathLike,
  output_dir: str | os.PathLike,
  progress: Callable[[int, int], None] | None = None,
) -> Report:
  """Rewrites the media paths of every *.parquet below `parquet_dir`; see the module docstring.

  Memory use is about one row group. progress: called as progress(rows done, all rows).

  Raises:
    DataError: there is no such root or parquet folder; an output is inside the parquet folder; a
      file cannot be read or written; an output was made by another program. Finished files stay,
      and the next run continues after them.
  """
  job = Job(direction, _root(root), _folder(parquet_dir), pathlib.Path(output_dir))
  footers = {file: _footer(file) for file in _files(job)}
  _refuse([fault for fault in footers.values() if isinstance(fault, str)])
  rows = {file: count for file, count in footers.items() if isinstance(count, int)}
  total, done = sum(rows.values()), 0

  def tick(count: int):
    nonlocal done
    done += count
    if progress:
      progress(done, total)

  _sweep(job, rows)
  # rewrite one file after the other; the counts cover all files
  redone: dict[str, list[str]] = {}
  unknown: collections.Counter[str] = collections.Counter()
  found: set[str] = set()
  values = written = 0
  for file in rows:
    why, rewriter = rewrite(job, file, tick)
    redone |= {str(file.relative_to(job.source)): why} if why else {}
    written, values = written + (why is not None), values + rewriter.changed
    unknown += rewriter.left
    found |= rewriter.found if direction == 'materialize' else set()
  referenced, missing, empty, absent = count_media(found, job.root)
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
    _list_leftovers(job, set(rows)),
  )
  if rows:
    save(report, job)
  return report


def _sweep(job: Job, inputs: Iterable[pathlib.Path]) -> None:
  """Removes partial files of killed runs in the output folders."""
  for folder in {target_of(job, file).parent for file in inputs}:
    if folder.is_dir():
      files.sweep(folder)


def _root(root: str | os.PathLike) -> str:
  base = os.path.abspath(root)
  if not os.path.isdir(base):
    raise DataError(
      f'{base}: {"a file" if os.path.exists(base) else "no such folder"}, wanted the media root '
      'that the archives were unpacked into; check --root'
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
      f'{parquet_dir}: {"a file" if os.path.exists(parquet_dir) else "no such folder"}, wanted a '
      'folder with *.parquet at any depth; check --parquet-dir'
    )
  return pathlib.Path(parquet_dir)


def _files(job: Job) -> list[pathlib.Path]:
  """Returns the input files in order. Raises DataError if an output folder is among them."""
  source = os.path.realpath(job.source)
  files = sorted(
    file
    for file in job.source.rglob('*.parquet')
    if not file.is_dir()
    and not any(part.startswith('.') for part in file.relative_to(job.source).parts)
  )
  for folder in {job.output, *(target_of(job, file).parent for file in files)}:
    if os.path.commonpath([source, os.path.realpath(folder)]) == source:
      raise DataError(
        f'{folder}: lies in the parquet folder {job.source}, wanted outputs in a place of their '
        'own; choose another --output-dir'
      )
  return files


def _footer(file: pathlib.Path) -> int | str:
  """Returns the number of rows of a parquet file, or an error message."""
  try:
    return pyarrow.parquet.read_metadata(file).num_rows
  except (pyarrow.ArrowException, OSError) as error:
    return f'{file}: not a readable parquet file ({one_line(error)}); write or fetch it again'


def _refuse(faults: list[str]):
  if faults:
    raise DataError('\n'.join(faults))


def _list_leftovers(job: Job, files: set[pathlib.Path]) -> list[str]:
  """Returns the outputs of this command that no longer have an input. They may still be in use."""
  targets = {target_of(job, file) for file in files}
  others = [
    file for file in sorted(job.output.rglob('*.parquet')) if file not in targets and file.is_file()
  ]
  return [
    str(file) for file in others if isinstance(_footer(file), int) and _read_tool(file) == job.tool
  ]


def _read_tool(file: pathlib.Path) -> str | None:
  known = provenance.read((pyarrow.parquet.read_metadata(file).metadata or {}).get(provenance.KEY))
  return known.get('tool') if known else None


def command(direction: Direction, description: str, arguments: list[str] | None = None) -> int:
  """Runs the command line of either direction and returns the exit status."""
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
  """Runs the command and returns its exit status."""
  return command('materialize', __doc__ or '', arguments)


if __name__ == '__main__':
  sys.exit(main())

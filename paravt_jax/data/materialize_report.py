"""The report of `materialize` and `sanitize`: counts, written next to the outputs and printed."""

import collections
import dataclasses
import json
import os
import pathlib
import stat
from typing import TextIO

from paravt_jax import files
from paravt_jax.data import media_paths
from paravt_jax.data.materialize_file import VERSION, Job
from paravt_jax.data.media_columns import Direction
from paravt_jax.errors import DataError

_Count = collections.Counter[str]
_EXAMPLES = 20  # paths per bucket in the JSON report; missing.txt lists all
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
  """The result of `rewrite_files`."""

  files: int  # input files
  rows: int  # input rows
  written: int  # output files
  up_to_date: int  # output files that did not change
  redone: dict[str, list[str]]  # output file -> reasons why it was replaced
  values: int  # changed media paths, including those in up-to-date files
  unknown: collections.Counter[str]  # unchanged values by kind; see `media_columns.Rewriter.left`
  referenced: collections.Counter[str]  # distinct media files by bucket
  missing: collections.Counter[str]  # number of them that do not exist
  empty: collections.Counter[str]  # number of them with 0 bytes
  absent: dict[str, list[str]]  # paths of missing and empty files by bucket, sorted
  left_over: list[str]  # outputs of earlier runs whose input is gone


def count_media(found: set[str], root: str) -> tuple[_Count, _Count, _Count, dict[str, list[str]]]:
  """Returns (referenced, missing, empty, absent) of a `Report` for sentinels. Follows links."""
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
  except (OSError, ValueError):  # ValueError: half a surrogate pair, which no file name can contain
    return None
  return found.st_size if stat.S_ISREG(found.st_mode) else None


def save(report: Report, job: Job):
  """Writes the report's files into the output folder. A file changes only if its content does."""
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
      f'{path}: {error.strerror}, wanted to write the report; free space or check permissions, '
      'then run again (finished files are kept)'
    ) from error


def _printable(path: str) -> str:
  """Returns the path as one line, with special characters escaped."""
  return path if path.isprintable() else json.dumps(path)[1:-1]


def show(report: Report, direction: Direction, out: TextIO):
  """Prints the report for a human reader."""
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

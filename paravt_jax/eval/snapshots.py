"""Finds a benchmark's files in a hub snapshot: rows, videos, archives and subtitles.

This module downloads nothing.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from paravt_jax import files
from paravt_jax.data import archive_parts, archive_unread, unpack
from paravt_jax.data.archive_members import PLAIN
from paravt_jax.data.archives import kind_of
from paravt_jax.data.archives import read as read_archive
from paravt_jax.errors import DataError
from paravt_jax.eval import subtitles
from paravt_jax.eval.subtitles import subtitle_lines as subtitle_lines

VIDEOS = ('.mp4', '.mkv', '.webm', '.avi', '.mov', '.flv', '.wmv', '.m4v')
SUBTITLES = subtitles.SUFFIXES
_MARK = 'every file compared with its checksum'  # marks without this text are ignored
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')


def root(folder: str | os.PathLike) -> pathlib.Path:
  """Returns the folder that holds a snapshot's files.

  This is the folder itself, unless it is a hub cache (`snapshots/<revision>`). For a cache, it is
  the revision of `main`, or else the newest one.

  Raises:
    DataError: there is no such folder.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise DataError(
      f'{folder}: no such folder, wanted the files of a hub snapshot; fetch it or correct the path'
    )
  revisions = sorted(
    (path for path in folder.glob('snapshots/*') if path.is_dir()),
    key=lambda path: path.stat().st_mtime,
  )
  main = folder / 'refs' / 'main'
  if main.is_file():
    named = folder / 'snapshots' / main.read_text().strip()
    return named if named.is_dir() else revisions[-1] if revisions else folder
  return revisions[-1] if revisions else folder


# Rows.


def row_files(folder: pathlib.Path, globs: Sequence[str]) -> list[pathlib.Path]:
  """Returns the files of the first glob with a match, sorted by name.

  Raises:
    DataError: no glob matches.
  """
  for pattern in globs:
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if files:
      return files
  raise DataError(
    f'{folder}: no row file, wanted one of {", ".join(globs)}; fetch the snapshot again or '
    'correct the path'
  )


def rows(
  file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number from 0, row) with only these columns from a parquet, json or jsonl file.

  A json file contains a list, or an object with exactly one list.

  Raises:
    DataError: the file cannot be read, or lacks a column.
  """
  read = _parquet if file.suffix == '.parquet' else _json
  for number, row in enumerate(read(file, columns, optional)):
    absent = [column for column in columns if column not in row]
    if absent:
      raise DataError(
        f'{file}: row {number} has the columns {sorted(row)}, wanted {list(columns)} (missing: '
        f'{absent}); fetch the published file'
      )
    yield number, {name: row[name] for name in (*columns, *optional) if name in row}


def _parquet(
  file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[dict[str, Any]]:
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      names = table.schema_arrow.names
      absent = [column for column in columns if column not in names]
      if absent:
        raise DataError(
          f'{file}: got the columns {names}, wanted {list(columns)} (missing: {absent}); fetch the '
          'published file'
        )
      for batch in table.iter_batches(
        batch_size=256, columns=[name for name in names if name in columns or name in optional]
      ):
        yield from batch.to_pylist()
  # ValueError, OverflowError: a value that Python has not, such as a text that is no UTF-8
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    raise DataError(f'{file}: no readable parquet file ({error}); fetch it again') from error


def _json(
  file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[dict[str, Any]]:
  try:
    data = file.read_bytes()
    text = data.decode(json.detect_encoding(data)).removeprefix('\ufeff')
    found = _lines(text) if _is_lines(file, text) else _parse_json(text)
    if _SURROGATE.search(text):  # half of a surrogate pair cannot be tokenized
      json.dumps(found, ensure_ascii=False).encode()
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(
      f'{file}: no readable {file.suffix[1:]} file ({error}); fetch it again'
    ) from error
  if isinstance(found, dict):
    lists = [value for value in found.values() if isinstance(value, list)]
    found = lists[0] if len(lists) == 1 else found
  if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
    raise DataError(
      f'{file}: got {type(found).__name__}, wanted a list of objects; fetch the published file'
    )
  yield from found


def _lines(text: str) -> list[Any]:
  """Returns the values of JSON lines.

  Only newlines end a line, because strings may contain U+2028 and similar characters.
  """
  found = []
  for number, line in enumerate(text.split('\n'), 1):
    try:
      if line.strip():
        found.append(_parse_json(line))
    except ValueError as error:
      raise ValueError(f'line {number}: {error}') from error
  return found


def _parse_json(text: str) -> Any:
  return json.loads(
    text, strict=False
  )  # not strict, because strings may contain control characters


def _is_lines(file: pathlib.Path, text: str) -> bool:
  """Whether a file has JSON lines: it is named .jsonl, or its first two lines are JSON objects."""
  if file.suffix == '.jsonl':
    return True
  lines = [line.strip() for line in text.lstrip().split('\n', 2)[:2]]
  return len(lines) > 1 and all(line.startswith('{') and line.endswith('}') for line in lines)


# Files.


class Files:
  """An index of the files below `folders` with one of `suffixes`.

  If two folders have a file, the first folder wins. Links to folders are followed, and hidden
  folders are skipped.
  """

  def __init__(self, folders: Iterable[str | os.PathLike], suffixes: Sequence[str]):
    self._suffixes = suffixes
    self._by_stem: dict[str, list[tuple[tuple[str, ...], pathlib.Path, int]]] = (
      collections.defaultdict(list)
    )
    for rank, folder in enumerate(folders):
      for path in _walk(pathlib.Path(folder)):
        bare, suffix = os.path.splitext(path.name)
        if suffix.lower() in suffixes:
          self._by_stem[bare].append((path.relative_to(folder).parts, path, rank))

  def __len__(self) -> int:
    return sum(map(len, self._by_stem.values()))

  def find(self, wanted: str, folders: Sequence[str], depth: int) -> pathlib.Path | None:
    """Returns the file that a row names `wanted`, or None if no file or several files match.

    Args:
      wanted: a relative path. Other suffixes of the index also match, but the same suffix wins.
      folders: folders to search first, in this order.
      depth: how many last parts of the path must match at least. With 1, a file with this name in
        any folder matches, if it is the only one.
    """
    parts = pathlib.PurePosixPath(wanted).parts
    candidates = self._by_stem.get(stem(wanted, self._suffixes), []) if parts else []
    candidates = sorted(candidates, key=lambda found: found[0][-1] != parts[-1])
    for folder in folders:
      there = (*pathlib.PurePosixPath(folder).parts, *parts[:-1])
      for place, path, _ in candidates:
        if place[:-1] == there:
          return path
    for count in range(len(parts), depth - 1, -1):
      tail = parts[len(parts) - count : -1]
      hits = [
        found
        for found in candidates
        if found[0][len(found[0]) - count : -1] == tail and len(found[0]) >= count
      ]
      hits = [found for found in hits if found[0][-1] == parts[-1]] or hits
      first = [path for _, path, rank in hits if rank == min(hit[2] for hit in hits)]
      if first:
        return first[0] if len(first) == 1 else None
    return None


def stem(name: str, suffixes: Sequence[str]) -> str:
  """Returns the last part of a path, without its suffix if that is in `suffixes`."""
  bare, suffix = os.path.splitext(pathlib.PurePosixPath(name).name)
  return bare if suffix.lower() in suffixes else bare + suffix


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields all files below a folder, sorted by name.

  Each folder is visited once, so that circular links end.
  """
  seen = set()
  for place, folders, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(place)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    yield from (pathlib.Path(place, name) for name in sorted(names))


# Archives.


def archives(folder: pathlib.Path) -> list[tuple[pathlib.Path, ...]]:
  """Returns all zip and tar archives below a folder, each as a tuple of its parts.

  An archive in parts (`videos.tar.part.aa`, ...) has all its parts in order.
  """
  return archive_parts.groups(_walk(folder))


def unread(folder: pathlib.Path) -> list[str]:
  """Returns one line for each file below a folder that looks like an unreadable archive."""
  there = list(_walk(folder))
  groups, disks = archive_parts.groups(there), archive_parts.over_disks(there)
  return list(archive_unread.find_unread(there, groups, disks).values())


def members(parts: Sequence[pathlib.Path]) -> list[str] | None:
  """Returns the names in an archive, or None for a compressed tar, which needs a full read.

  Raises:
    DataError: the archive is damaged, or a part of it is missing.
  """
  with _disk(parts[0]):
    if kind_of(parts[0]) not in PLAIN and not archive_parts.gap(parts):
      return None
    archive = read_archive(parts)
  problem = next((fault.text for fault in archive.faults if fault.member is None), '')
  if problem:
    raise DataError(problem)
  return [member.name for member in archive.members]


def unpack_archives(
  parts: Sequence[pathlib.Path], target: pathlib.Path, marks: pathlib.Path
) -> bool:
  """Extracts an archive into `target` with `data.unpack`, unless that was done before.

  A mark file in the folder `marks` records the names, sizes and dates of the parts. An archive with
  a matching mark is skipped. An interrupted extraction runs again. Each file appears only when it
  is complete. An existing file with other content is replaced.

  Returns:
    Whether the archive was extracted now.

  Raises:
    DataError: the archive is damaged, lacks a part, or would write outside `target`. Or the disk is
      not writable.
  """
  with _disk(parts[0]):
    facts = [
      _MARK,
      *([path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in parts),
    ]
  mark = marks / f'{parts[0].name}.json'
  with contextlib.suppress(OSError, ValueError):
    if json.loads(mark.read_text()) == facts:
      return False
  with contextlib.suppress(unpack.NothingFound):  # the archive contains no file
    unpack.unpack(parts[0], target)
  with _disk(mark):
    files.write(mark, json.dumps(facts).encode(), sync=False)
  return True


@contextlib.contextmanager
def _disk(file: pathlib.Path):
  """Converts an OSError of a disk access into a DataError."""
  try:
    yield
  except OSError as error:
    raise DataError(
      f'{file}: {error.strerror or error} at {error.filename or file}; free space or '
      'check permissions, then run again (finished files are kept)'
    ) from error

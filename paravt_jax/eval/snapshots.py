"""A benchmark's files as a hub download lays them out: rows, videos in folders or archives, subtitles. Nothing is fetched."""

import collections
import contextlib
import gzip
import io
import json
import lzma
import os
import pathlib
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from paravt_jax.data import unpack
from paravt_jax.errors import DataError

VIDEOS = ('.mp4', '.mkv', '.webm', '.avi', '.mov', '.flv', '.wmv', '.m4v')
SUBTITLES = ('.srt',)
_ARCHIVE = re.compile(r'(?P<stem>.+?)(?:\.zip|(?P<kind>\.tar\.(?:gz|bz2|xz)|\.tgz|\.tar)'
                      r'(?P<part>(?:\.part)?[._-]?(?:[a-z]{2}|\d{1,4}))?)', re.IGNORECASE)
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_CHUNK = 1 << 20


def root(folder: str | os.PathLike) -> pathlib.Path:
  """The folder that holds a snapshot's files: itself, or in a hub cache (`snapshots/<revision>`) the revision of `main`, else
  the newest one.

  Raises:
    DataError: there is no such folder.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise DataError(f'{folder}: no such folder, wanted the files of a hub snapshot; fetch it or correct the path')
  revisions = sorted((path for path in folder.glob('snapshots/*') if path.is_dir()), key=lambda path: path.stat().st_mtime)
  main = folder / 'refs' / 'main'
  if main.is_file():
    named = folder / 'snapshots' / main.read_text().strip()
    return named if named.is_dir() else revisions[-1] if revisions else folder
  return revisions[-1] if revisions else folder


# Rows.


def row_files(folder: pathlib.Path, globs: Sequence[str]) -> list[pathlib.Path]:
  """The files of the first glob that matches any, by name.

  Raises:
    DataError: none does.
  """
  for pattern in globs:
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if files:
      return files
  raise DataError(f'{folder}: no row file, wanted one of {", ".join(globs)}; fetch the snapshot again or correct the path')


def rows(file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
  """(number from 0, row) of a parquet, json (a list, or an object that holds one) or jsonl file, with these columns only.

  Raises:
    DataError: the file cannot be read, or lacks a column.
  """
  read = _parquet if file.suffix == '.parquet' else _json
  for number, row in enumerate(read(file, columns, optional)):
    absent = [column for column in columns if column not in row]
    if absent:
      raise DataError(f'{file}: row {number} has the columns {sorted(row)}, wanted {list(columns)} (missing: {absent}); fetch '
                      'the published file')
    yield number, {name: row[name] for name in (*columns, *optional) if name in row}


def _parquet(file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[dict[str, Any]]:
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      names = table.schema_arrow.names
      absent = [column for column in columns if column not in names]
      if absent:
        raise DataError(f'{file}: got the columns {names}, wanted {list(columns)} (missing: {absent}); fetch the '
                        'published file')
      for batch in table.iter_batches(batch_size=256, columns=[name for name in names if name in columns or name in optional]):
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError) as error:
    raise DataError(f'{file}: no readable parquet file ({error}); fetch it again') from error


def _json(file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[dict[str, Any]]:
  try:
    text = file.read_text(encoding='utf-8-sig')
    found = [json.loads(line) for line in text.splitlines() if line.strip()] if _is_lines(file, text) else json.loads(text)
    if _SURROGATE.search(text):    # a pair is one character; half of one cannot be made into tokens
      json.dumps(found, ensure_ascii=False).encode()
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f'{file}: no readable {file.suffix[1:]} file ({error}); fetch it again') from error
  if isinstance(found, dict):
    lists = [value for value in found.values() if isinstance(value, list)]
    found = lists[0] if len(lists) == 1 else found
  if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
    raise DataError(f'{file}: got {type(found).__name__}, wanted a list of objects; fetch the published file')
  yield from found


def _is_lines(file: pathlib.Path, text: str) -> bool:
  """Whether every line is an object of its own, which some files named .json are too."""
  if file.suffix == '.jsonl':
    return True
  lines = text.lstrip().splitlines()
  return len(lines) > 1 and all(line.startswith('{') and line.rstrip().endswith('}') for line in lines[:2])


# Files.


class Files:
  """Where the files of some kinds lie below some folders, of which the first counts where two hold a file. Folders that are
  links are followed, hidden ones are not looked into."""

  def __init__(self, folders: Iterable[str | os.PathLike], suffixes: Sequence[str]):
    self._suffixes = suffixes
    self._by_stem: dict[str, list[tuple[tuple[str, ...], pathlib.Path, int]]] = collections.defaultdict(list)
    for rank, folder in enumerate(folders):
      for path in _walk(pathlib.Path(folder)):
        bare, suffix = os.path.splitext(path.name)
        if suffix.lower() in suffixes:
          self._by_stem[bare].append((path.relative_to(folder).parts, path, rank))

  def __len__(self) -> int:
    return sum(map(len, self._by_stem.values()))

  def find(self, wanted: str, folders: Sequence[str], depth: int) -> pathlib.Path | None:
    """The file that a row calls `wanted`, None when there is none or it cannot be told which.

    Args:
      wanted: a relative path. Another suffix of the same kind will do, its own is preferred.
      folders: where it is to lie, tried in this order.
      depth: how many of its last parts must agree at least: 1 takes a file of that name from anywhere, if there is but one.
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
      tail = parts[len(parts) - count:-1]
      hits = [found for found in candidates if found[0][len(found[0]) - count:-1] == tail and len(found[0]) >= count]
      hits = [found for found in hits if found[0][-1] == parts[-1]] or hits
      first = [path for _, path, rank in hits if rank == min(hit[2] for hit in hits)]
      if first:
        return first[0] if len(first) == 1 else None
    return None


def stem(name: str, suffixes: Sequence[str]) -> str:
  """A path's last part without its suffix, if that is one of these."""
  bare, suffix = os.path.splitext(pathlib.PurePosixPath(name).name)
  return bare if suffix.lower() in suffixes else bare + suffix


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Every file below a folder, by name. A folder that was seen is not entered again, so that links cannot run in circles."""
  seen = set()
  for place, folders, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(place)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    yield from (pathlib.Path(place, name) for name in sorted(files))


# Archives.


def archives(folder: pathlib.Path) -> list[tuple[pathlib.Path, ...]]:
  """Every zip and tar below a folder; one that is published in parts (`videos.tar.part.aa`, ...) as all of them, in order."""
  found: dict[pathlib.Path, list[pathlib.Path]] = {}
  for path in _walk(folder):
    match = _ARCHIVE.fullmatch(path.name)
    if match:
      found.setdefault(path.with_name(match['stem'] + match['kind']) if match['part'] else path, []).append(path)
  return [tuple(sorted(parts)) for _, parts in sorted(found.items())]


def members(parts: Sequence[pathlib.Path]) -> list[str] | None:
  """The names in an archive, or None when only reading it through would tell (a packed tar, or one in parts).

  Raises:
    DataError: a damaged archive.
  """
  with _damage(parts[0]):
    if parts[0].suffix.lower() == '.zip':
      with zipfile.ZipFile(parts[0]) as archive:
        return archive.namelist()
    if len(parts) > 1 or parts[0].suffix.lower() != '.tar':
      return None
    with tarfile.open(parts[0], 'r:') as archive:
      return archive.getnames()


def unpacked(parts: Sequence[pathlib.Path], target: pathlib.Path, marks: pathlib.Path) -> bool:
  """Extracts an archive into `target`, unless a mark in the folder `marks` says that this very one (name, size, date) was. True
  when it had to be done. An interrupted one is done again; whole files only are ever seen.

  Raises:
    DataError: a damaged archive, one that would write outside, a disk that cannot be written.
  """
  facts = [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in parts]
  mark = marks / f'{parts[0].name}.json'
  with contextlib.suppress(OSError, ValueError):
    if json.loads(mark.read_text()) == facts:
      return False
  if parts[0].suffix.lower() == '.zip':
    unpack.unpack(parts[0], target)
  else:
    _untar(parts, target)
  with _damage(mark):
    marks.mkdir(parents=True, exist_ok=True)
    _write(mark, io.BytesIO(json.dumps(facts).encode()))
  return True


def _untar(parts: Sequence[pathlib.Path], target: pathlib.Path) -> None:
  """Files of a tar, packed or in parts, read as one stream."""
  with _damage(parts[0]), contextlib.ExitStack() as stack:
    joined = _Joined([stack.enter_context(path.open('rb')) for path in parts])
    archive = stack.enter_context(tarfile.open(fileobj=joined, mode='r|*'))
    for member in archive:
      if member.isdir():
        continue
      names = pathlib.PurePosixPath(member.name.replace('\\', '/')).parts
      if not member.isfile() or not names or '..' in names or names[0].startswith('/') or ':' in names[0]:
        raise DataError(f'{parts[0]}: member {member.name!r}: got a link, a device or a path that leaves the root, wanted '
                        'plain files with relative paths; drop it there')
      path = target.joinpath(*names)
      if not path.is_file() or path.stat().st_size != member.size:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, archive.extractfile(member))


def _write(path: pathlib.Path, source) -> None:
  """A file that appears by rename."""
  with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.', suffix='.part', delete=False) as out:
    try:
      shutil.copyfileobj(source, out, _CHUNK)
      out.flush()
      os.chmod(out.name, 0o644)
      os.replace(out.name, path)
    except BaseException:    # Ctrl-C too: nothing half-written stays
      os.unlink(out.name)
      raise


class _Joined:
  """Files read one after the other as one stream; all that tarfile asks of one is `read`."""

  def __init__(self, files):
    self._files = collections.deque(files)

  def read(self, size: int) -> bytes:
    pieces = []
    while size and self._files:
      piece = self._files[0].read(size)
      if not piece:
        self._files.popleft()
      pieces.append(piece)
      size -= len(piece)
    return b''.join(pieces)


@contextlib.contextmanager
def _damage(file: pathlib.Path):
  """What a damaged or unreadable archive raises, as a DataError."""
  try:
    yield
  except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
          NotImplementedError) as error:
    raise DataError(f'{file}: damaged archive ({error}), wanted a whole one; fetch it again') from error
  except OSError as error:
    raise DataError(f'{file}: {error.strerror or error} at {error.filename or file}; make room or check permissions, then run '
                    'again (finished files are kept)') from error


# Subtitles.

_CLOCK = r'(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)'
_TIMING = re.compile(rf'\s*{_CLOCK}\s*-->\s*{_CLOCK}.*')
_MARKUP = re.compile(r'<[^>]*>|\{\\[^}]*\}')


def subtitle_lines(text: str) -> list[str]:
  """'start --> end text' of every cue of an srt file, seconds with one decimal, markup removed. A cue that says what the one
  before it said, or nothing, is left out; so is what is no cue."""
  lines, last = [], ''
  for block in re.split(r'\n[ \t]*\n', text.replace('\r\n', '\n').replace('\r', '\n').lstrip('\ufeff')):
    rest = block.split('\n')
    timing = next(((i, match) for i, line in enumerate(rest[:3]) if (match := _TIMING.fullmatch(line))), None)
    if timing is None:
      continue
    said = ' '.join(' '.join(_MARKUP.sub('', line) for line in rest[timing[0] + 1:]).split())
    if said and said != last:
      start, end = (_clock(timing[1].groups()[at:at + 3]) for at in (0, 3))
      lines.append(f'{start:.1f} --> {end:.1f} {said}')
      last = said
  return lines


def _clock(parts: Sequence[str | None]) -> float:
  hours, minutes, seconds = parts
  return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(',', '.'))


def bounded(lines: Sequence[str], max_bytes: int) -> str:
  """The lines, or when they are more than `max_bytes` of UTF-8 as many as fit, taken evenly from beginning to end."""
  total = sum(len(line.encode()) + 1 for line in lines) - 1
  count = len(lines) if total <= max_bytes else len(lines) * (max_bytes + 1) // (total + 1)
  while count > 0:
    text = '\n'.join(lines[i * len(lines) // count] for i in range(count))
    if len(text.encode()) <= max_bytes:
      return text
    count -= 1
  return ''


def read_subtitles(file: pathlib.Path, max_bytes: int) -> str:
  """An srt file as `bounded` lines. Bytes that are no UTF-8 are replaced.

  Raises:
    DataError: it cannot be read.
  """
  try:
    return bounded(subtitle_lines(file.read_bytes().decode('utf-8', 'replace')), max_bytes)
  except OSError as error:
    raise DataError(f'{file}: {error.strerror}, wanted a readable subtitle file; fetch it again') from error



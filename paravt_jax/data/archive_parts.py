"""Archives in several parts (`videos.tar.part.aa`, `x.zip.001`): which files belong together.

Parts as written by `split` are read as one file. Order and gaps follow from the names. An index
consists of letters or numbers. Numbers may differ in width. `split` also continues with longer
suffixes after yz (zaaa).
"""

import bisect
import collections
import errno
import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

SUFFIXES = (
  '.zip',
  '.tar',
  '.tar.gz',
  '.tgz',
  '.tar.bz2',
  '.tbz2',
  '.tbz',
  '.tar.xz',
  '.txz',
  '.tar.zst',
  '.tzst',
  '.tar.lz4',
  '.tar.lzma',
  '.tlz',
  '.zipx',
  '.taz',
)
_EXTENSION = '|'.join(re.escape(suffix) for suffix in sorted(SUFFIXES, key=len, reverse=True))
_PART = re.compile(
  rf'(?P<whole>.*?(?:{_EXTENSION}))(?P<word>(?:[._-]?part)?[._-]?)'
  r'(?P<index>\d{1,6}|(?<=part)[a-z]|(?<=part[._-])[a-z]|[a-z]{2,6}|[0-9a-f]{2,4})'
  r'(?:[._-]?of[._-]?(?P<count>\d{1,6}))?',
  re.IGNORECASE,
)
_DISK = re.compile(r'(?P<stem>.+)\.z\d\d', re.IGNORECASE)
# Suffixes of other files next to an archive. By name alone they could also be parts.
_BESIDE = ('gz', 'xz', 'bz', 'lz', 'md', 'js', 'py', 'id', 'sh', 'db')
_SHOWN = 5


def is_whole(name: str) -> bool:
  """Returns whether the file name is that of an archive in one file."""
  return name.lower().endswith(SUFFIXES)


def whole_name(path: pathlib.Path) -> str:
  """Returns the lower-case name of the archive that a file is, or is a part of."""
  match = _PART.fullmatch(path.name)
  return (path.name if is_whole(path.name) or not match else match['whole']).lower()


def groups(paths: Iterable[pathlib.Path]) -> list[tuple[pathlib.Path, ...]]:
  """Returns the archives among some files, each as its parts in order, sorted by name.

  Gaps are not checked here; see `gap`. Metadata files of macOS (`._a.tar`) are ignored.
  """
  paths = [path for path in paths if not path.name.startswith('._')]
  names = {(path.parent, path.name.lower()) for path in paths}
  found: list[tuple[pathlib.Path, ...]] = []
  parts: dict[tuple, list[pathlib.Path]] = collections.defaultdict(list)
  for path in paths:
    match = _PART.fullmatch(path.name)
    if is_whole(path.name) and not (match and _is_between(path, match, names)):
      found.append((path,))
    elif match:
      parts[path.parent, match['whole'], match['word'].lower()].append(path)
  for (_, _, word), members in parts.items():
    for kind, some in _by_kind(members).items():
      if kept := some if kind != 'letters' or 'part' in word else _parts(some, word, names):
        order = _sixteens if kind == 'hex' else _order
        found.append(tuple(sorted(kept, key=lambda path, order=order: order(_index(path)))))
  return sorted(found, key=lambda group: group[0])


def _by_kind(members: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """Groups parts by their index: 'hex', 'numbers' or 'letters'.

  If one index is hexadecimal, all of the same width are.
  """
  found: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
  widths = {len(_index(path)) for path in members if _is_hex(_index(path))}
  for path in members:
    index = _index(path)
    is_hex = len(index) in widths and re.fullmatch('[0-9a-f]+', index)
    found['hex' if is_hex else 'numbers' if index.isdecimal() else 'letters'].append(path)
  return found


def _is_hex(index: str) -> bool:
  """Returns whether an index can only be hexadecimal."""
  return not index.isdecimal() and not index.isalpha()


def _is_between(path: pathlib.Path, match: re.Match, names: set[tuple[pathlib.Path, str]]) -> bool:
  """Returns whether the parts before and after a file exist.

  The name of such a file (v.tar.gz) can mean a whole archive or a part.
  """
  index = match['index'].lower()
  if not index.isalpha() or len(index) != 2 or index in ('aa', 'zz'):
    return False
  stem = path.name.lower()[: match.start('index')]
  return all((path.parent, stem + beside) in names for beside in (_before(index), _next(index)[0]))


def _before(index: str) -> str:
  first, last = index
  return first + chr(ord(last) - 1) if last != 'a' else chr(ord(first) - 1) + 'z'


def _parts(
  members: list[pathlib.Path], word: str, names: set[tuple[pathlib.Path, str]]
) -> list[pathlib.Path]:
  """Returns the files of one naming scheme that are real parts.

  Returns [] if they are other files, such as `.md5`.
  """
  # width: letters of the shortest index such as aa or aaa
  first = [path for path in members if _index(path).startswith('a')]
  widths = {len(_index(path)) for path in members if set(_index(path)) == {'a'}}
  width = min(widths, default=2)
  if not widths and (not word or not any(len(_index(path)) == 2 for path in first)):
    return []

  def is_part(path: pathlib.Path) -> bool:
    index = _index(path)
    if index in _BESIDE:
      return _is_between(path, _match(path), names)
    return len(index) == width or (len(index) > width and index.startswith('z'))

  return list(filter(is_part, members))


def _match(path: pathlib.Path) -> re.Match[str]:
  """Returns the match of a part's name. Raises ValueError if the name is not that of a part."""
  match = _PART.fullmatch(path.name)
  if match is None:
    raise ValueError(f'{path.name}: got no name of a part, wanted one that `groups` has found')
  return match


def _index(path: pathlib.Path) -> str:
  return _match(path)['index'].lower()


def _order(index: str) -> tuple[int, int, str]:
  return (int(index), len(index), '') if index.isdecimal() else (len(index), 0, index)


def _sixteens(index: str) -> tuple[int, int, str]:
  return int(index, 16), 0, ''


def gap(parts: Sequence[pathlib.Path]) -> str:
  """Returns which parts are missing or repeated, judged by the names; '' if there is no gap.

  parts: in order.
  """
  if is_whole(parts[0].name) or not groups(parts):  # no group: the user named this file directly
    return ''
  match = _match(parts[0])
  indices = [_index(path) for path in parts]
  first = indices[0]
  lost: list[str] = []
  # parts missing before the first one
  if any(map(_is_hex, indices)):
    counts = [int(index, 16) for index in indices]
    lost += [f'{i:0{len(first)}x}' for i in range(max(counts)) if i not in counts]
    indices = indices[:1]
  elif first.isdecimal():
    lost += [str(i).zfill(len(first)) for i in range(1, int(first))]
  elif set(first) != {'a'}:
    lost += _between('', first)
  # parts missing or repeated between two others
  for before, after in itertools.pairwise(indices):
    if _order(before)[:1] == _order(after)[:1] and before.isdecimal():
      return f'two parts {before} and {after}'
    if after not in _next(before):
      lost += _between(before, after)
  # parts missing after the last one, where the names give a count ("of 12")
  if match['count']:
    last = int(indices[-1]) + (int(first) == 0)
    lost += [str(i) for i in range(last + 1, int(match['count']) + 1)]
  names = [match['whole'] + match['word'] + index for index in lost[:_SHOWN]]
  return f'no {", ".join(names)}{", ..." if len(lost) > _SHOWN else ""}' if lost else ''


def _next(index: str) -> tuple[str, str]:
  """Returns the two possible next indices.

  The first has the same width. The second is longer, as when `split` continues with longer
  suffixes.
  """
  if index.isdecimal():
    after = str(int(index) + 1).zfill(len(index))
    return after, after + '00'
  digits = list(index)
  place = len(digits) - 1
  while place > 0 and digits[place] == 'z':
    digits[place], place = 'a', place - 1
  digits[place] = chr(ord(digits[place]) + 1)
  return ''.join(digits), ''.join(digits) + 'aa'


def _between(before: str, after: str) -> list[str]:
  """Returns the missing indices between two. Only the first one if their widths differ."""
  index = _next(before)[0] if before else 'a' * len(after)
  if before and before.isdecimal():
    return [str(i).zfill(len(before)) for i in range(int(before) + 1, int(after))]
  found = []
  while index != after and len(found) <= _SHOWN and index[0] <= 'z':
    found.append(index)
    index = _next(index)[0]
  return found[:1] if before and len(before) != len(after) else found


def over_disks(paths: Iterable[pathlib.Path]) -> set[pathlib.Path]:
  """Returns the zips that span several disks (`a.zip` next to `a.z01`). They cannot be read."""
  stems = {
    (path.parent, match['stem'].lower()) for path in paths if (match := _DISK.fullmatch(path.name))
  }
  return {
    path
    for path in paths
    if path.suffix.lower() == '.zip' and (path.parent, path.stem.lower()) in stems
  }


class Joined(io.RawIOBase):
  """Several files read as one. Several threads may call `pread`."""

  def __init__(self, parts: Sequence[pathlib.Path]):
    super().__init__()
    self._files = []
    try:
      for path in parts:
        self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
      self.close()
      raise
    sizes = (os.fstat(file).st_size for file in self._files)
    self._ends = list(itertools.accumulate(sizes))
    self._at = 0

  def pread(self, size: int, at: int) -> bytes:
    """Returns up to `size` bytes at offset `at`, from one part; b'' at the end."""
    part = bisect.bisect_right(self._ends, at)
    if part == len(self._files):
      return b''
    return os.pread(self._files[part], size, at - (self._ends[part - 1] if part else 0))

  def readinto(self, buffer) -> int:
    """Reads from the current position into `buffer` and returns the number of bytes."""
    data = self.pread(len(buffer), self._at)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    """Moves the position like a regular file and returns it."""
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ends[-1]}[whence]
    if base + offset < 0:
      raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # same as for a regular file
    self._at = base + offset
    return self._at

  def readable(self) -> bool:
    """Returns True."""
    return True

  def seekable(self) -> bool:
    """Returns True."""
    return True

  def close(self):
    """Closes all parts."""
    files, self._files = self._files, []
    for file in files:
      os.close(file)
    super().close()

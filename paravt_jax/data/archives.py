"""Reads zip and tar archives: their members, and the bytes of each member. Writes nothing.

`read` lists an archive and every fault that is visible without unpacking it. Faults are names that
leave the root, links, devices, encryption, bombs, damage and missing parts. A zip is listed from
its directory and a plain tar from its headers, so both are fast. A packed tar (gz, bz2, xz, zst,
...) has no directory, so it is read to its end. That also proves that it is complete and gives each
member's checksum. Training (`data.unpack`) and evaluation (`eval.snapshots`) both use this module.
"""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

from paravt_jax import files
from paravt_jax.data import archive_members, archive_parts, archive_unread, tars, zips
from paravt_jax.data.archive_members import (
  CHUNK,
  OURS,
  RATIO,
  Archive,
  Fault,
  Listing,
  Member,
  damage_error,
  digest,
  guarded,
)
from paravt_jax.data.archive_parts import Joined
from paravt_jax.errors import DataError

_ZIP = (b'PK\3\4', b'PK\5\6', b'PK\7\10', b'PK00PK')
_SKIPPABLE = [bytes([byte]) for byte in range(0x50, 0x60)]


@dataclasses.dataclass(frozen=True)
class Found:
  """The archives and unreadable files of a folder."""

  archives: list[tuple[pathlib.Path, ...]]  # each as its parts, in order
  unread: list[str]  # one line for each file that looks like an archive but cannot be read


def find(source: pathlib.Path, root: pathlib.Path) -> Found:
  """Finds the archives at any depth below the folder `source`, sorted by name.

  If `source` is a file, only that archive is found, with its other parts. A `root` inside the
  folder is skipped.
  """
  if source.is_file():
    beside = sorted(path for path in source.parent.iterdir() if path.is_file())
    groups = archive_parts.groups(beside)
    mine = next((group for group in groups if source in group), (source,))
    unread = archive_unread.find_unread(mine, groups, archive_parts.over_disks(beside))
    return Found([] if unread else [mine], list(unread.values()))
  inside, outside = root.resolve(), source.resolve()
  skip = inside if inside != outside and inside.is_relative_to(outside) else None
  paths = list(_files(source, skip))
  groups = [
    group
    for group in archive_parts.groups(paths)
    if skip is None or not group[0].resolve().is_relative_to(skip)
  ]
  unread = archive_unread.find_unread(paths, groups, archive_parts.over_disks(paths))
  archives = [group for group in groups if not unread.keys() & set(group)]
  return Found(archives, list(unread.values()))


def _files(folder: str | os.PathLike, skip: pathlib.Path | None) -> Iterator[pathlib.Path]:
  """Yields every file below a folder, sorted by name. Skips the folder `skip` and journal folders.

  Links to folders are not followed.
  """
  with os.scandir(folder) as entries:
    ordered = sorted(entries, key=lambda entry: entry.name)
  for entry in ordered:
    if entry.is_dir(follow_symlinks=False):
      if entry.name != OURS and (skip is None or pathlib.Path(entry.path).resolve() != skip):
        yield from _files(entry.path, skip)
    elif entry.is_file():
      yield pathlib.Path(entry.path)


def read(
  path: pathlib.Path | Sequence[pathlib.Path], spend: Callable[[int], None] = lambda count: None
) -> Archive:
  """Returns the listing of an archive, given as one file or as its parts in order.

  Damage is recorded as a fault and never raised.

  Args:
    spend: called as spend(n) after n more bytes of a packed tar were read.

  Raises:
    OSError: a file cannot be read.
  """
  parts = (path,) if isinstance(path, pathlib.Path) else tuple(path)
  size, stamp = facts(parts)
  archive = Archive(parts[0], parts, kind_of(parts[0]), size, stamp, '', (), (), 0)
  found = Listing()
  try:
    if gap := archive_parts.gap(parts):
      raise DataError(
        f'{parts[0]}: got {len(parts)} parts and {gap}, wanted every part of the '
        'archive; fetch what is missing'
      )
    found = zips.listing(archive) if archive.kind == 'zip' else tars.listing(archive, spend)
  except DataError as error:
    found = Listing([], [Fault(None, str(error))])
  # hard links count too, because each is written as a file
  total = sum(member.size for member in found.members)
  if total > archive_members.FLOOR and total > RATIO * size:
    text = (
      f'{parts[0]}: got {total} bytes packed into {size}, a bomb; wanted at most {RATIO} '
      'times as many'
    )
    found.faults.append(Fault(None, text))
  return dataclasses.replace(
    archive,
    digest=digest(found.members),
    members=tuple(found.members),
    faults=tuple(found.faults),
    left=found.left,
  )


def facts(parts: Sequence[pathlib.Path]) -> tuple[int, str]:
  """Returns (bytes of all parts, hash of their sizes and modification times). Raises OSError."""
  stats = [os.stat(path) for path in parts]
  lines = '\n'.join(f'{status.st_size} {status.st_mtime_ns}' for status in stats)
  return sum(status.st_size for status in stats), files.digest(lines.encode(), 8)


def kind_of(path: pathlib.Path) -> str:
  """Returns the kind of archive by the first bytes, since a name may be wrong. Raises OSError."""
  with open(path, 'rb') as file:
    start = file.read(8)
  for kind, (magic, _) in tars.PACKINGS.items():
    if start.startswith(magic):
      return kind
  # the file starts with a skippable frame of zstd or lz4
  if start[:1] in _SKIPPABLE and start[1:4] == b'\x2a\x4d\x18':
    return 'tar.lz4' if '.lz4' in path.name.lower() else 'tar.zst'
  if start.startswith(_ZIP) or archive_parts.whole_name(path).endswith(('.zip', '.zipx')):
    return 'zip'
  return 'tar'  # possibly invalid; reading it as a tar will show that


def content(file: Joined, archive: Archive, member: Member) -> Iterator[bytes]:
  """Yields the bytes of a member of a zip or plain tar, in pieces of at most CHUNK.

  The pieces sum to `member.size`. The caller must compare the checksum.

  Args:
    file: from `archive.open()`. Only `pread` is used, so threads may share it.

  Raises:
    DataError: the member is truncated or damaged, or has more or fewer bytes than declared.
  """
  start, left = member.place, member.size
  if archive.kind == 'zip':
    start = zips.place_of(file, archive, member)
  try:
    with guarded(archive.path, archive.kind):
      for piece in zips.unpack_pieces(member.method, _pieces(file, start, member.packed)):
        left -= len(piece)
        if left < 0:
          break
        yield piece
    if left:
      count = f'{left} bytes fewer' if left > 0 else 'more bytes'
      raise damage_error(archive.path, archive.kind, f'{count} than its header says')
  except DataError as error:
    raise DataError(
      str(error).replace('damaged archive (', f'damaged archive (member {member.name!r}: ', 1)
    ) from error


def _pieces(file: Joined, start: int, count: int) -> Iterator[bytes]:
  while count:
    piece = file.pread(min(count, CHUNK), start)
    if not piece:
      raise EOFError('the file ends before it')
    yield piece
    start, count = start + len(piece), count - len(piece)


def checksum(file: Joined, archive: Archive, member: Member) -> int:
  """Returns the CRC-32 of a member of a zip or plain tar, by reading it. Raises like `content`."""
  crc = 0
  for piece in content(file, archive, member):
    crc = zlib.crc32(piece, crc)
  return crc

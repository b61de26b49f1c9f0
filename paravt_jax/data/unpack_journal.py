"""What was unpacked into a root: from which archive, which files, by which version. One file per
archive in `.paravt_unpack/`.

A journal is JSON lines: a header {tool, version, archive: {name, kind, bytes, stamp, digest, left},
members}, then a line [name, size, crc, mtime_ns] for each file, written as files are done. A kill
costs the lines not yet written, and such files are then known by their checksum only. `members` is
the list of a tar, so that an unchanged one need not be read again; a zip has its own.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from paravt_jax import files
from paravt_jax.data import archives

TOOL, VERSION = 'paravt_jax.data.unpack', 2  # another version's lines are not believed
_IDENTITY = ('kind', 'bytes', 'stamp', 'digest', 'left')  # of an archive
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
PART = '.paravt-'  # how a file that is being written is called, with _PART_END
PART_END = '.part'
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class File:
  """A file that was whole when it was last looked at."""

  size: int
  crc: int  # CRC-32 of its content
  mtime_ns: int  # its time of change then


def header(archive: archives.Archive, name: str) -> dict[str, Any]:
  """The first line. name: of the archive, relative to the folder of archives."""
  # refused members, left out by a glob, must be seen again
  is_whole_list = archive.kind != 'zip' and not archive.faults
  members = [dataclasses.astuple(member) for member in archive.members] if is_whole_list else []
  identity = {'name': name, **{key: getattr(archive, key) for key in _IDENTITY}}
  return {'tool': TOOL, 'version': VERSION, 'archive': identity, 'members': members}


class Journal:
  """The journal of one archive: `known` (the header, None when there is none or it is unreadable)
  and `files` are as loaded.
  """

  def __init__(self, root: pathlib.Path, name: str):
    short = os.path.basename(name)[:80]  # readable; the hash tells equal ones apart
    tag = files.digest(name.encode('utf-8', 'surrogateescape'), 6)
    self.name = name
    self.path = root / archives.OURS / f'{short}-{tag}.jsonl'
    self.known: dict[str, Any] | None = None
    self.files: dict[str, File] = {}
    self._members: tuple[archives.Member, ...] = ()
    self._identity: tuple[Any, ...] = ()
    self._lock = threading.Lock()
    self._out: files.LineWriter | None = None
    with (
      contextlib.suppress(FileNotFoundError),
      open(self.path, encoding='utf-8', errors='replace') as lines,
    ):
      self._load(lines)

  def _load(self, lines: Iterable[str]):
    for number, line in enumerate(lines):
      try:
        value = json.loads(line)
        if number == 0:
          if (value['tool'], value['version']) != (TOOL, VERSION):
            return
          self._members = tuple(archives.Member(*each) for each in value['members'])
          self._identity = tuple(value['archive'][key] for key in _IDENTITY)
          self.known = value
        else:
          name, size, crc, mtime_ns = value
          self.files[name] = File(size, crc, mtime_ns)
      except (ValueError, TypeError, KeyError):
        # a kill tore the line, or somebody edited it: such a file is read again
        if self.known is None:
          return

  def read_listing(self, parts: Sequence[pathlib.Path]) -> archives.Archive | None:
    """A tar's list of members, if its files still have the sizes and times that they had; None
    else.
    """
    if not self._members or self._identity[1:3] != archives.facts(parts):
      return None
    kind, size, stamp, digest, left = self._identity
    return archives.Archive(
      parts[0], tuple(parts), kind, size, stamp, digest, self._members, (), left
    )

  def is_of(self, archive: archives.Archive) -> bool:
    """Whether it was written for an archive with this very list of members."""
    return self.known is not None and self._identity[3] == archive.digest

  def is_of_same_files(self, archive: archives.Archive) -> bool:
    """Whether its files, too, have the sizes and times that they had then."""
    return self.is_of(archive) and self._identity[1:3] == (archive.bytes, archive.stamp)

  def start(self, first: dict[str, Any], done: Mapping[str, File]):
    """Begins anew with what still holds, by rename; `add` then appends."""
    files.write(self.path, json.dumps(first).encode() + b'\n' + _lines(done), sync=False)
    self._out = files.LineWriter(self.path)

  def add(self, done: Mapping[str, File]):
    """Appends lines, from any thread."""
    if self._out is None:
      raise ValueError(f'{self.path}: got `add` before `start`')
    with self._lock:
      self._out.append(_lines(done))

  def close(self):
    """Ends what `start` began; nothing without it."""
    if self._out:
      self._out.close()


def _lines(done: Mapping[str, File]) -> bytes:
  rows = ([name, file.size, file.crc, file.mtime_ns] for name, file in done.items())
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


@contextlib.contextmanager
def lock_root(root: pathlib.Path) -> Iterator[int]:
  """Makes the root and keeps it to this process: another one waits. What a killed run left
  half-written is removed.

  Gives the lock's descriptor; it ends with the processes that have it, however they end. Where the
  file system has no locks there is none.
  """
  folder = root / archives.OURS
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'a') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      log.warning('%s: another process unpacks there; waiting for it', root)
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
    mark = folder / 'unfinished'
    if mark.exists():
      _sweep(root)
    mark.touch()
    yield lock.fileno()
    mark.unlink()  # not after an exception: the next run looks round


def _sweep(root: pathlib.Path):
  """Removes every file below the root that was being written when a run died."""
  for folder, _, names in os.walk(root):
    for name in names:
      if name.startswith(PART) and name.endswith(PART_END):
        os.unlink(os.path.join(folder, name))

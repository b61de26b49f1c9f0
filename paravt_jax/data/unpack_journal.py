"""The journal of what was unpacked into a root: one file per archive in `.paravt_unpack/`.

A journal consists of JSON lines. The first is a header {tool, version, archive: {name, kind, bytes,
stamp, digest, left}, members}. Each finished file then adds a line [name, size, crc, mtime_ns]. A
killed run loses the lines not yet written; those files are then compared by checksum. `members` is
the list of a tar, so that an unchanged tar need not be read again. It is empty for a zip, which has
its own directory.
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

TOOL, VERSION = 'paravt_jax.data.unpack', 2  # journals of another version are ignored
_IDENTITY = ('kind', 'bytes', 'stamp', 'digest', 'left')  # fields that identify an archive
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
PART = '.paravt-'  # prefix of a file that is being written; PART_END is its suffix
PART_END = '.part'
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class File:
  """A file that was complete when it was last checked."""

  size: int
  crc: int  # CRC-32 of the content
  mtime_ns: int  # modification time at that moment


def header(archive: archives.Archive, name: str) -> dict[str, Any]:
  """Returns the first line of a journal. name: path of the archive in the archive folder."""
  # an archive with faults is listed again next time, because another --include may select them
  is_whole_list = archive.kind != 'zip' and not archive.faults
  members = [dataclasses.astuple(member) for member in archive.members] if is_whole_list else []
  identity = {'name': name, **{key: getattr(archive, key) for key in _IDENTITY}}
  return {'tool': TOOL, 'version': VERSION, 'archive': identity, 'members': members}


class Journal:
  """The journal of one archive, loaded when it is created.

  `known` is the header; None if there is no journal or it is unreadable. `files` maps each recorded
  file name to its `File`.
  """

  def __init__(self, root: pathlib.Path, name: str):
    short = os.path.basename(name)[:80]  # for human readers; the hash below separates equal names
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
        # the line is incomplete (killed run) or was edited: its file is checked by checksum instead
        if self.known is None:
          return

  def read_listing(self, parts: Sequence[pathlib.Path]) -> archives.Archive | None:
    """Returns the archive with its recorded list of members, for a tar.

    Returns None if the sizes or times of its files have changed, or if no list was recorded.
    """
    if not self._members or self._identity[1:3] != archives.facts(parts):
      return None
    kind, size, stamp, digest, left = self._identity
    return archives.Archive(
      parts[0], tuple(parts), kind, size, stamp, digest, self._members, (), left
    )

  def is_of(self, archive: archives.Archive) -> bool:
    """Returns whether the journal was written for an archive with exactly this list of members."""
    return self.known is not None and self._identity[3] == archive.digest

  def is_of_same_files(self, archive: archives.Archive) -> bool:
    """Returns whether the archive's files also have the recorded sizes and times."""
    return self.is_of(archive) and self._identity[1:3] == (archive.bytes, archive.stamp)

  def start(self, first: dict[str, Any], done: Mapping[str, File]):
    """Rewrites the journal, by rename, with the lines that are still valid. Call before `add`."""
    files.write(self.path, json.dumps(first).encode() + b'\n' + _lines(done), sync=False)
    self._out = files.LineWriter(self.path)

  def add(self, done: Mapping[str, File]):
    """Appends lines. Thread-safe. Raises ValueError if called before `start`."""
    if self._out is None:
      raise ValueError(f'{self.path}: got `add` before `start`')
    with self._lock:
      self._out.append(_lines(done))

  def close(self):
    """Closes the file that `start` opened. Does nothing if `start` was not called."""
    if self._out:
      self._out.close()


def _lines(done: Mapping[str, File]) -> bytes:
  rows = ([name, file.size, file.crc, file.mtime_ns] for name, file in done.items())
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


@contextlib.contextmanager
def lock_root(root: pathlib.Path) -> Iterator[int]:
  """Creates the root and locks it for this process. Another process waits.

  Also removes partial files of a killed run. Yields the descriptor of the lock. The lock ends when
  all processes that have the descriptor have ended. A file system without locks is not locked.
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
    mark.unlink()  # stays after an exception, so that the next run removes partial files


def _sweep(root: pathlib.Path):
  """Removes every partial file of a killed run below the root."""
  for folder, _, names in os.walk(root):
    for name in names:
      if name.startswith(PART) and name.endswith(PART_END):
        os.unlink(os.path.join(folder, name))

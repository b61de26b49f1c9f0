"""The plan of `unpack`: what will be written, and every fault visible before the first byte."""

import fnmatch
import os
import pathlib
import stat
from collections.abc import Sequence

from paravt_jax.data.archive_members import Archive, Member
from paravt_jax.data.unpack_files import crc
from paravt_jax.data.unpack_journal import File, Journal

RESERVE = 256 << 20  # bytes of disk space that must stay free
_BLOCK = 4096  # file sizes on disk are rounded up to a multiple of this
_PATH_BYTES = 4096  # longest path on Linux


class Plan:
  """Which members of which archives are written where, and every reason not to write them."""

  def __init__(self, root: pathlib.Path, include: Sequence[str], sources: set[pathlib.Path]):
    self.root, self.include, self._sources = root, include, sources
    self.real = os.path.realpath(root)
    self.targets: dict[str, tuple[Archive, Member]] = {}
    self.todo: list[tuple[Archive, Journal, list[Member], dict[str, File]]] = []
    self.faults: list[str] = []
    self.kept = self.skipped = self.need = self.files = self.bytes = 0
    self._folders: dict[str, str] = {}

  def add(self, archive: Archive, journal: Journal):
    """Adds one archive. Call in the order of the archive names."""
    self.faults += [
      fault.text for fault in archive.faults if fault.member is None or self._wants(fault.member)
    ]
    fresh, trusted = [], {}
    for member in archive.members:
      if not self._wants(member.name):
        self.skipped += 1
        continue
      if member.name in self.targets:
        self._compare(archive, member)
        self.kept += 1
        continue
      self.targets[member.name] = (archive, member)
      if file := self._journal_file(archive, member, journal):
        trusted[member.name] = file
      else:
        fresh.append(member)
    self.kept += len(trusted)
    self.todo.append((archive, journal, fresh, trusted))

  def finish(self):
    """Checks folders and disk space. Call once, after all archives were added."""
    for name in sorted(self._parents() & self.targets.keys()):
      self._refuse(name, 'a file whose name is a folder of another member')
    for _, _, fresh, _ in self.todo:
      for member in fresh:
        self._place(member)
    if self.faults:
      return
    # disk space and inodes, at the nearest existing folder
    disk = os.statvfs(
      next(
        folder
        for folder in (self.root.absolute(), *self.root.absolute().parents)
        if folder.is_dir()
      )
    )
    free = disk.f_bavail * disk.f_frsize
    if self.need and self.need + RESERVE > free:
      self.faults.append(
        f'{self.root}: got {free} bytes free, wanted {self.need} and a reserve of {RESERVE}; '
        'free space, or choose with --include'
      )
    if disk.f_files and self.files > disk.f_favail:
      self.faults.append(
        f'{self.root}: got {disk.f_favail} free inodes, wanted {self.files}; free space, or '
        'choose with --include'
      )

  def _wants(self, name: str) -> bool:
    return not self.include or any(fnmatch.fnmatchcase(name, glob) for glob in self.include)

  def _refuse(self, name: str, problem: str):
    archive = self.targets[name][0]
    self.faults.append(
      f'{archive.path}: member {name!r}: got {problem}, wanted a place of its own; drop it '
      'there, or clear the place'
    )

  def _compare(self, archive: Archive, member: Member):
    """Adds a fault unless a second member of the same name has the same content."""
    first, other = self.targets[member.name]
    problem = ''
    if other.size != member.size:
      problem = f'{member.size} bytes, but {first.path} holds it with {other.size}'
    elif crc(archive, member) != crc(first, other):
      problem = f'other content than the same name has in {first.path}'
    if problem:
      self.faults.append(
        f'{archive.path}: member {member.name!r}: got {problem}; wanted one content per '
        'name: drop one of them'
      )

  def _journal_file(self, archive: Archive, member: Member, journal: Journal) -> File | None:
    """Returns the journal's entry for a member; None if the file or the member has changed."""
    file = journal.files.get(member.name)
    # headers of a plain tar have no checksums: a part downloaded again may have other content
    if (
      file is None
      or file.size != member.size
      or (member.crc is None and not journal.is_of_same_files(archive))
    ):
      return None
    if member.crc is not None and member.crc != file.crc:
      return None
    status = _status(f'{self.real}/{member.name}')
    same = (
      status
      and stat.S_ISREG(status.st_mode)
      and (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)
    )
    return file if same else None

  def _parents(self) -> set[str]:
    folders: set[str] = set()
    for name in self.targets:
      folder = os.path.dirname(name)
      while folder and folder not in folders:
        folders.add(folder)
        folder = os.path.dirname(folder)
    return folders

  def _place(self, member: Member):
    """Adds a fault if the member's path cannot be written. Counts the disk space it needs."""
    target = f'{self.real}/{member.name}'
    status = _status(target)
    if problem := self._folder(os.path.dirname(member.name)):
      self._refuse(member.name, problem)
    elif len(os.fsencode(target)) >= _PATH_BYTES:
      self._refuse(member.name, f'a path of {len(os.fsencode(target))} bytes below this root')
    elif status and not stat.S_ISREG(status.st_mode):
      self._refuse(
        member.name,
        f'a {"folder" if stat.S_ISDIR(status.st_mode) else "device or pipe"} that is there already',
      )
    elif status and pathlib.Path(target).resolve() in self._sources:
      self._refuse(member.name, 'the place of an archive that is being unpacked')
    self.bytes += member.size
    if status is None or status.st_size != member.size:
      self.need += -(-member.size // _BLOCK) * _BLOCK
      self.files += 1

  def _folder(self, name: str) -> str:
    """Returns why a folder below the root cannot be written to; '' if it can."""
    if not name:
      return ''
    if name not in self._folders:
      self._folders[name] = self._folder(os.path.dirname(name)) or self._folder_itself(
        f'{self.real}/{name}'
      )
    return self._folders[name]

  def _folder_itself(self, path: str) -> str:
    status = _status(path)
    if (
      os.path.islink(path) and os.path.commonpath([self.real, os.path.realpath(path)]) != self.real
    ):
      return f'a link on the way, {path}, that leaves the root'
    return f'a file on the way, {path}' if status and not stat.S_ISDIR(status.st_mode) else ''


def _status(path: str) -> os.stat_result | None:
  try:
    return os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return None

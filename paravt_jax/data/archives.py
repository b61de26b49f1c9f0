"""What zip and tar archives hold, and the bytes of their members. Nothing here writes.

`read` lists an archive and every fault that can be seen without unpacking it: names that leave the root, links, devices,
encryption, bombs, damage. A zip is judged by its directory and a plain tar by its headers, so both are cheap to list. A packed
tar (gz, bz2, xz) has no directory: it is read through once, which also proves that it is whole and gives every
member's checksum.
"""

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import lzma
import os
import pathlib
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from paravt_jax.errors import DataError

SUFFIXES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
OURS = '.paravt_unpack'             # the folder of the journal; no member may be called so
RATIO = 200                         # media barely shrink and text shrinks 20-fold: more than this is made to hurt,
FLOOR = 64 << 20                    # in bytes: unless it is small anyway
CHUNK = 1 << 20
_PACKINGS = {'tar.gz': (b'\x1f\x8b', gzip.open), 'tar.bz2': (b'BZh', bz2.open), 'tar.xz': (b'\xfd7zXZ', lzma.open)}
_HEADER = struct.Struct('<4s22xHH')    # of a zip's member: signature, length of name, length of extra field
_NAME_BYTES = 255                   # of one part of a path, on every usual file system
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LONGEST_EXTENSION = 1 << 20        # in bytes: of such a header of a tar, which tarfile reads whole into memory
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_DRIVE = re.compile('[A-Za-z]:')
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, NotImplementedError, ValueError,
           IndexError, OverflowError, RecursionError)    # all that the readers raise on bytes that make no sense


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """A file in an archive. size, packed: bytes outside and inside. crc: CRC-32, None where only reading tells (plain tar).

  place: where its header (zip) or its bytes (plain tar) begin; its number in a packed tar. deflated: or stored as it is.
  """
  name: str
  size: int
  crc: int | None
  place: int
  packed: int
  deflated: bool


@dataclasses.dataclass(frozen=True)
class Fault:
  """Why an archive is refused, as one line; member: its name as the archive spells it, None when the archive is at fault."""
  member: str | None
  text: str


@dataclasses.dataclass(frozen=True)
class Archive:
  """An archive and its good members in their order. kind: zip, tar, tar.gz, tar.bz2, tar.xz. digest: of the members."""
  path: pathlib.Path
  kind: str
  bytes: int
  mtime_ns: int
  digest: str
  members: tuple[Member, ...]
  faults: tuple[Fault, ...]

  @property
  def is_stream(self) -> bool:
    """Whether members come only in their order: a packed tar."""
    return self.kind in _PACKINGS


def find(source: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
  """The archives at any depth below the folder `source`, by name; or that one file. A `root` inside it is left out."""
  if source.is_file():
    return [source]
  inside, outside = root.resolve(), source.resolve()
  skip = inside if inside != outside and inside.is_relative_to(outside) else None
  files = (path for path in source.rglob('*') if path.name.lower().endswith(SUFFIXES) and path.is_file())
  return sorted(path for path in files if skip is None or not path.resolve().is_relative_to(skip))


def relative(name: str) -> str:
  """A member's name as a path below the root, with `/` and without empty or `.` parts ('' for the root itself).

  Raises:
    ValueError: it leaves the root or is no usable name; the text says what it is.
  """
  parts = name.split('/')
  if name.startswith(('/', '\\')) or _DRIVE.match(name) or '..' in name.replace('\\', '/').split('/'):
    raise ValueError('a path that leaves the root')
  if not name or '\0' in name:
    raise ValueError('an empty name or one with a NUL')
  parts = [part for part in parts if part not in ('', '.')]
  if any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
    raise ValueError(f'a name with a part of more than {_NAME_BYTES} bytes')
  if parts and parts[0] == OURS:
    raise ValueError('a name inside the journal of this command')
  return '/'.join(parts)


def read(path: pathlib.Path, spend: Callable[[int], None] = lambda count: None) -> Archive:
  """Lists an archive. Damage is a fault too, never an exception. spend(n): n more bytes of a packed tar were read.

  Raises:
    OSError: the file cannot be read.
  """
  status, kind = os.stat(path), kind_of(path)
  try:
    members, faults = _read_zip(path, status.st_size) if kind == 'zip' else _read_tar(path, kind, status.st_size, spend)
  except DataError as error:
    members, faults = [], [Fault(None, str(error))]
  total = sum(member.size for member in members)
  if total > FLOOR and total > RATIO * status.st_size:
    faults.append(Fault(None, f'{path}: got {total} bytes packed into {status.st_size}, a bomb; wanted at most {RATIO} times as many'))
  return Archive(path, kind, status.st_size, status.st_mtime_ns, digest(members), tuple(members), tuple(faults))


def kind_of(path: pathlib.Path) -> str:
  """The kind that a file's first bytes tell (a name may lie). Raises OSError when it cannot be read."""
  with open(path, 'rb') as file:
    start = file.read(8)
  for kind, (magic, _) in _PACKINGS.items():
    if start.startswith(magic):
      return kind
  if start.startswith(b'PK') or path.suffix.lower() == '.zip':
    return 'zip'
  return 'tar'    # or nonsense, which reading it as a tar finds out


def digest(members: list[Member] | tuple[Member, ...]) -> str:
  """Hex BLAKE2b (16 bytes) of a list of members: of a zip's directory, of a tar's headers."""
  lines = '\n'.join(f'{each.name!r} {each.size} {each.crc} {each.place} {each.packed}' for each in members)
  return hashlib.blake2b(lines.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()


def damaged(path: pathlib.Path, kind: str, why: str) -> DataError:
  """The error for an archive whose bytes make no sense."""
  return DataError(f'{path}: damaged archive ({why}), wanted a whole {kind}; fetch it again')


@contextlib.contextmanager
def _guarded(path: pathlib.Path, kind: str):
  """Turns what the readers raise on nonsense into a DataError."""
  try:
    yield
  except _DAMAGE as error:
    raise damaged(path, kind, str(error) or type(error).__name__) from error
  except OSError as error:
    if error.errno is not None:    # a disk's own trouble
      raise
    raise damaged(path, kind, str(error)) from error    # gzip's and bz2's way of saying the same


def _refused(path: pathlib.Path, name: str, problem: str) -> Fault:
  return Fault(name, f'{path}: member {name!r}: got {problem}, wanted a plain file with a relative path; drop it there')


# Zip.

def _read_zip(path: pathlib.Path, size: int) -> tuple[list[Member], list[Fault]]:
  with _guarded(path, 'zip'), zipfile.ZipFile(path) as archive:
    infos = archive.infolist()
  members, faults, end = [], [], 0
  for info in sorted(infos, key=lambda info: info.header_offset):
    name = _zip_name(info)
    problem = _zip_problem(info)
    if not problem and not 0 <= info.header_offset <= size - _HEADER.size - info.compress_size:
      raise damaged(path, 'zip', f'member {name!r} ends after the file')
    if not problem and info.header_offset < end:
      problem = 'bytes that another member holds too (a bomb)'
    end = info.header_offset + _HEADER.size + info.compress_size
    try:
      inside = relative(name)
    except ValueError as error:
      problem, inside = str(error), ''
    if problem:
      faults.append(_refused(path, name, problem))
    elif inside and not name.endswith('/'):
      members.append(Member(inside, info.file_size, info.CRC, info.header_offset, info.compress_size,
                            info.compress_type == zipfile.ZIP_DEFLATED))
  return members, faults


def _zip_problem(info: zipfile.ZipInfo) -> str:
  """What is wrong with a member of a zip, '' when it may be written."""
  if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
    return 'a link or device'
  if info.flag_bits & _ENCRYPTED:
    return 'an encrypted file'
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    return f'compression method {info.compress_type} (neither stored nor deflated)'
  if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
    return f'{info.compress_size} stored bytes that are declared as {info.file_size}'
  if info.file_size > FLOOR and info.file_size > RATIO * info.compress_size:
    return f'a bomb ({info.file_size} bytes from {info.compress_size}, more than {RATIO} times as many)'
  return ''


def _zip_name(info: zipfile.ZipInfo) -> str:
  """The name, also where a tool did not say that it wrote UTF-8, and with `/` where an old Windows tool wrote backslashes."""
  name = info.orig_filename
  if not info.flag_bits & _UTF8 and not name.isascii():
    raw = name.encode('cp437')    # what zipfile had decoded
    unicode = _unicode_path(info.extra, raw)
    with contextlib.suppress(UnicodeDecodeError):
      name = (raw if unicode is None else unicode).decode()
  if '\\' in name and '/' not in name and info.create_system == 0:
    name = name.replace('\\', '/')
  return name


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
  """The UTF-8 name in Info-ZIP's extra field 0x7075, if there is one for this very name (APPNOTE.TXT 4.6.9)."""
  while len(extra) >= 4:
    tag, length = struct.unpack('<HH', extra[:4])
    body, extra = extra[4:4 + length], extra[4 + length:]
    if tag == 0x7075 and len(body) > 5 and struct.unpack('<I', body[1:5])[0] == zlib.crc32(raw):
      return body[5:]
  return None


# Tar.

def _read_tar(path: pathlib.Path, kind: str, size: int, spend: Callable[[int], None]) -> tuple[list[Member], list[Fault]]:
  members, faults = [], []
  for number, info, content in tar_entries(path, kind, size, spend):
    try:
      inside, problem = relative(info.name), ''
    except ValueError as error:
      inside, problem = '', str(error)
    if info.issparse():
      problem = problem or 'a file with holes'
    elif not info.isreg() and not info.isdir():
      problem = problem or 'a link or device'
    if problem:
      faults.append(_refused(path, info.name, problem))
    elif info.isreg() and inside and content is None:
      members.append(Member(inside, info.size, None, info.offset_data, info.size, False))
    elif info.isreg() and inside:
      crc = 0
      for piece in content:
        crc = zlib.crc32(piece, crc)
      members.append(Member(inside, info.size, crc, number, info.size, False))
  return members, faults


def tar_entries(path: pathlib.Path, kind: str, size: int, spend: Callable[[int], None] = lambda count: None
                ) -> Iterator[tuple[int, tarfile.TarInfo, Iterator[bytes] | None]]:
  """(number, header, content) of a tar's entries; content: pieces, to be read before the next entry; None in a plain tar.

  size: of the archive, in bytes. Both raise DataError for a damaged or truncated archive and for a bomb.
  """
  class Strict(tarfile.TarInfo):
    """Says whether the last header was the end mark: tarfile takes a broken header, or a missing end, for an end as well."""
    is_end = False

    @classmethod
    def frombuf(cls, buf, encoding, errors):
      cls.is_end = len(buf) == tarfile.BLOCKSIZE and not buf.strip(b'\0')
      info = super().frombuf(buf, encoding, errors)
      if info.size < 0 or (info.type in _EXTENSIONS and info.size > _LONGEST_EXTENSION):
        raise tarfile.InvalidHeaderError('a size that cannot be')
      return info

  with _guarded(path, kind), open(path, 'rb') as raw, contextlib.ExitStack() as stack:
    plain = raw
    if kind in _PACKINGS:
      unpacked = stack.enter_context(_PACKINGS[kind][1](_Counted(raw, spend)))
      plain = _Bounded(unpacked, path, max(FLOOR, RATIO * size))
    mode = 'r|' if kind in _PACKINGS else 'r:'
    tar = stack.enter_context(tarfile.open(fileobj=plain, mode=mode, bufsize=CHUNK, tarinfo=Strict))
    for number, info in enumerate(tar):
      if info.size < 0 or (kind == 'tar' and info.isreg() and info.offset_data + info.size > size):
        raise damaged(path, kind, f'member {info.name!r} ends after the file')
      yield number, info, _unpacked(path, kind, tar, info) if kind in _PACKINGS and info.isreg() else None
    if not Strict.is_end:
      raise damaged(path, kind, f'no end mark: it is cut, or the header at byte {tar.offset} is broken')
    while kind in _PACKINGS and plain.read(CHUNK):
      pass    # the packing's own checksum stands at its end


def _unpacked(path: pathlib.Path, kind: str, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
  with _guarded(path, kind):
    file = tar.extractfile(info)
    while piece := file.read(CHUNK):
      yield piece


class _Counted:
  """A file that reports how much of it was read."""

  def __init__(self, file: IO[bytes], spend: Callable[[int], None]):
    self._file, self._spend = file, spend

  def read(self, size: int = -1) -> bytes:
    data = self._file.read(size)
    self._spend(len(data))
    return data


class _Bounded:
  """An unpacking stream that refuses to grow beyond a limit of bytes."""

  def __init__(self, file: Any, path: pathlib.Path, limit: int):
    self._file, self._path, self._limit, self._total = file, path, limit, 0

  def read(self, size: int) -> bytes:
    data = self._file.read(size)
    self._total += len(data)
    if self._total > self._limit:
      raise DataError(f'{self._path}: got more than {self._limit} bytes out of it, a bomb; wanted at most {RATIO} times as many as '
                      'it has')
    return data


# The bytes of one member, from a zip or a plain tar.

def content(file: int, archive: Archive, member: Member) -> Iterator[bytes]:
  """The bytes of a member in pieces of at most CHUNK, `member.size` in all; the checksum is the caller's to compare.

  file: a descriptor of the archive; only `pread` is used, so that threads may share it.

  Raises:
    DataError: the archive is cut or damaged there, or gives more or fewer bytes than it declared.
  """
  problem, start = '', member.place
  if archive.kind == 'zip':
    header = os.pread(file, _HEADER.size, start)
    if len(header) < _HEADER.size or not header.startswith(b'PK\3\4'):
      raise damaged(archive.path, archive.kind, f'member {member.name!r}: no header at byte {start}')
    _, name, extra = _HEADER.unpack(header)
    start += _HEADER.size + name + extra
  pieces = _pieces(file, start, member.packed)
  left = member.size
  try:
    for piece in _inflated(pieces, left) if member.deflated else pieces:
      left -= len(piece)
      if left < 0:
        break
      yield piece
  except (zlib.error, EOFError) as error:
    problem = str(error)
  if left:
    problem = problem or (f'{left} bytes fewer than its header says' if left > 0 else 'more bytes than its header says')
  if problem:
    raise damaged(archive.path, archive.kind, f'member {member.name!r}: {problem}')


def _pieces(file: int, start: int, count: int) -> Iterator[bytes]:
  while count:
    piece = os.pread(file, min(count, CHUNK), start)
    if not piece:
      raise EOFError('the file ends before it')
    yield piece
    start, count = start + len(piece), count - len(piece)


def _inflated(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
  """Deflated pieces as they were; never more than CHUNK at a time, whatever a piece blows up to."""
  stream = zlib.decompressobj(-zlib.MAX_WBITS)
  for piece in pieces:
    while piece:
      yield stream.decompress(piece, CHUNK)
      piece = stream.unconsumed_tail
  yield stream.flush()
  if not stream.eof:
    raise EOFError('its stream does not end')


def checksum(file: int, archive: Archive, member: Member) -> int:
  """CRC-32 of a member of a zip or plain tar, by reading it. Raises DataError like `content`."""
  crc = 0
  for piece in content(file, archive, member):
    crc = zlib.crc32(piece, crc)
  return crc

"""Zip archives: their directory, and the bytes of one member.

Supported members are stored or packed with deflate, bzip2, lzma, xz or zstd. The zip may be larger
than 4 GB, have other bytes before it, or be cut into parts by `split`.
"""

import bz2
import contextlib
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from paravt_jax.data import archive_members
from paravt_jax.data.archive_members import (
  CHUNK,
  DEFLATED,
  RATIO,
  STORED,
  Archive,
  Fault,
  Listing,
  Member,
  damage_error,
  guarded,
  is_left_behind,
  refused,
  relative,
)
from paravt_jax.data.archive_parts import Joined

BZIP2 = zipfile.ZIP_BZIP2
LZMA = zipfile.ZIP_LZMA
ZSTD = 93
XZ = 95
_UNREAD = {1: 'shrink', 6: 'implode', 9: 'deflate64', 97: 'wavpack', 98: 'ppmd', 99: 'AES'}
# header of a member: signature, length of the name, length of the extra field
_HEADER = struct.Struct('<4s22xHH')
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_DOS_FOLDER = 0x10
_END = b'PK\5\6'
_MEMORY = 256 << 20  # in bytes; the largest decompression window that is allowed


def listing(archive: Archive) -> Listing:
  """Returns the members and faults in the directory of a zip. Raises DataError if it is damaged."""
  path, size, found = archive.path, archive.bytes, Listing()
  with guarded(path, 'zip'), archive.open() as raw:
    if disks := _disks(raw):
      found.faults.append(
        Fault(
          None,
          f'{path}: got the last of {disks} disks of one zip, which is '
          'not read; join them with `zip -s 0 IN.zip --out WHOLE.zip`',
        )
      )
      return found
    with zipfile.ZipFile(io.BufferedReader(raw)) as opened:
      infos = opened.infolist()
  end, left = 0, 0
  for info in sorted(infos, key=lambda info: info.header_offset):
    name = _name(info)
    # skip metadata of macOS and Windows
    if is_left_behind(name):
      left += not name.endswith('/')
      continue
    problem = _problem(info, name)
    if not problem and not 0 <= info.header_offset <= size - _HEADER.size - info.compress_size:
      raise damage_error(path, 'zip', f'member {name!r} ends after the file')
    if not problem and info.header_offset < end:
      problem = 'bytes that another member holds too (a bomb)'
    end = info.header_offset + _HEADER.size + info.compress_size
    try:
      inside = relative(name)
    except ValueError as error:
      problem, inside = str(error), ''
    if problem:
      found.faults.append(refused(path, name, problem))
    elif inside and not _is_folder(info, name):
      found.members.append(
        Member(
          inside,
          info.file_size,
          info.CRC,
          info.header_offset,
          info.compress_size,
          info.compress_type,
        )
      )
  return Listing(found.members, found.faults, left)


def _disks(raw: Joined) -> int:
  """Returns the number of disks of a multi-disk zip, from its end record.

  Returns 0 for a zip on one disk, or without an end record.
  """
  size = raw.seek(0, io.SEEK_END)
  start = max(0, size - 22 - 65535)
  raw.seek(start)
  tail = raw.readall()
  raw.seek(0)
  place = tail.rfind(_END)
  if place < 0 or len(tail) < place + 22:
    return 0
  number, first = struct.unpack('<HH', tail[place + 4 : place + 8])
  return number + 1 if 0 < number < 0xFFFF or 0 < first < 0xFFFF else 0


def _is_folder(info: zipfile.ZipInfo, name: str) -> bool:
  is_unix = stat.S_IFMT(info.external_attr >> 16) == stat.S_IFDIR
  is_dos = info.external_attr & _DOS_FOLDER and not info.file_size
  return bool(name.endswith('/') or is_unix or is_dos)


def _problem(info: zipfile.ZipInfo, name: str) -> str:
  """Returns what is wrong with a member of a zip; '' if it may be written."""
  method, size, packed = info.compress_type, info.file_size, info.compress_size
  if name.endswith('/') and not size:
    return ''  # a folder, regardless of its mode
  if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
    return 'a link or device'
  if info.flag_bits & _ENCRYPTED:
    return 'an encrypted file'
  if method not in _STREAMS and method != STORED:
    kind = f'{_UNREAD[method]}, ' if method in _UNREAD else ''
    return f'compression method {method} ({kind}none of stored, deflate, bzip2, lzma, xz and zstd)'
  if method == STORED and packed != size:
    return f'{packed} stored bytes that are declared as {size}'
  if size > archive_members.FLOOR and size > RATIO * packed:
    return f'a bomb ({size} bytes from {packed}, more than {RATIO} times as many)'
  return ''


def _name(info: zipfile.ZipInfo) -> str:
  """Returns a member's name. Decodes it as UTF-8 where that is valid, even without the UTF-8 flag.

  Backslashes of old Windows tools become `/`.
  """
  name = info.orig_filename
  if not info.flag_bits & _UTF8:
    raw = name.encode('cp437')  # undo the decoding of zipfile
    unicode = _unicode_path(info.extra, raw)
    with contextlib.suppress(UnicodeDecodeError):
      name = (raw if unicode is None else unicode).decode()
  if '\\' in name and '/' not in name and info.create_system == 0:
    name = name.replace('\\', '/')
  return name


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
  """Returns the UTF-8 name in Info-ZIP's extra field 0x7075 (APPNOTE.TXT 4.6.9).

  Returns None if there is none, or if it belongs to another name.
  """
  while len(extra) >= 4:
    tag, length = struct.unpack('<HH', extra[:4])
    body, extra = extra[4 : 4 + length], extra[4 + length :]
    if tag == 0x7075 and len(body) > 5 and struct.unpack('<I', body[1:5])[0] == zlib.crc32(raw):
      return body[5:]
  return None


# Reading the bytes of one member


def place_of(file: Joined, archive: Archive, member: Member) -> int:
  """Returns the offset of a member's packed bytes. Raises DataError if there is no header."""
  header = file.pread(_HEADER.size, member.place)
  while 0 < len(header) < _HEADER.size and (
    more := file.pread(_HEADER.size - len(header), member.place + len(header))
  ):
    header += more  # the header may span two parts
  if len(header) < _HEADER.size or not header.startswith(b'PK\3\4'):
    raise damage_error(
      archive.path, 'zip', f'member {member.name!r}: no header at byte {member.place}'
    )
  _, name, extra = _HEADER.unpack(header)
  return member.place + _HEADER.size + name + extra


def unpack_pieces(method: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
  """Yields the unpacked bytes of packed pieces, at most CHUNK at a time."""
  return pieces if method == STORED else _STREAMS[method](pieces)


def _inflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
  stream = zlib.decompressobj(-zlib.MAX_WBITS)
  for piece in pieces:
    while piece:
      yield stream.decompress(piece, CHUNK)
      piece = stream.unconsumed_tail
  yield stream.flush()
  if not stream.eof:
    raise EOFError('its stream does not end')


def _decompress(stream: Any, pieces: Iterator[bytes], ends: bool) -> Iterator[bytes]:
  """Yields the output of a decompressor of bz2 or lzma. ends: whether the format marks its end."""
  for piece in pieces:
    yield stream.decompress(piece, CHUNK)
    while not stream.needs_input and not stream.eof:
      yield stream.decompress(b'', CHUNK)
  if ends and not stream.eof:
    raise EOFError('its stream does not end')


def _lzma(pieces: Iterator[bytes]) -> Iterator[bytes]:
  """Yields the unpacked bytes of LZMA in a zip (APPNOTE.TXT 5.8.8).

  The layout is: version, length of properties, properties, stream.
  """
  start = b''
  while len(start) < 9:
    piece = next(pieces, b'')
    if not piece:
      raise EOFError('its stream does not begin')
    start += piece
  length = struct.unpack('<2xH', start[:4])[0]
  if length != 5:
    raise ValueError(f'{length} bytes of LZMA properties')
  number, window = struct.unpack('<BI', start[4:9])
  if window > _MEMORY or number >= 9 * 5 * 5:
    raise ValueError(f'LZMA with a window of {window} bytes')
  about = {
    'id': lzma.FILTER_LZMA1,
    'dict_size': max(window, 4096),
    'lc': number % 9,
    'lp': number // 9 % 5,
    'pb': number // 45,
  }
  stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[about])
  yield from _decompress(stream, _prepend(start[9:], pieces), ends=False)


def _prepend(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
  if first:
    yield first
  yield from pieces


def _zstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
  stream = zstd(_Pieces(pieces))
  while piece := stream.read(CHUNK):
    yield piece


def zstd(file: Any, codec: str = 'zstd') -> Any:
  """Returns a stream of the unpacked bytes of a file packed with zstd (or lz4).

  Reading invalid bytes raises OSError.
  """
  import pyarrow  # imported here: it takes 0.1 s, which only zstd and lz4 need

  return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode='r'), codec)


class _Pieces(io.RawIOBase):
  """An iterator of bytes as a readable file."""

  def __init__(self, pieces: Iterator[bytes]):
    super().__init__()
    self._pieces, self._rest = pieces, b''

  def read(self, size: int = -1) -> bytes:
    """Returns some bytes; b'' at the end."""
    while not self._rest and (piece := next(self._pieces, None)) is not None:
      self._rest = piece
    piece, self._rest = self._rest[:size], self._rest[size:]
    return piece

  def readable(self) -> bool:
    """Returns True."""
    return True


_STREAMS: dict[int, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
  DEFLATED: _inflate,
  BZIP2: lambda pieces: _decompress(bz2.BZ2Decompressor(), pieces, ends=True),
  LZMA: _lzma,
  XZ: lambda pieces: _decompress(
    lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY), pieces, ends=True
  ),
  ZSTD: _zstd,
}

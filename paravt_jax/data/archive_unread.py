"""Finds files that look like an archive, by name or first bytes, but cannot be read.

They are reported, so that nobody assumes that everything was unpacked.
"""

import contextlib
import lzma
import pathlib
import re
import zlib
from collections.abc import Container, Iterable, Sequence

from paravt_jax.data import tars
from paravt_jax.data.archive_parts import SUFFIXES

_ANY = '|'.join(re.escape(suffix) for suffix in sorted(SUFFIXES, key=len, reverse=True))
_NAMES = (
  # (pattern of the name, what the file is, what to do about it)
  (
    re.compile(
      rf'.*(?:{_ANY}|\.7z|\.rar)[._-]?'
      r'(?:part|partial|crdownload|download|aria2|incomplete|filepart|opdownload|!ut|!qb)'
    ),
    'a download that is not finished',
    'fetch it to its end, or remove it',
  ),
  (
    re.compile(r'.*\.z\d\d'),
    'a part of a zip over several disks',
    'join them with `zip -s 0 IN.zip --out WHOLE.zip`, and move these out of the folder',
  ),
  (
    re.compile(
      r'.*\.(?:7z|rar|ace|arj|cab|lzh|lha|iso|dmg|cpio|xar|alz|wim|sitx?)'
      r'(?:[._-]\d{1,4})?'
    ),
    '',
    '',
  ),
  (re.compile(r'.*\.r\d\d'), 'a part of a rar', ''),
  (re.compile(r'.*\.(?:tar\.(?:z|lz|lzo|lrz|br|sz|zlib)|tz|tzo|tbr)'), '', ''),
)
_BYTES = (
  (b"7z\xbc\xaf'\x1c", '7z'),
  (b'Rar!\x1a\x07', 'rar'),
  (b'MSCF\0\0\0\0', 'cab'),
  (b'\x1f\x9d', 'Z'),
  (b'LZIP', 'lzip'),
  (b'xar!', 'xar'),
  (b'070701', 'cpio'),
  (b'070702', 'cpio'),
  (b'070707', 'cpio'),
)
_BY_HAND = 'unpack it by hand into the root, and move it out of the folder'
_RENAME = 'call it *{}, so that it is read, or move it out of the folder'
# Suffixes of files that are never treated as archives, even if their bytes are (an .npz is a zip).
_MEDIA = frozenset(
  (
    '.mp4',
    '.mkv',
    '.webm',
    '.avi',
    '.mov',
    '.flv',
    '.wmv',
    '.m4v',
    '.mpg',
    '.mpeg',
    '.ts',
    '.m2ts',
    '.3gp',
    '.ogv',
    '.gif',
    '.jpg',
    '.jpeg',
    '.png',
    '.webp',
    '.bmp',
    '.tif',
    '.tiff',
    '.heic',
    '.avif',
    '.mp3',
    '.wav',
    '.flac',
    '.m4a',
    '.aac',
    '.opus',
    '.ogg',
  )
)
_KNOWN = _MEDIA | frozenset(
  (
    '.json',
    '.jsonl',
    '.txt',
    '.csv',
    '.tsv',
    '.md',
    '.html',
    '.xml',
    '.yaml',
    '.yml',
    '.srt',
    '.vtt',
    '.ass',
    '.parquet',
    '.arrow',
    '.feather',
    '.npy',
    '.npz',
    '.pt',
    '.pth',
    '.ckpt',
    '.bin',
    '.safetensors',
    '.onnx',
    '.pkl',
    '.h5',
    '.hdf5',
    '.keras',
    '.mat',
    '.pdf',
    '.docx',
    '.xlsx',
    '.pptx',
    '.odt',
    '.ods',
    '.odp',
    '.epub',
    '.jar',
    '.apk',
    '.whl',
    '.egg',
    '.crx',
    '.xpi',
    '.kmz',
    '.py',
    '.ipynb',
    '.sh',
    '.lock',
    '.metadata',
    '.log',
    '.md5',
    '.sha1',
    '.sha256',
    '.sha512',
    '.asc',
    '.sig',
    '.idx',
    '.index',
    '.url',
    '.torrent',
    '.db',
    '.sqlite',
  )
)
_NONSENSE = (EOFError, ValueError, OSError, zlib.error, lzma.LZMAError)
_USTAR = slice(257, 262)


def find_unread(
  paths: Iterable[pathlib.Path],
  groups: Sequence[tuple[pathlib.Path, ...]],
  disks: Container[pathlib.Path],
) -> dict[pathlib.Path, str]:
  """Returns one message for each file that looks like an archive but cannot be read, by path.

  Args:
    paths: the files to check.
    groups: the archives among the files, by name. The first bytes of each are checked too.
    disks: the zips that span several disks, see `archive_parts.over_disks`.

  Raises:
    OSError: a file cannot be read.
  """
  first = {group[0] for group in groups}
  rest = {path for group in groups for path in group[1:]}
  lines = {}
  for path in paths:
    what, way_out = '', _BY_HAND
    if path.name.startswith('._'):
      continue  # metadata of macOS for another file
    if path in disks:
      what, way_out = _NAMES[1][1:]
    elif path in first:
      what = _by_bytes(path)
    elif path not in rest:
      what, way_out = _by_name(path.name) or _other(path)
    if what:
      lines[path] = f'{path}: not read: {what}; {way_out or _BY_HAND}'
  return lines


def _by_name(name: str) -> tuple[str, str] | None:
  for pattern, what, way_out in _NAMES:
    if pattern.fullmatch(name.lower()):
      return what or f'a kind of archive ({_kind(name)}) that is not read', way_out
  return None


def _kind(name: str) -> str:
  suffixes = [part for part in pathlib.PurePath(name).suffixes if not part[1:].isdigit()]
  return ''.join(suffixes[-2:] if '.tar' in suffixes[-2:-1] else suffixes[-1:])


def _by_bytes(path: pathlib.Path) -> str:
  start = _start(path)
  kind = next((kind for magic, kind in _BYTES if start.startswith(magic)), '')
  return f'a kind of archive ({kind}, by its first bytes) that is not read' if kind else ''


def _other(path: pathlib.Path) -> tuple[str, str]:
  """Returns (what the file is, what to do) by its first bytes; ('', '') if it is no archive."""
  if path.suffix.lower() in _KNOWN or path.name.startswith('.'):
    return '', ''
  start = _start(path)
  if what := _by_bytes(path):
    return what, ''
  if start.startswith((b'PK\3\4', b'PK\5\6')):
    return 'a zip by its first bytes, but not by its name', _RENAME.format('.zip')
  if start[_USTAR] == b'ustar':
    return 'a tar by its first bytes, but not by its name', _RENAME.format('.tar')
  for kind, (magic, unpacked) in tars.PACKINGS.items():
    if kind == 'tar.lzma' or not start.startswith(magic):
      continue
    with contextlib.suppress(*_NONSENSE), open(path, 'rb') as file:
      if unpacked(file).read(512)[_USTAR] == b'ustar':
        return f'a {kind} by its first bytes, but not by its name', _RENAME.format(f'.{kind}')
    inner = pathlib.PurePath(path.stem).suffix.lower()
    if inner in _MEDIA or inner not in _KNOWN:
      return (
        'a packed file, which is no archive',
        'unpack it by hand, and move it out of the folder',
      )
  return '', ''


def _start(path: pathlib.Path) -> bytes:
  with open(path, 'rb') as file:
    return file.read(512)

"""Zips as other tools write them: methods, names, folders, disks, and what Finder and Explorer
leave there.
"""

import lzma
import pathlib
import random
import struct
import zipfile
import zlib

import pyarrow
import pytest

from paravt_jax.data import archives
from paravt_jax.data.archive_members import is_left_behind
from paravt_jax.data.unpack import Unpacked, unpack

NOISE = random.Random(5).randbytes(30000)
TEXT = b'the same again. ' * 300000  # of several pieces


def _zip(
  path: pathlib.Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED
) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return path


def _with(path: pathlib.Path, method: int, packed: bytes, data: bytes) -> pathlib.Path:
  """A zip of one member 'a' with a method that zipfile does not know: stored, then told
  otherwise.
  """
  _zip(path, {'a': packed})
  out = bytearray(path.read_bytes())
  entry = out.index(b'PK\1\2')
  for place in (entry + 10, 8):
    out[place : place + 2] = struct.pack('<H', method)
  for place in (entry + 16, 14):
    out[place : place + 4] = struct.pack('<I', zlib.crc32(data))
  for place in (entry + 24, 22):
    out[place : place + 4] = struct.pack('<I', len(data))
  path.write_bytes(bytes(out))
  return path


def _files(root: pathlib.Path) -> dict[str, bytes]:
  paths = (
    path for path in root.rglob('*') if path.is_file() and '.paravt_unpack' not in path.parts
  )
  return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
  'method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_method_of_pythons_own_zips_is_read_in_pieces_of_bounded_size(tmp_path, method):
  members = {'noise': NOISE, 'text': TEXT, 'empty': b''}
  path = _zip(tmp_path / 'a.zip', members, method)
  archive = archives.read(path)
  assert archive.faults == ()
  with archive.open() as file:
    pieces = {
      member.name: list(archives.content(file, archive, member)) for member in archive.members
    }
  assert {name: b''.join(some) for name, some in pieces.items()} == members
  assert max(len(piece) for some in pieces.values() for piece in some) == 1 << 20


@pytest.mark.parametrize(
  ('method', 'pack'),
  [(93, lambda data: pyarrow.compress(data, codec='zstd', asbytes=True)), (95, lzma.compress)],
)
def test_members_packed_by_zstd_and_xz_are_read_too(tmp_path, method, pack):
  path = _with(tmp_path / 'a.zip', method, pack(TEXT), TEXT)
  assert unpack(path, tmp_path / 'root') == Unpacked(1, 0, len(TEXT)) and _files(
    tmp_path / 'root'
  ) == {'a': TEXT}


@pytest.mark.parametrize('method', [12, 14, 93, 95])
def test_damage_inside_a_member_of_any_method_is_a_line_that_names_it(tmp_path, method):
  pack = {93: lambda data: pyarrow.compress(data, codec='zstd', asbytes=True), 95: lzma.compress}
  path = (
    _with(tmp_path / 'a.zip', method, pack[method](NOISE), NOISE)
    if method in pack
    else _zip(tmp_path / 'a.zip', {'a': NOISE}, method)
  )
  data = bytearray(path.read_bytes())
  data[2000:2100] = bytes(100)
  path.write_bytes(bytes(data))
  with pytest.raises(Exception, match=r"a\.zip: damaged archive \(member 'a'") as error:
    unpack(path, tmp_path / 'root')
  assert type(error.value).__name__ == 'DataError' and _files(tmp_path / 'root') == {}


def test_lzma_with_a_window_or_properties_that_cannot_be_is_damage_and_takes_no_memory(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'a': NOISE}, zipfile.ZIP_LZMA)
  whole = path.read_bytes()
  start = 30 + 1
  for place, field, said in (
    (start + 5, b'\xff\xff\xff\xff', 'a window of 4294967295 bytes'),
    (start + 2, b'\7\0', '7 bytes of LZMA'),
  ):
    path.write_bytes(whole[:place] + field + whole[place + len(field) :])
    with pytest.raises(Exception, match=said):
      unpack(path, tmp_path / 'root')


@pytest.mark.parametrize(
  ('method', 'name'), [(9, 'deflate64, '), (6, 'implode, '), (98, 'ppmd, '), (77, '')]
)
def test_a_method_that_is_not_read_is_named(tmp_path, method, name):
  (fault,) = archives.read(_with(tmp_path / 'a.zip', method, NOISE, NOISE)).faults
  assert (
    f"member 'a': got compression method {method} ({name}none of stored, deflate, bzip2, "
    'lzma, xz and zstd)' in fault.text
  )


def test_the_unicode_name_counts_also_where_the_plain_one_is_ascii(tmp_path):
  info = zipfile.ZipInfo('____.mp4')
  body = struct.pack('<BI', 1, zlib.crc32(b'____.mp4')) + '视频.mp4'.encode()
  info.extra = struct.pack('<HH', 0x7075, len(body)) + body
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    archive.writestr(info, b'1')
  assert [m.name for m in archives.read(tmp_path / 'a.zip').members] == ['视频.mp4']


def test_a_folder_is_one_by_its_name_or_by_what_dos_and_unix_say_of_it(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    for name, mode in (('odd/', 0x1234 << 16), ('dos', 0x10), ('unix', 0o040755 << 16)):
      info = zipfile.ZipInfo(name)
      info.external_attr = mode
      archive.writestr(info, b'')
    archive.writestr('dos/a', b'1')
    archive.writestr('unix/a', b'1')
  assert unpack(tmp_path / 'a.zip', tmp_path / 'root') == Unpacked(2, 0, 2)


@pytest.mark.parametrize(
  'name',
  [
    '__MACOSX/v/._a.mp4',
    '__MACOSX/',
    'v/._a.mp4',
    '._a',
    '.DS_Store',
    'v/.DS_Store',
    'v/Thumbs.db',
    'THUMBS.DB',
    'v\\Thumbs.db',
    'desktop.ini',
    'v/.AppleDouble/a',
    '.Spotlight-V100/x/y',
    '$RECYCLE.BIN/a',
    '__MACOSX/../../x',
  ],
)
def test_what_macos_and_windows_leave_behind_is_known(name):
  assert is_left_behind(name)


@pytest.mark.parametrize(
  'name',
  ['v/a.mp4', '.a.mp4', 'v/_._a', 'MACOSX/a', 'v/DS_Store', 'my desktop.ini.txt', 'thumbs/a.db'],
)
def test_and_files_of_like_names_are_not(name):
  assert not is_left_behind(name)


def test_a_zip_in_parts_is_read_across_their_edges_wherever_they_lie(tmp_path):
  data = _zip(tmp_path / 'whole', {'a': NOISE, 'b': TEXT}, zipfile.ZIP_DEFLATED).read_bytes()
  for size in (1000, 4099, 30060):
    folder = tmp_path / str(size)
    folder.mkdir()
    for number, start in enumerate(range(0, len(data), size), 1):
      (folder / f'v.zip.{number:03d}').write_bytes(data[start : start + size])
    assert unpack(folder, folder / 'root').written == 2
    assert _files(folder / 'root') == {'a': NOISE, 'b': TEXT}


def test_every_cut_of_a_zip_into_two_gives_the_same(tmp_path):
  data = _zip(tmp_path / 'whole', {'a': b'abc', 'b': b'd'}, zipfile.ZIP_DEFLATED).read_bytes()
  parts = [tmp_path / f'v.zip.00{i}' for i in (1, 2)]
  for cut in range(5, len(data), 7):
    parts[0].write_bytes(data[:cut])
    parts[1].write_bytes(data[cut:])
    archive = archives.read(parts)
    with archive.open() as file:
      found = [b''.join(archives.content(file, archive, member)) for member in archive.members]
    assert (found, archive.faults) == ([b'abc', b'd'], ()), cut


def test_the_last_of_several_disks_alone_says_how_to_join_them(tmp_path):
  data = bytearray(_zip(tmp_path / 'a.zip', {'a': b'1'}).read_bytes())
  end = data.rindex(b'PK\5\6')
  data[end + 4 : end + 6] = struct.pack('<H', 2)
  (tmp_path / 'a.zip').write_bytes(bytes(data))
  (fault,) = archives.read(tmp_path / 'a.zip').faults
  assert (
    'got the last of 3 disks of one zip, which is not read; join them with `zip -s 0 IN.zip '
    '--out WHOLE.zip`' in fault.text
  )


def test_a_zip_behind_other_bytes_is_read(tmp_path):
  data = _zip(tmp_path / 'a.zip', {'a': NOISE}, zipfile.ZIP_DEFLATED).read_bytes()
  (tmp_path / 'b.zip').write_bytes(b'#!/bin/sh\n' * 50 + data)
  assert unpack(tmp_path / 'b.zip', tmp_path / 'root').written == 1 and _files(
    tmp_path / 'root'
  ) == {'a': NOISE}

"""What an archive holds, and everything that is wrong with it, seen without writing a byte."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import random
import stat
import struct
import tarfile
import zipfile
import zlib

import pytest

from paravt_jax.data import archive_members, archives, tars
from paravt_jax.errors import DataError

NOISE = random.Random(5).randbytes(30000)
PACKINGS = {
  'a.tar': lambda data: data,
  'a.tar.gz': gzip.compress,
  'a.tgz': gzip.compress,
  'a.tar.bz2': bz2.compress,
  'a.tar.xz': lzma.compress,
}


def _zip(
  path: pathlib.Path, members: dict, mode: int | None = None, method: int = zipfile.ZIP_DEFLATED
) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name, data in members.items():
      info = zipfile.ZipInfo(name)
      info.compress_type = method
      if mode is not None:
        info.external_attr = mode << 16
      archive.writestr(info, data)
  return path


def _tar(members: dict, **more) -> bytes:
  """more: fields of every header, such as type and linkname."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      for key, value in more.items():
        setattr(info, key, value)
      archive.addfile(info, io.BytesIO(data))
  return out.getvalue()


def _write(path: pathlib.Path, data: bytes) -> pathlib.Path:
  path.write_bytes(data)
  return path


def _faults(path: pathlib.Path) -> list[str]:
  return [fault.text for fault in archives.read(path).faults]


def _bytes(archive: archives.Archive, member: archives.Member) -> bytes:
  with archive.open() as file:
    return b''.join(archives.content(file, archive, member))


def test_a_zip_is_listed_from_its_directory_and_gives_stored_and_deflated_bytes(tmp_path):
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    path = _zip(
      tmp_path / 'a.zip', {'d/': b'', './d//b.mp4': NOISE, 'a.txt': b'x' * 5000}, method=method
    )
    archive = archives.read(path)
    assert (archive.kind, archive.is_stream, archive.faults) == ('zip', False, ())
    assert [(each.name, each.size, each.crc) for each in archive.members] == [
      ('d/b.mp4', 30000, zlib.crc32(NOISE)),
      ('a.txt', 5000, zlib.crc32(b'x' * 5000)),
    ]
    assert [_bytes(archive, each) for each in archive.members] == [NOISE, b'x' * 5000]


@pytest.mark.parametrize('name', PACKINGS)
def test_every_tar_gives_the_same_members_and_a_packed_one_their_checksums_too(tmp_path, name):
  path = _write(
    tmp_path / name,
    PACKINGS[name](_tar({'d/a.mp4': NOISE, 'b.txt': b'', 'c' * 150 + '/é.jpg': b'c'})),
  )
  archive = archives.read(path)
  assert (archive.faults, archive.is_stream) == ((), name != 'a.tar')
  assert [(each.name, each.size) for each in archive.members] == [
    ('d/a.mp4', 30000),
    ('b.txt', 0),
    ('c' * 150 + '/é.jpg', 1),
  ]
  if archive.is_stream:
    assert [each.crc for each in archive.members] == [zlib.crc32(NOISE), 0, zlib.crc32(b'c')]
    assert [b''.join(content) for _, _, content in tars.entries(archive)] == [NOISE, b'', b'c']
  else:
    assert [each.crc for each in archive.members] == [None] * 3
    assert [_bytes(archive, each) for each in archive.members] == [NOISE, b'', b'c']


def test_the_first_bytes_and_not_the_name_say_what_an_archive_is(tmp_path):
  assert archives.read(_write(tmp_path / 'a.tar.gz', _tar({'a': b'a'}))).kind == 'tar'
  assert (
    archives.read(_write(tmp_path / 'b.tar', gzip.compress(_tar({'a': b'a'})))).kind == 'tar.gz'
  )
  _zip(tmp_path / 'c.tgz', {'a': b'a'})
  assert archives.read(tmp_path / 'c.tgz').kind == 'zip'
  for name in ('d.tar', 'd.zip.tar', 'd.tar.aa'):  # PK is how a file may be called
    archive = archives.read(_write(tmp_path / name, _tar({'PK_1/a.mp4': NOISE})))
    assert (archive.kind, [member.name for member in archive.members]) == ('tar', ['PK_1/a.mp4'])


@pytest.mark.parametrize(
  'name', ['../o', 'a/../../o', '/tmp/o', 'C:/o', 'c:o', '..\\o', 'a\\..\\..\\o', '\\\\host\\o']
)
def test_names_that_leave_the_root_are_faults_in_zips_and_tars(tmp_path, name):
  for path in (
    _zip(tmp_path / 'a.zip', {'good': b'1', name: b'2'}),
    _write(tmp_path / 'a.tar', _tar({'good': b'1', name: b'2'})),
  ):
    archive = archives.read(path)
    assert [fault.member for fault in archive.faults] == [name]
    assert archive.faults[0].text == (
      f'{path}: member {name!r}: got a path that leaves the root, wanted a plain file with a '
      'relative '
      'path; drop it there'
    )
    assert [each.name for each in archive.members] == ['good']


def test_a_name_that_is_too_long_empty_or_inside_the_journal_is_a_fault(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'é' * 128: b'1', '.paravt_unpack/lock': b'2'})
  assert [
    'more than 255 bytes' in fault or 'inside the journal' in fault for fault in _faults(path)
  ] == [True, True]
  with pytest.raises(ValueError, match='NUL'):
    archive_members.relative('a\0b')
  assert [archive_members.relative(name) for name in ('./a//b', './', 'é' * 127 + 'x')] == [
    'a/b',
    '',
    'é' * 127 + 'x',
  ]


@pytest.mark.parametrize(
  'kind', [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b'V']
)
def test_links_devices_and_kinds_unknown_are_faults_in_a_tar(tmp_path, kind):
  path = _write(tmp_path / 'a.tar', _tar({'x': b''}, type=kind, linkname='/etc/passwd'))
  assert [fault.split('got ')[1].split(',')[0] for fault in _faults(path)] == ['a link or device']


@pytest.mark.parametrize('mode', [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_faults_in_a_zip(tmp_path, mode):
  assert (
    'got a link or device'
    in _faults(_zip(tmp_path / 'a.zip', {'x': b'/etc/passwd'}, mode | 0o777))[0]
  )


def test_an_encrypted_member_and_an_unknown_method_are_faults(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'x': b'1'}, method=zipfile.ZIP_STORED)
  data = path.read_bytes()
  entry = data.index(b'PK\1\2')
  _write(path, data[: entry + 8] + b'\1\0' + data[entry + 10 :])
  assert 'got an encrypted file' in _faults(path)[0]
  _write(path, data[: entry + 10] + b'\x63\0' + data[entry + 12 :])
  assert 'got compression method 99' in _faults(path)[0]


def test_every_fault_of_an_archive_is_listed(tmp_path):
  assert (
    len(_faults(_zip(tmp_path / 'a.zip', {'../a': b'1', '/b': b'2', 'good': b'3', 'C:/c': b'4'})))
    == 3
  )


def test_names_in_utf8_without_the_flag_in_cp437_and_with_a_unicode_extra_field_are_read_right(
  tmp_path,
):
  def named(raw: bytes, extra: bytes = b'') -> str:
    info = zipfile.ZipInfo('x' * len(raw))
    info.extra = extra
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
      archive.writestr(info, b'1')
    _write(tmp_path / 'a.zip', (tmp_path / 'a.zip').read_bytes().replace(b'x' * len(raw), raw))
    return archives.read(tmp_path / 'a.zip').members[0].name

  assert named('视频/é.mp4'.encode()) == '视频/é.mp4'
  assert named(b'\x82t\x82.mp4') == 'été.mp4'  # cp437, which is no UTF-8
  body = struct.pack('<BI', 1, zlib.crc32(b'\xfft.mp4')) + 'ÿt.mp4'.encode()
  assert named(b'\xfft.mp4', struct.pack('<HH', 0x7075, len(body)) + body) == 'ÿt.mp4'
  assert (
    named(b'\x82\x82.mp4', struct.pack('<HH', 0x7075, len(body)) + body) == 'éé.mp4'
  )  # the field is another name's


def test_backslashes_of_an_old_windows_tool_are_folders_and_elsewhere_part_of_the_name(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'a\\b.mp4': b'1'})
  assert archives.read(path).members[0].name == 'a\\b.mp4'
  data = path.read_bytes()
  entry = data.index(b'PK\1\2')
  _write(path, data[: entry + 5] + b'\0' + data[entry + 6 :])  # made by: MS-DOS
  assert archives.read(path).members[0].name == 'a/b.mp4'


def test_a_member_or_an_archive_that_blows_up_is_a_bomb_and_small_ones_may_shrink_as_they_like(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(archive_members, 'FLOOR', 1 << 20)
  zeros = bytes(1 << 20)
  assert _faults(_zip(tmp_path / 'small.zip', {'a': zeros})) == []
  assert 'got a bomb' in _faults(_zip(tmp_path / 'a.zip', {'a': zeros + b'x'}))[0]
  several = _faults(_zip(tmp_path / 'b.zip', {'a': zeros, 'b': zeros}))
  assert len(several) == 1 and 'a bomb; wanted at most 200 times' in several[0]
  assert (
    _faults(_write(tmp_path / 'a.tar.gz', gzip.compress(_tar({'a': NOISE * 40})))) == []
  )  # large, and honest
  assert (
    'a bomb' in _faults(_write(tmp_path / 'b.tar.gz', gzip.compress(_tar({'a': zeros * 2}))))[0]
  )


def test_members_that_share_their_bytes_are_a_bomb(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'a': NOISE, 'b': NOISE}, method=zipfile.ZIP_STORED)
  data = bytearray(path.read_bytes())
  second = data.index(b'PK\1\2', data.index(b'PK\1\2') + 4)
  data[second + 42 : second + 46] = struct.pack('<I', 0)  # the second begins where the first does
  assert 'got bytes that another member holds too (a bomb)' in _faults(_write(path, bytes(data)))[0]


@pytest.mark.parametrize('name', ['a.zip', *PACKINGS])
def test_an_archive_cut_anywhere_is_one_fault(tmp_path, name):
  if name == 'a.zip':
    data = _zip(tmp_path / 'whole.zip', {'a': NOISE, 'b': NOISE}).read_bytes()
  else:
    data = PACKINGS[name](_tar({'a': NOISE, 'b': NOISE}))
  cuts = [0, 1, 100, len(data) // 3, len(data) // 2, len(data) - (1 if name != 'a.tar' else 10240)]
  if name == 'a.tar':
    cuts += [
      512 + 30208,
      512 + 30208 + 512,
      2 * (512 + 30208),
    ]  # exactly between two members, after a header, before the end
  for cut in cuts:
    (tmp_path / 'cut').mkdir(exist_ok=True)
    path = _write(tmp_path / 'cut' / name, data[:cut])
    faults = _faults(path)
    assert (
      len(faults) == 1
      and faults[0].startswith(f'{path}: damaged archive (')
      and faults[0].endswith('; fetch it again')
    ), cut


@pytest.mark.parametrize('name', PACKINGS)
def test_a_tar_with_a_broken_header_in_the_middle_is_damaged_and_not_shorter(tmp_path, name):
  data = bytearray(_tar({'a': NOISE, 'b': NOISE}))
  data[512 + 30208 + 148 : 512 + 30208 + 156] = b'99999999'  # the second header's checksum
  faults = _faults(_write(tmp_path / name, PACKINGS[name](bytes(data))))
  assert len(faults) == 1 and 'the header at byte 30720 is broken' in faults[0]


def test_a_packed_tar_whose_checksum_is_wrong_is_damaged(tmp_path):
  data = bytearray(gzip.compress(_tar({'a': NOISE})))
  data[-6] ^= 1
  assert 'damaged archive (CRC' in _faults(_write(tmp_path / 'a.tgz', bytes(data)))[0]


def test_a_tar_header_with_a_negative_or_a_giant_size_ends_in_a_fault(tmp_path):
  def with_size(field: bytes, kind: bytes = b'0') -> bytes:
    header = bytearray(tarfile.TarInfo('x').tobuf())
    header[124:136], header[156:157], header[148:156] = field, kind, b' ' * 8
    header[148:156] = b'%06o\0 ' % sum(header)
    return bytes(header) + bytes(10240)

  negative = b'\xff' * 11 + b'\0'
  assert 'damaged archive' in _faults(_write(tmp_path / 'a.tar', with_size(negative)))[0]
  assert 'damaged archive' in _faults(_write(tmp_path / 'b.tar', with_size(b'77777777777\0')))[0]
  assert (
    'damaged archive'
    in _faults(_write(tmp_path / 'c.tar.gz', gzip.compress(with_size(b'77777777777\0', b'L'))))[0]
  )
  for name in ('d.tar', 'd.tar.gz'):
    data = _tar({'x': b'', 'y': b''}, pax_headers={'size': '-2048'})
    assert 'damaged archive' in _faults(_write(tmp_path / name, PACKINGS['a' + name[1:]](data)))[0]


@pytest.mark.parametrize('declared', [3, 300])
def test_a_stream_that_does_not_give_what_its_header_declares_is_an_error(tmp_path, declared):
  path = _zip(tmp_path / 'a.zip', {'a': b'x' * 200})
  data = bytearray(path.read_bytes())
  entry = data.index(b'PK\1\2')
  data[entry + 24 : entry + 28] = struct.pack('<I', declared)
  archive = archives.read(_write(path, bytes(data)))
  with pytest.raises(
    DataError,
    match='more bytes than its header says'
    if declared == 3
    else '100 bytes fewer than its header says',
  ):
    _bytes(archive, archive.members[0])


def test_damage_inside_a_member_is_an_error_that_names_it(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'d/a': NOISE.hex().encode()})
  data = bytearray(path.read_bytes())
  data[60:100] = b'\xff' * 40
  archive = archives.read(_write(path, bytes(data)))
  with pytest.raises(
    DataError, match=r"a\.zip: damaged archive \(member 'd/a': .*wanted a whole zip; fetch it again"
  ):
    _bytes(archive, archive.members[0])
  data[0] = 0
  with pytest.raises(DataError, match='no header at byte 0'):
    _write(path, bytes(data))
    _bytes(archive, archive.members[0])


def test_no_piece_is_larger_than_a_chunk_whatever_it_was_packed_into(tmp_path):
  path = _zip(tmp_path / 'a.zip', {'a': bytes(5 << 20)})
  archive = archives.read(path)
  assert os.path.getsize(path) < 10000
  with archive.open() as file:
    assert (
      max(len(piece) for piece in archives.content(file, archive, archive.members[0])) == 1 << 20
    )


def test_archives_are_found_at_any_depth_but_not_in_the_root_they_are_unpacked_to(tmp_path):
  for name in ('in/b.TGZ', 'in/deep/er/a.zip', 'in/no.txt', 'in/media/c.zip', 'in/x.zip/d.tar'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  found = archives.find(tmp_path / 'in', tmp_path / 'in/media').archives
  assert [[str(path.relative_to(tmp_path)) for path in parts] for parts in found] == [
    ['in/b.TGZ'],
    ['in/deep/er/a.zip'],
    ['in/x.zip/d.tar'],
  ]
  assert len(archives.find(tmp_path / 'in', tmp_path / 'in').archives) == 4
  assert archives.find(tmp_path / 'in/no.txt', tmp_path).archives == [(tmp_path / 'in/no.txt',)]

"""Tars of every packing: where they end, what is no end, and links to files that they hold."""

import gzip
import io
import lzma
import pathlib
import random
import tarfile
import zlib

import pyarrow
import pytest

from paravt_jax.data import archive_members, archives, tars
from paravt_jax.data.unpack import Unpacked, unpack
from paravt_jax.data.unpack_files import bring

NOISE = random.Random(5).randbytes(30000)


def _tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
    for name, target in (links or {}).items():
      info = tarfile.TarInfo(name)
      info.type, info.linkname = tarfile.LNKTYPE, target
      archive.addfile(info)
  return out.getvalue()


def _packed(data: bytes, how: str) -> bytes:
  if how in ('zstd', 'lz4'):
    return _by_arrow(data, how)
  return {'gzip': gzip.compress, 'lzma': lambda data: lzma.compress(data, lzma.FORMAT_ALONE)}[how](
    data
  )


def _by_arrow(data: bytes, codec: str) -> bytes:
  out = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(out, codec) as packed:
    packed.write(data)
  return out.getvalue().to_pybytes()


def _write(path: pathlib.Path, data: bytes) -> pathlib.Path:
  path.write_bytes(data)
  return path


def _fault(path: pathlib.Path) -> str:
  (fault,) = archives.read(path).faults
  return fault.text


@pytest.mark.parametrize(
  ('name', 'how'),
  [('a.tar.zst', 'zstd'), ('a.tzst', 'zstd'), ('a.tar.lz4', 'lz4'), ('a.tar.lzma', 'lzma')],
)
def test_tars_packed_by_zstd_lz4_and_lzma_are_read_and_a_cut_one_is_damaged(tmp_path, name, how):
  data = _packed(_tar({'a.mp4': NOISE, 'b': b''}), how)
  archive = archives.read(_write(tmp_path / name, data))
  assert archive.faults == () and [(m.name, m.crc) for m in archive.members] == [
    ('a.mp4', zlib.crc32(NOISE)),
    ('b', 0),
  ]
  assert unpack(tmp_path / name, tmp_path / 'root') == Unpacked(2, 0, 30000)
  assert (tmp_path / 'root/a.mp4').read_bytes() == NOISE
  for cut in (0, len(data) // 2, len(data) - 3):
    assert 'damaged archive (' in _fault(_write(tmp_path / name, data[:cut]))


def test_zstd_of_several_frames_and_with_a_frame_to_be_skipped_first_is_one_tar(tmp_path):
  whole = _tar({'a': NOISE})
  frames = b''.join(_packed(whole[i : i + 9000], 'zstd') for i in range(0, len(whole), 9000))
  skipped = b'\x50\x2a\x4d\x18\x04\0\0\0note'
  assert [
    m.size for m in archives.read(_write(tmp_path / 'a.tar.zst', skipped + frames)).members
  ] == [30000]


@pytest.mark.parametrize('pack', [None, 'gzip', 'zstd'])
def test_hard_links_to_files_of_the_archive_are_files_of_their_own(tmp_path, pack):
  data = _tar(
    {'v/a.mp4': NOISE, 'b': b'b'},
    {'v/again.mp4': 'v/a.mp4', 'v/third.mp4': './v/again.mp4', 'b': 'b'},
  )
  path = _write(tmp_path / 'a.tar', _packed(data, pack) if pack else data)
  assert unpack(path, tmp_path / 'root') == Unpacked(4, 0, 90001)
  assert [
    (tmp_path / 'root/v' / name).read_bytes() == NOISE
    for name in ('a.mp4', 'again.mp4', 'third.mp4')
  ] == [True] * 3
  assert (tmp_path / 'root/v/again.mp4').stat().st_nlink == 1
  (tmp_path / 'root/v/third.mp4').write_bytes(b'x')
  assert (
    unpack(path, tmp_path / 'root').replaced == 1
  )  # the file that it links to is not written again
  assert unpack(path, tmp_path / 'other', include=['v/t*']).written == 1
  assert (
    (tmp_path / 'root/v/third.mp4').read_bytes()
    == (tmp_path / 'other/v/third.mp4').read_bytes()
    == NOISE
  )


@pytest.mark.parametrize(
  ('target', 'said'),
  [
    ('/etc/passwd', 'a path that leaves the root'),
    ('../a', 'a path that leaves the root'),
    ('later', "a hard link to 'later', which is no file before it"),
    ('folder', "a hard link to 'folder', which is no file before it"),
  ],
)
def test_hard_links_to_anything_else_are_refused(tmp_path, target, said):
  data = bytearray(_tar({'a': b'1'}, {'x': target}))
  assert f"member 'x': got {said}" in _fault(_write(tmp_path / 'a.tar', bytes(data)))


def test_a_hard_link_to_a_file_that_could_not_be_written_is_a_fault_of_its_own(tmp_path):
  path = _write(tmp_path / 'a.tgz', _packed(_tar({'a': NOISE}, {'b': 'a'}), 'gzip'))
  archive = archives.read(path)
  wrong = _packed(_tar({'a': NOISE[::-1]}, {'b': 'a'}), 'gzip')
  _write(path, wrong)
  (tmp_path / 'root').mkdir()
  done = bring(f'{tmp_path}/root', archive, list(archive.members), lambda count: None)
  assert (
    len(done.faults) == 2
    and "member 'b': got a hard link to 'a', which could not be written" in done.faults[1]
  )


def test_tars_that_were_joined_by_cat_are_read_to_the_last(tmp_path):
  one, two = _tar({'a': b'1'}), _tar({'b': b'2'})
  short = [
    data[:1024] + bytes(1024) for data in (one, two)
  ]  # as some writers end: two blocks, no record
  for parts in ((one, two), short):
    assert [m.name for m in archives.read(_write(tmp_path / 'a.tar', b''.join(parts))).members] == [
      'a',
      'b',
    ]


def test_a_hole_of_zeros_in_the_middle_is_not_taken_for_the_end_of_one_of_two_tars(tmp_path):
  data = bytearray(_tar(dict.fromkeys('abcde', NOISE)))
  member = 512 + 30208
  data[member : 3 * member] = bytes(2 * member)
  assert (
    f'{2 * member} bytes of zeros before byte {3 * member}, which is how a download with a '
    'hole looks' in _fault(_write(tmp_path / 'a.tar', bytes(data)))
  )
  data[3 * member :] = bytes(len(data) - 3 * member)
  assert (
    archives.read(_write(tmp_path / 'b.tar', bytes(data))).faults == ()
  )  # short, so it may be padding
  assert 'bytes of zeros after its end, where a download may have stopped' in _fault(
    _write(tmp_path / 'c.tar', bytes(data) + bytes(1 << 20))
  )
  assert 'nothing but zeros' in _fault(_write(tmp_path / 'd.tar', bytes(50000)))
  assert archives.read(_write(tmp_path / 'e.tar', bytes(10240))).faults == ()  # an empty tar


def test_bytes_after_the_end_that_are_no_tar_are_damage(tmp_path):
  assert 'bytes after its end that are no further tar; at byte 10240' in _fault(
    _write(tmp_path / 'a.tar', _tar({'a': b'1'}) + NOISE[:512])
  )
  assert 'the file ends in a header' in _fault(
    _write(tmp_path / 'b.tar', _tar({'a': b'1'}) + b'trailer')
  )


def test_a_tar_in_parts_is_read_across_their_edges_wherever_they_lie(tmp_path):
  data = _tar({'a': NOISE, 'b': b'b' * 700})
  for size in (1000, 4099, 31232):
    folder = tmp_path / str(size)
    folder.mkdir()
    for number, start in enumerate(range(0, len(data), size)):
      _write(folder / f'v.tar.{number:03d}', data[start : start + size])
    unpack(folder, folder / 'root')
    assert ((folder / 'root/a').read_bytes(), (folder / 'root/b').read_bytes()) == (
      NOISE,
      b'b' * 700,
    )


def test_a_web_page_or_a_pointer_in_an_archives_place_is_said(tmp_path):
  assert 'damaged archive (a Git LFS pointer in its place)' in _fault(
    _write(
      tmp_path / 'a.zip', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n'
    )
  )
  assert 'damaged archive (a web page in its place)' in _fault(
    _write(tmp_path / 'a.tar.gz', b'\n<!DOCTYPE html><html>')
  )


def test_packings_are_known_by_their_first_bytes():
  assert set(tars.PACKINGS) == {'tar.gz', 'tar.bz2', 'tar.xz', 'tar.zst', 'tar.lz4', 'tar.lzma'}


def test_zstd_with_a_window_that_takes_too_much_memory_says_how_to_unpack_it(tmp_path):
  frame = b'\x28\xb5\x2f\xfd\x00\xa8' + b'\x01\0\0'  # a window of 2 GB
  assert (
    'got zstd with a window of more than 128 MB, wanted a smaller one; unpack it with `zstd '
    '-d --long=31`' in _fault(_write(tmp_path / 'a.tar.zst', frame))
  )


def test_a_tar_over_several_volumes_says_that_it_is_one(tmp_path):
  info = tarfile.TarInfo('a.mp4')
  info.type = b'M'
  assert 'got the rest of a file, in a tar over several volumes' in _fault(
    _write(tmp_path / 'a.tar', info.tobuf() + bytes(10240))
  )


def test_many_hard_links_to_one_file_are_a_bomb(tmp_path, monkeypatch):
  monkeypatch.setattr(archive_members, 'FLOOR', 1 << 20)
  path = _write(tmp_path / 'a.tar', _tar({'a': NOISE * 20}, {f'{i}': 'a' for i in range(300)}))
  assert 'a bomb; wanted at most 200 times as many' in _fault(path)

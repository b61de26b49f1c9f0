"""One file of one archive: whole and by rename, or not at all."""

import os
import pathlib
import random
import tarfile
import zipfile
import zlib

import pytest

from paravt_jax.data import archives
from paravt_jax.data.unpack_files import bring, crc
from paravt_jax.data.unpack_journal import File

NOISE = random.Random(8).randbytes(3 << 20)


def _archive(tmp_path: pathlib.Path, members: dict) -> archives.Archive:
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  (tmp_path / 'root').mkdir()
  return archives.read(tmp_path / 'a.zip')


def test_files_come_with_size_checksum_and_time_and_progress_adds_up(tmp_path):
  archive, seen = _archive(tmp_path, {'a': NOISE, 'b': b'', 'c': b'c'}), []
  done = bring(f'{tmp_path}/root', archive, list(archive.members), seen.append)
  times = [(tmp_path / 'root' / name).stat().st_mtime_ns for name in 'abc']
  assert done.files == {
    'a': File(3 << 20, zlib.crc32(NOISE), times[0]),
    'b': File(0, 0, times[1]),
    'c': File(1, zlib.crc32(b'c'), times[2]),
  }
  assert (done.counts, done.faults, done.error, sum(seen)) == (
    {'written': 3, 'bytes': (3 << 20) + 1, 'replaced': 0},
    [],
    None,
    (3 << 20) + 1,
  )


def test_what_is_there_whole_is_kept_with_its_time_and_what_is_not_is_replaced(tmp_path):
  archive = _archive(tmp_path, {'a': b'right', 'b': b'right', 'c': b'right'})
  for name, data in (('a', b'right'), ('b', b'wrong'), ('c', b'longer')):
    (tmp_path / 'root' / name).write_bytes(data)
  done = bring(f'{tmp_path}/root', archive, list(archive.members), lambda count: None)
  assert done.counts == {'kept': 1, 'written': 2, 'replaced': 2, 'bytes': 10}
  assert [(tmp_path / 'root' / name).read_bytes() for name in 'abc'] == [b'right'] * 3


def test_a_link_in_a_files_place_is_replaced_and_what_it_led_to_is_not_touched(tmp_path):
  archive = _archive(tmp_path, {'a': b'right'})
  (tmp_path / 'outside').write_bytes(b'other')
  (tmp_path / 'root/a').symlink_to(tmp_path / 'outside')
  bring(f'{tmp_path}/root', archive, list(archive.members), lambda count: None)
  assert (tmp_path / 'outside').read_bytes() == b'other' and (
    tmp_path / 'root/a'
  ).read_bytes() == b'right'
  assert not (tmp_path / 'root/a').is_symlink()


def test_an_interrupt_in_the_middle_of_a_file_leaves_nothing_of_it(tmp_path):
  archive, left = _archive(tmp_path, {'a': NOISE}), []

  def stop(count: int):
    left.append(sorted(os.listdir(tmp_path / 'root')))
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    bring(f'{tmp_path}/root', archive, list(archive.members), stop)
  assert left[0][0].startswith('.paravt-') and os.listdir(tmp_path / 'root') == []


def test_a_failing_disk_ends_it_and_what_was_done_is_told(tmp_path):
  archive = _archive(
    tmp_path, {'a': b'1', 'no/b': b'2', 'c': b'3'}
  )  # no folder was made for the second
  done = bring(f'{tmp_path}/root', archive, list(archive.members), lambda count: None)
  assert (list(done.files), type(done.error), os.listdir(tmp_path / 'root')) == (
    ['a'],
    FileNotFoundError,
    ['a'],
  )


def test_a_plain_tars_checksum_is_found_by_reading_it(tmp_path):
  (tmp_path / 'x').write_bytes(NOISE)
  with tarfile.open(tmp_path / 'a.tar', 'w') as out:
    out.add(tmp_path / 'x', 'x')
  archive = archives.read(tmp_path / 'a.tar')
  assert (archive.members[0].crc, crc(archive, archive.members[0])) == (None, zlib.crc32(NOISE))


def test_a_packed_tar_that_became_another_since_it_was_listed_is_damaged(tmp_path):
  for data in (b'one', b'two'):
    (tmp_path / 'x').write_bytes(data)
    with tarfile.open(tmp_path / f'{data.decode()}.tgz', 'w:gz') as out:
      out.add(tmp_path / 'x', 'x')
  archive = archives.read(tmp_path / 'one.tgz')
  (tmp_path / 'root').mkdir()
  os.replace(tmp_path / 'two.tgz', tmp_path / 'one.tgz')
  done = bring(f'{tmp_path}/root', archive, list(archive.members), lambda count: None)
  assert (
    "member 'x': 3 bytes with checksum" in done.faults[0] and os.listdir(tmp_path / 'root') == []
  )
  with tarfile.open(tmp_path / 'one.tgz', 'w:gz'):
    pass
  assert (
    'it changed while it was read'
    in bring(f'{tmp_path}/root', archive, list(archive.members), lambda count: None).faults[0]
  )

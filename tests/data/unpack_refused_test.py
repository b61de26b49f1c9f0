"""What `unpack` refuses, before the first byte is written wherever that can be seen."""

import gzip
import os
import stat
import zipfile

import pytest

from paravt_jax.data import unpack_plan
from paravt_jax.data.unpack import NothingFound, Unpacked, unpack
from paravt_jax.errors import DataError
from tests.data.made_archives import (
  ANY,
  NOISE,
  files_in,
  split_file,
  tar_file,
  zip_file,
)


@ANY
@pytest.mark.parametrize(
  'bad', ['../out.mp4', 'selfqa/../../out.mp4', '/tmp/out.mp4', 'C:/out.mp4', '..\\out.mp4']
)
def test_names_that_leave_the_root_are_refused_before_anything_is_written(
  tmp_path, make, name, bad
):
  archive = make(tmp_path / name, {'selfqa/good.mp4': b'good', bad: b'bad'})
  with pytest.raises(DataError, match=r'a\..*: member .*leaves the root'):
    unpack(archive, tmp_path / 'root')
  assert not (tmp_path / 'root').exists() and not (tmp_path / 'out.mp4').exists()


def test_links_are_refused(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'selfqa/link': b'/etc/passwd'}, stat.S_IFLNK | 0o777)
  with pytest.raises(DataError, match='a link or device'):
    unpack(archive, tmp_path / 'root')


def test_all_faults_of_all_archives_are_listed_a_line_each_before_anything_is_written(tmp_path):
  zip_file(tmp_path / 'in/a.zip', {'good': b'1', '../x': b'2', '/y': b'3'})
  tar_file(tmp_path / 'in/b.tar', {'../z': b'4'})
  (tmp_path / 'in/c.zip').write_bytes(b'no zip')
  with pytest.raises(DataError) as error:
    unpack(tmp_path / 'in', tmp_path / 'root')
  assert [line.split(': ')[0].split('/')[-1] for line in str(error.value).split('\n')] == [
    'a.zip',
    'a.zip',
    'b.tar',
    'c.zip',
  ]
  assert not (tmp_path / 'root').exists()


@pytest.mark.parametrize(
  ('one', 'other'),
  [('a.zip', 'b.zip'), ('a.zip', 'b.tar'), ('a.tar', 'b.tar'), ('a.tar', 'b.tar.gz')],
)
def test_two_archives_may_hold_the_same_file_but_not_disagree_on_it(tmp_path, one, other):
  def make(name: str, content: bytes):
    (zip_file if name.endswith('zip') else tar_file)(
      tmp_path / 'in' / name, {'selfqa/x.mp4': content}
    )

  make(one, b'one')
  make(other, b'one')
  assert unpack(tmp_path / 'in', tmp_path / 'same') == Unpacked(written=1, kept=1, bytes=3)
  for content, said in (
    (b'other', r'5 bytes, but .* holds it with 3'),
    (b'two', 'other content than the same name has in'),
  ):
    make(other, content)
    with pytest.raises(DataError, match=rf"b\..*: member 'selfqa/x.mp4': got {said}"):
      unpack(tmp_path / 'in', tmp_path / 'root')
  assert not (tmp_path / 'root').exists()


def test_a_file_and_a_folder_of_one_name_are_refused_among_members_and_on_the_disk(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'x': b'1', 'x/y': b'2'})
  with pytest.raises(
    DataError, match=r"member 'x': got a file whose name is a folder of another member"
  ):
    unpack(archive, tmp_path / 'root')
  (tmp_path / 'root/p').mkdir(parents=True)
  (tmp_path / 'root/q').write_bytes(b'')
  os.mkfifo(tmp_path / 'root/r')
  with pytest.raises(DataError) as error:
    unpack(zip_file(tmp_path / 'b.zip', {'p': b'1', 'q/s/t': b'2', 'r': b'3'}), tmp_path / 'root')
  assert [line.split('got ')[1].split(',')[0] for line in str(error.value).split('\n')] == [
    'a folder that is there already',
    'a file on the way',
    'a device or pipe that is there already',
  ]


def test_a_link_on_the_way_is_followed_inside_the_root_and_refused_when_it_leads_out(tmp_path):
  (tmp_path / 'outside').mkdir()
  (tmp_path / 'root/real').mkdir(parents=True)
  (tmp_path / 'root/out').symlink_to(tmp_path / 'outside')
  (tmp_path / 'root/in').symlink_to('real')
  archive = zip_file(tmp_path / 'a.zip', {'in/a': b'1', 'out/b/c': b'2'})
  with pytest.raises(
    DataError, match=r"member 'out/b/c': got a link on the way, .*/root/out, that leaves the root"
  ):
    unpack(archive, tmp_path / 'root')
  assert (
    list((tmp_path / 'outside').iterdir()) == [] and list((tmp_path / 'root/real').iterdir()) == []
  )
  assert unpack(archive, tmp_path / 'root', include=['in/*']).written == 1
  assert (tmp_path / 'root/real/a').read_bytes() == b'1'
  (tmp_path / 'link').symlink_to(tmp_path / 'root')  # the root itself may be one
  assert unpack(archive, tmp_path / 'link', include=['in/*']).kept == 1


def test_no_member_takes_the_place_of_an_archive_that_is_being_unpacked(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'a.zip': b'1'})
  whole = archive.read_bytes()
  with pytest.raises(DataError, match='the place of an archive'):
    unpack(tmp_path, tmp_path)
  assert archive.read_bytes() == whole


def test_a_disk_without_room_for_all_of_it_is_refused_before_anything_is_written(
  tmp_path, monkeypatch
):
  archive = zip_file(tmp_path / 'a.zip', {'a': b'1'})
  disk = os.statvfs(tmp_path)
  monkeypatch.setattr(unpack_plan, 'RESERVE', 2 * disk.f_blocks * disk.f_frsize)
  with pytest.raises(DataError, match=r'bytes free, wanted 4096 and a reserve of .*free space'):
    unpack(archive, tmp_path / 'root')
  assert not (tmp_path / 'root').exists()
  (tmp_path / 'root').mkdir()
  (tmp_path / 'root/a').write_bytes(b'1')
  assert unpack(archive, tmp_path / 'root').kept == 1  # what is there needs no room


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: data[: len(data) // 2],
    lambda data: b'no zip',
    lambda data: data[:60] + bytes(40) + data[100:],
  ],
)
def test_a_damaged_archive_is_one_clear_error_and_leaves_no_half_file(tmp_path, damage):
  archive = zip_file(tmp_path / 'a.zip', {'selfqa/a.mp4': NOISE[:500]}, method=zipfile.ZIP_STORED)
  archive.write_bytes(damage(archive.read_bytes()))
  with pytest.raises(DataError, match=r'a\.zip: damaged archive .*wanted a whole zip'):
    unpack(archive, tmp_path / 'root')
  assert not (tmp_path / 'root').exists() or list((tmp_path / 'root/selfqa').iterdir()) == []


def test_damage_that_only_reading_shows_is_listed_for_every_member_and_the_others_are_written(
  tmp_path,
):
  archive = zip_file(
    tmp_path / 'a.zip',
    {name: NOISE[i : i + 500] for i, name in enumerate('abc')},
    method=zipfile.ZIP_STORED,
  )
  data = bytearray(archive.read_bytes())
  for name in (b'a', b'c'):
    data[data.index(name + NOISE[b'abc'.index(name) :][:9]) + 100] ^= 1
  archive.write_bytes(bytes(data))
  with pytest.raises(DataError) as error:
    unpack(archive, tmp_path / 'root')
  assert [line.split("member '")[1][0] for line in str(error.value).split('\n')] == ['a', 'c']
  assert files_in(tmp_path / 'root') == ['b']


def test_nothing_found_is_its_own_error(tmp_path):
  with pytest.raises(
    NothingFound, match=r'got no archive, wanted a file or a folder with \*.zip \*.tar '
  ):
    unpack(tmp_path, tmp_path / 'root')
  zip_file(tmp_path / 'a.zip', {'a': b'1'})
  with pytest.raises(
    NothingFound, match=r'got 1 members, wanted one at least that matches b\* or c; check --include'
  ):
    unpack(tmp_path, tmp_path / 'root', include=['b*', 'c'])
  assert not (tmp_path / 'root').exists()


def test_a_gzip_of_something_else_is_refused(tmp_path):
  (tmp_path / 'a.tar.gz').write_bytes(gzip.compress(b'hello' * 500))
  with pytest.raises(DataError, match=r'a\.tar\.gz: damaged archive \(.*wanted a whole tar\.gz'):
    unpack(tmp_path, tmp_path / 'root')


def test_a_root_that_cannot_be_made_is_one_clear_error(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'a': b'1'})
  with pytest.raises(
    DataError, match=r'a\.zip/root: Not a directory at .*check permissions, then run again'
  ):
    unpack(archive, archive / 'root')


def test_no_member_takes_the_place_of_a_part_that_is_being_unpacked(tmp_path):
  data = tar_file(tmp_path / 'v.tar', {'v.tar.ab': b'1' * 4000, 'b': b'2'}).read_bytes()
  (tmp_path / 'v.tar').unlink()
  paths = split_file(tmp_path, 'v.tar.', data, 2)
  paths[1].write_bytes(data[len(data) // 2 :])
  with pytest.raises(DataError, match=r"member 'v\.tar\.ab': got the place of an archive"):
    unpack(tmp_path, tmp_path)

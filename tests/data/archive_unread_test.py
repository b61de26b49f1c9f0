"""Files that look like an archive and are not read are named, and others are not."""

import gzip
import io
import pathlib
import tarfile
import zipfile

import pyarrow
import pytest

from paravt_jax.data import archives


def _tar() -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('a.mp4'))
  return out.getvalue()


def _zip() -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('a.mp4', b'a')
  return out.getvalue()


def _unread(folder: pathlib.Path, files: dict[str, bytes]) -> dict[str, str]:
  folder.mkdir(exist_ok=True)
  for name, data in files.items():
    (folder / name).write_bytes(data)
  lines = archives.find(folder, folder / 'root').unread
  return {
    line.split(': not read: ')[0].removeprefix(f'{folder}/'): line.split(': not read: ')[1]
    for line in lines
  }


@pytest.mark.parametrize(
  'name',
  [
    'b.7z',
    'b.7z.001',
    'b.rar',
    'b.part01.rar',
    'b.r00',
    'b.tar.lz',
    'b.tar.Z',
    'b.iso',
    'b.cab',
    'b.tar.lzo',
    'b.cpio',
    'B.7Z',
    'b.tar.br',
  ],
)
def test_kinds_of_archives_that_nothing_here_reads_are_named(tmp_path, name):
  found = _unread(tmp_path / 'in', {name: b'x' * 600, 'a.mp4': b'x'})
  assert list(found) == [name] and found[name].endswith(
    'unpack it by hand into the root, and move it out of the folder'
  )


@pytest.mark.parametrize(
  'name',
  ['v.zip.part', 'v.tar.crdownload', 'v.zip.aria2', 'v.tar.gz.download', 'v.tar.part', 'v.7z.part'],
)
def test_a_download_that_is_not_finished_is_named(tmp_path, name):
  assert _unread(tmp_path / 'in', {name: b'x'}) == {
    name: 'a download that is not finished; fetch it to its end, or remove it'
  }


def test_what_bears_the_name_of_one_kind_and_is_another_is_named(tmp_path):
  found = _unread(
    tmp_path / 'in',
    {'a.zip': b"7z\xbc\xaf'\x1c" + bytes(90), 'b.tar': b'Rar!\x1a\x07\0', 'c.zip': _zip()},
  )
  assert {name: text.split(';')[0] for name, text in found.items()} == {
    'a.zip': 'a kind of archive (7z, by its first bytes) that is not read',
    'b.tar': 'a kind of archive (rar, by its first bytes) that is not read',
  }


def test_an_archive_by_its_first_bytes_only_is_named_with_the_name_it_needs(tmp_path):
  found = _unread(
    tmp_path / 'in',
    {
      'a': _zip(),
      'b.dat': _tar(),
      'c': gzip.compress(_tar()),
      'd': pyarrow.compress(_tar(), codec='zstd', asbytes=True),
      'e.mp4.gz': gzip.compress(b'video'),
      'f': gzip.compress(b'x')[:12],
      'g': b"7z\xbc\xaf'\x1c",
    },
  )
  assert {name: text.split(';')[0] for name, text in found.items()} == {
    'a': 'a zip by its first bytes, but not by its name',
    'b.dat': 'a tar by its first bytes, but not by its name',
    'c': 'a tar.gz by its first bytes, but not by its name',
    'd': 'a tar.zst by its first bytes, but not by its name',
    'e.mp4.gz': 'a packed file, which is no archive',
    'f': 'a packed file, which is no archive',
    'g': 'a kind of archive (7z, by its first bytes) that is not read',
  }
  assert found['a'].endswith('call it *.zip, so that it is read, or move it out of the folder')


def test_other_files_are_not_named_whatever_they_begin_with(tmp_path):
  assert (
    _unread(
      tmp_path / 'in',
      {
        'x.npz': _zip(),
        'x.docx': _zip(),
        'model.pt': _zip(),
        'rows.jsonl.gz': gzip.compress(b'{}'),
        'a.zip': _zip(),
        'a.zip.md5': b'0',
        'a.zip.metadata': b'1',
        'a.tar.gz.json': b'{}',
        'b.tar.aa': _tar(),
        'README': b'PK is a magic',
        '.hidden': _zip(),
        'v.mp4': b'',
        'notes.xz.txt': b'',
      },
    )
    == {}
  )


def test_a_zip_over_several_disks_is_named_with_all_its_disks(tmp_path):
  found = _unread(
    tmp_path / 'in', {'a.z01': b'PK\7\10', 'a.z02': b'', 'a.zip': _zip(), 'b.zip': _zip()}
  )
  assert (
    list(found) == ['a.z01', 'a.z02', 'a.zip']
    and 'zip -s 0 IN.zip --out WHOLE.zip' in found['a.zip']
  )

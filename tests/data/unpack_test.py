"""Archives into one root: safe names only, whole files only, and once."""

import errno
import os
import pathlib
import stat
import subprocess
import sys
import zipfile

import pytest

from paravt_jax.data import unpack as unpack_module
from paravt_jax.data.unpack import Unpacked, main, unpack
from paravt_jax.errors import DataError


def _zip(path: pathlib.Path, members: dict, mode: int | None = None) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      info = zipfile.ZipInfo(name)
      if mode is not None:
        info.external_attr = mode << 16
      archive.writestr(info, data)
  return path


def _files(root: pathlib.Path) -> list[str]:
  return sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())


def test_all_archives_of_all_folders_land_in_one_root_and_a_second_run_writes_nothing(tmp_path):
  _zip(tmp_path / 'in/longvt_source/tvg_1.zip', {'longvt_source/tvg_1/a.mp4': b'aa', 'longvt_source/tvg_1/': b''})
  _zip(tmp_path / 'in/museg/charades.zip', {'museg/charades/b.mp4': b'b' * 5000})
  root = tmp_path / 'root'
  assert unpack(tmp_path / 'in', root) == Unpacked(written=2, kept=0)
  assert _files(root) == ['longvt_source/tvg_1/a.mp4', 'museg/charades/b.mp4']
  assert (root / 'museg/charades/b.mp4').read_bytes() == b'b' * 5000
  stamp = (root / 'museg/charades/b.mp4').stat().st_mtime_ns
  assert unpack(tmp_path / 'in', root) == Unpacked(written=0, kept=2)
  assert (root / 'museg/charades/b.mp4').stat().st_mtime_ns == stamp


def test_a_file_that_another_tool_left_half_written_is_written_again(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {'selfqa/a.mp4': b'whole'})
  (tmp_path / 'root/selfqa').mkdir(parents=True)
  (tmp_path / 'root/selfqa/a.mp4').write_bytes(b'who')
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=0)
  assert (tmp_path / 'root/selfqa/a.mp4').read_bytes() == b'whole'


@pytest.mark.parametrize('name', ['../out.mp4', 'selfqa/../../out.mp4', '/tmp/out.mp4', 'C:/out.mp4', '..\\out.mp4'])
def test_names_that_leave_the_root_are_refused_before_anything_is_written(tmp_path, name):
  archive = _zip(tmp_path / 'a.zip', {'selfqa/good.mp4': b'good', name: b'bad'})
  with pytest.raises(DataError, match=r'a\.zip: member .*leaves the root'):
    unpack(archive, tmp_path / 'root')
  assert not (tmp_path / 'root').exists() and not (tmp_path / 'out.mp4').exists()


def test_links_are_refused(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {'selfqa/link': b'/etc/passwd'}, stat.S_IFLNK | 0o777)
  with pytest.raises(DataError, match='a link or device'):
    unpack(archive, tmp_path / 'root')


def test_two_archives_that_disagree_on_a_file_are_refused(tmp_path):
  _zip(tmp_path / 'in/a.zip', {'selfqa/a.mp4': b'one'})
  _zip(tmp_path / 'in/b.zip', {'selfqa/a.mp4': b'other'})
  with pytest.raises(DataError, match=r'b\.zip.*5 bytes, but an earlier archive holds it with 3'):
    unpack(tmp_path / 'in', tmp_path / 'root')


@pytest.mark.parametrize('damage', [lambda data: data[:len(data) // 2], lambda data: b'no zip', lambda data:
                                    data[:60] + bytes(40) + data[100:]])
def test_a_damaged_archive_is_one_clear_error_and_leaves_no_half_file(tmp_path, damage):
  archive = _zip(tmp_path / 'a.zip', {'selfqa/a.mp4': os.urandom(500)})
  archive.write_bytes(damage(archive.read_bytes()))
  with pytest.raises(DataError, match=r'a\.zip: damaged archive .*wanted a whole zip'):
    unpack(archive, tmp_path / 'root')
  assert not (tmp_path / 'root').exists() or _files(tmp_path / 'root') == []


def test_a_full_disk_is_one_clear_error_keeps_finished_files_and_a_second_run_goes_on(tmp_path, monkeypatch):
  archive = _zip(tmp_path / 'a.zip', {'selfqa/a.mp4': b'a' * 10, 'selfqa/b.mp4': b'b' * 10})
  real = unpack_module.shutil.copyfileobj

  def full(source, out, size):
    real(source, out, size)
    if source.name.endswith('b.mp4'):
      raise OSError(errno.ENOSPC, 'No space left on device')
  monkeypatch.setattr(unpack_module.shutil, 'copyfileobj', full)
  with pytest.raises(DataError, match=r'a\.zip: No space left on device.*make room.*finished files are kept'):
    unpack(archive, tmp_path / 'root')
  assert _files(tmp_path / 'root') == ['selfqa/a.mp4']
  monkeypatch.undo()
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=1)


def test_a_folder_without_archives_is_refused(tmp_path):
  with pytest.raises(DataError, match='got no zip archive'):
    unpack(tmp_path, tmp_path / 'root')


def test_the_command_says_what_it_did_and_an_error_is_one_line_and_status_2(tmp_path, capsys):
  _zip(tmp_path / 'in/a.zip', {'selfqa/a.mp4': b'a'})
  assert main(['--archives', str(tmp_path / 'in'), '--root', str(tmp_path / 'root')]) == 0
  assert '1 files written, 0 already there' in capsys.readouterr().out
  done = subprocess.run([sys.executable, '-m', 'paravt_jax.data.unpack', '--archives', str(tmp_path / 'no'), '--root', 'x'],
                        capture_output=True, text=True)
  assert (done.returncode, done.stderr.count('\n')) == (2, 1)

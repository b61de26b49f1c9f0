"""Processes for many small files: the same files, and no more left behind by a death than threads
leave.
"""

import os
import pathlib
import random
import subprocess
import sys
import zipfile

import pytest

from paravt_jax.data import archives
from paravt_jax.data import unpack as unpack_module
from paravt_jax.data.unpack import Unpacked, unpack
from paravt_jax.data.unpack_workers import Workers
from paravt_jax.errors import DataError

NOISE = random.Random(9).randbytes(3 << 20)
MEMBERS = {f'd{i % 3}/{i}.jpg': NOISE[i : i + 9000 + i] for i in range(200)}


def _zip(path: pathlib.Path, members: dict) -> archives.Archive:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return archives.read(path)


@pytest.fixture
def lock(tmp_path):
  with open(tmp_path / 'lock', 'w') as file:
    yield file.fileno()


def _root(root: pathlib.Path) -> dict[str, bytes]:
  files = {str(path.relative_to(root)): path for path in root.rglob('*') if path.is_file()}
  return {
    name: path.read_bytes()
    for name, path in files.items()
    if not name.startswith('.paravt_unpack/')
  }


def test_many_small_files_are_written_by_processes_and_damage_in_one_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(unpack_module, 'MANY', 100)
  _zip(tmp_path / 'a.zip', MEMBERS)
  seen, size = [], sum(map(len, MEMBERS.values()))
  assert unpack(
    tmp_path / 'a.zip', tmp_path / 'root', workers=2, progress=lambda *step: seen.append(step)
  ) == Unpacked(200, 0, size)
  assert _root(tmp_path / 'root') == MEMBERS
  assert seen[-1] == (size, size) and unpack(
    tmp_path / 'a.zip', tmp_path / 'root', workers=2
  ) == Unpacked(0, 200)
  data = bytearray((tmp_path / 'a.zip').read_bytes())
  data[100] ^= 1
  (tmp_path / 'a.zip').write_bytes(bytes(data))
  with pytest.raises(DataError, match=r"damaged archive \(member 'd0/0.jpg'"):
    unpack(tmp_path / 'a.zip', tmp_path / 'other', workers=2)
  assert _root(tmp_path / 'other') == {
    name: data for name, data in MEMBERS.items() if name != 'd0/0.jpg'
  }


def test_a_worker_that_dies_is_an_error_and_not_a_wait(tmp_path, lock):
  archive = _zip(tmp_path / 'a.zip', {'a': b'1'})
  with Workers(1, lock) as workers:
    workers.all[0].kill()
    workers.all[0].wait()
    for _ in range(2):
      with pytest.raises(
        DataError, match=r'a\.zip: the process that unpacked it died \(status -9\)'
      ):
        workers.bring(str(tmp_path), archive, list(archive.members), lambda count: None)


def test_a_disk_that_fails_in_a_worker_comes_back_as_it_was(tmp_path, lock):
  archive = _zip(tmp_path / 'a.zip', {'a': b'1', 'no/b': b'2'})
  with Workers(1, lock) as workers:
    done = workers.bring(str(tmp_path), archive, list(archive.members), lambda count: None)
  assert (list(done.files), done.error.strerror, done.counts['written']) == (
    ['a'],
    'No such file or directory',
    1,
  )


def test_workers_end_with_an_exception_and_leave_nothing_half_written(tmp_path, lock):
  archive = _zip(tmp_path / 'a.zip', {str(i): NOISE for i in range(9)})
  (tmp_path / 'root').mkdir()

  def stop(count: int):
    raise KeyboardInterrupt

  workers = Workers(2, lock)
  with pytest.raises(KeyboardInterrupt), workers:
    workers.bring(f'{tmp_path}/root', archive, list(archive.members), stop)
  assert [each.poll() is not None for each in workers.all] == [True, True]
  assert [name for name in os.listdir(tmp_path / 'root') if name.endswith('.part')] == []


def test_after_a_kill_of_the_parent_the_next_run_waits_for_its_workers_and_finishes(tmp_path):
  _zip(tmp_path / 'a.zip', MEMBERS)
  program = (
    'import os, signal, sys\nfrom paravt_jax.data import unpack\nunpack.MANY = 1\n'
    'unpack.unpack(sys.argv[1], sys.argv[2], workers=3, progress=lambda done, total: done '
    'and os.kill(os.getpid(), signal.SIGKILL))'
  )
  killed = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path / 'a.zip'), str(tmp_path / 'root')]
  )
  assert killed.returncode == -9
  done = unpack(tmp_path / 'a.zip', tmp_path / 'root', workers=2)
  assert (done.written + done.kept, done.replaced) == (200, 0)
  assert _root(tmp_path / 'root') == MEMBERS

"""Archives into one root: safe names only, whole files only, and once."""

import gzip
import io
import json
import os
import pathlib
import random
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest

from paravt_jax.data import unpack_plan
from paravt_jax.data.unpack import NothingFound, Unpacked, main, unpack
from paravt_jax.errors import DataError

NOISE = random.Random(6).randbytes(300000)


def _zip(
  path: pathlib.Path, members: dict, mode: int | None = None, method: int = zipfile.ZIP_DEFLATED
) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      info = zipfile.ZipInfo(name)
      info.compress_type = method
      if mode is not None:
        info.external_attr = mode << 16
      archive.writestr(info, data)
  return path


def _tar(path: pathlib.Path, members: dict) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz' if path.name.endswith('gz') else 'w') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


ANY = pytest.mark.parametrize(
  ('make', 'name'), [(_zip, 'a.zip'), (_tar, 'a.tar'), (_tar, 'a.tar.gz')]
)


def _files(root: pathlib.Path) -> list[str]:
  files = (str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())
  return sorted(name for name in files if not name.startswith('.paravt_unpack/'))


def _child(code: str, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True
  )


def test_all_archives_of_all_folders_land_in_one_root_and_a_second_run_writes_nothing(tmp_path):
  _zip(
    tmp_path / 'in/longvt_source/tvg_1.zip',
    {'longvt_source/tvg_1/a.mp4': b'aa', 'longvt_source/tvg_1/': b''},
  )
  _tar(tmp_path / 'in/museg/charades.tar.gz', {'museg/charades/b.mp4': b'b' * 5000})
  _tar(tmp_path / 'in/museg/et_instruct.tar', {'museg/et_instruct_164k/c d é.mp4': b'c'})
  root = tmp_path / 'root'
  assert unpack(tmp_path / 'in', root) == Unpacked(written=3, kept=0, bytes=5003)
  assert _files(root) == [
    'longvt_source/tvg_1/a.mp4',
    'museg/charades/b.mp4',
    'museg/et_instruct_164k/c d é.mp4',
  ]
  assert (root / 'museg/charades/b.mp4').read_bytes() == b'b' * 5000
  stamps = [path.stat().st_mtime_ns for path in sorted(root.rglob('*')) if path.is_file()]
  assert unpack(tmp_path / 'in', root) == Unpacked(written=0, kept=3)
  assert [path.stat().st_mtime_ns for path in sorted(root.rglob('*')) if path.is_file()] == stamps


@ANY
def test_any_number_of_workers_writes_the_same_files(tmp_path, make, name):
  data = random.Random(7)
  members = {f'd{i % 7}/{i}.jpg': data.randbytes(i * 37 % 2000) for i in range(300)} | {
    'large.mp4': data.randbytes(3 << 20)
  }
  archive = make(tmp_path / name, members)
  for workers in (1, 5):
    root = tmp_path / f'root{workers}'
    assert unpack(archive, root, workers=workers) == Unpacked(
      301, 0, sum(map(len, members.values()))
    )
    assert {name: (root / name).read_bytes() for name in _files(root)} == members


def test_a_file_that_another_tool_left_half_written_is_written_again(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {'selfqa/a.mp4': b'whole'})
  (tmp_path / 'root/selfqa').mkdir(parents=True)
  (tmp_path / 'root/selfqa/a.mp4').write_bytes(b'who')
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=0, bytes=5, replaced=1)
  assert (tmp_path / 'root/selfqa/a.mp4').read_bytes() == b'whole'


@ANY
def test_a_file_of_the_right_size_is_kept_for_its_content_and_replaced_for_another(
  tmp_path, make, name
):
  archive = make(tmp_path / name, {'a': b'right', 'b': b'right'})
  (tmp_path / 'root').mkdir()
  (tmp_path / 'root/a').write_bytes(b'right')
  (tmp_path / 'root/b').write_bytes(b'wrong')
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=1, bytes=5, replaced=1)
  assert (tmp_path / 'root/b').read_bytes() == b'right'
  (tmp_path / 'root/a').write_bytes(b'wrong')  # somebody changed one that the journal knows
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=1, bytes=5, replaced=1)


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
  archive = _zip(tmp_path / 'a.zip', {'selfqa/link': b'/etc/passwd'}, stat.S_IFLNK | 0o777)
  with pytest.raises(DataError, match='a link or device'):
    unpack(archive, tmp_path / 'root')


def test_all_faults_of_all_archives_are_listed_a_line_each_before_anything_is_written(tmp_path):
  _zip(tmp_path / 'in/a.zip', {'good': b'1', '../x': b'2', '/y': b'3'})
  _tar(tmp_path / 'in/b.tar', {'../z': b'4'})
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
    (_zip if name.endswith('zip') else _tar)(tmp_path / 'in' / name, {'selfqa/x.mp4': content})

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
  archive = _zip(tmp_path / 'a.zip', {'x': b'1', 'x/y': b'2'})
  with pytest.raises(
    DataError, match=r"member 'x': got a file whose name is a folder of another member"
  ):
    unpack(archive, tmp_path / 'root')
  (tmp_path / 'root/p').mkdir(parents=True)
  (tmp_path / 'root/q').write_bytes(b'')
  os.mkfifo(tmp_path / 'root/r')
  with pytest.raises(DataError) as error:
    unpack(_zip(tmp_path / 'b.zip', {'p': b'1', 'q/s/t': b'2', 'r': b'3'}), tmp_path / 'root')
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
  archive = _zip(tmp_path / 'a.zip', {'in/a': b'1', 'out/b/c': b'2'})
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
  archive = _zip(tmp_path / 'a.zip', {'a.zip': b'1'})
  whole = archive.read_bytes()
  with pytest.raises(DataError, match='the place of an archive'):
    unpack(tmp_path, tmp_path)
  assert archive.read_bytes() == whole


def test_a_disk_without_room_for_all_of_it_is_refused_before_anything_is_written(
  tmp_path, monkeypatch
):
  archive = _zip(tmp_path / 'a.zip', {'a': b'1'})
  disk = os.statvfs(tmp_path)
  monkeypatch.setattr(unpack_plan, 'RESERVE', 2 * disk.f_blocks * disk.f_frsize)
  with pytest.raises(DataError, match=r'bytes free, wanted 4096 and a reserve of .*make room'):
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
  archive = _zip(tmp_path / 'a.zip', {'selfqa/a.mp4': NOISE[:500]}, method=zipfile.ZIP_STORED)
  archive.write_bytes(damage(archive.read_bytes()))
  with pytest.raises(DataError, match=r'a\.zip: damaged archive .*wanted a whole zip'):
    unpack(archive, tmp_path / 'root')
  assert not (tmp_path / 'root').exists() or list((tmp_path / 'root/selfqa').iterdir()) == []


def test_damage_that_only_reading_shows_is_listed_for_every_member_and_the_others_are_written(
  tmp_path,
):
  archive = _zip(
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
  assert _files(tmp_path / 'root') == ['b']


def test_a_disk_that_fills_up_is_one_clear_error_keeps_finished_files_and_a_second_run_goes_on(
  tmp_path,
):
  archive = _zip(tmp_path / 'a.zip', {'a.mp4': NOISE[:1000], 'b.mp4': NOISE})
  done = _child(
    'import resource, sys; '
    'resource.setrlimit(resource.RLIMIT_FSIZE, '
    '(100000, 100000))\n'  # a write fails half-way
    'from paravt_jax.data.unpack import main; sys.exit(main(sys.argv[1:]))',
    '--archives',
    archive,
    '--root',
    tmp_path / 'root',
    '--workers',
    '1',
  )
  assert (done.returncode, done.stderr.count('\n')) == (2, 1)
  assert (
    'File too large at' in done.stderr
    and 'make room or check permissions, then run again (finished files are kept)' in done.stderr
  )
  assert _files(tmp_path / 'root') == ['a.mp4']
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=1, bytes=len(NOISE))


@ANY
def test_a_run_that_is_killed_leaves_whole_files_only_and_the_next_one_goes_on(
  tmp_path, make, name
):
  members = {f'd/{i}.mp4': NOISE[i:] + NOISE * 5 for i in range(8)}  # of several pieces each
  archive = make(tmp_path / name, members)
  before = sum(map(len, members.values())) + (archive.stat().st_size if name.endswith('gz') else 0)
  killed = _child(
    'import os, signal, sys\nfrom paravt_jax.data.unpack import unpack\n'
    'def progress(done, total):\n'
    '  if total == int(sys.argv[3]) and done > 0.6 * total:\n    os.kill(os.getpid(), '
    'signal.SIGKILL)\n'
    'unpack(sys.argv[1], sys.argv[2], workers=2, progress=progress)',
    archive,
    tmp_path / 'root',
    before,
  )
  assert killed.returncode == -9
  left = _files(tmp_path / 'root')
  whole = [name for name in left if not name.endswith('.part')]
  assert len(whole) < len(left), 'it died between two files'
  assert all((tmp_path / 'root' / name).read_bytes() == members[name] for name in whole)
  done = unpack(archive, tmp_path / 'root')
  assert (done.written, done.kept, done.replaced) == (8 - len(whole), len(whole), 0)
  assert {
    name: (tmp_path / 'root' / name).read_bytes() for name in _files(tmp_path / 'root')
  } == members


def test_a_run_does_not_read_again_what_the_journal_knows(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {'a': b'right'})
  unpack(archive, tmp_path / 'root')
  file = tmp_path / 'root/a'
  stamp = file.stat().st_mtime_ns
  file.write_bytes(b'wrong')
  os.utime(file, ns=(stamp, stamp))  # a forgery that only reading could tell
  assert unpack(archive, tmp_path / 'root').kept == 1
  os.utime(file, ns=(stamp, stamp + 1))
  assert unpack(archive, tmp_path / 'root').replaced == 1


@ANY
def test_a_changed_archive_is_said_its_files_are_replaced_and_old_ones_stay(tmp_path, make, name):
  make(tmp_path / name, {'a': b'one', 'gone': b'1', 'same': b's'})
  unpack(tmp_path / name, tmp_path / 'root')
  make(tmp_path / name, {'a': b'two', 'same': b's'})
  done = unpack(tmp_path / name, tmp_path / 'root')
  assert (done.written, done.kept, done.replaced) == (1, 1, 1)
  assert done.changed == (
    f'{tmp_path / name}: changed since it was unpacked here; 1 files that it no longer holds stay',
  )
  assert ((tmp_path / 'root/a').read_bytes(), (tmp_path / 'root/gone').read_bytes()) == (
    b'two',
    b'1',
  )
  assert unpack(tmp_path / name, tmp_path / 'root').changed == ()


@ANY
def test_include_chooses_by_the_whole_path_and_a_later_run_adds_the_rest(tmp_path, make, name):
  archive = make(
    tmp_path / name, {'tvg_1/a.mp4': b'1', 'tvg_2/b/c.mp4': b'2', 'x.mp4': b'3', '../bad': b'4'}
  )
  assert unpack(archive, tmp_path / 'root', include=['tvg_*', 'y']) == Unpacked(2, 0, 2, skipped=1)
  assert _files(tmp_path / 'root') == ['tvg_1/a.mp4', 'tvg_2/b/c.mp4']
  assert unpack(archive, tmp_path / 'root', include=['*.mp4']) == Unpacked(1, 2, 1)
  lines = next((tmp_path / 'root/.paravt_unpack').glob('*.jsonl')).read_text().splitlines()[1:]
  assert sorted(json.loads(line)[0] for line in lines) == ['tvg_1/a.mp4', 'tvg_2/b/c.mp4', 'x.mp4']
  assert unpack(archive, tmp_path / 'root', include=['x*']).kept == 1
  with pytest.raises(
    DataError, match=r"'../bad'"
  ):  # refused still, though the journal knows the archive
    unpack(archive, tmp_path / 'root')


def test_progress_runs_in_bytes_over_the_packed_tar_and_over_what_is_written(tmp_path):
  _zip(tmp_path / 'in/a.zip', {'a': NOISE})
  _tar(tmp_path / 'in/b.tgz', {'b': NOISE})
  packed, seen = os.path.getsize(tmp_path / 'in/b.tgz'), []
  unpack(tmp_path / 'in', tmp_path / 'root', progress=lambda *step: seen.append(step))
  assert seen[-1] == (packed + 2 * len(NOISE), packed + 2 * len(NOISE))
  assert [done for done, _ in seen] == sorted(done for done, _ in seen)
  assert {total for _, total in seen} == {packed, packed + 2 * len(NOISE)}


def test_a_failing_progress_call_stops_the_run_and_leaves_nothing_half(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {f'{i}': NOISE for i in range(20)})

  def stop(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    unpack(archive, tmp_path / 'root', progress=stop)
  assert _files(tmp_path / 'root') == []


def test_nothing_found_is_its_own_error(tmp_path):
  with pytest.raises(
    NothingFound, match=r'got no archive, wanted a file or a folder with \*.zip \*.tar '
  ):
    unpack(tmp_path, tmp_path / 'root')
  _zip(tmp_path / 'a.zip', {'a': b'1'})
  with pytest.raises(
    NothingFound, match=r'got 1 members, wanted one at least that matches b\* or c; check --include'
  ):
    unpack(tmp_path, tmp_path / 'root', include=['b*', 'c'])
  assert not (tmp_path / 'root').exists()


def test_the_command_says_what_it_did_and_its_status_tells_done_nothing_and_refused_apart(
  tmp_path, capsys
):
  _zip(tmp_path / 'in/a.zip', {'selfqa/a.mp4': b'a'})

  def run(*more: str) -> tuple[int, str, str]:
    status = main(['--archives', str(tmp_path / 'in'), '--root', str(tmp_path / 'root'), *more])
    said = capsys.readouterr()
    return status, said.out, said.err

  status, out, _ = run()
  assert (
    status == 0
    and '1 files written (1 bytes, 0 of them in place of another content), 0 already there, 0 '
    'not wanted'
    in out
  )
  status, out, err = run('--include', 'nothing/*')
  assert (status, out, err.count('\n')) == (1, '', 1)
  _zip(tmp_path / 'in/a.zip', {'selfqa/a.mp4': b'b'})
  status, out, _ = run('--workers', '2')
  assert status == 0 and out.startswith(
    f'{tmp_path}/in/a.zip: changed since it was unpacked here\n'
  )
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'paravt_jax.data.unpack',
      '--archives',
      str(tmp_path / 'no'),
      '--root',
      'x',
    ],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr.count('\n')) == (2, 1)


def test_a_gzip_of_something_else_is_refused(tmp_path):
  (tmp_path / 'a.tar.gz').write_bytes(gzip.compress(b'hello' * 500))
  with pytest.raises(DataError, match=r'a\.tar\.gz: damaged archive \(.*wanted a whole tar\.gz'):
    unpack(tmp_path, tmp_path / 'root')


def test_a_root_that_cannot_be_made_is_one_clear_error(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {'a': b'1'})
  with pytest.raises(
    DataError, match=r'a\.zip/root: Not a directory at .*check permissions, then run again'
  ):
    unpack(archive, archive / 'root')


def _main(tmp_path: pathlib.Path, capsys, *more: str) -> tuple[int, str, str]:
  status = main(['--archives', str(tmp_path / 'in'), '--root', str(tmp_path / 'root'), *more])
  said = capsys.readouterr()
  return status, said.out, said.err


def _parts(folder: pathlib.Path, name: str, data: bytes, count: int) -> list[pathlib.Path]:
  """data in `count` files NAMEaa, NAMEab, ..."""
  folder.mkdir(parents=True, exist_ok=True)
  size = -(-len(data) // count)
  paths = [folder / f'{name}a{letter}' for letter in 'abcdefghijklm'[:count]]
  for number, path in enumerate(paths):
    path.write_bytes(data[number * size : (number + 1) * size])
  return paths


def test_what_looks_like_an_archive_and_is_not_read_is_named_and_the_rest_is_unpacked_with_status_2(
  tmp_path, capsys
):
  _zip(tmp_path / 'in/a.zip', {'a': b'1'})
  (tmp_path / 'in/deep').mkdir()
  (tmp_path / 'in/deep/b.7z').write_bytes(b"7z\xbc\xaf'\x1c" + bytes(50))
  (tmp_path / 'in/c.zip.part').write_bytes(b'PK')
  status, out, err = _main(tmp_path, capsys)
  assert (status, _files(tmp_path / 'root')) == (2, ['a']) and '1 files written' in out
  assert err.splitlines() == [
    f'{tmp_path}/in/c.zip.part: not read: a download that is not finished; fetch it to its '
    'end, or remove it',
    f'{tmp_path}/in/deep/b.7z: not read: a kind of archive (.7z) that is not read; unpack it '
    'by hand into the root, and move it out of '
    'the folder',
  ]
  (tmp_path / 'in/a.zip').unlink()
  status, out, err = _main(tmp_path, capsys)  # nothing but these
  assert (status, out, err.count('not read: ')) == (2, '', 2)
  assert main(['--archives', str(tmp_path / 'in/deep/b.7z'), '--root', str(tmp_path / 'root')]) == 2
  assert 'b.7z: not read: ' in capsys.readouterr().err


def test_what_macos_and_windows_left_is_left_out_and_counted_also_when_the_journal_is_asked(
  tmp_path, capsys
):
  for number in range(2):
    _zip(
      tmp_path / f'in/{number}.zip',
      {f'v/{number}.mp4': b'1', f'__MACOSX/v/._{number}.mp4': b'2', 'v/.DS_Store': bytes([number])},
    )
  _tar(tmp_path / 'in/c.tar', {'w/._a.mp4': b'3', 'w/a.mp4': b'4', 'w/Thumbs.db': b'5'})
  for _ in range(2):
    status, out, _ = _main(tmp_path, capsys)
    assert status == 0 and out.endswith(', 6 left out that macOS or Windows left there\n')
  assert _files(tmp_path / 'root') == ['v/0.mp4', 'v/1.mp4', 'w/a.mp4']


@pytest.mark.parametrize('name', ['v.tar', 'v.tar.gz'])
def test_an_archive_in_parts_lands_in_the_root_by_any_of_its_parts_and_once(tmp_path, name):
  members = {f'v/{i}.mp4': NOISE[i * 5000 : (i + 1) * 5000] for i in range(9)}
  data = _tar(tmp_path / name, members).read_bytes()
  paths = _parts(tmp_path / 'in', f'{name}.part.', data, 7)
  _zip(tmp_path / 'in/a.zip', {'a': b'1'})
  assert unpack(tmp_path / 'in', tmp_path / 'root') == Unpacked(10, 0, 45001)
  assert {name: (tmp_path / 'root' / name).read_bytes() for name in members} == members
  assert unpack(tmp_path / 'in', tmp_path / 'root') == Unpacked(0, 10)
  assert unpack(paths[3], tmp_path / 'other') == Unpacked(9, 0, 45000)  # one of them stands for all
  data = _tar(tmp_path / name, members | {'v/8.mp4': NOISE[:5000]}).read_bytes()
  _parts(tmp_path / 'in', f'{name}.part.', data, 7)
  assert (
    unpack(tmp_path / 'in', tmp_path / 'root').replaced == 1
  )  # though no header of the tar changed


@pytest.mark.parametrize('lost', [0, 3, 6])
def test_without_one_of_its_parts_nothing_is_written_and_with_it_every_file_is_right(
  tmp_path, lost
):
  members = {f'{i}.mp4': NOISE[i * 3000 : (i + 1) * 3000] for i in range(12)}
  data = _tar(tmp_path / 'v.tar', members).read_bytes()
  paths = _parts(tmp_path / 'in', 'v.tar.', data, 7)
  piece = paths[lost].read_bytes()
  paths[lost].unlink()
  with pytest.raises(DataError) as error:
    unpack(tmp_path / 'in', tmp_path / 'root')
  assert (f'no {paths[lost].name}' if lost < 6 else 'no end mark') in str(error.value)
  assert not (tmp_path / 'root').exists()
  paths[lost].write_bytes(piece)
  unpack(tmp_path / 'in', tmp_path / 'root')
  assert {name: (tmp_path / 'root' / name).read_bytes() for name in members} == members


def test_a_whole_archive_beside_its_own_parts_is_compared_with_them_and_written_once(tmp_path):
  data = _tar(tmp_path / 'in/v.tar', {'a': NOISE[:3000]}).read_bytes()
  _parts(tmp_path / 'in', 'v.tar.part.', data, 3)
  assert unpack(tmp_path / 'in', tmp_path / 'root') == Unpacked(1, 1, 3000)


def test_a_journal_of_the_version_before_is_not_believed_and_its_files_are_compared(tmp_path):
  archive = _zip(tmp_path / 'a.zip', {'a': b'right'})
  unpack(archive, tmp_path / 'root')
  journal = next((tmp_path / 'root/.paravt_unpack').glob('*.jsonl'))
  journal.write_text(journal.read_text().replace('"version": 2', '"version": 1'))
  status = (tmp_path / 'root/a').stat()
  (tmp_path / 'root/a').write_bytes(b'wrong')
  os.utime(tmp_path / 'root/a', ns=(status.st_mtime_ns, status.st_mtime_ns))
  assert unpack(archive, tmp_path / 'root').replaced == 1


def test_a_plain_tar_fetched_again_with_the_same_headers_is_compared_whatever_was_chosen_in_between(
  tmp_path,
):
  _tar(tmp_path / 'a.tar', {'a': b'wrong', 'b': b'wrong'})
  unpack(tmp_path / 'a.tar', tmp_path / 'root')
  _tar(tmp_path / 'a.tar', {'a': b'right', 'b': b'right'})
  assert unpack(tmp_path / 'a.tar', tmp_path / 'root', include=['a']).replaced == 1
  assert unpack(tmp_path / 'a.tar', tmp_path / 'root').replaced == 1
  assert [(tmp_path / 'root' / name).read_bytes() for name in 'ab'] == [b'right', b'right']


def test_no_member_takes_the_place_of_a_part_that_is_being_unpacked(tmp_path):
  data = _tar(tmp_path / 'v.tar', {'v.tar.ab': b'1' * 4000, 'b': b'2'}).read_bytes()
  (tmp_path / 'v.tar').unlink()
  paths = _parts(tmp_path, 'v.tar.', data, 2)
  paths[1].write_bytes(data[len(data) // 2 :])
  with pytest.raises(DataError, match=r"member 'v\.tar\.ab': got the place of an archive"):
    unpack(tmp_path, tmp_path)

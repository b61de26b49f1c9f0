"""Archives into one root: safe names only, whole files only, and once."""

import json
import os
import random
import subprocess
import sys

import pytest

from paravt_jax.data.unpack import Unpacked, main, unpack
from paravt_jax.errors import DataError
from tests.data.made_archives import (
  ANY,
  NOISE,
  child,
  files_in,
  run_main,
  split_file,
  tar_file,
  zip_file,
)


def test_all_archives_of_all_folders_land_in_one_root_and_a_second_run_writes_nothing(tmp_path):
  zip_file(
    tmp_path / 'in/longvt_source/tvg_1.zip',
    {'longvt_source/tvg_1/a.mp4': b'aa', 'longvt_source/tvg_1/': b''},
  )
  tar_file(tmp_path / 'in/museg/charades.tar.gz', {'museg/charades/b.mp4': b'b' * 5000})
  tar_file(tmp_path / 'in/museg/et_instruct.tar', {'museg/et_instruct_164k/c d é.mp4': b'c'})
  root = tmp_path / 'root'
  assert unpack(tmp_path / 'in', root) == Unpacked(written=3, kept=0, bytes=5003)
  assert files_in(root) == [
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
    assert {name: (root / name).read_bytes() for name in files_in(root)} == members


def test_a_file_that_another_tool_left_half_written_is_written_again(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'selfqa/a.mp4': b'whole'})
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


def test_a_disk_that_fills_up_is_one_clear_error_keeps_finished_files_and_a_second_run_goes_on(
  tmp_path,
):
  archive = zip_file(tmp_path / 'a.zip', {'a.mp4': NOISE[:1000], 'b.mp4': NOISE})
  done = child(
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
    and 'free space or check permissions, then run again (finished files are kept)' in done.stderr
  )
  assert files_in(tmp_path / 'root') == ['a.mp4']
  assert unpack(archive, tmp_path / 'root') == Unpacked(written=1, kept=1, bytes=len(NOISE))


@ANY
def test_a_run_that_is_killed_leaves_whole_files_only_and_the_next_one_goes_on(
  tmp_path, make, name
):
  members = {f'd/{i}.mp4': NOISE[i:] + NOISE * 5 for i in range(8)}  # of several pieces each
  archive = make(tmp_path / name, members)
  before = sum(map(len, members.values())) + (archive.stat().st_size if name.endswith('gz') else 0)
  killed = child(
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
  left = files_in(tmp_path / 'root')
  whole = [name for name in left if not name.endswith('.part')]
  assert len(whole) < len(left), 'it died between two files'
  assert all((tmp_path / 'root' / name).read_bytes() == members[name] for name in whole)
  done = unpack(archive, tmp_path / 'root')
  assert (done.written, done.kept, done.replaced) == (8 - len(whole), len(whole), 0)
  assert {
    name: (tmp_path / 'root' / name).read_bytes() for name in files_in(tmp_path / 'root')
  } == members


def test_a_run_does_not_read_again_what_the_journal_knows(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'a': b'right'})
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
  assert files_in(tmp_path / 'root') == ['tvg_1/a.mp4', 'tvg_2/b/c.mp4']
  assert unpack(archive, tmp_path / 'root', include=['*.mp4']) == Unpacked(1, 2, 1)
  lines = next((tmp_path / 'root/.paravt_unpack').glob('*.jsonl')).read_text().splitlines()[1:]
  assert sorted(json.loads(line)[0] for line in lines) == ['tvg_1/a.mp4', 'tvg_2/b/c.mp4', 'x.mp4']
  assert unpack(archive, tmp_path / 'root', include=['x*']).kept == 1
  with pytest.raises(
    DataError, match=r"'../bad'"
  ):  # refused still, though the journal knows the archive
    unpack(archive, tmp_path / 'root')


def test_progress_runs_in_bytes_over_the_packed_tar_and_over_what_is_written(tmp_path):
  zip_file(tmp_path / 'in/a.zip', {'a': NOISE})
  tar_file(tmp_path / 'in/b.tgz', {'b': NOISE})
  packed, seen = os.path.getsize(tmp_path / 'in/b.tgz'), []
  unpack(tmp_path / 'in', tmp_path / 'root', progress=lambda *step: seen.append(step))
  assert seen[-1] == (packed + 2 * len(NOISE), packed + 2 * len(NOISE))
  assert [done for done, _ in seen] == sorted(done for done, _ in seen)
  assert {total for _, total in seen} == {packed, packed + 2 * len(NOISE)}


def test_a_failing_progress_call_stops_the_run_and_leaves_nothing_half(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {f'{i}': NOISE for i in range(20)})

  def stop(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    unpack(archive, tmp_path / 'root', progress=stop)
  assert files_in(tmp_path / 'root') == []


def test_the_command_says_what_it_did_and_its_status_tells_done_nothing_and_refused_apart(
  tmp_path, capsys
):
  zip_file(tmp_path / 'in/a.zip', {'selfqa/a.mp4': b'a'})

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
  zip_file(tmp_path / 'in/a.zip', {'selfqa/a.mp4': b'b'})
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


def test_what_looks_like_an_archive_and_is_not_read_is_named_and_the_rest_is_unpacked_with_status_2(
  tmp_path, capsys
):
  zip_file(tmp_path / 'in/a.zip', {'a': b'1'})
  (tmp_path / 'in/deep').mkdir()
  (tmp_path / 'in/deep/b.7z').write_bytes(b"7z\xbc\xaf'\x1c" + bytes(50))
  (tmp_path / 'in/c.zip.part').write_bytes(b'PK')
  status, out, err = run_main(tmp_path, capsys)
  assert (status, files_in(tmp_path / 'root')) == (2, ['a']) and '1 files written' in out
  assert err.splitlines() == [
    f'{tmp_path}/in/c.zip.part: not read: a download that is not finished; fetch it to its '
    'end, or remove it',
    f'{tmp_path}/in/deep/b.7z: not read: a kind of archive (.7z) that is not read; unpack it '
    'by hand into the root, and move it out of '
    'the folder',
  ]
  (tmp_path / 'in/a.zip').unlink()
  status, out, err = run_main(tmp_path, capsys)  # nothing but these
  assert (status, out, err.count('not read: ')) == (2, '', 2)
  assert main(['--archives', str(tmp_path / 'in/deep/b.7z'), '--root', str(tmp_path / 'root')]) == 2
  assert 'b.7z: not read: ' in capsys.readouterr().err


def test_what_macos_and_windows_left_is_left_out_and_counted_also_when_the_journal_is_asked(
  tmp_path, capsys
):
  for number in range(2):
    zip_file(
      tmp_path / f'in/{number}.zip',
      {f'v/{number}.mp4': b'1', f'__MACOSX/v/._{number}.mp4': b'2', 'v/.DS_Store': bytes([number])},
    )
  tar_file(tmp_path / 'in/c.tar', {'w/._a.mp4': b'3', 'w/a.mp4': b'4', 'w/Thumbs.db': b'5'})
  for _ in range(2):
    status, out, _ = run_main(tmp_path, capsys)
    assert status == 0 and out.endswith(', 6 left out that macOS or Windows left there\n')
  assert files_in(tmp_path / 'root') == ['v/0.mp4', 'v/1.mp4', 'w/a.mp4']


@pytest.mark.parametrize('name', ['v.tar', 'v.tar.gz'])
def test_an_archive_in_parts_lands_in_the_root_by_any_of_its_parts_and_once(tmp_path, name):
  members = {f'v/{i}.mp4': NOISE[i * 5000 : (i + 1) * 5000] for i in range(9)}
  data = tar_file(tmp_path / name, members).read_bytes()
  paths = split_file(tmp_path / 'in', f'{name}.part.', data, 7)
  zip_file(tmp_path / 'in/a.zip', {'a': b'1'})
  assert unpack(tmp_path / 'in', tmp_path / 'root') == Unpacked(10, 0, 45001)
  assert {name: (tmp_path / 'root' / name).read_bytes() for name in members} == members
  assert unpack(tmp_path / 'in', tmp_path / 'root') == Unpacked(0, 10)
  assert unpack(paths[3], tmp_path / 'other') == Unpacked(9, 0, 45000)  # one of them stands for all
  data = tar_file(tmp_path / name, members | {'v/8.mp4': NOISE[:5000]}).read_bytes()
  split_file(tmp_path / 'in', f'{name}.part.', data, 7)
  assert (
    unpack(tmp_path / 'in', tmp_path / 'root').replaced == 1
  )  # though no header of the tar changed


@pytest.mark.parametrize('lost', [0, 3, 6])
def test_without_one_of_its_parts_nothing_is_written_and_with_it_every_file_is_right(
  tmp_path, lost
):
  members = {f'{i}.mp4': NOISE[i * 3000 : (i + 1) * 3000] for i in range(12)}
  data = tar_file(tmp_path / 'v.tar', members).read_bytes()
  paths = split_file(tmp_path / 'in', 'v.tar.', data, 7)
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
  data = tar_file(tmp_path / 'in/v.tar', {'a': NOISE[:3000]}).read_bytes()
  split_file(tmp_path / 'in', 'v.tar.part.', data, 3)
  assert unpack(tmp_path / 'in', tmp_path / 'root') == Unpacked(1, 1, 3000)


def test_a_journal_of_the_version_before_is_not_believed_and_its_files_are_compared(tmp_path):
  archive = zip_file(tmp_path / 'a.zip', {'a': b'right'})
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
  tar_file(tmp_path / 'a.tar', {'a': b'wrong', 'b': b'wrong'})
  unpack(tmp_path / 'a.tar', tmp_path / 'root')
  tar_file(tmp_path / 'a.tar', {'a': b'right', 'b': b'right'})
  assert unpack(tmp_path / 'a.tar', tmp_path / 'root', include=['a']).replaced == 1
  assert unpack(tmp_path / 'a.tar', tmp_path / 'root').replaced == 1
  assert [(tmp_path / 'root' / name).read_bytes() for name in 'ab'] == [b'right', b'right']

"""What was unpacked is written down line by line, and only what can be read and still holds is
believed.
"""

import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

from paravt_jax.data import archives
from paravt_jax.data.unpack_journal import File, Journal, header, lock_root

MEMBER = archives.Member('d/é.mp4', 3, 7, 1, 3, 0)


def _archive(path: pathlib.Path, kind: str = 'tar', faults: tuple = ()) -> archives.Archive:
  path.write_bytes(b'123')
  return archives.Archive(
    path,
    (path,),
    kind,
    *archives.facts([path]),
    archives.digest([MEMBER]),
    (MEMBER,),
    faults,
    left=2,
  )


def _written(root: pathlib.Path, archive: archives.Archive) -> Journal:
  (root / archives.OURS).mkdir(parents=True, exist_ok=True)
  journal = Journal(root, 'in/a.tar')
  journal.start(header(archive, journal.name), {'a': File(1, 2, 3)})
  journal.add({'d/é.mp4': File(3, 7, 9)})
  journal.close()
  return journal


def test_a_journal_comes_back_as_it_was_written_and_says_archive_tool_and_version(tmp_path):
  archive = _archive(tmp_path / 'a.tar')
  _written(tmp_path, archive)
  again = Journal(tmp_path, 'in/a.tar')
  assert again.files == {'a': File(1, 2, 3), 'd/é.mp4': File(3, 7, 9)}
  assert again.is_of(archive)
  assert (again.known['tool'], again.known['version'], again.known['archive']) == (
    'paravt_jax.data.unpack',
    2,
    {
      'name': 'in/a.tar',
      'kind': 'tar',
      'bytes': 3,
      'stamp': archive.stamp,
      'digest': archive.digest,
      'left': 2,
    },
  )


def test_a_torn_last_line_and_lines_that_make_no_sense_cost_only_themselves(tmp_path):
  journal = _written(tmp_path, _archive(tmp_path / 'a.tar'))
  text = journal.path.read_text()
  journal.path.write_text(text + '7\n[["x"], 1, 2, 3]\n["b", 1, 2, 3]\n["c", 1, 2')
  assert Journal(tmp_path, 'in/a.tar').files.keys() == {'a', 'd/é.mp4', 'b'}
  journal.path.write_bytes(text.encode() + b'\xff\xfe\n')
  assert Journal(tmp_path, 'in/a.tar').files.keys() == {'a', 'd/é.mp4'}


@pytest.mark.parametrize(
  'first', ['', '{', '[]', '{"tool": "paravt_jax.data.unpack", "version": 2}']
)
def test_a_journal_without_a_readable_header_says_nothing(tmp_path, first):
  journal = _written(tmp_path, _archive(tmp_path / 'a.tar'))
  journal.path.write_text('\n'.join([first, *journal.path.read_text().split('\n')[1:]]))
  again = Journal(tmp_path, 'in/a.tar')
  assert (again.known, again.files) == (None, {})


def test_another_versions_journal_says_nothing(tmp_path):
  journal = _written(tmp_path, _archive(tmp_path / 'a.tar'))
  first, *rest = journal.path.read_text().split('\n')
  journal.path.write_text('\n'.join([json.dumps({**json.loads(first), 'version': 0}), *rest]))
  assert Journal(tmp_path, 'in/a.tar').files == {}


def test_a_tars_list_is_remembered_while_size_and_time_stay_and_no_member_was_refused(tmp_path):
  archive = _archive(tmp_path / 'a.tar')
  _written(tmp_path, archive)
  assert Journal(tmp_path, 'in/a.tar').read_listing(archive.parts) == archive
  os.utime(archive.path, ns=(1, 1))
  assert Journal(tmp_path, 'in/a.tar').read_listing(archive.parts) is None
  refused = _archive(tmp_path / 'a.tar', faults=(archives.Fault('../x', 'why'),))
  _written(tmp_path, refused)
  assert Journal(tmp_path, 'in/a.tar').read_listing(refused.parts) is None
  zipped = _archive(tmp_path / 'a.tar', kind='zip')
  _written(tmp_path, zipped)
  assert Journal(tmp_path, 'in/a.tar').read_listing(zipped.parts) is None


def test_archives_of_one_name_in_two_folders_have_two_journals(tmp_path):
  assert Journal(tmp_path, 'x/a.zip').path != Journal(tmp_path, 'y/a.zip').path


def test_what_a_dead_run_left_half_written_is_swept_and_other_files_stay(tmp_path):
  (tmp_path / 'deep/er').mkdir(parents=True)
  for name in (
    'deep/er/.paravt-77-0.part',
    'deep/.paravt-77-1.part',
    'deep/mine.part',
    '.paravt-x',
  ):
    (tmp_path / name).write_bytes(b'half')
  with pytest.raises(ZeroDivisionError), lock_root(tmp_path):
    raise ZeroDivisionError
  with lock_root(tmp_path):
    pass
  left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file())
  assert left == ['.paravt-x', '.paravt_unpack/lock', 'deep/mine.part']


def test_a_root_is_held_by_one_process_at_a_time_and_a_dead_one_lets_go(tmp_path):
  program = (
    'import pathlib, sys\nfrom paravt_jax.data.unpack_journal import lock_root\n'
    'with lock_root(pathlib.Path(sys.argv[1])):\n  print("in", flush=True)\n  sys.stdin.read()'
  )
  with subprocess.Popen(
    [sys.executable, '-c', program, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    assert other.stdout.readline() == 'in\n'
    with open(tmp_path / archives.OURS / 'lock') as lock, pytest.raises(BlockingIOError):
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.kill()
    other.wait()
  with lock_root(tmp_path):
    assert (tmp_path / archives.OURS / 'unfinished').exists()
  assert not (tmp_path / archives.OURS / 'unfinished').exists()

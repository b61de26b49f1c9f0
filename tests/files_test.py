"""Files are whole or not there, whenever a process dies and wherever a disk ends."""

import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys

import pytest

from paravt_jax import files

WRITES = """
import os, pathlib, sys
from paravt_jax import files
with files.replacing(sys.argv[1], sync=True) as file:
  file.write(b'half')
  file.flush()
  os.kill(os.getpid(), 9)
"""


@contextlib.contextmanager
def full_disk():
  """Files of this process end at 1000 bytes within the block, as on a disk that is full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_digests_are_blake2b_and_those_of_json_do_not_depend_on_the_order_of_keys(tmp_path):
  (tmp_path / 'x').write_bytes(b'abc')
  known = 'cf4ab791c62b8d2b2109c90275287816'  # printf abc | b2sum -l 128
  assert files.digest(b'abc') == files.digest_file(tmp_path / 'x') == known
  assert files.digest_json({'a': 1, 'b': 2}, 8) == files.digest(b'{"a": 1, "b": 2}', 8)
  assert files.digest_json({'b': 2, 'a': 1}, 8) == files.digest_json({'a': 1, 'b': 2}, 8)


@pytest.mark.parametrize('size', [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_has_the_digest_of_its_content_whatever_its_size(tmp_path, size):
  (tmp_path / 'x').write_bytes(b'a' * size)
  assert files.digest_file(tmp_path / 'x') == files.digest(b'a' * size)


@pytest.mark.parametrize('sync', [True, False])
def test_a_file_is_there_whole_and_alone_and_others_may_read_it(tmp_path, sync):
  place = tmp_path / 'made' / 'x'
  files.write(place, b'one', sync=sync)
  files.write(place, b'two', sync=sync)
  assert place.read_bytes() == b'two' and names(place.parent) == ['x']
  mask = os.umask(0)
  os.umask(mask)
  assert place.stat().st_mode & 0o777 == 0o666 & ~mask


def test_until_the_block_ends_a_reader_finds_the_old_file(tmp_path):
  files.write(tmp_path / 'x', b'old', sync=False)
  with files.replacing(tmp_path / 'x', sync=False) as file:
    file.write(b'new')
    assert (tmp_path / 'x').read_bytes() == b'old'
  assert (tmp_path / 'x').read_bytes() == b'new'


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_write_that_ends_in_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
  files.write(tmp_path / 'x', b'old', sync=False)
  with pytest.raises(type(error)), files.replacing(tmp_path / 'x', sync=False) as file:
    file.write(b'half')
    raise error
  assert (tmp_path / 'x').read_bytes() == b'old' and names(tmp_path) == ['x']


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path):
  files.write(tmp_path / 'x', b'old', sync=True)
  with pytest.raises(OSError, match='File too large'), full_disk():
    files.write(tmp_path / 'x', b'a' * 5000, sync=True)
  assert (tmp_path / 'x').read_bytes() == b'old' and names(tmp_path) == ['x']


def test_a_writer_killed_before_the_rename_leaves_the_old_file_and_the_next_write_tidies_up(
  tmp_path,
):
  files.write(tmp_path / 'x', b'old', sync=False)
  done = subprocess.run([sys.executable, '-c', WRITES, str(tmp_path / 'x')], check=False)
  assert done.returncode == -9 and (tmp_path / 'x').read_bytes() == b'old'
  assert len(names(tmp_path)) == 2
  files.write(tmp_path / 'another', b'new', sync=False)
  assert names(tmp_path) == ['another', 'x']


def test_what_is_still_being_written_and_what_is_not_ours_is_never_swept(tmp_path):
  young, old, written = (f'.x.{os.getpid()}-0000000{n}.part' for n in range(3))
  for name in (young, old, written, 'download.part', '.x.part'):
    (tmp_path / name).write_bytes(b'half')
    if name != young:
      os.utime(tmp_path / name, (1, 1))
  with (tmp_path / written).open('r+b') as writer:
    fcntl.flock(writer, fcntl.LOCK_EX)
    files.sweep(tmp_path)
  assert names(tmp_path) == sorted([young, written, 'download.part', '.x.part'])


def test_the_same_content_is_left_alone(tmp_path):
  assert files.write_if_changed(tmp_path / 'deep' / 'x', b'a', sync=True)
  before = (tmp_path / 'deep' / 'x').stat().st_mtime_ns
  assert not files.write_if_changed(tmp_path / 'deep' / 'x', b'a', sync=True)
  assert (tmp_path / 'deep' / 'x').stat().st_mtime_ns == before
  assert files.write_if_changed(tmp_path / 'deep' / 'x', b'b', sync=True)


def test_lines_come_back_with_their_ends_and_a_torn_last_one_is_left_out(tmp_path):
  path = tmp_path / 'deep' / 'lines'
  assert list(files.read_lines(path)) == []
  with files.LineWriter(path) as lines:
    lines.append(b'one\n')
    lines.append(b'two\nthree\n')
  found = [(1, b'one\n', 4), (2, b'two\n', 8), (3, b'three\n', 14)]
  assert list(files.read_lines(path)) == found
  path.write_bytes(path.read_bytes() + b'fo')
  assert list(files.read_lines(path)) == found


@pytest.mark.parametrize('length', range(9))
def test_whatever_a_kill_leaves_of_the_last_line_the_next_one_stands_alone(tmp_path, length):
  path = tmp_path / 'lines'
  path.write_bytes(b'one\ntwo\n'[:length])
  whole = list(files.read_lines(path))
  with files.LineWriter(path, keep=whole[-1].end if whole else 0) as lines:
    lines.append(b'new\n')
  assert path.read_bytes() == b''.join(line.text for line in whole) + b'new\n'


def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path):
  with files.LineWriter(tmp_path / 'lines') as lines:
    lines.append(b'a' * 600 + b'\n')
    with pytest.raises(OSError, match='File too large'), full_disk():
      lines.append(b'b' * 600 + b'\n')
    lines.append(b'c\n')
  assert (tmp_path / 'lines').read_bytes() == b'a' * 600 + b'\nc\n'


def test_errors_of_a_full_disk_name_the_file(tmp_path):
  link = tmp_path / 'lines'
  link.symlink_to('/dev/full')
  with files.LineWriter(link) as writer, pytest.raises(OSError, match='No space') as caught:
    writer.append(b'one\n')
  assert caught.value.filename == str(link)
  with (
    pytest.raises(OSError, match='No space') as caught,
    files.replacing(tmp_path / 'page', sync=False),
  ):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert caught.value.filename == str(tmp_path / 'page')
  with (
    pytest.raises(OSError, match='No space') as caught,
    files.replacing(tmp_path / 'page', sync=False),
  ):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'other')
  assert caught.value.filename == 'other'


def test_a_folder_takes_the_place_of_another_whole_or_not_at_all(tmp_path):
  target = tmp_path / 'folder'
  (tmp_path / '.folder.part').mkdir()
  (tmp_path / '.folder.part' / 'left by a killed writer').touch()
  with files.replacing_folder(target) as part:
    assert not list(part.iterdir()) and not target.exists()
    (part / 'old').touch()
  with pytest.raises(KeyboardInterrupt), files.replacing_folder(target) as part:
    (part / 'half').touch()
    raise KeyboardInterrupt
  assert [path.name for path in tmp_path.rglob('*')] == ['folder', 'old']
  with files.replacing_folder(target) as part:
    (part / 'new').touch()
  assert [path.name for path in tmp_path.rglob('*')] == ['folder', 'new']


def test_a_device_that_takes_nothing_is_an_oserror(tmp_path):
  (tmp_path / 'lines').symlink_to('/dev/full')
  with (
    files.LineWriter(tmp_path / 'lines', keep=0) as lines,
    pytest.raises(OSError, match='No space left'),
  ):
    lines.append(b'one\n')

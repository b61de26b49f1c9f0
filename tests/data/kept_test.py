"""Files of a shared cache: whole or not at all."""

import fcntl
import os

import pytest

from paravt_jax.data import kept


def test_a_file_is_there_whole_and_alone(tmp_path):
  kept.replace(tmp_path / 'a' / 'x.bin', lambda out: out.write(b'one'))
  kept.replace(tmp_path / 'a' / 'x.bin', lambda out: out.write(b'two'))
  assert [(file.name, file.read_bytes()) for file in (tmp_path / 'a').iterdir()] == [
    ('x.bin', b'two')
  ]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
  kept.replace(tmp_path / 'x.bin', lambda out: out.write(b'one'))

  def full(out):
    out.write(b'half')
    raise OSError(28, 'No space left on device')

  with pytest.raises(OSError, match='No space left'):
    kept.replace(tmp_path / 'x.bin', full)
  assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('x.bin', b'one')]


def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_is_not(tmp_path):
  for name in ('left.part', 'written.part', 'made_just_now.part'):
    (tmp_path / name).write_bytes(b'half')
  os.utime(tmp_path / 'left.part', (1, 1))
  os.utime(tmp_path / 'written.part', (1, 1))
  with (tmp_path / 'written.part').open('r+b') as writer:
    fcntl.flock(writer, fcntl.LOCK_EX)
    kept.replace(tmp_path / 'x.bin', lambda out: out.write(b'one'))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
      'made_just_now.part',
      'written.part',
      'x.bin',
    ]

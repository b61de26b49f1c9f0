"""What `materialize` refuses, what a killed run and a full disk leave, and how much memory it takes."""

import json
import os
import random
import subprocess
import sys

import pyarrow
import pytest

from paravt_jax.data.materialize import rewrite_files
from paravt_jax.errors import DataError
from tests import patience
from tests.data.made_rows import LISTS, there, write


@pytest.mark.parametrize('output', ['in', 'in/deeper', 'link'])
def test_an_output_folder_in_the_parquet_folder_is_refused(place, output):
  (place / 'link').symlink_to(place / 'in')
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  with pytest.raises(DataError, match='choose another --output-dir'):
    rewrite_files('materialize', place / 'root', place / 'in', place / output)
  assert [path.name for path in (place / 'in').iterdir()] == ['a.parquet']


def test_a_link_in_the_output_folder_does_not_lead_back_to_the_inputs(place):
  write(place / 'in/deep/a.parquet', {'videos': ['selfqa/a']})
  (place / 'out').mkdir()
  (place / 'out/deep').symlink_to(place / 'in/deep')
  with pytest.raises(DataError, match='lies in the parquet folder'):
    there(place)


def test_every_damaged_input_is_named_before_anything_is_written(place):
  write(place / 'in/good.parquet', {'videos': ['selfqa/a']})
  (place / 'in/empty.parquet').touch()
  (place / 'in/cut.parquet').write_bytes((place / 'in/good.parquet').read_bytes()[:-20])
  (place / 'in/gone.parquet').symlink_to(place / 'nowhere')
  with pytest.raises(DataError) as error:
    there(place)
  assert all(
    name in str(error.value) for name in ('empty.parquet', 'cut.parquet', 'gone.parquet')
  ) and 'good' not in str(error.value)
  assert not (place / 'out').exists()


def test_damage_that_only_reading_shows_leaves_no_output_and_keeps_what_was_finished(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  file = write(
    place / 'in/b.parquet',
    {'videos': [f'selfqa/{number}' for number in range(1000)]},
    compression='gzip',
  )
  content = bytearray(file.read_bytes())
  content[40:400] = bytes(360)
  file.write_bytes(content)
  with pytest.raises(DataError, match=r'in/b\.parquet'):
    there(place)
  assert [path.name for path in (place / 'out').iterdir()] == ['a.parquet']


def test_text_that_is_no_utf_8_is_a_refusal_in_one_line(place):
  bad = pyarrow.array([b'{"url": "selfqa/\xff"}']).view(pyarrow.string())
  write(place / 'in/a.parquet', {'messages': bad})
  with pytest.raises(DataError, match=r'^[^\n]*utf-8[^\n]*$'):
    there(place)


@pytest.mark.parametrize('root', ['nowhere', 'in/a.parquet', b'\xff'])
def test_a_bad_root_is_refused(place, root):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  path = os.path.join(os.fsencode(place), os.fsencode(root))
  if root == b'\xff':
    os.mkdir(path)
  for direction in ('materialize', 'sanitize'):
    with pytest.raises(DataError, match='media root'):
      rewrite_files(direction, os.fsdecode(path), place / 'in', place / 'out')


def test_what_killed_runs_left_is_swept_and_what_lives_is_not(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  dead = subprocess.Popen([sys.executable, '-c', ''])
  dead.wait()
  living = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  (place / 'out').mkdir()
  names = [
    f'.a.parquet.{dead.pid}.part',
    f'.a.parquet.{living.pid}.part',
    f'a.parquet.{dead.pid}.part',
    '.other.part',
  ]
  for name in names:
    (place / 'out' / name).touch()
  there(place)
  living.communicate(b'\n')
  assert [name for name in names if (place / 'out' / name).exists()] == names[1:]


MEASURE = """
import pyarrow, sys, tracemalloc
from paravt_jax.data.materialize import rewrite_files
tracemalloc.start()
rewrite_files('materialize', *sys.argv[1:])
print(pyarrow.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize('shape', ['json', 'lists'])
def test_memory_is_bounded_by_a_row_group_not_by_the_file(place, shape):
  text = ''.join(random.Random(1).choices('abcdefgh ', k=20_000))
  rows = [
    [
      {
        'role': 'user',
        'content': [
          {'type': 'video_url', 'video_url': {'url': 'selfqa/a.mp4'}},
          {'text': f'{number} {text}'},
        ],
      }
    ]
    for number in range(100)
  ]
  column = pyarrow.array(
    [json.dumps(row) for row in rows] if shape == 'json' else rows,
    pyarrow.string() if shape == 'json' else LISTS,
  )
  table = pyarrow.table({'messages': column})
  peaks = []
  for groups in (2, 16):
    folder = place / f'{groups}'
    write(
      folder / 'a.parquet',
      pyarrow.concat_tables([table] * groups),
      row_group_size=100,
      use_dictionary=False,
    )
    arguments = [
      sys.executable,
      '-c',
      MEASURE,
      str(place / 'root'),
      str(folder),
      str(place / f'out{groups}'),
    ]
    peaks.append(
      int(
        subprocess.run(
          arguments, capture_output=True, text=True, check=True, timeout=patience.seconds(300)
        ).stdout
      )
    )
  assert peaks[1] < 1.5 * peaks[0]  # eight times as much data


def test_a_run_killed_in_the_middle_leaves_whole_files_and_the_next_one_finishes(place):
  for name in 'abc':
    write(
      place / f'in/{name}.parquet',
      {'videos': [f'selfqa/{name}{number}' for number in range(6)]},
      row_group_size=2,
    )
  code = (
    'import os, sys\nfrom paravt_jax.data.materialize import rewrite_files\n'
    'rewrite_files("materialize", *sys.argv[1:], progress=lambda done, total: done == 10 and '
    'os.kill(os.getpid(), 9))'
  )
  killed = subprocess.run(
    [sys.executable, '-c', code, *(str(place / name) for name in ('root', 'in', 'out'))],
    timeout=patience.seconds(300),
    check=False,
  )
  assert killed.returncode == -9
  assert [path.name for path in sorted((place / 'out').glob('*.parquet'))] == ['a.parquet']
  assert [path.name.split('.')[1] for path in (place / 'out').glob('.*.part')] == ['b']
  report = there(place)
  assert (report.written, report.up_to_date) == (2, 1)
  assert sorted(path.name for path in (place / 'out').iterdir()) == [
    'a.parquet',
    'b.parquet',
    'c.parquet',
    'materialize_report.json',
    'missing.txt',
  ]


def test_a_disk_that_takes_no_more_is_one_line_and_nothing_half_written(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  write(
    place / 'in/b.parquet',
    {'videos': [f'selfqa/{random.Random(number).random()}' for number in range(5000)]},
  )
  code = (
    'import resource, sys\nfrom paravt_jax.data import materialize\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, '
    '20_000))\nsys.exit(materialize.main(sys.argv[1:]))'
  )
  arguments = [
    '--root',
    place / 'root',
    '--parquet-dir',
    place / 'in',
    '--output-dir',
    place / 'out',
  ]
  done = subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
  assert 'in/b.parquet' in done.stderr and 'free space' in done.stderr
  assert [path.name for path in (place / 'out').iterdir()] == ['a.parquet']
  assert there(place).up_to_date == 1

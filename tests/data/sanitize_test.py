"""Sanitize by itself: files that materialize did not write, other names of the root, and nothing of
this machine in the outputs.

That it undoes materialize is tested in materialize_test.
"""

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from paravt_jax.data import sanitize
from paravt_jax.data.materialize import rewrite_files
from paravt_jax.errors import DataError


@pytest.fixture
def place(tmp_path):
  (tmp_path / 'root').mkdir()
  (tmp_path / 'in').mkdir()
  return tmp_path


def sanitized(place, columns, root='root'):
  parquet.write_table(pyarrow.table(columns), place / 'in/a.parquet')
  report = rewrite_files('sanitize', place / root, place / 'in', place / 'out')
  return parquet.read_table(place / 'out/a.parquet').to_pydict(), report


def test_uris_that_another_program_wrote_become_sentinels_whatever_their_escapes(place):
  uri = f'file://{place}/root/selfqa/é a.mp4'
  columns = {
    'messages': [
      json.dumps([{'url': uri}]),
      json.dumps([{'url': uri}], ensure_ascii=False).replace('/', '\\/'),
      '[]',
    ],
    'videos': [
      [{'video': uri}],
      [{'video': f'file://{place}/root2/selfqa/a'}],
      [{'video': 'selfqa/a'}],
    ],
  }
  made, report = sanitized(place, columns)
  assert made == {
    'messages': ['[{"url": "selfqa/\\u00e9 a.mp4"}]', '[{"url": "selfqa\\/é a.mp4"}]', '[]'],
    'videos': [
      [{'video': 'selfqa/é a.mp4'}],
      [{'video': f'file://{place}/root2/selfqa/a'}],
      [{'video': 'selfqa/a'}],
    ],
  }
  assert (report.values, report.unknown) == (3, {'other_file_uri': 1, 'sentinel': 1})


def test_a_link_to_the_root_and_the_root_itself_are_one(place):
  (place / 'link').symlink_to(place / 'root')
  uris = [f'file://{place}/link/selfqa/a', f'file://{place}/root/selfqa/b']
  assert sanitized(place, {'videos': uris}, 'link')[0] == {'videos': ['selfqa/a', 'selfqa/b']}


def test_the_outputs_name_no_folder_and_media_that_are_missing_are_no_matter(place):
  _, report = sanitized(place, {'videos': [f'file://{place}/root/selfqa/a']})
  assert (report.referenced, report.missing, report.absent) == ({}, {}, {})
  assert sorted(path.name for path in (place / 'out').iterdir()) == [
    'a.parquet',
    'sanitize_report.json',
  ]
  assert not any(str(place).encode() in path.read_bytes() for path in (place / 'out').iterdir())


def test_a_second_run_is_up_to_date_and_another_root_is_noticed(place):
  (place / 'other').mkdir()
  columns = {'videos': [f'file://{place}/root/selfqa/a']}
  sanitized(place, columns)
  assert sanitized(place, columns)[1].up_to_date == 1
  made, report = sanitized(place, columns, 'other')
  assert (list(report.redone), report.values, made) == (['a.parquet'], 0, columns)


def test_a_root_that_is_not_there_is_most_likely_a_typing_error(place):
  with pytest.raises(DataError, match='check --root'):
    sanitized(place, {'videos': ['selfqa/a']}, 'rot')


def test_nothing_to_change_is_exit_status_1_and_says_what_was_looked_for(place, capsys):
  parquet.write_table(pyarrow.table({'videos': ['selfqa/a']}), place / 'in/a.parquet')
  arguments = [
    '--root',
    str(place / 'root'),
    '--parquet-dir',
    str(place / 'in'),
    '--output-dir',
    str(place / 'out'),
  ]
  assert sanitize.main(arguments) == 1
  assert f'wanted one that begins with file://{place}/root/' in capsys.readouterr().err

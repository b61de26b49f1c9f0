"""Provenance: a derived file says what it was made from, and every change of that is noticed and
named.
"""

import json
import os

import pytest

from paravt_jax.data import provenance
from paravt_jax.errors import DataError


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'in' / 'a.parquet'
  path.parent.mkdir()
  path.write_bytes(b'abc')
  return path


def test_a_digest_is_blake2b_of_sixteen_bytes(file):
  assert provenance.digest(file) == 'cf4ab791c62b8d2b2109c90275287816'  # printf abc | b2sum -l 128


def test_an_identity_is_path_size_time_and_content(file):
  os.utime(file, ns=(0, 1_500_000_001))
  assert provenance.identity(file) == {
    'path': str(file),
    'bytes': 3,
    'mtime_ns': 1_500_000_001,
    'blake2b': 'cf4ab791c62b8d2b2109c90275287816',
  }


def test_a_record_survives_json_and_finds_nothing_changed(file):
  made = provenance.record('tool', 1, [file], {'sizes': (1, 2)})
  again = provenance.read(json.dumps(made))
  assert again == made
  assert provenance.changes(again, 'tool', 1, [file], {'sizes': (1, 2)}) == []


@pytest.mark.parametrize(
  'text',
  [None, '', b'', '{', 'null', '[]', '{}', '{"inputs": 3}', '{"inputs": [{}]}', '{"inputs": [3]}'],
)
def test_what_is_no_record_is_none(text):
  assert provenance.read(text) is None


def test_without_a_record_nothing_is_up_to_date(file):
  assert provenance.changes(None, 'tool', 1, [file], {}) == [
    'it does not say what it was made from'
  ]


def test_another_version_tool_or_option_is_a_change(file):
  made = provenance.record('tool', 1, [file], {'root': '/a'})
  assert provenance.changes(made, 'tool', 2, [file], {'root': '/a'}) == [
    'it was made by tool version 1, this is tool version 2'
  ]
  assert provenance.changes(made, 'other', 1, [file], {'root': '/a'}) == [
    'it was made by tool version 1, this is other version 1'
  ]
  assert provenance.changes(made, 'tool', 1, [file], {'root': '/b'}) == [
    "it was made with {'root': '/a'}, wanted {'root': '/b'}"
  ]


def test_other_inputs_are_changes_by_name(file, tmp_path):
  made = provenance.record('tool', 1, [file], {})
  other = tmp_path / 'b'
  other.touch()
  assert provenance.changes(made, 'tool', 1, [other], {}) == [
    f'{other} is a new input',
    f'{file} was an input',
  ]


def test_another_size_other_content_and_absence_are_changes(file):
  made = provenance.record('tool', 1, [file], {})
  for content in (b'abcd', b'abd'):
    file.write_bytes(content)
    os.utime(file, ns=(0, 7))
    assert provenance.changes(made, 'tool', 1, [file], {}) == [f'{file} has changed']
  file.unlink()
  assert provenance.changes(made, 'tool', 1, [file], {}) == [f'{file} has changed']


def test_equal_content_with_another_time_is_no_change(file):
  made = provenance.record('tool', 1, [file], {})
  os.utime(file, ns=(0, 7))
  assert provenance.changes(made, 'tool', 1, [file], {}) == []


def test_paths_relative_to_a_base_survive_a_move_and_name_no_folder_above_it(file, tmp_path):
  made = provenance.record('tool', 1, [file], {}, file.parent)
  assert made['inputs'][0]['path'] == 'a.parquet'
  assert str(tmp_path) not in json.dumps(made)
  moved = file.parent.rename(tmp_path / 'elsewhere')
  assert provenance.changes(made, 'tool', 1, [moved / 'a.parquet'], {}, moved) == []


def test_an_input_that_cannot_be_read_is_one_line_with_a_way_out(tmp_path):
  for path in (tmp_path / 'none', tmp_path):
    with pytest.raises(DataError, match='wanted a readable file'):
      provenance.identity(path)

"""Manifests: which files make up a source, with what weight; every way in which one can be wrong,
in one line.
"""

import json

import pytest

from paravt_jax.data import manifest
from paravt_jax.data.manifest import Entry
from paravt_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
  for name in ('a_1', 'a_2', 'b'):
    (tmp_path / f'paravt_sft_{name}.parquet').write_bytes(b'')
  return tmp_path


def write(folder, value):
  file = folder / 'mix.json'
  file.write_text(value if isinstance(value, str) else json.dumps(value))
  return file


def test_globs_are_relative_to_the_manifest_and_give_their_files_in_order(folder):
  file = write(
    folder,
    {
      'sources': {
        'a': {'files': ['paravt_sft_a_*.parquet'], 'weight': 2.5},
        'b': {'files': ['*_b.parquet'], 'first': 3, 'last': 9},
      }
    },
  )
  paths = {name: folder / f'paravt_sft_{name}.parquet' for name in ('a_1', 'a_2', 'b')}
  assert manifest.read(file) == (
    Entry('a', (paths['a_1'], paths['a_2']), 2.5, 0, None),
    Entry('b', (paths['b'],), None, 3, 9),
  )


def test_windows_line_ends_a_byte_order_mark_and_other_alphabets_are_read(folder):
  (folder / 'дані.parquet').write_bytes(b'')
  file = folder / 'mix.json'
  file.write_bytes(
    b'\xef\xbb\xbf' + '{"sources":\r\n {"дані": {"files":\r\n ["дані.parquet"]}}}\r\n'.encode()
  )
  assert [entry.name for entry in manifest.read(file)] == ['дані']


A = {'files': ['paravt_sft_a_1.parquet']}
WRONG = {
  'cannot be read': '{"sources": ',
  r'wanted one key "sources"': {'sources': {'a': A}, 'version': 1},
  'no sources, wanted at least one': {'sources': {}},
  "sources.a: got the key 'wieght', wanted only files, weight, first, last": {
    'sources': {'a': A | {'wieght': 1}}
  },
  'sources.a: got 3, wanted an object': {'sources': {'a': 3}},
  r'sources.a.files: got None, wanted a list': {'sources': {'a': {}}},
  r"sources.a.files: nothing matches 'c\*.parquet' below /": {
    'sources': {'a': {'files': ['c*.parquet']}}
  },
  "in 'a' and again in 'b', wanted each file once": {
    'sources': {'a': A, 'b': {'files': ['*.parquet']}}
  },
  "in 'a' and again in 'a'": {'sources': {'a': {'files': ['paravt_sft_a_*', '*_1.parquet']}}},
  'sources.a.weight: got -1, wanted a number from 0 on': {'sources': {'a': A | {'weight': -1}}},
  'sources.a.weight: got True': {'sources': {'a': A | {'weight': True}}},
  'sources.a.weight: got nan': '{"sources": {"a": {"files": ["*_b.parquet"], "weight": NaN}}}',
  'sources.a.first: got 1.5, wanted a step': {'sources': {'a': A | {'first': 1.5}}},
  r'sources.a.last: got 4, wanted a step above first \(4\)': {
    'sources': {'a': A | {'first': 4, 'last': 4}}
  },
  "'a' comes twice in one object": '{"sources": {"a": {"files": ["*_b.parquet"]}, '
  '"a": {"files": ["*_a_1.parquet"]}}}',
}


@pytest.mark.parametrize('message', WRONG)
def test_a_wrong_manifest_is_refused_in_one_line_that_says_where(folder, message):
  with pytest.raises(DataError, match=message) as error:
    manifest.read(write(folder, WRONG[message]))
  assert (
    str(error.value).startswith('manifest /')
    and 'mix.json' in str(error.value)
    and '\n' not in str(error.value)
  )


def test_a_manifest_that_is_not_there_is_refused(folder):
  with pytest.raises(DataError, match=r'No such file.*check data\.manifest'):
    manifest.read(folder / 'none.json')


def test_files_alone_are_a_source_each_by_their_names(folder):
  found = manifest.of_files([folder / 'paravt_sft_b.parquet', folder / 'paravt_sft_a_1.parquet'])
  assert [entry.name for entry in found] == ['b', 'a_1']
  with pytest.raises(DataError, match="in 'b' and again in 'b'"):
    manifest.of_files([folder / 'paravt_sft_b.parquet', folder / '.' / 'paravt_sft_b.parquet'])
  (folder / 'more').mkdir()
  (folder / 'more' / 'paravt_sft_b.parquet').write_bytes(b'x')
  with pytest.raises(DataError, match="two files give a source named 'b'"):
    manifest.of_files([folder / 'paravt_sft_b.parquet', folder / 'more' / 'paravt_sft_b.parquet'])


def entries(**weights):
  return [Entry(name, (), weight, 0, None) for name, weight in weights.items()]


ROWS = {'a': 300, 'b': 100}


def test_without_any_weight_sources_are_drawn_in_proportion_to_their_rows():
  assert [weight for _, weight in manifest.with_weights(entries(a=None, b=None), {}, ROWS)] == [
    300.0,
    100.0,
  ]


def test_with_one_weight_anywhere_those_without_have_weight_1():
  assert [weight for _, weight in manifest.with_weights(entries(a=3.0, b=None), {}, ROWS)] == [
    3.0,
    1.0,
  ]
  assert [
    weight
    for _, weight in manifest.with_weights(entries(a=None, b=None), {'b': (7.0, 0, None)}, ROWS)
  ] == [1.0, 7.0]


def test_the_recipe_s_choices_go_over_the_manifest_s():
  (a, weight), _ = manifest.with_weights(entries(a=3.0, b=1.0), {'a': (0.5, 2, 8)}, ROWS)
  assert (weight, a.first, a.last) == (0.5, 2, 8)
  with pytest.raises(DataError, match=r'sources.a.weight: got -2'):
    manifest.with_weights(entries(a=3.0), {'a': (-2, 0, None)}, ROWS)


@pytest.mark.parametrize(
  ('weights', 'rows'),
  [({'a': 0.0}, {'a': 5}), ({'a': None}, {'a': 0}), ({'a': 0.0, 'b': 1.0}, {'a': 5, 'b': 0})],
)
def test_nothing_left_to_draw_from_is_an_error(weights, rows):
  with pytest.raises(DataError, match='nothing left to draw from'):
    manifest.with_weights(entries(**weights), {}, rows)

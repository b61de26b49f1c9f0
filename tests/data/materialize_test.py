"""Parquet files with sentinels made files with URIs: row for row, in the same form, atomic, up to
date, and reported.
"""

import datetime
import json
import os
import random

import pyarrow
import pyarrow.parquet as parquet
import pytest

from paravt_jax.data import provenance
from paravt_jax.data.materialize import rewrite_files
from paravt_jax.errors import DataError
from tests.data.made_rows import LISTS, SENTINELS, back, same, there, write

# 10,000 rows that no published corpus would hold, and that valid parquet may.


def a_value(draw, root):
  inside = draw.choice(SENTINELS) + draw.choice(
    [
      'a.mp4',
      'a b/"c".mp4',
      'é/100%25.mp4',
      '\U0001f3ac.mp4',
      'a\\b\n.mp4',
      './x//y/../z',
      'tvg_1/f.mp4',
    ]
  )
  uri = f'file://{root}/{inside}'
  return draw.choice(
    [inside] * 6
    + [
      uri,
      f'file://{uri}',
      f'{root}/{inside}',
      'https://host/' + inside,
      'x/' + inside,
      inside[1:],
      'file:///else/' + inside,
      'selfqa/../../a',
      'selfqa/\0',
      '',
    ]
  )


def a_part(draw, root):
  part = {
    'type': draw.choice(['text', 'video_url', 'image_url', None]),
    'text': None,
    'video_url': None,
    'image_url': None,
  }
  part['text'] = draw.choice(
    [None, '', 'selfqa/not-a-path', '{"url": "selfqa/text"}', 'é\n"\\', '<video>']
  )
  if draw.random() < 0.5:
    part['video_url'] = {
      'url': draw.choice([None, a_value(draw, root), a_value(draw, root)]),
      'nframes': draw.choice([None, 4]),
    }
  if draw.random() < 0.3:
    part['image_url'] = {'url': a_value(draw, root)}
  return part if draw.random() < 0.95 else None


def a_row(draw, root):
  messages = [
    {
      'role': draw.choice(['user', 'assistant', None]),
      'content': draw.choice(
        [None, [], *[[a_part(draw, root) for _ in range(draw.randrange(4))]] * 6]
      ),
    }
    for _ in range(draw.randrange(4))
  ]
  return draw.choice([None, *[messages] * 20])


def a_text(draw, value):
  """JSON as nobody prints it: any white space, any escapes, any order of keys."""
  gap = lambda: draw.choice(['', '', ' ', '\r\n', '\t '])
  if isinstance(value, dict):
    items = list(value.items())
    draw.shuffle(items)
    return (
      '{'
      + ','.join(
        f'{gap()}{a_text(draw, key)}{gap()}:{gap()}{a_text(draw, item)}{gap()}'
        for key, item in items
      )
      + '}'
    )
  if isinstance(value, list):
    return '[' + ','.join(gap() + a_text(draw, item) + gap() for item in value) + ']'
  text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
  if (
    isinstance(value, str)
    and value not in ('url', 'video', 'image', 'video_url', 'image_url')
    and draw.random() < 0.2
  ):
    text = text.replace('/', '\\/') if draw.random() < 0.5 else text.replace('s', '\\u0073')
  return text


def materialized(value, root):
  """What must come out of a value of the fuzzed rows, said without the code under test."""
  if isinstance(value, list):
    return [materialized(item, root) for item in value]
  if isinstance(value, dict):
    return {
      key: f'file://{root}/{item}'
      if key == 'url'
      and item
      and item.startswith(SENTINELS)
      and item not in ('selfqa/../../a', 'selfqa/\0')
      else materialized(item, root)
      for key, item in value.items()
    }
  return value


def test_there_and_back_is_the_identity_on_ten_thousand_fuzzed_rows_of_both_shapes(place):
  draw, root = random.Random(7), place / 'root'
  rows = [a_row(draw, root) for _ in range(10_000)]
  texts = [None if row is None else a_text(draw, row) for row in rows]
  columns = {'json': (texts, pyarrow.string()), 'lists': (rows, LISTS)}
  for name, (column, kind) in columns.items():
    write(
      place / f'in/{name}.parquet',
      {'id': range(10_000), 'messages': pyarrow.array(column, kind), 'videos': [None] * 10_000},
      row_group_size=3000,
    )
  assert there(place).values == back(place).values > 7_000
  for name in columns:
    same(place / f'in/{name}.parquet', place / f'back/{name}.parquet')
    made = parquet.read_table(place / f'out/{name}.parquet')['messages'].to_pylist()
    made = [row if row is None or name == 'lists' else json.loads(row) for row in made]
    assert made == [materialized(row, str(root)) for row in rows]


def test_schema_order_form_and_metadata_of_a_file_are_kept(place):
  schema = pyarrow.schema(
    [
      ('z', pyarrow.timestamp('ms', 'UTC')),
      ('videos', pyarrow.list_(pyarrow.struct([('video', pyarrow.string())]))),
      pyarrow.field('a', pyarrow.int8(), nullable=False, metadata={'unit': 'cm'}),
      ('messages', pyarrow.string()),
    ],
    metadata={'pandas': '{"x": 1}', b'\xff': b'\xfe'},
  )
  now = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
  rows = [
    {
      'z': now,
      'videos': [{'video': 'selfqa/a.mp4'}],
      'a': 1,
      'messages': f'[{{"url": "selfqa/{number}"}}]',
    }
    for number in range(5)
  ]
  table = pyarrow.Table.from_pylist(rows, schema)
  write(place / 'in/ZSTD é.parquet', table, compression='zstd', row_group_size=2, version='2.4')
  write(
    place / 'in/deep/er/mixed.parquet',
    table,
    compression={'messages': 'gzip', 'a': 'snappy'},
    use_dictionary=['messages'],
  )
  write(
    place / 'in/plain.parquet',
    table,
    compression='none',
    store_schema=False,
    version='1.0',
    write_statistics=False,
  )
  write(place / 'in/item.parquet', table, use_compliant_nested_type=False)
  write(place / 'in/empty.parquet', table.slice(0, 0))
  write(
    place / 'in/sorted.parquet',
    table,
    use_deprecated_int96_timestamps=True,
    write_page_index=True,
    use_dictionary=False,
    sorting_columns=[parquet.SortingColumn(2, True, True)],
  )
  parquet.ParquetWriter(place / 'in/no_groups.parquet', schema).close()
  assert (there(place).files, back(place).values) == (7, 50)
  for file in (place / 'in').rglob('*.parquet'):
    name = file.relative_to(place / 'in')
    same(file, place / 'back' / name)
    assert parquet.ParquetFile(place / 'out' / name).schema.equals(parquet.ParquetFile(file).schema)


def test_a_row_group_of_more_than_a_million_rows_stays_one(place):
  write(
    place / 'in/a.parquet',
    {'videos': pyarrow.array(['selfqa/a'] * 1_100_000).dictionary_encode()},
    row_group_size=2_000_000,
  )
  there(place)
  assert parquet.read_metadata(place / 'out/a.parquet').num_row_groups == 1


def test_files_at_any_depth_count_in_folders_of_any_name_but_hidden_ones(place):
  for name in (
    'x/spark.parquet/part.parquet',
    '.hidden/a.parquet',
    'x/.a.parquet',
    'x/a.PARQUET.bak',
  ):
    write(place / 'in' / name, {'videos': ['selfqa/a']})
  there(place)
  made = [
    str(file.relative_to(place / 'out'))
    for file in (place / 'out').rglob('*.parquet')
    if file.is_file()
  ]
  assert made == ['x/spark.parquet/part.parquet']


def test_metadata_that_is_not_in_the_arrow_schema_is_kept_too(place):
  table = pyarrow.table({'videos': ['selfqa/a']}, metadata={'of': 'schema'})
  with parquet.ParquetWriter(place / 'in/a.parquet', table.schema) as writer:
    writer.write_table(table)
    writer.add_key_value_metadata({'of': 'file', 'more': '1'})
  there(place), back(place)
  same(place / 'in/a.parquet', place / 'back/a.parquet')
  assert parquet.read_metadata(place / 'back/a.parquet').metadata[b'of'] == b'file'


def test_a_second_run_is_up_to_date_and_writes_nothing(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a', 'https://host/a']})
  write(place / 'in/b.parquet', {'messages': ['{"url": "longvt_source/tvg_1/here.mp4"}']})
  first = there(place)
  before = {path: path.stat().st_mtime_ns for path in (place / 'out').rglob('*')} | {
    place / 'out': (place / 'out').stat().st_mtime_ns
  }
  second = there(place)
  assert (first.written, first.up_to_date, second.written, second.up_to_date) == (2, 0, 0, 2)
  assert (
    (second.values, second.unknown, second.missing)
    == (first.values, first.unknown, first.missing)
    == (2, {'url': 1}, {'selfqa': 1})
  )
  assert {path: path.stat().st_mtime_ns for path in before} == before
  assert {path.name for path in before} == {
    'out',
    'a.parquet',
    'b.parquet',
    'materialize_report.json',
    'missing.txt',
  }


def test_a_changed_input_is_noticed_said_and_made_again(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  write(place / 'in/b.parquet', {'videos': ['selfqa/b']})
  there(place)
  write(place / 'in/a.parquet', {'videos': ['selfqa/c']})
  report = there(place)
  assert (report.written, report.up_to_date, report.redone) == (
    1,
    1,
    {'a.parquet': ['a.parquet has changed']},
  )
  assert parquet.read_table(place / 'out/a.parquet')['videos'].to_pylist() == [
    f'file://{place}/root/selfqa/c'
  ]


def test_another_root_a_cut_output_and_a_changed_output_are_made_again(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a', 'selfqa/b']}, store_schema=False)
  there(place)
  out = place / 'out/a.parquet'
  out.write_bytes(out.read_bytes()[:-9])
  assert there(place).redone == {'a.parquet': ['it is no whole parquet file']}
  parquet.write_table(parquet.read_table(out).slice(1), out)
  assert there(place).redone == {'a.parquet': ['it has 1 rows, and had 2']}
  (place / 'other').mkdir()
  report = rewrite_files('materialize', place / 'other', place / 'in', place / 'out')
  assert report.redone == {
    'a.parquet': [
      f"it was made with {{'root': '{place}/root'}}, wanted {{'root': '{place}/other'}}"
    ]
  }


def test_a_moved_parquet_folder_is_up_to_date_still(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  there(place)
  (place / 'in').rename(place / 'moved')
  assert (
    rewrite_files('materialize', place / 'root', place / 'moved', place / 'out').up_to_date == 1
  )


def test_files_in_the_output_folder_that_others_made_are_not_overwritten(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  write(place / 'out/a.parquet', {'mine': [1]})
  with pytest.raises(DataError, match='was not written by this command'):
    there(place)
  assert parquet.read_table(place / 'out/a.parquet').column_names == ['mine']


def test_an_output_whose_input_is_gone_is_named_and_stays(place):
  for name in 'ab':
    write(place / f'in/{name}.parquet', {'videos': ['selfqa/a']})
  write(place / 'out/others.parquet', {'mine': [1]})
  there(place)
  (place / 'in/a.parquet').unlink()
  assert there(place).left_over == [str(place / 'out/a.parquet')]
  assert (place / 'out/a.parquet').exists()


def test_provenance_says_from_what_by_which_version_and_hands_an_earlier_record_on(place):
  table = pyarrow.table(
    {'videos': ['selfqa/a']}, metadata={provenance.KEY: json.dumps({'tool': 'maker', 'inputs': []})}
  )
  file = write(place / 'in/x/a.parquet', table)
  there(place), back(place)
  made = json.loads(parquet.read_metadata(place / 'out/x/a.parquet').metadata[provenance.KEY])
  assert made == {
    'tool': 'paravt_jax.data.materialize',
    'version': 1,
    'options': {'root': f'{place}/root'},
    'rows': 1,
    'inputs': [provenance.identity(file, place / 'in')],
    'before': {'tool': 'maker', 'inputs': []},
  }
  assert not parquet.read_schema(
    place / 'out/x/a.parquet'
  ).metadata  # what is made of the rows is not what we made
  raw = (place / 'back/x/a.parquet').read_bytes() + (
    place / 'back/sanitize_report.json'
  ).read_bytes()
  assert b'data.sanitize' in raw and b'maker' in raw
  assert os.fsencode(place) not in raw  # a sanitized file is made to be given away


def test_uris_that_were_there_before_stay_through_the_round_trip_and_a_second_materialize(place):
  rows = ['selfqa/a', f'file://{place}/root/selfqa/b']
  write(place / 'in/a.parquet', {'videos': rows})
  there(place)
  rewrite_files('materialize', place / 'root', place / 'out', place / 'again')
  for source in ('out', 'again'):
    report = rewrite_files('sanitize', place / 'root', place / source, place / f'{source}_back')
    assert (report.values, report.unknown) == (1, {'kept': 1})
    assert parquet.read_table(place / f'{source}_back/a.parquet')['videos'].to_pylist() == rows


def test_a_root_that_is_a_link_is_known_by_both_its_names(place):
  (place / 'link').symlink_to(place / 'root')
  write(place / 'in/a.parquet', {'videos': ['longvt_source/tvg_1/here.mp4']})
  assert rewrite_files('materialize', place / 'link', place / 'in', place / 'out').missing == {}
  assert parquet.read_table(place / 'out/a.parquet')['videos'].to_pylist() == [
    f'file://{place}/link/longvt_source/tvg_1/here.mp4'
  ]
  assert back(place).values == 1

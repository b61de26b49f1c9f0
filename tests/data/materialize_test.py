"""Parquet files with sentinels made files with URIs: row for row, in the same form, atomic, up to
date, and reported.
"""

import datetime
import json
import os
import random
import subprocess
import sys

import pyarrow
import pyarrow.parquet as parquet
import pytest

from paravt_jax.data import materialize, provenance, sanitize
from paravt_jax.data.materialize import rewrite_files
from paravt_jax.errors import DataError
from tests import patience

SENTINELS = ('longvt_source/', 'museg/charades/', 'museg/et_instruct_164k/', 'selfqa/')
PART = pyarrow.struct(
  [
    ('type', pyarrow.string()),
    ('text', pyarrow.string()),
    ('video_url', pyarrow.struct([('url', pyarrow.string()), ('nframes', pyarrow.int64())])),
    ('image_url', pyarrow.struct([('url', pyarrow.string())])),
  ]
)
LISTS = pyarrow.list_(
  pyarrow.struct([('role', pyarrow.string()), ('content', pyarrow.list_(PART))])
)


@pytest.fixture
def place(tmp_path):
  """A media root with one file and one empty file, a parquet folder with nothing in it, and names
  for outputs.
  """
  folder = tmp_path / 'root/longvt_source/tvg_1'
  folder.mkdir(parents=True)
  (folder / 'here.mp4').write_bytes(b'mp4')
  (folder / 'empty.mp4').touch()
  (tmp_path / 'in').mkdir()
  return tmp_path


def write(path, columns, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(
    columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns), path, **options
  )
  return path


def there(place, **options):
  return rewrite_files('materialize', place / 'root', place / 'in', place / 'out', **options)


def back(place):
  return rewrite_files('sanitize', place / 'root', place / 'out', place / 'back')


def same(first, second):
  """Whether two files agree in rows, schema, form and the user's metadata."""
  one, two = parquet.ParquetFile(first), parquet.ParquetFile(second)
  groups = lambda file: [
    file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)
  ]
  form = lambda file: [
    (
      group.sorting_columns,
      [
        (
          column.path_in_schema,
          column.physical_type,
          column.compression,
          column.num_values,
          'RLE_DICTIONARY' in column.encodings,
          column.is_stats_set,
          column.has_offset_index,
        )
        for column in map(group.column, range(group.num_columns))
      ],
    )
    for group in groups(file)
  ]
  own = lambda file: {
    key: value
    for key, value in (file.metadata.metadata or {}).items()
    if key not in (b'ARROW:schema', provenance.KEY)
  }
  bare = lambda file: file.schema_arrow.with_metadata(
    {
      key: value
      for key, value in (file.schema_arrow.metadata or {}).items()
      if key != provenance.KEY
    }
  )
  assert one.read().equals(two.read())
  assert bare(one).equals(bare(two), check_metadata=True)
  assert (form(one), own(one), one.metadata.format_version) == (
    form(two),
    own(two),
    two.metadata.format_version,
  )


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


def test_missing_and_empty_files_are_counted_once_by_bucket_and_listed(place):
  values = [
    'longvt_source/tvg_1/here.mp4',
    'longvt_source/tvg_1/empty.mp4',
    'longvt_source/tvg_2/a\nb.mp4',
    'selfqa/é.mp4',
    'selfqa/é.mp4',
    f'file://{place}/root/selfqa/already.mp4',
    'longvt_source/tvg_1',
    'longvt_source/x/../tvg_1/here.mp4',
    'x/y',
  ]
  write(
    place / 'in/a.parquet',
    {'videos': values, 'messages': ['{"url": "selfqa/\\ud800"}'] * len(values)},
  )
  report = there(place)
  assert (report.referenced, report.empty) == (
    {'longvt_source/tvg': 4, 'longvt_source': 1, 'selfqa': 3},
    {'longvt_source/tvg': 1},
  )
  assert report.missing == {'longvt_source/tvg': 1, 'longvt_source': 1, 'selfqa': 3}
  assert sorted((place / 'out/missing.txt').read_text().splitlines()) == [
    'longvt_source/tvg_1',
    'longvt_source/tvg_1/empty.mp4',
    'longvt_source/tvg_2/a\\nb.mp4',
    'selfqa/\\ud800',
    'selfqa/already.mp4',
    'selfqa/é.mp4',
  ]
  written = json.loads((place / 'out/materialize_report.json').read_text())
  assert written['buckets']['longvt_source/tvg'] == {
    'referenced': 4,
    'missing': 1,
    'empty': 1,
    'first': ['longvt_source/tvg_1/empty.mp4', 'longvt_source/tvg_2/a\nb.mp4'],
  }
  assert (written['files'], written['rows'], written['values'], written['left_alone']) == (
    1,
    9,
    16,
    {'in_root': 1, 'relative_path': 1},
  )


def test_a_file_that_arrives_later_changes_the_report_and_nothing_else(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  there(place)
  (place / 'root/selfqa').mkdir()
  (place / 'root/selfqa/a').write_bytes(b'1')
  report = there(place)
  assert (report.written, report.missing, (place / 'out/missing.txt').read_text()) == (0, {}, '')


def test_progress_counts_rows_after_every_row_group(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a'] * 5}, row_group_size=2)
  seen = []
  for _ in ('written', 'up to date'):
    there(place, progress=lambda done, total: seen.append((done, total)))
  assert seen == [(2, 5), (4, 5), (5, 5)] * 2


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
  assert 'in/b.parquet' in done.stderr and 'make room' in done.stderr
  assert [path.name for path in (place / 'out').iterdir()] == ['a.parquet']
  assert there(place).up_to_date == 1


def command(main, place, *, root='root', source='in', output='out'):
  return main(
    [
      '--root',
      str(place / root),
      '--parquet-dir',
      str(place / source),
      '--output-dir',
      str(place / output),
    ]
  )


def test_the_commands_exit_with_0_done_1_nothing_found_2_bad_root(place, capsys):
  for main in (materialize.main, sanitize.main):
    assert command(main, place) == 1
    assert 'got no *.parquet' in capsys.readouterr().err
  write(place / 'in/text.parquet', {'messages': ['no media']})
  assert command(materialize.main, place) == 1
  assert 'got no media path to change' in capsys.readouterr().err
  write(place / 'in/a.parquet', {'videos': ['selfqa/a', '/x']})
  assert command(materialize.main, place) == 0
  assert command(sanitize.main, place, source='out', output='back') == 0
  assert command(sanitize.main, place, source='back', output='again') == 1
  capsys.readouterr()
  assert (
    command(materialize.main, place, root='nowhere')
    == command(sanitize.main, place, root='nowhere')
    == 2
  )
  assert capsys.readouterr().err.count('check --root') == 2


def test_the_screen_shows_an_aligned_table_and_then_says_up_to_date(place, capsys):
  values = [
    'longvt_source/tvg_1/here.mp4',
    'longvt_source/tvg_1/empty.mp4',
    'museg/et_instruct_164k/a.mp4',
    'x/y',
  ]
  write(place / 'in/a.parquet', {'videos': values})
  table = (
    'bucket                  referenced     missing       empty\n'
    'longvt_source/tvg                2           0           1\n'
    'museg/et_instruct_164k           1           1           0\n'
    'left alone: 1 other relative paths\n'
  )
  assert command(materialize.main, place) == 0
  assert (
    capsys.readouterr().out
    == table + '1 files, 4 rows: 1 written, 0 up to date; 3 sentinels made file:// URIs\n'
  )
  assert command(materialize.main, place) == 0
  assert (
    capsys.readouterr().out
    == table + '1 files, 4 rows: up to date; 3 sentinels made file:// URIs\n'
  )
  assert command(sanitize.main, place, source='out', output='back') == 0
  assert capsys.readouterr().out == (
    'left alone: 1 other relative paths\n'
    '1 files, 4 rows: 1 written, 0 up to date; 3 file:// URIs made sentinels\n'
  )


def test_both_commands_run_as_modules(place):
  write(place / 'in/a.parquet', {'videos': ['selfqa/a']})
  for name, source, output in (('materialize', 'in', 'out'), ('sanitize', 'out', 'back')):
    arguments = [
      '--root',
      place / 'root',
      '--parquet-dir',
      place / source,
      '--output-dir',
      place / output,
    ]
    done = subprocess.run(
      [sys.executable, '-m', f'paravt_jax.data.{name}', *map(str, arguments)],
      capture_output=True,
      text=True,
      check=False,
      timeout=patience.seconds(300),
    )
    assert (done.returncode, done.stderr.strip()) == (0, '')
  same(place / 'in/a.parquet', place / 'back/a.parquet')

"""Rows by number: the same conversations as reading everything gives, whatever the parquet file
looks like.
"""

import collections
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paravt_jax.data import conversations, provenance, table
from paravt_jax.data.fields import Broken, RowOptions
from paravt_jax.errors import DataError

LENIENT = RowOptions(skip_bad_rows=True, require_media=False)


def messages(i):
  return [
    {
      'role': 'user',
      'content': [
        {'type': 'video_url', 'video_url': {'url': f'selfqa/відео {i}.mp4'}},
        {'type': 'text', 'text': f'What\r\nappears at {i}?'},
      ],
    },
    {'role': 'assistant', 'content': [{'type': 'text', 'text': f'red {i}'}]},
  ]


def write(path, values, kind=None, **options):
  columns = {
    'id': pa.array(range(len(values))),
    'messages': pa.array(values, kind),
    'zusatz': pa.array(['x'] * len(values)),
  }
  pq.write_table(pa.table(columns), path, **options)
  return path


def text(count, first=0):
  return [json.dumps(messages(i), ensure_ascii=i % 2 == 0) for i in range(first, first + count)]


def every(files, root, folder):
  opened = table.Table(files, root, LENIENT, folder)
  return [opened[i] for i in range(len(opened))]


@pytest.fixture(params=['memory', 'cache'])
def folder(request, tmp_path):
  return tmp_path / 'cache' if request.param == 'cache' else None


def test_rows_are_those_of_reading_everything_in_any_order(tmp_path, folder):
  files = [
    write(tmp_path / 'a.parquet', text(5), row_group_size=2),
    write(tmp_path / 'b.parquet', text(3, 5)),
  ]
  wanted = conversations.sft_conversations(files, tmp_path, LENIENT, collections.Counter())
  for _ in range(2):  # the second time from the cache, where there is one
    opened = table.Table(files, tmp_path, LENIENT, folder)
    assert len(opened) == 8
    assert [opened[i] for i in (7, 0, 4, 5)] == [wanted[i] for i in (7, 0, 4, 5)]
    assert list(opened) == wanted
  assert opened.name(6) == 'b.parquet:1' == opened[6].id
  for row in (8, -1):
    with pytest.raises(IndexError):
      opened[row]


SHAPES = {
  'lists': ([messages(0), messages(1)], None),
  'large text': (text(2), pa.large_string()),
  'a dictionary': (text(2) * 3, pa.dictionary(pa.int32(), pa.string())),
  'bytes': ([value.encode() for value in text(2)], pa.binary()),
}


@pytest.mark.parametrize('shape', SHAPES)
def test_messages_may_be_text_bytes_a_dictionary_or_lists(tmp_path, folder, shape):
  values, kind = SHAPES[shape]
  got = every([write(tmp_path / 'a.parquet', values, kind, row_group_size=1)], tmp_path, folder)
  (tmp_path / 'b').mkdir()
  wanted = every([write(tmp_path / 'b' / 'a.parquet', text(2))], tmp_path, None)
  assert got[:2] == wanted and len(got) == len(values)


def test_empty_shards_are_passed_over(tmp_path, folder):
  empty = pa.string()
  files = [
    write(tmp_path / 'e1.parquet', [], empty),
    write(tmp_path / 'a.parquet', text(2)),
    write(tmp_path / 'e2.parquet', [], empty),
    write(tmp_path / 'b.parquet', text(1, 2)),
  ]
  assert [row.id for row in every(files, tmp_path, folder)] == [
    'a.parquet:0',
    'a.parquet:1',
    'b.parquet:0',
  ]
  assert len(table.Table(files[:1], tmp_path, LENIENT, folder)) == 0


def test_a_broken_row_is_a_fault_of_that_row_alone_and_of_the_moment_it_is_asked_for(
  tmp_path, folder
):
  file = write(
    tmp_path / 'a.parquet',
    [text(1)[0], '{"role"', json.dumps([{'role': 'tool', 'content': 'x'}]), None],
  )
  opened = table.Table([file], tmp_path, LENIENT, folder)
  assert opened[0].id == 'a.parquet:0'
  for row, fault in (
    (1, 'wanted JSON'),
    (2, "got 'tool'"),
    (3, 'got None, wanted a non-empty list'),
  ):
    with pytest.raises(Broken, match=fault):
      opened[row]
  outside = write(tmp_path / 'b.parquet', [text(1)[0].replace('selfqa/', 'file:///etc/')])
  with pytest.raises(DataError, match='file:///etc/'):
    table.Table([outside], tmp_path, LENIENT, folder)[0]
  latin = write(tmp_path / 'c.parquet', ['[{"role": "ü"}]'.encode('latin-1')], pa.binary())
  with pytest.raises(Broken, match='no UTF-8'):
    table.Table([latin], tmp_path, LENIENT, folder)[0]


def test_the_cache_is_keyed_by_content_and_says_from_what_it_was_made(tmp_path):
  file, folder = write(tmp_path / 'a.parquet', text(2)), tmp_path / 'cache'
  first = table.Table([file], tmp_path, LENIENT, folder)
  assert first.identity == (('a.parquet', provenance.digest(file)),)
  (cached,) = folder.rglob('*.arrow')
  record = json.loads(pa.ipc.open_file(cached).schema.metadata[provenance.KEY])
  assert record['tool'] == 'data.table' and record['inputs'][0]['blake2b'] == provenance.digest(
    file
  )
  write(file, text(2, 7))
  second = table.Table([file], tmp_path, LENIENT, folder)
  assert second[0].messages[1].parts == ('red 7',) and second.identity != first.identity
  assert len(list(folder.rglob('*.arrow'))) == 2 and not list(folder.rglob('*.part'))


def test_a_damaged_or_unwritable_cache_costs_the_cache_and_not_the_run(tmp_path, caplog):
  file, folder = write(tmp_path / 'a.parquet', text(2)), tmp_path / 'cache'
  table.Table([file], tmp_path, LENIENT, folder)
  (cached,) = folder.rglob('*.arrow')
  cached.write_bytes(b'half')
  assert [row.messages[1].parts for row in every([file], tmp_path, folder)] == [
    ('red 0',),
    ('red 1',),
  ]
  assert cached.stat().st_size > 4  # mended
  (tmp_path / 'file').write_bytes(b'')
  assert len(every([file], tmp_path, tmp_path / 'file' / 'cache')) == 2
  assert [record.getMessage().count('data.cache_folder') for record in caplog.records] == [1]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda p: None, 'no such file, wanted a parquet file'),
    (lambda p: p.write_bytes(b'PAR1 no'), 'not a readable parquet file'),
    (
      lambda p: pq.write_table(pa.table({'message': ['x']}), p),
      r"got columns \['message'\], wanted messages",
    ),
  ],
)
def test_a_file_that_is_no_such_parquet_file_is_refused(tmp_path, folder, make, message):
  make(tmp_path / 'a.parquet')
  with pytest.raises(DataError, match=message):
    table.Table([tmp_path / 'a.parquet'], tmp_path, LENIENT, folder)


def test_a_text_that_is_no_utf8_is_a_fault_of_its_row_and_of_its_file_where_all_is_read(
  tmp_path, folder
):
  values = pa.array([text(1)[0].encode(), b'\xff[]'], pa.binary()).view(pa.string())
  file = write(tmp_path / 'a.parquet', values)
  opened = table.Table([file], tmp_path, LENIENT, folder)
  assert opened[0].id == 'a.parquet:0'
  with pytest.raises(Broken, match=r'messages: cannot be read .*wanted UTF-8 text'):
    opened[1]
  with pytest.raises(DataError, match='not a readable parquet file'):
    conversations.sft_conversations([file], tmp_path, LENIENT, collections.Counter())


def test_a_column_whose_name_is_no_utf8_makes_no_readable_file(tmp_path, folder):
  file = write(tmp_path / 'a.parquet', text(1))
  file.write_bytes(file.read_bytes().replace(b'zusatz', b'\xfeusatz'))
  with pytest.raises(DataError, match='not a readable parquet file'):
    table.Table([file], tmp_path, LENIENT, folder)

"""Files of snapshots: rows, videos in folders and archives, subtitles. Small real files."""

import json
import pathlib
import re

import pyarrow
import pyarrow.parquet
import pytest

from paravt_jax.errors import DataError
from paravt_jax.eval import snapshots
from paravt_jax.eval.snapshots import Files
from tests.eval import fixtures

ROWS = [{'a': 1, 'b': 'x', 'c': None}, {'a': 2, 'b': 'y', 'c': [1]}]


def _touch(*paths: pathlib.Path) -> None:
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')


def test_a_hub_cache_leads_to_the_revision_of_main(tmp_path: pathlib.Path):
  _touch(tmp_path / 'snapshots/111/x.json', tmp_path / 'snapshots/222/x.json')
  (tmp_path / 'refs').mkdir()
  (tmp_path / 'refs/main').write_text('111\n')
  assert snapshots.root(tmp_path) == tmp_path / 'snapshots/111'
  assert snapshots.root(tmp_path / 'snapshots/222') == tmp_path / 'snapshots/222'
  with pytest.raises(DataError, match='no such folder'):
    snapshots.root(tmp_path / 'none')


def test_rows_are_the_same_from_parquet_json_and_jsonl(tmp_path: pathlib.Path):
  fixtures.parquet(tmp_path / 'rows.parquet', ROWS)
  (tmp_path / 'rows.json').write_text(json.dumps(ROWS))
  (tmp_path / 'pretty.json').write_text(json.dumps({'version': 1, 'data': ROWS}, indent=2))
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, ROWS)) + '\n\n')
  (tmp_path / 'lines.json').write_text('\n'.join(map(json.dumps, ROWS)))
  for name in ('rows.parquet', 'rows.json', 'pretty.json', 'rows.jsonl', 'lines.json'):
    found = list(snapshots.rows(tmp_path / name, ('a', 'b'), ('z',)))
    assert found == [(0, {'a': 1, 'b': 'x'}), (1, {'a': 2, 'b': 'y'})], name


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('rows.json', '[{"a": 1}]', "missing: ['b']"),
    ('rows.json', '{"a": 1}', 'wanted a list of objects'),
    ('rows.json', '[{"a": 1', 'no readable json file'),
    ('rows.jsonl', '{"a": 1}\nnot json', 'no readable jsonl file'),
    ('rows.json', '[{"a": 1, "b": "half a \\ud83d"}]', 'no readable json file'),
    ('rows.parquet', 'PAR0', 'no readable parquet file'),
  ],
)
def test_a_file_that_cannot_be_read_or_lacks_a_column_is_named(
  tmp_path: pathlib.Path, name: str, content: str, message: str
):
  (tmp_path / name).write_text(content)
  with pytest.raises(DataError, match=re.escape(message)) as error:
    list(snapshots.rows(tmp_path / name, ('a', 'b'), ()))
  assert str(tmp_path / name) in str(error.value)


def test_a_parquet_file_that_lacks_a_column_says_what_it_has(tmp_path: pathlib.Path):
  fixtures.parquet(tmp_path / 'rows.parquet', ROWS)
  with pytest.raises(
    DataError,
    match=re.escape("got the columns ['a', 'b', 'c'], wanted ['a', 'd'] (missing: ['d'])"),
  ):
    list(snapshots.rows(tmp_path / 'rows.parquet', ('a', 'd'), ()))


def test_the_first_glob_that_matches_gives_all_its_files_in_order(tmp_path: pathlib.Path):
  _touch(tmp_path / 'data/test-1.parquet', tmp_path / 'data/test-0.parquet', tmp_path / 'test.json')
  assert [path.name for path in snapshots.row_files(tmp_path, ('x*', 'data/test-*', '*.json'))] == [
    'test-0.parquet',
    'test-1.parquet',
  ]
  with pytest.raises(DataError, match='no row file, wanted one of x, y'):
    snapshots.row_files(tmp_path, ('x', 'y'))


def test_a_video_is_found_by_its_path_then_by_the_end_of_it_then_by_its_name(
  tmp_path: pathlib.Path,
):
  _touch(
    tmp_path / 'data/a.mp4',
    tmp_path / 'other/a.mp4',
    tmp_path / 'deep/down/b.mkv',
    tmp_path / 'videos/Art/0.mp4',
    tmp_path / 'videos/Law/0.mp4',
    tmp_path / 'c.mp4',
    tmp_path / 'c.webm',
    tmp_path / '.cache/d.mp4',
    tmp_path / 'e.txt',
  )
  files = Files([tmp_path], snapshots.VIDEOS)
  assert files.find('a.mp4', ('data',), 1) == tmp_path / 'data/a.mp4'
  assert files.find('a.mp4', (), 1) is None  # which of two, nobody knows
  assert files.find('here/other/a.mp4', (), 1) == tmp_path / 'other/a.mp4'
  assert files.find('b.mp4', ('data',), 1) == tmp_path / 'deep/down/b.mkv'
  assert files.find('Art/0.mp4', (), 2) == tmp_path / 'videos/Art/0.mp4'
  assert files.find('elsewhere/Art/0.mp4', (), 2) == tmp_path / 'videos/Art/0.mp4'
  assert files.find('Biology/0.mp4', (), 2) is None  # never another subject's
  assert files.find('c.webm', (), 1) == tmp_path / 'c.webm'
  assert (
    files.find('d.mp4', (), 1) is None
    and files.find('e.txt', (), 1) is None
    and files.find('', (), 1) is None
  )
  assert len(files) == 7


def test_the_first_folder_counts_where_two_hold_a_file(tmp_path: pathlib.Path):
  _touch(tmp_path / 'one/x/a.mp4', tmp_path / 'two/a.mp4')
  assert (
    Files([tmp_path / 'one', tmp_path / 'two'], snapshots.VIDEOS).find('a.mp4', ('data',), 1)
    == tmp_path / 'one/x/a.mp4'
  )


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: pathlib.Path):
  _touch(tmp_path / 'big/a.mp4')
  (tmp_path / 'snapshot').mkdir()
  (tmp_path / 'snapshot/data').symlink_to(tmp_path / 'big')
  (tmp_path / 'big/again').symlink_to(tmp_path / 'snapshot')
  files = Files([tmp_path / 'snapshot'], snapshots.VIDEOS)
  assert len(files) == 1 and files.find('a.mp4', (), 1) == tmp_path / 'snapshot/data/a.mp4'


def test_archives_are_found_with_their_parts(tmp_path: pathlib.Path):
  _touch(
    *(
      tmp_path / name
      for name in (
        'b.zip',
        'v.tar.part.ab',
        'v.tar.part.aa',
        'x.tar.gz',
        'sub/y.tar',
        'z.tgz',
        'w.tar.gz.01',
        'q.mp4',
      )
    )
  )
  found = [[path.name for path in parts] for parts in snapshots.archives(tmp_path)]
  assert found == [
    ['b.zip'],
    ['y.tar'],
    ['v.tar.part.aa', 'v.tar.part.ab'],
    ['w.tar.gz.01'],
    ['x.tar.gz'],
    ['z.tgz'],
  ]


@pytest.mark.parametrize('kind', ['zip', 'tar', 'tar.gz', 'parts'])
def test_an_archive_is_unpacked_once(tmp_path: pathlib.Path, kind: str):
  files, marks = tmp_path / 'out', tmp_path / 'marks'
  content = {'data/a.mp4': b'A' * 3000, 'data/deeper/b.mp4': b'B' * 2000}
  if kind == 'zip':
    fixtures.zipped(tmp_path / 'v.zip', content)
  else:
    whole = fixtures.tarred(content, 'w:gz' if kind == 'tar.gz' else 'w')
    for at, name in enumerate(
      ['v.tar.part.aa', 'v.tar.part.ab'] if kind == 'parts' else [f'v.{kind}']
    ):
      (tmp_path / name).write_bytes((whole[:2100], whole[2100:])[at] if kind == 'parts' else whole)
  (parts,) = snapshots.archives(tmp_path)
  assert snapshots.members(parts) == (None if kind == 'tar.gz' else list(content))
  assert snapshots.unpack_archives(parts, files, marks)
  assert {
    str(path.relative_to(files)): path.read_bytes()
    for path in files.glob('data/**/*')
    if path.is_file()
  } == content
  (files / 'data/a.mp4').unlink()
  assert not snapshots.unpack_archives(parts, files, marks) and not (files / 'data/a.mp4').exists()
  fresh = fixtures.tarred(content, 'w')
  if kind == 'tar':
    parts[0].write_bytes(fresh + b'\0' * 512)  # another archive of that name
    assert (
      snapshots.unpack_archives(parts, files, marks)
      and (files / 'data/a.mp4').read_bytes() == b'A' * 3000
    )


def test_an_interrupted_unpacking_is_done_again(tmp_path: pathlib.Path):
  whole = fixtures.tarred({'a.mp4': b'A' * 9000, 'b.mp4': b'B' * 9000}, 'w')
  (tmp_path / 'v.tar').write_bytes(whole[:12000])
  parts = (tmp_path / 'v.tar',)
  with pytest.raises(DataError, match='damaged archive'):
    snapshots.unpack_archives(parts, tmp_path / 'out', tmp_path / 'marks')
  assert not (tmp_path / 'out').exists()  # it is looked at before it is unpacked
  (tmp_path / 'v.tar').write_bytes(whole)
  assert snapshots.unpack_archives(parts, tmp_path / 'out', tmp_path / 'marks')
  assert (tmp_path / 'out/b.mp4').stat().st_size == 9000


@pytest.mark.parametrize('name', ['../a.mp4', '/tmp/a.mp4', 'x/../../a.mp4', 'C:/a.mp4'])
def test_a_tar_that_leaves_its_root_is_refused(tmp_path: pathlib.Path, name: str):
  (tmp_path / 'v.tar').write_bytes(fixtures.tarred({name: b'A'}, 'w'))
  with pytest.raises(DataError, match='leaves the root'):
    snapshots.unpack_archives((tmp_path / 'v.tar',), tmp_path / 'out', tmp_path / 'marks')
  assert not (tmp_path / 'out').exists() and not (tmp_path / 'a.mp4').exists()


@pytest.mark.parametrize('name', ['v.zip', 'v.tar', 'v.tar.gz'])
def test_a_damaged_archive_is_named(tmp_path: pathlib.Path, name: str):
  (tmp_path / name).write_bytes(b'no archive at all' * 100)
  with pytest.raises(DataError, match=re.escape(f'{tmp_path / name}: damaged archive')):
    snapshots.unpack_archives((tmp_path / name,), tmp_path / 'out', tmp_path / 'marks')


def test_a_file_of_the_right_size_and_another_content_is_written_again(tmp_path: pathlib.Path):
  (tmp_path / 'v.tar').write_bytes(fixtures.tarred({'a.mp4': b'A' * 9000}, 'w'))
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out/a.mp4').write_bytes(b'B' * 9000)  # as a part that was missing had left it
  (tmp_path / 'marks').mkdir()
  status = (tmp_path / 'v.tar').stat()  # a mark from before contents were compared
  (tmp_path / 'marks/v.tar.json').write_text(
    json.dumps([['v.tar', status.st_size, status.st_mtime_ns]])
  )
  assert snapshots.unpack_archives((tmp_path / 'v.tar',), tmp_path / 'out', tmp_path / 'marks')
  assert (tmp_path / 'out/a.mp4').read_bytes() == b'A' * 9000


def test_a_part_that_is_missing_is_named_before_anything_is_written(tmp_path: pathlib.Path):
  whole = fixtures.tarred({f'{name}.mp4': name.encode() * 9000 for name in 'abc'}, 'w')
  for name, start in (('aa', 0), ('ab', 8000), ('ad', 24000)):
    (tmp_path / f'v.tar.part.{name}').write_bytes(whole[start : start + 8000])
  (parts,) = snapshots.archives(tmp_path)
  for job in (
    lambda: snapshots.members(parts),
    lambda: snapshots.unpack_archives(parts, tmp_path / 'out', tmp_path / 'marks'),
  ):
    with pytest.raises(DataError, match=r'got 3 parts and no v\.tar\.part\.ac, wanted every part'):
      job()
  assert not (tmp_path / 'out').exists() and not (tmp_path / 'marks').exists()


def test_a_whole_archive_and_its_parts_are_two_archives(tmp_path: pathlib.Path):
  _touch(tmp_path / 'v.tar', tmp_path / 'v.tar.aa', tmp_path / 'v.tar.ab', tmp_path / 'w.7z')
  assert [[path.name for path in parts] for parts in snapshots.archives(tmp_path)] == [
    ['v.tar'],
    ['v.tar.aa', 'v.tar.ab'],
  ]
  (line,) = snapshots.unread(tmp_path)
  assert line.startswith(f'{tmp_path}/w.7z: not read: ')


@pytest.mark.parametrize(
  'odd', ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\0', '\t', '\x1f']
)
@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.json'])
def test_only_newlines_end_a_json_line(tmp_path: pathlib.Path, odd: str, name: str):
  lines = [f'{{"a": "one{odd}half"}}', '{"a": "two"}', '', '  ', '{"a": "three"}']
  for end, last in (('\n', '\n'), ('\n', ''), ('\r\n', '\r\n')):
    (tmp_path / name).write_bytes((end.join(lines) + last).encode())
    assert [row['a'] for _, row in snapshots.rows(tmp_path / name, ['a'], [])] == [
      f'one{odd}half',
      'two',
      'three',
    ]


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32', 'utf-16-le', 'utf-8'])
@pytest.mark.parametrize('name', ['rows.jsonl', 'lines.json', 'rows.json'])
def test_json_is_read_in_every_encoding_of_unicode(
  tmp_path: pathlib.Path, encoding: str, name: str
):
  text = (
    json.dumps([{'a': 'é字'}] * 2, ensure_ascii=False)
    if name == 'rows.json'
    else '{"a": "é字"}\n' * 2
  )
  (tmp_path / name).write_bytes(text.encode(encoding))
  assert [row['a'] for _, row in snapshots.rows(tmp_path / name, ['a'], [])] == ['é字'] * 2


@pytest.mark.parametrize('line', ['{"a": ', 'NaN', '\0' * 20, '{"a": 1}{"a": 2}'])
def test_a_line_that_is_no_json_is_named_by_its_number(tmp_path: pathlib.Path, line: str):
  (tmp_path / 'rows.jsonl').write_text('{"a": 1}\n\n' + line + '\n')
  wanted = 'wanted a list of objects' if line == 'NaN' else r'no readable jsonl file \(line 3: '
  with pytest.raises(DataError, match=wanted):
    list(snapshots.rows(tmp_path / 'rows.jsonl', ['a'], []))


def test_a_parquet_file_with_a_text_that_is_no_utf8_is_refused(tmp_path: pathlib.Path):
  broken = pyarrow.array([b'\xff'], pyarrow.binary()).view(pyarrow.string())
  pyarrow.parquet.write_table(pyarrow.table({'a': broken}), tmp_path / 'rows.parquet')
  with pytest.raises(DataError, match='no readable parquet file'):
    list(snapshots.rows(tmp_path / 'rows.parquet', ('a',), ()))

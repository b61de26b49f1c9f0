"""Which files are parts of one archive, what is missing among them, and their bytes as one file."""

import pathlib
import string

import pytest

from paravt_jax.data import archive_parts
from paravt_jax.data.archive_parts import Joined, gap, groups

LETTERS = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]


def _groups(*names: str) -> list[list[str]]:
  return [[path.name for path in group] for group in groups(map(pathlib.Path, names))]


def _gap(*names: str) -> str:
  (group,) = groups(map(pathlib.Path, names))
  return gap(group)


@pytest.mark.parametrize(
  'names',
  [
    ['v.tar.part.aa', 'v.tar.part.ab', 'v.tar.part.ac'],
    ['v.tar.gz.partaa', 'v.tar.gz.partab'],
    ['v.tar.aaa', 'v.tar.aab'],
    ['v.taraa', 'v.tarab'],
    ['v.tar.zst_aa', 'v.tar.zst_ab'],
    ['v.zip.001', 'v.zip.002'],
    ['v.tar.gz.part0', 'v.tar.gz.part1'],
    ['v.tar.00', 'v.tar.01'],
    [f'v.tar.part{i}' for i in range(1, 13)],
    ['v.tar-part-1-of-2', 'v.tar-part-2-of-2'],
    ['V.TAR.PART.AA', 'V.TAR.PART.AB'],
  ],
)
def test_parts_are_joined_in_the_order_of_their_letters_or_numbers_and_nothing_is_missing(names):
  assert _groups(*sorted(names, reverse=True)) == [names] and _gap(*sorted(names)) == ''


def test_split_goes_on_with_longer_suffixes_when_it_runs_out_of_short_ones():
  for word in ('.', '.part.'):  # .gz, .xz and .md among them are parts, for those beside them are
    names = [f'v.tar{word}{index}' for index in [*LETTERS[: LETTERS.index('za')], 'zaaa', 'zaab']]
    assert _groups(*names) == [names] and _gap(*names) == ''
  numbers = [f'v.tar.{i:02d}' for i in range(90)] + ['v.tar.9000', 'v.tar.9001']
  assert _groups(*numbers) == [numbers] and _gap(*numbers) == ''


def test_split_counts_in_sixteens_too_and_with_single_letters():
  names = [f'v.tar.{i:02x}' for i in range(40)]
  assert _groups(*reversed(names)) == [names] and _gap(*names) == ''
  assert _gap(*names[:11], *names[13:]) == 'no v.tar.0b, v.tar.0c'
  assert (
    _gap(*names[:10], *names[16:]) == 'no v.tar.0a, v.tar.0b, v.tar.0c, v.tar.0d, v.tar.0e, ...'
  )
  letters = [f'v.tar.part.{letter}' for letter in 'abc']
  assert _groups(*letters) == [letters] and _gap(letters[0], letters[2]) == 'no v.tar.part.b'
  assert _groups('v.tar.a', 'v.tar.Z') == []


@pytest.mark.parametrize(
  ('names', 'lost'),
  [
    (['v.tar.part.aa', 'v.tar.part.ac'], 'no v.tar.part.ab'),
    (['v.tar.part.ab', 'v.tar.part.ac'], 'no v.tar.part.aa'),
    (['v.tar.ab', 'v.tar.ac'], 'no v.tar.aa'),
    (['v.zip.001', 'v.zip.004'], 'no v.zip.002, v.zip.003'),
    (['v.zip.002'], 'no v.zip.001'),
    (['v.tar.part9', 'v.tar.part11', *(f'v.tar.part{i}' for i in range(1, 9))], 'no v.tar.part10'),
    ([f'v.tar.{i}' for i in (0, 8)], 'no v.tar.1, v.tar.2, v.tar.3, v.tar.4, v.tar.5, ...'),
    (['v.tar.part1of3', 'v.tar.part2of3'], 'no v.tar.part3'),
    (['v.tar.1', 'v.tar.01'], 'two parts 01 and 1'),
  ],
)
def test_a_part_that_is_missing_or_there_twice_is_named(names, lost):
  assert _gap(*names).replace('two parts 1 and 01', 'two parts 01 and 1') == lost


def test_what_stands_beside_an_archive_is_no_part_of_it():
  beside = [
    'v.zip.md',
    'v.zip.json',
    'v.zip.sha256',
    'v.tar.gz.asc',
    'v.tar.idx',
    'v.zip.lock',
    'v.target',
    'v.zip.part',
    'notes.txt',
  ]
  assert _groups('v.zip', 'v.tar.gz', 'v.tar', *beside) == [['v.tar'], ['v.tar.gz'], ['v.zip']]
  assert _groups('v.tar', 'v.tar.aa', 'v.tar.ab', 'v.tar.md') == [
    ['v.tar'],
    ['v.tar.aa', 'v.tar.ab'],
  ]


def test_parts_of_several_archives_and_folders_are_kept_apart():
  assert _groups('a/v.tar.aa', 'b/v.tar.aa', 'a/w.tar.aa', 'a/v.tar.ab', 'a/v.tar.001') == [
    ['v.tar.001'],
    ['v.tar.aa', 'v.tar.ab'],
    ['w.tar.aa'],
    ['v.tar.aa'],
  ]


def test_a_zip_over_several_disks_is_known_by_what_stands_beside_it():
  paths = [pathlib.Path(name) for name in ('a.zip', 'a.z01', 'A/a.zip', 'b.zip', 'b.z1')]
  assert archive_parts.over_disks(paths) == {pathlib.Path('a.zip')}


def test_joined_files_read_seek_and_give_bytes_from_anywhere_as_one(tmp_path):
  for name, data in (('a', b'0123'), ('b', b''), ('c', b'456'), ('d', b'789')):
    (tmp_path / name).write_bytes(data)
  with Joined([tmp_path / name for name in 'abcd']) as file:
    assert file.readall() == b'0123456789' and file.read(1) == b''
    assert file.seek(-4, 2) == 6 and file.readall() == b'6789'
    assert [file.pread(9, at) for at in (0, 3, 4, 9, 10, 99)] == [
      b'0123',
      b'3',
      b'456',
      b'9',
      b'',
      b'',
    ]
    with pytest.raises(OSError, match='Invalid argument'):
      file.seek(-11, 2)
  with pytest.raises(FileNotFoundError):
    Joined([tmp_path / 'a', tmp_path / 'no'])


def test_what_macos_leaves_beside_an_archive_is_no_archive():
  assert groups([pathlib.Path('d/._a.tar'), pathlib.Path('d/a.tar')]) == [
    (pathlib.Path('d/a.tar'),)
  ]

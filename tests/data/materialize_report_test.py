"""What `materialize` and `sanitize` say of what they did: the report, the screen, the exit status."""

import json
import subprocess
import sys

from paravt_jax.data import materialize, sanitize
from tests import patience
from tests.data.made_rows import same, there, write


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

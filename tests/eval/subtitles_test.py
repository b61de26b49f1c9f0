"""Subtitle files of every encoding and shape that they come in, as plain lines; one that says
nothing is an error.
"""

import itertools
import pathlib

import pytest

from paravt_jax.errors import DataError
from paravt_jax.eval import subtitles
from paravt_jax.eval.subtitles import NoSubtitles, Subtitles, decode_text, subtitle_lines
from tests.eval import fixtures

ONE, TWO = '00:00:01,000 --> 00:00:02,500', '00:00:03,000 --> 00:00:04,000'
WESTERN, CHINESE = f'1\n{ONE}\nCafé déjà “oui”\n', f'1\n{ONE}\n你好，世界\n'
BOTH = ['1.0 --> 2.5 hi', '3.0 --> 4.0 you']


def test_subtitles_become_plain_lines():
  assert subtitles.subtitle_lines(fixtures.SRT) == [
    '0.5 --> 2.0 hello there',
    '2.0 --> 3.2 all of you',
  ]
  rolling = (
    '\ufeff1\r\n01:00:00,000 --> 01:00:01,000\r\n{\\an8}one\r\n\r\n2\r\n01:00:01,000 --> '
    '01:00:02,500\r\none\r\n\r\n'
  )
  assert subtitles.subtitle_lines(
    rolling
    + '3\n00:05.2 --> 00:06.0 align:start\ntwo\n\nstill two\n\n4\n00:00:09,0 --> 00:00:10,0\n\n'
  ) == ['3600.0 --> 3601.0 one', '5.2 --> 6.0 two still two']
  assert subtitles.subtitle_lines('') == []


def test_subtitles_that_are_too_long_are_thinned_evenly():
  lines = [f'{i}.0 --> {i + 1}.0 {"word" * 5}' for i in range(100)]
  assert subtitles.sample_lines(lines[:3], 10_000) == '\n'.join(lines[:3])
  text = subtitles.sample_lines(lines, 400)
  kept = [int(line.split('.')[0]) for line in text.split('\n')]
  assert 350 <= len(text) <= 400
  steps = {after - before for before, after in itertools.pairwise(kept)}
  assert kept[0] == 0 and kept[-1] > 85 and max(steps) - min(steps) <= 1
  # two of three would be allowed by their mean length, but the first two are longer than that
  assert subtitles.sample_lines(['x' * 40, 'y' * 40, 'z'], 60) == 'x' * 40
  # 3 bytes a character: two lines are 13
  wide = ['字字', '字字', '字字']
  assert (
    subtitles.sample_lines(wide, 13) == '字字\n字字' and subtitles.sample_lines(wide, 12) == '字字'
  )
  assert subtitles.sample_lines(['a line'], 3) == '' and subtitles.sample_lines([], 3) == ''


@pytest.mark.parametrize(
  'text',
  [
    f'1\n{ONE}\nhi\n\n2\n{TWO}\nyou\n',
    f'1\n{ONE}\nhi\n2\n{TWO}\nyou',  # no blank lines
    f'{ONE}\nhi\n\n{TWO}\nyou\n',  # no numbers
    f'{ONE}\nhi\n{TWO}\nyou\n',
    f'1\n{ONE}\nhi\n7\n{TWO}\nyou\n',  # numbers that jump
    f'1\n\n{ONE}\n\nhi\n\n\n2\n\n{TWO}\n\nyou\n',  # a blank line after every line
    f'1\r\r\n{ONE}\r\r\nhi\r\r\n\r\r\n2\r\r\n{TWO}\r\r\nyou\r\r\n',
    f'1\r{ONE}\rhi\r\r2\r{TWO}\ryou\r',
    f'\n\n\ufeff1\n{ONE}\nhi\n\n\ufeff2\n{TWO}\nyou\0\n',  # two files joined
    '1\n00:00:01, 000 --> 00: 00 :02 , 500\nhi\n\n2\n 0 : 0 : 3.0-->00:00:04\nyou',
    '00:01.000 --> 00:02.500\nhi\n\n00:03.000 --> 00:04.000\nyou',
    '1\n00:00:01:000 -> 00:00:02:500\nhi\n\n2\n00：00：03，000 --> 00：00：04，000\nyou',
    f'1\n{ONE} hi\n\n2\n{TWO} X1:201 X2:516 Y1:397 Y2:423\nyou',
    f'1\n{ONE}\n<font color="red">{{\\an8}}<i>hi</i></font>\n\n2\n{TWO} '
    'position:10%,start\n\\Nyou\\h\n',
    'WEBVTT\nKind: captions\n\nSTYLE\n::cue {}\n\nNOTE a --> b\nmore\n\nintro\n00:01.000 --> '
    '00:02.500 align:start\n<v Bob>hi</v>\n\n'
    'NOTE x\ny\n\nname\n00:03.000 --> 00:04.000\n<00:03.500><c.yellow>you</c>\n',
  ],
)
def test_cues_are_found_by_their_times_however_they_are_written(text):
  assert subtitle_lines(text) == BOTH


def test_blank_lines_numbers_arrows_and_signs_inside_a_cue_are_its_text():
  assert subtitle_lines(f'1\n{ONE}\nhi\n\nthere\n\n2\n{TWO}\nyou') == [
    '1.0 --> 2.5 hi there',
    '3.0 --> 4.0 you',
  ]
  assert subtitle_lines(f'{ONE}\n42\n\n{TWO}\na --> b\n7') == [
    '1.0 --> 2.5 42',
    '3.0 --> 4.0 a --> b 7',
  ]
  assert subtitle_lines(f'1\n{ONE}\n1 < 2 & c > d &amp; &lt;e&gt;\n') == [
    '1.0 --> 2.5 1 < 2 & c > d & <e>'
  ]
  assert subtitle_lines('[Script Info]\nDialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,hi') == []


@pytest.mark.parametrize(
  ('data', 'encoding', 'guessed'),
  [
    (CHINESE.encode(), 'utf-8', False),
    (CHINESE.encode('utf-8-sig'), 'utf-8', False),
    (CHINESE.encode('utf-16'), 'utf-16-le', False),
    (b'\xfe\xff' + CHINESE.encode('utf-16-be'), 'utf-16-be', False),
    (CHINESE.encode('utf-32'), 'utf-32-le', False),
    (b'\0\0\xfe\xff' + CHINESE.encode('utf-32-be'), 'utf-32-be', False),
    (CHINESE.encode('utf-16-le'), 'utf-16-le', False),
    (CHINESE.encode('utf-16-be'), 'utf-16-be', False),
    (CHINESE.encode('utf-32-le'), 'utf-32-le', False),
    (CHINESE.encode('utf-32-be'), 'utf-32-be', False),
    (CHINESE.encode('gb18030'), 'gb18030', True),
    (b'\x84\x31\x95\x33' + CHINESE.encode('gb18030'), 'gb18030', False),
  ],
)
def test_a_byte_order_mark_decides_then_nuls_then_utf8_and_the_rest_is_a_guess(
  data, encoding, guessed
):
  text, found, guess = decode_text(data)
  assert (subtitle_lines(text), found, guess) == (['1.0 --> 2.5 你好，世界'], encoding, guessed)


def test_western_bytes_that_are_no_unicode_are_read_as_windows_writes_them_and_counted_as_a_guess():
  text, encoding, guessed = decode_text(WESTERN.encode('cp1252'))
  assert (subtitle_lines(text), encoding, guessed) == (
    ['1.0 --> 2.5 Café déjà “oui”'],
    'cp1252',
    True,
  )


def test_a_torn_character_does_not_make_utf8_another_encoding_but_is_counted():
  text, encoding, guessed = decode_text((CHINESE * 9).encode()[:-2])
  assert (encoding, guessed) == ('utf-8', True) and text.startswith(CHINESE)
  assert decode_text(CHINESE.encode('utf-16') + b'x')[1:] == ('utf-16-le', True)


def test_a_file_says_how_it_was_read(tmp_path: pathlib.Path):
  (tmp_path / 'a.srt').write_bytes(CHINESE.encode('gb18030'))
  assert subtitles.read(tmp_path / 'a.srt', 100) == Subtitles(
    '1.0 --> 2.5 你好，世界', 'gb18030', True
  )


@pytest.mark.parametrize(
  ('data', 'said'),
  [
    (b'', 'got an empty file'),
    (b'\n\n', 'got no cue with a text in 2 bytes'),
    (b'no subtitles at all', 'got no cue with a text in 19 bytes'),
    (f'1\n{ONE}\n\n2\n{TWO}\n<i></i>\n'.encode(), r'got no cue with a text .*\(read as utf-8\)'),
    (b'WEBVTT\n\n', 'got no cue'),
  ],
)
def test_a_file_that_yields_no_cue_is_an_error_with_a_way_out(
  tmp_path: pathlib.Path, data: bytes, said: str
):
  (tmp_path / 'a.srt').write_bytes(data)
  with pytest.raises(NoSubtitles, match=said + '.*wanted srt or vtt; fetch it again, or remove it'):
    subtitles.read(tmp_path / 'a.srt', 100)
  with pytest.raises(DataError, match='Is a directory, wanted a readable subtitle file'):
    subtitles.read(tmp_path, 100)


def test_people_are_told_of_guesses_and_of_files_that_gave_nothing():
  assert subtitles.describe_encodings(['shown', 'none']) == ''
  assert subtitles.describe_encodings(
    [
      'shown',
      'shown, read as cp1252',
      'shown, read as gb18030',
      'shown, read as cp1252',
      'unreadable',
    ]
  ) == (
    'subtitle files: 3 are no clean Unicode and were read as cp1252 (2), gb18030 (1); 1 give '
    'no cue, and their questions are errors'
  )


def test_a_file_that_ends_inside_a_character_keeps_its_encoding():
  cut = f'1\n{ONE}\nCafé\n\n2\n{TWO}\né'.encode()[:-1]
  text, encoding, guessed = decode_text(cut)
  assert (encoding, guessed) == ('utf-8', True)
  assert subtitle_lines(text) == ['1.0 --> 2.5 Café']
  for encoding in ('utf-16', 'utf-16-be'):  # a stray byte behind whole ones
    text, _, _ = decode_text(f'1\n{ONE}\nhi\n\n2\n{TWO}\nyou'.encode(encoding) + b'\n')
    assert subtitle_lines(text) == BOTH

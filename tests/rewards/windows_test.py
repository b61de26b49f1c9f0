"""Times and ranges as models write them, by the specification."""

import time

import pytest

from paravt_jax.rewards.windows import time_window


@pytest.mark.parametrize(
  'said, window',
  [
    ('2 minutes 10 seconds to 2 minutes 20 seconds', (130, 140)),
    ('1m10s to 1m20s', (70, 80)),
    ('1h2m to 1h3m', (3720, 3780)),
    ('1 hour, 2 minutes and 3 seconds to 1 hour 3 minutes', (3723, 3780)),
    ('[1 min 10 s, 1 min 20 s]', (70, 80)),
    ('1 minute and 10 seconds to 1 minute and 20 seconds', (70, 80)),
    ('between 1 and 2 minutes', (60, 120)),
    ('from 1 to 2 minutes 30 seconds', (60, 150)),
    ('5m to 9m', (300, 540)),
  ],
)
def test_numbers_with_units_in_a_row_are_one_time(said, window):
  assert time_window(said) == window


@pytest.mark.parametrize(
  'said',
  [
    '12-20',
    '12–20',
    '12—20',
    '12−20',
    '12 ~ 20',
    '12 → 20',
    '12 until 20',
    '12 and 20',
    '12 to 20',
  ],
)
def test_a_range_is_joined_by_any_of_its_signs(said):
  assert time_window(said) == (12, 20)


@pytest.mark.parametrize(
  'said',
  [
    'start: 12, end: 20',
    '{"start_time": 12.0, "end_time": 20}',
    'starts at 0:12 and ends at 0:20',
    'Start time: 00:12\nEnd time: 00:20',
    'start 12 s; end 20 s',
  ],
)
def test_a_range_may_name_its_times(said):
  assert time_window(said) == (12, 20)


def test_a_range_with_a_unit_comes_before_others_and_a_bracketed_pair_before_both():
  assert time_window('3 to 4 s, frames 7 to 9') == (3, 4)
  assert time_window('[1, 2], which is 1m1s to 1m2s') == (1, 2)


def test_a_time_with_more_than_59_seconds_beside_its_minutes_is_malformed():
  assert time_window('1 minute 90 seconds to 3 minutes') is None
  assert time_window('after 1 minute, 10 to 20') == (10, 20)


def test_one_time_is_no_range():
  assert time_window('at 1 minute 10 seconds') is None


@pytest.mark.parametrize(
  'said',
  [
    '<12.0 seconds> to <20.0 seconds>',
    '[<12.0 seconds>, <20.0 seconds>]',
    '00:00:12,000 --> 00:00:20,000',
    '**12** to **20**',
    '**Start:** 12\n**End:** 20',
    '12 sec. to 20 sec.',
    '[12 sec., 20 sec.]',
    'from around 12 to approximately 20 seconds',
    'starts around 12 seconds and ends at about 20 seconds',
    'Start - 12\nEnd - 20',
  ],
)
def test_times_are_read_as_the_overview_subtitles_and_markdown_write_them(said):
  assert time_window(said) == (12, 20)


@pytest.mark.parametrize(
  'said', ['1' * 100_000 + ' to ' + '2' * 100_000, 'start: 1' + '0' * 100_000 + ' end: 2']
)
def test_a_run_of_digits_takes_linear_time(said):
  began = time.process_time()
  assert time_window(said) is None
  assert time.process_time() - began < 2.0

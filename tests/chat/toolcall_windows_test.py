"""What a call means on a video: a window, or a refusal that says why."""

import math

import pytest

from paravt_jax.chat import toolcalls
from paravt_jax.types import ResultStatus, ToolCall, Window
from tests.chat.calls import GOOD, crop


@pytest.mark.parametrize(
  'arguments, window',
  [
    ({'start_time': 1, 'end_time': 2}, Window(1, 2)),
    ({'start_time': '1.5', 'end_time': ' 2 '}, Window(1.5, 2)),
    ({'start_time': '00:10', 'end_time': '01:00.5'}, Window(10, 60.5)),
    ({'start_time': '0:00:10', 'end_time': '00:01:05'}, Window(10, 65)),
    ({'start_time': -3, 'end_time': 1000}, Window(0, 100)),
    ({'start_time': '-3', 'end_time': 10**400}, Window(0, 100)),
    ({'video_path': '/etc/passwd', 'start_time': 1, 'end_time': 2, 'other': []}, Window(1, 2)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': 8}, Window(1, 2, 8)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': 1}, Window(1, 2, 2)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': 10**30}, Window(1, 2, 16)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': '-4'}, Window(1, 2, 2)),
    ({'start_time': 1, 'end_time': 2, 'num_frames': None}, Window(1, 2)),
  ],
)
def test_a_call_means_a_window_within_the_video(arguments, window):
  assert toolcalls.resolve_window(crop(**arguments), 100.0) == window


@pytest.mark.parametrize(
  'arguments',
  [
    {},
    {'start_time': 1},
    {'end_time': 1},
    {'start_time': 5, 'end_time': 5},
    {'start_time': 6, 'end_time': 5},
    {'start_time': 100, 'end_time': 120},
    {'start_time': -5, 'end_time': 0},
    {'start_time': math.nan, 'end_time': 5},
    {'start_time': 1, 'end_time': math.inf},
    {'start_time': True, 'end_time': 5},
    {'start_time': None, 'end_time': 5},
    {'start_time': [1], 'end_time': 5},
    {'start_time': '1 apple', 'end_time': 5},
    {'start_time': '1:75', 'end_time': 500},
    {'start_time': '1:70:00', 'end_time': 5000},
    {'start_time': 'nan', 'end_time': 5},
    {'start_time': '1e999', 'end_time': 5},
    {'start_time': '', 'end_time': 5},
    {'start_time': 1, 'end_time': 5, 'num_frames': 'x'},
    {'start_time': 1, 'end_time': 5, 'num_frames': True},
    {'start_time': 1, 'end_time': 5, 'num_frames': '0:05'},
    {'start_time': 1, 'end_time': 5, 'num_frames': math.inf},
  ],
)
def test_arguments_that_mean_no_window_are_refused_with_a_text(arguments):
  refused = toolcalls.resolve_window(crop(**arguments), 100.0)
  assert isinstance(refused, toolcalls.Refusal) and refused.status is ResultStatus.BAD_ARGUMENTS
  assert refused.message.startswith('Error: ')


def test_a_clock_has_less_than_sixty_seconds_and_with_hours_less_than_sixty_minutes():
  assert toolcalls.seconds('90:00') == 5400.0 and toolcalls.seconds('1:59:59.5') == 7199.5
  assert (
    toolcalls.seconds('1:60:00') is toolcalls.seconds('0:60') is toolcalls.seconds('1:5') is None
  )


def test_an_unknown_name_is_refused_as_such():
  refused = toolcalls.resolve_window(ToolCall('zoom', {'start_time': 1, 'end_time': 2}), 100.0)
  assert refused.status is ResultStatus.UNKNOWN_TOOL and 'crop_video' in refused.message


def test_non_finite_json_numbers_are_calls_that_get_refused():
  for number in ('NaN', 'Infinity', '1e999'):
    (call,) = toolcalls.parse(GOOD.replace('"end_time": 2', f'"end_time": {number}'))
    assert toolcalls.resolve_window(call, 10.0).status is ResultStatus.BAD_ARGUMENTS


def test_frame_limits_are_the_recipes():
  assert (
    toolcalls.resolve_window(
      crop(start_time=1, end_time=2, num_frames=9), 10, min_frames=3, max_frames=4
    ).num_frames
    == 4
  )

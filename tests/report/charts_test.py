"""Charts: what is drawn where, checked on the numbers in the drawing."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from paravt_jax.report import charts
from paravt_jax.report.charts import Series


def _polylines(svg: str) -> list[list[tuple[float, float]]]:
  found = re.findall(r'<polyline[^>]*points="([^"]+)"', svg)
  return [[tuple(map(float, point.split(','))) for point in points.split()] for points in found]


def _texts(svg: str) -> list[str]:
  return [element.text for element in ET.fromstring(svg).iter('text')]


def test_a_line_runs_from_the_left_edge_to_the_right_and_upwards_when_values_rise():
  svg = charts.lines(
    [Series('a', [(0, 0.0), (10, 1.0)], 'red')], bounds=(0, 1), log=False, label='x'
  )
  ((first, last),) = _polylines(svg)
  assert first == (46.0, 184.0)  # left and bottom margins: 46, 210 - 26
  assert last == (430.0, 10.0)  # right and top margins: 440 - 10, 10


def test_the_axes_carry_round_numbers():
  svg = charts.lines(
    [Series('a', [(0, 0.0), (10, 1.0)], 'red')], bounds=(0, 1), log=False, label='x'
  )
  assert _texts(svg) == ['0', '0.2', '0.4', '0.6', '0.8', '1', '0', '2', '4', '6', '8', '10']


def test_a_logarithmic_axis_gives_every_power_the_same_height_and_leaves_out_zeros():
  svg = charts.lines(
    [Series('a', [(0, 1e-6), (1, 1e-5), (2, 1e-4), (3, 0.0)], 'red')],
    bounds=None,
    log=True,
    label='x',
  )
  ((a, b, c),) = _polylines(svg)
  assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.15)
  assert _texts(svg)[:3] == ['1e-06', '1e-05', '1e-04']


def test_long_series_are_drawn_raw_and_smoothed():
  points = [(i, float(i % 2)) for i in range(40)]
  raw, smooth = _polylines(
    charts.lines([Series('a', points, 'red')], bounds=(0, 1), log=False, label='x')
  )
  assert len(raw) == len(smooth) == 40
  height = lambda line: max(y for _, y in line) - min(y for _, y in line)
  assert height(smooth[2:-2]) < 40 < height(raw)


def test_a_single_point_is_no_chart():
  assert charts.lines([Series('a', [(0, 1.0)], 'red')], bounds=None, log=False, label='x') == ''
  assert charts.areas([Series('a', [(0, 1.0)], 'red')], label='x') == ''


def test_the_end_of_a_line_is_the_mean_of_its_last_twentieth_and_of_a_short_one_its_last_point():
  assert charts.end([(0, 1.0), (1, 5.0)]) == 5.0
  long = [(step, 0.0) for step in range(117)] + [(117, 3.0), (118, 3.0), (119, 8.0)]
  assert charts.end(long) == 14.0 / 7  # the last 1 + 120 // 20 points
  svg = charts.lines([Series('a', long, 'red')], bounds=(0, 8), log=False, label='x')
  (bold,) = re.findall(r'class="line"[^>]*points="([^"]+)"', svg)
  top, bottom = 10, 184  # of 0 .. 8
  assert float(bold.split(',')[-1]) == pytest.approx(bottom - 2.0 / 8 * (bottom - top), abs=0.1)


def test_a_constant_series_is_drawn():
  flat = Series('a', [(0, 2.0), (1, 2.0)], 'red')
  ((first, last),) = _polylines(charts.lines([flat], bounds=None, log=False, label='x'))
  assert first[1] == last[1] and 10 < first[1] < 184


def test_areas_stand_on_each_other():
  svg = charts.areas(
    [Series('a', [(0, 1.0), (1, 1.0)], 'red'), Series('b', [(0, 2.0), (1, 2.0)], 'blue')], label='x'
  )
  low, high = (points.split() for points in re.findall(r'<polygon[^>]*points="([^"]+)"', svg))
  assert low[:2] == high[:1:-1]  # the top edge of a is the bottom edge of b, walked back


def test_the_pointer_is_told_steps_and_values():
  both = [Series('a', [(0, 0.5), (2, 1.0)], 'red'), Series('b', [(0, 3.0), (1, 4.0)], 'blue')]
  svg = charts.lines(both, bounds=None, log=False, label='x')
  data = json.loads(ET.fromstring(svg).attrib['data-hover'])
  assert data['steps'] == [0, 1, 2]
  assert [(s['name'], s['y']) for s in data['series']] == [
    ('a', [0.5, None, 1.0]),
    ('b', [3.0, 4.0, None]),
  ]


def test_bars_are_as_high_as_their_values_and_an_unknown_value_has_none():
  svg = charts.bars(
    [0.5, None], [(0.25, 0.75), None], ['red', 'blue'], top=1.0, texts=['50 %', '–'], label='a & b'
  )
  (bar,) = ET.fromstring(svg).findall('.//rect')
  assert float(bar.attrib['height']) == 47.0  # half of 112 - 18
  assert re.search(r'class="whisker" d="M30.0 88.5V41.5"', svg)
  assert _texts(svg) == ['50 %', '–']


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0, '0'), (0.1234, '0.123'), (3e-5, '3e-05'), (12345, '12.3k'), (1.0, '1'), (-0.5, '-0.5')],
)
def test_numbers_are_short(value, text):
  assert charts.number(value) == text


def test_ticks_are_round():
  assert charts.ticks(0, 1, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  assert charts.ticks(0.31, 0.72, 5) == [0.4, 0.5, 0.6, 0.7]
  assert charts.ticks(5, 5, 3) == [5.0]


def test_a_band_is_shaded_behind_its_line_and_widens_the_axis():
  series = Series('a', [(0, 0.5), (10, 0.5)], 'red', [(0, 0.0, 1.0), (10, 0.0, 1.0)])
  svg = charts.lines([series], bounds=(0, 1), log=False, label='x')
  (drawn,) = re.findall(r'<polygon[^>]*points="([^"]+)"', svg)
  assert drawn == '46.0,10.0 430.0,10.0 430.0,184.0 46.0,184.0'  # high from left to right, low back
  assert svg.index('<polygon') < svg.index('<polyline')

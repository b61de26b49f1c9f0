"""Charts as SVG text. Colours are CSS variables of the page, so that one drawing serves the light
and the dark theme.
"""

import dataclasses
import html
import json
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 440, 210
_LEFT, _RIGHT = 46, 10
_TOP, _BOTTOM = 10, 26
SMOOTH_FROM = 24  # points from which the smoothed line is drawn over the faint raw line


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of a chart."""

  name: str
  points: Sequence[tuple[float, float]]  # (step, value), steps ascending
  color: str  # a CSS colour, such as 'var(--c1)'
  band: Sequence[tuple[float, float, float]] = ()  # (step, low, high), shaded behind the line


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Maps data to drawing coordinates."""

  x0: float
  x1: float
  y0: float
  y1: float
  log: bool  # logarithmic in y

  def x(self, value: float) -> float:
    return _LEFT + (value - self.x0) / (self.x1 - self.x0 or 1) * (WIDTH - _LEFT - _RIGHT)

  def y(self, value: float) -> float:
    a, b, v = self.y0, self.y1, value
    if self.log:
      a, b, v = math.log10(a), math.log10(b), math.log10(max(v, a))
    return HEIGHT - _BOTTOM - (v - a) / (b - a or 1) * (HEIGHT - _TOP - _BOTTOM)


def lines(
  series: Sequence[Series], *, bounds: tuple[float, float] | None, log: bool, label: str
) -> str:
  """A line chart over steps. bounds: the least range of y, None to follow the data. log:
  logarithmic y, without values <= 0.

  Returns '' when no series has two points. `label` is read aloud instead of the drawing.
  """
  if log:
    series = [dataclasses.replace(s, points=[p for p in s.points if p[1] > 0]) for s in series]
  series = [s for s in series if len(s.points) > 1]
  if not series:
    return ''
  scale = _scale(series, bounds, log)
  marks = [_band(s, scale) for s in series if s.band]
  for s in series:
    smooth = len(s.points) >= SMOOTH_FROM
    if smooth:
      marks.append(_path(s.points, scale, s.color, 'raw'))
    marks.append(_path(_smoothed(s.points) if smooth else s.points, scale, s.color, 'line'))
  return _svg(label, _axes(scale) + ''.join(marks), _hover(series, scale))


def areas(series: Sequence[Series], *, label: str) -> str:
  """Returns stacked areas as SVG text, with the first series at the bottom.

  A missing step counts as 0. Returns '' for fewer than two steps.
  """
  steps = sorted({step for s in series for step, _ in s.points})
  if len(steps) < 2:
    return ''
  base, layers = dict.fromkeys(steps, 0.0), []
  for s in series:
    top = {step: base[step] + dict(s.points).get(step, 0.0) for step in steps}
    layers.append((s, dict(base), top))
    base = top
  scale = _scale([Series('', list(base.items()), '')], (0, 0), False)
  shapes = ''
  for s, bottom, top in layers:
    outline = [(x, top[x]) for x in steps] + [(x, bottom[x]) for x in reversed(steps)]
    drawn = ' '.join(f'{scale.x(x):.1f},{scale.y(y):.1f}' for x, y in outline)
    shapes += f'<polygon class="area" fill="{s.color}" points="{drawn}"/>'
  return _svg(label, _axes(scale) + shapes, _hover(series, scale))


def bars(
  values: Sequence[float | None],
  intervals: Sequence[tuple[float, float] | None],
  colors: Sequence[str],
  *,
  top: float,
  texts: Sequence[str],
  label: str,
) -> str:
  """A small panel of upright bars on a common scale 0..top, each with its text above, and a whisker
  for a known interval.
  """
  width, height = 120, 120
  floor, roof = 112, 18
  step = width / len(values)
  parts = [f'<line class="grid" x1="4" x2="{width - 4}" y1="{floor}" y2="{floor}"/>']

  def y(value: float) -> float:
    return floor - (floor - roof) * min(value, top) / top

  for i, (value, interval, color, text) in enumerate(zip(values, intervals, colors, texts)):
    center = step * (i + 0.5)
    tip = floor
    if value is not None:
      tip = min(y(value), y(interval[1]) if interval else floor)
      box = f'x="{center - 19:.1f}" y="{y(value):.1f}" width="38" height="{floor - y(value):.1f}"'
      parts.append(f'<rect fill="{color}" {box} rx="2"/>')
    if interval is not None:
      parts.append(
        f'<path class="whisker" d="M{center:.1f} {y(interval[0]):.1f}V{y(interval[1]):.1f}"/>'
      )
    parts.append(
      f'<text class="value" x="{center:.1f}" y="{tip - 5:.1f}" '
      f'text-anchor="middle">{html.escape(text)}</text>'
    )
  return (
    f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" '
    f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
  )


def ticks(low: float, high: float, count: int) -> list[float]:
  """About `count` round numbers from low to high.

  >>> ticks(0, 1, 5)
  [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  """
  raw = (high - low) / max(count, 1) or 1.0
  size = 10 ** math.floor(math.log10(raw))
  step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
  """A short text: 0.12, 3.4, 1.2k, 3e-05."""
  size = abs(value)
  if size != 0 and size < 1e-3:
    return f'{value:.0e}'
  if size >= 10000:
    return f'{value / 1000:.3g}k'
  return f'{value:.3g}'


def _scale(series: Sequence[Series], bounds: tuple[float, float] | None, log: bool) -> _Scale:
  xs = [x for s in series for x, _ in s.points]
  ys = (
    [y for s in series for _, y in s.points]
    + [y for s in series for _, *ends in s.band for y in ends]
    + list(bounds or ())
  )
  low, high = min(ys), max(ys)
  if log:
    low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
  else:
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    low = low if bounds and low == bounds[0] else low - margin
    high = high if bounds and high == bounds[1] and bounds[1] > bounds[0] else high + margin
  return _Scale(min(xs), max(xs), low, high, log)


def _axes(scale: _Scale) -> str:
  if scale.log:
    powers = range(round(math.log10(scale.y0)), round(math.log10(scale.y1)) + 1)
    levels = [10.0**p for p in powers][:: max(1, math.ceil(len(powers) / 6))]
  else:
    levels = ticks(scale.y0, scale.y1, 5)
  parts = []
  for level in levels:
    y = scale.y(level)
    text = f'{level:.0e}' if scale.log and level < 0.01 else number(level)
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
      f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
    )
  for step in ticks(scale.x0, scale.x1, 6):
    if step == int(step):
      parts.append(
        f'<text x="{scale.x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{int(step)}</text>'
      )
  return ''.join(parts)


def _path(points: Sequence[tuple[float, float]], scale: _Scale, color: str, css: str) -> str:
  drawn = ' '.join(f'{scale.x(x):.1f},{scale.y(y):.1f}' for x, y in points)
  return f'<polyline class="{css}" stroke="{color}" points="{drawn}"/>'


def _band(series: Series, scale: _Scale) -> str:
  outline = [(x, high) for x, _, high in series.band] + [
    (x, low) for x, low, _ in reversed(series.band)
  ]
  drawn = ' '.join(f'{scale.x(x):.1f},{scale.y(y):.1f}' for x, y in outline)
  return f'<polygon fill="{series.color}" fill-opacity=".13" points="{drawn}"/>'


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """A centred moving average over a tenth of the points, narrower at the ends."""
  half = max(1, len(points) // 20)
  means = []
  for i, (x, _) in enumerate(points):
    window = [y for _, y in points[max(0, i - half) : i + half + 1]]
    means.append((x, sum(window) / len(window)))
  return means


def end(points: Sequence[tuple[float, float]]) -> float:
  """Where the line of these points ends: smoothed from SMOOTH_FROM points on, else the last one.

  Raises:
    IndexError: there are no points.
  """
  drawn = _smoothed(points) if len(points) >= SMOOTH_FROM else points
  return drawn[-1][1]


def _hover(series: Sequence[Series], scale: _Scale) -> str:
  """What the page's script shows under the pointer, as JSON: x positions in the drawing, steps,
  values.
  """
  steps = sorted({x for s in series for x, _ in s.points})
  shown = [
    {'name': s.name, 'color': s.color, 'y': [_short(dict(s.points).get(x)) for x in steps]}
    for s in series
  ]
  return json.dumps(
    {'x': [round(scale.x(x), 1) for x in steps], 'steps': steps, 'series': shown},
    separators=(',', ':'),
  )


def _short(value: float | None) -> float | None:
  return None if value is None else float(f'{value:.4g}')


def _svg(label: str, body: str, hover: str) -> str:
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    f'aria-label="{html.escape(label)}" data-hover="{html.escape(hover)}">{body}<line '
    f'class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg>'
  )

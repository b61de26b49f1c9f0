"""The picture of a run's timeline: where the time of the last steps went, and who waited for whom."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from markupsafe import Markup

STEPS = 4  # drawn: the last ones
_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 900, 150, 8, 26, 16
_LEARN = 'learn'
_COLORS = {
  'wait for rollouts': 'var(--hair)',
  'wait for servers': 'var(--faint)',
  'learn': 'var(--c1)',
  'publish': 'var(--c2)',
  'write': 'var(--c2)',
  'load': 'var(--c4)',
  'busy': 'var(--c3)',
  'checkpoint': 'var(--c6)',
  'other': 'var(--c7)',
}
Spans = Sequence[tuple[str, float, float]]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A drawing with what it says in words."""

  svg: Markup
  legend: Sequence[tuple[str, str]]  # name, colour
  shares: Sequence[str]  # a line per lane
  steps: int  # drawn


def draw(lanes: Mapping[str, Spans]) -> Picture | None:
  """Draws the last steps of a timeline.

  Args:
    lanes: lane -> [(name, start, end), ...] in seconds, of `timeline.read`.

  Returns:
    None if the learner made fewer than two steps.
  """
  ends = [end for name, _, end in lanes.get('learner', ()) if name == _LEARN][-STEPS - 1 :]
  if len(ends) < 2:
    return None
  start, end = ends[0], ends[-1]
  shown = {lane: _clipped(spans, start, end) for lane, spans in _ordered(lanes).items()}
  shown = {lane: spans for lane, spans in shown.items() if spans}
  names = dict.fromkeys(name for spans in shown.values() for name, *_ in spans)
  return Picture(
    _svg(shown, start, end),
    [(name, _color(name)) for name in names],
    [_share(lane, spans, end - start) for lane, spans in shown.items()],
    len(ends) - 1,
  )


def _ordered(lanes: Mapping[str, Spans]) -> dict[str, Spans]:
  """The learner first, then what it waits for."""
  order = {'learner': 0, 'packing': 1, 'decoder': 8, 'delivery': 9}
  return {lane: lanes[lane] for lane in sorted(lanes, key=lambda n: (order.get(n, 5), n))}


def _clipped(spans: Spans, start: float, end: float) -> list[tuple[str, float, float]]:
  cut = ((name, max(a, start), min(b, end)) for name, a, b in spans)
  return [(name, a, b) for name, a, b in cut if b > a]


def _color(name: str) -> str:
  return _COLORS.get(name, 'var(--c8)')


def _share(lane: str, spans: Spans, seconds: float) -> str:
  by_name: dict[str, float] = {}
  for name, a, b in spans:
    by_name[name] = by_name.get(name, 0.0) + b - a
  parts = sorted(by_name.items(), key=lambda item: -item[1])
  return f'{lane}: ' + ', '.join(f'{name} {100 * n / seconds:.0f} %' for name, n in parts)


def _svg(lanes: Mapping[str, Spans], start: float, end: float) -> Markup:
  scale = (_WIDTH - _LEFT - _RIGHT) / (end - start)
  height = _ROW * len(lanes) + 24
  floor, marks = height - 20, []
  for tick in _ticks(end - start):
    x = _LEFT + tick * scale
    marks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{floor}"/>')
    anchor = 'middle' if tick else 'start'
    marks.append(f'<text x="{x:.1f}" y="{height - 5}" text-anchor="{anchor}">{tick:g} s</text>')
  for row, (lane, spans) in enumerate(lanes.items()):
    y = _ROW * row + 4
    text = lane if len(lane) <= 22 else '…' + lane[-21:]
    marks.append(f'<text x="0" y="{y + 12}">{html.escape(text)}</text>')
    for name, a, b in spans:
      x, width = _LEFT + (a - start) * scale, max((b - a) * scale, 0.5)
      said = html.escape(f'{name}, {b - a:.2f} s')
      marks.append(
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" '
        f'fill="{_color(name)}"><title>{said}</title></rect>'
      )
  return Markup(
    f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" '
    f'aria-label="Timeline of the last steps">{"".join(marks)}</svg>'
  )


def _ticks(seconds: float) -> list[float]:
  """Returns round numbers of seconds from 0, at most eight of them, the last well inside."""
  unit = 10.0**-3
  while True:
    for step in (1, 2, 5):
      if seconds / (step * unit) <= 7:
        count = int(seconds * 0.97 / (step * unit))
        return [round(n * step * unit, 9) for n in range(count + 1)]
    unit *= 10

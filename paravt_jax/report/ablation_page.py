"""An ablation's files: table.md, summary.json, ablations.html and, for use elsewhere, each drawing
as an SVG file of its own.
"""

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from paravt_jax.metrics.writer import write_whole
from paravt_jax.report import ablation, charts, policy
from paravt_jax.report.ablation import Results, Settings, Value
from paravt_jax.report.charts import Series
from paravt_jax.report.run import curve

_HERE = Path(__file__).parent
_HUES = tuple(f'var(--c{i})' for i in range(1, 9))
# metric, title, unit, least range of y; only what a reward's weights do not change, so that sets
# can be compared
CURVES: tuple[tuple[str, str, str, tuple[float, float] | None], ...] = (
  ('accuracy', 'Accuracy', 'share of training episodes', (0, 1)),
  ('format_compliance', 'Format compliance', 'share of training episodes', None),
  ('calls/executed', 'Executed calls', 'per training episode', (0, 0)),
  ('policy/entropy', 'Entropy', 'nats', None),
  ('length/sampled', 'Written by the main agent', 'tokens per episode', (0, 0)),
  ('groups/no_signal', 'Groups without signal', 'share', (0, 1)),
)
# The part of the page's light style that a separate SVG file needs.
_STYLE = """:root{--ink:#1c1d20;--soft:#5d6068;--hair:#ecebe7;--c1:#1f6fd6;--c2:#d9711c;--c3:#14804a;--c4:#a63a8f;--c5:#0e8c9b;--c6:#b08a00;
--c7:#7a5bd0;--c8:#8b8e96}text{fill:var(--soft);font:11px system-ui,sans-serif}.title{fill:var(--ink);font-size:13px;font-weight:600}
.grid{stroke:var(--hair)}.line{fill:none;stroke-width:2;stroke-linejoin:round}.raw{fill:none;stroke-width:1;opacity:.28}
.cursor{visibility:hidden}"""


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A chart of some sets."""

  name: str  # of its file
  title: str
  unit: str
  svg: Markup
  legend: Sequence[tuple[str, str, str]]  # name, colour, last value


def write(folder: Path, results: Results, settings: Settings) -> str:
  """Writes the files into `folder`, replacing earlier ones, and returns the table.

  Raises:
    ParavtError: a file cannot be written.
  """
  text = ablation.table(results, settings) if results else 'no run has reached its end yet'
  drawings = {
    title: draw(title, {name: results[name] for name in sets if name in results})
    for title, sets in settings.drawings.items()
  }
  put = lambda path, text: write_whole(path, text, 'write the ablation')
  put(folder / 'table.md', text + '\n')
  put(folder / 'summary.json', json.dumps(as_json(results, settings), indent=1) + '\n')
  put(folder / 'ablations.html', render(results, settings, drawings))
  for drawing in [one for found in drawings.values() for one in found]:
    put(folder / 'curves' / f'{drawing.name}.svg', standalone(drawing))
  return text


def as_json(results: Results, settings: Settings) -> dict:
  """{set: {column: {mean, low, high, seeds}}}, unknown ends as null; 'against' is the difference to
  the reference's accuracy.
  """

  def ends(value: Value) -> dict[str, Any]:
    low, high = _finite(value.low), _finite(value.high)
    return {'mean': value.mean, 'low': low, 'high': high, 'seeds': value.seeds}

  found = ablation.numbers(results, settings.reference)
  return {
    name: {column: ends(value) for column, value in values.items()}
    for name, values in found.items()
  }


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def draw(title: str, results: Results) -> list[Drawing]:
  """The curves of some sets, each the mean over its seeds; the shade runs from the lowest seed to
  the highest.
  """
  made = []
  for metric, heading, unit, bounds in CURVES:
    series = [
      over_seeds(name, [curve(run.metrics, metric) for run in seeds.values()], color)
      for (name, seeds), color in zip(results.items(), _HUES)
    ]
    svg = charts.lines(series, bounds=bounds, log=False, label=f'{heading}: {title}')
    legend = [
      (s.name, s.color, charts.number(s.points[-1][1])) for s in series if len(s.points) > 1
    ]
    if svg:
      made.append(
        Drawing(f'{title}-{metric.replace("/", "_")}', heading, unit, Markup(svg), legend)
      )
  return made


def over_seeds(name: str, curves: Sequence[Sequence[tuple[float, float]]], color: str) -> Series:
  """The mean of several curves at the steps that all of them have, with their lowest and highest;
  smoothed over a tenth alike.
  """
  known = [dict(points) for points in curves if points]
  steps = sorted(set.intersection(*map(set, known))) if known else []
  smooth = [_smoothed([one[step] for step in steps]) for one in known]
  columns = list(zip(*smooth))
  points = [(step, math.fsum(values) / len(values)) for step, values in zip(steps, columns)]
  band = (
    [(step, min(values), max(values)) for step, values in zip(steps, columns)]
    if len(known) > 1
    else []
  )
  return Series(name, points, color, band)


def _smoothed(values: Sequence[float]) -> list[float]:
  """A centred moving average over a tenth of the values, narrower at the ends."""
  half = len(values) // 20
  windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
  return [math.fsum(window) / len(window) for window in windows]


def standalone(drawing: Drawing) -> str:
  """Returns the drawing as a standalone SVG file with title, legend and light colours."""
  rows = [drawing.legend[i : i + 3] for i in range(0, len(drawing.legend), 3)]
  top = 30 + 16 * len(rows)
  names = ''.join(
    f'<rect x="{14 + 142 * column}" y="{26 + 16 * row}" width="9" height="9" rx="2" '
    f'fill="{color}"/><text x="{27 + 142 * column}" y="{34 + 16 * row}">{html.escape(name)} '
    f'{last}</text>'
    for row, entries in enumerate(rows)
    for column, (name, color, last) in enumerate(entries)
  )
  inner = str(drawing.svg).replace(
    '<svg ', f'<svg y="{top}" width="{charts.WIDTH}" height="{charts.HEIGHT}" ', 1
  )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {charts.WIDTH} {top + charts.HEIGHT}" '
    f'width="{charts.WIDTH * 2}"><style>{_STYLE}</style><rect width="100%" height="100%" '
    f'fill="white"/><text class="title" x="14" y="17">{html.escape(drawing.title)}</text><text '
    f'x="{charts.WIDTH - 10}" y="17" '
    f'text-anchor="end">{html.escape(drawing.unit)}</text>{names}{inner}</svg>\n'
  )


def render(results: Results, settings: Settings, drawings: Mapping[str, Sequence[Drawing]]) -> str:
  """The page as text."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  found = ablation.numbers(results, settings.reference)
  columns = [*ablation.measures(results), 'against']
  rows = [
    {
      'name': name,
      'seeds': sorted(results[name]),
      'overrides': settings.overrides.get(name, ()),
      'cells': [
        _cell(values[column], column)
        if (name, column) != (settings.reference, 'against')
        else ('', '')
        for column in columns
      ],
    }
    for name, values in found.items()
  ]
  script = (_HERE / 'page.js').read_text()
  return environment.get_template('ablation.html.j2').render(
    settings=settings,
    columns=[*columns[:-1], f'accuracy − {settings.reference}'],
    rows=rows,
    drawings=drawings,
    few=min((len(seeds) for seeds in results.values()), default=0),
    missing=[n for n in settings.overrides if n not in results],
    style=Markup((_HERE / 'page.css').read_text()),
    script=Markup(script),
    policy=policy.meta(script),
  )


def _cell(value: Value, column: str) -> tuple[str, str]:
  """A number and its interval."""
  if value.mean is None:
    return '–', ''
  form = '{:+.3f}' if column in ('gain', 'against') else '{:.3f}'
  ends = f'[{form.format(value.low)}, {form.format(value.high)}]' if value.seeds > 1 else ''
  return form.format(value.mean), ends

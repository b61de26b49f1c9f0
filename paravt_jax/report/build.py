"""A run folder as one static HTML file: no network, no server, light and dark. It shows the parts
of the run that exist.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from paravt_jax.metrics import names
from paravt_jax.metrics.writer import write_whole
from paravt_jax.report import account, charts, policy, scenes, waits
from paravt_jax.report.charts import Series
from paravt_jax.report.headline import budgets, gain_text, headline, percent
from paravt_jax.report.run import Evaluation, Run, curve, flatten, load

_HERE = Path(__file__).parent
_RAMP = ('var(--k1)', 'var(--k2)', 'var(--k3)', 'var(--k4)', 'var(--k5)', 'var(--k6)')
_HUES = tuple(f'var(--c{i})' for i in range(1, 9))


@dataclasses.dataclass(frozen=True)
class Chart:
  """A drawing with its title."""

  title: str
  unit: str
  svg: Markup  # empty when the run has no data for it
  legend: Sequence[tuple[str, str, str]]  # name, colour, where the line ends


_CURVES: tuple[
  tuple[str, str, tuple[tuple[str, str], ...], tuple[float, float] | None, bool], ...
] = (
  # title, unit, (metric, name in the legend), least range of y, logarithmic
  (
    'Reward',
    'per episode',
    (
      ('reward/total', 'total'),
      ('reward/accuracy', 'accuracy'),
      ('reward/format', 'format'),
      ('reward/tool', 'tool'),
    ),
    None,
    False,
  ),
  ('Format terms', 'reward', (('reward/base', 'base'), ('reward/anchor', 'anchor')), None, False),
  ('Format compliance', 'share', (('format_compliance', 'compliant'),), (0, 1), False),
  (
    'Calls',
    'per episode',
    (
      ('calls/parsed', 'well-formed'),
      ('calls/other', 'other'),
      ('calls/executed', 'executed'),
      ('calls/failed', 'failed'),
    ),
    (0, 0),
    False,
  ),
  (
    'Log-prob gap, learner to server',
    'nats, log',
    (('policy/gap_mean', 'mean'), ('policy/gap_max', 'largest')),
    None,
    True,
  ),
  ('Entropy', 'nats', (('policy/entropy', 'entropy'),), None, False),
  ('KL to the reference', 'nats', (('policy/kl_reference', 'KL'),), None, False),
  ('Groups without signal', 'share', (('groups/no_signal', 'equal rewards'),), (0, 1), False),
  (
    'Clipped and dropped tokens',
    'share',
    (('policy/clip_share', 'clipped'), ('policy/dropped_share', 'dropped')),
    (0, 0),
    False,
  ),
  ('Gradient norm', 'before the clip', (('optim/grad_norm', 'norm'),), None, False),
  (
    'Lengths',
    'tokens',
    (('length/sampled', 'written per episode'), ('length/context', 'context')),
    (0, 0),
    False,
  ),
  ('Staleness', 'versions', (('staleness', 'mean'), ('staleness/max', 'oldest')), (0, 0), False),
  ('Videos in quarantine', 'videos', (('data/quarantined', 'left out'),), (0, 0), False),
)
_SFT = (
  ('Cold start: loss', 'nats', (('sft/loss', 'cross-entropy'),), None, False),
  ('Cold start: accuracy', 'share', (('sft/accuracy', 'target tokens'),), (0, 1), False),
)


def build(
  run_folder: Path | str,
  out_html: Path | str,
  load_frames: scenes.LoadFrames | None = None,
  decode: scenes.Decode | None = None,
) -> Path:
  """Writes the page.

  Args:
    run_folder: see `run.py`; files may be missing or short (an interrupted run), the page then says
    so. out_html: the file to write; replaced atomically. load_frames: (video path, seconds) ->
    Clip, for thumbnails; it may raise MediaError. None: times only. decode: token ids -> text, for
    the token view. None: ids are shown.

  Returns:
    out_html.

  Raises:
    DataError: the folder does not exist.
    ParavtError: the page cannot be written.
  """
  run = load(run_folder)
  page = render(run, load_frames, decode)
  return write_whole(out_html, page, 'write the report')


def render(run: Run, load_frames: scenes.LoadFrames | None, decode: scenes.Decode | None) -> str:
  """The page as text; see `build`."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {'percent': percent, 'number': charts.number}
  cached = scenes.caching(load_frames)
  knobs = flatten(run.config)
  script = (_HERE / 'page.js').read_text()
  return environment.get_template('page.html.j2').render(
    run=run,
    head=headline(run),
    account=account.paragraph(run),
    alarms=account.alarms(run),
    gain=gain_text(run).lstrip(', '),
    knobs=knobs,
    chips=_chips(run, knobs),
    table=_table(run),
    panels=_panels(run),
    charts=_charts(run),
    waits=waits.draw(run.timeline),
    smooth_from=charts.SMOOTH_FROM,
    missing=_missing(run),
    scenes=[scenes.scene(pick, cached, decode) for pick in scenes.choose(run.entries)],
    style=Markup((_HERE / 'page.css').read_text()),
    script=Markup(script),
    policy=policy.meta(script),
    written=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
  )


def _chips(run: Run, knobs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
  """Returns the few facts about a run that appear next to its name."""
  wanted = (
    'scale',
    'seed',
    'steps',
    'group_size',
    'temperature',
    'budgets',
    'k_set',
    'gating',
    'learning_rate',
    'lr',
    'beta',
  )
  chips = [(name, value.strip('"')) for name, value in knobs if name.rsplit('.', 1)[-1] in wanted][
    :10
  ]
  if run.metrics:
    chips.insert(0, ('steps done', str(int(run.metrics[-1]['step'] or 0) + 1)))
  if run.minutes:
    total = run.minutes.get('total', sum(run.minutes.values()))
    chips.insert(0, ('minutes', f'{total:.1f}'))
  return chips


def _interval(evaluation: Evaluation | None) -> str:
  if evaluation is None or evaluation.interval is None:
    return ''
  low, high = evaluation.interval
  return f'[{100 * low:.1f}, {100 * high:.1f}]'


def _decimal(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}'


def _table(run: Run) -> list[dict[str, Any]]:
  """Rows of the before/after table: name, before, after, both as text."""
  pairs = run.before, run.after
  rows = [
    ('Accuracy', [percent(e and e.accuracy) for e in pairs], [_interval(e) for e in pairs]),
    ('Format compliance', [percent(e and e.format_compliance) for e in pairs], ['', '']),
    ('Executed calls per episode', [_decimal(e and e.calls) for e in pairs], ['', '']),
  ]
  for kind in sorted({kind for e in pairs if e for kind in e.by_type}):
    rows.append(
      (f'Accuracy, {kind}', [percent(e and e.by_type.get(kind)) for e in pairs], ['', ''])
    )
  rows.append(('Episodes', [str(e.episodes) if e else '–' for e in pairs], ['', '']))
  return [{'name': name, 'values': list(zip(values, notes))} for name, values, notes in rows]


def _panels(run: Run) -> list[dict[str, Any]]:
  """Per K: accuracy and calls before and after, on scales that all panels share."""
  ks = budgets(run.before, run.after)
  cells = {k: [e.by_k.get(k) if e else None for e in (run.before, run.after)] for k in ks}
  most = max(
    [cell.calls for pair in cells.values() for cell in pair if cell and cell.calls is not None],
    default=1,
  )
  colors = ('var(--before)', 'var(--after)')
  panels = []
  for k, pair in cells.items():
    shares = [cell and cell.accuracy for cell in pair]
    calls = [cell and cell.calls for cell in pair]
    panels.append(
      {
        'k': k,
        'count': max(cell.count if cell else 0 for cell in pair),
        'accuracy': Markup(
          charts.bars(
            shares,
            [cell and cell.interval for cell in pair],
            colors,
            top=1.0,
            label=f'accuracy at K={k}, before and after',
            texts=['–' if v is None else f'{100 * v:.0f} %' for v in shares],
          )
        ),
        'calls': Markup(
          charts.bars(
            calls,
            [None, None],
            colors,
            top=max(most, 1.0),
            label=f'executed calls per episode at K={k}, before and after',
            texts=['–' if v is None else f'{v:.2f}' for v in calls],
          )
        ),
      }
    )
  return panels


def _charts(run: Run) -> list[Chart]:
  """All charts that the run has data for, in the order of the page."""
  made = [_chart(run.metrics, *row) for row in _CURVES]
  made.insert(3, _by_k(run.metrics))
  made.insert(4, _times(run.metrics))
  made += [_chart(run.sft_metrics, *row) for row in _SFT]
  return [chart for chart in made if chart.svg]


def _missing(run: Run) -> list[str]:
  """Titles of the charts without data, so that a missing curve is not mistaken for a flat one."""
  drawn = {chart.title for chart in _charts(run)}
  wanted = [row[0] for row in _CURVES] + ['Accuracy by K', 'Time per stage']
  return [title for title in wanted if title not in drawn]


def _chart(
  metrics: Sequence[Mapping],
  title: str,
  unit: str,
  rows: Sequence[tuple[str, str]],
  bounds: tuple[float, float] | None,
  log: bool,
) -> Chart:
  series = [
    Series(name, curve(metrics, metric), color) for (metric, name), color in zip(rows, _HUES)
  ]
  return Chart(
    title, unit, Markup(charts.lines(series, bounds=bounds, log=log, label=title)), _legend(series)
  )


def _by_k(metrics: Sequence[Mapping]) -> Chart:
  found = {
    name: names.split(name)[1]
    for record in metrics
    for name in record
    if name.startswith('accuracy/')
  }
  ks = sorted(
    int(keys['k']) for keys in found.values() if set(keys) == {'k'} and keys['k'].isdigit()
  )
  shade = lambda i: _RAMP[round(i * (len(_RAMP) - 1) / max(len(ks) - 1, 1))]
  series = [Series(f'K={k}', curve(metrics, f'accuracy/k={k}'), shade(i)) for i, k in enumerate(ks)]
  svg = charts.lines(series, bounds=(0, 1), log=False, label='Accuracy by K')
  return Chart('Accuracy by K', 'share', Markup(svg), _legend(series))


def _times(metrics: Sequence[Mapping]) -> Chart:
  stages = [(stage, curve(metrics, f'time/{stage}')) for stage in names.TIME]
  stages = sorted([s for s in stages if s[1]], key=lambda s: -sum(y for _, y in s[1]))
  shown, rest = stages[:7], stages[7:]
  if rest:
    total: dict[int, float] = {}
    for step, seconds in [point for _, points in rest for point in points]:
      total[step] = total.get(step, 0.0) + seconds
    shown.append(('others', sorted(total.items())))
  series = [Series(name, points, color) for (name, points), color in zip(shown, _HUES)]
  return Chart(
    'Time per stage',
    's per step',
    Markup(charts.areas(series, label='Time per stage')),
    _legend(series),
  )


def _legend(series: Sequence[Series]) -> list[tuple[str, str, str]]:
  """(name, colour, where the line ends) of every series with points."""
  return [(s.name, s.color, charts.number(charts.end(s.points))) for s in series if s.points]

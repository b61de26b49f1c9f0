"""An evaluation as one static HTML file: the scores, then every wrong answer with its frames and
crops on the timeline, to filter.

results.jsonl: a line per finished sample; of several with one key (an error that was tried again)
the last one counts summary.json: {benchmark: {samples, score, interval, ...}}; without it (a run
that was cut off) the numbers come from the lines
"""

import base64
import collections
import dataclasses
import datetime
import functools
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from paravt_jax.errors import DataError
from paravt_jax.metrics.writer import write_whole
from paravt_jax.report import episodes, policy, scenes
from paravt_jax.report.charts import number
from paravt_jax.report.evaluation_rows import (
  OUTCOMES,
  Row,
  breakdown_tables,
  broken_rows,
  call_table,
  duration,
  finite,
  format_reasons,
  in_turn,
  read,
  read_summary,
  reason_text,
  score_table,
)
from paravt_jax.types import Episode, Scored, ToolResult, Trajectory

PICTURES = 3000  # different pictures on a page, about 5 KB each at 224 x 224
SAMPLES = 600  # samples shown in full
OVERVIEW = 16  # pictures of an overview; its timeline has every frame
CROP = 8  # pictures of a crop
CLIPS = 32  # decoded clips in the cache: samples of one video are adjacent
_HERE = Path(__file__).parent


def write(
  folder: Path | str,
  out_html: Path | str,
  load_frames: scenes.LoadFrames | None,
  *,
  published: Mapping[str, Mapping[str, float]] | None = None,
  rules: Mapping[str, str] | None = None,
  right: bool = False,
  pictures: int = PICTURES,
  samples: int = SAMPLES,
  title: str = '',
) -> Path:
  """Writes the page of a results folder.

  Args:
    folder: see the module; lines that break the schema are named on the page. out_html: the file to
    write; replaced atomically. load_frames: (video path, seconds) -> Clip; it may raise MediaError.
    None: times only. published: by benchmark and model, the score in points as published, to
    compare with ours. rules: by model, the rule ('official' or 'lmms_eval') that its published
    scores were made with; unknown without an entry. right: show right answers too, after the others
    are placed. pictures, samples: at most so many on the page, shared evenly by the benchmarks; the
    page says what was left out. title: the folder's name by default.

  Returns:
    out_html.

  Raises:
    DataError: the folder or its results.jsonl does not exist. ParavtError: the page cannot be
    written.
  """
  file = Path(folder) / 'results.jsonl'
  if not file.is_file():
    raise DataError(
      f'{file}: no such file; wanted the results folder that an evaluation prints last'
    )
  notes: list[str] = []
  rows = read(file, notes)
  summary = read_summary(Path(folder) / 'summary.json', rows, notes)
  notes += _not_whole(summary)
  # samples to show: failed or wrong samples first, a row of each benchmark in turn
  wanted = [row for row in rows if right or row.outcome != 'right']
  chosen = list(itertools.islice(in_turn(wanted), samples))
  held = _Pictures(load_frames, pictures)
  cards = _cards(file, chosen, held, notes)
  # what the page says of those that have no place on it
  left = collections.Counter(row.outcome for row in rows)
  left.subtract(row.outcome for row in chosen)
  page = _render(
    cards,
    held,
    title=title or Path(folder).resolve().name,
    table=score_table(summary, published or {}, rules or {}),
    calls=call_table(summary),
    errors=_errors(summary),
    notes=notes,
    breakdowns=breakdown_tables(summary),
    left={name: left[name] for name in OUTCOMES if left[name] > 0},
    right=right,
  )
  return write_whole(out_html, page, 'write the report')


def _errors(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  """(benchmark, its errors counted by reason) of each benchmark that has errors."""
  texts = {name: format_reasons(one.get('reasons')) for name, one in summary.items()}
  return [(name, text) for name, text in texts.items() if text]


def _not_whole(summary: Mapping[str, Any]) -> list[str]:
  """A note on each benchmark with broken rows, then on each that is not complete."""
  broken = [broken_rows(name, one['broken']) for name, one in summary.items() if one.get('broken')]
  missing = [
    f'{name} is not complete: {one["missing"]} of its samples are missing.'
    for name, one in summary.items()
    if one.get('missing')
  ]
  return [*broken, *missing]


def write_one(
  episode: Episode, out_html: Path | str, load_frames: scenes.LoadFrames | None
) -> Path:
  """Writes the page of one episode without a gold answer: its question, overview, timeline and
  turns.

  Raises:
    ParavtError: the page cannot be written.
  """
  row = Row(
    key=episode.task.id,
    benchmark='',
    id=episode.task.id,
    k=episode.budget,
    outcome='',
    reason='',
    error=episode.error,
    score=None,
    metrics={},
    official={},
    lmms_eval={},
    answer='',
    gold='',
    question='',
    fields={},
    seconds={},
    tokens={},
    calls=episode.executed,
    start=0,
  )
  held = _Pictures(load_frames, PICTURES)
  cards = [_card(row, Scored(episode, 0.0, {}), held)]
  page = _render(
    cards,
    held,
    title='one question',
    table=[],
    calls=[],
    errors=[],
    notes=[],
    breakdowns=[],
    left={},
    right=True,
  )
  return write_whole(out_html, page, 'write the report')


# Samples


class _Pictures:
  """Collects a limited number of distinct frames. Each picture is stored once on the page, even if
  many samples show it.
  """

  def __init__(self, load: scenes.LoadFrames | None, limit: int):
    # samples of one video ask for the same overview
    self.load = None if load is None else functools.lru_cache(CLIPS)(load)
    self.limit = limit
    self._seen: set[tuple[str, float]] = set()
    self._styles: dict[str, str] = {}  # data URI -> class

  def take(self, episode: Episode) -> bool:
    """Returns whether all pictures of an episode still fit. If so, counts them."""
    asked = {
      (video, t)
      for video, view in zip(episode.task.videos, episode.overviews)
      for t in view.seconds
    }
    asked |= {
      (episode.task.videos[result.video], t) for result in episode.results for t in result.seconds
    }
    if self.load is None or len(self._seen | asked) > self.limit:
      return False
    self._seen |= asked
    return True

  def name(self, thumbs: Iterable[dict[str, Any]]) -> None:
    """Gives thumbnails that have a picture the class that shows it."""
    for thumb in thumbs:
      if thumb['src'] is not None:
        thumb['css'] = self._styles.setdefault(thumb['src'], f'p{len(self._styles)}')

  def css(self) -> str:
    """The style sheet that holds the pictures."""
    return '\n'.join(
      f'.thumb .{name}{{aspect-ratio:{_shape(uri)};background-image:url({uri})}}'
      for uri, name in self._styles.items()
    )


def _shape(uri: str) -> str:
  with Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))) as image:
    return f'{image.width}/{image.height}'


def _cards(
  file: Path, rows: Sequence[Row], pictures: _Pictures, notes: list[str]
) -> list[dict[str, Any]]:
  """The samples to show, by benchmark, in the order of the file within it."""
  made = []
  with file.open('rb') as lines:
    for row in rows:
      lines.seek(row.start)
      data = json.loads(lines.readline()).get('episode')
      try:
        scored = (
          None if data is None else episodes.from_json(data, f'{file.name}, {row.key}').scored
        )
      except DataError as error:
        notes.append(f'{error}; its turns are left out')
        scored = None
      made.append(_card(row, scored, pictures))
  bare = sum(card['bare'] for card in made)
  if bare and pictures.load is not None:
    notes.append(
      f'{bare} of {len(made)} samples are shown without pictures, for a page holds '
      f'{pictures.limit} at most.'
    )
  order = {name: i for i, name in enumerate(dict.fromkeys(row.benchmark for row in rows))}
  return sorted(made, key=lambda card: (order[card['row'].benchmark], card['row'].start))


def _card(row: Row, scored: Scored | None, pictures: _Pictures) -> dict[str, Any]:
  """{row, scene, facts, bare}: scene is None without an episode; bare: it has no pictures."""
  others = {
    f'{rule} {name}': value
    for rule, found in (('official', row.official), ('lmms-eval', row.lmms_eval))
    for name, value in found.items()
    if row.metrics.get(name) != value
  }
  # the score of the line, not the episode's own R_acc: a protocol may read the answer, and a
  # benchmark score it, by another rule
  groups = (
    ('', {'score': row.score, **row.metrics, **others}, number),
    ('time', row.seconds, duration),
    ('tokens', row.tokens, '{:,.0f}'.format),
  )
  facts = []
  for title, values, text in groups:
    found = [(name, text(value)) for name, value in values.items() if finite(value) is not None]
    facts += [(title, found)] if found else []
  if scored is None:
    return {'row': row, 'scene': None, 'facts': facts, 'bare': False}
  thin = _thin(scored.episode)
  fits = pictures.take(thin)
  entry = episodes.Entry(0, dataclasses.replace(scored, episode=thin))
  scene = scenes.scene(scenes.Pick('', (('', entry),)), pictures.load if fits else None, None)
  side = scene['sides'][0]
  side['timeline'] = scenes.timeline(scored.episode)  # every frame, also those without a picture
  for thumbs in (
    scene['thumbs'],
    *(result['thumbs'] for turn in side['turns'] for result in turn['results']),
  ):
    pictures.name(thumbs)
  shown, seen = len(scene['thumbs']), sum(len(view.seconds) for view in scored.episode.overviews)
  scene['few'] = f'{shown} of {seen} frames shown' if shown < seen else ''
  return {'row': row, 'scene': scene, 'facts': facts, 'bare': not fits}


def _thin(episode: Episode) -> Episode:
  """Returns the episode without tokens, and with only the frames that the page displays."""
  views = episode.overviews
  most = max(1, OVERVIEW // max(len(views), 1))

  def drop_most(result: ToolResult) -> ToolResult:
    inner = result.subagent
    return dataclasses.replace(
      result,
      seconds=_some(result.seconds, CROP),
      subagent=None if inner is None else Trajectory((), inner.stop),
    )

  turns = tuple(
    dataclasses.replace(turn, results=tuple(map(drop_most, turn.results))) for turn in episode.turns
  )
  others = tuple(
    dataclasses.replace(view, seconds=_some(view.seconds, most)) for view in episode.others
  )
  return dataclasses.replace(
    episode,
    seconds=_some(episode.seconds, most),
    others=others,
    turns=turns,
    trajectory=Trajectory((), episode.stop),
  )


def _some(seconds: Sequence[float], most: int) -> tuple[float, ...]:
  """Returns at most that many items, evenly spread, including the first and the last."""
  if len(seconds) <= most:
    return tuple(seconds)
  return tuple(seconds[round(i * (len(seconds) - 1) / max(most - 1, 1))] for i in range(most))


# The page


def _render(cards: Sequence[dict[str, Any]], pictures: _Pictures, **values: Any) -> str:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  style = ''.join((_HERE / name).read_text() for name in ('page.css', 'evaluation.css'))
  script = ''.join((_HERE / name).read_text() for name in ('page.js', 'evaluation.js'))
  return environment.get_template('evaluation.html.j2').render(
    cards=cards,
    filters=_filters(cards),
    style=Markup(style + pictures.css()),
    script=Markup(script),
    policy=policy.meta(script),
    reason_text=reason_text,
    written=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
    **values,
  )


def _filters(cards: Sequence[dict[str, Any]]) -> list[tuple[str, list[tuple[str, int]]]]:
  """(what, [(value, how many samples)]) by which samples can be chosen; values that all samples
  share are omitted.
  """
  rows = [card['row'] for card in cards]
  values = (
    ('benchmark', lambda row: row.benchmark),
    ('outcome', lambda row: row.outcome),
    ('K', lambda row: row.k),
    ('calls', lambda row: row.calls),
    ('reason', lambda row: reason_text(row.reason) if row.outcome == 'error' else ''),
  )
  found = []
  for name, value in values:
    counts = collections.Counter(map(value, rows))
    order = (
      sorted(counts, key=OUTCOMES.index)
      if name == 'outcome' and '' not in counts
      else sorted(counts)
    )
    shown = [(str(key), counts[key]) for key in order if name != 'reason' or key]
    if len(shown) > 1:
      found.append((name, shown))
  return found

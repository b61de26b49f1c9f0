"""Which episodes a report shows, and each as plain values for the page: thumbnails, timeline,
coloured turns, tokens.
"""

import base64
import collections
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from paravt_jax.chat import prompts
from paravt_jax.errors import MediaError
from paravt_jax.report.episodes import Entry
from paravt_jax.report.run import accuracy
from paravt_jax.types import (
  Clip,
  Episode,
  ResultStatus,
  Task,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
)

LoadFrames = Callable[[str, Sequence[float]], Clip]
Decode = Callable[[list[int]], str]

THUMB = 144  # pixels of a thumbnail's longer side at most
LABEL = 0.12  # share of the timeline that an event's text takes
_TAG = re.compile(r'(</?(?:think|tool_call|tool_code|answer)>)')


@dataclasses.dataclass(frozen=True)
class Pick:
  """One question at one K."""

  label: str
  sides: tuple[tuple[str, Entry], ...]  # (caption, entry), at most two, before training first


@dataclasses.dataclass(frozen=True)
class Span:
  """A run of a turn's text."""

  kind: str  # think | tool | answer | plain
  tag: bool  # the text is the tag itself
  text: str


def choose(entries: Mapping[str, Sequence[Entry]]) -> list[Pick]:
  """A handful that shows the run: solved by cropping, lost, most calls, a failed call, few and many
  frames, worst.

  Evaluations are paired by question and K; without an evaluation after training, steps of training
  replace it, unpaired.
  """
  after = entries['after'] or entries['train'][-len(entries['train']) // 2 :]
  caption = 'after training' if entries['after'] else 'while training'
  earlier = {entry.key: entry for entry in entries['before']}
  if not after:
    after, caption, earlier = entries['before'], 'before training', {}
  picks: dict[tuple, Pick] = {}
  for label, entry in _wishes(after, earlier):
    if entry is None or entry.key in picks:
      continue
    now = (f'{caption}, step {entry.step}' if caption == 'while training' else caption, entry)
    then = (('before training', earlier[entry.key]),) if entry.key in earlier else ()
    picks[entry.key] = Pick(label, (*then, now))
  return list(picks.values())


def _wishes(
  after: Sequence[Entry], earlier: Mapping[tuple, Entry]
) -> Iterable[tuple[str, Entry | None]]:
  ks = sorted({entry.scored.episode.budget for entry in after})
  if not ks:
    return
  few, many = ([e for e in after if e.scored.episode.budget == k] for k in (ks[0], ks[-1]))

  def was(e: Entry) -> float:
    return accuracy(earlier[e.key]) if e.key in earlier else 1.0

  calls = lambda e: e.scored.episode.executed
  failed = lambda e: sum(r.status is not ResultStatus.EXECUTED for r in e.scored.episode.results)
  reward = lambda e: e.scored.reward
  best = lambda group, key: max(group, key=key, default=None)
  yield (
    'solved by cropping',
    best(
      [e for e in few if accuracy(e) > was(e) and calls(e)], lambda e: (calls(e) == 2, reward(e))
    ),
  )
  yield (
    'best, few frames',
    best([e for e in few if calls(e)] or few, lambda e: (calls(e) == 1, reward(e))),
  )
  yield 'most calls', best([e for e in after if calls(e)], calls)
  yield 'a failed call', best([e for e in after if failed(e)], lambda e: (failed(e), reward(e)))
  if not any(map(failed, after)):
    yield (
      'a failed call before',
      best([e for e in after if e.key in earlier and failed(earlier[e.key])], reward),
    )
  yield (
    'many frames, right',
    best([e for e in many if accuracy(e) >= 1], lambda e: (-calls(e), reward(e))),
  )
  yield 'many frames', best(many, reward)
  yield (
    'lost',
    best([e for e in after if e.key in earlier and accuracy(e) < was(e)], lambda e: -reward(e)),
  )
  yield 'worst', min(after, key=reward, default=None)


def scene(pick: Pick, load: LoadFrames | None, decode: Decode | None) -> dict[str, Any]:
  """Returns the template values of a pick: the question once, then each side. Frames that cannot be
  loaded become a note.
  """
  episode = pick.sides[-1][1].scored.episode
  thumbs, note = _overview(load, episode)
  return {
    'label': pick.label,
    'k': episode.budget,
    'task': episode.task,
    'duration': ' + '.join(clock(view.duration) for view in episode.overviews) or clock(0),
    'thumbs': thumbs,
    'note': note,
    'size': 'few' if len(thumbs) <= 8 else 'some' if len(thumbs) <= 16 else 'many',
    'sides': [_side(caption, entry, load, decode) for caption, entry in pick.sides],
  }


def spans(text: str) -> list[Span]:
  """Returns a turn's text split at its tags. An unclosed tag colours what follows up to the next
  tag's opening.
  """
  found, kind = [], 'plain'
  for piece in _TAG.split(text):
    if not piece:
      continue
    if _TAG.fullmatch(piece):
      name = piece.strip('</>')
      own = 'tool' if name.startswith('tool') else name
      found.append(Span(own, True, piece))
      kind = 'plain' if piece.startswith('</') else own
    else:
      found.append(Span(kind, False, piece))
  return found


def clock(seconds: float) -> str:
  """41.5 -> '41.5 s', 128 -> '128 s', 4000.4 -> '4000 s': the unit of questions and calls."""
  return (f'{seconds:.1f}'.removesuffix('.0') if seconds < 1000 else f'{seconds:.0f}') + ' s'


def timeline(episode: Episode) -> dict[str, Any]:
  """Everything on the axis of the videos, end to end, as percent of their duration: overview ticks,
  what is known to happen (in the first video), crops in lanes.
  """
  views = episode.overviews
  starts = list(itertools.accumulate((view.duration for view in views), initial=0.0))
  duration = max(starts[-1], 1e-6)
  percent = lambda t: round(100 * min(max(t / duration, 0), 1), 3)
  crops, events = [], []
  lanes: list[float] = []
  event_lanes: list[float] = []
  for number, result in enumerate(episode.results, 1):
    if result.window is None:
      continue
    start = starts[result.video] + result.window.start
    end = starts[result.video] + result.window.end
    lane = _lane(lanes, start, end + 0.04 * duration)
    left, right = percent(start), percent(end)
    crops.append(
      {
        'number': number,
        'left': left,
        'width': right - left,
        'lane': lane,
        'ok': result.status is ResultStatus.EXECUTED,
        'title': f'crop {number}: {_window(result, len(views))}, {result.status}',
        'frames': [percent(starts[result.video] + t) for t in result.seconds],
      }
    )
  for event in known_events(episode.task):
    left, right = percent(event['start']), percent(event['end'])
    lane = _lane(event_lanes, event['start'], event['end'] + LABEL * duration)
    events.append({**event, 'left': left, 'width': right - left, 'lane': lane})
  return {
    'overview': [percent(start + t) for start, view in zip(starts, views) for t in view.seconds],
    'crops': crops,
    'lanes': len(lanes),
    'events': events,
    'event_lanes': len(event_lanes),
    'axis': [{'left': 100 * i / 4, 'text': clock(duration * i / 4)} for i in range(5)]
    if len(views) == 1
    else [
      {'left': percent(start), 'text': prompts.label(i)} for i, start in enumerate(starts[:-1], 1)
    ],
  }


def _lane(ends: list[float], start: float, end: float) -> int:
  """Returns the first lane that is free at `start`, and marks it as occupied until `end`.

  Adds a lane if all lanes are occupied.
  """
  lane = next((i for i, taken in enumerate(ends) if taken <= start), len(ends))
  ends[lane : lane + 1] = [end]
  return lane


def known_events(task: Task) -> list[dict[str, Any]]:
  """What the generator knows to happen: {start, end, text, point}, from facts' `events`, `cues`
  with `labels`, and tvg's gold.

  A cue is a single second (point). Facts of another shape are left out.
  """
  found = []
  for event in task.facts.get('events') or ():
    if isinstance(event, Mapping) and 'start' in event and 'end' in event:
      words = [
        str(event[key]) for key in ('label', 'text', 'colour', 'color', 'shape') if event.get(key)
      ]
      found.append(
        {
          'start': float(event['start']),
          'end': float(event['end']),
          'text': ' '.join(words),
          'point': False,
        }
      )
  labels = task.facts.get('labels') or ()
  for i, cue in enumerate(task.facts.get('cues') or ()):
    found.append(
      {
        'start': float(cue),
        'end': float(cue),
        'text': str(labels[i]) if i < len(labels) else '',
        'point': True,
      }
    )
  if task.question_type == 'tvg' and re.fullmatch(r'\s*[\d.]+\s*,\s*[\d.]+\s*', task.answer):
    start, end = map(float, task.answer.split(','))
    found.append({'start': start, 'end': end, 'text': 'gold', 'point': False})
  return sorted(found, key=lambda event: event['start'])


def tokens(trajectory: Trajectory, decode: Decode | None) -> list[dict[str, Any]]:
  """Runs of a trajectory's tokens: given ones together, sampled ones singly with log-prob, version,
  and a surprise of 0..9.
  """
  runs = []
  show = decode or (lambda ids: ' '.join(map(str, ids)) + ' ')
  for segment in trajectory.segments:
    ids = [int(i) for i in segment.ids]
    if not segment.sampled:
      runs.append({'text': show(ids), 'sampled': False, 'count': len(ids)})
      continue
    for token, logprob, version in zip(ids, segment.logprobs, segment.versions):
      runs.append(
        {
          'text': show([token]),
          'sampled': True,
          'level': int(min(9, max(0.0, -logprob) * 3)),
          'title': f'{token} · log-prob {logprob:.3f} · version {version}',
        }
      )
  return runs


def _side(
  caption: str, entry: Entry, load: LoadFrames | None, decode: Decode | None
) -> dict[str, Any]:
  episode, numbers = entry.scored.episode, iter(range(1, 10000))
  sampled = sum(len(s.ids) for s in episode.trajectory.segments if s.sampled)
  return {
    'caption': caption,
    'reward': entry.scored.reward,
    'right': accuracy(entry),
    'stop': str(episode.stop),
    'parts': [
      (name, entry.scored.parts[name])
      for name in ('accuracy', 'format', 'base', 'anchor', 'tool')
      if name in entry.scored.parts
    ],
    'calls': episode.executed,
    'timeline': timeline(episode),
    'rollout': episode.rollout,
    'turns': [_turn(turn, numbers, episode.task.videos, load) for turn in episode.turns],
    'counts': (sampled, sum(len(s.ids) for s in episode.trajectory.segments) - sampled),
    'tokens': [
      ('main agent', tokens(episode.trajectory, decode)),
      *(
        (f'sub-agent {i}', tokens(result.subagent, decode))
        for i, result in enumerate(episode.results, 1)
        if result.subagent is not None
      ),
    ],
  }


def _turn(
  turn: Turn, numbers: Iterator[int], videos: Sequence[str], load: LoadFrames | None
) -> dict[str, Any]:
  results = []
  for result in turn.results:
    thumbs, note = _thumbs(load, videos[result.video] if videos else '', result.seconds)
    results.append(
      {
        'number': next(numbers),
        'ok': result.status is ResultStatus.EXECUTED,
        'status': str(result.status).replace('_', ' '),
        'form': _form(result),
        'by': 'frames' if result.subagent is None else 'sub-agent',
        'window': _window(result, len(videos)),
        'text': result.text,
        'thumbs': thumbs,
        'note': note,
      }
    )
  return {
    'spans': spans(turn.text),
    'results': results,
    'forced': turn.forced,
    'stop': str(turn.stop),
  }


def _form(result: ToolResult) -> str:
  """What the page says of a call that was read although it is not well-formed; '' for others."""
  return (
    'not well-formed' if isinstance(result.call, ToolCall) and not result.call.well_formed else ''
  )


def _window(result: ToolResult, videos: int) -> str:
  if result.window is None:
    return 'no window'
  name = f'{prompts.label(result.video + 1)}, ' if videos > 1 else ''
  return f'{name}{clock(result.window.start)} – {clock(result.window.end)}'


def _overview(load: LoadFrames | None, episode: Episode) -> tuple[list[dict[str, Any]], str]:
  """The thumbnails of every video, named where there are several, and the first note."""
  found, notes = [], []
  for number, (video, view) in enumerate(zip(episode.task.videos, episode.overviews), 1):
    thumbs, note = _thumbs(load, video, view.seconds)
    name = f'{prompts.label(number)}, ' if len(episode.overviews) > 1 else ''
    found += [{**thumb, 'text': name + thumb['text']} for thumb in thumbs]
    notes += [note] if note else []
  return found, notes[0] if notes else ''


def _thumbs(
  load: LoadFrames | None, video: str, seconds: Sequence[float]
) -> tuple[list[dict[str, Any]], str]:
  """Returns thumbnails with their times, and a note if the frames cannot be loaded."""
  times = [{'src': None, 'text': clock(t)} for t in seconds]
  if load is None or not seconds:
    return times, ''
  try:
    frames = load(video, seconds).frames
  except MediaError as error:
    return times, f'no frames: {error}'
  return [
    {**time, 'src': data_uri(frame), 'pixelated': max(frame.shape[:2]) < 100}
    for time, frame in zip(times, frames)
  ], ''


def data_uri(frame: np.ndarray) -> str:
  """uint8[H, W, 3] -> a JPEG data URI, at most THUMB pixels on the longer side."""
  image = Image.fromarray(frame)
  image.thumbnail((THUMB, THUMB))
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', quality=86, subsampling=0)
  return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def caching(load: LoadFrames | None) -> LoadFrames | None:
  """Returns a loader that caches by (video, times): both sides of a pick share their overview."""
  if load is None:
    return None
  kept: dict[tuple, Clip] = collections.OrderedDict()

  def cached(video: str, seconds: Sequence[float]) -> Clip:
    key = video, tuple(seconds)
    if key not in kept:
      kept[key] = load(video, seconds)
    return kept[key]

  return cached

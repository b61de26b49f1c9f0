"""Episodes on disk: one JSON object a line, strict both ways.

Frames are not inlined: a segment records the sizes of its images, and the pixels can be decoded
again from `task.videos` at the recorded seconds (the overview's in `seconds` and `others`, a
sub-agent's in its result's). Everything else is restored unchanged, with numbers to six decimals.
"""

import dataclasses
import enum
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paravt_jax import files
from paravt_jax.errors import DataError
from paravt_jax.metrics.writer import unwritable
from paravt_jax.types import (
  Episode,
  Overview,
  ParseFailure,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  TokenClass,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
  Window,
)

_NUMBER = (int, float)
_DECIMALS = 6
_LISTS = ('videos', 'options', 'slots')


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line of an episode log."""

  step: int  # the training step that used it; 0 for evaluations
  scored: Scored  # segments come back without pixels

  @property
  def key(self) -> tuple[str, int, int]:
    """(task id, budget, rollout): identifies what an interrupted evaluation can skip."""
    return self.scored.episode.task.id, self.scored.episode.budget, self.scored.episode.rollout


class EpisodeLog:
  """Appends episodes to a file. Each append writes a whole line or nothing.

  Args:
    path: the file, such as episodes/train.jsonl; folders are created. start_step: lines at or after
    this step are cut off first (a resumed training run writes them again); None keeps all. A torn
    last line is cut off in either case.

  Raises:
    DataError: an existing line breaks the schema.
    ParavtError: the folder cannot be written.
  """

  def __init__(self, path: Path | str, *, start_step: int | None):
    self.path = Path(path)
    self.keys: set[tuple[str, int, int]] = set()
    keep = 0
    for entry, end in _entries(self.path):
      if start_step is not None and entry.step >= start_step:
        break
      self.keys.add(entry.key)
      keep = end
    try:
      self._file = files.LineWriter(self.path, keep)
    except OSError as error:
      raise unwritable(self.path, 'open', error) from error

  def append(self, step: int, scored: Scored) -> None:
    """Writes one line. Raises ParavtError when the disk is full; the file then ends with the last
    whole line.
    """
    line = (
      json.dumps(to_json(step, scored), separators=(',', ':'), allow_nan=False).encode() + b'\n'
    )
    try:
      self._file.append(line)
    except OSError as error:
      raise unwritable(self.path, f'write an episode of step {step}', error) from error
    self.keys.add((scored.episode.task.id, scored.episode.budget, scored.episode.rollout))

  def close(self) -> None:
    """Closes the file; further appends fail."""
    self._file.close()

  def __enter__(self) -> 'EpisodeLog':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: Path | str) -> Iterator[Entry]:
  """Entries in order of writing; a missing file gives no entries, and a torn last line is skipped.

  Raises:
    DataError: a line breaks the schema; the message names file, line, place, what was there and
    what is wanted.
  """
  for entry, _ in _entries(Path(path)):
    yield entry


def to_json(step: int, scored: Scored) -> dict[str, Any]:
  """The JSON object of one line: numbers, strings, lists and objects only."""
  episode = scored.episode
  return {
    'step': step,
    'reward': _round(scored.reward),
    'parts': {name: _round(value) for name, value in scored.parts.items()},
    'task': {
      **dataclasses.asdict(episode.task),
      **{key: list(getattr(episode.task, key)) for key in _LISTS},
    },
    'rollout': episode.rollout,
    'budget': episode.budget,
    'seconds': [_round(t) for t in episode.seconds],
    'duration': _round(episode.duration),
    'others': [
      {
        'seconds': [_round(t) for t in view.seconds],
        'duration': _round(view.duration),
        **_repeated_to_json(view),
      }
      for view in episode.others
    ],
    **_repeated_to_json(episode),
    'stop': str(episode.stop),
    'turns': [
      {
        'text': turn.text,
        'stop': str(turn.stop),
        'forced': turn.forced,
        'results': [_result_to_json(result) for result in turn.results],
      }
      for turn in episode.turns
    ],
    'trajectory': _trajectory_to_json(episode.trajectory),
  }


def from_json(data: Any, where: str) -> Entry:
  """The inverse of `to_json`; `where` opens every message.

  Raises:
    DataError: a key is missing, unknown, or of another type.
  """
  data, repeated = _repeated(data)
  line = _object(
    data,
    where,
    step=int,
    reward=_NUMBER,
    parts=dict,
    task=dict,
    rollout=int,
    budget=int,
    seconds=list,
    duration=_NUMBER,
    others=list,
    stop=str,
    turns=list,
    trajectory=dict,
  )
  task = _object(
    line['task'],
    f'{where}, task',
    id=str,
    videos=list,
    question=str,
    question_type=str,
    answer=str,
    options=list,
    source=str,
    facts=dict,
    slots=list,
  )
  turns = tuple(_turn(turn, f'{where}, turns[{i}]') for i, turn in enumerate(line['turns']))
  episode = Episode(
    task=Task(**{**task, **{key: tuple(task[key]) for key in _LISTS}}),
    rollout=line['rollout'],
    budget=line['budget'],
    seconds=tuple(line['seconds']),
    duration=line['duration'],
    turns=turns,
    trajectory=_trajectory(line['trajectory'], f'{where}, trajectory'),
    stop=_enum(StopReason, line['stop'], f'{where}, stop'),
    others=tuple(_overview(view, f'{where}, others[{i}]') for i, view in enumerate(line['others'])),
    repeated=repeated,
  )
  return Entry(line['step'], Scored(episode, line['reward'], line['parts']))


def _entries(path: Path) -> Iterator[tuple[Entry, int]]:
  """Entries with the offset at which their line ends."""
  for number, line, end in files.read_lines(path):
    where = f'{path} line {number}'
    try:
      data = json.loads(line)
    except ValueError as error:
      raise DataError(
        f'{where}: got {line[:60]!r}, wanted a JSON object; remove the line'
      ) from error
    yield from_json(data, where), end


def _round(value: float) -> float:
  return round(float(value), _DECIMALS)


def _trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
  return {
    'stop': str(trajectory.stop),
    'segments': [
      {
        'ids': np.asarray(segment.ids).tolist(),
        'sampled': segment.sampled,
        'token_class': int(segment.token_class),
        'images': [list(image.shape[:2]) for image in segment.images],
        'logprobs': [_round(x) for x in np.asarray(segment.logprobs)],
        'versions': np.asarray(segment.versions).tolist(),
      }
      for segment in trajectory.segments
    ],
  }


def _result_to_json(result: ToolResult) -> dict[str, Any]:
  window = result.window
  return {
    'call': _json_safe(dataclasses.asdict(result.call)),
    'status': str(result.status),
    'text': result.text,
    'window': None
    if window is None
    else [_round(window.start), _round(window.end), window.num_frames],
    'seconds': [_round(t) for t in result.seconds],
    'subagent': None if result.subagent is None else _trajectory_to_json(result.subagent),
    'video': result.video,
    **_repeated_to_json(result),
  }


def _repeated_to_json(seen: Episode | Overview | ToolResult) -> dict[str, int]:
  return {'repeated': seen.repeated} if seen.repeated else {}


def _repeated(data: Any) -> tuple[Any, int]:
  """(the object without it, frames left out as repeats); lines without any, or older than the
  count, do not have the key.
  """
  if isinstance(data, dict) and type(data.get('repeated')) is int:
    return {key: value for key, value in data.items() if key != 'repeated'}, data['repeated']
  return data, 0


def _json_safe(value: Any) -> Any:
  """Returns a policy's arguments with NaN and Infinity as text, because strict JSON forbids them.

  Python's JSON parser accepts both.
  """
  if isinstance(value, dict):
    return {key: _json_safe(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_json_safe(item) for item in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _overview(data: Any, where: str) -> Overview:
  data, repeated = _repeated(data)
  view = _object(data, where, seconds=list, duration=_NUMBER)
  return Overview(tuple(view['seconds']), view['duration'], repeated)


def _turn(data: Any, where: str) -> Turn:
  turn = _object(data, where, text=str, stop=str, forced=bool, results=list)
  results = tuple(
    _result(result, f'{where}, results[{i}]') for i, result in enumerate(turn['results'])
  )
  return Turn(
    turn['text'], results, _enum(StopReason, turn['stop'], f'{where}, stop'), turn['forced']
  )


def _result(data: Any, where: str) -> ToolResult:
  data, repeated = _repeated(data)
  result = _object(
    data,
    where,
    call=dict,
    status=str,
    text=str,
    window=(list, type(None)),
    seconds=list,
    subagent=(dict, type(None)),
    video=int,
  )
  if 'reason' in result['call']:
    call = ParseFailure(**_object(result['call'], f'{where}, call', reason=str, text=str))
  else:
    # older files, written before calls of other forms ran, lack this key
    reading = {'well_formed': True, **result['call']}
    call = ToolCall(
      **_object(reading, f'{where}, call', name=str, arguments=dict, well_formed=bool)
    )
  if result['window'] is not None and len(result['window']) != 3:
    raise DataError(f'{where}, window: got {result["window"]}, wanted [start, end, num_frames]')
  return ToolResult(
    call,
    _enum(ResultStatus, result['status'], f'{where}, status'),
    result['text'],
    None if result['window'] is None else Window(*result['window']),
    tuple(result['seconds']),
    None if result['subagent'] is None else _trajectory(result['subagent'], f'{where}, subagent'),
    result['video'],
    repeated,
  )


def _trajectory(data: Any, where: str) -> Trajectory:
  trajectory = _object(data, where, stop=str, segments=list)
  segments = []
  for i, raw in enumerate(trajectory['segments']):
    segment = _object(
      raw,
      f'{where}, segments[{i}]',
      ids=list,
      sampled=bool,
      token_class=int,
      images=list,
      logprobs=list,
      versions=list,
    )
    counts = len(segment['logprobs']), len(segment['versions'])
    wanted = len(segment['ids']) if segment['sampled'] else 0
    if counts != (wanted, wanted):
      raise DataError(
        f'{where}, segments[{i}]: got {counts[0]} logprobs and {counts[1]} versions, wanted '
        f'{wanted} each ({len(segment["ids"])} ids, sampled: {segment["sampled"]})'
      )
    segments.append(
      Segment(
        np.asarray(segment['ids'], np.int32),
        segment['sampled'],
        (),
        np.asarray(segment['logprobs'], np.float32),
        np.asarray(segment['versions'], np.int32),
        _enum(TokenClass, segment['token_class'], f'{where}, segments[{i}], token_class'),
      )
    )
  return Trajectory(tuple(segments), _enum(StopReason, trajectory['stop'], f'{where}, stop'))


def _object(data: Any, where: str, **wanted: type | tuple[type, ...]) -> Mapping[str, Any]:
  """`data` itself, once it is an object of exactly the wanted keys and types."""
  if not isinstance(data, dict) or set(data) != set(wanted):
    got = sorted(data) if isinstance(data, dict) else type(data).__name__
    raise DataError(
      f'{where}: got {got}, wanted an object with exactly {sorted(wanted)}; it was written '
      'by another version'
    )
  for key, kind in wanted.items():
    value = data[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
      raise DataError(f'{where}, {key}: got {value!r:.60} ({type(value).__name__}), wanted {kind}')
  return data


def _enum(kind: type[enum.Enum], value: str | int, where: str):
  if value not in set(kind):
    raise DataError(f'{where}: got {value!r}, wanted one of {[str(member) for member in kind]}')
  return kind(value)

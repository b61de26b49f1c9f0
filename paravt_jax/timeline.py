"""Who was busy when: the timeline of a run, as trace events.

The file holds one event a line in the JSON array format of Chrome's trace viewer, which
https://ui.perfetto.dev and chrome://tracing open. That format needs no closing bracket, so the file
of a run that was killed opens too.
"""

import contextlib
import json
import logging
import pathlib
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

from paravt_jax import files

_LEAST_S = 1e-3  # shorter spans are not written
_BEGIN = b'[\n'
log = logging.getLogger(__name__)


class Timeline:
  """Collects spans by lane, and appends them to a file at `flush` and at the end.

  A lane is a line of the picture: 'learner', 'decoder', a server. Any thread may add to it. A disk
  that is full gives one warning, and the run goes on without a timeline.
  """

  def __init__(self, path: pathlib.Path | None):
    """Opens the file behind its last whole event.

    Args:
      path: made if missing. None: nothing is kept.
    """
    self._lock = threading.Lock()
    self._busy: dict[str, list[float]] = {}  # lane -> uses now, most at once, begin
    self._lines: list[bytes] = []
    self._lanes: set[str] = set()
    # Unix time of the monotonic clock's zero, so that a clock that jumps moves no span
    self._zero = time.time() - time.monotonic()
    self._file = None
    if path is None:
      return
    try:
      whole = path.read_bytes().rfind(b'\n') + 1 if path.is_file() else 0
      self._file = files.LineWriter(path, keep=whole)
      if not whole:
        self._file.append(_BEGIN)
    except OSError as error:
      self._give_up(error)

  def __enter__(self) -> 'Timeline':
    return self

  def __exit__(self, *_: object) -> None:
    self.flush()
    if self._file is not None:
      self._file.close()
      self._file = None

  def span(self, lane: str, name: str, start: float, end: float, **facts: Any) -> None:
    """Adds a span.

    Args:
      start, end: seconds of `time.monotonic()`.
      facts: shown with the span; JSON values.
    """
    if self._file is None or end - start < _LEAST_S:
      return
    track = zlib.crc32(lane.encode(errors='replace')) & 0x7FFFFFFF
    begin, length = (self._zero + start) * 1e6, (end - start) * 1e6
    event = {'ph': 'X', 'pid': 1, 'tid': track, 'name': name, 'ts': round(begin)}
    with self._lock:
      if lane not in self._lanes:
        self._lanes.add(lane)
        named = {'ph': 'M', 'pid': 1, 'tid': track, 'name': 'thread_name', 'args': {'name': lane}}
        self._lines.append(_line(named))
      self._lines.append(_line({**event, 'dur': round(length), 'args': facts}))

  @contextlib.contextmanager
  def busy(self, lane: str) -> Iterator[None]:
    """Counts a use of the lane. Uses that overlap make one span, with the most at once."""
    if self._file is None:
      yield
      return
    with self._lock:
      uses = self._busy.setdefault(lane, [0, 0, time.monotonic()])
      uses[0] += 1
      uses[1] = max(uses[1], uses[0])
    try:
      yield
    finally:
      with self._lock:
        uses[0] -= 1
        if not uses[0]:
          del self._busy[lane]
      if not uses[0]:
        self.span(lane, 'busy', uses[2], time.monotonic(), most_at_once=int(uses[1]))

  def flush(self) -> None:
    """Writes what was collected."""
    with self._lock:
      lines, self._lines = self._lines, []
    if self._file is None or not lines:
      return
    try:
      self._file.append(b''.join(lines))
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    log.warning('timeline: cannot be written (%s); the run goes on without it', error)
    if self._file is not None:
      self._file.close()
    self._file = None


def _line(event: dict[str, Any]) -> bytes:
  return json.dumps(event, separators=(',', ':')).encode() + b',\n'


def read(path: pathlib.Path) -> dict[str, list[tuple[str, float, float]]]:
  """Returns the spans of a file: lane -> [(name, start, end), ...] in Unix seconds, by start.

  Lines that are no event, such as the torn last line of a run that was killed, are left out.
  """
  named: dict[int, str] = {}
  spans: dict[int, list[tuple[str, float, float]]] = {}
  with path.open('rb') as file:
    for line in file:
      event = _event(line)
      if event.get('ph') == 'M':
        named[event['tid']] = str(event['args']['name'])
      elif event.get('ph') == 'X':
        start = event['ts'] / 1e6
        spans.setdefault(event['tid'], []).append(
          (str(event['name']), start, start + event['dur'] / 1e6)
        )
  return {named.get(track, str(track)): sorted(found, key=_start) for track, found in spans.items()}


def _event(line: bytes) -> dict[str, Any]:
  try:
    event = json.loads(line.rstrip().rstrip(b','))
  except ValueError:
    return {}
  if not isinstance(event, dict):
    return {}
  wanted = {'M': ('tid', 'args'), 'X': ('tid', 'name', 'ts', 'dur')}.get(str(event.get('ph')), ())
  whole = bool(wanted) and all(name in event for name in wanted)
  return event if whole else {}


def _start(span: tuple[str, float, float]) -> float:
  return span[1]

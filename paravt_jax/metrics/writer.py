"""Metrics of a run: one JSON object per step in metrics.jsonl, and TensorBoard events and W&B on
request.

A record is flat: {"step": 3, "wall": 1763690000.1, "accuracy": 0.5, "accuracy/k=4": null}. `wall`
is Unix time, null a value that was not finite.
"""

import importlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from paravt_jax import files
from paravt_jax.errors import ConfigError, DataError, ParavtError
from paravt_jax.metrics import names

log = logging.getLogger(__name__)
FILE = 'metrics.jsonl'  # in the run folder
_PROTO: Any = event_pb2  # protobuf makes its classes when it is imported, unseen by type checkers


class MetricsWriter:
  """Appends one record of metrics per step, on disk before the call returns.

  Args:
    folder: the run's folder; created when missing.
    tensorboard: whether to write TensorBoard events to folder/tensorboard too.
    wandb: keyword arguments for `wandb.init`, or None for no W&B.
    start_step: the first step that will be written. Records at or after it (of a run that resumes
      from an earlier checkpoint) and a torn last line are cut off, so that no step is there twice.
      0 starts an empty file.

  Raises:
    ConfigError: W&B is asked for and not installed.
    DataError: a whole line of an existing metrics.jsonl is no record.
    ParavtError: the disk is full, or the folder cannot be written.
  """

  def __init__(
    self, folder: Path | str, *, tensorboard: bool, wandb: Mapping[str, Any] | None, start_step: int
  ):
    self.path = Path(folder) / FILE
    self.nonfinite = 0
    self._warned: set[str] = set()
    self._step = start_step - 1
    self._wandb = _start_wandb(wandb) if wandb is not None else None
    try:
      ends = [end for record, end in _records(self.path) if record['step'] < start_step]
      self._file = files.LineWriter(self.path, keep=ends[-1] if ends else 0)
      self._events = (
        _open_events(self.path.parent / 'tensorboard', start_step) if tensorboard else None
      )
    except OSError as error:
      raise unwritable(self.path, f'open for step {start_step}', error) from error

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends the record of one step. Values are scalars (numpy's and JAX's too).

    Raises:
      ConfigError: a name is not in the dictionary.
      ValueError: the step does not come after the last one.
      ParavtError: the disk is full; the file then ends with the last whole record.
    """
    if step <= self._step:
      raise ValueError(f'metrics: got step {step} after step {self._step}; wanted increasing steps')
    for name in metrics:
      names.lookup(name)
    values = self._finite(step, {name: float(value) for name, value in metrics.items()})
    line = json.dumps({'step': step, 'wall': round(time.time(), 3), **values}, allow_nan=False)
    try:
      self._file.append(line.encode() + b'\n')
    except OSError as error:
      raise unwritable(self.path, f'write step {step}', error) from error
    known = {name: value for name, value in values.items() if value is not None}
    if self._events is not None:
      try:
        _write_event(self._events, step, known)
      except OSError as error:
        raise unwritable(self.path.parent / 'tensorboard', f'write step {step}', error) from error
    if self._wandb is not None:
      self._wandb.log(known, step=step)
    self._step = step

  def close(self) -> None:
    """Closes the files; further writes fail."""
    self._file.close()
    if self._events is not None:
      self._events.close()
    if self._wandb is not None:
      self._wandb.finish()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _finite(self, step: int, values: dict[str, float]) -> dict[str, float | None]:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
      return dict(values)
    self.nonfinite += len(bad)
    fresh = [name for name in bad if name not in self._warned]
    if fresh:
      self._warned.update(fresh)
      log.warning(
        'step %d: not finite, written as null: %s (%d such values so far)',
        step,
        ', '.join(fresh),
        self.nonfinite,
      )
    return {
      **{name: None if name in bad else value for name, value in values.items()},
      'metrics/nonfinite': float(len(bad)),
    }


def unwritable(path: Path, what: str, error: OSError) -> ParavtError:
  """The one line that a failed write ends in: where, what, why, and the way out."""
  return ParavtError(
    f'{path}: could not {what}: {error.strerror}; free space or mend the folder, then run '
    'the command again'
  )


def write_whole(path: Path | str, text: str, what: str) -> Path:
  """Writes a text file in one go, folders and all: a reader, or a kill, never meets half of it.

  Args:
    path: the file.
    text: half characters in it (a file's broken name) become '?'.
    what: what is written, for the message, such as 'write the report'.

  Raises:
    ParavtError: it cannot be written; the file stays as it was.
  """
  path = Path(path)
  try:
    files.write(path, text.encode('utf-8', 'replace'), sync=False)
  except OSError as error:
    raise unwritable(path, what, error) from error
  return path


def read(path: Path | str) -> list[dict[str, float | None]]:
  """All whole records, in order of writing; a missing file gives none, a torn last line is left
  out.

  Raises:
    DataError: a line that is not the last one is no JSON object with an integer `step`.
  """
  return [record for record, _ in _records(Path(path))]


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
  """Each whole record, and the bytes of the file up to and with it."""
  for line in files.read_lines(path):
    try:
      record = json.loads(line.text)
    except ValueError:
      record = None
    if not isinstance(record, dict) or not isinstance(record.get('step'), int):
      raise DataError(
        f'{path} line {line.number}: got {line.text[:60]!r}, wanted a JSON object with an integer '
        '"step"; cut it out'
      )
    yield record, line.end


def _open_events(folder: Path, start_step: int) -> EventsWriter:
  folder.mkdir(parents=True, exist_ok=True)
  events = EventsWriter(str(folder / 'events'))
  # viewers throw away what they have from this step on
  start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
  events.write_event(_PROTO.Event(wall_time=time.time(), step=start_step, session_log=start))
  return events


def _write_event(events: EventsWriter, step: int, values: Mapping[str, float]) -> None:
  for name, value in values.items():
    events.write_event(_PROTO.Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
  events.flush()


def _start_wandb(options: Mapping[str, Any]):
  try:
    wandb = importlib.import_module('wandb')
  except ImportError as error:
    raise ConfigError(
      'metrics: W&B is asked for, but the package wandb is not installed; '
      'pip install wandb, or switch it off in the recipe'
    ) from error
  return wandb.init(**options)

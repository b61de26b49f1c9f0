"""What a step has finished: one JSON line per item, appended whole. A kill at any point loses the
items in flight, no more.

A line says what the item was made from. One that would be made from something else now (another
input, prompt or model) is not taken for done; the last line of an item counts.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from paravt_jax.longvideo_reason.items import Rejected

Made = Mapping[str, Any]


class Journal:
  """The lines of one file. `torn` is the number of unreadable lines that were found (a kill leaves
  one at most).
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._entries: dict[str, dict[str, Any]] = {}
    self.torn = 0
    content = self.path.read_bytes() if self.path.exists() else b''
    whole = content.rpartition(b'\n')[0]
    for line in whole.split(b'\n') if whole else ():
      try:
        entry = json.loads(line)
        self._entries[entry['item']] = {
          'made_from': entry['made_from'],
          'result': entry['result'],
          'rejected': entry['rejected'],
        }
      except (ValueError, KeyError, TypeError):
        self.torn += 1
    self._file = self.path.open('ab', buffering=0)
    if len(whole) + 1 < len(content) or (content and not whole):
      self.torn += 1
      self._file.truncate(len(whole) + 1 if whole else 0)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()

  def current(self, item: str, made_from: Made) -> Any | Rejected | None:
    """The result of an item, or its rejection, if it was made from just this; else None."""
    entry = self._entries.get(item)
    if entry is None or entry['made_from'] != json.loads(json.dumps(made_from)):
      return None
    return Rejected(**entry['rejected']) if entry['rejected'] else entry['result']

  def changed(self, item: str, made_from: Made) -> list[str]:
    """What a finished item was made from that is otherwise now, by name; empty when it is current
    or was never finished.
    """
    entry = self._entries.get(item)
    if entry is None:
      return []
    before, now = entry['made_from'], json.loads(json.dumps(made_from))
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))

  def last(self, item: str) -> dict[str, Any] | None:
    """{made_from, result, rejected} as last written, whatever it was made from."""
    return self._entries.get(item)

  def put(self, item: str, made_from: Made, outcome: Any | Rejected) -> None:
    """Appends an item's outcome, a JSON value or a Rejected, as one line. Raises OSError when the
    disk is full.
    """
    rejected = vars(outcome) if isinstance(outcome, Rejected) else None
    entry = {
      'made_from': dict(made_from),
      'result': None if rejected else outcome,
      'rejected': rejected,
    }
    line = json.dumps({'item': item, **entry}, ensure_ascii=True).encode() + b'\n'
    size = os.fstat(self._file.fileno()).st_size
    try:
      written = self._file.write(line)
      if written != len(line):
        raise OSError(28, os.strerror(28), str(self.path))
    except OSError:
      self._file.truncate(size)  # half a line is no line, and must not spoil the next one
      raise
    self._entries[item] = json.loads(json.dumps(entry))


def write_atomic(path: pathlib.Path, content: bytes) -> bool:
  """Writes by rename after an fsync; False when the file already holds just this, which is then
  left alone.
  """
  if path.is_file() and path.read_bytes() == content:
    return False
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    with partial.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
  return True


def json_bytes(value: Any) -> bytes:
  """Readable JSON, ending in a line feed; texts as they are."""
  return (json.dumps(value, ensure_ascii=False, indent=1) + '\n').encode()

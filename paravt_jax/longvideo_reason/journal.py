"""The journal of a step: one JSON line per finished item, appended as a whole line. A kill at any
point loses only the items in flight.

A line records the inputs of the item. If the inputs have changed since (video, prompt or model),
the item is not finished. The last line of an item counts.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from paravt_jax import files
from paravt_jax.longvideo_reason.items import Rejected

Made = Mapping[str, Any]


class Journal:
  """The lines of one file. `torn` is the number of unreadable lines that were found (a kill leaves
  one at most).
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._entries: dict[str, dict[str, Any]] = {}
    self.torn = 0
    end = 0
    for line in files.read_lines(self.path):
      end = line.end
      try:
        entry = json.loads(line.text)
        self._entries[entry['item']] = {
          'made_from': entry['made_from'],
          'result': entry['result'],
          'rejected': entry['rejected'],
        }
      except (ValueError, KeyError, TypeError):
        self.torn += 1
    self.torn += self.path.is_file() and self.path.stat().st_size > end
    self._file = files.LineWriter(self.path, keep=end)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()

  def current(self, item: str, made_from: Made) -> Any | Rejected | None:
    """Returns the result or the rejection of an item if it was made from exactly these inputs, else
    None.
    """
    entry = self._entries.get(item)
    if entry is None or entry['made_from'] != json.loads(json.dumps(made_from)):
      return None
    return Rejected(**entry['rejected']) if entry['rejected'] else entry['result']

  def changed(self, item: str, made_from: Made) -> list[str]:
    """Returns the names of the inputs of a finished item that have changed; empty when it is
    current or was never finished.
    """
    entry = self._entries.get(item)
    if entry is None:
      return []
    before, now = entry['made_from'], json.loads(json.dumps(made_from))
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))

  def last(self, item: str) -> dict[str, Any] | None:
    """{made_from, result, rejected} as last written, for any inputs."""
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
    self._file.append(line)
    self._entries[item] = json.loads(json.dumps(entry))


def json_bytes(value: Any) -> bytes:
  """Returns indented JSON that ends in a line feed. Non-ASCII text is not escaped."""
  return (json.dumps(value, ensure_ascii=False, indent=1) + '\n').encode()

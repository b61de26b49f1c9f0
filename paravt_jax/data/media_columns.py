"""Rewrites media paths in Arrow columns: `media_paths` applied to whole tables, with counts.

Text columns (JSON) are edited in place. Nested columns are split down to their strings. Each
distinct string is changed once, and the column is rebuilt with the same offsets and nulls.
"""

import bisect
import collections
import os
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.types as types

from paravt_jax.data import media_paths

Direction = Literal['materialize', 'sanitize']
Runs = dict[str, list[list[int]]]
COLUMNS = ('messages', 'videos', 'images', 'prompt')
WANTED = {'materialize': 'sentinel', 'sanitize': 'in_root'}
_QUOTED = tuple(f'"{sentinel}' for sentinel in media_paths.SENTINELS)
_ROWS = 4096  # rows that are converted to Python objects at a time


class Rewriter:
  """Changes the media paths in the tables of one file, given in order, and counts them.

  Attributes:
    changed: number of changed values.
    left: number of unchanged values, by `media_paths.kind`. Three kinds are extra. `kept`: URIs
      under the root that existed before `materialize`. `elsewhere`: sentinels in places where no
      media path is expected. `other_type`: values of unsupported types (bytes, maps).
    found: every sentinel that occurred, alone or in a URI under the root.
    kept: positions of the `kept` URIs, {column path: [[first, one past the last], ...]}, counted
      over the values of the column. With them `sanitize` leaves these URIs unchanged, so that both
      commands in sequence give back the original file.
  """

  def __init__(
    self,
    direction: Direction,
    roots: Sequence[str | os.PathLike],
    kept: Mapping[str, list] | None = None,
  ):
    """Prepares a rewriter.

    Args:
      roots: the media root, then other names of the same folder.
      kept: recorded by an earlier `materialize`; None if there was none.
    """
    self._prefixes = tuple(dict.fromkeys(media_paths.prefix(root) for root in roots))
    self._direction, self._wanted = direction, WANTED[direction]
    self._kinds: dict[str, str] = {}
    self._positions: collections.Counter[str] = collections.Counter()
    self._records = direction == 'materialize' and kept is None
    self.kept: Runs = dict(kept or {})
    self.changed = 0
    self.left: collections.Counter[str] = collections.Counter()
    self.found: set[str] = set()

  def table(self, table: pyarrow.Table) -> pyarrow.Table:
    """Returns the table with changed paths in its media columns.

    Schema, other columns and row order stay the same.
    """
    for index, field in enumerate(table.schema):
      if field.name in COLUMNS:
        parts = [
          self._array(chunk.slice(start, _ROWS), field.name, None)
          for chunk in table.column(index).chunks
          for start in range(0, len(chunk), _ROWS)
        ]
        table = table.set_column(index, field, pyarrow.chunked_array(parts, field.type))
    return table

  def _array(self, array: pyarrow.Array, path: str, key: str | None) -> pyarrow.Array:
    """Rewrites an array of any type.

    key: name of the enclosing struct field; None outside structs.
    """
    kind = array.type
    if isinstance(kind, pyarrow.BaseExtensionType):
      return pyarrow.ExtensionArray.from_storage(kind, self._array(array.storage, path, key))
    if types.is_dictionary(kind):
      return self._array(array.dictionary_decode(), path, key).dictionary_encode().cast(kind)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
      return self._texts(array, path) if key is None else self._strings(array, path, key)
    if types.is_struct(kind):
      array = _compact(array)
      names = [kind.field(index).name for index in range(kind.num_fields)]
      children = [
        self._array(child, f'{path}.{name}', name) for name, child in zip(names, array.flatten())
      ]
      return pyarrow.Array.from_buffers(
        kind, len(array), array.buffers()[:1], array.null_count, 0, children
      )
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
      array = _compact(array)
      buffers = array.buffers()[: 1 if types.is_fixed_size_list(kind) else 2]
      values = self._array(array.values, path, key)
      return pyarrow.Array.from_buffers(kind, len(array), buffers, array.null_count, 0, [values])
    if types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
      self._count_left('other_type', len(array) - array.null_count)
    return array

  def _texts(self, array: pyarrow.Array, column: str) -> pyarrow.Array:
    """Rewrites a text column: JSON, or paths alone."""
    known = 0

    def change(value: str) -> str:
      nonlocal known
      kind = self._kind(value)
      known += kind in ('sentinel', 'leaves_root')
      position = self._positions[column]
      self._positions[column] += 1
      if kind == 'in_root' and self._is_kept(column, position):
        kind = 'kept'
      self._count(kind, 1)
      return self._change_path(value) if kind == self._wanted else value

    texts = array.to_pylist()
    result = [
      None if text is None else media_paths.rewrite_text(text, change, column) for text in texts
    ]
    mentions = sum(text.count(quoted) for text in texts if text for quoted in _QUOTED)
    self._count_left('elsewhere', max(0, mentions - known))
    return array if result == texts else pyarrow.array(result, array.type)

  def _strings(self, array: pyarrow.Array, path: str, key: str) -> pyarrow.Array:
    """Rewrites strings under a key. Each distinct string is processed once."""
    # [D] distinct strings; `indices` has one per row
    encoded = array.cast(pyarrow.large_string()).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    start = self._positions[path]
    self._positions[path] += len(array)
    if key not in media_paths.KEYS:
      values = [value if value.startswith(media_paths.SENTINELS) else None for value in values]
      self._count_left(
        'elsewhere',
        len(array) - pyarrow.array(values, pyarrow.large_string()).take(encoded.indices).null_count,
      )
      return array
    # positions of the non-null rows, and URIs under the root that must stay
    present = np.flatnonzero(np.asarray(encoded.indices.is_valid()))
    which = encoded.indices.drop_null().to_numpy()
    kinds = [self._kind(value) for value in values]
    in_root = np.array([kind == 'in_root' for kind in kinds], bool)[which]
    kept = np.zeros(len(array), bool)
    kept[[place for place in present[in_root].tolist() if self._is_kept(path, start + place)]] = (
      True
    )
    for kind, count in zip(
      kinds, np.bincount(which[~kept[present]], minlength=len(values)).tolist()
    ):
      self._count(kind, count)
    self._count_left('kept', int(kept.sum()))
    if self._wanted not in kinds:
      return array
    # change each distinct string once, then rebuild the rows
    changed = [
      self._change_path(value) if kind == self._wanted else value
      for value, kind in zip(values, kinds)
    ]
    result = pyarrow.array(changed, pyarrow.large_string()).take(encoded.indices)
    if kept.any():
      result = pyarrow.compute.if_else(  # pyright: ignore[reportAttributeAccessIssue] (dynamic)
        pyarrow.array(kept), array.cast(pyarrow.large_string()), result
      )
    return result.cast(array.type)

  def _kind(self, value: str) -> str:
    kind = self._kinds.get(value)
    if kind is None:
      kind = self._kinds[value] = media_paths.kind(value, self._prefixes)
      if kind in ('sentinel', 'in_root'):
        self.found.add(self._sentinel(value))
    return kind

  def _sentinel(self, value: str) -> str:
    return value[max(len(prefix) for prefix in ('', *self._prefixes) if value.startswith(prefix)) :]

  def _change_path(self, value: str) -> str:
    return self._prefixes[0] + value if self._direction == 'materialize' else self._sentinel(value)

  def _count(self, kind: str, count: int):
    if kind == self._wanted:
      self.changed += count
    else:
      self._count_left(kind, count)

  def _count_left(self, kind: str, count: int):
    if count:
      self.left[kind] += count

  def _is_kept(self, path: str, position: int) -> bool:
    """Returns whether `sanitize` must leave a URI under the root unchanged.

    `materialize` records the position of each such URI.
    """
    if self._records:
      runs = self.kept.setdefault(path, [])
      if runs and runs[-1][1] == position:
        runs[-1][1] += 1
      else:
        runs.append([position, position + 1])
    if self._direction == 'materialize':
      return False
    runs = self.kept.get(path, [])
    before = bisect.bisect_right(runs, position, key=lambda run: run[0]) - 1
    return before >= 0 and position < runs[before][1]


def _compact(array: pyarrow.Array) -> pyarrow.Array:
  """Returns the same values in new buffers that contain only this slice."""
  return pyarrow.concat_arrays([array, array.slice(0, 0)])

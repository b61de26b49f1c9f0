"""Defines the sources of SFT data: their parquet files, weights and training steps.

A manifest is a JSON file next to the data: {"sources": {name: {"files": [globs relative to it],
"weight": 2.5, "first": 0, "last": null}}}. All keys except `files` are optional. Without a
manifest, each given file is one source.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax.errors import DataError

_KEYS = ('files', 'weight', 'first', 'last')
_PREFIX = 'paravt_sft_'


@dataclasses.dataclass(frozen=True)
class Entry:
  """A source. It is drawn from in steps with first <= step < last."""

  name: str
  files: tuple[pathlib.Path, ...]
  weight: float | None  # None if not given
  first: int
  last: int | None  # None: without end


def read(file: str | os.PathLike) -> tuple[Entry, ...]:
  """Returns the sources of a manifest, in order.

  Raises:
    DataError: the file is missing or not such JSON; it has an unknown key, a glob that matches no
      file, a file in two places, or an invalid weight or step.
  """
  file = pathlib.Path(file)
  try:
    value = json.loads(
      file.read_text(encoding='utf-8-sig'), object_pairs_hook=lambda pairs: _unique(file, pairs)
    )
  except (OSError, ValueError) as error:
    raise DataError(
      f'manifest {file}: cannot be read ({error}), wanted JSON {{"sources": {{...}}}}; check '
      'data.manifest'
    ) from error
  sources = value.get('sources') if isinstance(value, dict) else None
  if not isinstance(sources, dict) or set(value) != {'sources'}:
    raise DataError(
      f'manifest {file}: got {_short_repr(value)}, wanted one key "sources"; see '
      'paravt_jax/data/manifest.py'
    )
  if not sources:
    raise DataError(f'manifest {file}: no sources, wanted at least one; name its parquet files')
  entries = tuple(_entry(file, name, fields) for name, fields in sources.items())
  _check_twice(f'manifest {file}', entries)
  return entries


def of_files(files: Sequence[str | os.PathLike]) -> tuple[Entry, ...]:
  """Returns one source per file, named after the file without paravt_sft_ and .parquet.

  Raises DataError for a repeated file or name.
  """
  paths = tuple(map(pathlib.Path, files))
  entries = tuple(Entry(path.stem.removeprefix(_PREFIX), (path,), None, 0, None) for path in paths)
  _check_twice('data.train', entries)
  names = [entry.name for entry in entries]
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice is not None:
    raise DataError(
      f'data.train: two files give a source named {twice!r}, wanted names of their own; use '
      'data.manifest'
    )
  return entries


def with_weights(
  entries: Sequence[Entry],
  chosen: Mapping[str, tuple[float, int, int | None]],
  rows: Mapping[str, int],
) -> tuple[tuple[Entry, float], ...]:
  """Returns (source, weight of its draws) pairs. The recipe's choices override the manifest.

  If no source has a weight, sources are drawn in proportion to their rows. Otherwise sources
  without a weight get 1.

  Args:
    entries: the sources.
    chosen: (weight, first, last) by name.
    rows: number of rows of each source.

  Raises:
    DataError: a choice is invalid, or no source is left to draw from.
  """
  found = []
  for entry in entries:
    if entry.name in chosen:
      weight, first, last = chosen[entry.name]
      entry = _check_entry(
        f'sources.{entry.name}', dataclasses.replace(entry, weight=weight, first=first, last=last)
      )
    found.append(entry)
  natural = all(entry.weight is None for entry in found)
  weights = [
    float(rows[entry.name]) if natural else 1.0 if entry.weight is None else float(entry.weight)
    for entry in found
  ]
  if not any(weight > 0 and rows[entry.name] for entry, weight in zip(found, weights)):
    raise DataError(
      'SFT data: nothing left to draw from '
      f'({", ".join(f"{e.name}: {rows[e.name]} rows" for e in found)}), wanted a '
      'source with rows and a weight above 0; check the files and their weights'
    )
  return tuple(zip(found, weights))


def _unique(file: pathlib.Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object as a dict. Raises DataError for a repeated key, which would be lost."""
  found = dict(pairs)
  if len(found) != len(pairs):
    names = [name for name, _ in pairs]
    raise DataError(
      f'manifest {file}: {next(n for n in names if names.count(n) > 1)!r} comes twice in one '
      'object; rename one'
    )
  return found


def _entry(file: pathlib.Path, name: str, fields: Any) -> Entry:
  where = f'manifest {file}: sources.{name}'
  if not isinstance(fields, dict):
    raise DataError(f'{where}: got {_short_repr(fields)}, wanted an object with "files"')
  unknown = sorted(set(fields) - set(_KEYS))
  if unknown:
    raise DataError(f'{where}: got the key {unknown[0]!r}, wanted only {", ".join(_KEYS)}')
  globs = fields.get('files')
  if (
    not isinstance(globs, list)
    or not globs
    or not all(isinstance(glob, str) and glob for glob in globs)
  ):
    raise DataError(
      f'{where}.files: got {_short_repr(globs)}, wanted a list of file names or patterns'
    )
  files = []
  for glob in globs:
    try:
      matches = sorted(path for path in file.parent.glob(glob) if path.is_file())
    except (ValueError, NotImplementedError) as error:
      raise DataError(
        f'{where}.files: {glob!r}: {error}, wanted a path relative to the manifest'
      ) from error
    if not matches:
      raise DataError(
        f'{where}.files: nothing matches {glob!r} below {file.parent.absolute()}; check the pattern'
      )
    files += matches
  return _check_entry(
    where,
    Entry(name, tuple(files), fields.get('weight'), fields.get('first', 0), fields.get('last')),
  )


def _check_entry(where: str, entry: Entry) -> Entry:
  """Returns the entry. Raises DataError if a number is out of range."""

  def number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

  if entry.weight is not None and not (
    number(entry.weight, (int, float)) and math.isfinite(entry.weight) and entry.weight >= 0
  ):
    raise DataError(f'{where}.weight: got {entry.weight!r}, wanted a number from 0 on')
  if not number(entry.first, int) or entry.first < 0:
    raise DataError(f'{where}.first: got {entry.first!r}, wanted a step from 0 on')
  if entry.last is not None and not (number(entry.last, int) and entry.last > entry.first):
    raise DataError(
      f'{where}.last: got {entry.last!r}, wanted a step above first ({entry.first}), or null'
    )
  return entry


def _check_twice(where: str, entries: Sequence[Entry]) -> None:
  """Raises DataError if a file is in two places, since its rows would silently count twice."""
  seen: dict[pathlib.Path, str] = {}
  for entry in entries:
    for path in entry.files:
      real = path.resolve()
      if real in seen:
        raise DataError(
          f'{where}: {path} is in {seen[real]!r} and again in {entry.name!r}, wanted each file '
          'once; use weights to draw a source more often'
        )
      seen[real] = entry.name


def _short_repr(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + '...'

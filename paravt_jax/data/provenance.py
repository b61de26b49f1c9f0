"""From what, and by which version of what, a derived file was made; and whether those inputs still
are what they were.

A record is a JSON object {tool, version, options, inputs: [{path, bytes, mtime_ns, blake2b}]}. It
travels inside the derived file where the format has a place for it (parquet's key-value metadata,
under `KEY`), else in a file of its own beside it. Paths are absolute, or relative to a `base`
folder: then the whole may move, and the record says nothing about the machine.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from paravt_jax import files
from paravt_jax.errors import DataError

KEY = b'paravt_provenance'


def digest(path: str | os.PathLike) -> str:
  """Hex BLAKE2b (16 bytes) of a file's content. Raises DataError when it cannot be read."""
  try:
    return files.digest_file(path)
  except OSError as error:
    raise DataError(
      f'{path}: {error.strerror}, wanted a readable file; check the path and its permissions'
    ) from error


def identity(path: str | os.PathLike, base: str | os.PathLike | None = None) -> dict[str, Any]:
  """{path, bytes, mtime_ns, blake2b} of an input. Raises DataError when it cannot be read."""
  try:
    # before reading: what is written to it meanwhile makes the time differ, and so is noticed
    stat = os.stat(path)
  except OSError as error:
    raise DataError(
      f'{path}: {error.strerror}, wanted a readable file; check the path and its permissions'
    ) from error
  return {
    'path': _name(path, base),
    'bytes': stat.st_size,
    'mtime_ns': stat.st_mtime_ns,
    'blake2b': digest(path),
  }


def record(
  tool: str,
  version: int,
  inputs: Iterable[str | os.PathLike],
  options: Mapping[str, Any],
  base: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """What to write down. tool: the module's name; version: raised when the same inputs give other
  output; options: JSON values.
  """
  return {
    'tool': tool,
    'version': version,
    'options': json.loads(json.dumps(options)),
    'inputs': [identity(path, base) for path in inputs],
  }


def read(text: str | bytes | None) -> dict[str, Any] | None:
  """The record in this JSON text; None without one, or where it is no record (another program's, or
  damaged).
  """
  try:
    found = json.loads(text or 'null')
  except ValueError:
    return None
  if not isinstance(found, dict) or not isinstance(found.get('inputs'), list):
    return None
  return (
    found
    if all(isinstance(each, dict) and isinstance(each.get('path'), str) for each in found['inputs'])
    else None
  )


def is_same(path: str | os.PathLike, known: Mapping[str, Any]) -> bool:
  """Whether a file still has the content of its `identity`; the content is read only where size
  agrees and time does not.
  """
  try:
    stat = os.stat(path)
  except OSError:
    return False
  if stat.st_size != known.get('bytes'):
    return False
  return stat.st_mtime_ns == known.get('mtime_ns') or digest(path) == known.get('blake2b')


def changes(
  known: Mapping[str, Any] | None,
  tool: str,
  version: int,
  inputs: Iterable[str | os.PathLike],
  options: Mapping[str, Any],
  base: str | os.PathLike | None = None,
) -> list[str]:
  """Why a derived file with this record is not what these inputs give now, a phrase each; none when
  it is up to date.
  """
  if known is None:
    return ['it does not say what it was made from']
  found = []
  if (known.get('tool'), known.get('version')) != (tool, version):
    found.append(
      f'it was made by {known.get("tool")} version {known.get("version")}, this is {tool} '
      f'version {version}'
    )
  if known.get('options') != json.loads(json.dumps(options)):
    found.append(f'it was made with {known.get("options")}, wanted {dict(options)}')
  before = {each['path']: each for each in known.get('inputs', ())}
  now = {_name(path, base): path for path in inputs}
  found += [f'{name} is a new input' for name in now if name not in before]
  found += [f'{name} was an input' for name in before if name not in now]
  return found + [
    f'{name} has changed'
    for name, path in now.items()
    if name in before and not is_same(path, before[name])
  ]


def _name(path: str | os.PathLike, base: str | os.PathLike | None) -> str:
  return os.path.abspath(path) if base is None else os.path.relpath(path, base)

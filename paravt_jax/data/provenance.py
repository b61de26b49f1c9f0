"""Records how a derived file was made, and checks whether its inputs have changed.

A record is a JSON object {tool, version, options, inputs: [{path, bytes, mtime_ns, blake2b}]}. It
is stored in the derived file if the format allows it (parquet's key-value metadata, under `KEY`).
Otherwise it is stored in a separate file next to it. Paths are absolute, or relative to a `base`
folder. With relative paths, the folder may move, and the record does not identify the machine.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from paravt_jax import files
from paravt_jax.errors import DataError

KEY = b'paravt_provenance'


def digest(path: str | os.PathLike) -> str:
  """Returns the hex BLAKE2b (16 bytes) of a file. Raises DataError if it is unreadable."""
  try:
    return files.digest_file(path)
  except OSError as error:
    raise DataError(
      f'{path}: {error.strerror}, wanted a readable file; check the path and its permissions'
    ) from error


def identity(path: str | os.PathLike, base: str | os.PathLike | None = None) -> dict[str, Any]:
  """Returns {path, bytes, mtime_ns, blake2b} of an input. Raises DataError if it is unreadable."""
  try:
    # taken before reading: a write during reading changes the time and is noticed later
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
  """Returns the record of a derived file.

  Args:
    tool: name of the module.
    version: number that increases when the same inputs give other output.
    inputs: the input files.
    options: JSON values.
    base: folder that paths are relative to; None: absolute paths.
  """
  return {
    'tool': tool,
    'version': version,
    'options': json.loads(json.dumps(options)),
    'inputs': [identity(path, base) for path in inputs],
  }


def read(text: str | bytes | None) -> dict[str, Any] | None:
  """Returns the record in a JSON text.

  Returns None without a text, or if the text is not a record (of another program, or damaged).
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
  """Returns whether a file still has the content of its `identity`.

  The content is read only if the size is equal and the modification time is not.
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
  """Returns why a derived file with this record is outdated, one phrase per reason.

  Returns [] if the file is up to date.
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

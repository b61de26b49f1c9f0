"""From what, and by which version of what, a derived file was made; and whether those inputs still are what they were.

A record is a JSON object {tool, version, options, inputs: [{path, bytes, mtime_ns, blake2b}]}. It travels inside the derived
file where the format has a place for it (parquet's key-value metadata, under `KEY`), else in a file of its own beside it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from paravt_jax.errors import DataError

KEY = b'paravt_provenance'
_CHUNK = 1 << 20


def digest(path: str | os.PathLike) -> str:
  """Hex BLAKE2b (16 bytes) of a file's content. Raises DataError when it cannot be read."""
  hashed = hashlib.blake2b(digest_size=16)
  try:
    with open(path, 'rb') as file:
      while block := file.read(_CHUNK):
        hashed.update(block)
  except OSError as error:
    raise DataError(f'{path}: {error.strerror}, wanted a readable file; check the path and its permissions') from error
  return hashed.hexdigest()


def identity(path: str | os.PathLike) -> dict[str, Any]:
  """{path, bytes, mtime_ns, blake2b} of an input. Raises DataError when it cannot be read."""
  content = digest(path)
  stat = os.stat(path)
  return {'path': os.path.abspath(path), 'bytes': stat.st_size, 'mtime_ns': stat.st_mtime_ns, 'blake2b': content}


def record(tool: str, version: int, inputs: Iterable[str | os.PathLike], options: Mapping[str, Any]) -> dict[str, Any]:
  """What to write down. tool: the module's name; version: raised when the same inputs give other output; options: JSON values."""
  return {'tool': tool, 'version': version, 'options': json.loads(json.dumps(options)), 'inputs': [identity(path) for path in inputs]}


def is_same(path: str | os.PathLike, known: Mapping[str, Any]) -> bool:
  """Whether a file still has the content of its `identity`; the content is read only where size agrees and time does not."""
  try:
    stat = os.stat(path)
  except OSError:
    return False
  if stat.st_size != known['bytes']:
    return False
  return stat.st_mtime_ns == known['mtime_ns'] or digest(path) == known['blake2b']


def changes(known: Mapping[str, Any] | None, tool: str, version: int, inputs: Iterable[str | os.PathLike],
            options: Mapping[str, Any]) -> list[str]:
  """Why a derived file with this record is not what these inputs give now, a phrase each; none when it is up to date."""
  if known is None:
    return ['it does not say what it was made from']
  found = []
  if (known.get('tool'), known.get('version')) != (tool, version):
    found.append(f'it was made by {known.get("tool")} version {known.get("version")}, this is {tool} version {version}')
  if known.get('options') != json.loads(json.dumps(options)):
    found.append(f'it was made with {known.get("options")}, wanted {dict(options)}')
  before = {each['path']: each for each in known.get('inputs', ())}
  now = [os.path.abspath(path) for path in inputs]
  found += [f'{path} is a new input' for path in now if path not in before]
  found += [f'{path} was an input' for path in before if path not in now]
  return found + [f'{path} has changed' for path in now if path in before and not is_same(path, before[path])]

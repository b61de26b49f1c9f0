"""Sentinel media paths of the published corpora, such as `longvt_source/videor1_3/a.mp4`, and files under a root.

`resolve` is the one place where a path from a row becomes a path on disk. `materialize` writes such paths into a row's columns
as `file://` URIs; `sanitize` takes them out again; one after the other is the identity.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from paravt_jax.errors import DataError

SENTINELS = ('longvt_source/', 'museg/charades/', 'museg/et_instruct_164k/', 'selfqa/')
_SCHEME = 'file://'
_KEYS = ('url', 'video', 'image')
_JSON_VALUE = re.compile(r'("(?:' + '|'.join(_KEYS) + r')"\s*:\s*)("(?:[^"\\]|\\.)*")')


def resolve(value: str, root: str | os.PathLike) -> str:
  """The absolute path of a media value: a sentinel or relative path under `root`, or one `file://` URI or path inside it.

  Whether the file is there is not looked at. Symbolic links below the root are the owner's business and are followed later.

  Raises:
    DataError: a path that leaves the root (`..`, another absolute path), a doubled `file://`, another scheme, an empty value.
  """
  base = os.path.abspath(root)
  path = value[len(_SCHEME):] if isinstance(value, str) and value.startswith(_SCHEME) else value
  if not isinstance(path, str) or not path or '\0' in path or '://' in path:
    raise DataError(f'media path {value!r}: wanted a path under {base}, or one {_SCHEME} URI inside it; '
                    'materialize the rows again')
  full = os.path.normpath(os.path.join(base, path))
  if os.path.commonpath([base, full]) != base or full == base:
    raise DataError(f'media path {value!r}: got {full}, wanted a file inside the media root {base}; fix the row or set '
                    'data.media_root')
  return full


def materialize(value: str, root: str | os.PathLike) -> str:
  """A sentinel as exactly one `file://` URI under the root; any other value as it is. Raises DataError as `resolve`."""
  return _SCHEME + resolve(value, root) if value.startswith(SENTINELS) else value


def sanitize(value: str, root: str | os.PathLike) -> str:
  """The inverse: a `file://` URI of a sentinel under the root as the sentinel; any other value as it is."""
  prefix = f'{_SCHEME}{os.path.abspath(root)}/'
  rest = value.removeprefix(prefix)
  return rest if rest != value and rest.startswith(SENTINELS) else value


def rewrite(column: Any, change: Callable[[str], str]) -> Any:
  """A column's value with `change` applied to every media path: strings under the keys url, video and image.

  JSON text stays text, changed in place: spaces and order of keys are kept. Nothing else is touched.
  """
  if isinstance(column, str):
    return _JSON_VALUE.sub(lambda match: match[1] + _changed_json(match[2], change), column)
  if isinstance(column, list):
    return [_inside(None, item, change) for item in column]
  if isinstance(column, dict):
    return {key: _inside(key, item, change) for key, item in column.items()}
  return column


def media(column: Any) -> Iterator[str]:
  """Every media path of a column's value, in order."""
  found: list[str] = []
  rewrite(column, lambda value: found.append(value) or value)
  yield from found


def missing(values: Iterable[str], root: str | os.PathLike) -> collections.Counter[str]:
  """How many of these media paths have no file, by bucket: the first two folders of the sentinel."""
  counts: collections.Counter[str] = collections.Counter()
  for value in values:
    path = resolve(value, root)
    if not os.path.isfile(path):
      counts['/'.join(pathlib.PurePath(os.path.relpath(path, root)).parts[:2])] += 1
  return counts


def _inside(key: str | None, item: Any, change: Callable[[str], str]) -> Any:
  if isinstance(item, str):
    return change(item) if key in _KEYS else item
  return rewrite(item, change)


def _changed_json(literal: str, change: Callable[[str], str]) -> str:
  value = json.loads(literal)
  changed = change(value)
  return literal if changed == value else json.dumps(changed, ensure_ascii=literal.isascii())

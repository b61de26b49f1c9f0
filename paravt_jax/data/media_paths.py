"""Converts sentinel media paths of the published corpora to files under a root.

An example of a sentinel is `longvt_source/videor1_3/a.mp4`. `resolve` is the only place where a
path from a row becomes a path on disk. `paravt_jax.data.materialize` writes sentinels as `file://`
URIs, and `.sanitize` reverses that.
"""

import functools
import json
import os
import posixpath
import re
import urllib.parse
from collections.abc import Callable, Sequence

from paravt_jax.errors import DataError

SENTINELS = ('longvt_source/', 'museg/charades/', 'museg/et_instruct_164k/', 'selfqa/')
# a string, or a list of strings, under such a key is a media path
KEYS = ('url', 'video', 'image', 'video_url', 'image_url')
PATH_COLUMNS = ('videos', 'images')  # columns in which strings without a key are media paths too
_SCHEME = 'file://'
# encoded `/` and NUL, which no file name can contain
_NEVER = re.compile('%(?:2f|00)', re.IGNORECASE)
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# a list, possibly nested, of strings, numbers and words such as null
_STRINGS = rf'\[(?:[\s,\[\]\w.+-]|{_STRING})*\]'
_JSON_STRING = re.compile(_STRING, re.DOTALL)
_JSON_VALUE = re.compile(
  rf'("(?<!\\")(?:{"|".join(KEYS)})"\s*+:\s*+)({_STRING}|{_STRINGS})', re.DOTALL
)
_JSON_WHOLE = re.compile(rf'(\s*+)({_STRING}|{_STRINGS})(?=\s*+\Z)', re.DOTALL)
_JSON_CHARACTER = re.compile(
  r'\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.', re.DOTALL
)


def resolve(value: str, root: str | os.PathLike) -> str:
  """Returns the absolute path of a media value.

  The value is a sentinel or relative path under `root`, or a `file://` URI or absolute path inside
  it. Other tools write URIs by the standard: `file://localhost/...`, `file:/...`, `FILE:///...`,
  percent-encoded. The literal name is tried before the decoded one, and the first that is a file is
  returned. If neither is a file, the literal name is returned. No other disk access happens.
  Symbolic links are not looked at: see `refuse_link_outside`.

  Raises:
    DataError: the path leaves the root (`..`, another absolute path), has a doubled `file://` or
      another scheme, or is empty. Also for a URI that does so after decoding, or contains `%2f` or
      `%00`, and is not a file as written.
  """
  base = os.path.abspath(root)
  names = _names(value) if isinstance(value, str) and value[:5].lower() == 'file:' else [value]
  paths, fault = {}, None
  for name in names:
    try:
      paths[name], fault = _inside_root(value, name, base), None
    except DataError as error:
      fault = error
      continue
    if len(names) > 1 and os.path.isfile(paths[name]):
      return paths[name]
  if fault is not None:
    # the fault of the last (decoded) name; no earlier name is a file
    raise fault
  literal = _without_host(value).removeprefix(_SCHEME)
  return paths.get(literal) or paths[names[-1]]


def refuse_link_outside(path: str, root: str | os.PathLike) -> None:
  """Refuses a path of `resolve` whose symbolic links lead out of the root.

  The root itself may be a link. Real names of folders are remembered, so that a row costs one look
  at its file.

  Raises:
    DataError: the file would be one outside the root.
  """
  base = _real_folder(os.path.abspath(root))
  folder, name = os.path.split(path)
  real = os.path.join(_real_folder(folder), name)
  if os.path.islink(real):
    real = os.path.realpath(real)
  if os.path.commonpath([base, real]) != base:
    raise DataError(
      f'media path {path}: symbolic links lead to {real}, wanted a file inside the media root '
      f'{base}; if the links are yours, set data.follow_links=True'
    )


@functools.lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
  return os.path.realpath(path)


def _without_host(value: str) -> str:
  """Returns `file://localhost/a`, `file:/a` and `FILE:///a` as /a; any other URI unchanged."""
  return re.sub(r'^file:(?://(?:localhost)?)?(?=/(?!/))', '', value, flags=re.IGNORECASE)


def _names(value: str) -> list[str]:
  """Returns the names that a file URI may mean, the literal one first."""
  literal = value.removeprefix(_SCHEME)
  short = _without_host(value)
  names = [literal] if short == value else [literal, short]
  if '%' in value:
    plain = names[-1]
    # '' is refused later, because it is not a path
    decoded = '' if _NEVER.search(plain) else urllib.parse.unquote(plain)
    names.append(decoded)
  return list(dict.fromkeys(names))


def _inside_root(value: str, path: str, base: str) -> str:
  """Returns `path` as an absolute path inside `base`. Raises DataError, which names `value`."""
  if (
    not isinstance(path, str)
    or not path
    or '\0' in path
    or '://' in path
    or path.startswith('data:')
  ):
    raise DataError(
      f'media path {value!r}: wanted a path under {base}, or one {_SCHEME} URI inside it; '
      'materialize the rows again'
    )
  full = os.path.normpath(os.path.join(base, path))
  if os.path.commonpath([base, full]) != base or full == base:
    raise DataError(
      f'media path {value!r}: got {full}, wanted a file inside the media root {base}; fix the '
      'row or set data.media_root'
    )
  return full


def prefix(root: str | os.PathLike) -> str:
  """Returns the part of a URI before the sentinel, for this root: `file:///data/media/`."""
  return f'{_SCHEME}{os.path.abspath(root).rstrip("/")}/'


def kind(value: str, prefixes: Sequence[str]) -> str:
  """Returns the kind of a media value, one of the words below.

    sentinel: a sentinel path.
    in_root: a URI of a sentinel below one of the prefixes.
    leaves_root: a sentinel that leaves the root or is not a path.
    doubled_scheme, other_file_uri: any other `file://` URI.
    url: a value with any other scheme.
    absolute_path, relative_path, empty: anything else.

  prefixes: from `prefix`.
  """
  if value.startswith(SENTINELS):
    return 'sentinel' if _is_inside(value) else 'leaves_root'
  if value.startswith(_SCHEME):
    rest = next((value[len(each) :] for each in prefixes if value.startswith(each)), '')
    if rest.startswith(SENTINELS) and _is_inside(rest):
      return 'in_root'
    return 'doubled_scheme' if value.startswith(_SCHEME, len(_SCHEME)) else 'other_file_uri'
  if '://' in value or value.startswith('data:'):
    return 'url'
  return 'empty' if not value else 'absolute_path' if value.startswith('/') else 'relative_path'


def bucket(sentinel: str) -> str:
  """Returns the part of the corpora that a path under the root belongs to.

  Example: `longvt_source/videor1` for `longvt_source/videor1_3/a.mp4`.
  """
  first, *rest = posixpath.normpath(sentinel).split('/', 2)
  if first not in ('longvt_source', 'museg') or len(rest) < 2:
    return first
  numberless = rest[0].rstrip('0123456789')
  is_numbered = first == 'longvt_source' and numberless != rest[0] and numberless.endswith('_')
  return f'{first}/{numberless[:-1] if is_numbered else rest[0]}'


def rewrite_text(text: str, change: Callable[[str], str], name: str | None = None) -> str:
  """Returns a column's text with `change` applied to every media path.

  Media paths are strings, alone or in lists, under one of KEYS. JSON is changed in place: spaces,
  escapes and key order stay. Everything else stays unchanged.

  Args:
    name: the column. In PATH_COLUMNS, strings without a key are media paths too. So is a text that
      is not JSON.
  """
  if name in PATH_COLUMNS:
    if text.lstrip()[:1] not in ('[', '{', '"'):
      return change(text)
    whole = _JSON_WHOLE.match(text)
    if whole:
      return whole[1] + _changed_value(whole[2], change) + text[whole.end() :]
  return _JSON_VALUE.sub(lambda match: match[1] + _changed_value(match[2], change), text)


def _is_inside(sentinel: str) -> bool:
  """Returns whether a sentinel is a path below the root, for any root."""
  if '..' not in sentinel and '\0' not in sentinel and '://' not in sentinel:
    return True  # common case, avoids the cost of normpath
  path = posixpath.normpath(sentinel)
  return (
    '\0' not in sentinel
    and '://' not in sentinel
    and path != '.'
    and path != '..'
    and not path.startswith('../')
  )


def _changed_value(raw: str, change: Callable[[str], str]) -> str:
  """Returns the changed JSON source of a string or of a list of strings."""
  if raw[0] == '"':
    return _changed_json(raw, change)
  return _JSON_STRING.sub(lambda match: _changed_json(match[0], change), raw)


def _changed_json(literal: str, change: Callable[[str], str]) -> str:
  """Returns a JSON string literal with its value changed.

  The unchanged part of the value keeps its spelling, including escapes.
  """
  raw = literal[1:-1]
  try:
    value = json.loads(literal, strict=False) if '\\' in raw else raw
  except ValueError:
    return literal  # invalid JSON stays unchanged
  changed = change(value)
  if changed == value:
    return literal
  if changed.endswith(value):
    return f'"{_escaped(changed[: len(changed) - len(value)], literal.isascii())}{raw}"'
  if value.endswith(changed):
    units = _JSON_CHARACTER.finditer(raw)
    for _ in range(len(value) - len(changed)):
      start = next(units).end()
    return f'"{raw[start:]}"'
  return json.dumps(changed, ensure_ascii=literal.isascii())


@functools.lru_cache(maxsize=16)
def _escaped(text: str, ascii_only: bool) -> str:
  return json.dumps(text, ensure_ascii=ascii_only)[1:-1]

"""Materializing and sanitizing one value at a time: what the commands, which go by whole columns,
are compared with.
"""

from collections.abc import Callable, Iterator
from typing import Any

from paravt_jax.data import media_paths


def materialize(value: str, root: str) -> str:
  """A sentinel as exactly one `file://` URI under the root; any other value as it is. Raises
  DataError as `resolve`.

  Nothing of the sentinel is normalised or percent-encoded: what was put before it can be taken away
  again.
  """
  if not value.startswith(media_paths.SENTINELS):
    return value
  media_paths.resolve(value, root)
  return media_paths.prefix(root) + value


def sanitize(value: str, root: str) -> str:
  """The inverse: a `file://` URI of a sentinel under the root as the sentinel; any other value as
  it is.
  """
  rest = value.removeprefix(media_paths.prefix(root))
  return rest if rest != value and rest.startswith(media_paths.SENTINELS) else value


def rewrite(column: Any, change: Callable[[str], str], name: str | None = None) -> Any:
  """A column's value with `change` applied to every media path: strings, alone or in lists, under
  one of KEYS.

  JSON text stays text, changed in place: spaces, escapes and order of keys are kept. Nothing else
  is touched. `name` is the column's: in the PATH_COLUMNS strings without a key are media paths too.
  """
  return _inside(column, lambda text: media_paths.rewrite_text(text, change, name), change)


def media(column: Any, name: str | None = None) -> Iterator[str]:
  """Every media path of a column's value, in order."""
  found: list[str] = []
  rewrite(column, lambda value: found.append(value) or value, name)
  yield from found


def _inside(item: Any, leaf: Callable[[str], str], change: Callable[[str], str]) -> Any:
  if isinstance(item, str):
    return leaf(item)
  if isinstance(item, list):
    return [_inside(each, leaf, change) for each in item]
  if isinstance(item, dict):
    return {
      key: _inside(each, change if key in media_paths.KEYS else _unchanged, change)
      for key, each in item.items()
    }
  return item


def _unchanged(text: str) -> str:
  return text

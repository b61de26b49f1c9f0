"""Keys that a command line names and does not show: `env:NAME` and `file:PATH`.

Every user of a machine can read its command lines, and a shell remembers them. So the knobs `api_key`
may say where the key is: in a variable of the environment, or on the only line of a file.
"""

import pathlib
from collections.abc import MutableMapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import overrides
from paravt_jax.errors import ConfigError

KNOB = 'api_key'
ENV, FILE = 'env:', 'file:'


def resolve(config: ConfigDict, environment: MutableMapping[str, str]) -> None:
  """Replaces `env:NAME` and `file:PATH` in all knobs `api_key` of a recipe by the keys themselves.

  Variables that were read are taken out of `environment`: processes that this one starts do not need
  them.

  Raises:
    ConfigError: there is no such variable or file, or it holds no key.
  """
  used = set()
  for section, knob in _sections(config, ''):
    value = section[KNOB]
    if value.startswith(ENV):
      name = value.removeprefix(ENV)
      used.add(name)
      section[KNOB] = _checked(environment.get(name, ''), knob, value, f'the variable {name}')
    elif value.startswith(FILE):
      path = pathlib.Path(value.removeprefix(FILE)).expanduser()
      section[KNOB] = _checked(_read(path, knob, value), knob, value, f'the file {path}')
  for name in used:
    environment.pop(name, None)


def warnings(arguments: Sequence[str]) -> list[str]:
  """Returns a line for each key that stands on the command line itself."""
  return [
    f'--config.{one.knob}: every user of this machine can read this key in the list of processes; '
    'env:NAME or file:PATH keeps it off the command line'
    for one in overrides.split(arguments)[1]
    if one.knob.rpartition('.')[2] == KNOB and one.text and not one.text.startswith((ENV, FILE))
  ]


def _sections(config: Any, path: str) -> list[tuple[Any, str]]:
  """Returns (section, full name of its knob) of all sections that have a key."""
  found = []
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      found += _sections(value, f'{path}{name}.')
    elif name == KNOB and isinstance(value, str):
      found.append((config, path + name))
  return found


def _read(path: pathlib.Path, knob: str, value: str) -> str:
  try:
    return path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    reason = error.strerror if isinstance(error, OSError) else 'it is no text'
    raise ConfigError(
      f'--config.{knob}={value}: cannot read {path} ({reason}); wanted a file with the key on one '
      'line'
    ) from error


def _checked(text: str, knob: str, value: str, where: str) -> str:
  key = text.strip()
  if not key or len(key.splitlines()) > 1:
    got = 'no key' if not key else 'several lines'
    raise ConfigError(f'--config.{knob}={value}: {where} holds {got}; wanted one line, the key')
  return key

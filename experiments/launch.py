"""How every entry point starts and fails: one recipe by flag, one clear line for a wrong input, no
half-printed traceback.

Exit status: 0 done, 2 wrong input (a ParavtError), 130 interrupted.
"""

import dataclasses
import errno
import pathlib
import re
import sys
import types as python_types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import knobs, overrides
from paravt_jax.errors import ConfigError, ParavtError

T = TypeVar('T')
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


USAGE = 'python -m experiments.<name> --config=configs/<recipe>.py[:scale] [--config.knob=value]'


def run(main: Callable[[ConfigDict], Any], short: Mapping[str, str] | None = None) -> None:
  """Parses `--config=FILE[:scale] --config.knob=value`, calls main(config), and turns errors made for people into one line.

  The recipe is locked: a knob that it does not have is refused, with the nearest one that it has.
  How values are written: overrides.py. short: names that stand for longer ones, as in {'model':
  'model.folder'} for --config.model=DIR.
  """
  define(flags.FLAGS)
  configs: list[ConfigDict] = []

  def parse(argv: list[str]) -> list[str]:
    left, config = _parse(argv, short or {})
    configs.append(config)
    return left

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _fail(f'{argv[1]!r} was not understood; knobs are given as --config.some.knob=value')
    logging.set_verbosity(logging.WARNING)  # the libraries' own news are not ours
    logging.get_absl_logger().addFilter(
      lambda record: '/orbax/' not in record.pathname
    )  # it raises what it logs
    try:
      main(configs[0])
    except ParavtError as error:
      _fail(str(error))
    except OSError as error:
      if error.errno not in FULL:
        raise
      _fail(
        f'{error.filename or "a file"}: {error.strerror}; free space, then run the same '
        'command again: it goes on where it was'
      )
    except KeyboardInterrupt:
      print('\ninterrupted; the same command goes on from the last checkpoint', file=sys.stderr)
      sys.exit(130)

  app.run(guarded, flags_parser=parse)


def define(values: flags.FlagValues) -> None:
  """Makes --config a flag of these; its overrides are read by `configured` and not by absl."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'The recipe: a file of configs/, with an optional :scale.',
    values,
    lock_config=True,
    sys_argv=[''],
  )
  flags.mark_flag_as_required('config', values)


def configured(
  argv: Sequence[str], values: flags.FlagValues, short: Mapping[str, str]
) -> tuple[list[str], ConfigDict, list[str]]:
  """A command line as (what is left of it, the recipe with its overrides, notes on these).

  Raises:
    ConfigError: no such recipe, or a value that cannot be read. Others, for `complaint`: a knob,
    flag or scale that there is not.
  """
  words = lengthened(values.read_flags_from_files(list(argv[1:]), force_gnu=False), short)
  rest, given = overrides.split(words)
  left = values([argv[0], *rest])
  recipe = values['config'].config_filename
  if not pathlib.Path(
    recipe.split(':', 1)[0]
  ).is_file():  # absl would say so at the first use only, with a traceback
    raise ConfigError(f'--config={recipe}: there is no such recipe; usage: {USAGE}')
  config = values['config'].value
  return left, config, overrides.assign(config, given)


def lengthened(arguments: Sequence[str], short: Mapping[str, str]) -> list[str]:
  """Command-line arguments with `--config.<short>`, with or without a value behind `=`, as what it
  stands for.
  """
  names = {
    f'{dashes}config.{name}': f'{dashes}config.{long}'
    for name, long in short.items()
    for dashes in ('-', '--')
  }
  split = [argument.partition('=') for argument in arguments]
  return [names.get(name, name) + sign + value for name, sign, value in split]


def _parse(argv: list[str], short: Mapping[str, str]) -> tuple[list[str], ConfigDict]:
  """What is left of the command line and the recipe; a mistyped knob or recipe is one line and not
  a traceback.
  """
  flags.FLAGS.set_gnu_getopt(True)
  try:
    left, config, notes = configured(argv, flags.FLAGS, short)
  except (AttributeError, KeyError) as error:
    _fail(complaint(error))
  except ConfigError as error:
    _fail(str(error))
  except (OSError, flags.Error) as error:
    _fail(f'{complaint(error)}; usage: {USAGE}')
  for note in notes:
    print(note, file=sys.stderr)
  return left, config


def complaint(error: Exception) -> str:
  """What parsing flags did not like, in one line: an unknown knob, a value that does not parse, or
  the recipe's own complaint.
  """
  text = ' '.join(str(error).split())
  if isinstance(error, (AttributeError, KeyError)):
    wanted = re.search(
      r'[Dd]id you mean "([^"]+)" instead of "([^"]+)"', str(error).replace('\\n', ' ')
    )
    if wanted:
      return f'no knob {wanted[2]!r} in this recipe: did you mean {wanted[1]}?'
    return (
      f'a --config.… flag names a knob that this recipe does not have ({text}); its file lists them'
    )
  raised = re.search(r'Traceback .*\n\w*(?:Error|Exception): (.*)', str(error), re.DOTALL)
  return ' '.join(raised[1].split()) if raised else text


def _fail(message: str) -> typing.NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def build(kind: type[T], section: Mapping[str, Any], where: str, **given: Any) -> T:
  """A frozen options dataclass from a section of the recipe: every field is there exactly once, and
  of its type.

  Args:
    kind: the dataclass. section: its part of the recipe. where: the section's name, for the
    message. **given: fields that are not knobs (folders, urls), handed in by the entry point.

  Raises:
    ConfigError: a knob is missing, unknown, or of another type.
  """
  fields = {field.name: field for field in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  values = {**dict(section), **given}
  for name in values.keys() - fields.keys():
    raise ConfigError(
      f'config.{where}.{name}: {kind.__name__} has no such field; it has {", ".join(fields)}'
    )
  for name in fields.keys() - values.keys():
    raise ConfigError(f'config.{where}: {name} is missing; add it to the recipe')
  return kind(
    **{name: _typed(values[name], hints[name], f'config.{where}.{name}') for name in fields}
  )


def _typed(value: Any, hint: Any, where: str) -> Any:
  """`value` as `hint` wants it (int to float, list to tuple), or a ConfigError."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, python_types.UnionType):
    if value is None and type(None) in typing.get_args(hint):
      return None
    hint = next(a for a in typing.get_args(hint) if a is not type(None))
    origin = typing.get_origin(hint)
  if isinstance(value, ConfigDict):
    return value.to_dict()
  if origin is tuple:
    return _tuple(value, typing.get_args(hint), where)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type) and hint in (int, float, str, bool) and type(value) is not hint:
    raise ConfigError(f'{where}: got {value!r} ({type(value).__name__}), wanted {hint.__name__}')
  return value


def _tuple(value: Any, hints: tuple[Any, ...], where: str) -> tuple:
  """A list or tuple, each member as its hint wants it; `hints` end in an ellipsis when any number
  may come.
  """
  repeated = len(hints) == 2 and hints[1] is Ellipsis
  if not isinstance(value, (list, tuple)) or not (repeated or len(value) == len(hints)):
    raise ConfigError(
      f'{where}: got {value!r}, wanted {"a tuple" if repeated else f"a tuple of {len(hints)}"}'
    )
  return tuple(
    _typed(one, hints[0] if repeated else hint, where)
    for one, hint in zip(value, value if repeated else hints)
  )


def require(value: Any, allowed: str, ok: bool, knob: str) -> None:
  """Raises the ConfigError that says what a knob may be, unless `ok`."""
  if not ok:
    raise ConfigError(f'--config.{knob}={value!r}: wanted {allowed}')


def require_recipe(config: ConfigDict, section: str, example: str) -> None:
  """The door of every entry point: refuses a recipe of another one, and then any knob that breaks
  its rule (knobs.py).

  Raises:
    ConfigError: the recipe lacks the entry point's `section`; the message names `example`. Or a
    knob's value and what is wanted.
  """
  if section not in config:
    raise ConfigError(
      f'--config: this recipe has no {section!r}, so it is one of another entry point; '
      f'wanted one such as {example}'
    )
  knobs.check(config)

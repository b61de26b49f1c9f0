"""How every entry point starts and fails: one recipe by flag, one clear line for a wrong input.

Exit status: 0 done, 2 wrong input (a ParavtError), 130 interrupted.
"""

import errno
import os
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import keys, overrides
from paravt_jax import options
from paravt_jax.errors import ConfigError, ParavtError
from paravt_jax.orchestrator import compile_cache, device, host_recipe, hosts
from paravt_jax.orchestrator.host import Host
from paravt_jax.train import heap

R = TypeVar('R')
ROOT = pathlib.Path(__file__).resolve().parent.parent
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
USAGE = 'python -m experiments.<name> --config=configs/<recipe>.py[:scale] [--config.knob=value]'


def run(main: Callable[[R], Any], kind: type[R], short: Mapping[str, str] | None = None) -> None:
  """Parses `--config=FILE[:scale] --config.knob=value`, builds the typed recipe, and calls main.

  Errors that are meant for users are printed as one line.

  Args:
    main: the entry point.
    kind: the recipe's class (paravt_jax/orchestrator/recipes.py, or your own).
    short: short names, as in {'model': 'model.folder'} for --config.model=DIR.
  """
  define(flags.FLAGS)
  recipes: list[R] = []

  def parse(argv: list[str]) -> list[str]:
    left, config = _parse(argv, short or {}, options.schema(kind))
    try:
      recipes.append(typed(kind, config))
    except ConfigError as error:
      _fail(str(error))
    return left

  def run_guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _fail(f'{argv[1]!r} was not understood; knobs are given as --config.some.knob=value')
    quiet()
    compile_cache.use()
    with hosts.ending_together(getattr(recipes[0], 'hosts', None)) as connect:
      guard(recipes[0], connect)

  def guard(recipe: R, connect: Callable[[], hosts.Hosts]) -> None:
    try:
      host_recipe.check(connect(), recipe)
      use_device(recipe)
      main(recipe)
    except ParavtError as error:
      _fail(str(error))
    except OSError as error:
      if error.errno not in FULL:
        raise
      where = error.filename or 'the disk'
      _fail(
        f'{where}: {error.strerror}; free space, then run the same command again: it continues '
        'where it stopped'
      )
    except KeyboardInterrupt:
      print('\ninterrupted; the same command continues from the last checkpoint', file=sys.stderr)
      sys.exit(130)

  app.run(run_guarded, flags_parser=parse)


def run_script(main: Callable[[list[str]], Any]) -> None:
  """Calls main(argv) of a command without a recipe. A wrong input is one line and status 2."""

  def parse(argv: list[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      _fail(complaint(error))

  def run_guarded(argv: list[str]) -> None:
    quiet()
    try:
      main(argv)
    except (ParavtError, app.UsageError) as error:
      _fail(str(error))
    except BrokenPipeError:  # the reader has enough, as in `| head`
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
      if error.filename is None:
        raise
      _fail(f'{error.filename}: {error.strerror}; check the path')

  app.run(run_guarded, flags_parser=parse)


def quiet() -> None:
  """Stops the libraries' own log messages on the terminal."""
  logging.set_verbosity(logging.WARNING)
  # orbax also logs every error that it raises
  logging.get_absl_logger().addFilter(lambda record: '/orbax/' not in record.pathname)


def use_device(recipe: Any) -> None:
  """Applies a recipe's `device` section to this process, before JAX asks for a device.

  Recipes without a learner have no such section.
  """
  options = getattr(recipe, 'device', None)
  if not isinstance(options, device.DeviceOptions):
    return
  os.environ.update(device.settings(options, os.environ))
  heap.keep_pages()
  gpus = device.learner_gpus(recipe, hosts.current().count)
  chosen = any(name in os.environ for name in ('CUDA_VISIBLE_DEVICES', 'JAX_CUDA_VISIBLE_DEVICES'))
  if gpus and not chosen:
    # JAX read its own variable when it was imported
    jax.config.update('jax_cuda_visible_devices', gpus)
  if options.xla_flags != 'none' and hosts.current().is_first:
    print(device.describe(options, os.environ), file=sys.stderr)


def host() -> Host:
  """Returns this process and this checkout, for processes that the library starts.

  These processes find the library from any folder.
  """
  environment = dict(os.environ)
  path = environment.get('PYTHONPATH')
  environment['PYTHONPATH'] = f'{ROOT}{os.pathsep}{path}' if path else str(ROOT)
  return Host(environment, ROOT / 'third_party' / 'sglang')


def typed(kind: type[R], config: ConfigDict) -> R:
  """Returns the typed recipe of a ConfigDict. Every knob is checked.

  Raises:
    ConfigError: the recipe belongs to another entry point, or a knob is missing, unknown or wrong.
  """
  section, example = getattr(kind, 'SECTION', None), getattr(kind, 'EXAMPLE', '')
  if section is not None and section not in config:
    raise ConfigError(
      f'--config: this recipe has no {section!r}, so it is one of another entry point; wanted one '
      f'such as {example}'
    )
  return options.build(kind, typing.cast(Mapping[str, Any], config))


def define(values: flags.FlagValues) -> None:
  """Defines --config as a flag of these recipes. `read_config`, not absl, reads its overrides."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'The recipe: a file of configs/, with an optional :scale.',
    values,
    lock_config=True,
    sys_argv=[''],
  )
  flags.mark_flag_as_required('config', values)


def read_config(
  argv: Sequence[str],
  values: flags.FlagValues,
  short: Mapping[str, str],
  rules: Mapping[str, options.Rule],
) -> tuple[list[str], ConfigDict, list[str]]:
  """Reads a command line. Returns (other arguments, recipe with overrides, notes on the overrides).

  Raises:
    ConfigError: the recipe does not exist, or a value cannot be read.
    Others, for `complaint`: an unknown knob, flag or scale.
  """
  words = expand_short_names(values.read_flags_from_files(list(argv[1:]), force_gnu=False), short)
  rest, given = overrides.split(words)
  left = values([argv[0], *rest])
  flag: Any = values['config']
  recipe = flag.config_filename
  # absl would report it only at the first use, with a traceback
  if not pathlib.Path(recipe.split(':', 1)[0]).is_file():
    raise ConfigError(f'--config={recipe}: there is no such recipe; usage: {USAGE}')
  config = flag.value
  return left, config, overrides.assign(config, given, rules)


def expand_short_names(arguments: Sequence[str], short: Mapping[str, str]) -> list[str]:
  """Returns arguments with each `--config.<short>` or `--config.<short>=value` as its full name."""
  names = {
    f'{dashes}config.{name}': f'{dashes}config.{long}'
    for name, long in short.items()
    for dashes in ('-', '--')
  }
  split = [argument.partition('=') for argument in arguments]
  return [names.get(name, name) + sign + value for name, sign, value in split]


def _parse(
  argv: list[str], short: Mapping[str, str], rules: Mapping[str, options.Rule]
) -> tuple[list[str], ConfigDict]:
  """Returns the other arguments and the recipe. A mistyped knob or recipe prints one line."""
  flags.FLAGS.set_gnu_getopt(True)
  try:
    left, config, notes = read_config(argv, flags.FLAGS, short, rules)
    keys.resolve(config, os.environ)
  except (AttributeError, KeyError) as error:
    _fail(complaint(error))
  except ConfigError as error:
    _fail(str(error))
  except (OSError, flags.Error) as error:
    _fail(f'{complaint(error)}; usage: {USAGE}')
  for note in (*notes, *keys.warnings(argv[1:])):
    print(note, file=sys.stderr)
  return left, config


def complaint(error: Exception) -> str:
  """Returns a flag error in one line: an unknown knob, a value that does not parse, or an error of
  the recipe.
  """
  text = ' '.join(str(error).split())
  if isinstance(error, AttributeError | KeyError):
    text = str(error).replace('\\n', ' ')
    wanted = re.search(r'[Dd]id you mean "([^"]+)" instead of "([^"]+)"', text)
    if wanted:
      return f'no knob {wanted[2]!r} in this recipe: did you mean {wanted[1]}?'
    name = str(error.args[0]).strip('\'"') if isinstance(error, KeyError) else text
    return (
      f'a --config.… flag names a knob that this recipe does not have ({name}); its file lists them'
    )
  raised = re.search(r'Traceback .*\n\w*(?:Error|Exception): (.*)', str(error), re.DOTALL)
  return ' '.join(raised[1].split()) if raised else text


def _fail(message: str) -> typing.NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)

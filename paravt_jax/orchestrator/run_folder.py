"""A run's folder: its settings (config.json, git.txt), its progress (progress.json), and its lock.

config.json  git.txt  progress.json  metrics.jsonl  episodes/  checkpoints/  weights/  hf/
summary.json  report.html
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import binding
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.train import checkpoint

LOCK = '.lock'
SHOWN = 8  # limit of changed free settings to print when a run resumes


def fingerprint(*parts: Any) -> str:
  """Returns eight hex digits that identify a JSON value."""
  text = json.dumps(parts, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file by rename, so that no reader finds an incomplete file, even after a kill."""
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    partial.write_text(json.dumps(value, indent=1, default=str) + '\n')
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)  # a full disk leaves a partial file


def to_json(recipe: Any) -> dict[str, Any]:
  """Returns a recipe as JSON values for files and terminals, with servers' keys redacted."""
  values = json.loads(json.dumps(options.to_dict(recipe), default=str))
  for section in values.values():
    if isinstance(section, dict) and section.get('api_key'):
      section['api_key'] = '(set)'
  return values


def commit() -> str:
  """Returns the project's git commit, or 'unknown' outside a checkout.

  It ends with '+changes' if the working tree differs from the commit.
  """
  root = pathlib.Path(__file__).resolve().parents[2]

  def git(*words: str) -> str:
    command = ('git', '-C', str(root), *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()

  try:
    # the enclosing checkout belongs to another project
    if not git('ls-files', '--', 'paravt_jax/__init__.py'):
      return 'unknown'
    head = git('rev-parse', 'HEAD')
    return (head + ('+changes' if git('status', '--porcelain') else '')) if head else 'unknown'
  except (OSError, subprocess.TimeoutExpired):
    return 'unknown'


def locked(path: pathlib.Path, knob: str = 'run.folder') -> IO[str]:
  """Creates and locks the folder until the returned handle is closed.

  The file `.lock` names its owner, also after that has ended. Raises ConfigError if another process
  has locked it.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / LOCK).open('a+')  # not 'w', which would remove the owner's name
  except OSError as error:
    raise ConfigError(
      f'run folder {path}: {error.strerror}; choose another with --config.{knob}=DIR'
    ) from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    owner = last_owner(path)
    lock.close()
    raise ConfigError(
      f'run folder {path} is in use by another process{f" ({owner})" if owner else ""}; wait for '
      f'it, or choose another with --config.{knob}=DIR'
    ) from None
  lock.truncate(0)
  lock.write(f'process {os.getpid()} on {socket.gethostname()}, since {_now()}')
  lock.flush()
  return lock


def last_owner(path: pathlib.Path) -> str:
  """Returns who locked the folder last, as words. Empty if nobody did."""
  try:
    return (path / LOCK).read_text(errors='replace')[:200].strip()
  except OSError:
    return ''


def _now() -> str:
  return time.strftime('%Y-%m-%d %H:%M:%S %z')


class RunFolder:
  """An open run. Finished phases stay finished. Minutes add up over restarts."""

  def __init__(self, path: pathlib.Path, config: Mapping[str, Any], *, writes: bool = True):
    """Opens or resumes the run at `path`.

    Args:
      writes: whether this process writes the folder's files. Only one process of a run does.

    Raises:
      ConfigError: another process has it open, or it began with other settings.
    """
    self.path, self._writes = path, writes
    if not writes:
      self._progress = _progress(path)
      return
    before = last_owner(path)
    self._lock = locked(path)
    self._progress = _progress(path)
    if before and (path / 'metrics.jsonl').exists():
      print(
        f'run folder {path} was last used by {before}; that process has ended',
        file=sys.stderr,
        flush=True,
      )
    changed = refuse_other_settings(path, config)
    if changed:
      more = f' and {len(changed) - SHOWN} more' if len(changed) > SHOWN else ''
      print(
        f'run folder {path} continues with {", ".join(changed[:SHOWN])}{more}',
        file=sys.stderr,
        flush=True,
      )
    write_json(path / 'config.json', config)
    (path / 'git.txt').write_text(commit() + '\n')
    (path / 'episodes').mkdir(exist_ok=True)

  @classmethod
  def named(cls, recipe: Any, *, folder: str, default: str) -> 'RunFolder':
    """Opens the run in `folder`, or in runs/<default> if `folder` is empty.

    With several processes process 0 opens it first and writes it; the others read.

    Raises:
      ConfigError: as the constructor; or not all processes see the folder.
    """
    path, hosts = pathlib.Path(folder or f'runs/{default}'), hosts_.current()
    if not hosts.is_alone:
      hosts_.check_shared(hosts, path, recipe.hosts.shared_s, 'run')
    return cls.opened(path, recipe)

  @classmethod
  def opened(cls, path: pathlib.Path, recipe: Any) -> 'RunFolder':
    """Opens the run at `path`, which all processes see. Process 0 does it before the others."""
    hosts = hosts_.current()
    with hosts.first_before(f'open/{path}'):
      return cls(path, to_json(recipe), writes=hosts.is_first)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the time spent in the context to `minutes`, also after an interruption."""
    start = time.monotonic()
    try:
      yield
    finally:
      minutes = self._progress['minutes']
      minutes[name] = round(minutes.get(name, 0.0) + (time.monotonic() - start) / 60, 3)
      self._write()

  @property
  def minutes(self) -> dict[str, float]:
    """Returns the minutes by phase so far."""
    return dict(self._progress['minutes'])

  def result(self, name: str) -> Any:
    """Returns the result stored by `finish(name, …)`, or None if the phase is not finished."""
    return self._progress['done'].get(name)

  def finish(self, name: str, value: Any) -> None:
    """Marks a phase as finished, with its (JSON) result."""
    self._progress['done'][name] = value
    self._write()

  def forget(self, name: str) -> None:
    """Marks a phase as not finished. No error if it was not finished."""
    if self._progress['done'].pop(name, None) is not None:
      self._write()

  def _write(self) -> None:
    if self._writes:
      write_json(self.path / 'progress.json', self._progress)


def refuse_other_settings(path: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
  """Compares a recipe with the one that the folder began with.

  It only reads, so any number of processes may call it.

  Returns:
    The changed free settings, as 'mesh.data: 1 -> 2'. Empty while the folder has no results.

  Raises:
    ConfigError: the folder has results of other settings, or more finished steps than the recipe
    wants.
  """
  before = _read(path / 'config.json')
  ended = _progress(path)['done']
  results = any((path / name).exists() for name in ('metrics.jsonl', 'checkpoints')) or ended
  # a refused command must leave nothing that restricts the next one
  if not results or not (path / 'config.json').exists():
    return []
  bound, free = binding.changes(before, config)
  if bound:
    raise ConfigError(
      f'run folder {path} was begun with other settings ({", ".join(bound[:4])}); '
      f'continue with the same, or choose a new one with --config.run.folder=DIR'
    )
  _refuse_fewer_steps(path, before, config)
  return free


def _refuse_fewer_steps(
  path: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  knob = binding.steps_knob(now)
  if knob is None or binding.value(before, knob) is None:
    return
  asked, planned = binding.value(now, knob), binding.value(before, knob)
  done = steps_done(path)
  if done is None and (path / 'hf').is_dir():  # a finished run whose records were removed
    done = planned
    if asked > planned:
      raise ConfigError(
        f'run folder {path} has no record to continue from ({knob}: {planned} -> {asked}); '
        'begin another run from its model with '
        f'--config.model.folder={path}/hf and --config.run.folder=DIR'
      )
  if asked < (done or 0):
    raise ConfigError(
      f'run folder {path} was begun with other settings ({knob}: {planned} -> {asked}) and '
      f'has made {done} steps; ask for {done} '
      f'or more, or choose a new one with --config.run.folder=DIR'
    )


def steps_done(path: pathlib.Path) -> int | None:
  """Returns the step of a run's newest record, from which it would resume. None without a
  record.
  """
  return checkpoint.latest(path / 'checkpoints')


def saves(every: int, done: int, last: int) -> bool:
  """Returns whether a record is written after `done` steps.

  That is after every `every` steps (0: never in between) and after the last step.
  """
  return done == last or (every > 0 and done % every == 0)


def _progress(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns {'minutes': by phase, 'done': results by phase} of a run folder. Both are empty at
  first.
  """
  found = {'minutes': {}, 'done': {}, **_read(path / 'progress.json')}
  if not all(isinstance(found[name], dict) for name in ('minutes', 'done')):
    raise _unusable_file(path / 'progress.json', 'minutes and done are no objects')
  return found


def _read(file: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_text()) if file.exists() else {}
  except (ValueError, RecursionError) as error:
    raise _unusable_file(file, f'not JSON ({error})') from error
  if not isinstance(found, dict):
    raise _unusable_file(file, f'got {type(found).__name__}, wanted an object')
  return found


def _unusable_file(file: pathlib.Path, why: str) -> ConfigError:
  return ConfigError(
    f'{file}: {why}; the run cannot continue: move the folder away and start again'
  )


def announce(name: str, scale: str, folder: RunFolder) -> None:
  """Prints the first lines of a run: its scale, how to choose another one, and its output
  folder.
  """
  rule = '=' * 100
  if not hosts_.current().is_first:
    return
  print(
    f'{rule}\n{name} at scale :{scale}   (others: --config=configs/{name}.py:8b and so on; README.md '
    f'says what each needs)\n'
    f'run folder {folder.path}   (the same command continues where it stopped; Ctrl-C ends it '
    f'cleanly)\n{rule}',
    file=sys.stderr,
    flush=True,
  )


class Interrupts:
  """A context in which Ctrl-C or SIGTERM requests an end at the next safe point.

  Training records its last finished step then (`training` states the rule), and an evaluation has
  its finished samples on disk. A second signal ends the process at once.
  """

  def __init__(self):
    self.asked = False
    self._before: dict[int, Any] = {}

  def _ask(self, number: int, _) -> None:
    if self.asked:
      raise KeyboardInterrupt
    self.asked = True
    print('\nending at the next safe point (again: at once) …', file=sys.stderr, flush=True)

  def __enter__(self) -> 'Interrupts':
    self._before = {
      number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def check(self) -> None:
    """Raises KeyboardInterrupt if an end was requested."""
    if self.asked:
      raise KeyboardInterrupt

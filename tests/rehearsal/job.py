"""Runs the rehearsal: train, kill, resume, export, evaluate. Everything goes to one folder."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from paravt_jax.serving.process import ServerProcess
from tests import patience, xla
from tests.eval import fixtures
from tests.rehearsal import knobs, material, servers

ROOT = servers.ROOT
# eight virtual devices; NPROC keeps XLA's collectives from waiting for each other on few cores
DEVICES = {
  'JAX_PLATFORMS': 'cpu',
  'NPROC': '32',
  'PYTHONPATH': str(ROOT),
  'XLA_FLAGS': xla.devices(8),
}
LIMIT_S = 600.0  # of each command, on a quiet machine


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What the rehearsal found. All files are below `place`."""

  place: pathlib.Path
  killed_after: int  # steps that the first process had logged
  resumed_from: int  # steps in the newest record when it was killed
  versions: tuple[str, ...]  # weights that each server holds at the end
  results: pathlib.Path  # folder of the evaluation
  minutes: dict[str, float]  # by stage


def rehearse(place: pathlib.Path) -> Outcome:
  """Runs the rehearsal in `place`. What an earlier one learned for its checkpoint is used again.

  Raises:
    RuntimeError: a command failed. The message has the end of what it said.
    FileNotFoundError: real SGLang or the package of the tokenizer is not installed.
  """
  python = ROOT / '.venv-sglang' / 'bin' / 'python'
  if not python.is_file():
    raise FileNotFoundError(f'{python} is not there; make sglang installs it')
  place = place.absolute()
  for old in ('run', 'staging', 'results', 'benchmark', 'first.log', 'second.log', 'eval.log'):
    path = place / old
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
  place.mkdir(parents=True, exist_ok=True)
  clock = _Clock()
  material.write(place)
  clock.lap('checkpoint')
  context = knobs.COUNTS['sampling.context']
  with servers.running(place / 'model', place, context, patience.seconds(LIMIT_S)) as running:
    clock.lap('servers')
    command = _command('rl', 'para_grpo', knobs.rl(place, _urls(running)))
    killed_after = _run_and_kill(command, place)
    resumed_from = max(_records(place))
    clock.lap('first process')
    _run(command, place, 'second.log')
    clock.lap('second process')
    # the same servers: they must hold what was exported
    snapshot = fixtures.snapshot(place / 'benchmark', 'videomme')
    _run(
      _command('eval', 'eval', knobs.evaluation(place, _urls(running), snapshot)), place, 'eval.log'
    )
    clock.lap('evaluation')
    versions = tuple(map(_version, running))
  return Outcome(place, killed_after, resumed_from, versions, place / 'results', clock.minutes)


def lines(place: pathlib.Path) -> list[dict[str, Any]]:
  """The whole lines of the run's metrics."""
  path = place / 'run' / 'metrics.jsonl'
  text = path.read_text() if path.is_file() else ''
  return [json.loads(one) for one in text.splitlines(keepends=True) if one.endswith('\n')]


def _urls(running: list[ServerProcess]) -> tuple[str, ...]:
  return tuple(server.url for server in running)


def _version(server: ServerProcess) -> str:
  """The version of the weights that a server holds."""
  return str(json.loads(servers.get(server.url, '/get_model_info'))['weight_version'])


def _command(entry: str, recipe: str, given: dict[str, Any]) -> list[str]:
  return [
    *(sys.executable, '-m', f'experiments.{entry}', f'--config={ROOT}/configs/{recipe}.py:8b'),
    *(f'--config.{name}={value}' for name, value in given.items()),
  ]


def _start(command: list[str], place: pathlib.Path, log: str) -> subprocess.Popen[str]:
  with (place / log).open('w') as file:
    return subprocess.Popen(
      command, cwd=place, env={**os.environ, **DEVICES}, stdout=file, stderr=file, text=True
    )


def _run_and_kill(command: list[str], place: pathlib.Path) -> int:
  """Starts a run and kills it between two records. Returns the steps that it had logged."""
  process = _start(command, place, 'first.log')

  def may_be_killed() -> bool:
    if process.poll() is not None:
      _fail(command, process.returncode, place / 'first.log')
    return bool(_records(place)) and len(lines(place)) > max(_records(place))

  try:
    patience.until(may_be_killed, 'a step after the first record', LIMIT_S, step=0.1)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  return len(lines(place))


def _run(command: list[str], place: pathlib.Path, log: str) -> None:
  process = _start(command, place, log)
  try:
    status = process.wait(patience.seconds(LIMIT_S))
  finally:
    process.kill()
    process.wait()
  if status:
    _fail(command, status, place / log)


def _fail(command: list[str], status: int, log: pathlib.Path) -> None:
  said = log.read_text(errors='replace')[-3000:]
  raise RuntimeError(f'{command[2]} ended with status {status}; {log} ends with:\n{said}')


def _records(place: pathlib.Path) -> list[int]:
  """The steps of which there is a whole record."""
  found = (place / 'run' / 'checkpoints').glob('[0-9]*')
  return [int(path.name) for path in found if path.name.isdigit()]


class _Clock:
  """Measures stages in minutes."""

  def __init__(self) -> None:
    self.minutes: dict[str, float] = {}
    self._last = time.monotonic()

  def lap(self, stage: str) -> None:
    now = time.monotonic()
    self.minutes[stage] = (now - self._last) / 60
    self._last = now

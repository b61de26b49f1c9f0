"""Runs a grid of RL runs, each in its own process. Each slot has its own cores and one run at a
time.

A failed run does not stop the others. Finished runs are not repeated.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from paravt_jax.errors import ConfigError
from paravt_jax.options import require
from paravt_jax.orchestrator import binding, corpus, run_folder
from paravt_jax.orchestrator.cold_start import cold_start
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.run_folder import Interrupts, to_json
from paravt_jax.report import ablation

POLL_S = 0.2


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of the grid."""

  name: str  # of the set of overrides
  seed: int
  folder: pathlib.Path  # of the run
  arguments: tuple[str, ...]  # of the command that starts the run
  recipe: RLRecipe  # the resulting recipe

  @property
  def log(self) -> pathlib.Path:
    """Returns the file with the run's stdout and stderr."""
    return self.folder.with_name(f'{self.folder.name}.log')


@dataclasses.dataclass(frozen=True)
class Started:
  """How runs are started."""

  command: tuple[str, ...]  # in front of a run's arguments
  environment: Mapping[str, str]  # of the processes
  slots: Sequence[Sequence[int]]  # CPU cores of each slot; each slot has one run at a time
  say: Callable[[str], None]  # prints a line


@dataclasses.dataclass(frozen=True)
class Job:
  """A process that is running: its slot, and its start time."""

  cell: Cell
  slot: int
  process: subprocess.Popen
  begun: float


def deal(cores: Sequence[int], jobs: int) -> list[list[int]]:
  """Distributes CPU cores over the jobs in turn: the given ones, or all that this process may use.

  Raises ConfigError for a core that this process may not use, or if there are more jobs than cores.
  """
  may = sorted(os.sched_getaffinity(0))
  chosen = list(cores) or may
  wanted = f'some of the cores that this process may use, {may}'
  require(cores, wanted, set(chosen) <= set(may), 'cores')
  require(jobs, f'1 to {len(chosen)}, a core each', 1 <= jobs <= len(chosen), 'jobs')
  return [chosen[job::jobs] for job in range(jobs)]


def finished(cell: Cell) -> bool:
  """Returns whether the run is finished.

  Raises ConfigError if other settings made its folder.
  """
  file = cell.folder / 'config.json'
  leftovers = ('summary.json', 'metrics.jsonl', 'checkpoints')
  begun = any((cell.folder / name).exists() for name in leftovers)
  if not file.is_file() or not begun:
    return False
  try:
    before, now = json.loads(file.read_text()), to_json(cell.recipe)
  except ValueError as error:
    raise ConfigError(
      f'{file}: not JSON ({error}); move the folder away, then the run is made again'
    ) from error
  changed, _ = binding.changes(before, now)
  whole = all((cell.folder / name).is_file() for name in ('summary.json', 'report.html'))
  planned, asked = before['rollout']['steps'], cell.recipe.rollout.steps
  done = run_folder.steps_done(cell.folder)
  if asked < (planned if whole else done or 0):
    changed.append(f'rollout.steps: {planned} -> {asked}')
  if changed:
    raise ConfigError(
      f'run folder {cell.folder} was made with other settings ({", ".join(changed[:4])}); '
      'choose another --config.folder, or move it away'
    )
  # the recipe may ask for more steps than a finished run has
  return whole and asked <= (planned if done is None else done)


def prepare(waiting: Sequence[Cell]) -> None:
  """Makes what the runs share (corpus and cold start) once, before they start."""
  shared: dict[str, RLRecipe] = {}
  for one in waiting:
    values = to_json(one.recipe)
    key = run_folder.fingerprint(values.get('cold_start'), one.recipe.model.folder, values['data'])
    shared.setdefault(key, one.recipe)
  for recipe in shared.values():
    if recipe.data.kind == 'world' and recipe.world is not None:
      corpus.make_world(recipe.world)
    if not recipe.model.folder and recipe.cold_start is not None:
      cold_start(recipe.cold_start)


def execute(waiting: Sequence[Cell], how: Started, interrupts: Interrupts) -> list[Cell]:
  """Runs the cells in order, one per slot at a time. Returns the cells that failed.

  Raises KeyboardInterrupt after Ctrl-C, once the running processes have ended. Their folders resume
  next time.
  """
  queue, free, failed = collections.deque(waiting), list(range(len(how.slots))), []
  jobs: list[Job] = []
  told = False
  while jobs or (queue and not interrupts.asked):
    while queue and free and not interrupts.asked:
      slot = free.pop(0)
      jobs.append(start(queue.popleft(), slot, how))
    if interrupts.asked and not told:
      told = True
      for job in jobs:
        job.process.send_signal(signal.SIGINT)
    time.sleep(POLL_S)
    for job in [job for job in jobs if job.process.poll() is not None]:
      jobs.remove(job)
      free.append(job.slot)
      if not interrupts.asked and not succeeded(job, how.say):
        failed.append(job.cell)
  interrupts.check()
  return failed


def start(one: Cell, slot: int, how: Started) -> Job:
  """Starts the cell's run on the slot's cores, in its own session.

  Because of the session, Ctrl-C reaches the run only through this process, and only once.
  """
  command, cores = (*how.command, *one.arguments), how.slots[slot]
  with one.log.open('a') as log:
    log.write(f'$ {shlex.join(command)}\n')
    log.flush()
    with _on(cores):
      process = subprocess.Popen(
        command,
        env=dict(how.environment),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
  how.say(f'{one.name}, seed {one.seed}: begins, on cores {",".join(map(str, cores))}; {one.log}')
  return Job(one, slot, process, time.monotonic())


@contextlib.contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
  """Keeps this thread on `cores`: a process that it starts inherits them, before its first line."""
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def succeeded(job: Job, say: Callable[[str], None]) -> bool:
  """Returns whether a run has finished completely, and prints one line about it."""
  one, status = job.cell, job.process.returncode
  whole = status == 0 and (one.folder / 'summary.json').is_file()
  how = (
    f'done: {ablation.glance(one.folder)}'
    if whole
    else f'FAILED with status {status}: {last_line(one.log)}'
  )
  say(f'{one.name}, seed {one.seed}: after {(time.monotonic() - job.begun) / 60:.1f} minutes {how}')
  return whole


def last_line(log: pathlib.Path) -> str:
  """Returns the last line of a run's log."""
  lines = [
    line
    for line in log.read_text(errors='replace').replace('\r', '\n').splitlines()
    if line.strip()
  ]
  return lines[-1].strip() if lines else 'it said nothing'

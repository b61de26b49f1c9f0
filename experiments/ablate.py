"""Ablations: `python -m experiments.ablate --config=configs/ablations.py [--config.sets=grpo,para_grpo] [--config.seeds=0,1,2]`.

A grid of named override sets x seeds over one recipe. Each run is a normal run folder, made by
experiments.rl in a process of its own: what one does wrong stops no other. The same command goes
on: finished runs stay, begun ones continue. Ends with a table and a page of curves. Exit status: 0
done, 1 some run failed (the others are in the table), 2 wrong input, 130 interrupted.
"""

import collections
import dataclasses
import difflib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from absl import flags

from experiments import launch
from paravt_jax.errors import ConfigError
from paravt_jax.options import (
  COUNT,
  NAME,
  PROSE,
  SEED,
  WORDS,
  Members,
  Options,
  each,
  require,
  schema,
)
from paravt_jax.orchestrator import binding, checks, corpus, run_folder
from paravt_jax.orchestrator.cold_start import cold_start
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.run_folder import Interrupts, to_json
from paravt_jax.report import ablation, ablation_page

OWN = ('seed', 'run.folder')  # knobs that the grid itself sets
POLL_S = 0.2


SEEDS = each('one or more different seeds, as in --config.seeds=0,1,2', SEED.holds, 1, differ=True)
CORES = each(
  'different cores, or () for all', lambda one: type(one) is int and one >= 0, differ=True
)


@dataclasses.dataclass(frozen=True)
class AblateRecipe(Options):
  """A grid of named sets of overrides over one recipe."""

  SECTION: ClassVar[str] = 'overrides'
  EXAMPLE: ClassVar[str] = 'configs/ablations.py'

  recipe: Annotated[str, NAME]  # of experiments.rl, with its scale
  folder: Annotated[str, NAME]  # a run folder per set and seed, the table, the page and its curves
  sets: Annotated[str, PROSE]  # some of `overrides`, by commas, in the order of the table
  seeds: Annotated[tuple[int, ...], SEEDS]  # of the runs; the cold start is one for all
  jobs: Annotated[int, COUNT]  # runs at once; where a run uses an accelerator: 1
  cores: Annotated[tuple[int, ...], CORES]  # of the CPU, dealt out to the jobs; (): all
  common: Annotated[tuple[str, ...], WORDS]  # overrides of every run, before those of its set
  overrides: Annotated[Mapping[str, tuple[str, ...]], Members(WORDS)]  # by set
  reference: Annotated[str, PROSE]  # the set that others are set against, seed by seed
  drawings: Annotated[Mapping[str, tuple[str, ...]], Members(WORDS)]  # sets that share a drawing


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of the grid."""

  name: str  # of the set
  seed: int
  folder: pathlib.Path  # of the run
  arguments: tuple[str, ...]  # of experiments.rl
  recipe: RLRecipe  # what they come to

  @property
  def log(self) -> pathlib.Path:
    """What the run says, on both streams."""
    return self.folder.with_name(f'{self.folder.name}.log')


def main(recipe: AblateRecipe) -> None:
  """Runs what is not yet done of the grid, then writes and prints the table."""
  cells = grid(recipe)
  slots = deal(recipe)
  folder = pathlib.Path(recipe.folder)
  waiting = [cell for cell in cells if not finished(cell)]
  say(
    f'{len(cells)} runs in {folder}: {len(cells) - len(waiting)} are done, {len(waiting)} to '
    f'go, {len(slots)} at once'
  )
  with run_folder.locked(folder, 'folder'):
    prepare(waiting)
    with Interrupts() as interrupts:
      failed = execute(waiting, slots, interrupts)
  found = ablation.load(
    {name: {c.seed: c.folder for c in cells if c.name == name} for name in names(recipe)}
  )
  settings = ablation.Settings(
    recipe=recipe.recipe,
    common=recipe.common,
    overrides={name: recipe.overrides[name] for name in names(recipe)},
    reference=recipe.reference,
    drawings=dict(recipe.drawings),
  )
  print(ablation_page.write(folder, found, settings))
  for cell in failed:
    say(f'failed: {cell.name}, seed {cell.seed}: {last_line(cell.log)} (all of it: {cell.log})')
  print(folder)
  if failed:
    sys.exit(1)


def say(text: str) -> None:
  """A line on stderr, at once."""
  print(f'ablate: {text}', file=sys.stderr, flush=True)


def names(recipe: AblateRecipe) -> tuple[str, ...]:
  """The chosen sets, in the order asked for. Raises ConfigError for one that there is not."""
  asked = tuple(dict.fromkeys(name.strip() for name in recipe.sets.split(',') if name.strip()))
  known = list(recipe.overrides)
  for name in asked or ('',):
    near = difflib.get_close_matches(name, known, n=1)
    wanted = f'{name!r}: did you mean {near[0]}?' if near else f'some of {", ".join(known)}'
    require(recipe.sets, wanted, name in known, 'sets')
  return asked


def grid(recipe: AblateRecipe) -> list[Cell]:
  """All runs, each checked as experiments.rl would: seed by seed, so that what is done so far can
  be compared. Raises ConfigError.
  """
  file = pathlib.Path(recipe.recipe.partition(':')[0])
  require(
    recipe.recipe,
    'a recipe of experiments.rl, such as configs/para_grpo.py:tiny',
    file.is_file(),
    'recipe',
  )
  seeds = recipe.seeds
  good = (
    bool(seeds)
    and all(type(seed) is int and seed >= 0 for seed in seeds)
    and len(set(seeds)) == len(seeds)
  )
  require(seeds, 'one or more different seeds, as in --config.seeds=0,1,2', good, 'seeds')
  require(
    recipe.reference,
    f'one of {", ".join(recipe.overrides)}',
    recipe.reference in recipe.overrides,
    'reference',
  )
  for title, sets in recipe.drawings.items():
    require(
      tuple(sets),
      f'some of {", ".join(recipe.overrides)}',
      set(sets) <= set(recipe.overrides),
      f'drawings.{title}',
    )
  return [cell(recipe, name, seed) for seed in seeds for name in names(recipe)]


def cell(recipe: AblateRecipe, name: str, seed: int) -> Cell:
  """One run of the grid. Raises ConfigError naming the set when the recipe does not take its
  overrides.
  """
  folder = pathlib.Path(recipe.folder) / f'{name}-seed{seed}'
  where = f'--config.overrides.{name}' + (' with --config.common' if recipe.common else '')
  knobs: dict[str, str] = {}
  for override in (*recipe.common, *recipe.overrides[name]):  # the set's come last and win
    knob, equals, value = override.partition('=')
    if not equals:
      raise ConfigError(f"{where}: got {override!r}, wanted 'some.knob=value'")
    if knob in OWN:
      raise ConfigError(
        f'{where}: {knob} is set by the grid, run by run; take it out (--config.seeds and '
        '--config.folder are for this)'
      )
    knobs[knob] = value
  knobs.update({'seed': str(seed), 'run.folder': str(folder)})
  flags_ = (f'--config.{knob}={value}' for knob, value in knobs.items())
  arguments = (f'--config={recipe.recipe}', *flags_)
  try:
    found = resolve(arguments)
    checks.check_rl(found)
  except ConfigError as error:
    raise ConfigError(f'{where}: {error}') from error
  return Cell(name, seed, folder, arguments, found)


def resolve(arguments: Sequence[str]) -> RLRecipe:
  """The recipe that experiments.rl would get from these arguments, parsed by the same code. Raises
  ConfigError.
  """
  values = flags.FlagValues()
  try:
    launch.define(values)
    rules = schema(RLRecipe)
    config = launch.configured(('ablate', *arguments), values, {}, rules)[1]
  except (AttributeError, KeyError, OSError, flags.Error) as error:
    raise ConfigError(launch.complaint(error)) from error
  return launch.typed(RLRecipe, config)


def deal(recipe: AblateRecipe) -> list[list[int]]:
  """The CPU cores of each job: those of the recipe, or all that this process may use, dealt out in
  turn. Raises ConfigError.
  """
  may = sorted(os.sched_getaffinity(0))
  cores = list(recipe.cores) or may
  require(
    recipe.cores,
    f'some of the cores that this process may use, {may}',
    set(cores) <= set(may),
    'cores',
  )
  require(recipe.jobs, f'1 to {len(cores)}, a core each', 1 <= recipe.jobs <= len(cores), 'jobs')
  return [cores[job :: recipe.jobs] for job in range(recipe.jobs)]


# What is there already


def finished(cell: Cell) -> bool:
  """Whether the run reached its end. Raises ConfigError when its folder was made with other
  settings.
  """
  file = cell.folder / 'recipe.json'
  leftovers = ('summary.json', 'metrics.jsonl', 'checkpoints')
  begun = any((cell.folder / name).exists() for name in leftovers)
  if not file.is_file() or not begun:
    return False
  try:
    before, now = json.loads(file.read_text()), to_json(cell.recipe)
  except ValueError as error:
    raise ConfigError(
      f'{file}: not JSON ({error}); move the folder away, then the run is made anew'
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
  # of a finished run more steps may be asked for
  return whole and asked <= (planned if done is None else done)


def prepare(waiting: Sequence[Cell]) -> None:
  """Makes what runs share, corpus and cold start, so that they find it and do not make it twice."""
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


@dataclasses.dataclass(frozen=True)
class Job:
  """A run under way: on which slot, and since when."""

  cell: Cell
  slot: int
  process: subprocess.Popen
  begun: float


def execute(
  waiting: Sequence[Cell], slots: Sequence[Sequence[int]], interrupts: Interrupts
) -> list[Cell]:
  """Runs the cells in order, as many at once as there are slots; returns those that failed.

  Raises KeyboardInterrupt after Ctrl-C, once the runs that were under way have ended by themselves;
  their folders go on next time.
  """
  queue, free, failed = collections.deque(waiting), list(range(len(slots))), []
  jobs: list[Job] = []
  told = False
  while jobs or (queue and not interrupts.asked):
    while queue and free and not interrupts.asked:
      slot = free.pop(0)
      jobs.append(start(queue.popleft(), slot, slots[slot]))
    if interrupts.asked and not told:
      told = True
      for job in jobs:
        job.process.send_signal(signal.SIGINT)
    time.sleep(POLL_S)
    for job in [job for job in jobs if job.process.poll() is not None]:
      jobs.remove(job)
      free.append(job.slot)
      if not interrupts.asked and not succeeded(job):
        failed.append(job.cell)
  interrupts.check()
  return failed


def start(one: Cell, slot: int, cores: Sequence[int]) -> Job:
  """experiments.rl on the cell's arguments, on its cores, in a session of its own: Ctrl-C comes to
  it from here, once.
  """
  command = (sys.executable, '-m', 'experiments.rl', *one.arguments)
  with one.log.open('a') as log:
    log.write(f'$ {shlex.join(command)}\n')
    log.flush()
    process = subprocess.Popen(
      command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
  os.sched_setaffinity(process.pid, cores)  # before it has threads, which inherit it
  say(f'{one.name}, seed {one.seed}: begins, on cores {",".join(map(str, cores))}; {one.log}')
  return Job(one, slot, process, time.monotonic())


def succeeded(job: Job) -> bool:
  """Whether an ended run is whole, and a line on it."""
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
  """The last line that a run said."""
  lines = [
    line
    for line in log.read_text(errors='replace').replace('\r', '\n').splitlines()
    if line.strip()
  ]
  return lines[-1].strip() if lines else 'it said nothing'


if __name__ == '__main__':
  sys.exit(launch.run(main, AblateRecipe))

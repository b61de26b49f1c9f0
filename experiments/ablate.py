"""Ablations: `python -m experiments.ablate --config=configs/ablations.py [--config.sets=grpo,para_grpo] [--config.seeds=0,1,2]`.

A grid of named override sets x seeds over one recipe. Each run is a normal run folder, made by
experiments.rl in a separate process, so a failed run stops no other. The same command resumes:
finished runs stay, started ones continue. Ends with a table and a page of curves. Exit status: 0
done, 1 some run failed (the others are in the table), 2 wrong input, 130 interrupted.
"""

import dataclasses
import difflib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from absl import flags

from experiments import launch
from paravt_jax.errors import ConfigError
from paravt_jax.options import (
  NAME,
  PROCESSES,
  PROSE,
  SEED,
  WORDS,
  Members,
  Options,
  each,
  require,
  schema,
)
from paravt_jax.orchestrator import checks, grid, run_folder
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.report import ablation, ablation_page

OWN = ('seed', 'run.folder')  # knobs that the grid itself sets
COMMAND = (sys.executable, '-m', 'experiments.rl')

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
  jobs: Annotated[int, PROCESSES]  # runs at once; where a run uses an accelerator: 1
  cores: Annotated[tuple[int, ...], CORES]  # of the CPU, dealt out to the jobs; (): all
  common: Annotated[tuple[str, ...], WORDS]  # overrides of every run, before those of its set
  overrides: Annotated[Mapping[str, tuple[str, ...]], Members(WORDS)]  # by set
  reference: Annotated[str, PROSE]  # the set that others are set against, seed by seed
  drawings: Annotated[Mapping[str, tuple[str, ...]], Members(WORDS)]  # sets that share a drawing


def main(recipe: AblateRecipe) -> None:
  """Runs the unfinished runs of the grid, then writes and prints the table."""
  # Check all runs before starting any, so that a mistake costs no computation.
  cells = cells_of(recipe)
  slots = grid.deal(recipe.cores, recipe.jobs)
  how = grid.Started(COMMAND, launch.host().environment, slots, say)
  folder = pathlib.Path(recipe.folder)
  waiting = [cell for cell in cells if not grid.finished(cell)]
  say(
    f'{len(cells)} runs in {folder}: {len(cells) - len(waiting)} are done, {len(waiting)} to '
    f'go, {len(slots)} at once'
  )
  with run_folder.locked(folder, 'folder'):
    grid.prepare(waiting)
    with Interrupts() as interrupts:
      failed = grid.execute(waiting, how, interrupts)
  # Results of all finished runs, by set and seed.
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
    say(
      f'failed: {cell.name}, seed {cell.seed}: {grid.last_line(cell.log)} (all of it: {cell.log})'
    )
  print(folder)
  if failed:
    sys.exit(1)


def say(text: str) -> None:
  """Prints a line on stderr at once."""
  print(f'ablate: {text}', file=sys.stderr, flush=True)


def names(recipe: AblateRecipe) -> tuple[str, ...]:
  """Returns the selected sets in their given order. Raises ConfigError for an unknown set."""
  asked = tuple(dict.fromkeys(name.strip() for name in recipe.sets.split(',') if name.strip()))
  known = list(recipe.overrides)
  for name in asked or ('',):
    near = difflib.get_close_matches(name, known, n=1)
    wanted = f'{name!r}: did you mean {near[0]}?' if near else f'some of {", ".join(known)}'
    require(recipe.sets, wanted, name in known, 'sets')
  return asked


def cells_of(recipe: AblateRecipe) -> list[grid.Cell]:
  """Returns all runs of the grid, each checked as experiments.rl would.

  They are ordered by seed, so that finished runs can be compared early. Raises ConfigError.
  """
  file = pathlib.Path(recipe.recipe.partition(':')[0])
  wanted = 'a recipe of experiments.rl, such as configs/para_grpo.py:tiny'
  require(recipe.recipe, wanted, file.is_file(), 'recipe')
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
  return [cell(recipe, name, seed) for seed in recipe.seeds for name in names(recipe)]


def cell(recipe: AblateRecipe, name: str, seed: int) -> grid.Cell:
  """Returns one run of the grid.

  Raises ConfigError with the set's name if the recipe refuses its overrides.
  """
  folder = pathlib.Path(recipe.folder) / f'{name}-seed{seed}'
  where = f'--config.overrides.{name}' + (' with --config.common' if recipe.common else '')
  knobs: dict[str, str] = {}
  # the set's overrides come last and win
  for override in (*recipe.common, *recipe.overrides[name]):
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
  return grid.Cell(name, seed, folder, arguments, found)


def resolve(arguments: Sequence[str]) -> RLRecipe:
  """Returns the recipe that experiments.rl would get from these arguments, from the same parser.

  Raises ConfigError.
  """
  values = flags.FlagValues()
  try:
    launch.define(values)
    rules = schema(RLRecipe)
    config = launch.read_config(('ablate', *arguments), values, {}, rules)[1]
  except (AttributeError, KeyError, OSError, flags.Error) as error:
    raise ConfigError(launch.complaint(error)) from error
  return launch.typed(RLRecipe, config)


if __name__ == '__main__':
  sys.exit(launch.run(main, AblateRecipe))

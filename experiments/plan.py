"""What a recipe will take, without weights or devices.

python -m experiments.plan --config=configs/RECIPE.py[:scale] [--target=h100:8] [--json] [--config.knob=value]

Prints memory per device by part, FLOPs, bytes, seconds a step, disk and hours, and what to change
if the recipe does not fit. Recipes of experiments.rl, experiments.sft and experiments.eval. Exit
status: 0 it fits, 1 it does not fit, 2 it is refused for another reason.

--compile also compiles the recipe's own step, and the programs of an embedded server, for the
target, which need not be there, and puts the compiler's figures beside the plan's: a few minutes.
`make plan-env` installs the compilers of GPUs and TPUs; without them it compiles for virtual CPU
devices.

--target=NAME:COUNT names the devices, and `--target=list` alone prints what there is. --model=8b or
--model=DIR names the model where the recipe does not. --shape=calls=2,think=300 states the shape of
episodes.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import launch
from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan import (
  accelerators,
  advice,
  ahead,
  build,
  engine,
  job,
  own_data,
  shapes,
  table,
)
from paravt_jax.orchestrator.plan.rules import Request
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe

KINDS = (RLRecipe, SFTRecipe, EvalRecipe)
LIST = '--target=list'
COMPILERS = pathlib.Path('.venv-aot')  # made by `make plan-env`


def define(values: flags.FlagValues) -> None:
  """Defines the command's flags."""
  launch.define(values)
  text = {
    'target': "The devices, as in h100:8; '': the scale's own.",
    'model': 'The model: 2b, 4b, 8b, 32b, tiny or a folder that holds config.json.',
    'shape': 'The shape of episodes, as in calls=2,think=300.',
  }
  for name, meaning in text.items():
    flags.DEFINE_string(name, '', meaning, flag_values=values)
  flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)
  flags.DEFINE_bool('compile', False, 'Compile for the target too.', flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues) -> int:
  """Plans the recipe of a command line. Returns the exit status."""
  if LIST in argv:
    print(list_targets())
    return 0
  try:
    plan = build.make_plan(with_own_data(request(read(argv, values), values)))
    compiled, server = compile_for_target(plan) if values['compile'].value else (None, None)
  except ConfigError as error:
    return refuse(str(error), '--json' in argv)
  found = advice.ways_out(plan)
  text = json.dumps(table.to_json(plan, found, compiled, server)) if values['json'].value else None
  print(text or table.to_text(plan, found, compiled, server))
  for line in plan.refusals:
    print(f'error: {line}', file=sys.stderr)
  if plan.fits:
    return 0
  return 1 if plan.memory is not None else 2


def read(argv: Sequence[str], values: flags.FlagValues) -> job.Recipe:
  """Returns the typed recipe of a command line.

  Raises:
    ConfigError: a flag or a knob is unknown or wrong, in one line.
  """
  values.set_gnu_getopt(True)
  rules: dict[str, options.Rule] = {}
  for kind in KINDS:
    rules |= options.schema(kind)
  try:
    rest, config, notes = launch.read_config(argv, values, {}, rules)
  except (AttributeError, KeyError, OSError, flags.Error) as error:
    raise ConfigError(launch.complaint(error)) from error
  if rest[1:]:
    raise ConfigError(f'{rest[1]!r} was not understood; flags begin with --')
  for note in notes:
    print(note, file=sys.stderr)
  return typed(config)


def typed(config: Any) -> job.Recipe:
  """Returns the typed recipe of the kind whose section a config has. Raises ConfigError."""
  for kind in KINDS:
    if kind.SECTION in config:
      return launch.typed(kind, config)
  raise ConfigError(
    '--config: wanted a recipe of experiments.rl, experiments.sft or experiments.eval, such as '
    'configs/para_grpo.py:8b'
  )


def request(recipe: job.Recipe, values: flags.FlagValues) -> Request:
  """Returns what the flags ask about a recipe. Raises ConfigError for a wrong flag."""
  target, named, shape = (str(values[name].value or '') for name in ('target', 'model', 'shape'))
  model, source = job.model_of(recipe, named)
  return Request(
    recipe,
    accelerators.parse_target(target) if target else accelerators.target_of_scale(recipe.scale),
    model,
    source,
    shapes.shape_of(recipe, shape),
  )


def with_own_data(asked: Request) -> Request:
  """Returns a request with the data of one step, where the recipe's rows and media are there."""
  data, source = own_data.read(asked.recipe, asked.shape)
  return dataclasses.replace(asked, data=data, data_source=source)


def compile_for_target(plan: build.Plan) -> tuple[dict[str, Any] | None, engine.Figures | None]:
  """Returns the compiler's figures of the step, and of an embedded server on a GPU or TPU.

  Raises ConfigError if the recipe has neither, or the compiler failed.
  """
  if plan.memory is None:
    return None, None
  compiler = ahead.find_compiler(plan, launch.ROOT / COMPILERS, os.environ)
  cpu = compiler.target.startswith('cpu')
  if cpu and plan.request.target.accelerator.platform != 'cpu':
    print(
      f'no compiler for {plan.request.target.name} in {COMPILERS} (make plan-env installs those of '
      f'GPUs and TPUs): compiling for {compiler.target} instead',
      file=sys.stderr,
    )
  # figures are kept beside the compilers
  kept = launch.ROOT / COMPILERS / 'compiled'
  kept = kept if kept.parent.is_dir() else None
  server = None if cpu else engine.compile_server(plan, compiler, kept)
  if plan.learner is None and server is not None:
    return None, server
  return ahead.compile_plan(plan, compiler, kept), server


def refuse(line: str, as_json: bool) -> int:
  """Prints a refusal, as JSON too if asked for. Returns the exit status."""
  line = ' '.join(line.split())
  if as_json:
    print(json.dumps(table.refused_json([line])))
  print(f'error: {line}', file=sys.stderr)
  return 2


def list_targets() -> str:
  """Returns the accelerators, one line each, with the sources of their numbers."""
  return '\n'.join(
    f'{one.name:<8} {one.title:<15} {one.memory_gib:6.1f} GiB, {one.bfloat16_flops / 1e12:4.3g} '
    f'TFLOP/s, HBM {one.hbm_bytes / 1e12:.2f} TB/s, links {one.link_bytes / 1e9:3.0f} GB/s  '
    f'({one.source})'
    for one in accelerators.ACCELERATORS.values()
  )


if __name__ == '__main__':
  define(flags.FLAGS)
  launch.quiet()
  sys.exit(main(sys.argv, flags.FLAGS))

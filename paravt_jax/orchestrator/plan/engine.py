"""Compiles an embedded server's programs for devices that are not there, as `ahead` does the step.

Of a server on a GPU or TPU, two programs decide whether it fits: one that computes pages (prefill),
and one that decodes. Bytes are those of a call that reads every page, and samples in every slot of
the lane with the most: contexts share none of them, and are long enough to have them all.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from paravt_jax import options
from paravt_jax.models.placement import anywhere
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator.plan import ahead
from paravt_jax.orchestrator.plan import compiled as figures
from paravt_jax.orchestrator.plan.accelerators import GIB
from paravt_jax.orchestrator.plan.build import Plan
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.orchestrator.server_options import EmbeddedOptions
from paravt_jax.serving.embedded import compiled, layouts, programs

_PROGRAM = (
  'from paravt_jax.orchestrator.plan import ahead, engine; ahead.main(engine.compile_asked)'
)
PROGRAMS = ('prefill', 'decode')


@dataclasses.dataclass(frozen=True)
class Figures:
  """What the compiler says of one server, per device."""

  target: str  # as in v5p:2x2x2
  devices: int  # that share the model
  form: str  # of keys and values (serving/embedded/layouts.py)
  memory_gib: float  # while it computes pages or decodes, whichever is more
  # read and written in HBM for one decoded token; of 'pages', whose loop has no fixed length, with
  # one page of each context. None where the compiler refused
  bytes_per_token: float | None
  least_bytes_per_token: float  # weights once per step, and keys and values of a context
  error: str  # the compiler's refusal; '' if it fits


def compile_server(
  plan: Plan, compiler: ahead.Compiler, kept: pathlib.Path | None = None
) -> Figures | None:
  """Returns the compiler's figures of a plan's embedded server; None if it has none.

  Args:
    kept: a folder of figures that were measured before (`compiled.measure`).

  Raises:
    ConfigError: the compiler failed.
  """
  recipe = plan.request.recipe
  if isinstance(recipe, SFTRecipe) or recipe.server.kind != 'embedded':
    return None
  section, model = recipe.server.embedded, plan.request.model
  asked = {'options': options.to_dict(section), 'count': section.tensor_parallel}
  found = {
    name: ahead.ask(_PROGRAM, name, plan, compiler, {**asked, 'program': name}, kept)
    for name in PROGRAMS
  }
  errors = [one['error'] for one in found.values() if one.get('error')]
  s, weights = shapes_and_weights(section, model, _platform(plan, compiler))
  beside_prefill, beside_decode = (size / GIB for size in _held_beside(s, section))
  memory = max(
    found['prefill']['memory_gib'] + beside_prefill, found['decode']['memory_gib'] + beside_decode
  )
  slots = busiest(section)[1]
  moved = found['decode'].get('hbm_tb')
  return Figures(
    target=compiler.target,
    devices=section.tensor_parallel,
    form=section.form(model.text.head_dim, _platform(plan, compiler)),
    memory_gib=memory,
    bytes_per_token=moved and moved * 1e12 / (section.decode_steps * slots),
    least_bytes_per_token=_least_bytes(s, weights, section) / section.tensor_parallel / slots,
    error=errors[0] if errors else '',
  )


def busiest(section: EmbeddedOptions) -> tuple[int, int]:
  """Returns (context, slots) of the lane with the most slots."""
  return max(section.lanes, key=lambda lane: (lane[1], lane[0]))


def _platform(plan: Plan, compiler: ahead.Compiler) -> str:
  cpu = compiler.target.startswith('cpu')
  return 'cpu' if cpu else plan.request.target.accelerator.platform


def shapes_and_weights(
  section: EmbeddedOptions, model: Config, platform: str, devices: Any = None
) -> tuple[programs.Shapes, Any]:
  """Returns the sizes of a server's programs, and the forms of its weights.

  Args:
    devices: that share the model; None for no placement.
  """
  layout = layouts.layout_of(section.form(model.text.head_dim, platform))
  place = anywhere
  if devices is not None:
    place = programs.place_on(model, section.tensor_parallel, devices)
  s = programs.shapes_of(model, section, place, layout)
  return s, programs.abstract_params(model, section.dtype, place)


def _held_beside(s: programs.Shapes, section: EmbeddedOptions) -> tuple[float, float]:
  """Returns the bytes of a device that stay in memory beside (prefill, decode) and are not theirs."""
  features = ahead.bytes_of_forms(compiled.features(s))  # whole on every device
  if s.layout.paged:
    return 0.0, features
  pages, wide = ahead.bytes_of_forms(compiled.pool(s)), section.tensor_parallel
  columns = {lane: ahead.bytes_of_forms(compiled.new_block(s, *lane)[1]) for lane in section.lanes}
  held = sum(columns[lane] for lane in section.lanes) / wide
  return held, features + pages / wide + held - columns[busiest(section)] / wide


def _least_bytes(s: programs.Shapes, weights: Any, section: EmbeddedOptions) -> float:
  """Returns the bytes of one decoding step: text weights and the head once, and all keys and
  values that it may read.
  """
  text = weights['text']
  read = {name: tree for name, tree in text.items() if name != 'embed'}
  head = s.config.text.width * s.config.text.vocab * np.dtype(s.dtype).itemsize
  layers = ahead.bytes_of_forms(read['layers'])
  paged = s.layout.paged
  kept = compiled.pool(s)['layers'] if paged else compiled.new_block(s, *busiest(section))[1]
  return layers + head + ahead.bytes_of_forms(kept)


def compile_asked(asked: Mapping[str, Any]) -> dict[str, Any]:
  """Compiles a program of a server and returns its figures. `ahead` describes the child."""
  section = options.build(EmbeddedOptions, asked['options'])
  devices = ahead.find_devices(asked)[: asked['count']]
  with jax.default_device(jax.devices('cpu')[0]):
    config = Config.from_hf(asked['model'])
    s, weights = shapes_and_weights(section, config, asked['platform'], devices)
    if asked['program'] == 'prefill':
      program = compiled.prefill(s, weights)
    else:
      program = compiled.decode(s, weights, *busiest(section))
    traced = program.jitted.trace(*program.arguments)
    lowered = traced.lower(lowering_platforms=(asked['platform'],))
  return figures.measure(lowered, ahead.bytes_of(program.arguments), asked)

"""What to change when a recipe does not fit: changes that were planned again and found to fit."""

import dataclasses
import itertools
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan import accelerators, build
from paravt_jax.orchestrator.plan.build import Plan
from paravt_jax.orchestrator.plan.job import Recipe
from paravt_jax.orchestrator.plan.rules import Request
from paravt_jax.orchestrator.plan.shapes import OwnData
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe

MOST = 4  # ways out that a plan names
PATIENCE_S = 8.0  # of this process, for trying changes: about 60 take 6 s


@dataclasses.dataclass(frozen=True)
class Change:
  """Other values of knobs, and the devices that they need beyond the target's."""

  knobs: Mapping[str, Any]  # by path, as in 'train.rows'
  devices: int = 0  # in all; 0: those of the target are enough


def ways_out(plan: Plan) -> list[str]:
  """Returns changes with which a recipe fits, each as one line; [] if it fits as it is.

  Single changes come first. Pairs are tried if no single change is enough, then other devices. A
  recipe that was refused for another reason than memory gets none: its refusal says what to do.
  """
  if plan.fits or plan.memory is None or not plan.too_large:
    return []
  if plan.too_large < len(plan.refusals):
    return ['mend the other lines first; then changes are tried']
  end = time.process_time() + PATIENCE_S
  changes = list(_changes(plan.request))
  found = list(itertools.islice(_that_fit(plan.request, changes, end), MOST))
  pairs = (
    Change({**one.knobs, **other.knobs}, max(one.devices, other.devices))
    for one, other in itertools.combinations(changes, 2)
    if not one.knobs.keys() & other.knobs.keys()
  )
  found = found or list(itertools.islice(_that_fit(plan.request, pairs, end), MOST))
  return found or _other_devices(plan.request)


def _other_devices(request: Request) -> list[str]:
  """Returns the smallest device that holds a recipe as it is, as many of them as the target has."""
  at_hand = request.target.accelerator
  larger = sorted(
    (one for one in accelerators.ACCELERATORS.values() if one.memory_gib > at_hand.memory_gib),
    key=lambda one: (one.platform != at_hand.platform, one.memory_gib),
  )
  for one in larger:
    target = dataclasses.replace(request.target, accelerator=one)
    plan = build.make_plan(dataclasses.replace(request, target=target))
    if plan.fits and plan.memory is not None:
      return [
        f'--target={target.name}: {plan.memory.total:.1f} GiB per device; no change that was tried '
        f'fits on {at_hand.title}'
      ]
  return [f'nothing that was tried fits, on {at_hand.title} or a larger device of the table']


def _that_fit(request: Request, changes: Iterable[Change], end: float) -> Iterator[str]:
  for change in changes:
    if time.process_time() > end:
      return
    try:
      recipe = with_knobs(request.recipe, change.knobs)
    except ConfigError:
      continue  # not a value that this recipe may have
    # as one types it
    words = [shlex.quote(f'--config.{k}={v}') for k, v in change.knobs.items()]
    target = request.target
    if change.devices:
      target = accelerators.parse_target(f'{target.accelerator.name}:{change.devices}')
      words.append(f'--target={target.name}')
    changed = dataclasses.replace(request, recipe=recipe, target=target, data=_unplanned(request))
    plan = build.make_plan(changed)
    if plan.fits and plan.memory is not None:
      low, high = plan.step
      yield (
        f'{" ".join(words)}: {plan.memory.total:.1f} GiB per device, a step of '
        f'{low:.1f} to {high:.1f} s'
      )


def _unplanned(request: Request) -> OwnData | None:
  """Returns a request's own data for rows of other lengths."""
  return request.data and dataclasses.replace(request.data, bins=None)


def with_knobs(recipe: Recipe, knobs: Mapping[str, Any]) -> Recipe:
  """Returns a recipe with other values of knobs, given by path.

  Raises:
    ConfigError: a value breaks the rule of its knob.
  """

  def changed(options: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    fields: dict[str, Any] = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
      inner = {path[1:]: value for path, value in values.items() if path[0] == name}
      fields[name] = changed(getattr(options, name), inner)
    return options.replace(**fields)

  return changed(recipe, {tuple(path.split('.')): value for path, value in knobs.items()})


def _changes(request: Request) -> Iterator[Change]:
  """Yields changes to try, those that cost the least first."""
  recipe = request.recipe
  if isinstance(recipe, EvalRecipe):
    yield from _of_servers(recipe)
    return
  train, mesh = recipe.train, recipe.mesh
  yield from (Change({'train.backend': name}) for name in ('auto', 'tiled') if train.backend)
  if train.dtype == 'float32' and request.target.accelerator.platform != 'cpu':
    yield Change({'train.dtype': 'bfloat16'})
  if recipe.device.memory_fraction < 0.95 and not _shares_devices(recipe):
    yield Change({'device.memory_fraction': 0.95})
  if train.remat != 'layers':
    yield Change({'train.remat': 'layers'})
  if train.head_chunk > 256:
    yield Change({'train.head_chunk': 256})
  if mesh.data > 1:
    yield Change({'mesh.data': 1, 'mesh.fsdp': mesh.fsdp * mesh.data})
  least = mesh.data * mesh.fsdp
  if train.rows > least:
    yield Change(
      {'train.rows': least, 'train.micro_batches': train.micro_batches * train.rows // least}
    )
  if mesh.fsdp > 1 and train.rows % mesh.fsdp == 0:
    yield Change(_shared_rows(recipe))
  for part in (2, 4):
    yield Change(_shorter_rows(recipe, part))
  for times in (2, 4, 8):
    fsdp = mesh.fsdp * times
    knobs = {'mesh.fsdp': fsdp, 'train.rows': max(train.rows, mesh.data * fsdp)}
    needed = mesh.devices * times
    yield Change(knobs, 0 if needed <= request.target.count else needed)
  if isinstance(recipe, RLRecipe):
    yield from _of_servers(recipe)
    if recipe.rl.beta > 0:
      yield Change({'rl.beta': 0.0})


def _shares_devices(recipe: RLRecipe | SFTRecipe) -> bool:
  """Returns whether servers may stand on the learner's devices."""
  return isinstance(recipe, RLRecipe) and recipe.server.kind != 'url'


def _shared_rows(recipe: RLRecipe | SFTRecipe) -> dict[str, Any]:
  """Returns the knobs with which the devices that share parameters share each row too."""
  train, mesh = recipe.train, recipe.mesh
  return {
    'mesh.fsdp': 1,
    'mesh.context': mesh.context * mesh.fsdp,
    'train.rows': train.rows // mesh.fsdp,
    'train.micro_batches': train.micro_batches * mesh.fsdp,
  }


def _shorter_rows(recipe: RLRecipe | SFTRecipe, part: int) -> dict[str, Any]:
  """Returns the knobs of rows that are `part` times shorter, with lengths and contexts that fit."""
  length = recipe.train.row_tokens // part
  knobs: dict[str, Any] = {
    'train.row_tokens': length,
    'train.row_images': recipe.train.row_images // part,
  }
  if isinstance(recipe, RLRecipe):
    shorter = tuple(one for one in recipe.batches.row_lengths if one < length)
    if shorter != recipe.batches.row_lengths:
      knobs['batches.row_lengths'] = shorter
    if recipe.sampling.context > length:
      knobs['sampling.context'] = length  # longer episodes would be left out
  return knobs


def _of_servers(recipe: RLRecipe | EvalRecipe) -> Iterator[Change]:
  section = recipe.server
  if section.kind == 'embedded':
    pages = section.embedded.pages
    for part in (2, 4):
      yield Change({'server.embedded.pages': pages // part})
    for part in (2, 4, 8):
      lanes = tuple((context, max(1, slots // part)) for context, slots in section.embedded.lanes)
      yield Change({'server.embedded.lanes': lanes, 'server.embedded.pages': pages // part})
  elif section.kind == 'sglang' or isinstance(recipe, EvalRecipe):
    for part in (2, 4):
      tokens = section.sglang.max_total_tokens // part
      yield Change({'server.sglang.max_total_tokens': tokens})

"""A plan as JSON and as text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax.orchestrator.plan import roofline, traffic
from paravt_jax.orchestrator.plan.build import Learner, Plan
from paravt_jax.orchestrator.plan.engine import Figures
from paravt_jax.orchestrator.recipes import EvalRecipe, SFTRecipe


def refused_json(refusals: Sequence[str]) -> dict[str, Any]:
  """Returns the JSON object of a recipe that could not be read: refusals, and no numbers."""
  return {
    'fits': False,
    'devices': 0,
    'memory_gib_per_device': None,
    'flops_per_step': None,
    'seconds_per_step': None,
    'refusals': list(refusals),
  }


def to_json(
  plan: Plan,
  ways_out: Sequence[str],
  compiled: Mapping[str, Any] | None = None,
  server: Figures | None = None,
) -> dict[str, Any]:
  """Returns a plan as one JSON object. Sizes are GiB, times seconds; a range is [low, high].

  Args:
    compiled: the compiler's own figures, if any. `planned` then holds the plan's for the same.
    server: those of an embedded server, if any.
  """
  found = refused_json(plan.refusals)
  if server:
    found['compiled_server'] = dataclasses.asdict(server)
  if compiled:
    bounds = roofline.of_compiled(plan, compiled) or {}
    found |= {'compiled': {**compiled, **bounds}, 'planned': own_figures(plan)}
  accelerator, recipe = plan.request.target.accelerator, plan.request.recipe
  found |= {
    'fits': plan.fits,
    'devices': plan.devices,
    'ways_out': list(ways_out),
    'recipe': f'{recipe.name}:{recipe.scale}',
    'model': plan.request.model_source,
    'target': {
      'name': plan.request.target.name,
      'title': accelerator.title,
      'count': plan.request.target.count,
      'memory_gib': accelerator.memory_gib,
      'usable_gib': round(plan.request.target.usable_gib, 3),
      'source': accelerator.source,
    },
  }
  if plan.memory is None:
    return found
  parts = {name: round(size, 4) for name, size in plan.memory.parts.items()}
  found |= {
    'memory_gib_per_device': {**parts, 'total': round(plan.memory.total, 4)},
    'memory_gib_per_server_device': round(plan.memory.server_alone, 4),
    'flops_per_step': plan.flops,
    'seconds_per_step': list(plan.step),
    'seconds_per_rollout_batch': list(plan.rollout) if plan.rollout else None,
    'steps': plan.steps,
    'hours': list(plan.hours),
    'device_hours': [hours * plan.devices for hours in plan.hours],
  }
  if plan.learner:
    found |= _learner_json(plan.learner)
    found['data'] |= {'source': plan.request.data_source}
  return found


def _learner_json(learner: Learner) -> dict[str, Any]:
  load, made, needed = learner.load, learner.made, learner.needed
  seconds = learner.seconds
  return {
    'learner_seconds_per_step': [seconds.low, seconds.high],
    'flops': {
      'text': made.text,
      'attention': made.attention,
      'head': made.head,
      'vision': made.vision,
      'update': made.update,
      'needed': needed.total,
    },
    'bytes_per_step_and_device': {'hbm': learner.traffic.hbm, 'links': learner.traffic.links},
    'data': {
      'documents': load.documents,
      'tokens': load.tokens,
      'trained_tokens': load.trained,
      'images': load.images,
      'rows': load.rows,
      'micro_batches': load.micro_batches,
      'row_tokens': load.shape.row_tokens,
      'row_images': load.shape.row_images,
      'fill': round(load.fill, 4),
      'padding': round(1 - load.fill, 4),
      'image_fill': round(load.image_fill, 4),
      'attention_pairs_ratio': round(load.multiplied_pairs / max(load.visible_pairs, 1), 3),
      'rows_limited_by': load.limit,
    },
    'parameters': learner.state.parameters,
    'disk_gib': {
      'checkpoint': round(learner.disk.checkpoint, 3),
      'kept': round(learner.disk.kept, 3),
      'export': round(learner.disk.export, 3),
    },
    'checkpoints': learner.disk.checkpoints,
    'seconds_per_checkpoint': list(learner.disk.seconds),
  }


def to_text(
  plan: Plan,
  ways_out: Sequence[str],
  compiled: Mapping[str, Any] | None = None,
  server: Figures | None = None,
) -> str:
  """Returns a plan as a table for people. For the other arguments see `to_json`."""
  request, target = plan.request, plan.request.target
  recipe = request.recipe
  lines = [
    f'{recipe.name}:{recipe.scale} on {target.count} x {target.accelerator.title} '
    f'({target.accelerator.memory_gib:.1f} GiB each; {target.accelerator.source})',
    f'model   {request.model_source}, {request.model.text.layers} layers of '
    f'{request.model.text.width}',
  ]
  if plan.memory is not None:
    lines += [*_memory_lines(plan), *_step_lines(plan)]
  if compiled:
    lines += _compiled_lines(plan, compiled)
  if server:
    lines += _server_lines(server)
  lines.append('fits    yes' if plan.fits else 'fits    NO')
  lines += [f'  refused: {line}' for line in plan.refusals]
  lines += [f'  would fit: {line}' for line in ways_out]
  return '\n'.join(lines)


def _memory_lines(plan: Plan) -> list[str]:
  """The parts of a device's memory, with a bar each."""
  memory, usable = plan.memory, plan.request.target.usable_gib
  if memory is None:
    return []
  rows = [(name, size) for name, size in memory.parts.items() if size > 0.0005]
  lines = [f'memory  {memory.total:.2f} of {usable:.1f} GiB per device at the peak']
  for name, size in rows:
    bar = '#' * round(40 * min(size / usable, 2))
    lines.append(f'  {name:<12}{size:>9.2f} GiB  {bar}')
  if memory.server_alone:
    lines.append(
      f'  on {memory.server_devices} devices of servers alone: {memory.server_alone:.2f} GiB each'
    )
  return lines


def _step_lines(plan: Plan) -> list[str]:
  lines, recipe = [], plan.request.recipe
  if plan.learner:
    lines += _learner_lines(plan.learner, isinstance(recipe, SFTRecipe), plan.request.data_source)
  name = 'episode' if isinstance(recipe, EvalRecipe) else 'step'
  if plan.rollout:
    lines.append(f'servers {_span(plan.rollout)} s of writing per {name}')
  elif not isinstance(recipe, SFTRecipe):
    lines.append('servers by URL, not counted: name them by server.urls')
  lines += [
    f'{name:<8}{_span(plan.step)} s (all overlapped .. nothing overlapped, at peak rates)',
    f'run     {plan.steps} {name}s: {_span(plan.hours)} hours, '
    f'{_span([hours * plan.devices for hours in plan.hours])} device-hours on '
    f'{plan.devices} devices',
  ]
  return lines


def _learner_lines(learner: Learner, sft: bool, source: str) -> list[str]:
  load, made, needed, disk = learner.load, learner.made, learner.needed, learner.disk
  pairs = load.multiplied_pairs / max(load.visible_pairs, 1)
  share = needed.total / made.total
  kind = 'conversations' if sft else 'prompts with their rollouts, and sub-agents'
  return [
    f'data    {load.documents} documents ({kind}), {load.tokens} tokens, {load.trained} trained, '
    f'{load.images} images; {source}',
    f'  {load.rows} rows of {load.shape.row_tokens} tokens in {load.micro_batches} micro-batches; '
    f'fill {load.fill:.2f}, padding '
    f'{1 - load.fill:.2f}, image slots {load.image_fill:.2f}; rows are full of {load.limit}',
    f'FLOPs   {made.total:.3g} a step: text {made.text:.2g}, attention {made.attention:.2g}, head '
    f'{made.head:.2g}, vision {made.vision:.2g}',
    f'  {share:.0%} of them are needed; attention multiplies {pairs:.1f} times the visible pairs',
    f'bytes   {learner.traffic.hbm / 1e12:.2f} TB over HBM and {learner.traffic.links / 1e9:.0f} '
    'GB over links, per device and step',
    f'learner {_span((learner.seconds.low, learner.seconds.high))} s a step',
    f'disk    {disk.checkpoint:.1f} GiB a record ({_span(disk.seconds)} s to write), '
    f'{disk.checkpoints} in the run, {disk.kept:.0f} GiB kept; export {disk.export:.1f} GiB',
  ]


def _compiled_lines(plan: Plan, compiled: Mapping[str, Any]) -> list[str]:
  """The plan's figures and those of the compiler, side by side."""
  lines = [
    f'compiled for {compiled["target"]} in {compiled["seconds"]:.0f} s; of one device, one '
    'micro-batch of full rows and the update'
  ]
  if compiled.get('error'):
    lines.append(f'  refused by the compiler: {compiled["error"]}')
  for name, own in own_figures(plan).items():
    other = compiled.get(name)
    if other is None:
      lines.append(f'  {name:<16}plan {own:>9.3f}   compiler        -')
      continue
    ratio = f'{own / other:.2f}' if other else '-'
    lines.append(f'  {name:<16}plan {own:>9.3f}   compiler {other:>9.3f}   ratio {ratio}')
  if bounds := roofline.of_compiled(plan, compiled):
    seconds, mfu = bounds['seconds_per_step'], bounds['mfu']
    lines.append(
      f'  with its bytes a step takes {_span(seconds)} s, and MFU is {_span(mfu)} at most'
    )
  return lines


def _server_lines(server: Figures) -> list[str]:
  """The compiler's figures of an embedded server."""
  if server.error or server.bytes_per_token is None:
    return [f'server  refused by the compiler: {server.error}']
  moved, least = server.bytes_per_token / 1e9, server.least_bytes_per_token / 1e9
  counted = (
    f'{moved / least:.2f} times the limit of {least:.2f} (weights once a step, and every page)'
  )
  if server.form == 'pages':
    counted = f'with one page of each context: its loop has no fixed length (limit {least:.2f})'
  return [
    f'server  compiled for {server.devices} of {server.target}, keys and values as '
    f'{server.form!r}: {server.memory_gib:.1f} GiB of each',
    f'  {moved:.2f} GB of HBM of each per decoded token, {counted}',
  ]


def own_figures(plan: Plan) -> dict[str, float]:
  """Returns the plan's figures for what a compiler counts: one device, one micro-batch.

  A compiler does not know how many micro-batches run or which chunks of the head are skipped. It
  counts one micro-batch of full rows, all chunks, and the update. The server's share is left out.
  """
  if plan.memory is None or plan.learner is None:
    return {}
  learner = plan.learner
  job, load = learner.job.at(learner.largest), learner.load
  rows = job.train.rows * job.row_tokens
  # rows of the compiled batch may be longer than those of the step
  pairs = load.multiplied_pairs // load.micro_batches * job.row_tokens // load.shape.row_tokens
  one = dataclasses.replace(load, micro_batches=1, multiplied_pairs=pairs, scored=rows)
  # a compiler counts branches as taken, also those of large images
  large = len(job.image_slots) > 1
  moved = traffic.traffic_of(job, one, learner.state, large)
  return {
    'memory_gib': plan.memory.total - plan.memory.parts['server'],
    'collective_gb': moved.links / 1e9,
    'hbm_tb': moved.hbm / 1e12,
  }


def _span(values: Sequence[float]) -> str:
  low, high = values
  return f'{_short(low)} .. {_short(high)}'


def _short(value: float) -> str:
  return f'{value:.3g}' if value < 1000 else f'{value:.0f}'

"""Decides which settings must not change when a run resumes: those that change its numbers.

free: where and how the work is done. These are devices, servers, caches, workers, deadlines, what
is logged and stored, and how a batch is cut into micro-batches. They change only the order of sums,
so only the last bits of a float change.
steps: may grow. They may not fall below the steps that are done
(`run_folder.refuse_other_settings`).
bound: everything else.
"""

import json
from collections.abc import Mapping
from typing import Any

# Knobs, or sections with a dot at the end. The same names count below cold_start.
FREE = (
  'scale',  # a label: the values of a scale are in its other knobs
  'run.',
  'profile.',
  'watch.',
  'server.',
  'client.',
  'mesh.',
  'device.',
  'hosts.',
  'video.workers',
  'video.deadline_s',
  'video.cache_mb',
  'video.cache_folder',
  'video.cache_gb',
  'batches.prefetch',
  'batches.shapes',
  'batches.row_lengths',
  'batches.spread',
  'data.follow_links',
  'data.media_root',  # the rows are compared by their content
  'data.cache_folder',
  'data.skip_bad_rows',  # whether a broken row ends the run; no row that was trained on changes
  'data.max_bad_share',
  'train.remat',
  'train.backend',
  'train.head_chunk',
  'rollout.max_concurrent',
  'rollout.gap_limit',
  'rollout.gap_ratio',
  'eval.concurrent',
  'eval.report_right',
  'eval.report_samples',
  'eval.report_pictures',
  'judge.url',
  'judge.api_key',
  'judge.timeout_s',
  'judge.retries',
  'judge.backoff_s',
  'judge.concurrency',
  'publish.keep',
  'publish.delta',
  'publish.form',
  'publish.canary_tokens',
  'publish.canary_continuations',
  'world.workers',
)
COLD_START = 'cold_start.'
CUT = ('train.rows', 'train.micro_batches')
BATCH = ' x '.join(CUT)


def is_free(knob: str) -> bool:
  """Returns whether a knob may change when a run resumes."""
  name = knob.removeprefix(COLD_START)
  return any(name == free or (free.endswith('.') and name.startswith(free)) for free in FREE)


def steps_knob(recipe: Mapping[str, Any]) -> str | None:
  """Returns the knob for the number of steps of a run, or None if the recipe has none."""
  if 'rollout' in recipe:
    return 'rollout.steps'
  return 'steps' if type(recipe.get('steps')) is int else None


def flat(recipe: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns a recipe as JSON values by knob: {'agent.max_turns': 3, ...}."""
  found: dict[str, Any] = {}
  for name, value in recipe.items():
    if isinstance(value, Mapping) and value:
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = json.loads(json.dumps(value, default=str))
  return found


def value(recipe: Mapping[str, Any], knob: str) -> Any:
  """Returns the value of a knob, or None if the recipe lacks it."""
  return flat(recipe).get(knob)


def binding_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings that determine a run's numbers, without its number of steps.

  In RL a batch is everything that was sampled, so rows and micro-batches are free. In SFT rows
  times micro-batches make the batch, so their product is bound. A constant schedule has no end, so
  optimizer.total_steps is free under it. Without an adapter (rank 0), its other knobs say nothing.
  """
  values = flat(recipe)
  kept = {
    knob: one for knob, one in values.items() if not is_free(knob) and knob != steps_knob(recipe)
  }
  for prefix in ('', COLD_START):
    rows, micro_batches = (kept.pop(f'{prefix}{knob}', None) for knob in CUT)
    if (prefix or 'rollout' not in recipe) and rows is not None and micro_batches is not None:
      kept[f'{prefix}{BATCH}'] = rows * micro_batches
    if values.get(f'{prefix}optimizer.schedule') == 'constant':
      kept.pop(f'{prefix}optimizer.total_steps', None)
    if not values.get(f'{prefix}train.adapter.rank'):
      for name in ('rank', 'alpha', 'products'):
        kept.pop(f'{prefix}train.adapter.{name}', None)
  return kept


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
  """Returns (bound changes, free changes), each as 'agent.max_turns: 3 -> 2', sorted by name.

  The number of steps counts as free.
  """
  bound_before, bound_now = binding_settings(before), binding_settings(now)
  binding = differences(bound_before, bound_now)
  told = {*bound_before, *bound_now, 'run.folder'}
  for prefix in ('', COLD_START):
    if bound_before.get(f'{prefix}{BATCH}') != bound_now.get(f'{prefix}{BATCH}'):
      told |= {f'{prefix}{knob}' for knob in CUT}
  free = lambda recipe: {knob: one for knob, one in flat(recipe).items() if knob not in told}
  return binding, differences(free(before), free(now))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns what differs between settings by knob, as 'agent.max_turns: 3 -> 2', sorted by name."""
  changed = [knob for knob in sorted({*before, *now}) if before.get(knob) != now.get(knob)]
  return [f'{knob}: {before.get(knob)} -> {now.get(knob)}' for knob in changed]

"""How fast the parts are, on this machine, each next to something that it can be compared with.

python -m experiments.bench --config=configs/bench.py --config.suite=rollout [--json] [--config.any.knob=value]
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from experiments import launch
from experiments.bench import data, gaps, images, learner, rollout, survival
from experiments.bench.recipe import BenchRecipe
from paravt_jax.options import require

_JSON = flags.DEFINE_bool(
  'json', False, 'Print one JSON object and nothing else on standard output.'
)

Suite = Callable[[BenchRecipe], dict[str, Any]]
SUITES: Mapping[str, Suite] = {
  'data': data.suite,
  'gaps': gaps.suite,
  'images': images.suite,
  'learner': learner.suite,
  'rollout': rollout.suite,
  'survival': survival.suite,
}
# A suite whose figures are a table of their own; the others have one line per figure.
TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {'gaps': gaps.table}
# By the end of a figure's name; what has none is a plain number.
UNITS = {
  'tokens_per_second': 'tokens/s', 'frames_per_second': 'frames/s', 'samples_per_second': 'samples/s', 'rows_per_second': 'rows/s',
  'ratio': 'times', 'ratio_to_decord': 'times', 'ratio_to_unzip': 'times', 'prefills': 'prompts', 'gb_per_s': 'GB/s',
  'seconds': 's', 'bytes': 'bytes', 'bytes_per_row': 'bytes', 'threads': 'CPU threads', 'agreement': 'share',
  'flops_per_second': 'FLOP/s', 'flops': 'FLOP', 'tokens': 'tokens', 'pairs': 'pairs', 'mfu': 'of the peak',
  'shown_frames': 'images', 'different_frames': 'images', 'images_sent': 'images', 'requests': 'requests',
  'growth_share': 'of the memory', 'staleness_max': 'versions', 'moments': 'kills', 'lost': 'episodes', 'doubled': 'episodes',
  'survivors': 'processes', 'ratio_to_copy': 'times', 'episodes_per_hour': 'episodes/h',
  'loss_gap': 'nats', 'grad_norm_gap': 'of the norm',
  'wait_share': 'of the time', 'efficiency': 'of the tokens', 'fill': 'of the tokens',
}  # fmt: skip


def main(recipe: BenchRecipe) -> None:
  """Runs one suite and prints its result. Other output goes to stderr while it runs."""
  require(recipe.suite, f'one of {", ".join(SUITES)}', recipe.suite in SUITES, 'suite')
  with contextlib.redirect_stdout(sys.stderr):
    report = SUITES[recipe.suite](recipe)
  print(json.dumps(report) if _JSON.value else TABLES.get(recipe.suite, table)(report))


def table(report: Mapping[str, Any]) -> str:
  """One aligned line per figure: name, value, unit. A figure that could not be measured is a
  dash.
  """
  rows = [(name, _format_value(value), _unit(name)) for name, value in leaves(report)]
  name, value = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
  return '\n'.join(f'{row[0]:<{name}}  {row[1]:>{value}}  {row[2]}'.rstrip() for row in rows)


def leaves(report: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, float | str | None]]:
  """('publish.save_gb_per_s', 1.5), ... in order."""
  for name, value in report.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def _format_value(value: float | str | None) -> str:
  if value is None:
    return '-'
  if isinstance(value, str):
    return value
  return f'{value:,.0f}' if isinstance(value, int) or abs(value) >= 1000 else f'{value:.3g}'


def _unit(name: str) -> str:
  return next((unit for end, unit in UNITS.items() if name.endswith(end)), '')


if __name__ == '__main__':
  sys.exit(launch.run(main, BenchRecipe))

"""Suite `survival`: what a run loses to waiting, to kills and to time."""

import math
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import launch
from experiments.bench import publish, resident
from experiments.bench.measuring import say
from experiments.bench.recipe import BenchRecipe
from experiments.bench.survival_options import CropBench
from paravt_jax.errors import RolloutError
from paravt_jax.metrics import writer
from paravt_jax.orchestrator.survival_crops import CropCase, parallel_crops
from paravt_jax.testing.kills import learner_kills

_RECIPE = launch.ROOT / 'configs' / 'para_grpo.py'
_LOG_END = 2000  # characters of a job's output in an error
Row = Mapping[str, Any]


def suite(recipe: BenchRecipe) -> dict[str, Any]:
  """{'parallel_crops': ..., 'async_vs_sync': ..., 'memory': ..., 'kill': ..., 'publish': ...}; see
  configs/bench.py.

  The main job is run by its own command, in a scratch folder of `run.folder` that a later bench
  empties. Its world and its cold start are made once.
  """
  knobs, folder = recipe.survival, pathlib.Path(recipe.run.folder).absolute() / 'survival'
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  say(f'{knobs.crops.crops} crops of one turn against a single one')
  report: dict[str, Any] = {'parallel_crops': _crops(knobs.crops, recipe.threads, folder)}
  say(f'rollouts beside steps of {knobs.pace.step_seconds:g} s; the job is in {folder}')
  jobs = _Jobs(recipe, folder)
  apart = jobs.paced('between', 0, knobs.pace.steps)
  beside = jobs.paced('beside', knobs.pace.staleness, knobs.pace.steps)
  report['async_vs_sync'] = pace(apart, beside, knobs.pace.skip)
  say(f'memory over {knobs.memory.requests:,} requests for frames')
  # the first third is warm-up
  steps = 1 + math.ceil(1.5 * knobs.memory.requests / requests(beside) * len(beside))
  report['memory'] = jobs.memory('long', knobs.pace.staleness, steps)
  say(f'{knobs.kill.moments} kills of the learner')
  found = learner_kills(
    jobs.command('experiments.rl', 0, knobs.kill.steps, checkpoint_every=1),
    folder / 'kills',
    knobs.kill.moments,
    recipe.seed,
    cwd=folder,
    env=jobs.environment,
    limit_s=knobs.limit_s,
  )
  report['kill'] = {
    name: getattr(found, name) for name in ('moments', 'lost', 'doubled', 'bit_equal', 'survivors')
  }
  say(f'publish: {recipe.publish.bytes / 1e9:g} GB, against a plain copy')
  moved = publish.measure(recipe.publish.bytes, folder / 'publish')
  report['publish'] = {name: moved[name] for name in ('ratio_to_copy', 'bytes')}
  return report


def pace(apart: Sequence[Row], beside: Sequence[Row], skip: int) -> dict[str, float]:
  """Returns the episodes an hour of two runs and their ratio, without `skip` steps and the last.

  Args:
    apart: lines of metrics.jsonl of the run without staleness.
    beside: the same of the other.
  """
  ours, theirs = (_per_hour(rows[skip:-1]) for rows in (beside, apart))
  return {
    'episodes_per_hour_ratio': ours / theirs,
    'async_episodes_per_hour': ours,
    'sync_episodes_per_hour': theirs,
    'staleness_max': max(row['staleness/max'] for row in beside),
  }


def requests(rows: Sequence[Row]) -> float:
  """Returns how often a run asked for frames: an overview of each episode, and its crops."""
  return sum(row['episodes/kept'] * (1 + row['calls/executed']) for row in rows)


def _per_hour(rows: Sequence[Row]) -> float:
  return 3600 * sum(row['episodes/kept'] for row in rows) / sum(row['time/step'] for row in rows)


def _crops(knobs: CropBench, workers: int, folder: pathlib.Path) -> dict[str, float]:
  size = (knobs.height, knobs.width)
  case = CropCase(knobs.crops, workers, knobs.repeats, size, knobs.latency_s, knobs.deadline_s)
  found = parallel_crops(folder, case)
  plain = CropCase(knobs.crops, workers, knobs.repeats, size, 0.0, knobs.deadline_s)
  return {**found, 'decoding_time_ratio': parallel_crops(folder, plain)['time_ratio']}


class _Jobs:
  """Runs of the main job, below one folder."""

  def __init__(self, recipe: BenchRecipe, folder: pathlib.Path):
    self._knobs, self._folder = recipe.survival, folder
    self.environment = {**launch.host().environment, 'JAX_PLATFORMS': 'cpu'}

  def command(
    self, module: str, staleness: int, steps: int, *more: str, checkpoint_every: int
  ) -> list[str]:
    """Returns the command of a run, without its folder."""
    own = (
      f'rollout.staleness={staleness}',
      f'rollout.steps={steps}',
      f'run.checkpoint_every={checkpoint_every}',
    )
    knobs = [f'--config.{knob}' for knob in (*self._knobs.job, *own)]
    return [sys.executable, '-m', module, f'--config={_RECIPE}', *more, *knobs]

  def paced(self, name: str, staleness: int, steps: int) -> Sequence[Row]:
    """Runs the job with steps of a given time. Returns its lines of metrics."""
    with self._started(name, staleness, steps) as process:
      _wait(process, self._folder / f'{name}.log', self._knobs.limit_s)
    return writer.read(self._folder / 'runs' / name / 'metrics.jsonl')

  def memory(self, name: str, staleness: int, steps: int) -> dict[str, float]:
    """Runs the job and watches the memory of its processes."""
    with self._started(name, staleness, steps) as process:
      watch = resident.Watch(process.pid)
      with watch:
        _wait(process, self._folder / f'{name}.log', self._knobs.limit_s)
    rows = writer.read(self._folder / 'runs' / name / 'metrics.jsonl')
    return {**watch.growth(), 'requests': round(requests(rows[len(rows) // 3 :]))}

  def _started(self, name: str, staleness: int, steps: int) -> subprocess.Popen[bytes]:
    pace = f'--step_seconds={self._knobs.pace.step_seconds:g}'
    command = self.command('experiments.bench.pace', staleness, steps, pace, checkpoint_every=steps)
    with (self._folder / f'{name}.log').open('wb') as log:
      return subprocess.Popen(
        [*command, f'--config.run.folder=runs/{name}'],
        cwd=self._folder,
        env=self.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
      )


def _wait(process: subprocess.Popen[bytes], log: pathlib.Path, limit_s: float) -> None:
  try:
    status = process.wait(limit_s)
  except subprocess.TimeoutExpired:
    process.terminate()
    status = f'nothing after {limit_s:g} s (survival.limit_s)'
  except BaseException:  # Ctrl-C: the job ends by itself after a terminate
    process.terminate()
    raise
  if status:
    end = log.read_text(errors='replace')[-_LOG_END:]
    raise RolloutError(f'the main job gave {status}, wanted 0; see {log}, which ends in: {end}')

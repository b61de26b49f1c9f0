"""The main job at the tiny scale with real SGLang on the same GPU: exact weights, on policy."""

import os
import pathlib
import subprocess
import tempfile

from tests.experiments import small_job

PYTHON = small_job.ROOT / '.venv-sglang' / 'bin' / 'python'
STEPS = 2
# The learner takes what JAX is given of the GPU, the server a part of what is then free.
MEMORY = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.3'}
KNOBS = {
  'rollout__steps': STEPS,
  'eval__questions': 2,
  'eval__budgets': (4,),
  'run__checkpoint_every': STEPS,
  'server__kind': 'sglang',
  'server__count': 1,
  'server__sglang__python': PYTHON,
  'server__sglang__device': 'cuda',
  'server__sglang__mem_fraction': 0.3,
}
AT_MOST = {'gap_current_mean': 1e-3, 'servers_lost': 0}
AT_LEAST = {'steps': STEPS, 'versions': STEPS}


def reason_to_skip() -> str:
  """Returns why no server can run here; '' if one can."""
  if not PYTHON.is_file():
    return 'SGLang is not installed for GPUs; run: make sglang SGLANG=gpu'
  return ''


def measure(timeout: float) -> dict[str, float]:
  """Runs the job, and returns what its log says.

  Raises:
    RuntimeError: the job failed; its last line.
  """
  with tempfile.TemporaryDirectory(prefix='gpu-') as folder:
    place = pathlib.Path(folder)
    kept = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
    done = subprocess.run(
      small_job.command('gpu', **KNOBS),
      cwd=place,
      env={**kept, **MEMORY, 'PYTHONPATH': str(small_job.ROOT)},
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
    )
    if done.returncode:
      raise RuntimeError((done.stderr.strip().splitlines() or ['no message'])[-1])
    return figures(small_job.records(place, 'gpu'))


def figures(rows: list[dict[str, float]]) -> dict[str, float]:
  """Returns the figures of a run's metrics, one row per step."""
  return {
    'steps': float(len(rows)),
    'versions': max(row['policy/version'] for row in rows),
    'gap_current_mean': max(row['policy/gap_current_mean'] for row in rows),
    'servers_lost': sum(row['server/lost'] for row in rows),
    'seconds_per_step': max(row['time/step'] for row in rows),
  }

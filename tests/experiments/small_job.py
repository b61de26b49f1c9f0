"""The main job, shortened: a world of 8 videos, 30 steps of cold start, 4 of RL, 6 questions at K=4
and K=16.
"""

import contextlib
import inspect
import json
import os
import pathlib
import subprocess
import sys

import psutil

from configs import base
from paravt_jax.report import episodes
from paravt_jax.report import run as run_reports
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from tests import patience, xla

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 4
SFT_ROWS = {**dict.fromkeys(base.world().corpus.sft_rows, 10), 'trace': 120, 'subagent': 100}
WORLD = {
  **{f'world.corpus.sft_rows.{kind}': rows for kind, rows in SFT_ROWS.items()},
  'world.corpus.videos': 6,
  'world.corpus.heldout_videos': 2,
  'world.corpus.rl_tasks': 24,
  'world.corpus.heldout_tasks': 6,
  'world.corpus.videos_per_archive': 4,
}
KNOBS = {
  **WORLD,
  'cold_start.steps': 30,
  'rollout.steps': STEPS,
  'rollout.prompts': 4,
  'rollout.group_size': 4,
  'train.micro_batches': 4,
  'eval.budgets': (4, 16),
  'eval.questions': 6,
  'frames.budgets': (4, 16),
  'run.checkpoint_every': 2,
}


def command(folder, entry='rl', **knobs):
  """The main job (or its cold start alone, entry 'sft', 12 steps) in runs/<folder>; further knobs
  with '__' for dots. A folder of None is left to the caller.
  """
  recipe, given = ('para_grpo', KNOBS) if entry == 'rl' else ('sft', {**WORLD, 'steps': 12})
  given = {
    **given,
    **({} if folder is None else {'run.folder': f'runs/{folder}'}),
    **{name.replace('__', '.'): value for name, value in knobs.items()},
  }
  return [
    sys.executable,
    '-m',
    f'experiments.{entry}',
    f'--config={ROOT}/configs/{recipe}.py',
    *(f'--config.{name}={value}' for name, value in given.items()),
  ]


def environment():
  """This process's, with the repository on the path and without the virtual devices of the
  tests.
  """
  kept = {name: value for name, value in os.environ.items() if name != 'NPROC'}
  return {**kept, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK}


def start(cwd, folder, **knobs):
  """The job as a process of its own group; what it says goes to <cwd>/<folder>.err."""
  log = (cwd / f'{folder}.err').open('a')
  return subprocess.Popen(
    command(folder, **knobs),
    cwd=cwd,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=log,
    text=True,
  )


def run(cwd, folder, before=None, **knobs):
  """(status, stdout, stderr) of the job, at its end; `before` runs in the child first."""
  done = subprocess.run(
    command(folder, **knobs),
    cwd=cwd,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=patience.seconds(1200),
    preexec_fn=before,
  )
  return done.returncode, done.stdout, done.stderr


def records(cwd, folder):
  """The whole lines of metrics.jsonl."""
  path = cwd / 'runs' / folder / 'metrics.jsonl'
  return (
    [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]
    if path.exists()
    else []
  )


def wait_for(condition, process=None, quiet=600.0):
  """Polls until `condition()` holds; fails when the process ends first or time runs out."""

  def look():
    found = condition()
    assert found or process is None or process.poll() is None, 'the job ended first'
    return found

  patience.until(look, ' '.join(inspect.getsource(condition).split()), quiet, step=0.02)


def lived_in(cwd):
  """The processes whose working folder is `cwd`: a job there, and all that it started."""
  found = []
  for process in psutil.process_iter():
    try:
      if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(cwd.resolve()):
        found.append(process)
    except psutil.Error:
      pass
  return found


def nobody_is_left(cwd):
  """Whether all of them have ended, a moment after the job."""
  psutil.wait_procs(lived_in(cwd), timeout=patience.seconds(60))
  return lived_in(cwd) == []


def answers(cwd, folder, name):
  """The greedy answers of the evaluation `name` (before, after) of a run, as log entries."""
  return run_reports.load(cwd / 'runs' / folder).entries[name]


def versions(cwd, folder, name='train'):
  """(step, weight version) of all sampled tokens of the training log, or of an evaluation."""
  log = cwd / 'runs' / folder / 'episodes' / 'train.jsonl'
  return {
    (entry.step, int(version))
    for entry in (episodes.read(log) if name == 'train' else answers(cwd, folder, name))
    for segment in entry.scored.episode.trajectory.segments
    if segment.sampled
    for version in segment.versions
  }


@contextlib.contextmanager
def serving(place, model, log):
  """A server that no run owns, with the sizes of the finished run 'whole'."""
  config = json.loads((place / 'runs' / 'whole' / 'config.json').read_text())['server']['embedded']
  tok = json.loads((model / 'tokenizer.json').read_text())
  ids = {token['content']: token['id'] for token in tok['added_tokens']}
  for name in ('threads', 'memory_fraction', 'in_process'):  # of the process, not of the server
    config.pop(name)
  config['lanes'] = tuple(map(tuple, config['lanes']))
  options = ServerOptions(
    **config,
    model_path=str(model),
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key='open sesame',
    served_name='small',
    think_prefix='',
    parent_pid=None,
    eos_token_ids=(ids['<|im_end|>'], ids['<|endoftext|>']),
    compile_cache=str(place / 'runs' / 'compile_cache'),
  )
  server = launch.launch(
    options,
    env=environment(),
    log=place / log,
    deadline_s=patience.seconds(300),
    parent_pid=os.getpid(),
  )
  try:
    yield server
  finally:
    server.stop(5.0)

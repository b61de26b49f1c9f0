"""The helper that kills jobs, on a job of a tenth of a second a step that counts, forgets or repeats
samples after a kill.
"""

import pathlib
import sys

import pytest

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.testing import kills
from tests import patience, xla
from tests.report import made_run

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 6
# argv: how it behaves after a kill (sound, loses, doubles, fails), and --config.run.folder=DIR
_JOB = f"""
import pathlib, sys, time
import numpy as np
from paravt_jax import files
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.report.episodes import EpisodeLog
from tests.report import made_run

how, folder = sys.argv[1], pathlib.Path(sys.argv[2].partition('=')[2])
folder.mkdir(parents=True, exist_ok=True)
record, log = folder / 'record', folder / 'steps.log'
done = int(record.read_text()) if record.exists() else 0
if how == 'fails' and done:
  sys.exit('it cannot go on')
shift = {{'loses': 100, 'doubles': -1}}.get(how, 0) if done else 0
made = lambda step: made_run.episode(made_run.task(step), 4, .6, 0, np.random.default_rng(step))
for step in range({STEPS}):  # ids of words are given in the order in which they are met
  made(step)
train = folder / 'episodes' / 'train.jsonl'
with EpisodeLog(train, start_step=done) as episodes, MetricsWriter(
  folder, tensorboard=False, wandb=None, start_step=done
) as metrics:
  for step in range(done, {STEPS}):
    time.sleep(.1)
    episodes.append(step, made(step + shift))
    metrics.write(step, {{'reward/total': float(step)}})
    with log.open('a') as lines:
      lines.write(f'step {{step}} ({{step + 1}} of {STEPS} done): 1 groups\\n')
    files.write(record, str(step + 1).encode(), sync=False)
(folder / 'hf').mkdir(exist_ok=True)
(folder / 'hf' / 'model.safetensors').write_bytes(b'weights')
"""


def killed(folder, how, moments=2):
  """The report on a job that behaves so."""
  folder.mkdir()
  (folder / 'job.py').write_text(_JOB)
  return kills.learner_kills(
    [sys.executable, str(folder / 'job.py'), how],
    folder / 'kills',
    moments,
    seed=3,
    env={'PYTHONPATH': str(ROOT), 'XLA_FLAGS': xla.QUICK},
    limit_s=patience.seconds(60),
  )


def test_a_job_that_goes_on_where_it_was_killed_loses_and_doubles_nothing(tmp_path):
  found = killed(tmp_path / 'sound', 'sound', moments=4)
  assert (found.moments, found.lost, found.doubled) == (4, 0, 0)
  assert found.bit_equal and found.survivors == 0
  assert found.after[0] == 0 < found.after[1]  # before the first step, and during one


def test_samples_that_a_job_forgets_or_repeats_after_a_kill_are_counted(tmp_path):
  forgets = killed(tmp_path / 'loses', 'loses')
  assert forgets.lost > 0 and not forgets.bit_equal
  repeats = killed(tmp_path / 'doubles', 'doubles')
  assert repeats.doubled > 0 and not repeats.bit_equal


def test_a_job_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
  with pytest.raises(
    RolloutError, match=r'(?s)cut0\.log: the job ended with status 1.*cannot go on'
  ):
    killed(tmp_path / 'fails', 'fails')


def test_a_folder_with_runs_is_refused(tmp_path):
  (tmp_path / kills.WHOLE).mkdir()
  with pytest.raises(ConfigError, match='holds runs already; wanted an empty folder'):
    kills.learner_kills(['true'], tmp_path, 1, seed=0)


def test_runs_of_other_samples_differ_and_of_the_same_do_not(tmp_path):
  whole, other = (
    made_run.write_run(tmp_path / name, questions=1, steps=4, seed=seed)
    for name, seed in (('whole', 0), ('other', 1))
  )
  assert kills.compare(whole, whole) == kills.Difference(0, 0, bit_equal=True)
  found = kills.compare(whole, other)
  assert (found.lost, found.doubled, found.bit_equal) == (0, 0, False)

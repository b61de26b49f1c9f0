"""The suite `survival`: what it makes of a run's log and of memory that it watched."""

import subprocess
import sys

import pytest

from configs import bench as recipe
from experiments.bench import resident, survival
from paravt_jax.errors import RolloutError
from tests import patience, recipes


def rows(seconds, executed=0.5):
  """Lines of metrics.jsonl, one for each time of a step."""
  return [
    {'time/step': s, 'episodes/kept': 64.0, 'calls/executed': executed, 'staleness/max': 2.0}
    for s in seconds
  ]


def test_the_pace_leaves_out_the_first_steps_and_the_last():
  found = survival.pace(rows([9.0, 3.0, 3.0, 8.0]), rows([20.0, 2.0, 1.0, 30.0]), 1)
  assert found['sync_episodes_per_hour'] == 64 * 3600 / 3
  assert found['async_episodes_per_hour'] == 64 * 3600 / 1.5
  assert found['episodes_per_hour_ratio'] == 2 and found['staleness_max'] == 2


def test_an_episode_asks_for_its_overview_and_each_of_its_crops():
  assert survival.requests(rows([1.0, 1.0])) == 2 * 64 * 1.5


def test_the_job_is_the_main_one_with_the_recipes_knobs(tmp_path):
  jobs = survival._Jobs(recipes.typed(recipe.get_config()), tmp_path)
  command = jobs.command('experiments.rl', 2, 8, checkpoint_every=1)
  assert command[:3] == [sys.executable, '-m', 'experiments.rl']
  assert '--config.rollout.staleness=2' in command and '--config.rollout.steps=8' in command
  assert '--config.eval.questions=0' in command


def test_a_job_that_fails_is_quoted_with_its_log(tmp_path):
  log = tmp_path / 'beside.log'
  log.write_text('error: no space\n')
  process = subprocess.Popen([sys.executable, '-c', 'raise SystemExit(2)'])
  with pytest.raises(RolloutError, match=r'gave 2, wanted 0; see .*beside\.log.*no space'):
    survival._wait(process, log, 60.0)


def test_a_job_that_takes_too_long_is_ended(tmp_path):
  log = tmp_path / 'long.log'
  log.write_text('')
  process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
  with pytest.raises(RolloutError, match=r'nothing after 0\.2 s \(survival\.limit_s\)'):
    survival._wait(process, log, 0.2)
  assert process.wait(patience.seconds(60)) != 0


def test_growth_is_that_of_the_last_third_over_the_middle_one_and_the_largest_counts():
  watch = resident.Watch.__new__(resident.Watch)
  flat, grows = [*[50] * 4, *[100] * 8], [*[50] * 4, *[100] * 4, *[110] * 4]
  watch.samples = {
    ('learner', 1): list(enumerate(flat)),
    ('decoder', 2): list(enumerate(flat)),
    ('decoder', 3): list(enumerate(grows)),
    ('server', 4): [(0.0, 7)],  # it lived too short to count
  }
  found = watch.growth()
  assert found['growth_share'] == found['decoder_growth_share'] == pytest.approx(0.1)
  assert found['learner_growth_share'] == 0 and found['decoder_bytes'] == 110
  assert not any('server' in name for name in found)


def test_the_memory_of_a_process_and_of_the_children_that_count_is_sampled():
  child = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', "
    "'import time; time.sleep(600)', 'serving.embedded.server']); "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
  )
  process = subprocess.Popen([sys.executable, '-c', child], start_new_session=True)
  try:
    with resident.Watch(process.pid) as watch:
      patience.until(lambda: len(watch.samples) >= 2, 'the server was never seen', 60.0)
  finally:
    for one in resident.psutil.Process(process.pid).children():
      one.kill()
    process.kill()
    process.wait()
  assert {role for role, _ in watch.samples} == {'learner', 'server'}
  assert all(size > 0 for samples in watch.samples.values() for _, size in samples)

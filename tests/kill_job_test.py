"""The learner of the main job killed at thirty random moments, from its start to its last step."""

import random
import subprocess
import time

import pytest

from paravt_jax.report import episodes
from tests import patience
from tests.experiments import small_job

pytestmark = pytest.mark.nightly
MOMENTS, STEPS = 30, 8
KNOBS = {'rollout__steps': STEPS, 'eval__questions': 0, 'run__checkpoint_every': 1}
CURVE = ('reward/total', 'policy/loss', 'policy/entropy', 'length/sampled', 'optim/grad_norm')


def curve(place, name):
  """What a run logged of its updates, by step."""
  return [
    [row['step'], *(row[metric] for metric in CURVE)] for row in small_job.records(place, name)
  ]


def trained(place, name):
  """Every episode that was trained, with its ids, in the order of the log."""
  log = place / 'runs' / name / 'episodes' / 'train.jsonl'
  return [
    (
      entry.step,
      entry.key,
      [segment.ids.tolist() for segment in entry.scored.episode.trajectory.segments],
    )
    for entry in episodes.read(log)
  ]


def cut_short(place, name, after):
  """Kills the run after so many seconds. Returns False if it had ended before."""
  process = small_job.start(place, name, **KNOBS)
  try:
    process.communicate(timeout=after)
  except subprocess.TimeoutExpired:
    process.kill()
    process.communicate()
    assert small_job.nobody_is_left(place)
    return True
  assert process.returncode == 0, (place / f'{name}.err').read_text()[-4000:]
  return False


def test_a_learner_killed_at_thirty_moments_trains_every_group_once_with_the_same_curve(tmp_path):
  place, draw = tmp_path, random.Random(12)
  assert small_job.run(place, 'first', **KNOBS)[0] == 0  # makes world and cold start
  begin = time.monotonic()
  assert small_job.run(place, 'whole', **KNOBS)[0] == 0
  seconds = time.monotonic() - begin
  assert curve(place, 'whole') == curve(place, 'first')  # else nothing below could be equal
  kills, runs = 0, []
  while kills < MOMENTS:
    runs.append(f'cut{len(runs)}')
    # many moments lie in the start; the others advance the run to its end
    while kills < MOMENTS and cut_short(place, runs[-1], draw.uniform(0.0, seconds)):
      kills += 1
  # the last run goes on to its end
  assert not cut_short(place, runs[-1], patience.seconds(1200))
  print(f'{kills} kills in {len(runs)} runs of {seconds:.0f} s')
  for name in runs:
    assert curve(place, name) == curve(place, 'whole'), name
    assert trained(place, name) == trained(place, 'whole'), name

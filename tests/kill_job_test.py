"""The learner of the main job killed at thirty random moments, from its start to its last step."""

import pytest

from paravt_jax.testing import kills
from tests import patience
from tests.experiments import small_job

pytestmark = pytest.mark.nightly
MOMENTS, STEPS = 30, 8
KNOBS = {'rollout__steps': STEPS, 'eval__questions': 0, 'run__checkpoint_every': 1}


def test_a_learner_killed_at_thirty_moments_trains_every_group_once_with_the_same_curve(tmp_path):
  found = kills.learner_kills(
    small_job.command(None, 'rl', **KNOBS),
    tmp_path / 'kills',
    MOMENTS,
    seed=12,
    cwd=tmp_path,
    env=small_job.environment(),
    limit_s=patience.seconds(1200),
  )
  print(found)
  assert (found.moments, found.lost, found.doubled) == (MOMENTS, 0, 0)
  assert found.bit_equal and found.survivors == 0
  assert any(found.after) and 0 in found.after  # during steps, and before the first

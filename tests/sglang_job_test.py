"""Ten steps of the main job on real SGLang and, from the same cold start, on the embedded server:
neither can be told apart.
"""

import pathlib
import tempfile

import numpy as np
import pytest

from paravt_jax.report import episodes
from tests import patience
from tests.experiments import small_job

pytestmark = [pytest.mark.slow, pytest.mark.sglang]
STEPS = 10
KNOBS = {
  'rollout__steps': STEPS,
  'eval__questions': 6,
  'eval__budgets': (4,),
  'run__checkpoint_every': STEPS,
}
SGLANG = {
  'server__kind': 'sglang',
  'server__count': 1,
  'server__sglang__python': small_job.ROOT / '.venv-sglang' / 'bin' / 'python',
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('sglang_job')


@pytest.fixture(scope='module')
def runs(place):
  """The lines of both runs, by kind of server. The first makes the cold start, the second goes out
  from it, too.
  """
  for name, knobs in (('embedded', {}), ('sglang', SGLANG)):
    process = small_job.start(place, name, **KNOBS, **knobs)
    out, _ = process.communicate(timeout=patience.seconds(1200))
    assert (process.returncode, out.splitlines()[-1:]) == (0, [f'runs/{name}']), (
      place / f'{name}.err'
    ).read_text()[-4000:]
    assert small_job.nobody_is_left(place)
    for memory in (pathlib.Path('/dev/shm'), pathlib.Path(tempfile.gettempdir())):
      assert list(memory.glob(f'paravt-staging-{process.pid}-*')) == []
  return {name: small_job.records(place, name) for name in ('embedded', 'sglang')}


@pytest.mark.parametrize('kind', ['embedded', 'sglang'])
def test_every_step_is_on_policy_and_exact_and_every_version_arrives(runs, place, kind):
  rows = runs[kind]
  assert [row['step'] for row in rows] == list(range(STEPS))
  assert [row['policy/version'] for row in rows] == list(range(1, STEPS + 1))
  assert max(row['policy/gap_current_mean'] for row in rows) <= 1e-4
  assert {(row['staleness'], row['staleness/max'], row['episodes/kept']) for row in rows} == {
    (0.0, 0.0, 16.0)
  }
  assert {(row['server/lost'], row['server/restarts']) for row in rows} == {(0.0, 0.0)}
  assert small_job.versions(place, kind) == {(step, step) for step in range(STEPS)}
  assert {version for _, version in small_job.versions(place, kind, 'before')} == {0}
  assert {version for _, version in small_job.versions(place, kind, 'after')} == {STEPS}


def test_the_first_greedy_answers_are_the_same_token_by_token(runs, place):
  """Same weights, same prompts, no sampling: the largest difference that rounding may make is a
  tie.
  """
  ids = {
    kind: {
      entry.key: [segment.ids.tolist() for segment in entry.scored.episode.trajectory.segments]
      for entry in small_job.answers(place, kind, 'before')
    }
    for kind in runs
  }
  assert ids['embedded'].keys() == ids['sglang'].keys() and len(ids['sglang']) == 6
  assert ids['embedded'] == ids['sglang']


def test_weights_are_converted_for_sglang_alone(runs):
  convert = {
    kind: max(row['sync/seconds/stage=convert'] for row in rows) for kind, rows in runs.items()
  }
  assert (
    convert['sglang'] > 10 * convert['embedded']
  )  # reading, checking, writing; against naming a folder


@pytest.mark.parametrize('kind', ['embedded', 'sglang'])
def test_samples_come_from_the_distribution_that_is_trained(runs, place, kind):
  """A token that is drawn from a distribution has, on average, minus its entropy as log-prob.

  So the sums of both have mean 0 at every token, whatever came before it and however the policy
  moves: over a run they add up like a fair game, and four standard errors would be exceeded by
  chance in one of 15,000 runs. Rewards of two runs cannot be compared like this: SGLang on a CPU
  takes no seed, other samples make another policy, and that changes all later rewards.
  """
  tokens = np.array([row['policy/tokens'] for row in runs[kind]])
  surplus = sum(
    row['policy/tokens'] * (row['policy/logprob'] + row['policy/entropy']) for row in runs[kind]
  )
  error = logprobs(place, kind).std(ddof=1) / tokens.sum() ** 0.5
  assert error < 0.05  # nats a token; how far they may be off is worth asking only if this is small
  assert abs(surplus / tokens.sum()) <= 4 * error


def logprobs(place, kind):
  """Those of all sampled tokens of the run. They spread more than their distance to the entropy."""
  found = [
    segment.logprobs
    for entry in episodes.read(place / 'runs' / kind / 'episodes' / 'train.jsonl')
    for segment in entry.scored.episode.trajectory.segments
    if segment.sampled
  ]
  return np.concatenate(found)

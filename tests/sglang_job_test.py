"""Ten steps of the main job on real SGLang and, from the same cold start, on the embedded server:
neither can be told apart.
"""

import collections
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


def test_rewards_are_as_good_on_either_server(runs, place):
  """Both runs have the same 40 prompts in the same order, but draw other samples: SGLang on a CPU
  takes no seed.

  So they are compared prompt by prompt. The mean of the 40 differences has its own standard error;
  four of them would be exceeded by chance in one of 3,700 runs.
  """
  means = {kind: rewards(place, kind) for kind in runs}
  assert means['embedded'].keys() == means['sglang'].keys() and len(means['sglang']) == 4 * STEPS
  apart = np.array(
    [means['sglang'][prompt] - means['embedded'][prompt] for prompt in means['sglang']]
  )
  assert abs(apart.mean()) <= 4 * apart.std(ddof=1) / len(apart) ** 0.5, apart
  assert np.mean(list(means['sglang'].values())) > 0


def rewards(place, kind):
  """The mean reward of each group, by step, task and frame budget."""
  groups = collections.defaultdict(list)
  for entry in episodes.read(place / 'runs' / kind / 'episodes' / 'train.jsonl'):
    groups[entry.step, entry.key[0], entry.key[1]].append(entry.scored.reward)
  assert {len(group) for group in groups.values()} == {4}
  return {prompt: float(np.mean(group)) for prompt, group in groups.items()}

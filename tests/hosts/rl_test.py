"""RL on several hosts: the episodes and losses of one host, from hosts that each run their share."""

import pytest

from paravt_jax.report import episodes
from paravt_jax.train import checkpoint
from tests import patience
from tests.experiments import small_job
from tests.hosts import job

pytestmark = pytest.mark.hosts
KNOBS = {
  'rollout__group_size': 2,
  **job.AGENT,
  'eval__questions': 4,
  'eval__budgets': (4,),
  'frames__budgets': (4,),
  'train__micro_batches': 2,
  'train__backend': 'xla',
  'run__checkpoint_every': 1,
  'run__tensorboard': False,
}
STEPS = 3
# what is of a process or of its clock, or of the shape of its rows
OWN = ('time/', 'sync/', 'wall', 'pack/', 'policy/gap', 'server/', 'rollout/')


def logged(place, folder):
  """The records of metrics.jsonl without what is of a process alone."""
  return [
    {name: value for name, value in record.items() if not name.startswith(OWN)}
    for record in small_job.records(place, folder)
  ]


def sampled(place, folder):
  """The episodes of the training log: step, task, rollout, reward and all ids, in order."""
  log = place / 'runs' / folder / 'episodes' / 'train.jsonl'
  return [
    (
      entry.step,
      entry.key,
      entry.scored.reward,
      [segment.ids.tolist() for segment in entry.scored.episode.trajectory.segments],
    )
    for entry in episodes.read(log)
  ]


@pytest.fixture(scope='module')
def model(place, cold_start):
  """The model of the short cold start, whose episodes differ in their rewards."""
  return str(place / 'runs' / cold_start / 'hf')


@pytest.fixture(scope='module')
def whole(place, model):
  """The run on one host."""
  job.run(place, 1, 'rl', 'whole_rl', model__folder=model, rollout__steps=STEPS, **KNOBS)
  return logged(place, 'whole_rl'), sampled(place, 'whole_rl')


def test_two_hosts_roll_out_and_train_as_one_and_go_on_after_a_death_as_one(place, model, whole):
  knobs = {'model__folder': model, **KNOBS}
  killed = job.start(place, 2, 'rl', 'parts_rl', rollout__steps=STEPS, **knobs)
  records = place / 'runs' / 'parts_rl' / 'checkpoints'
  try:
    patience.until(
      lambda: checkpoint.latest(records) or job.any_ended(killed), 'a record', 420.0, 0.02
    )
    killed.processes[0].kill()  # with the service that the others report to
    codes = killed.wait(6 * job.HEARTBEAT_S)
  finally:
    killed.kill()
  assert codes[0] == -9 and codes[1] not in (0, None)
  patience.until(lambda: 'host 0 has ended' in killed.last_line(1), 'the line', 30.0)
  done = checkpoint.latest(records)
  assert done is not None, killed.said(0)
  job.run(place, 4, 'rl', 'parts_rl', rollout__steps=STEPS, **knobs)
  metrics, log = whole
  found = logged(place, 'parts_rl')
  assert [record['policy/loss'] for record in found] == pytest.approx(
    [record['policy/loss'] for record in metrics],
    rel=1e-6,
    abs=1e-6,  # terms of size 1 and either sign nearly cancel in some steps
  )
  assert sampled(place, 'parts_rl') == log
  # sums of float32 in another order; the counters are equal
  for one, other in zip(found, metrics, strict=True):
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
  run = place / 'runs' / 'parts_rl'
  for name in ('before', 'after'):
    answers = (run / f'eval_{name}' / 'results.jsonl').read_text().splitlines()
    assert len(answers) == 8 and not list((run / f'eval_{name}').glob('host*/results.jsonl'))
  assert (run / 'hf' / 'config.json').is_file() and (run / 'report.html').is_file()


@pytest.mark.nightly
def test_each_host_has_its_server_in_its_process_on_the_device_behind_the_mesh(place, model, whole):
  knobs = {**KNOBS, 'model__folder': model, 'server__embedded__in_process': True}
  job.run(place, 2, 'rl', 'split_rl', devices=2, rollout__steps=STEPS, **knobs)
  metrics, log = whole
  assert sampled(place, 'split_rl') == log
  for one, other in zip(logged(place, 'split_rl'), metrics, strict=True):
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
  run = place / 'runs' / 'split_rl'
  for said in (run / 'server0.log', run / 'host1' / 'server0.log'):
    assert 'listening on http://127.0.0.1:' in said.read_text()

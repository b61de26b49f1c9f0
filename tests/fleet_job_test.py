"""The main job and its rollout servers: several, one killed, by URL, interrupted in a delivery,
ahead of the learner, refused.
"""

import json
import resource
import signal
import socket
import time
import urllib.request

import numpy as np
import psutil
import pytest

from paravt_jax.orchestrator import group_record
from paravt_jax.report import episodes
from paravt_jax.testing import tiny
from paravt_jax.train import checkpoint
from tests import patience
from tests.experiments import small_job
from tests.main_job_test import refused

pytestmark = pytest.mark.slow
STEPS = 6
CURVE = ('reward/total', 'policy/loss', 'policy/entropy', 'length/sampled', 'optim/grad_norm')
# from SIGTERM to the end of a run whose server hangs: 5 s for the server to end by itself, a record,
# and what a step under way still computes
ENDS_S = 15.0
SHORT = {'rollout__steps': STEPS, 'eval__questions': 0}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Where all runs of this file live: they share the world, the cold start and compiled
  programs.
  """
  return tmp_path_factory.mktemp('fleet_job')


@pytest.fixture(scope='module')
def whole(place):
  """A run that nothing befell."""
  status, _, err = small_job.run(place, 'whole', **SHORT)
  assert status == 0, err[-4000:]


def check_same(place, name):
  """All steps once, exact, on the weights of their step, and as in a run that nothing befell.

  That is the same prompts in the same order, and mostly the same tokens: sums in another order
  change the last bits of an update, and now and then one draw, after which that episode goes its
  own way. Other seeds or prompts would have none in common.
  """
  rows, whole = small_job.records(place, name), small_job.records(place, 'whole')
  assert [row['step'] for row in rows] == list(range(STEPS))
  assert max(row['policy/gap_current_mean'] for row in rows) <= 1e-4
  assert small_job.versions(place, name) == {(step, step) for step in range(STEPS)}
  for metric in CURVE:
    np.testing.assert_allclose(
      rows[0][metric], whole[0][metric], rtol=1e-4, atol=1e-4, err_msg=metric
    )
  ours, theirs = sampled(place, name), sampled(place, 'whole')
  assert ours.keys() == theirs.keys() and len(theirs) == 16 * STEPS
  assert np.mean([ours[key] == theirs[key] for key in theirs]) >= 0.6
  assert small_job.nobody_is_left(place)
  return rows


def sampled(place, name):
  """The ids of every training episode, by step and key."""
  return {
    (entry.step, entry.key): [
      segment.ids.tolist() for segment in entry.scored.episode.trajectory.segments
    ]
    for entry in episodes.read(place / 'runs' / name / 'episodes' / 'train.jsonl')
  }


def servers_of(process):
  return [
    child
    for child in psutil.Process(process.pid).children(recursive=True)
    if 'paravt_jax.serving.embedded.server' in ' '.join(child.cmdline())
  ]


def test_one_of_two_servers_is_killed_in_the_middle_and_the_run_is_as_if_nothing_had_happened(
  place, whole
):
  process = small_job.start(place, 'two', **SHORT, server__count=2, server__watch__every_s=0.2)
  small_job.wait_for(lambda: len(small_job.records(place, 'two')) >= 1, process)
  both = servers_of(process)
  assert len(both) == 2
  both[0].kill()
  out, _ = process.communicate(timeout=patience.seconds(600))
  assert (process.returncode, out.splitlines()[-1]) == (0, 'runs/two'), (
    place / 'two.err'
  ).read_text()[-4000:]
  rows = check_same(place, 'two')
  assert (
    rows[0]['server/restarts'] == 0
    and rows[-1]['server/restarts'] >= 1
    and rows[-1]['server/lost'] >= 1
  )


def test_rollouts_two_versions_ahead_go_on_beside_deliveries_and_tokens_of_the_current_version_are_exact(
  place, whole
):
  status, _, err = small_job.run(
    place, 'ahead', **SHORT, rollout__staleness=2, run__checkpoint_every=STEPS
  )
  assert status == 0, err[-4000:]
  rows = small_job.records(place, 'ahead')
  assert [row['step'] for row in rows] == list(range(STEPS))
  assert [row['policy/version'] for row in rows] == list(range(1, STEPS + 1))
  assert max(row['staleness/max'] for row in rows) in (1, 2) and rows[0]['staleness/max'] == 0
  assert all(
    version in (step - 2, step - 1, step) for step, version in small_job.versions(place, 'ahead')
  )
  current = [row['policy/gap_current_mean'] for row in rows if 'policy/gap_current_mean' in row]
  assert current and max(current) <= 1e-4
  assert any(
    row['rollout/running'] for row in rows[:-1]
  )  # written as a delivery begins: groups were under way
  assert small_job.nobody_is_left(place)


def test_groups_that_were_finished_when_the_learner_was_killed_are_trained_as_they_were(
  place, whole
):
  """A record keeps finished groups, so their tokens are sampled once, whatever comes."""
  knobs = {**SHORT, 'rollout__staleness': 2, 'run__checkpoint_every': 1, 'run__keep': STEPS}
  records = place / 'runs' / 'killed_ahead' / 'checkpoints'
  with_groups = lambda: [
    step
    for step in checkpoint.steps(records)
    if (checkpoint.folder(records, step) / group_record.FILE).exists()
  ]
  process = small_job.start(place, 'killed_ahead', **knobs)
  small_job.wait_for(with_groups, process)
  process.kill()
  process.communicate(timeout=patience.seconds(60))
  assert small_job.nobody_is_left(place)
  newest = checkpoint.latest(records)
  kept = {
    (one.group.id, scored.episode.budget, scored.episode.rollout): tokens(scored.episode)
    for one in group_record.read(checkpoint.folder(records, newest))
    for scored in one.group.scored
  }
  status, _, err = small_job.run(place, 'killed_ahead', **knobs)
  assert status == 0, err[-4000:]
  assert [row['step'] for row in small_job.records(place, 'killed_ahead')] == list(range(STEPS))
  log = place / 'runs' / 'killed_ahead' / 'episodes' / 'train.jsonl'
  trained = [(one.step, one.key, tokens(one.scored.episode)) for one in episodes.read(log)]
  assert len(trained) == 16 * STEPS == len({key for _, key, _ in trained})
  later = {key: found for step, key, found in trained if step >= newest}
  assert len(kept) % 4 == 0 and {key: later.get(key) for key in kept} == kept


def tokens(episode):
  """The ids of an episode, and the weights that have sampled them."""
  return [
    (segment.ids.tolist(), segment.versions.tolist()) for segment in episode.trajectory.segments
  ]


def published(place, name):
  """The newest version that is whole on disk, or -1."""
  return max(
    (
      int(path.parent.name)
      for path in (place / 'runs' / name / 'weights').glob('[0-9]*/manifest.json')
    ),
    default=-1,
  )


def stopped_in_delivery(place, name, process, server, version):
  """Stops the server (SIGSTOP) once `version` is on disk; whether that was before it had it: that
  step's line comes afterwards.
  """
  small_job.wait_for(lambda: published(place, name) >= version, process)
  server.suspend()
  try:
    small_job.wait_for(lambda: len(small_job.records(place, name)) >= version, process, quiet=3.0)
  except AssertionError:
    return True
  server.resume()
  return False


@pytest.mark.nightly
def test_ctrl_c_in_the_middle_of_a_delivery_leaves_a_run_that_goes_on(place, whole):
  process = small_job.start(place, 'cut', **SHORT)
  small_job.wait_for(lambda: len(small_job.records(place, 'cut')) >= 1, process)
  (server,) = servers_of(process)
  later = range(published(place, 'cut') + 1, STEPS + 1)
  assert any(stopped_in_delivery(place, 'cut', process, server, version) for version in later)
  process.send_signal(signal.SIGINT)
  small_job.wait_for(
    lambda: 'ending at the next safe point' in (place / 'cut.err').read_text(), process
  )
  server.resume()
  out, _ = process.communicate(timeout=patience.seconds(600))
  assert (process.returncode, out) == (130, '') and 'Traceback' not in (
    place / 'cut.err'
  ).read_text()
  assert small_job.nobody_is_left(place)
  status, _, err = small_job.run(place, 'cut', **SHORT)
  assert status == 0, err[-4000:]
  check_same(place, 'cut')


def test_sigterm_while_the_servers_hang_records_the_last_step_and_ends_within_seconds(place, whole):
  """As on a preempted node: no record was due, and nothing that the run waits for would come."""
  rare = {**SHORT, 'run__checkpoint_every': 1000}
  process = small_job.start(place, 'preempted', **rare)
  small_job.wait_for(lambda: len(small_job.records(place, 'preempted')) >= 2, process)
  (server,) = servers_of(process)
  server.suspend()
  time.sleep(3.0)  # a step that is under way may still come to its end
  begin = time.monotonic()
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=patience.seconds(300))
  seconds = time.monotonic() - begin
  print(f'{seconds:.1f} s from SIGTERM to the end')
  said = (place / 'preempted.err').read_text()
  assert (process.returncode, out) == (130, '') and 'Traceback' not in said, said[-4000:]
  assert seconds < patience.seconds(ENDS_S)
  done = len(small_job.records(place, 'preempted'))
  assert checkpoint.steps(place / 'runs' / 'preempted' / 'checkpoints') == (done,)
  assert small_job.nobody_is_left(place)
  status, _, err = small_job.run(place, 'preempted', **rare)
  assert status == 0, err[-4000:]
  check_same(place, 'preempted')


def asked(server, path, body=None):
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  headers = {'Authorization': 'Bearer open sesame', 'Content-Type': 'application/json'}
  data = None if body is None else json.dumps(body).encode()
  with opener.open(
    urllib.request.Request(server.url + path, data, headers), timeout=patience.seconds(120)
  ) as reply:
    return reply.read()


def by_url(server, key='open sesame'):
  return {
    **SHORT,
    'server__kind': 'url',
    'server__urls': f"('{server.url}',)",
    'server__api_key': key,
    'client__ready_timeout_s': 5.0,
  }


@pytest.mark.nightly
def test_runs_go_on_with_a_server_by_url_that_holds_newer_weights_and_was_left_paused(place, whole):
  (model,) = (place / 'runs').glob('sft_tiny-*/hf')
  with small_job.serving(place, model, 'ours.log') as server:
    process = small_job.start(place, 'url', **by_url(server))
    small_job.wait_for(lambda: len(small_job.records(place, 'url')) >= 3, process)
    process.kill()
    process.wait(patience.seconds(60))
    held = json.loads(asked(server, '/get_model_info'))['weight_version']
    assert int(held) >= 3  # the record on disk is of version 2
    asked(
      server, '/pause_generation', {'mode': 'retract'}
    )  # as a kill in the middle of a delivery leaves it
    status, _, err = small_job.run(place, 'url', **by_url(server))
    assert status == 0, err[-4000:]
    check_same(place, 'url')
    assert json.loads(asked(server, '/get_model_info'))['weight_version'] == str(STEPS)
    status, _, err = small_job.run(
      place, 'again', **by_url(server)
    )  # another run begins on weights of the one before
    assert status == 0, err[-4000:]
    check_same(place, 'again')
    assert server.alive
    refused(
      small_job.run(place, 'key', **by_url(server, key='wrong')),
      'refuses our key (status 401); set server.api_key',
    )
    assert nothing_was_made(place, 'key')


def nothing_was_made(place, name):
  """Whether a refused run left no rollout, no record, and no weights that are not whole."""
  run = place / 'runs' / name
  weights = (
    [path.name for path in (run / 'weights').iterdir()] if (run / 'weights').is_dir() else []
  )
  made = [
    path
    for path in ('metrics.jsonl', 'summary.json', 'hf', 'checkpoints', 'episodes/train.jsonl')
    if (run / path).exists()
  ]
  return made == [] and weights == [] and small_job.nobody_is_left(place)


def test_a_server_of_another_model_is_refused_before_the_first_rollout(place, whole):
  stranger = place / 'stranger'
  tiny.build_model_folder(stranger, seed=99)
  with small_job.serving(place, stranger, 'stranger.log') as server:
    refused(
      small_job.run(place, 'other', **by_url(server)),
      server.url,
      'do not match the canary',
      'serve another model?',
    )
  assert nothing_was_made(place, 'other')


def test_a_server_that_is_not_there_is_refused_before_the_first_rollout(place, whole):
  with socket.socket() as silent:  # bound and not listening: nobody else can be there
    silent.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{silent.getsockname()[1]}'
    knobs = {
      **SHORT,
      'server__kind': 'url',
      'server__urls': f"('{url}',)",
      'client__ready_timeout_s': 1.0,
    }
    refused(
      small_job.run(place, 'nobody', **knobs),
      f'{url}: not ready after 1 s',
      'connection lost',
      'client.ready_timeout_s',
    )
  assert nothing_was_made(place, 'nobody')


def test_a_weights_folder_without_space_is_refused_before_the_first_rollout_and_the_same_command_goes_on(
  place, whole
):
  """Stood in for by a limit on the size of files that no array of the weights keeps to."""
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
  refused(
    small_job.run(place, 'noroom', before=limit, **SHORT),
    'runs/noroom/weights/0',
    'weights cannot be written',
    'free space',
  )
  assert nothing_was_made(place, 'noroom')
  status, _, err = small_job.run(place, 'noroom', **SHORT)
  assert status == 0, err[-4000:]
  check_same(place, 'noroom')


def test_a_weights_folder_that_cannot_be_made_is_refused_before_the_first_rollout(place, whole):
  """Root may write anywhere, so a file stands in the way."""
  (place / 'runs' / 'barred').mkdir()
  (place / 'runs' / 'barred' / 'weights').touch()
  refused(
    small_job.run(place, 'barred', **SHORT), 'runs/barred/weights', 'weights cannot be written'
  )
  assert nothing_was_made(place, 'barred')

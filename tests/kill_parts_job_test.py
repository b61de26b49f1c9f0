"""Parts of the main job killed at ten random moments each: its rollout server, its decoding workers,
its judge. The job goes on by itself, and trains what an unbroken one trains.
"""

import collections
import contextlib
import random
import subprocess
import sys
import time
import urllib.parse

import pytest

from paravt_jax.metrics import writer
from paravt_jax.report import episodes
from paravt_jax.rewards import answer
from paravt_jax.testing import judge_server, kills
from tests import patience
from tests.experiments import small_job

pytestmark = pytest.mark.nightly
MOMENTS, STEPS = 10, 8
TASKS = small_job.WORLD['world.corpus.rl_tasks']
KNOBS = {'rollout__steps': STEPS, 'eval__questions': 0}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Where all runs of this file live: they share the world, the cold start and compiled
  programs.
  """
  return tmp_path_factory.mktemp('kill_parts')


def killed(place, name, strike, every_s, moments=MOMENTS, **knobs):
  """The report on runs of which `strike` kills a part."""
  found = kills.part_kills(
    small_job.command(None, 'rl', **KNOBS, **knobs),
    place / name,
    moments,
    seed=12,
    strike=strike,
    every_s=every_s,
    cwd=place,
    env=small_job.environment(),
    limit_s=patience.seconds(1200),
  )
  print(name, found)
  assert small_job.nobody_is_left(place)
  return found


def one_with(word, draw):
  """Kills one child of a job, at random, whose command line has the word."""

  def strike(process):
    there = kills.children_with(process, word)
    for one in draw.sample(there, min(len(there), 1)):
      one.kill()
    return bool(there)

  return strike


def check_unharmed(found, moments=MOMENTS):
  assert (found.moments, found.lost, found.doubled) == (moments, 0, 0)
  assert found.bit_equal


def test_a_rollout_server_killed_at_ten_moments_costs_only_time(place):
  strike = one_with('paravt_jax.serving.embedded.server', random.Random(1))
  # more kills in a row than a server may be started again by default
  knobs = {'server__watch__every_s': 0.2, 'server__watch__restarts': 100}
  check_unharmed(killed(place, 'server', strike, 4.0, **knobs))


def test_a_decoding_worker_killed_at_ten_moments_costs_only_time(place):
  strike = one_with('paravt_jax.video', random.Random(2))
  # nothing stays decoded, so that the workers are at work
  check_unharmed(killed(place, 'worker', strike, 1.0, video__cache_mb=1))


class Judge:
  """A judge in a process of its own, which can be killed and comes back at its address."""

  def __init__(self, draw, away_s):
    self._draw, self._away_s = draw, away_s
    self._process, self.url = self._start(0)

  def _start(self, port):
    process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'paravt_jax.testing.judge_server',
        f'--port={port}',
        '--delay=0.05',
      ],
      cwd=small_job.ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    return process, process.stdout.readline().strip()

  def strike(self, _):
    """Kills it, and starts it again after at most `away_s` seconds."""
    self.stop()
    time.sleep(self._draw.uniform(0.0, self._away_s))
    self._process, url = self._start(urllib.parse.urlsplit(self.url).port)
    assert url == self.url
    return True

  def stop(self):
    """Kills it, unless it is gone."""
    self._process.kill()
    self._process.wait()
    self._process.stdout.close()


@contextlib.contextmanager
def judge(away_s):
  made = Judge(random.Random(3), away_s)
  try:
    yield made
  finally:
    made.stop()


def judged(server, **knobs):
  return {
    'reward__open_ended': 'judge',
    'judge__url': server.url,
    'judge__model': judge_server.MODEL,
    'judge__backoff_s': 0.2,
    **knobs,
  }


def test_a_judge_killed_at_ten_moments_costs_only_time_while_its_retries_last(place):
  with judge(away_s=2.0) as server:
    check_unharmed(killed(place, 'judge', server.strike, 1.5, **judged(server, judge__retries=10)))


def test_without_a_judge_open_answers_leave_their_groups_and_the_run_goes_on(place):
  with judge(away_s=0.0) as server:

    def leave(_):
      server.stop()
      return True

    found = killed(place, 'gone', leave, 0.5, moments=1, **judged(server, judge__retries=1))
  rows = writer.read(place / 'gone' / 'cut0' / 'metrics.jsonl')
  assert [row['step'] for row in rows] == list(range(STEPS))
  groups, rollouts = lost(rows, 'groups'), lost(rows, 'episodes')
  assert groups.keys() == rollouts.keys() == {'judge_connection'}
  # the groups of the step that was under way may have been judged before
  assert not [one for one in trained(place, 'cut0') if one.step > found.after[0] and judges(one)]
  assert any(one.step > found.after[0] and judges(one) for one in trained(place, kills.WHOLE))
  # Others take the place of lost groups, each question once in an epoch, with all its rollouts.
  prompts, size = (small_job.KNOBS[f'rollout.{name}'] for name in ('prompts', 'group_size'))
  assert len(trained(place, 'cut0')) + rollouts.total() == STEPS * prompts * size
  epochs = (STEPS * prompts + groups.total()) // TASKS
  counts = collections.Counter(task(one).id for one in trained(place, 'cut0'))
  closed = {task(one).id for one in trained(place, kills.WHOLE) if task(one).question_type != 'oe'}
  assert closed
  for name in closed:
    assert counts[name] in (epochs * size, (epochs + 1) * size), (name, counts[name], epochs)


def lost(rows, what):
  """How many groups or episodes were lost in all, by reason."""
  found = collections.Counter()
  for row in rows:
    found.update(
      {name.split('=')[1]: row[name] for name in row if name.startswith(f'{what}/dropped/')}
    )
  return found


def trained(place, run):
  return list(episodes.read(place / 'gone' / run / 'episodes' / 'train.jsonl'))


def task(entry):
  return entry.scored.episode.task


def judges(entry):
  """Whether its answer needs the judge: a blank one is wrong without."""
  said = answer.extract_answer(entry.scored.episode.turns[-1].text)
  return task(entry).question_type == 'oe' and bool(said.strip())

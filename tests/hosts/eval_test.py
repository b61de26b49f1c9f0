"""An evaluation on several hosts has the answers of one; killed, it goes on with other hosts."""

import sys

import pytest

from paravt_jax.eval import results
from tests import patience
from tests.experiments import small_job
from tests.hosts import job

pytestmark = pytest.mark.hosts
KNOBS = {
  **{name.replace('.', '__'): value for name, value in small_job.WORLD.items()},
  **job.AGENT,
  'eval__world_budgets': (4, 8),
  'eval__concurrent': 1,
  'sampling__context': 512,
}


def start(place, count, folder, **knobs):
  """An evaluation of the short cold start by so many hosts."""

  def command(**more):
    given = {'run.folder': f'runs/{folder}', 'model.folder': 'runs/whole/hf'}
    given |= {name.replace('__', '.'): value for name, value in {**KNOBS, **knobs, **more}.items()}
    return [
      sys.executable,
      '-m',
      'experiments.eval',
      f'--config={small_job.ROOT}/configs/eval.py',
      *(f'--config.{name}={value}' for name, value in given.items()),
    ]

  return job.start(place, count, 'eval', folder, command=command)


def answers(place, folder):
  """(answer, score) by key."""
  found = results.read(place / 'runs' / folder / 'results.jsonl')
  assert len({one.key for one in found}) == len(found)
  return {one.key: (one.answer, one.score) for one in found}


def test_two_hosts_then_four_answer_as_one(place, cold_start):
  alone = start(place, 1, 'eval_whole')
  assert alone.wait() == [0], alone.said(0)
  killed = start(place, 2, 'eval_parts')
  run = place / 'runs' / 'eval_parts'
  other = run / 'host1' / 'results.jsonl'
  try:
    patience.until(lambda: results.read(other) or job.any_ended(killed), 'a result', 420.0, 0.01)
    killed.processes[1].kill()
    codes = killed.wait(6 * job.HEARTBEAT_S)
  finally:
    killed.kill()
  assert codes[1] == -9 and codes[0] not in (0, None), killed.said(0)
  left = {one.key for path in (run, run / 'host1') for one in results.read(path / 'results.jsonl')}
  assert 0 < len(left) < 12 and not (run / 'summary.json').exists()
  four = start(place, 4, 'eval_parts')
  assert four.wait() == [0] * 4, [four.said(index) for index in range(4)]
  assert answers(place, 'eval_parts') == answers(place, 'eval_whole')
  assert [path.name for path in run.glob('host*/results.jsonl')] == []
  assert (run / 'summary.json').is_file() and four.outs[0].read_text().splitlines()[-1].endswith(
    'runs/eval_parts'
  )
  assert [four.outs[index].read_text() for index in (1, 2, 3)] == [''] * 3

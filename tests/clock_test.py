"""A wall clock that jumps (a laptop that wakes, a clock that is set) moves no deadline and no duration.

The clock of the day is used for what people read, and for ages of files. The table names each place.
"""

import ast
import asyncio
import datetime
import itertools
import pathlib
import re
import time
import types

from paravt_jax import timeline
from paravt_jax.metrics import writer
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.orchestrator import alarms, step_log, training
from tests.rollout.bench import CANARY, EPISODE, Bench, Script, ask, fleet, published, seen

ROOT = pathlib.Path(__file__).parents[1]
# file -> calls, and what for
OF_THE_DAY = {
  'paravt_jax/files.py': {'time.time'},  # the age of a file that a writer may have left
  'paravt_jax/metrics/writer.py': {'time.time'},  # the moment of a record, beside its step
  'paravt_jax/models/qwen3_vl/export.py': {'time.time'},  # the age of what a writer may have left
  'paravt_jax/orchestrator/run_folder.py': {'time.strftime'},  # since when a folder is in use
  'paravt_jax/orchestrator/step_log.py': {'datetime.datetime.now'},  # the moment of a line
  'paravt_jax/report/build.py': {'datetime.datetime.now'},  # when a page was written
  'paravt_jax/report/evaluation.py': {'datetime.datetime.now'},
  'paravt_jax/report/preview.py': {'datetime.datetime.now'},
  # a server's own Retry-After, at most max_backoff_s
  'paravt_jax/rollout/chat_server.py': {'time.time'},
  'paravt_jax/serving/embedded/openai.py': {'time.time'},  # `created` of the OpenAI protocol
  'paravt_jax/timeline.py': {'time.time'},  # the moment of the monotonic clock's zero, read once
  # beside times of files: which frames this run has used. A wrong one costs a decode
  'paravt_jax/video/store.py': {'time.time_ns'},
}
_CALLS = {
  *(f'time.{name}' for name in ('time', 'time_ns', 'localtime', 'gmtime', 'strftime', 'ctime')),
  *(f'datetime.datetime.{name}' for name in ('now', 'utcnow', 'today')),
  'datetime.date.today',
}
_NAMES = {name.rpartition('.')[2] for name in _CALLS}


def of_the_day(path):
  """The calls of a file that ask for the time of the day, and imports that would hide them."""
  tree = ast.parse(path.read_text())
  calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
  hidden = {
    f'from {node.module} import {name.name}'
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module in ('time', 'datetime')
    for name in node.names
    if name.name in {*_NAMES, 'datetime', 'date'}
  }
  return (calls & _CALLS) | hidden


def test_the_clock_of_the_day_is_asked_only_where_the_table_says():
  found = {
    str(path.relative_to(ROOT)): calls
    for folder in ('paravt_jax', 'experiments', 'configs')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if (calls := of_the_day(path))
  }
  assert found == OF_THE_DAY


def test_hidden_calls_are_found(tmp_path):
  file = tmp_path / 'a.py'
  file.write_text('import time\nfrom time import time as now\nfrom datetime import datetime\n')
  assert of_the_day(file) == {'from time import time', 'from datetime import datetime'}
  file.write_text('import time\ntime.monotonic() + time.time()\n')
  assert of_the_day(file) == {'time.time'}


class Jumping:
  """A clock of the day that is set forward once, and then back an hour at every look."""

  def __init__(self):
    self._real, self.looks = time.time, 0

  def __call__(self):
    self.looks += 1
    return self._real() + 3600.0 * (1000 - self.looks)

  def now(self, zone=None):
    return datetime.datetime.fromtimestamp(self(), zone)


def test_a_clock_that_jumps_an_hour_at_every_look_ends_nothing_early_and_measures_nothing_wrong(
  tmp_path, monkeypatch
):
  clock = Jumping()
  monkeypatch.setattr(time, 'time', clock)
  monkeypatch.setattr(step_log, 'datetime', types.SimpleNamespace(datetime=clock))
  spans = timeline.Timeline(tmp_path / 'timeline.json')
  lines = step_log.StepLog(tmp_path / step_log.FILE, 4, servers_wait=True)

  async def use(whole, client, router):
    with MetricsWriter(tmp_path, tensorboard=True, wandb=None, start_step=0) as metrics:
      for step in range(4):
        laps = training.Clock(spans, step)
        asked = [ask(client, step * 4 + n, affinity=n) for n in range(4)]
        if step == 2:  # a server dies, and comes back, while the clock jumps
          await asyncio.to_thread(bench.launched[0][-1].kill)
        await asyncio.gather(*asked)
        laps.lap('rollout')
        await whole.deliver(published(step + 1), step + 1, CANARY)
        laps.lap('sync')
        record = laps.times()
        metrics.write(step, record)
        lines.write(step, record, alarms.Outcome({}, (), None))
        spans.flush()
      await seen(lambda: len(router.up_urls()) == 2)
    return dict(whole.counts)

  bench = Bench(Script(), Script())
  bench.scripts[0].episode = bench.scripts[1].episode = EPISODE
  counts = fleet(bench, use)
  # its end is told by the process and by a request on its way, which may both count
  assert counts['lost'] in (1, 2) and counts['back'] == 1
  rows = writer.read(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [0, 1, 2, 3]  # read back, though `wall` goes back
  assert any(late['wall'] < early['wall'] for early, late in itertools.pairwise(rows))
  taken = [value for row in rows for name, value in row.items() if name.startswith('time/')]
  assert min(taken) >= 0.0 and max(taken) < 600.0
  with MetricsWriter(tmp_path, tensorboard=False, wandb=None, start_step=2):
    pass
  assert [row['step'] for row in writer.read(tmp_path / 'metrics.jsonl')] == [0, 1]
  text = (tmp_path / step_log.FILE).read_text()
  assert text.count(' done): ') == 4 and not re.search(r'-\d+\.\d s', text)
  drawn = timeline.read(tmp_path / 'timeline.json')['learner']
  assert all(0 <= end - begin < 600 for _, begin, end in drawn)
  assert clock.looks > 8

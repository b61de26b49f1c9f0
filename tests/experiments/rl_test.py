"""The main loop's own parts: the guard against a learner and a server that disagree, the clock, the
cold start's door.
"""

import asyncio
import contextlib
import math
import types

import pytest
from ml_collections import ConfigDict

from configs import para_grpo
from experiments import rl, runs, wiring
from paravt_jax.errors import ConfigError, SyncError
from paravt_jax.metrics import names


def test_a_gap_above_the_limit_ends_the_run_with_its_number():
  rl.guard({'policy/gap_current_mean': 9e-5}, 1e-4, 3)
  with pytest.raises(
    SyncError,
    match=r'step 3: .* is 2.00e-04, wanted at most rollout.gap_limit=0.0001: .*see metrics.jsonl',
  ):
    rl.guard({'policy/gap_current_mean': 2e-4}, 1e-4, 3)


def test_a_gap_that_is_no_number_ends_the_run():
  with pytest.raises(SyncError, match='is nan'):
    rl.guard({'policy/gap_current_mean': math.nan}, 1e-4, 3)


def test_tokens_of_an_older_version_may_differ_and_those_of_the_current_one_may_not():
  rl.guard(
    {'policy/gap_mean': 1.0, 'staleness/max': 1.0}, 1e-4, 3
  )  # no token of the current version
  with pytest.raises(SyncError):
    rl.guard(
      {'policy/gap_mean': 1.0, 'policy/gap_current_mean': 1.0, 'staleness/max': 2.0}, 1e-4, 3
    )


def test_the_clocks_stages_add_up_to_the_step_and_are_in_the_dictionary(monkeypatch):
  ticks = iter([0.0, 2.0, 5.0, 6.0, 6.5])
  monkeypatch.setattr(rl.time, 'monotonic', lambda: next(ticks))
  clock = rl.Clock()
  for stage in ('rollout', 'learn', 'rollout'):
    clock.lap(stage)
  found = clock.times()
  assert found == {'time/rollout': 3.0, 'time/learn': 3.0, 'time/other': 0.5, 'time/step': 6.5}
  for name in (*found, 'time/publish', 'time/sync', 'time/checkpoint'):
    names.lookup(name)


def test_a_scale_without_a_cold_start_asks_for_a_model(tmp_path):
  config = para_grpo.get_config('8b')
  with pytest.raises(
    ConfigError, match=r'--config.model.folder is empty, .*train one with experiments.sft'
  ):
    rl.cold_start(config, runs.RunFolder(tmp_path, {}))


def test_the_cold_starts_curve_is_kept_with_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(rl.sft, 'cold_start', lambda config: tmp_path / 'sft_run' / 'hf')
  (tmp_path / 'sft_run').mkdir()
  (tmp_path / 'sft_run' / 'metrics.jsonl').write_text('{"step": 0}\n')
  folder = runs.RunFolder(tmp_path / 'run', {})
  assert rl.cold_start(ConfigDict({'cold_start': {}}), folder) == tmp_path / 'sft_run' / 'hf'
  assert (folder.path / 'sft' / 'metrics.jsonl').read_text() == '{"step": 0}\n'


def test_the_server_gets_the_learners_weights_before_anything_is_measured_whatever_it_served_before(
  tmp_path, monkeypatch
):
  done = []

  @contextlib.asynccontextmanager
  async def opened(*_):
    async def deliver(pending, version):
      done.append(('deliver', pending, version))

    yield types.SimpleNamespace(deliver=deliver)

  async def note(name, *_):
    done.append(name)

  learner = types.SimpleNamespace(
    version=0,
    tok=None,
    restore=lambda: None,
    canary=lambda: None,
    publish=lambda: 'version 0',
    export=lambda target: None,
    model_config=types.SimpleNamespace(text=types.SimpleNamespace(vocab=8)),
  )
  monkeypatch.setattr(rl, 'Learner', lambda *_: learner)
  monkeypatch.setattr(rl.rollouts, 'opened', opened)
  monkeypatch.setattr(rl.evaluation, 'phase', note)
  monkeypatch.setattr(rl.evaluation, 'summary', lambda *_: {})
  monkeypatch.setattr(rl, 'train', lambda *_: note('train'))
  asyncio.run(
    rl.session(
      ConfigDict(),
      runs.RunFolder(tmp_path / 'run', {}),
      tmp_path,
      wiring.Questions([], [], {}),
      None,
    )
  )
  assert done == [('deliver', 'version 0', 0), 'before', 'train', 'after']

"""The main job: the cold start's door, the order of its phases, more steps."""

import asyncio
import contextlib
import errno
import types

import pytest

from configs import para_grpo
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import evaluation, main_job
from paravt_jax.orchestrator.corpus import Questions
from paravt_jax.orchestrator.run_folder import RunFolder
from tests.recipes import typed


def test_a_scale_without_a_cold_start_asks_for_a_model(tmp_path):
  recipe = typed(para_grpo.get_config('8b'))
  with pytest.raises(
    ConfigError, match=r'--config.model.folder is empty, .*train one with experiments.sft'
  ):
    main_job.cold_start(recipe, RunFolder(tmp_path, {}))


def test_the_cold_starts_curve_is_kept_with_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(main_job.sft, 'cold_start', lambda recipe: tmp_path / 'sft_run' / 'hf')
  (tmp_path / 'sft_run').mkdir()
  (tmp_path / 'sft_run' / 'metrics.jsonl').write_text('{"step": 0}\n')
  folder = RunFolder(tmp_path / 'run', {})
  recipe = typed(para_grpo.get_config())
  assert main_job.cold_start(recipe, folder) == tmp_path / 'sft_run' / 'hf'
  assert (folder.path / 'sft' / 'metrics.jsonl').read_text() == '{"step": 0}\n'


def test_the_server_gets_the_learners_weights_before_anything_is_measured_whatever_it_served_before(
  tmp_path, monkeypatch
):
  done = []

  @contextlib.asynccontextmanager
  async def opened(*_, **__):
    async def deliver(pending, version):
      done.append(('deliver', pending, version))

    yield types.SimpleNamespace(deliver=deliver)

  async def note(name, *_):
    done.append(name)

  async def phase(name, recipe, folder, server, questions, version, interrupts):
    done.append((name, version))

  learner = types.SimpleNamespace(
    version=0,
    tok=None,
    restore=lambda: None,
    canary=lambda: None,
    publish=lambda: 'version 0',
    export=lambda target: None,
    model_config=types.SimpleNamespace(text=types.SimpleNamespace(vocab=8)),
  )
  monkeypatch.setattr(main_job.rollouts, 'open_rollouts', opened)
  monkeypatch.setattr(main_job.evaluation, 'phase', phase)
  monkeypatch.setattr(main_job.evaluation, 'summary', lambda *_: {})
  monkeypatch.setattr(main_job, 'train', lambda *_: note('train'))
  asyncio.run(
    main_job.session(
      typed(para_grpo.get_config()),
      RunFolder(tmp_path / 'run', {}),
      tmp_path,
      Questions([], [], {}),
      None,
      None,
      lambda *_: learner,
    )
  )
  assert done == [('deliver', 'version 0', 0), ('before', 0), 'train', ('after', 0)]


def test_more_steps_take_back_the_evaluation_after_training_and_keep_the_one_before(tmp_path):
  folder = RunFolder(tmp_path, {})
  for name in ('before', 'after'):
    (tmp_path / f'eval_{name}').mkdir()
    (tmp_path / f'eval_{name}' / 'results.jsonl').write_text('{}\n')
    folder.finish(name, {})
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'summary.json').write_text('{}')
  (tmp_path / 'checkpoints' / '00000004').mkdir(parents=True)
  (tmp_path / 'checkpoints' / '00000004' / 'host.json').write_text('{}')
  main_job.reopen(typed(para_grpo.get_config(), rollout__steps=4), folder)
  assert folder.result('after') == {} and (tmp_path / 'hf').is_dir()
  main_job.reopen(typed(para_grpo.get_config(), rollout__steps=6), folder)
  assert folder.result('after') is None and folder.result('before') == {}
  left = {path.name for path in tmp_path.iterdir() if not path.name.startswith('.')}
  assert 'eval_before' in left and not left & {'eval_after', 'hf', 'summary.json'}


def test_the_error_that_ends_a_run_leaves_its_page_and_a_page_that_fails_is_told(
  tmp_path, capsys, monkeypatch
):
  recipe = typed(para_grpo.get_config())
  folder = RunFolder(tmp_path, {})
  evaluation.leave_page(recipe, folder, tmp_path / 'model')
  assert capsys.readouterr().err == ''  # no step is finished, so there is nothing to show
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0, "time/step": 2.0}\n')
  monkeypatch.setattr(evaluation, '_page', lambda *_: tmp_path / 'report.html')
  evaluation.leave_page(recipe, folder, tmp_path / 'model')
  told, last = capsys.readouterr().err.splitlines()
  assert told.startswith('1 ') and last == f'report: {tmp_path}/report.html'

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(evaluation, '_page', full)
  evaluation.leave_page(recipe, folder, tmp_path / 'model')
  assert capsys.readouterr().err == (
    f'no report was written: [Errno {errno.ENOSPC}] No space left on device\n'
  )

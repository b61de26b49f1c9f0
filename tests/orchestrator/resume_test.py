"""A run that continues with other placement, or for more steps, trains as if it had been begun so."""

import json

import pytest

from configs import sft as recipes
from paravt_jax.errors import ConfigError
from paravt_jax.eval import results
from paravt_jax.orchestrator import cold_start, run_folder
from paravt_jax.train import checkpoint
from tests.experiments import small_job
from tests.recipes import typed


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A working directory in which the small world is written once."""
  return tmp_path_factory.mktemp('resume')


def trained(place, monkeypatch, folder, **knobs):
  """The losses of the cold start in runs/<folder>, by step, at its end."""
  monkeypatch.chdir(place)
  recipe = typed(
    recipes.get_config(),
    **{
      **small_job.WORLD,
      'world.workers': 0,
      'steps': 2,
      'run.folder': f'runs/{folder}',
      'run.checkpoint_every': 0,
      'run.tensorboard': False,
      'optimizer.warmup_steps': 0,
      **knobs,
    },
  )
  cold_start.cold_start(recipe)
  lines = (place / 'runs' / folder / 'metrics.jsonl').read_text().splitlines()
  return {line['step']: line['sft/loss'] for line in map(json.loads, lines)}


@pytest.mark.slow
def test_a_cold_start_goes_on_on_other_devices_and_for_more_steps_as_if_it_had_been_begun_so(
  place, monkeypatch, capsys
):
  whole = trained(place, monkeypatch, 'whole', steps=4)
  # checkpoint_every=0: the last record alone
  assert checkpoint.steps(place / 'runs' / 'whole' / 'checkpoints') == (4,)
  assert list(trained(place, monkeypatch, 'parts')) == [0, 1]
  first = (place / 'runs' / 'parts' / 'hf' / 'model.safetensors').read_bytes()
  capsys.readouterr()
  elsewhere = {
    'mesh__data': 2,
    'train__rows': 2,
    'train__micro_batches': 2,
    'train__remat': 'layers',
    'train__backend': 'xla',
    'train__head_chunk': 64,
    'batches__prefetch': 1,
    'video__workers': 1,
    'video__cache_mb': 8,
  }
  parts = trained(place, monkeypatch, 'parts', steps=4, **elsewhere)
  said = capsys.readouterr().err
  assert (
    'run folder runs/parts continues with batches.prefetch: 4 -> 1, mesh.data: 1 -> 2, '
    'steps: 2 -> 4, ' in said
  )
  assert list(parts) == [0, 1, 2, 3] and parts == pytest.approx(whole, rel=2e-4)
  assert checkpoint.steps(place / 'runs' / 'parts' / 'checkpoints') == (2, 4)
  assert (
    place / 'runs' / 'parts' / 'hf' / 'model.safetensors'
  ).read_bytes() != first  # the model of the longer run
  with pytest.raises(
    ConfigError, match=r'\(steps: 4 -> 3\) and has made 4 steps; ask for 4 or more'
  ):
    trained(place, monkeypatch, 'parts', steps=3, **elsewhere)
  with pytest.raises(ConfigError, match=r'\(train.rows x train.micro_batches: 4 -> 8\)'):
    trained(place, monkeypatch, 'parts', steps=4, train__micro_batches=2)


def test_a_cold_start_is_found_again_from_other_devices_and_not_from_another_recipe(
  place, monkeypatch
):
  monkeypatch.chdir(place)
  made = []
  train = lambda recipe, folder, base, target: made.append(folder.path)
  monkeypatch.setattr(cold_start, 'train', train)
  monkeypatch.setattr(cold_start.parts, 'tiny_model', lambda seed: 'base')
  for knobs in (
    {},
    {'mesh.data': 2},
    {'train.rows': 2, 'train.micro_batches': 2},
    {'video.workers': 7},
    {'seed': 1},
    {'steps': 9},
    {'train.micro_batches': 2},
  ):
    cold_start.cold_start(typed(recipes.get_config(), **knobs))
  assert len(set(made[:4])) == 1 and len(set(made)) == 4


def test_records_are_written_every_so_many_steps_and_after_the_last():
  assert [done for done in range(1, 8) if run_folder.saves(3, done, 7)] == [3, 6, 7]
  assert [done for done in range(1, 8) if run_folder.saves(0, done, 7)] == [7]


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_steps_and_is_measured_and_exported_anew(place):
  cwd, small = (
    place,
    {
      'eval__questions': 2,
      'eval__budgets': (4,),
      'run__checkpoint_every': 0,
      'run__tensorboard': False,
    },
  )
  assert small_job.run(cwd, 'rl', rollout__steps=1, **small)[0] == 0
  run = cwd / 'runs' / 'rl'
  assert checkpoint.steps(run / 'checkpoints') == (1,)
  before = (run / 'hf' / 'model.safetensors').read_bytes()
  after = json.loads((run / 'progress.json').read_text())['done']['before']
  status, _, said = small_job.run(
    cwd,
    'rl',
    rollout__steps=2,
    train__rows=2,
    train__remat='layers',
    data__media_root='elsewhere',
    **small,
  )
  assert status == 0, said
  assert (
    'continues with data.media_root:  -> elsewhere, rollout.steps: 1 -> 2, '
    'train.remat: none -> layers, train.rows: 4 -> 2' in said
  )
  assert [line['step'] for line in small_job.records(cwd, 'rl')] == [0, 1] and checkpoint.steps(
    run / 'checkpoints'
  ) == (1, 2)
  assert (run / 'hf' / 'model.safetensors').read_bytes() != before
  assert json.loads((run / 'summary.json').read_text())['steps'] == 2
  # what was measured first stays, and what was measured last is of the longer run
  assert json.loads((run / 'progress.json').read_text())['done']['before'] == after
  models = [results.read_plan(run / f'eval_{name}').common['model'] for name in ('before', 'after')]
  assert [model['version'] for model in models] == [0, 2]
  status, _, said = small_job.run(
    cwd,
    'rl',
    rollout__steps=1,
    train__rows=2,
    train__remat='layers',
    data__media_root='elsewhere',
    **small,
  )
  assert status == 2 and '(rollout.steps: 2 -> 1) and has made 2 steps; ask for 2 or more' in said

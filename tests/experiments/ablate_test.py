"""Ablations: the grid is checked before anything starts, a run that fails stops no other, and the
same command continues.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from configs import ablations, para_grpo
from experiments import ablate, launch
from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import run_folder
from tests import patience, recipes
from tests.experiments import small_job

ROOT = small_job.ROOT
JOBS = min(2, len(os.sched_getaffinity(0)))
ALL = ('sft_only', 'grpo', 'grpo_anchoring', 'grpo_gating', 'para_grpo', 'no_tool_reward', 'no_unclosed_penalty', 'sequential',
       'subagent_credit_off')  # fmt: skip


def recipe(**knobs):
  """The shipped grid over this checkout's recipe; further knobs with '__' for dots."""
  config = ablations.get_config()
  config.recipe = f'{ROOT}/configs/para_grpo.py:tiny'
  return recipes.typed(config, **knobs)


# The grid


def test_the_shipped_grid_is_nine_sets_with_three_seeds_seed_by_seed():
  cells = ablate.cells_of(recipe())
  assert [(cell.name, cell.seed) for cell in cells] == [
    (name, seed) for seed in (0, 1, 2) for name in ALL
  ]
  assert (
    cells[0].folder == pathlib.Path('runs/ablations/sft_only-seed0')
    and cells[0].log.name == 'sft_only-seed0.log'
  )


@pytest.mark.parametrize(('name', 'wanted'), [
  ('para_grpo', {}),
  ('sft_only', {'rollout.steps': 1, 'optimizer.learning_rate': 0.0}),
  ('grpo', {'agent.think_prefix': '', 'reward.answer_suffix': False, 'reward.anchor_weight': 0.0, 'frames.gating': False}),
  ('grpo_anchoring', {'frames.gating': False}),
  ('grpo_gating', {'agent.think_prefix': '', 'reward.answer_suffix': False, 'reward.anchor_weight': 0.0}),
  ('no_tool_reward', {'reward.tool': False}),
  ('no_unclosed_penalty', {'reward.unclosed_penalty': 0.0}),
  ('sequential', {'agent.max_parallel': 1, 'agent.max_turns': 15}),
  ('subagent_credit_off', {'rollout.subagent_credit': 'off'}),
  ('asynchronous', {'rollout.staleness': 2}),
])  # fmt: skip
def test_a_set_changes_what_it_is_named_for_and_nothing_else(name, wanted):
  ours = dict(options.leaves(ablate.cell(recipe(), name, 2).recipe))
  published = dict(options.leaves(recipes.typed(para_grpo.get_config())))
  changed = {knob: value for knob, value in ours.items() if value != published[knob]}
  assert changed == {**wanted, 'seed': 2, 'run.folder': f'runs/ablations/{name}-seed2'}


def test_the_cold_start_is_the_same_for_every_set_and_seed():
  cells = ablate.cells_of(recipe())
  assert len({json.dumps(options.to_dict(cell.recipe.cold_start)) for cell in cells}) == 1


def test_a_sets_override_wins_over_that_of_all_sets():
  found = ablate.cell(
    recipe(
      common=('rollout.steps=40', 'frames.budgets=(4,8)'), overrides__grpo=('rollout.steps=2',)
    ),
    'grpo',
    0,
  )
  assert found.recipe.rollout.steps == 2 and found.recipe.frames.budgets == (4, 8)
  assert [word for word in found.arguments if 'steps' in word] == ['--config.rollout.steps=2']


def test_sets_and_seeds_are_chosen_in_the_order_asked_for():
  cells = ablate.cells_of(recipe(sets='para_grpo, grpo', seeds=(3,)))
  assert [(cell.name, cell.seed, cell.recipe.seed) for cell in cells] == [
    ('para_grpo', 3, 3),
    ('grpo', 3, 3),
  ]


@pytest.mark.parametrize(('knobs', 'message'), [
  ({'sets': 'grpp'}, "--config.sets='grpp': wanted 'grpp': did you mean grpo?"),
  ({'sets': ' '}, "--config.sets=' ': wanted some of asynchronous, grpo, grpo_anchoring"),
  ({'seeds': ()}, r'--config.seeds=\(\): wanted one or more different seeds'),
  ({'seeds': (1, 1)}, r'--config.seeds=\(1, 1\): wanted one or more different seeds'),
  ({'recipe': 'configs/none.py'}, "--config.recipe='configs/none.py': "
"wanted a recipe of experiments.rl"),
  ({'recipe': f'{ROOT}/configs/sft.py'}, '--config.overrides.sft_only: .* a knob that '
'this recipe does not have .*rollout'),
  ({'recipe': f'{ROOT}/configs/para_grpo.py:3b'}, "scale '3b': wanted one of tiny, 2b, 8b"),
  ({'reference': 'gpo'}, "--config.reference='gpo': wanted one of"),
  ({'drawings__parts': ('grpo', 'x')}, r"--config.drawings.parts=\('grpo', 'x'\): wanted some of"),
  ({'overrides__grpo': ('rollout.step=4',)}, "--config.overrides.grpo: no knob 'step' in "
"this recipe: did you mean steps?"),
  ({'overrides__grpo': ('rollout.steps=x',)}, r'--config.overrides.grpo: .*rollout.steps=x'),
  ({'overrides__grpo': ('rollout.steps=0',)}, '--config.overrides.grpo: '
'--config.rollout.steps=0: wanted at '
'least 1'),
  ({'overrides__grpo': ('rollout.steps',)}, "--config.overrides.grpo: got "
"'rollout.steps', wanted 'some.knob=value'"),
  ({'overrides__grpo': ('seed=4',)}, '--config.overrides.grpo: seed is set by the grid'),
  ({'common': ('run.folder=x',)}, '--config.overrides.sft_only with '
'--config.common: run.folder is set by the grid'),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_starts(knobs, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match=message):
    ablate.main(recipe(**knobs))
  assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_another_entry_point_is_refused():
  with pytest.raises(ConfigError, match=r"no 'overrides', .* such as configs/ablations.py"):
    launch.typed(ablate.AblateRecipe, para_grpo.get_config())


def test_a_grid_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
  monkeypatch.setattr(ablate.grid, 'prepare', lambda waiting: pytest.fail('began'))
  message = r'by another process \(process .*\); wait .* choose another with --config\.folder=DIR'
  with run_folder.locked(tmp_path), pytest.raises(ConfigError, match=message):
    ablate.main(recipe(folder=str(tmp_path)))


# Runs


def command(*arguments, **knobs):
  """experiments.ablate over the shortened main job, with sets and seeds to be given."""
  common = tuple(f'{name}={value}' for name, value in {**small_job.KNOBS, **knobs}.items())
  return [sys.executable, '-m', 'experiments.ablate', f'--config={ROOT}/configs/ablations.py',
          f'--config.recipe={ROOT}/configs/para_grpo.py:tiny', f'--config.common={common!r}', *arguments]  # fmt: skip


def ran(cwd, *arguments, **knobs):
  """(status, stdout, stderr)."""
  done = subprocess.run(
    command(*arguments, **knobs),
    cwd=cwd,
    env=small_job.environment(),
    capture_output=True,
    text=True,
    timeout=patience.seconds(900),
  )
  return done.returncode, done.stdout, done.stderr


def test_runs_that_fail_are_named_each_with_its_reason_and_the_exit_status_is_1(tmp_path):
  files = {'data.kind': 'files', 'data.train': "('none.parquet',)", 'model.folder': 'nowhere'}
  status, out, err = ran(
    tmp_path, '--config.sets=grpo,para_grpo', '--config.seeds=0', f'--config.jobs={JOBS}', **files
  )
  assert status == 1 and out == 'no run has reached its end yet\nruns/ablations\n'
  for name in ('grpo', 'para_grpo'):
    log = (tmp_path / 'runs' / 'ablations' / f'{name}-seed0.log').read_text()
    assert log.startswith('$ ') and 'experiments.rl' in log.splitlines()[0]
    assert f'failed: {name}, seed 0: error: --config.data.train: none.parquet does not exist' in err
  assert (
    'No run has reached its end yet'
    in (tmp_path / 'runs' / 'ablations' / 'ablations.html').read_text()
  )


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A grid of three sets at the shortened scale, of which one breaks when it runs: (folder, status,
  stdout, stderr).
  """
  cwd = tmp_path_factory.mktemp('grid')
  return cwd, *ran(cwd, '--config.sets=sft_only,grpo,para_grpo', '--config.seeds=0', f'--config.jobs={JOBS}',
                   "--config.overrides.grpo=('model.folder=nowhere',)")  # fmt: skip


def summary(cwd, name):
  """summary.json of a run."""
  return json.loads((cwd / 'runs' / 'ablations' / f'{name}-seed0' / 'summary.json').read_text())


@pytest.mark.slow
def test_a_run_that_breaks_stops_no_other(place):
  cwd, status, out, err = place
  assert status == 1 and 'failed: grpo, seed 0: error: ' in err and 'nowhere' in err
  rows = [line.split('|')[1].strip() for line in out.splitlines() if line.startswith('| ')]
  assert (
    rows == ['set', '---', 'sft_only', 'para_grpo'] and out.splitlines()[-1] == 'runs/ablations'
  )
  folder = cwd / 'runs' / 'ablations'
  assert len(small_job.records(cwd, 'ablations/para_grpo-seed0')) == small_job.STEPS
  assert (folder / 'para_grpo-seed0' / 'hf').is_dir() and (
    folder / 'para_grpo-seed0' / 'report.html'
  ).is_file()
  assert (
    'No run of these sets has reached its end: grpo.' in (folder / 'ablations.html').read_text()
  )
  assert (folder / 'curves' / 'parts-accuracy.svg').is_file()


@pytest.mark.slow
def test_sft_only_is_the_cold_start_before_and_after(place):
  found = summary(place[0], 'sft_only')
  assert (
    found['after']['accuracy_by_k']
    == found['before']['accuracy_by_k']
    == summary(place[0], 'para_grpo')['before']['accuracy_by_k']
  )
  assert found['gain']['difference'] == 0.0


@pytest.mark.slow
def test_the_runs_share_one_cold_start(place):
  assert len(list((place[0] / 'runs').glob('sft_tiny-*'))) == 1


@pytest.mark.slow
def test_the_same_command_runs_only_what_is_not_there(place):
  cwd = place[0]
  before = (cwd / 'runs' / 'ablations' / 'para_grpo-seed0' / 'summary.json').stat().st_mtime_ns
  status, out, err = ran(cwd, '--config.sets=sft_only,para_grpo', '--config.seeds=0')
  assert (
    status == 0 and '2 runs in runs/ablations: 2 are done, 0 to go' in err and 'begins' not in err
  )
  assert (
    cwd / 'runs' / 'ablations' / 'para_grpo-seed0' / 'summary.json'
  ).stat().st_mtime_ns == before
  status, _, err = ran(
    cwd, '--config.sets=para_grpo', '--config.seeds=0', **{'rollout.group_size': 2}
  )
  assert (
    status == 2
    and 'para_grpo-seed0 was made with other settings (rollout.group_size: 4 -> 2)' in err
  )


@pytest.mark.slow
def test_after_ctrl_c_the_runs_end_cleanly_and_the_same_command_goes_on(place):
  cwd = place[0]
  arguments, folder = (
    ('--config.sets=grpo_anchoring', '--config.seeds=0'),
    'ablations/grpo_anchoring-seed0',
  )
  knobs = {'rollout.steps': 8}  # many more than may be done until the signal comes
  process = subprocess.Popen(
    command(*arguments, **knobs),
    cwd=cwd,
    env=small_job.environment(),
    stderr=subprocess.PIPE,
    text=True,
  )
  small_job.wait_for(lambda: small_job.records(cwd, folder), process)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=patience.seconds(300))
  assert process.returncode == 130 and 'FAILED' not in err and small_job.nobody_is_left(cwd)
  assert not (cwd / 'runs' / folder / 'summary.json').exists()
  status, out, _ = ran(cwd, *arguments, **knobs)
  assert status == 0 and '| grpo_anchoring ' in out
  assert [record['step'] for record in small_job.records(cwd, folder)] == list(range(8))

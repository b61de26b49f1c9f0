"""The main job by its command, shortened to minutes: what it leaves behind, that it continues after
any end, how it refuses.
"""

import json
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
import transformers

from paravt_jax import timeline
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.report import episodes
from tests import patience
from tests.experiments import small_job
from tests.models.qwen3_vl import oracle

pytestmark = pytest.mark.slow
SIDE = {
  'episodes',
  'accuracy',
  'accuracy_by_k',
  'format_compliance',
  'calls_per_episode',
  'interval',
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Where all runs of this file live: they share the world, the cold start and compiled
  programs.
  """
  return tmp_path_factory.mktemp('main_job')


@pytest.fixture(scope='module')
def whole(place):
  """An uninterrupted run: (status, stdout, stderr)."""
  return small_job.run(place, 'whole')


@pytest.fixture(scope='module')
def folder(place, whole):
  assert whole[0] == 0, whole[2][-4000:]
  return place / 'runs' / 'whole'


def test_it_says_its_scale_first_and_ends_with_a_table_and_the_run_folder(folder, whole):
  _, out, err = whole
  assert (
    'para_grpo at scale :tiny   (others: --config=configs/para_grpo.py:8b and so on; '
    in err.splitlines()[1]
  )
  assert out.splitlines()[-1] == 'runs/whole'
  assert 'accuracy (greedy)' in out and 'report: runs/whole/report.html' in out
  for stage in ('world: videos', 'sft', 'before: heldout', '4 of 4 done', 'after: sampled'):
    assert stage in err  # progress bars, and the lines of steps
  assert 'Traceback' not in err


def test_the_summary_has_before_and_after_and_the_minutes_of_every_phase(folder):
  found = json.loads((folder / 'summary.json').read_text())
  for side in (found['before'], found['after']):
    assert side.keys() >= SIDE
    assert side['episodes'] == 12 and set(side['accuracy_by_k']) == {
      '4',
      '16',
    }  # 6 questions at 2 budgets
    low, high = side['interval']
    assert 0 <= low <= side['accuracy'] + 1e-9 and side['accuracy'] <= high <= 1
    assert 0 <= side['format_compliance'] <= 1
    assert side['sampled_episodes'] == 6 and side['errors'] == {}
  assert found['minutes'].keys() == {
    'world',
    'cold_start',
    'start',
    'eval_before',
    'rl',
    'eval_after',
    'export',
  }
  assert found['gain']['pairs'] == 12


def test_every_step_is_logged_once_with_a_gap_of_at_most_1e_4(folder, place):
  rows = small_job.records(place, 'whole')
  assert [row['step'] for row in rows] == [0, 1, 2, 3]
  for row in rows:
    assert row['policy/gap_mean'] <= 1e-4
    assert row['staleness/max'] == 0 and row['policy/version'] == row['step'] + 1
    assert row['episodes/kept'] == 16 and row['groups/accepted'] == 4
    assert np.isfinite(
      [row[name] for name in ('policy/loss', 'policy/entropy', 'optim/grad_norm', 'reward/total')]
    ).all()
  assert any(row['optim/update_norm'] > 0 for row in rows)


# what section 7 of the specification wants logged at every step
LOGGED = """reward/total reward/accuracy reward/format reward/base reward/anchor reward/tool accuracy format_compliance groups/no_signal
  policy/entropy policy/ratio policy/clip_share policy/dropped_share policy/ess policy/gap_mean policy/gap_max
  policy/gap_mean/class=after_frame policy/kl_reference calls/parsed calls/executed calls/failed truncated/turn truncated/context
  length/sampled length/context staleness time/rollout time/learn time/publish time/sync time/step"""


def test_everything_that_section_7_wants_is_logged(folder, place):
  rows = small_job.records(place, 'whole')
  assert [name for name in LOGGED.split() if name not in rows[0]] == []
  assert {name for row in rows for name in row if '/k=' in name} >= {
    'accuracy/k=4',
    'accuracy/k=16',
    'advantage/k=4',
    'advantage/k=16',
  }


def test_all_episodes_are_kept_and_read_back(folder, place):
  train = list(episodes.read(folder / 'episodes' / 'train.jsonl'))
  assert [entry.step for entry in train] == sorted([0, 1, 2, 3] * 16)
  versions = {
    (entry.step, int(v))
    for entry in train
    for s in entry.scored.episode.trajectory.segments
    if s.sampled
    for v in s.versions
  }
  assert versions == {
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
  }  # every token was sampled by the weights of its step
  for name in ('before', 'after'):
    keys = [entry.key for entry in small_job.answers(place, 'whole', name)]
    assert len(keys) == len(set(keys)) == 12


def test_the_folder_holds_config_commit_events_and_checkpoints(folder):
  config = json.loads((folder / 'config.json').read_text())
  assert (
    config['rollout']['steps'],
    config['world']['corpus']['videos'],
    config['agent']['max_parallel'],
  ) == (4, 6, 5)
  assert re.fullmatch(r'([0-9a-f]{40}(\+changes)?|unknown)\n', (folder / 'git.txt').read_text())
  assert any(path.stat().st_size > 1000 for path in (folder / 'tensorboard').glob('events*'))
  assert sorted(path.name for path in (folder / 'checkpoints').iterdir()) == [
    '00000002',
    '00000004',
  ]
  assert sorted(path.name for path in (folder / 'weights').iterdir()) == ['3', '4']
  assert len((folder / 'sft' / 'metrics.jsonl').read_text().splitlines()) == 30
  assert not [
    path
    for path in folder.iterdir()
    if path.suffix == '.partial' or path.name.startswith('.config')
  ]


def test_the_timeline_has_a_lane_for_each_and_the_report_draws_it(folder):
  lanes = timeline.read(folder / 'timeline.json')
  assert {'learner', 'packing', 'decoder', 'delivery'} < set(lanes)
  assert sum(lane.startswith('server ') for lane in lanes) >= 1
  assert sum(name == 'learn' for name, *_ in lanes['learner']) == 4
  assert {name for name, *_ in lanes['delivery']} == {'write', 'load'}
  assert 'class="timeline"' in (folder / 'report.html').read_text()


def test_the_report_is_one_page_that_fetches_nothing(folder):
  page = (folder / 'report.html').read_text()
  assert len(page) > 20_000
  assert not re.findall(
    r"""(?:src|href|srcset|action)\s*=\s*["']?\s*(?:https?:)?//""", page
  ) and not re.search(r'url\(\s*["\']?https?:', page)
  assert '<script src' not in page and '@import' not in page


def test_transformers_loads_the_export_and_agrees_on_the_logits(folder):
  hf = folder / 'hf'
  theirs = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
    hf, dtype=torch.float32
  ).eval()
  tok = transformers.AutoTokenizer.from_pretrained(hf)
  config, params = weights.load_hf(hf)
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  ids = tok(
    '<|im_start|>user\n<12.0 seconds><|vision_start|><|image_pad|><|vision_end|>What appears '
    'at 12?<|im_end|>\n'
  )['input_ids']
  assert ids.count(config.image_id) == 1
  torch.set_num_threads(1)
  with torch.no_grad():
    want = (
      theirs(
        input_ids=torch.tensor([ids]),
        mm_token_type_ids=torch.tensor([[int(i == config.image_id) for i in ids]]),
        pixel_values=torch.tensor(oracle.pixel_rows(np.stack([image, image]))),
        image_grid_thw=torch.tensor([[1, 2, 2]]),
        use_cache=False,
      )
      .logits[0]
      .numpy()
    )
  got = np.asarray(model.logits(config, params, np.array(ids, np.int32), [image]))
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_the_same_command_on_a_finished_run_prints_the_same_again_and_trains_nothing(folder, place):
  before = (folder / 'metrics.jsonl').read_bytes()
  status, out, _ = small_job.run(place, 'whole')
  assert status == 0 and out.splitlines()[-1] == 'runs/whole'
  assert (folder / 'metrics.jsonl').read_bytes() == before


def test_evaluations_are_results_folders_whose_comparison_is_the_runs_own_gain(folder, place):
  for name in ('before', 'after'):
    there = {path.name for path in (folder / f'eval_{name}').iterdir()}
    assert there >= {'plan.json', 'results.jsonl', 'summary.json', 'table.md', 'report.html'}
  words = ('--compare', 'runs/whole/eval_before', 'runs/whole/eval_after')
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.eval', *words],
    cwd=place,
    env=small_job.environment(),
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  told = json.loads((folder / 'eval_after' / 'compare_eval_before.json').read_text())
  gain = json.loads((folder / 'summary.json').read_text())['gain']
  assert {name: told['benchmarks']['heldout'][name] for name in gain} == gain
  assert told['settings'] == ['model.version: 0 -> 4']


def test_ctrl_c_and_kill_9_lose_nothing_and_change_nothing(folder, place):
  """kill -9 in the first evaluation, Ctrl-C after the first step, kill -9 after the third, then to
  the end: the curve of the uninterrupted run.
  """
  answers = place / 'runs' / 'cut' / 'eval_before' / 'results.jsonl'
  process = small_job.start(place, 'cut')
  small_job.wait_for(lambda: answers.exists() and answers.read_bytes().count(b'\n') >= 3, process)
  family = psutil.Process(process.pid).children(recursive=True)
  process.kill()
  process.wait(patience.seconds(60))
  psutil.wait_procs(family, timeout=patience.seconds(60))
  kept = answers.read_bytes()
  kept = kept[: kept.rindex(b'\n') + 1]

  process = small_job.start(place, 'cut')
  small_job.wait_for(lambda: len(small_job.records(place, 'cut')) >= 1, process)
  family = psutil.Process(process.pid).children(recursive=True)
  assert any('paravt_jax.serving.embedded.server' in ' '.join(child.cmdline()) for child in family)
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=patience.seconds(300))
  assert process.returncode == 130 and out == ''
  said = (place / 'cut.err').read_text()
  assert (
    'interrupted; the same command continues from the last checkpoint' in said
    and 'Traceback' not in said
  )
  assert list((place / 'runs' / 'cut' / 'checkpoints').glob('0000000[12]/host.json'))
  psutil.wait_procs(family, timeout=patience.seconds(60))
  assert [
    child.pid for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
  ] == []

  process = small_job.start(place, 'cut')
  small_job.wait_for(lambda: len(small_job.records(place, 'cut')) >= 3, process)
  family = psutil.Process(process.pid).children(recursive=True)
  process.kill()
  process.wait(patience.seconds(60))
  psutil.wait_procs(family, timeout=patience.seconds(60))
  assert [
    child.pid for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
  ] == []

  status, out, err = small_job.run(place, 'cut')
  assert status == 0, err[-4000:]
  written = answers.read_bytes()  # what was answered before the first kill was not asked again
  assert written.startswith(kept) and written.count(b'\n') == 18
  ours, theirs = small_job.records(place, 'cut'), small_job.records(place, 'whole')
  assert [row['step'] for row in ours] == [0, 1, 2, 3]
  for name in (
    'reward/total',
    'policy/loss',
    'policy/entropy',
    'length/sampled',
    'optim/grad_norm',
  ):
    np.testing.assert_allclose(
      [row[name] for row in ours], [row[name] for row in theirs], rtol=1e-4, atol=1e-4, err_msg=name
    )
  lines = lambda name: [
    (e.step, e.key) for e in episodes.read(place / 'runs' / name / 'episodes' / 'train.jsonl')
  ]
  assert sorted(lines('cut')) == sorted(lines('whole'))
  sides = [
    json.loads((place / 'runs' / name / 'summary.json').read_text()) for name in ('cut', 'whole')
  ]
  for side in ('before', 'after'):
    assert sides[0][side] == sides[1][side]


@pytest.mark.nightly
def test_a_cold_start_that_is_interrupted_goes_on_with_the_same_curve(folder, place):
  """The first 12 steps of the run's own cold start, cut by Ctrl-C after the third."""
  process = small_job.start(place, 'cold', entry='sft')
  small_job.wait_for(lambda: len(small_job.records(place, 'cold')) >= 3, process)
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=patience.seconds(300))
  assert (process.returncode, out) == (130, '') and 'Traceback' not in (
    place / 'cold.err'
  ).read_text()
  done = len(small_job.records(place, 'cold'))
  assert (
    3 <= done < 12
    and (place / 'runs' / 'cold' / 'checkpoints' / f'{done:08d}' / 'host.json').is_file()
  )
  status, out, err = small_job.run(place, 'cold', entry='sft')
  assert status == 0 and out == 'runs/cold/hf\n', err[-2000:]
  ours = small_job.records(place, 'cold')
  theirs = [
    json.loads(line) for line in (folder / 'sft' / 'metrics.jsonl').read_text().splitlines()
  ]
  assert [row['step'] for row in ours] == list(range(12))
  for name in ('sft/loss', 'sft/tokens', 'optim/grad_norm'):
    np.testing.assert_allclose(
      [row[name] for row in ours], [row[name] for row in theirs[:12]], rtol=1e-4, err_msg=name
    )
  assert {path.name for path in (place / 'runs' / 'cold' / 'hf').iterdir()} >= {
    'config.json',
    'model.safetensors',
    'tokenizer.json',
  }


def refused(result, *words):
  """Whether a command ended in one line with a way out, and status 2."""
  status, out, err = result
  last = err.replace('\r', '\n').strip().splitlines()[-1]
  assert (status, out) == (2, ''), err[-2000:]
  assert last.startswith('error: ') and all(word in last for word in words), last
  assert 'Traceback' not in err, err[-3000:]
  assert err.count('error: ') == 1


def test_a_run_that_was_begun_with_other_settings_is_refused(folder, place):
  before = (folder / 'config.json').read_bytes()
  refused(
    small_job.run(place, 'whole', reward__anchor_weight=0.25),
    'runs/whole was begun with other settings',
    'reward.anchor_weight: 0.5 -> 0.25',
    '--config.run.folder=DIR',
  )
  assert (folder / 'config.json').read_bytes() == before


def test_a_model_folder_that_is_missing_is_refused_and_the_mended_command_may_use_the_same_run_folder(
  folder, place
):
  refused(
    small_job.run(place, 'elsewhere', model__folder='/nowhere'),
    '--config.model.folder: /nowhere does not exist',
    'Hugging Face checkpoint folder',
  )
  refused(small_job.run(place, 'elsewhere', model__folder='/neither'), '/neither does not exist')


def test_a_port_in_use_is_refused(folder, place):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    refused(
      small_job.run(place, 'port', server__ports=f'({port},)'),
      f'cannot listen on 127.0.0.1:{port}',
      'set server.ports to free ones',
    )


def test_a_run_that_an_alarm_ends_leaves_its_page(folder, place):
  knobs = {'action': 'stop', 'steps': 1, 'floor': 100}
  knobs = {f'watch__calls__{name}': value for name, value in knobs.items()}
  status, out, err = small_job.run(place, 'alarm', eval__questions=0, **knobs)
  assert (status, out) == (2, ''), err[-2000:]
  page = place / 'runs' / 'alarm' / 'report.html'
  told = err.replace('\r', '\n').strip().splitlines()
  assert told[-1].startswith('error: ') and 'calls' in told[-1]
  assert told[-2] == 'report: runs/alarm/report.html' and 'Alarms: calls' in told[-3]
  assert 'too few calls per episode' in page.read_text()
  assert not (page.parent / 'summary.json').exists()  # the run is not finished


@pytest.mark.nightly
def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(folder, place):
  """Stood in for by a limit on the size of files: 4 MB hold no array of a checkpoint."""
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
  status, out, err = small_job.run(place, 'full', before=limit)
  last = err.replace('\r', '\n').strip().splitlines()[-1]
  assert (
    (status, out) == (2, '')
    and last.startswith('error: ')
    and 'could not be written' in last
    and 'free disk space' in last
  ), err
  assert 'Traceback' not in err, err
  run: pathlib.Path = place / 'runs' / 'full'
  assert [path.name for path in (run / 'checkpoints').iterdir() if path.name.isdigit()] == []
  assert all(
    (path / 'manifest.json').is_file()
    for path in (run / 'weights').iterdir()
    if path.name.isdigit()
  )
  assert not (run / 'summary.json').exists()
  status, out, err = small_job.run(place, 'full')
  assert status == 0 and out.splitlines()[-1] == 'runs/full', err[-2000:]
  assert [row['step'] for row in small_job.records(place, 'full')] == [0, 1, 2, 3]
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == [
    '00000002',
    '00000004',
  ]  # no remains either

"""Evaluations by their command, on a shortened main job and on small snapshots: equality with
training, kills, shards, errors, models.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from paravt_jax.eval import results
from paravt_jax.testing import tiny
from tests import patience
from tests.eval import fixtures
from tests.experiments import small_job
from tests.longvideo_reason.chat_server import ChatServer

pytestmark = pytest.mark.slow
ROOT = small_job.ROOT
WORLD = {**small_job.WORLD, 'eval.world_budgets': (4, 16), 'eval.world_questions': 6}
ALL = tuple(fixtures.GOLD)


def command(folder, knobs):
  given = {'run.folder': f'runs/{folder}', **knobs}
  return [
    sys.executable,
    '-m',
    'experiments.eval',
    f'--config={ROOT}/configs/eval.py',
    *(f'--config.{k}={v}' for k, v in given.items()),
  ]


def run(cwd, folder, **knobs):
  """(status, stdout, stderr) of an evaluation into runs/<folder>; knobs with '__' for dots."""
  done = subprocess.run(
    command(folder, {name.replace('__', '.'): value for name, value in knobs.items()}),
    cwd=cwd,
    env=small_job.environment(),
    capture_output=True,
    text=True,
    timeout=patience.seconds(1200),
  )
  return done.returncode, done.stdout, done.stderr


def tool(cwd, *arguments):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.eval', *arguments],
    cwd=cwd,
    env=small_job.environment(),
    capture_output=True,
    text=True,
    timeout=patience.seconds(600),
  )
  return done.returncode, done.stdout, done.stderr


def summary(cwd, folder):
  return json.loads((cwd / 'runs' / folder / 'summary.json').read_text())


def lines(cwd, folder):
  path = cwd / 'runs' / folder / 'results.jsonl'
  return (
    [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b'\n')]
    if path.exists()
    else []
  )


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('eval_job')


@pytest.fixture(scope='module')
def trained(place):
  """A finished run of the main job, shortened."""
  status, _, err = small_job.run(place, 'whole')
  assert status == 0, err[-4000:]
  return place / 'runs' / 'whole'


@pytest.fixture(scope='module')
def world(place, trained):
  """Its evaluation on the world, uninterrupted: (status, stdout, stderr)."""
  return run(place, 'world', model__folder='runs/whole/hf', **WORLD)


# The world


def test_the_exported_folder_earns_the_accuracy_that_its_training_run_reported(
  place, trained, world
):
  status, out, err = world
  assert status == 0, err[-4000:]
  ours, theirs = (
    summary(place, 'world')['world'],
    json.loads((trained / 'summary.json').read_text())['after'],
  )
  assert (ours['score'], ours['answered'], ours['samples']) == (
    theirs['accuracy'],
    theirs['episodes'],
    theirs['episodes'],
  )
  assert {k: cell['score'] for k, cell in ours['breakdowns']['k'].items()} == theirs[
    'accuracy_by_k'
  ]
  assert (ours['calls_per_sample'], ours['format_compliance']) == (
    theirs['calls_per_episode'],
    theirs['greedy_format_compliance'],
  )
  assert ours['interval'] == theirs['interval']
  kept = map(json.loads, (trained / 'eval_after' / 'results.jsonl').read_text().splitlines())
  before = [line['episode'] for line in kept if line['benchmark'] == 'heldout']
  words = lambda episode: (
    (episode['task']['id'], episode['budget']),
    [turn['text'] for turn in episode['turns']],
  )
  now = [json.loads(line)['episode'] for line in lines(place, 'world')]
  assert dict(map(words, now)) == dict(map(words, before))  # not only the mean: every word


def test_it_ends_with_a_table_a_page_how_fast_it_was_and_the_folder(place, world):
  status, out, err = world
  folder = place / 'runs' / 'world'
  assert out.splitlines()[-1] == 'runs/world' and (folder / 'table.md').read_text() in out
  assert (folder / 'report.html').stat().st_size > 10_000
  speed = json.loads((folder / 'speed.json').read_text())
  assert (
    speed['samples'] == 12
    and speed['samples_per_second'] > 0
    and speed['server_batch'] >= 1
    and speed['in_flight'] > 1
  )
  assert (
    set(speed['stages']) == {'wall', 'open', 'episode', 'reward'} and speed['frames']['decoded'] > 0
  )
  assert 'Traceback' not in err and small_job.nobody_is_left(place)


def test_the_same_command_again_asks_nothing_and_says_the_same(place, world):
  before = lines(place, 'world')
  status, out, err = run(place, 'world', model__folder='runs/whole/hf', **WORLD)
  assert (status, out) == (0, world[1]) and lines(place, 'world') == before


def test_a_run_folder_without_an_export_is_evaluated_from_its_last_record(place, trained, world):
  bare = place / 'runs' / 'bare'
  shutil.copytree(trained / 'checkpoints', bare / 'checkpoints')
  of_another_version(trained / 'config.json', bare / 'config.json')
  status, _, err = run(place, 'of_record', model__run='runs/bare', **WORLD)
  assert status == 0, err[-3000:]
  got, wanted = summary(place, 'of_record')['world'], summary(place, 'world')['world']
  assert {**got, 'fingerprint': ''} == {**wanted, 'fingerprint': ''}
  assert sorted(path.name for path in bare.iterdir()) == [
    'checkpoints',
    'config.json',
  ]  # a run is not written to


def test_settings_are_never_mixed(place, world):
  before = lines(place, 'world')
  status, out, err = run(
    place, 'world', model__folder='runs/whole/hf', **{**WORLD, 'agent.max_turns': 1}
  )
  assert (status, out) == (2, '')
  assert (
    'error: results folder runs/world was begun with other settings (agent.max_turns: 3 -> 1)'
    in err
  )
  assert lines(place, 'world') == before


@pytest.mark.nightly
def test_kill_9_loses_at_most_the_samples_in_flight(place, trained):
  knobs = {
    **WORLD,
    'model.folder': 'runs/whole/hf',
    'eval.world_budgets': (4, 8, 16, 32, 64),
    'eval.concurrent': 2,
  }
  with (place / 'cut.err').open('w') as log:
    process = subprocess.Popen(
      command('cut', knobs),
      cwd=place,
      env=small_job.environment(),
      stdout=subprocess.DEVNULL,
      stderr=log,
    )
    small_job.wait_for(lambda: len(lines(place, 'cut')) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait(patience.seconds(120))
  kept = [line for line in lines(place, 'cut') if b'"status":"answered"' in line]
  assert 3 <= len(kept) < 30 and not (place / 'runs' / 'cut' / 'summary.json').exists()
  with (place / 'runs' / 'cut' / 'results.jsonl').open('ab') as file:
    file.write(kept[0][:100])  # as if it had been cut while writing
  assert small_job.nobody_is_left(place)
  status, _, err = run(place, 'cut', **knobs)
  assert status == 0, err[-3000:]
  assert lines(place, 'cut')[: len(kept)] == kept and len(lines(place, 'cut')) == 30
  status, _, err = run(place, 'uncut', **knobs)
  assert status == 0 and summary(place, 'cut') == summary(place, 'uncut'), err[-3000:]


def of_another_version(source, target):
  """A recipe with knobs and a section that came, and others that went, where nothing is used."""
  values = json.loads(source.read_text())
  del values['agent']['max_turns'], values['client']
  values['agent']['of_tomorrow'] = values['new'] = 1
  target.write_text(json.dumps(values))


def test_shards_are_merged_to_the_whole(place, world):
  for number in (1, 2):
    status, _, err = run(
      place, f'part_shard{number}of2', model__folder='runs/whole/hf', shard=f'{number}/2', **WORLD
    )
    assert status == 0, err[-3000:]
  status, out, err = run(place, 'none', model__folder='runs/whole/hf', shard='99/99', **WORLD)
  assert (status, out) == (2, '') and '--config.shard=99/99: no sample is in this shard' in err
  assert not (place / 'runs' / 'none').exists()
  status, out, err = tool(place, '--merge', 'runs/part_shard1of2')
  assert status == 2 and 'not complete: shard 2/2 is not among the folders' in err
  older = place / 'runs' / 'part_shard1of2' / 'config.json'
  of_another_version(older, older)
  status, out, err = tool(place, '--merge', 'runs/part_shard1of2', 'runs/part_shard2of2')
  assert (status, out.splitlines()[-1]) == (0, 'runs/part'), err
  whole = summary(place, 'part')
  assert whole == summary(place, 'world')
  pictures = [
    (place / 'runs' / name / 'report.html').read_text().count('data:image/')
    for name in ('world', 'part')
  ]
  assert pictures[0] == pictures[1] > 0
  (place / 'runs' / 'part_shard1of2' / 'config.json').unlink()
  status, out, err = tool(
    place, '--merge', 'runs/part_shard1of2', 'runs/part_shard2of2', '--out', 'runs/again'
  )
  assert (
    (status, out) == (2, '')
    and 'config.json' in err
    and 'Traceback' not in err
    and not (place / 'runs' / 'again').exists()
  )
  status, out, _ = tool(place, '--compare', 'runs/world', 'runs/part')
  assert status == 0 and '| 0 | 0 | 1 | 12 | 0 |' in out and 'settings that differ: none' in out


def test_a_server_by_url_is_believed_only_if_it_says_what_the_model_would(place, trained, world):
  """Its name says nothing: another model there would have been scored under this one's hash."""
  tiny.build_model_folder(place / 'other', 7)
  knobs = {
    **WORLD,
    'model.folder': 'runs/whole/hf',
    'server.kind': 'url',
    'server.api_key': 'open sesame',
  }
  with small_job.serving(place, place / 'other', 'other.log') as server:
    status, out, err = run(place, 'by_url', **{**knobs, 'server.urls': f"('{server.url}',)"})
    assert (
      (status, out) == (2, '')
      and 'does' in err
      and 'serve another model' in err
      and 'Traceback' not in err
    ), err[-3000:]
  with small_job.serving(place, trained / 'hf', 'ours.log') as server:
    status, _, err = run(
      place, 'by_url', **{**knobs, 'server.urls': f"('{server.url}',)"}
    )  # nothing of the first try binds it
    assert status == 0, err[-3000:]
  assert summary(place, 'by_url')['world']['score'] == summary(place, 'world')['world']['score']


# Benchmarks


@pytest.fixture(scope='module')
def model(place):
  folder = place / 'model'
  tiny.build_model_folder(folder, 0)
  return folder


@pytest.fixture(scope='module')
def snapshots(place):
  """Paths of all snapshots, as knobs."""
  place = place / 'snapshots'
  found = {name: fixtures.snapshot(place, name) for name in ALL if name != 'videomme_wsub'}
  return {
    **{f'paths.{name}': path for name, path in found.items()},
    'paths.videomme_wsub': found['videomme'],
  }


def test_all_benchmarks_run_from_snapshots_as_they_are_published(place, model, snapshots):
  status, out, err = run(place, 'all', model__folder='model', benchmarks=','.join(ALL), **snapshots)
  assert status == 0, err[-4000:]
  found = summary(place, 'all')
  assert {name: row['samples'] for name, row in found.items()} == {
    name: len(gold) for name, gold in fixtures.GOLD.items()
  }
  for name, row in found.items():
    assert (
      row['answered'] == row['samples']
      and row['errors'] == 0
      and row['metric'] == ('mIoU' if name == 'charades' else 'accuracy')
    )
    assert (
      0 <= row['score'] <= 1 and row['score_official'] is not None and len(row['fingerprint']) == 16
    )
  golds = {
    (o.benchmark, o.id): o.gold for o in results.read(place / 'runs' / 'all' / 'results.jsonl')
  }
  assert golds == {
    (name, gold[0]): gold[1] for name, rows in fixtures.GOLD.items() for gold in rows
  }
  assert {'r@0.3', 'r@0.5', 'r@0.7', 'iou'} <= set(found['charades']['metrics'])
  assert set(found['mmvu']['breakdowns']['question_type']) >= {'multiple-choice', 'open-ended'}
  assert '| ParaVT-8B | published | 62.1 | 60.4 | 39.8 |' in out


def test_a_video_that_cannot_be_read_is_an_error_that_ends_with_status_1_and_is_tried_again(
  place, model, snapshots
):
  root = place / 'broken' / 'mlvu'
  shutil.copytree(snapshots['paths.mlvu'], root)
  knobs = {
    'model.folder': 'model',
    'benchmarks': 'mlvu',
    'paths.mlvu': root,
    'data.cache': place / 'broken' / 'cache',
  }
  status, _, err = run(place, 'mended', **{**knobs, 'run.folder': 'runs/probe'})
  assert status == 0, err[-3000:]
  [video] = (place / 'broken').rglob('order_12.mp4')
  whole = video.read_bytes()
  video.write_bytes(b'no video at all')
  status, out, err = run(place, 'mended', **knobs)
  assert (
    status == 1
    and 'above eval.max_error_rate=0.01' in err
    and out.splitlines()[-1] == 'runs/mended'
  )
  row = summary(place, 'mended')['mlvu']
  assert (row['samples'], row['answered'], row['errors'], row['reasons']) == (
    2,
    1,
    1,
    {'media_not_video': 1},
  )
  assert 'media_not_video' in out
  status, _, err = run(
    place,
    'mended',
    **{**knobs, 'benchmarks': 'lvbench', 'paths.lvbench': snapshots['paths.lvbench']},
  )
  assert status == 0, err[-3000:]  # that benchmark is whole, and the other's error is still told
  assert summary(place, 'mended')['mlvu'] == row
  shutil.rmtree(place / 'runs' / 'mended')
  status, out, err = run(place, 'mended', **knobs)
  assert status == 1
  video.write_bytes(whole)
  status, _, err = run(place, 'mended', **knobs)
  assert status == 0 and summary(place, 'mended') == summary(place, 'probe'), err[-3000:]
  assert len(lines(place, 'mended')) == 2


def test_missing_snapshots_are_named_at_once_before_anything_is_started(place, model):
  status, out, err = run(
    place, 'none', model__folder='model', benchmarks='mlvu,lvbench', data__root='nowhere'
  )
  assert (
    (status, out) == (2, '') and 'MLVU_dev' in err and 'LVBench' in err and 'Traceback' not in err
  )
  assert not (place / 'runs' / 'none').exists()


@pytest.mark.nightly
def test_a_server_that_speaks_the_openai_protocol_is_evaluated_by_its_name(place, model, snapshots):
  with ChatServer(
    lambda body, number: '<think>\nI look at it now.</think>\n<answer>B</answer>'
  ) as server:
    status, out, err = run(
      place,
      'chat',
      model__url=server.url,
      model__name='seer',
      model__tokenizer='model',
      benchmarks='mlvu',
      protocol__name='think',
      **snapshots,
    )
    assert status == 0, err[-3000:]
    assert len(server.bodies) == 2 and all(
      body['model'] == 'seer' and body['temperature'] == 0 for body in server.bodies
    )
  row = summary(place, 'chat')['mlvu']
  assert (row['score'], row['score_official'], row['errors']) == (
    0.5,
    0.5,
    0,
  )  # the golds are B and C


def test_wrong_input_is_one_line_and_leaves_no_folder(place, model):
  for knobs, said in (
    ({'protocol__name': 'tolls'}, 'did you mean tools?'),
    ({'shard': '0/2'}, '--config.shard'),
    ({'model__folder': 'nowhere'}, 'does not exist'),
  ):
    status, out, err = run(place, 'wrong', **{'model__folder': 'model', **knobs})
    assert (
      (status, out) == (2, '')
      and err.startswith('error: ')
      and err.count('\n') == 1
      and said in err
    )
  assert not pathlib.Path(place / 'runs' / 'wrong').exists()

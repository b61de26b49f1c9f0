"""The command: from a folder of videos to rows, through a kill, and one line for every wrong
input.
"""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from configs import bench
from configs import longvideo_reason as config
from experiments import launch
from experiments import longvideo_reason as entry
from paravt_jax.errors import ConfigError, DataError, RolloutError
from paravt_jax.longvideo_reason import pipeline, recipe
from paravt_jax.orchestrator.run_folder import last_owner, locked
from paravt_jax.testing import clips
from tests import patience, recipes
from tests.longvideo_reason.chat_server import ChatServer, Raw, good, kind

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
  'split.clip_seconds': 2.0,
  'split.snap_seconds': 0.2,
  'split.min_seconds': 0.5,
  'caption.frames': 2,
  'video.workers': 1,
  'vision.model': 'seer',
  'reasoner.model': 'thinker',
  'vision.concurrency': 1,
  'vision.backoff_s': 0.01,
  'vision.retries': 1,
  'vision.api_key': 'geheim',
  'reasoner.api_key': 'geheim',
}
ENVIRONMENT = {**os.environ, 'TEACHER_KEY': SMALL['vision.api_key']}


@pytest.fixture
def videos(tmp_path):
  folder = tmp_path / 'videos'
  folder.mkdir()
  for name in ('a.mp4', 'b.mp4'):
    clips.make_clip(folder / name, 4, 10, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 10)
  return folder


def command(videos, output, url, **changes):
  """The command line; a knob's '.' is written '__'."""
  knobs = {
    **SMALL,
    'vision.api_key': 'env:TEACHER_KEY',
    'reasoner.api_key': 'env:TEACHER_KEY',
    'videos': videos,
    'output': output,
    'vision.url': url,
    'reasoner.url': url,
    **{name.replace('__', '.'): value for name, value in changes.items()},
  }
  return [
    sys.executable,
    '-m',
    'experiments.longvideo_reason',
    '--config=configs/longvideo_reason.py',
    *(f'--config.{name}={value}' for name, value in knobs.items()),
  ]


def run(*arguments, **changes):
  return subprocess.run(
    command(*arguments, **changes),
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )


def outputs(folder):
  """{name: bytes} of the files that a run leaves for others."""
  return {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if path.suffix in ('.json', '.parquet') and path.name != 'config.json'
  }


def test_the_command_prints_a_table_and_the_files_and_writes_the_key_nowhere(tmp_path, videos):
  (videos / 'empty.mp4').write_bytes(b'')
  with ChatServer(api_key='geheim') as server:
    done = run(videos, tmp_path / 'out', server.url)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [
    str(tmp_path / 'out' / name)
    for name in (
      'captions.json',
      'questions.json',
      'longvideo_reason.json',
      'paravt_sft_longvideoreason.parquet',
      'paravt_rl_longvideoreason.parquet',
    )
  ]
  table = [line.split() for line in done.stderr.splitlines()[-6:]]
  assert [line[:5] for line in table] == [
    ['split', '3', '2', '0', '0'],
    ['caption', '4', '4', '0', '0'],
    ['merge', '2', '2', '0', '0'],
    ['ask', '2', '2', '0', '0'],
    ['parse', '2', '2', '0', '0'],
    ['rewrite', '2', '2', '0', '0'],
  ]
  assert 'not_video 1' in ' '.join(table[0]) and 'caption: 100%' in done.stderr
  assert not [
    path
    for path in (tmp_path / 'out').rglob('*')
    if path.is_file() and b'geheim' in path.read_bytes()
  ]
  assert 'geheim' not in done.stderr + done.stdout


def test_only_files_of_the_steps_that_ran_are_printed(tmp_path, videos, capsys):
  def printed(steps, model):
    entry.main(checked(videos, **knobs, steps=steps, vision__model=model))
    return [pathlib.Path(line).name for line in capsys.readouterr().out.splitlines()]

  rows = [
    'questions.json',
    'longvideo_reason.json',
    'paravt_sft_longvideoreason.parquet',
    'paravt_rl_longvideoreason.parquet',
  ]
  with ChatServer(models=('seer', 'watcher', 'thinker')) as server:
    knobs = {
      **SMALL,
      'vision.api_key': '',
      'reasoner.api_key': '',
      'output': str(tmp_path / 'out'),
      'vision.url': server.url,
      'reasoner.url': server.url,
    }
    assert printed(','.join(pipeline.STEPS), 'seer') == ['captions.json', *rows]
    assert printed('split,caption,merge', 'watcher') == [
      'captions.json'
    ]  # the others are there, and of other captions
    assert printed('split,caption', 'watcher') == [] and printed('ask,parse', 'watcher') == rows


@pytest.mark.parametrize(
  'victim, number',
  [
    ('caption', 3),
    pytest.param('ask', 5, marks=pytest.mark.slow),
    pytest.param('rewrite', 7, marks=pytest.mark.slow),
  ],
)
def test_a_kill_at_any_point_loses_the_items_in_flight_and_no_more(
  tmp_path, videos, victim, number
):
  """The server holds the reply to request `number` (from 0), so that the kill finds just the
  requests since then in flight.
  """
  reached = threading.Event()

  def script(body, count):
    if count < number:
      return good(body, count)
    reached.set()
    return Raw(hang=True)

  with ChatServer(script) as server:
    process = subprocess.Popen(
      command(videos, tmp_path / 'out', server.url, reasoner__concurrency=1),
      env=ENVIRONMENT,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    assert reached.wait(patience.seconds(300)), 'the request to be held never came'
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert kind(server.bodies[-1]) == victim and len(server.bodies) == number + 1
  with ChatServer() as server:
    done = run(videos, tmp_path / 'out', server.url)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == 8 - number
    whole = run(videos, tmp_path / 'whole', server.url)
  assert whole.returncode == 0
  assert outputs(tmp_path / 'out') == outputs(tmp_path / 'whole')


@pytest.mark.slow
def test_a_kill_while_videos_are_cut_changes_nothing_of_what_comes_out(tmp_path, videos):
  log = tmp_path / 'out' / 'journal' / 'split.jsonl'
  with ChatServer() as server:
    process = subprocess.Popen(
      command(videos, tmp_path / 'out', server.url, split__workers=1),
      env=ENVIRONMENT,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (log.exists() and log.stat().st_size):
      time.sleep(0.002)
    process.kill()
    process.wait()
    assert (
      run(videos, tmp_path / 'out', server.url).returncode
      == run(videos, tmp_path / 'whole', server.url).returncode
      == 0
    )
  assert outputs(tmp_path / 'out') == outputs(tmp_path / 'whole')


def test_a_folder_in_use_is_refused(tmp_path, videos):
  with locked(tmp_path / 'out'):
    owner = last_owner(tmp_path / 'out')
    done = run(videos, tmp_path / 'out', 'http://127.0.0.1:9/v1')
  assert done.returncode == 2 and owner
  assert (
    done.stderr
    == f'error: run folder {tmp_path}/out is in use by another process ({owner}); wait for it, or '
    'choose another with --config.output=DIR\n'
  )


def test_a_server_that_is_not_there_or_knows_no_such_model_is_one_line_before_anything_starts(
  tmp_path, videos
):
  done = run(videos, tmp_path / 'out', 'http://127.0.0.1:9/v1')
  assert (
    (done.returncode, done.stdout) == (2, '')
    and done.stderr.count('\n') == 1
    and 'no server answers there' in done.stderr
  )
  for keywords, wanted in (
    ({'models': ('other',)}, 'serves other; name one of these'),
    ({'api_key': 'x'}, 'answered 401: it wants a key'),
  ):
    with ChatServer(**keywords) as server, pytest.raises(RolloutError, match=wanted):
      entry.main(
        checked(
          videos, output=str(tmp_path / 'out'), vision__url=server.url, reasoner__url=server.url
        )
      )
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['.lock']


def test_nothing_at_all_is_an_error_after_the_table(tmp_path, videos):
  done = run(videos, tmp_path / 'out', '', steps='parse')
  assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
    'error: parse: nothing came out of 2 videos; the table above'
  )


def checked(folder, **changes):
  given = {
    'videos': str(folder),
    'vision.url': 'http://x/v1',
    'vision.model': 'm',
    'reasoner.url': 'http://x/v1',
    'reasoner.model': 'm',
    **{name.replace('__', '.'): value for name, value in changes.items()},
  }
  made = recipes.typed(config.get_config(), **{k.replace('.', '__'): v for k, v in given.items()})
  recipe.check(made)
  return made


@pytest.mark.parametrize(
  'knob, value, wanted',
  [
    ('videos', '', 'wanted a folder of videos'),
    ('videos', '/nowhere', 'wanted a folder of videos'),
    ('steps', 'split,capton', 'wanted some of split,'),
    ('steps', '', 'wanted some of split,'),
    ('media_root', '/usr', 'wanted a folder above the videos'),
    ('split.clip_seconds', 0.0, 'wanted above 0'),
    ('split.snap_seconds', 5.0, 'below half of clip_seconds'),
    ('split.workers', 0, 'wanted at least 1'),
    ('split.crf', 60, 'wanted 0 to 51'),
    ('split.max_fps', 0.0, 'wanted above 0'),
    ('caption.send', 'gif', "wanted 'frames' or 'video'"),
    ('caption.frames', 0, 'wanted at least 1'),
    ('caption.quality', 100, 'wanted 1 to 95'),
    ('caption.max_pixels', 100, 'wanted at least 1024'),
    ('ask.max_missing', 2.0, 'wanted a share, 0 to 1'),
    ('ask.prompt', 'x', 'a text that holds {captions}'),
    ('rewrite.prompt', '{question} {answer} {reasons}', 'a text that holds {options}'),
    ('video.backend', 'vlc', 'wanted one of pyav'),
    ('vision.url', '', 'the address of an OpenAI-compatible server'),
    ('reasoner.model', '', "the model's name"),
    ('vision.concurrency', 0, 'wanted at least 1'),
    ('reasoner.retries', -1, 'wanted at least 0'),
    ('reasoner.timeout_s', 0.0, 'wanted above 0'),
  ],
)
def test_a_knob_out_of_range_is_refused_by_name(videos, knob, value, wanted):
  with pytest.raises(ConfigError) as caught:
    checked(videos, **{knob: value})
  assert f'--config.{knob}=' in str(caught.value) and wanted in str(caught.value)


def test_clips_are_not_to_be_taken_for_videos(videos):
  with pytest.raises(
    ConfigError, match=r'--config.output=.*wanted a folder outside of that of the videos'
  ):
    checked(videos, output=str(videos / 'out'))


def test_servers_of_steps_that_do_not_run_need_not_be_named(videos):
  made = checked(videos, steps='merge, split', vision__url='', reasoner__url='')
  assert recipe.steps(made) == ('split', 'merge') and entry.clients(made) == {}
  assert list(entry.clients(checked(videos, steps='split,caption', reasoner__url=''))) == ['vision']


def test_a_recipe_of_another_entry_point_is_refused():
  with pytest.raises(ConfigError, match=r"no 'reasoner', .* such as configs/longvideo_reason.py"):
    launch.typed(recipe.LongVideoRecipe, bench.get_config())


def test_a_folder_without_videos_is_refused(tmp_path):
  with pytest.raises(DataError, match='no video in there, wanted files such as'):
    entry.find_videos(checked(tmp_path))


def test_the_table_says_what_changed_and_why_things_were_left_out():
  tally = pipeline.Tally(items=9, done=3, kept=2, waiting=1)
  tally.rejected.update({'short': 2})
  tally.failed.update({'timeout': 1})
  tally.again.update({'prompt': 3})
  assert entry.table({'caption': tally}).splitlines()[1] == (
    'caption        9       3       2       1  short 2 / timeout 1; made again, changed: prompt (3)'
  )

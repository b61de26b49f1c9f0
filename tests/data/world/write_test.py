"""A written world: the published layout, read by the real loading path; deterministic, atomic,
idempotent.
"""

import collections
import dataclasses
import errno
import hashlib
import json
import pathlib
import zipfile

import pyarrow.parquet as pq
import pytest

from paravt_jax.data import conversations, fields, rows, unpack
from paravt_jax.data.world import corpus, write
from paravt_jax.errors import ConfigError, DataError
from tests.data.world.small import WORLD, with_corpus

STRICT = fields.RowOptions(skip_bad_rows=False, require_media=True)


def digests(folder: pathlib.Path) -> dict[str, str]:
  files = [p for p in sorted(folder.rglob('*')) if p.is_file()]
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return write.write(tmp_path_factory.mktemp('w') / 'world', WORLD, 0, workers=0)


@pytest.fixture(scope='module')
def media(world, tmp_path_factory):
  root = tmp_path_factory.mktemp('m')
  unpack.unpack(world.folder / 'source', root)
  return root


def test_archives_and_members_carry_sentinel_paths(world):
  assert [p.name for p in world.archives] == [
    'selftrace_1.zip',
    'selftrace_2.zip',
    'selftrace_3.zip',
  ]
  with zipfile.ZipFile(world.archives[1]) as archive:
    assert archive.namelist() == [f'longvt_source/selftrace_2/world{i:05d}.mp4' for i in (2, 3)]


def test_rl_rows_are_read_back_as_the_tasks_that_were_drawn(world, media):
  maker = corpus.Writer(WORLD, corpus.draw_scenes(WORLD, 0), 0)
  for path, drawn in (
    (world.rl, maker.tasks(24, 0, 4, 'world')),
    (world.heldout, maker.tasks(10, 4, 2, 'heldout')),
  ):
    read = rows.rl_tasks([path], media, STRICT, collections.Counter())
    for got, wanted in zip(read, drawn, strict=True):
      for field in ('id', 'question', 'question_type', 'options'):
        assert getattr(got, field) == getattr(wanted, field)
      assert got.answer.replace(' ', '').strip('[]') == wanted.answer.replace(' ', '')
      assert (
        got.facts['cues'] == wanted.facts['cues']
        and got.facts['windows'] == wanted.facts['windows']
      )
      assert got.video == str(media / wanted.video)


def test_heldout_tasks_are_about_videos_that_nothing_else_shows(world, media):
  used = lambda path: {
    task.video for task in rows.rl_tasks([path], media, STRICT, collections.Counter())
  }
  shown = {
    part.path
    for row in conversations.sft_conversations(world.sft, media, STRICT, collections.Counter())
    for message in row.messages
    for part in message.parts
    if not isinstance(part, str)
  }
  assert used(world.heldout) and not used(world.heldout) & (used(world.rl) | shown)


def test_sft_rows_are_conversations_with_media_and_turns(world, media):
  read = conversations.sft_conversations(world.sft, media, STRICT, collections.Counter())
  kinds = collections.Counter(row.id.split('.')[0].removeprefix('paravt_sft_') for row in read)
  assert kinds == WORLD.corpus.sft_rows
  for row in read:
    assert row.messages[-1].role == 'assistant'
    video = next(
      part for message in row.messages for part in message.parts if not isinstance(part, str)
    )
    assert (video.start is None) == ('trace' in row.id or 'glance' in row.id)
    assert video.num_frames >= 1


def test_the_published_columns_and_parts(world):
  row = pq.read_table(world.rl).to_pylist()[0]
  assert set(row) == {'prompt', 'videos', 'extra_info'}
  assert row['prompt'][0]['role'] == 'user' and row['prompt'][0]['content'].startswith(
    '<video>What'
  )
  assert row['videos'] == [{'video': 'longvt_source/selftrace_1/world00000.mp4'}]
  assert {'answer', 'question_type'} <= set(json.loads(row['extra_info']))
  messages = json.loads(
    pq.read_table(world.folder / 'paravt_sft_subagent.parquet').to_pylist()[0]['messages']
  )
  part = messages[0]['content'][0]
  assert part['type'] == 'video_url' and set(part['video_url']) == {
    'url',
    'nframes',
    'video_start',
    'video_end',
  }


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(world, tmp_path):
  again = write.write(tmp_path / 'world', WORLD, 0, workers=2)
  assert digests(again.folder) == digests(world.folder)
  videos = WORLD.corpus.videos + WORLD.corpus.heldout_videos
  seen = []
  other = write.write(
    tmp_path / 'other', WORLD, 1, workers=0, progress=lambda done, total: seen.append((done, total))
  )
  assert (
    digests(other.folder)['paravt_rl_world.parquet']
    != digests(world.folder)['paravt_rl_world.parquet']
  )
  assert seen == [(2, videos), (4, videos), (6, videos)]


def test_writing_again_finds_the_world_and_changes_nothing(world):
  before = {p: p.stat().st_mtime_ns for p in world.folder.rglob('*')}
  assert write.write(world.folder, WORLD, 0, workers=0) == world
  assert {p: p.stat().st_mtime_ns for p in world.folder.rglob('*')} == before


def test_another_world_in_the_folder_is_refused(world):
  with pytest.raises(DataError, match='other options or another seed'):
    write.write(world.folder, WORLD, 1, workers=0)
  with pytest.raises(DataError, match=r'manifest\.json'):
    write.write(world.folder.parent, WORLD, 0, workers=0)


def test_a_kill_leaves_no_world_and_the_next_run_writes_it_whole(tmp_path):
  small = with_corpus(
    videos=2,
    heldout_videos=1,
    videos_per_archive=1,
    rl_tasks=4,
    heldout_tasks=2,
    sft_rows={'trace': 2},
  )

  def stop(done, total):
    if done == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write.write(tmp_path / 'world', small, 0, workers=0, progress=stop)
  assert not (tmp_path / 'world').exists()
  assert len(write.write(tmp_path / 'world', small, 0, workers=0).archives) == 3
  assert [p.name for p in tmp_path.iterdir()] == ['world']


def test_a_disk_that_refuses_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(write, 'write_archive', full)
  with pytest.raises(DataError, match=r'No space left on device.*nothing was left behind'):
    write.write(tmp_path / 'world', WORLD, 0, workers=0)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('sft_rows', [{'poem': 3}, {'lookup500': 3}])
def test_unknown_kinds_of_rows_are_refused_before_anything_is_written(tmp_path, sft_rows):
  with pytest.raises(ConfigError, match='sft_rows'):
    write.write(tmp_path / 'world', with_corpus(sft_rows=sft_rows), 0, workers=0)
  assert not list(tmp_path.iterdir())


def test_every_option_changes_the_fingerprint():
  base = write.fingerprint(WORLD, 0)
  noisy = dataclasses.replace(WORLD, scene=dataclasses.replace(WORLD.scene, noise=15.0))
  others = [
    write.fingerprint(WORLD, 1),
    write.fingerprint(noisy, 0),
    write.fingerprint(with_corpus(loose=0.4), 0),
  ]
  assert len({base, *others}) == 4

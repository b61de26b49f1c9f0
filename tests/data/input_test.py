"""The whole way of SFT data on real files: parquet, mp4 and png, lengths, decoding, the store of
frames, kills, hosts.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import sft
from paravt_jax.data.fields import RowOptions
from paravt_jax.data.table import Table
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.testing import clips, tiny
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore
from tests.data import sft_child

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = (32, 32)


def part(kind, name, **more):
  return {'type': f'{kind}_url', f'{kind}_url': {'url': f'selfqa/{name}', **more}}


def row(parts, answer='red'):
  return json.dumps(
    [
      {'role': 'user', 'content': [*parts, {'type': 'text', 'text': 'What appears?'}]},
      {'role': 'assistant', 'content': answer},
    ]
  )


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two parquet files over three videos and two images; some rows hold several of each, some are
  broken.
  """
  folder = tmp_path_factory.mktemp('input')
  media = folder / 'selfqa'
  media.mkdir()
  for number in range(3):
    clips.make_clip(
      media / f'{number}.mp4',
      8,
      4,
      SIZE,
      lambda i, first=100 * number: clips.counting_frame(i + first, SIZE),
      8,
    )
  (media / 'empty.mp4').write_bytes(b'')
  Image.fromarray(np.full((32, 32, 3), 50, np.uint8)).save(media / 'small.png')
  Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(media / 'large.png')
  a = [
    row([part('video', f'{i % 3}.mp4', nframes=1 + i % 8)], 'red ' * (1 + i % 5)) for i in range(24)
  ]
  b = [
    row(
      [
        part('video', '0.mp4', nframes=2),
        {'type': 'text', 'text': 'and'},
        part('video', '1.mp4', video_start=2, video_end=4),
        part('image', 'large.png'),
      ]
    ),
    row([part('image', 'small.png'), part('image', 'large.png')]),
    row([part('image', 'large.png')] * 3),
    row([part('video', 'empty.mp4')]),
    row([part('video', 'gone.mp4')]),
    '[{',
    *a[:4],
  ]
  for name, rows in (('a', a), ('b', b)):
    pq.write_table(pa.table({'id': range(len(rows)), 'messages': rows}), folder / f'{name}.parquet')
  tiny.build_tokenizer(folder / 'tok')
  return folder


@pytest.fixture(scope='module')
def pool():
  with DecodePool(2, 20.0, 'pyav') as pool:
    yield pool


def take(folder, frames, count, *, state=None, **options):
  data = sft_child.open_batches(folder, frames, **options)
  if state is not None:
    data.set_state(state)
  found = [next(data) for _ in range(count)]
  state = data.get_state()
  data.close()
  return found, state


def equal(one, other):
  return (
    one.used == other.used
    and one.arrays.keys() == other.arrays.keys()
    and all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
  )


def test_hosts_rows_one_after_the_other_are_the_batch_of_one_host_alone(made, pool):
  whole, state = take(made, pool, 4)
  halves = [take(made, pool, 4, shard=(i, 2)) for i in range(2)]
  for step, wanted in enumerate(whole):
    for name, array in wanted.arrays.items():
      np.testing.assert_array_equal(
        np.concatenate([part[step].arrays[name] for part, _ in halves], axis=1), array
      )
    assert all(part[step].used == wanted.used for part, _ in halves)
    assert sum(part[step].targets for part, _ in halves) == wanted.targets > 0
    assert sum(part[step].tokens for part, _ in halves) == wanted.tokens
  assert all(half == state for _, half in halves)


def test_a_run_goes_on_with_another_number_of_hosts(made, pool):
  whole, _ = take(made, pool, 4)
  _, state = take(made, pool, 2, shard=(1, 2))
  rest, _ = take(made, pool, 2, state=json.loads(json.dumps(state)))
  assert all(equal(one, other) for one, other in zip(whole[2:], rest))


def test_rows_that_do_not_divide_over_the_hosts_are_refused(made, pool):
  with pytest.raises(ConfigError, match=r'train\.rows: got 2, wanted a multiple of 3'):
    sft_child.open_batches(made, pool, shard=(0, 3))


def test_frames_from_the_store_are_bit_for_bit_those_of_the_decoder(made, pool, tmp_path):
  wanted, _ = take(made, pool, 4)
  stores = [FrameStore(tmp_path / 'frames', pool, 0) for _ in range(2)]
  for store in stores:
    assert all(equal(one, other) for one, other in zip(wanted, take(made, store, 4)[0]))
  assert stores[0].counts['decoded'] > 0 and stores[1].counts['disk'] > 0


def test_several_videos_and_images_of_a_row_stand_where_the_row_has_them(made, pool):
  rows = Table([made / 'b.parquet'], made, RowOptions(True, False))
  tok = ChatTokenizer.load(made / 'tok')
  sample = sft.sample(tok, rows[0], sft.decoded(pool, sft_child.FRAMES), sft_child.FRAMES)
  assert [clips.read_count(image) for image in sample.images[:5]] == [8, 24, 108, 112, 116]
  assert sample.images[5].shape == (64, 64, 3) and int(sample.images[5].mean()) == 200
  text = tok.decode(sample.ids)
  order = [
    text.index(word)
    for word in (
      '<2.0 seconds>',
      '<6.0 seconds>',
      'and',
      '<3.0 seconds>',
      '<4.0 seconds>',
      'What appears?',
    )
  ]
  assert order == sorted(order)


def test_large_images_lie_in_slots_of_their_own(made, pool):
  found, _ = take(made, pool, 12)
  large_grids = np.concatenate(
    [batch.arrays['large_image_grids'].reshape(-1, 2) for batch in found]
  )
  grids = np.concatenate([batch.arrays['grids'].reshape(-1, 2) for batch in found])
  assert set(map(tuple, large_grids)) == {(0, 0), (4, 4)} and set(map(tuple, grids)) == {
    (0, 0),
    (2, 2),
  }
  values = np.concatenate(
    [
      batch.arrays['large_images'][batch.arrays['large_image_grids'][..., 0] > 0].ravel()
      for batch in found
    ]
  )
  assert set(np.unique(values)) == {200}


def test_slots_too_small_for_the_pixels_are_refused_before_anything_starts(made, pool):
  with pytest.raises(ConfigError, match=r'video.max_pixels: got 2048, wanted at most 1024'):
    sft_child.open_batches(
      made, pool, options=dataclasses.replace(sft_child.FRAMES, max_pixels=2048)
    )
  with pytest.raises(
    ConfigError,
    match=r'frames.image_max_pixels: got 8192, wanted at most 4096.*train.large_image_patches',
  ):
    sft_child.open_batches(
      made, pool, options=dataclasses.replace(sft_child.FRAMES, image_max_pixels=8192)
    )


def test_every_dropped_row_has_a_reason_and_an_example(made, pool):
  found, state = take(made, pool, 16)
  dropped = {reason for batch in found for reason in batch.dropped}
  assert dropped == {'media_missing', 'too_many_images', 'media_not_video', 'not_json'}
  lines = {reason: line for batch in found for reason, line in batch.examples.items()}
  assert lines.keys() == dropped
  assert (
    lines['media_missing'].startswith('b\tb.parquet:4\tmedia_missing\t')
    and 'gone.mp4' in lines['media_missing']
  )
  assert sum(state['bad'].values()) == sum(
    sum(batch.dropped.values()) - batch.dropped.get('too_many_images', 0) for batch in found
  )


def child(folder, steps):
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.data.sft_child', str(folder), str(steps)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )


def test_a_run_killed_at_any_point_goes_on_with_bit_equal_batches(made, pool, tmp_path):
  """SIGKILL in the middle, twice, with whatever was being decoded, written and made ahead; then on
  to the end.
  """
  for name in ('a.parquet', 'b.parquet', 'selfqa', 'tok'):
    (tmp_path / name).symlink_to(made / name)
  for said in (2, 3):
    process = child(tmp_path, 100)
    for _ in range(said):
      process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
  record = json.loads((tmp_path / 'record.json').read_text())
  assert len(record['digests']) >= 5
  more = len(record['digests']) + 4
  with child(tmp_path, more) as process:
    process.stdout.read()
  assert process.returncode == 0
  record = json.loads((tmp_path / 'record.json').read_text())
  wanted, _ = take(tmp_path, pool, more)
  assert record['digests'] == [sft_child.digest(batch) for batch in wanted]


def test_a_run_does_not_go_on_when_a_data_file_has_changed(made, pool, tmp_path):
  for name in ('b.parquet', 'selfqa', 'tok'):
    (tmp_path / name).symlink_to(made / name)
  table = pq.read_table(made / 'a.parquet')
  pq.write_table(table, tmp_path / 'a.parquet')
  _, state = take(tmp_path, pool, 1)
  take(tmp_path, pool, 1, state=state)
  pq.write_table(table.slice(1), tmp_path / 'a.parquet')
  with pytest.raises(
    DataError,
    match=r"source 'a' is not what the checkpoint was drawn from \(a.parquet has changed\)",
  ):
    take(tmp_path, pool, 1, state=state)

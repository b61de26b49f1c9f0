"""The cold start: sources from a manifest, knobs that cannot be, and the batches of
the 8B recipe.
"""

import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import sft as recipes
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.orchestrator import checks, cold_start, run_folder, sft_data
from paravt_jax.testing import clips, tiny
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore
from tests.recipes import typed


def row(kind, name, text='What?'):
  value = {'type': f'{kind}_url', f'{kind}_url': {'url': f'selfqa/{name}'}}
  return json.dumps(
    [
      {'role': 'user', 'content': [value, {'type': 'text', 'text': text}]},
      {'role': 'assistant', 'content': 'red'},
    ]
  )


@pytest.fixture
def data(tmp_path):
  """A folder with a media root, two shards of one source and one of another, and their manifest."""
  (tmp_path / 'media' / 'selfqa').mkdir(parents=True)
  clips.make_clip(
    tmp_path / 'media' / 'selfqa' / 'a.mp4',
    4,
    4,
    (64, 96),
    lambda i: np.full((64, 96, 3), 9 * i, np.uint8),
    8,
  )
  Image.new('RGB', (700, 500), (9, 9, 9)).save(tmp_path / 'media' / 'selfqa' / 'a.png')
  rows = {
    'x_1': [row('video', 'a.mp4')] * 30,
    'x_2': [row('video', 'gone.mp4'), *[row('image', 'a.png')] * 9],
    'y': ['{', *[row('video', 'a.mp4', 'Y?')] * 19],
  }
  for name, values in rows.items():
    pq.write_table(pa.table({'messages': values}), tmp_path / f'paravt_sft_{name}.parquet')
  write(
    tmp_path, {'x': {'files': ['paravt_sft_x_*.parquet']}, 'y': {'files': ['paravt_sft_y.parquet']}}
  )
  return tmp_path


def write(folder, sources):
  (folder / 'mix.json').write_text(json.dumps({'sources': sources}))


def recipe(data, **knobs):
  """The 8B recipe on the data; `sources` as a dict, other knobs by their paths."""
  made = recipes.get_config('8b')
  made.data.update(
    {
      'manifest': str(data / 'mix.json'),
      'media_root': str(data / 'media'),
      'cache_folder': str(data / 'cache'),
      'skip_bad_rows': True,
    }
  )
  made.train.update(
    {'rows': 1, 'micro_batches': 2, 'row_tokens': 2048, 'row_images': 16, 'row_large_images': 2}
  )
  made.mesh.fsdp = 1
  made.video.update({'workers': 2, 'cache_folder': str(data / 'frames')})
  made.sources = ConfigDict(knobs.pop('sources', {}))
  return typed(made, **knobs)


def found(recipe):
  return {
    source.name: (source.weight, source.first, source.last, len(source.conversations))
    for source in sft_data.sources(recipe)
  }


def test_without_weights_sources_are_drawn_in_proportion_to_their_rows(data):
  assert found(recipe(data)) == {'x': (40.0, 0, None, 40), 'y': (20.0, 0, None, 20)}


def test_weights_and_steps_come_from_the_manifest_and_the_recipe_goes_over_it(data, capsys):
  write(
    data,
    {
      'x': {'files': ['paravt_sft_x_*.parquet'], 'weight': 2, 'last': 9},
      'y': {'files': ['paravt_sft_y.parquet'], 'first': 3},
    },
  )
  assert found(recipe(data)) == {'x': (2.0, 0, 9, 40), 'y': (1.0, 3, None, 20)}
  assert found(recipe(data, sources={'y': (0.5, 1, 4)}))['y'] == (0.5, 1, 4, 20)
  assert found(recipe(data, sources={'z': (0.5, 1, 4)})) == {
    'x': (2.0, 0, 9, 40),
    'y': (1.0, 3, None, 20),
  }
  assert capsys.readouterr().err == 'sources: no data is named z (there is x, y); left out\n'


def test_files_of_the_command_line_are_a_source_each(data):
  files = tuple(str(data / f'paravt_sft_{name}.parquet') for name in ('y', 'x_1'))
  assert found(recipe(data, **{'data.manifest': '', 'data.train': files})).keys() == {'y', 'x_1'}


@pytest.mark.parametrize(
  ('knob', 'value'),
  [
    ('data.max_bad_share', 1.5),
    ('data.max_bad_share', -0.1),
    ('video.cache_gb', -1),
    ('batches.lookahead', 0),
    ('batches.prefetch', 0),
    ('data.train', ('a.parquet',)),
    ('train.micro_batches', 0),
    ('train.row_large_images', -1),
    ('frames.rate', 0.0),
    ('frames.min_frames', 0),
    ('frames.image_max_pixels', 10),
    ('video.max_pixels', 1000),
    ('sources.x', (1.0,)),
  ],
)
def test_a_knob_that_cannot_be_is_refused_before_anything_is_made(data, knob, value):
  checks.check_sft(recipe(data))
  changes = {'sources': {'x': value}} if knob == 'sources.x' else {knob: value}
  with pytest.raises(ConfigError, match='data.manifest' if knob == 'data.train' else knob):
    checks.check_sft(recipe(data, **changes))


def test_a_manifest_that_is_wrong_is_one_line(data):
  write(data, {'x': {'files': ['none*.parquet']}})
  with pytest.raises(
    DataError, match=r"manifest .*mix.json: sources.x.files: nothing matches 'none\*.parquet'"
  ):
    sft_data.sources(recipe(data))


def test_the_8b_recipe_makes_batches_of_its_files_from_the_store_of_frames(data, tmp_path):
  made = recipe(data)
  tiny.build_tokenizer(tmp_path / 'tok')
  tok, folder = ChatTokenizer.load(tmp_path / 'tok'), str(tmp_path / 'tok')
  with DecodePool(1, 20.0, 'pyav') as pool:
    frames = sft_data.frame_source(made, pool)
    assert isinstance(frames, FrameStore)
    for _ in range(2):
      made_batches = sft_data.make_batches(made, sft_data.sources(made), tok, frames, base=folder)
      batch = next(made_batches)
      made_batches.close()
  assert batch.arrays['tokens'].shape == (2, 1, 2048) and batch.arrays['patches'].shape == (
    2,
    1,
    16,
    196,
    1,
    768,
  )
  assert batch.arrays['large_images'].shape == (2, 1, 2, 4096, 1, 768)
  assert {tuple(grid) for grid in batch.arrays['large_image_grids'].reshape(-1, 2)} <= {
    (0, 0),
    (32, 44),
  }  # 704 x 512: not shrunk
  assert {tuple(grid) for grid in batch.arrays['grids'].reshape(-1, 2)} <= {(0, 0), (4, 6)}
  assert batch.used == 2 and batch.samples.keys() == {'x', 'y'}
  assert len(list((data / 'cache' / 'rows').iterdir())) == 3 and list(
    (data / 'cache' / 'lengths').iterdir()
  )
  assert list((data / 'frames').rglob('*.npz'))


def test_the_first_row_of_each_reason_is_listed_once_over_restarts(tmp_path):
  path = tmp_path / 'skipped_rows.txt'
  lines = {
    'schema': 'x\ta.parquet:3\tschema\tgot\n3',
    'media_missing': 'x\ta.parquet:4\tmedia_missing\tно file',
  }
  skipped = cold_start.Skipped(path)
  skipped.add({'schema': lines['schema']})
  skipped.add({**lines, 'schema': 'x\ta.parquet:9\tschema\tanother'})
  cold_start.Skipped(path).add(lines)
  assert (
    path.read_text() == 'x\ta.parquet:3\tschema\tgot 3\nx\ta.parquet:4\tmedia_missing\tно file\n'
  )


def test_a_finished_cold_start_is_only_read_so_that_several_runs_begin_from_it_at_once(tmp_path):
  folders = {'run__folder': str(tmp_path / 'run'), 'model__folder': str(tmp_path / 'base')}
  small = typed(recipes.get_config(), **folders)
  with run_folder.locked(tmp_path / 'run'):
    with pytest.raises(ConfigError, match='in use by another process'):  # it is under way elsewhere
      cold_start.cold_start(small)
    (tmp_path / 'run' / 'hf').mkdir()
    (tmp_path / 'run' / 'checkpoints').mkdir()
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(run_folder.to_json(small)))
    assert cold_start.cold_start(small) == tmp_path / 'run' / 'hf'
    with pytest.raises(ConfigError, match=r'begun with other settings \(steps: 400 -> 7\)'):
      cold_start.cold_start(small.replace(steps=7))


def test_rows_that_are_too_long_are_told_at_the_first_and_above_a_share(capsys):
  told = cold_start.LeftOut(0, 0)
  told.tell({'missing_media': 3}, 40, {})
  assert capsys.readouterr().err == ''
  example = {'too_long': 's\tx.parquet:7\ttoo_long\t9000 tokens, a row holds 8192'}
  told.tell({'too_long': 1}, 50, example)
  assert capsys.readouterr().err == (
    '\nsft: left out as too long: x.parquet:7 (9000 tokens, a row holds 8192); more are only '
    'counted '
    '(data/skipped)\n'
  )
  told.tell({'too_long': 5}, 100, example)
  assert capsys.readouterr().err == ''
  told.tell({'too_long': 4, 'too_many_images': 3}, 120, example)
  assert capsys.readouterr().err.startswith(
    '\nsft: warning: 7 of 120 rows drawn were left out as too long, more than 0.05 of them; raise '
    'train.row_tokens'
  )
  told.tell({'too_long': 60}, 200, example)
  cold_start.LeftOut(7, 120).tell({'too_long': 60}, 200, example)
  assert capsys.readouterr().err == ''


class FakeTrainer:
  """Puts arrays nowhere, and logs it."""

  def __init__(self):
    self.put_batches = []
    self.reached = threading.Event()

  def put(self, arrays, used):
    self.put_batches.append(int(arrays['tokens'][0]))
    if len(self.put_batches) > 1:
      self.reached.set()
    return {'tokens': arrays['tokens']}


class FakeData:
  """Batches 0, 1, 2 and then an error; its state is the number of the batches returned."""

  def __init__(self):
    self.returned = 0

  def __next__(self):
    if self.returned == 3:
      raise DataError('no more')
    self.returned += 1
    arrays = {'tokens': np.array([self.returned - 1])}
    return batches.Batch(arrays, 1, 0, {}, 1, 1, {}, {}, 1.0, 0)

  def get_state(self):
    return {'drawn': self.returned}


def test_the_next_batch_goes_to_the_devices_while_the_step_runs_and_its_position_waits():
  trainer = FakeTrainer()
  with cold_start.Ahead(trainer, FakeData(), 5) as ahead:
    first = ahead.next()
    assert trainer.reached.wait(20)  # nothing asked for the second batch yet
    assert (int(first.inputs['tokens'][0]), first.where) == (0, {'drawn': 1})
    assert not first.batch.arrays  # the host keeps no copy
    assert [ahead.next().where['drawn'] for _ in range(2)] == [2, 3]
    with pytest.raises(DataError, match='no more'):
      ahead.next()


def test_no_batch_is_made_beyond_the_last_step():
  trainer, data = FakeTrainer(), FakeData()
  with cold_start.Ahead(trainer, data, 2) as ahead:
    ahead.next()
    ahead.next()
    with pytest.raises(IndexError):
      ahead.next()
  assert data.returned == 2

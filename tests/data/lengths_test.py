"""Sizes of rows: those that packing will find, measured once, kept with what they were measured
on.
"""

import concurrent.futures
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paravt_jax import packing
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import lengths, sft
from paravt_jax.data.fields import RowOptions
from paravt_jax.data.lengths import Size
from paravt_jax.data.table import Table
from paravt_jax.errors import DataError, MediaError
from paravt_jax.testing import tiny
from tests.data.sft_test import Fake

OPTIONS = sft.FrameOptions(
  rate=1.0,
  min_frames=1,
  max_frames=16,
  image_max_pixels=4096,
  think_prefix='<think>\n',
  min_pixels=1024,
  max_pixels=1024,
)


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tok')
  tiny.build_tokenizer(folder)
  return ChatTokenizer.load(folder)


@pytest.fixture(scope='module')
def pool():
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    yield pool


class Counting(Fake):
  """Counts what it is asked for; `missing` paths have no video."""

  def __init__(self):
    super().__init__()
    self.probed = []

  def probe_sync(self, path):
    self.probed.append(path)
    return super().probe_sync('missing' if path.endswith('gone.mp4') else path)


def video(name, frames=4, answer='red'):
  return [
    {
      'role': 'user',
      'content': [
        {'type': 'video_url', 'video_url': {'url': f'selfqa/{name}.mp4', 'nframes': frames}}
      ],
    },
    {'role': 'assistant', 'content': answer},
  ]


def image(name):
  return [
    {
      'role': 'user',
      'content': [
        {'type': 'image_url', 'image_url': {'url': f'selfqa/{name}.png'}},
        {'type': 'text', 'text': 'What?'},
      ],
    },
    {'role': 'assistant', 'content': 'red'},
  ]


@pytest.fixture
def root(tmp_path):
  (tmp_path / 'selfqa').mkdir()
  for name in 'abc':
    (tmp_path / 'selfqa' / f'{name}.mp4').write_bytes(b'video')
  Image.new('RGB', (32, 32)).save(tmp_path / 'selfqa' / 'small.png')
  Image.new('RGB', (64, 64)).save(tmp_path / 'selfqa' / 'large.png')
  return tmp_path


ROWS = [
  video('a'),
  video('b', 2),
  image('small'),
  image('large'),
  video('gone'),
  [{'role': 'user', 'content': 'x'}],
  'no json',
]


def table(root, rows=ROWS, name='a.parquet'):
  values = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  pq.write_table(pa.table({'messages': values}), root / name)
  return Table([root / name], root, RowOptions(skip_bad_rows=True, require_media=False))


def make(rows, tok, frames, pool, *, folder=None, options=OPTIONS, tokenizer='t', skip=True):
  cache = lengths.Cache(folder, tokenizer) if folder else None
  return lengths.Lengths(rows, tok, frames, options, 4, skip, pool, cache)


def sizes(rows, *arguments, **options):
  found = make(rows, *arguments, **options)
  try:
    return [found.size(i) for i in range(len(rows))]
  finally:
    found.close()


def test_a_size_is_what_packing_will_find(root, tok, pool):
  rows = table(root)
  got = sizes(rows, tok, Fake(), pool)
  for i in range(4):
    sample = sft.sample(tok, rows[i], sft.decoded(Fake(), OPTIONS), OPTIONS)
    assert (got[i].tokens, got[i].frames, got[i].large_images) == packing.sizes(
      packing.Tree(sample), 4
    )
  assert [(size.frames, size.large_images) for size in got[:4]] == [(4, 0), (2, 0), (1, 0), (0, 1)]
  assert got[3].tokens == got[2].tokens + 3  # 64 x 64 pixels are four tokens


def test_a_row_that_cannot_be_used_has_a_reason_and_says_it_in_words(root, tok, pool):
  rows = table(
    root, [*ROWS, [*video('a')[:1], {'role': 'assistant', 'content': []}], video('../../x')]
  )
  got = sizes(rows, tok, Counting(), pool)
  assert [size.reason for size in got] == [
    '',
    '',
    '',
    '',
    'media_missing',
    'schema',
    'not_json',
    'schema',
    'media_path',
  ]
  assert (
    'missing' in got[4].fault
    and 'wanted a user and, last, an assistant' in got[5].fault
    and 'JSON' in got[6].fault
  )


def test_a_row_that_breaks_the_schema_is_raised_where_such_rows_are_not_skipped(root, tok, pool):
  found = make(table(root), tok, Fake(), pool, skip=False)
  with pytest.raises(
    DataError, match=r'row a.parquet:6: messages: got .*wanted JSON.*set data.skip_bad_rows=True'
  ):
    found.size(6)
  found.ask([5])
  with pytest.raises(DataError, match=r'row a\.parquet:5'):
    found.size(5)


class Silent(Fake):
  """A disk that does not answer."""

  def probe_sync(self, path):
    raise MediaError(f'{path}: no answer after 30 s', 'timeout')


def test_a_passing_failure_is_a_reason_alone_and_ends_the_run_where_other_hosts_may_have_read_the_file(
  root, tok, pool
):
  assert make(table(root), tok, Silent(), pool).size(0).reason == 'media_timeout'
  among = lengths.Lengths(table(root), tok, Silent(), OPTIONS, 4, True, pool, None, alone=False)
  with pytest.raises(
    DataError, match=r'a\.mp4: no answer after 30 s; every host must plan the same batches'
  ):
    among.size(0)


def test_rows_asked_for_ahead_are_measured_by_the_pool_once(root, tok, pool):
  frames = Counting()
  found = make(table(root), tok, frames, pool)
  found.ask([0, 1, 0])
  found.ask([1])
  concurrent.futures.wait(list(found._asked.values()))
  assert sorted(path[-5] for path in frames.probed) == ['a', 'b']
  assert [found.size(i).frames for i in (0, 1, 0)] == [4, 2, 4] and len(frames.probed) == 2


def test_the_next_run_measures_nothing_again(root, tok, pool, tmp_path):
  first = sizes(table(root), tok, Counting(), pool, folder=tmp_path / 'cache')
  frames = Counting()
  assert sizes(table(root), tok, frames, pool, folder=tmp_path / 'cache')[:4] == first[:4]
  assert [path[-8:] for path in frames.probed] == ['gone.mp4']  # a fault is looked at again


def test_a_file_that_was_replaced_or_mended_is_measured_again(root, tok, pool, tmp_path):
  sizes(table(root), tok, Counting(), pool, folder=tmp_path / 'cache')
  (root / 'selfqa' / 'b.mp4').write_bytes(b'another video')
  Image.new('RGB', (32, 64)).save(root / 'selfqa' / 'large.png')
  frames = Fake()  # for which no video is missing
  frames.probe_sync = (lambda ask: lambda path: (probed.append(path[-5]), ask(path))[1])(
    frames.probe_sync
  )
  probed = []
  got = sizes(table(root), tok, frames, pool, folder=tmp_path / 'cache')
  assert probed == ['b', 'e'] and got[4].frames == 4
  assert got[3].tokens == got[2].tokens + 1


@pytest.mark.parametrize(
  'change',
  [
    {
      'options': sft.FrameOptions(
        rate=1.0,
        min_frames=1,
        max_frames=16,
        image_max_pixels=1024,
        think_prefix='<think>\n',
        min_pixels=1024,
        max_pixels=1024,
      )
    },
    {'tokenizer': 'another'},
  ],
)
def test_other_options_or_another_tokenizer_are_measured_apart(root, tok, pool, tmp_path, change):
  sizes(table(root), tok, Fake(), pool, folder=tmp_path / 'cache')
  frames = Counting()
  sizes(table(root), tok, frames, pool, folder=tmp_path / 'cache', **change)
  assert len(frames.probed) == 3 and len(list((tmp_path / 'cache' / 'lengths').iterdir())) == 2


def test_two_runs_on_one_folder_keep_what_each_has_measured(root, tok, pool, tmp_path):
  one, other = (make(table(root), tok, Fake(), pool, folder=tmp_path / 'cache') for _ in range(2))
  one.size(0), other.size(1)
  one.close(), other.close()
  frames = Counting()
  third = make(table(root), tok, frames, pool, folder=tmp_path / 'cache')
  assert third.size(0).frames + third.size(1).frames == 6 and frames.probed == []


def test_a_damaged_index_is_written_anew_and_says_from_what_it_was_made(
  root, tok, pool, tmp_path, caplog
):
  sizes(table(root), tok, Fake(), pool, folder=tmp_path / 'cache')
  (file,) = (tmp_path / 'cache').rglob('*.npz')
  file.write_bytes(file.read_bytes()[:200])
  sizes(table(root), tok, Fake(), pool, folder=tmp_path / 'cache')
  with np.load(file) as found:
    record = json.loads(str(found['provenance']))
    assert (
      found['known'].tolist() == [True] * 5 + [False] * 2
    )  # what breaks the schema is never kept
  assert (
    record['tool'] == 'data.lengths'
    and record['inputs'][0]['path'] == 'a.parquet'
    and record['options']['tokenizer'] == 't'
  )
  assert not caplog.records


def test_a_folder_that_cannot_be_written_costs_one_warning_and_no_run(
  root, tok, pool, tmp_path, caplog
):
  (tmp_path / 'file').write_bytes(b'')
  assert sizes(table(root), tok, Fake(), pool, folder=tmp_path / 'file')[0].frames == 4
  assert len(caplog.records) == 1 and 'data.cache_folder' in caplog.text


def test_a_row_without_a_target_is_kept_as_such(root, tok, pool, tmp_path, monkeypatch):
  monkeypatch.setattr(
    lengths.sft,
    'sample',
    lambda tok, row, media, options: packing.Sample(
      np.zeros(3, np.int32), (), {sft.MASK: np.zeros(3, np.float32)}
    ),
  )
  wanted = Size(0, 0, 0, 'no_target', 'no token of it is a target')
  for _ in range(2):
    assert sizes(table(root, ROWS[:1]), tok, Fake(), pool, folder=tmp_path / 'cache') == [wanted]

"""Batches: deterministic, resumable to the sample, mixed by weight, packed; what is left out is
counted.
"""

import asyncio
import collections
import dataclasses
import hashlib
import json

import numpy as np
import pytest

from configs import base
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, planner
from paravt_jax.data.conversations import Conversation, Message, VideoRef
from paravt_jax.data.fields import RowOptions
from paravt_jax.data.table import Table
from paravt_jax.data.world import corpus, questions, scene, traces, write
from paravt_jax.errors import ConfigError, DataError, MediaError
from paravt_jax.orchestrator import sft_data
from paravt_jax.testing import tiny
from paravt_jax.types import Clip
from tests.data.sft_test import OPTIONS, Fake
from tests.recipes import typed

SIZES = batches.BatchOptions(
  micro_batches=2,
  rows=2,
  row_tokens=128,
  row_images=24,
  image_patches=4,
  row_large_images=0,
  large_image_patches=0,
  lookahead=4,
  refill=False,
  prefetch=2,
  shapes=1,
  workers=2,
  skip_bad_rows=False,
  max_bad_share=1.0,
)
FEW_IMAGES = dataclasses.replace(SIZES, row_images=12)


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tok')
  tiny.build_tokenizer(folder)
  return ChatTokenizer.load(folder)


def row(name, i, frames=4, text='red.', path='v'):
  messages = (
    Message('user', (VideoRef(path, frames, None, None), f'What appears at {i}?')),
    Message('assistant', (text,)),
  )
  return Conversation(f'{name}:{i}', messages)


def source(name, count=40, weight=1.0, first=0, last=None, **kinds):
  return batches.Source(name, [row(name, i, **kinds) for i in range(count)], weight, first, last)


def run(
  tok,
  sources,
  steps,
  *,
  sizes=SIZES,
  seed=0,
  frames=None,
  state=None,
  options=OPTIONS,
  shard=(0, 1),
):
  with batches.batches(
    sources, tok, frames or Fake(), options, sizes, seed, shard=shard
  ) as iterator:
    if state is not None:
      iterator.set_state(state)
    found = [next(iterator) for _ in range(steps)]
    return found, iterator.get_state()


def same(a, b):
  return a.samples == b.samples and all(
    np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays
  )


def asked(tok, batch):
  """Counter of (row number) over a batch: what each of its documents asks for."""
  text = tok.decode(batch.arrays['tokens'][batch.arrays['segments'] > 0])
  return collections.Counter(int(part.split('?')[0]) for part in text.split('What appears at ')[1:])


def test_the_same_seed_gives_the_same_batches_and_another_one_others(tok):
  first, _ = run(tok, [source('a')], 4)
  again, _ = run(tok, [source('a')], 4)
  other, _ = run(tok, [source('a')], 4, seed=1)
  assert all(same(a, b) for a, b in zip(first, again)) and not same(first[0], other[0])


def test_arrays_have_the_promised_shapes_and_the_mask_its_targets(tok):
  (batch,), _ = run(tok, [source('a')], 1)
  assert batch.arrays['tokens'].shape == (2, 2, 128) and batch.arrays['positions'].shape == (
    2,
    2,
    3,
    128,
  )
  assert (
    batch.arrays['patches'].shape == (2, 2, 24, 4, 1, 768)
    and batch.arrays['mask'].dtype == np.float32
  )
  text = tok.decode(batch.arrays['tokens'][batch.arrays['mask'] > 0])
  assert set(text.split('<|im_end|>')) == {'red.', ''}
  assert batch.targets == batch.arrays['mask'].sum() == 3 * sum(batch.samples.values())
  assert (
    batch.tokens == (batch.arrays['segments'] > 0).sum() and batch.used == 2 and batch.fill > 0.75
  )


def test_pixels_are_those_of_the_frames_asked_for(tok):
  (batch,), _ = run(tok, [source('a')], 1)
  used = batch.arrays['grids'][..., 0] > 0
  assert set(np.unique(batch.arrays['patches'][used])) == {16, 48, 80, 112}


def test_each_epoch_shows_every_row_once_in_an_order_of_its_own(tok):
  found, state = run(tok, [source('a', count=10)], 6)
  seen = sum((asked(tok, batch) for batch in found), collections.Counter())
  waiting = collections.Counter(i for _, i in state['waiting'])
  drawn = seen + waiting
  assert sum(drawn.values()) == state['positions']['a'] >= 30
  assert max(drawn.values()) - min(drawn[i] for i in range(10)) <= 1
  draws = planner._Draws({'a': source('a', count=10)}, 0)
  epochs = [[draws.next(0)[1] for _ in range(10)] for _ in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_a_resumed_run_gives_exactly_the_batches_that_were_left(tok):
  sources = [source('a'), source('b', count=7, weight=0.5, frames=8)]
  whole, _ = run(tok, sources, 8)
  _, state = run(tok, sources, 3)
  assert len(str(state)) < 500
  rest, _ = run(tok, sources, 5, state=state)
  assert all(same(a, b) for a, b in zip(whole[3:], rest))


def test_the_state_is_of_the_batches_returned_not_of_those_made_ahead(tok):
  _, eager = run(tok, [source('a')], 3, sizes=dataclasses.replace(SIZES, prefetch=8))
  _, lazy = run(tok, [source('a')], 3, sizes=dataclasses.replace(SIZES, prefetch=1))
  assert eager == lazy and eager['step'] == 3


def test_a_state_of_other_sources_is_refused(tok):
  _, state = run(tok, [source('a')], 1)
  with pytest.raises(DataError, match='sources'):
    run(tok, [source('b')], 1, state=state)


def test_sources_are_mixed_by_weight_and_join_at_their_step(tok):
  sources = [
    source('a', weight=3.0),
    source('b'),
    source('late', weight=4.0, first=20),
    source('gone', weight=4.0, last=20),
  ]
  found, _ = run(tok, sources, 40)
  total = lambda part: sum(
    (collections.Counter(batch.samples) for batch in part), collections.Counter()
  )
  early, late = total(found[:19]), total(found[21:])
  assert early['late'] == 0 and late['gone'] == 0
  assert (
    abs(early['a'] / sum(early.values()) - 3 / 8) < 0.1
    and abs(late['late'] / sum(late.values()) - 0.5) < 0.1
  )


def test_rows_that_cannot_be_used_are_dropped_and_counted_by_reason(tok):
  bad = [
    row('a', 0, text='red. ' * 60),
    row('a', 1, frames=16),
    row('a', 2, path='missing'),
    Conversation('a:3', (Message('user', ('Nothing to learn?',)),)),
  ]
  mixed = batches.Source('a', [*bad, *(row('a', i) for i in range(4, 8))], 1.0, 0, None)
  found, _ = run(tok, [mixed], 2, sizes=FEW_IMAGES)
  dropped = sum((collections.Counter(b.dropped) for b in found), collections.Counter())
  assert set(dropped) == {'too_long', 'too_many_images', 'media_missing', 'no_target'}
  assert all(b.samples['a'] > 4 for b in found) and set(asked(tok, found[0])) == {4, 5, 6, 7}


def test_a_video_that_fails_only_when_decoded_is_dropped_and_counted(tok):
  class Breaks(Fake):
    def frames_sync(self, path, *rest):
      if path == 'broken':
        raise MediaError('broken', 'decode')
      return super().frames_sync(path, *rest)

  mixed = batches.Source(
    'a', [row('a', 0, path='broken'), *(row('a', i) for i in range(1, 4))], 1.0, 0, None
  )
  (batch,), _ = run(tok, [mixed], 1, frames=Breaks())
  assert batch.dropped['media_decode'] >= 1 and 0 not in asked(tok, batch)


def test_a_row_that_turns_out_longer_than_planned_is_dropped_not_fatal(tok):
  # Exactly as planned; '<16.1 seconds>' is five tokens more than '<16.0 seconds>'.
  tight = dataclasses.replace(SIZES, row_tokens=31)
  (batch,), _ = run(tok, [source('a')], 1, sizes=tight, frames=Fake())
  assert batch.samples['a'] == 4 and batch.dropped == {}
  (batch,), _ = run(tok, [source('a')], 1, sizes=tight, frames=Fake(shift=0.1))
  assert batch.dropped['misjudged'] == 4 and batch.tokens == 0


def test_data_without_a_usable_row_stops_with_one_clear_error(tok):
  with pytest.raises(DataError, match=r'every row drawn was dropped.*too_many_images'):
    run(tok, [source('a', count=3, frames=16)], 1, sizes=FEW_IMAGES)
  with pytest.raises(DataError, match='no source has rows at step 0'):
    run(tok, [source('a', first=5)], 1)


def test_rows_are_filled(tok):
  mixed = [
    source('a'),
    source('b', frames=1),
    source('c', frames=8),
    source('d', frames=2, text='red. ' * 8),
  ]
  found, _ = run(tok, mixed, 20, sizes=dataclasses.replace(SIZES, lookahead=12, row_images=64))
  assert np.mean([batch.fill for batch in found]) > 0.9


def test_the_bank_decodes_each_video_once_and_off_grid_times_by_the_decoder():
  fake = Fake()
  bank = batches.FrameBank(fake, 1.0, 1024, 1024)
  clip = bank.frames_sync('v', [41.0, 3.0, 41.0], 1024, 1024)
  assert clip.frames[:, 0, 0, 0].tolist() == [41, 3, 41] and clip.seconds.tolist() == [
    41.0,
    3.0,
    41.0,
  ]
  assert clip.duration == 128.0
  bank.frames_sync('v', [100.0], 1024, 1024)
  assert len(fake.decoded) == 1 and bank.bytes == 128 * 32 * 32 * 3
  assert bank.frames_sync('v', [41.5], 1024, 1024).seconds.tolist() == [41.5]
  assert bank.frames_sync('v', [128.0], 1024, 1024).seconds.tolist() == [127.75]
  assert bank.frames_sync('v', [1.0], 1024, 2048).seconds.tolist() == [1.0]
  assert len(fake.decoded) == 4
  assert asyncio.run(bank.frames('v', [7.0], 1024, 1024)).frames[0, 0, 0, 0] == 7
  assert asyncio.run(bank.probe('v')).duration == 128.0


def test_samples_that_fail_when_decoded_end_the_run_above_the_share(tok):
  class Breaks(Fake):
    def frames_sync(self, path, *rest):
      raise MediaError('broken', 'decode')

  strict = dataclasses.replace(SIZES, max_bad_share=0.5)
  with pytest.raises(
    DataError,
    match=r'(\d+) of \1 rows drawn are broken \(media_decode \1; such as a a:\d+ media_decode '
    r'broken\)',
  ) as error:
    run(tok, [source('a')], 40, sizes=strict, frames=Breaks())
  assert int(str(error.value).split(' of ')[1].split()[0]) >= 100


def test_a_worker_that_was_late_once_costs_no_sample(tok):
  class Late(Fake):
    def __init__(self):
      super().__init__()
      self.late = {('frames', 'timeout'), ('probe', 'crashed')}

    def frames_sync(self, *request):
      self._once('frames', 'timeout')
      return super().frames_sync(*request)

    def probe_sync(self, path):
      self._once('probe', 'crashed')
      return super().probe_sync(path)

    def _once(self, *kind):
      if kind in self.late:
        self.late.discard(kind)
        raise MediaError('late', kind[1])

  frames = Late()
  found, _ = run(tok, [source('a')], 3, frames=frames, sizes=dataclasses.replace(SIZES, workers=1))
  assert not frames.late and [batch.dropped for batch in found] == [{}, {}, {}]


def test_an_image_larger_than_its_slots_is_no_surprise_of_the_packer(tok):
  options = dataclasses.replace(OPTIONS, max_pixels=4096)
  with pytest.raises(ConfigError, match=r'video\.max_pixels: got 4096, wanted at most 1024'):
    run(tok, [source('a')], 1, options=options)


def test_large_image_slots_are_allocated_by_need(tok):
  sizes = dataclasses.replace(SIZES, row_large_images=5, large_image_patches=16, shapes=8)
  (videos,), _ = run(tok, [source('a')], 1, sizes=sizes)
  assert 'large_images' not in videos.arrays
  (full,), _ = run(tok, [source('a')], 1, sizes=dataclasses.replace(sizes, shapes=1))
  assert full.arrays['large_images'].shape[:4] == (2, 2, 5, 16)
  for name, array in videos.arrays.items():
    assert np.array_equal(array, full.arrays[name])

  def slots(*needs):
    items = tuple(('a', n) for n in range(len(needs)))
    bins = tuple((n,) for n in range(len(needs)))
    plan = planner.Plan(items, bins, tuple((9, 1, need) for need in needs), {}, {})
    return batches.Assembler([], tok, Fake(), OPTIONS, sizes, (0, 1), None)._large_images(plan)

  assert [slots(0, 1), slots(0, 2), slots(3, 1), slots(5, 0), slots()] == [1, 2, 4, 5, 0]


MEASURED = {'visual_index': 'visual', 'predecessor': 'previous'}  # names when results were measured


def test_the_batches_of_the_synthetic_world_are_those_that_its_results_were_measured_with(
  tok, tmp_path
):
  """The digest was taken when one process parsed, planned and decoded everything in turn."""
  config = base.sft('tiny')
  section = config.world.to_dict()
  section['corpus'] |= {
    'videos': 4,
    'heldout_videos': 1,
    'rl_tasks': 4,
    'heldout_tasks': 2,
    'videos_per_archive': 4,
    'sft_rows': {'trace': 60, 'subagent': 40, 'lookup12': 20, 'letters': 20, 'choice1': 20},
  }
  options = corpus.WorldOptions(
    scene.SceneOptions(**section['scene']),
    questions.QuestionOptions(**section['questions']),
    traces.TraceOptions(**section['traces']),
    corpus.CorpusOptions(**section['corpus']),
  )
  world = write.write(tmp_path / 'world', options, section['seed'], workers=0)
  tables = {
    file.stem.removeprefix('paravt_sft_'): Table([file], '/media', RowOptions(False, False))
    for file in world.sft
  }
  sources = [
    batches.Source(name, rows, *config.sources.get(name, (1.0, 0, None)))
    for name, rows in tables.items()
  ]
  recipe = typed(config)
  found, state = run(
    tok, sources, 20, sizes=sft_data.batch_options(recipe), options=sft_data.frame_options(recipe)
  )
  hashed = hashlib.blake2b(digest_size=16)
  for batch in found:
    # under the names that the arrays had then
    arrays = {MEASURED.get(name, name): array for name, array in batch.arrays.items()}
    for name in sorted(arrays):
      hashed.update(name.encode() + str(arrays[name].dtype).encode() + arrays[name].tobytes())
    hashed.update(
      json.dumps(
        [
          batch.used,
          sorted(batch.samples.items()),
          batch.tokens,
          batch.targets,
          sorted(batch.dropped.items()),
        ]
      ).encode()
    )
  assert (hashed.hexdigest(), state['drawn']) == ('cc4eb02d44286f84e86a9769adee43d3', 365)


def test_repeated_frames_are_counted_and_a_row_shorter_than_planned_is_packed(tok):
  class Slides(Fake):
    def frames_sync(self, *request):
      clip = super().frames_sync(*request)
      return Clip(clip.frames, clip.seconds, clip.duration, np.floor(clip.seconds / 64) * 64)

  (plain,), _ = run(tok, [source('a')], 1)
  (batch,), _ = run(tok, [source('a')], 1, frames=Slides())
  rows = plain.samples['a']
  assert (
    (plain.repeated, batch.repeated) == (0, 2 * rows)
    and batch.samples == plain.samples
    and batch.dropped == {}
  )
  assert batch.targets == plain.targets and batch.tokens < plain.tokens and batch.plan == plain.plan

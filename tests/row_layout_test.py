"""Batches by need: how full rows are, how even, how many shapes, and how much the host holds."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.packing import first_fit_decreasing
from paravt_jax.rollout import collate
from paravt_jax.row_layout import (
  LayoutOptions,
  Layouts,
  Shape,
  round_up,
  slots,
  spread,
)
from paravt_jax.types import (
  Episode,
  Group,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
)

PUBLISHED = LayoutOptions.published()
FULL = Shape(row_tokens=32768, row_images=512, micro_batches=32)  # of the 8B recipe
ROWS = 8
BUDGETS = (4, 8, 16, 32, 64)
FRAME_TOKENS = 58  # 49 of pixels, 9 of time and delimiters
SLOT_BYTES = 196 * 768 + 8


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of step: 8 prompts of 8 rollouts each, at 224 x 224 pixels."""

  budgets: tuple[int, ...]  # frames of the prompts, in turn
  calls: tuple[int, int]  # crop calls of an episode, both included
  sub_frames: int  # frames of a call's sub-agent
  think: int = 150  # sampled tokens before the calls
  answer: int = 180  # sampled tokens after them
  group: int = 8


KINDS = {
  'all at 64 frames, 5 calls of 16': Kind((64,), (5, 5), 16),
  'gated frames, 1 to 3 calls of 10': Kind(BUDGETS, (1, 3), 10),
  'gated frames, 5 calls of 16': Kind(BUDGETS, (5, 5), 16),
  'all at 64 frames, no calls': Kind((64,), (0, 0), 0),
}


def trees_of(kind, rng):
  """Sizes (tokens, images) and sampled tokens of the trees of a step."""
  sizes, loads = [], []
  for prompt in range(8):
    frames = kind.budgets[prompt % len(kind.budgets)]
    tokens, sampled = 420 + frames * FRAME_TOKENS, 0
    for _ in range(kind.group):
      calls = int(rng.integers(kind.calls[0], kind.calls[1] + 1))
      answer = kind.answer if calls else 0
      tokens += kind.think + answer + (calls * 95 + 10 if calls else 0)
      sampled += kind.think + answer
      for _ in range(calls):
        sizes.append((120 + kind.sub_frames * FRAME_TOKENS + 80, kind.sub_frames))
        loads.append(80)
    sizes.append((tokens, frames))
    loads.append(sampled)
  return sizes, loads


def layouts(**changes):
  return Layouts(PUBLISHED.replace(**changes), FULL, ROWS)


def rows_of(layout, values):
  """The sum of `values` over the trees of each row, padding rows included."""
  found = [sum(values[tree] for tree in members) for members in layout.bins]
  return np.array(found + [0] * (-len(found) % ROWS)).reshape(-1, ROWS)


def fill(layout, sizes):
  return rows_of(layout, [tokens for tokens, _ in sizes]).mean() / layout.shape.row_tokens


@pytest.mark.parametrize(
  ('name', 'before', 'now'),
  list(zip(KINDS, (0.851, 0.540, 0.811, 0.163), (0.908, 0.864, 0.865, 0.868))),
)
def test_the_four_kinds_of_step_fill_their_rows(name, before, now):
  sizes, loads = trees_of(KINDS[name], np.random.default_rng(1))
  assert sum(tokens for tokens, _ in sizes) > 42_000  # a step of published size
  plain = Layouts(LayoutOptions(row_lengths=(), spread=False, shapes=1), FULL, ROWS)
  assert fill(plain.choose(sizes, loads), sizes) == pytest.approx(before, abs=6e-4)
  found = layouts().choose(sizes, loads)
  assert fill(found, sizes) == pytest.approx(now, abs=6e-4) and now >= 0.8


@pytest.mark.parametrize('name', KINDS)
def test_no_row_is_empty_while_others_are_full(name):
  sizes, loads = trees_of(KINDS[name], np.random.default_rng(1))
  found = layouts().choose(sizes, loads)
  tokens = rows_of(found, [tokens for tokens, _ in sizes])
  assert sorted(tree for members in found.bins for tree in members) == list(range(len(sizes)))
  assert (tokens.min(1) >= 0.75 * tokens.max(1)).all() and tokens.max() <= found.shape.row_tokens
  # tokens to score of the fullest row, which the head runs for all rows of a micro-batch
  most = rows_of(found, loads).max(1).sum()
  first = Layouts(LayoutOptions((), spread=False, shapes=1), FULL, ROWS).choose(sizes, loads)
  assert most <= 0.6 * rows_of(first, loads).max(1).sum()


def mixed_steps(count):
  """Steps of all kinds with other budgets, calls and lengths each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    calls = int(rng.integers(1, 7))
    kind = Kind(
      tuple(rng.permutation(BUDGETS).tolist()) if rng.random() < 0.5 else (64,),
      (int(rng.integers(0, calls + 1)), calls) if rng.random() < 0.75 else (0, 0),
      int(rng.integers(4, 17)),
      int(rng.integers(60, 400)),
      int(rng.integers(60, 400)),
      int(rng.integers(2, 9)),
    )
    yield trees_of(kind, rng)


def test_a_thousand_mixed_batches_have_at_most_eight_shapes():
  found, chosen = layouts(), set()
  for sizes, loads in mixed_steps(1000):
    layout = found.choose(sizes, loads)
    used = -(-len(layout.bins) // ROWS)
    chosen.add(layout.shape)
    images = max(sum(sizes[tree][1] for tree in members) for members in layout.bins)
    assert images <= layout.host_images <= min(2 * images, layout.shape.row_images)
    is_long = layout.shape.row_tokens == FULL.row_tokens
    assert used <= layout.shape.micro_batches < (2 * used if is_long else 5)
  assert 3 <= len(chosen) <= PUBLISHED.shapes == 8 and chosen <= set(found.ladder)


def test_the_ladder_of_the_8b_recipe():
  """Two shorter lengths with four micro-batches, then long rows by need."""
  assert layouts().ladder == (
    Shape(6144, 96, 4),
    Shape(20480, 320, 4),
    *(Shape(32768, 512, count) for count in (1, 2, 4, 8, 16, 32)),
  )


def test_one_shape_means_the_full_one_whatever_a_step_needs():
  found = Layouts(LayoutOptions((), spread=False, shapes=1), Shape(64, 8, 2), 4)
  assert found.choose([(10, 1)], [3]).shape == Shape(64, 8, 2)
  assert found.choose([], []).shape == Shape(64, 8, 2)
  # a step of 9 full rows needs 3 micro-batches of 4 rows: twice the recipe's two
  assert found.choose([(64, 0)] * 9, [1] * 9).shape == Shape(64, 8, 4)
  assert found.choose([(64, 0)] * 33, [1] * 33).shape == Shape(64, 8, 16)


def test_a_step_takes_the_length_that_pads_least_and_holds_its_largest_tree():
  full = Shape(4096, 100, 8)
  found = Layouts(LayoutOptions((512, 1024), spread=True, shapes=8), full, rows=2)
  assert found.choose([(500, 3), (90, 1)], [1, 1]).shape == Shape(512, 13, 4)
  assert found.choose([(1000, 0)] * 6, [1] * 6).shape == Shape(4096, 100, 1)  # overhead decides
  assert found.choose([(700, 0)], [1]).shape == Shape(1024, 25, 4)
  assert found.choose([(500, 14)], [1]).shape == Shape(1024, 25, 4)  # a short row has 13 slots
  assert found.choose([(3000, 0)] * 6, [1] * 6).shape == Shape(4096, 100, 4)  # 3 in use
  assert [found.choose([(9, n)], [1]).host_images for n in (0, 3, 9, 13)] == [1, 4, 13, 13]


def test_what_needs_spreading_goes_where_least_of_it_is():
  sizes, loads = [(8, 0), (8, 0), (2, 2), (2, 2), (1, 0), (1, 0)], [0, 0, 5, 5, 1, 1]
  assert spread(sizes, loads, 2, (12, 4)) == [[0, 2, 4], [1, 3, 5]]


def test_spreading_gives_up_where_only_first_fit_finds_rows():
  tight = [(5, 0), (4, 0), (3, 0), (3, 0), (3, 0)]  # 5 + 4 and 3 + 3 + 3; evenly: 5 + 3, 4 + 3 ..
  assert spread(tight, [0] * 5, 2, (9, 1)) is None
  assert len(first_fit_decreasing(tight, (9, 1))) == 2
  found = Layouts(LayoutOptions((), spread=True, shapes=8), Shape(9, 1, 4), 2)
  assert found.choose(tight, [0] * 5).bins == ((0, 1), (2, 3, 4))


def test_a_tree_longer_than_the_longest_row_is_refused():
  with pytest.raises(DataError, match='tree 1 takes 40000 tokens and 0 images, a row holds 32768'):
    layouts().choose([(10, 0), (40000, 0)], [1, 1])


def test_needs_are_rounded_to_powers_of_two_up_to_the_recipes_number():
  assert [round_up(need, 96) for need in (0, 1, 2, 3, 64, 65, 96)] == [0, 1, 2, 4, 64, 96, 96]
  assert [slots(need, 8, 8) for need in range(9)] == [0, 1, 2, 4, 4, 8, 8, 8, 8]
  assert [slots(need, 8, 2) for need in (0, 4, 5)] == [4, 4, 8]
  assert [slots(need, 8, 1) for need in (0, 8)] == [8, 8] and slots(0, 0, 8) == 0


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'row_lengths': (6000,)}, 'different multiples of 128'),
    ({'row_lengths': (6144, 6144)}, 'different multiples of 128'),
    ({'shapes': 2}, 'at least 3, one for each length of a row'),
    ({'shapes': 0}, 'at least 1'),
  ],
)
def test_knobs_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    PUBLISHED.replace(**changes)


# -- the host's memory, with real episodes -------------------------------------------------------

PAD = 9
FRAME = np.full((224, 224, 3), 100, np.uint8)  # one object: the frames themselves cost nothing


def given(frames, words):
  ids = [1] * words + ([2] * 9 + [PAD]) * frames
  return Segment(np.array(ids, np.int32), False, (FRAME,) * frames)


def written(count):
  logprobs, versions = np.full(count, -0.5, np.float32), np.zeros(count, np.int32)
  return Segment(np.full(count, 3, np.int32), True, (), logprobs, versions)


def episode(frames, calls, sub_frames, rollout):
  subagent = Trajectory((given(sub_frames, 120), written(80)), StopReason.STOP)
  call = ToolCall('crop_video', {})
  results = (ToolResult(call, ResultStatus.EXECUTED, 'x', subagent=subagent),) * calls
  after = (written(150), given(0, 95 * calls + 10), written(180)) if calls else (written(150),)
  trajectory = Trajectory((given(frames, 420), *after), StopReason.ANSWER)
  task = Task('t', ('v',), 'q', 'oe', 'a')
  turns = (Turn('', results),)
  return Scored(Episode(task, rollout, 64, (), 0.0, turns, trajectory, StopReason.ANSWER), 1.0, {})


def step_of(prompts, group, frames, calls, sub_frames):
  return [
    Group(str(n), 0, tuple(episode(frames, calls, sub_frames, r) for r in range(group)))
    for n in range(prompts)
  ]


def micro_batches(groups, found, rows=ROWS):
  count = sum(len(group.scored) for group in groups)
  return collate.micro_batches(
    groups,
    np.ones(count, np.float32),
    options=collate.CollateOptions(32768, 512, 196, (rows,), 'episode'),
    image_id=PAD,
    version=0,
    layouts=found,
  )


def test_the_host_never_holds_more_than_twice_the_bytes_in_use():
  """Tokens and image slots that are filled are in use. Micro-batches are written one by one, here
  with the one before still on its way to the devices.
  """
  groups = step_of(prompts=4, group=4, frames=64, calls=5, sub_frames=16)
  tracemalloc.start()
  found = micro_batches(
    groups, Layouts(PUBLISHED.replace(row_lengths=()), Shape(9216, 144, 8), 4), 4
  )
  in_use = written_bytes = 0
  before: dict[str, np.ndarray] = {}
  for micro in found:
    assert before.keys() in (set(), micro.keys())
    before = micro
    written_bytes += sum(array.nbytes for array in micro.values())
    filled = int((micro['segments'] > 0).sum())
    per_token = sum(array[0].nbytes for array in micro.values() if array.ndim == 2) + 3 * 4 * 9216
    in_use += filled * per_token // 9216 + int((micro['grids'][..., 0] > 0).sum()) * SLOT_BYTES
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert found.used >= 3 and in_use > 100e6
  assert peak <= 2 * in_use and written_bytes <= 2 * in_use


def test_an_8b_step_takes_a_hundredth_of_the_arrays_at_full_capacity():
  """Eight groups at 64 frames without calls: one micro-batch of 6,144 tokens and 64 slots."""
  found = micro_batches(step_of(8, 8, 64, 0, 0), layouts())
  assert found.layout.shape == Shape(6144, 96, 4) and found.used == 1
  (micro,) = found
  total = sum(array.nbytes for array in micro.values())
  full = 32 * ROWS * 512 * SLOT_BYTES
  assert total < full / 200 and found.fill == pytest.approx(0.868, abs=1e-3)


# Several hosts


def layouts_of(hosts, trees, **knobs):
  """The layouts of hosts that each have their own trees and rows, and agree."""
  options = LayoutOptions(**{'row_lengths': (128, 256), 'spread': False, 'shapes': 6, **knobs})
  made = [Layouts(options, Shape(512, 8, 8), 2) for _ in range(hosts)]
  needs = []
  for one, sizes in zip(made, trees):  # what each would say
    one.choose(sizes, [size for size, _ in sizes], lambda own: needs.append(own) or (own,))
  return [
    one.choose(sizes, [size for size, _ in sizes], lambda own: needs)
    for one, sizes in zip(made, trees)
  ], [one.choose(sizes, [size for size, _ in sizes]) for one, sizes in zip(made, trees)]


def test_hosts_take_the_shape_of_the_one_that_needs_most_and_pack_their_own_trees():
  trees = [[(100, 1)] * 3, [(100, 4)] * 7, []]
  together, alone = layouts_of(3, trees)
  assert len({one.shape for one in together}) == len({one.host_images for one in together}) == 1
  shape = together[0].shape
  assert shape.row_tokens == 512 or shape.micro_batches >= max(
    one.shape.micro_batches for one in alone
  )
  for layout, sizes in zip(together, trees):
    assert sorted(tree for row in layout.bins for tree in row) == list(range(len(sizes)))
    assert len(layout.bins) == len(together[0].bins) and len(layout.bins) % 2 == 0
    assert layout.host_images >= max(sum(sizes[tree][1] for tree in row) for row in layout.bins)


def test_a_length_that_one_host_cannot_use_is_used_by_none():
  together, alone = layouts_of(2, [[(100, 1)], [(300, 1)]])
  assert [one.shape.row_tokens for one in alone] == [128, 512]
  assert [one.shape.row_tokens for one in together] == [512, 512]


def test_micro_batches_that_a_host_has_no_trees_for_are_padding():
  row = dataclasses.replace(PUBLISHED, row_lengths=(), shapes=1)
  made = Layouts(row, Shape(256, 4, 4), 1)
  batch = collate.micro_batches(
    [],
    np.zeros(0),
    options=collate.CollateOptions(256, 4, 4, (1,), 'episode'),
    image_id=9,
    version=0,
    layouts=made,
    exchange=lambda own: [own, {256: (3, 2)}],
  )
  arrays = list(batch)
  assert batch.used == len(arrays) == 3
  assert all(micro['patches'].shape[:2] == (1, 2) and not micro['mask'].any() for micro in arrays)

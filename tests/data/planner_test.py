"""Plans: full rows, nothing waits for ever, the same everywhere; what is refused, and when."""

import collections

import numpy as np
import pytest

from paravt_jax.data.lengths import Size
from paravt_jax.data.planner import Planner, PlanOptions, Source
from paravt_jax.errors import DataError


class Sizes:
  """Stands in for Lengths: sizes are given. Remembers what was asked for ahead."""

  def __init__(self, sizes):
    self.sizes, self.asked = sizes, []

  def size(self, row):
    return self.sizes[row]

  def ask(self, rows):
    self.asked += rows

  def name(self, row):
    return f'a.parquet:{row}'


def stated_mix(count, seed, image_share):
  """1 to 64 frames of 49 tokens and 50 to 1500 of text, or an image of 64 to 1024 tokens."""
  rng, sizes = np.random.default_rng(seed), []
  for _ in range(count):
    text = int(rng.integers(50, 1501))
    if rng.random() < image_share:
      sizes.append(Size(text + int(rng.integers(64, 1025)), 0, 1))
    else:
      frames = int(rng.integers(1, 65))
      sizes.append(Size(text + 49 * frames, frames, 0))
  return sizes


def source(name, count, weight=1.0, first=0, last=None, identity=()):
  return Source(name, range(count), weight, first, last, identity)


def make(
  sizes,
  *,
  bins=4,
  capacity=(8192, 128, 8),
  lookahead=64,
  refill=True,
  share=1.0,
  seed=0,
  identity=(),
):
  return Planner(
    [source('a', len(sizes), identity=identity)],
    {'a': Sizes(sizes)},
    PlanOptions(bins, capacity, lookahead, refill, share),
    seed,
  )


@pytest.mark.parametrize('bins', [4, 32])
@pytest.mark.parametrize('image_share', [0.0, 0.3, 1.0])
def test_rows_of_8192_tokens_are_filled_to_97_percent_on_the_stated_mix(bins, image_share):
  plans = make(stated_mix(4000, 1, image_share), bins=bins)
  assert sum(plans.plan().tokens for _ in range(40)) / (40 * bins * 8192) > 0.99


@pytest.mark.parametrize('refill', [True, False])
def test_a_plan_keeps_every_row_within_its_capacity_and_each_draw_in_one_row(refill):
  plans = make(stated_mix(500, 2, 0.6), capacity=(4096, 60, 2), refill=refill)
  for _ in range(30):
    plan = plans.plan()
    assert (
      sorted(i for row in plan.bins for i in row) == list(range(len(plan.items)))
      and len(plan.bins) <= 4
    )
    for row in plan.bins:
      assert all(sum(plan.sizes[i][k] for i in row) <= room for k, room in enumerate((4096, 60, 2)))
    assert [plan.sizes[i] for i in range(len(plan.items))] == [
      tuple(
        getattr(plans._lengths['a'].sizes[row], kind)
        for kind in ('tokens', 'frames', 'large_images')
      )
      for _, row in plan.items
    ]


@pytest.mark.parametrize('refill', [True, False])
def test_each_draw_goes_into_exactly_one_batch_or_waits(refill):
  plans, seen = make(stated_mix(50, 3, 0.3), refill=refill), collections.Counter()
  for _ in range(20):
    seen.update(row for _, row in plans.plan().items)
  seen.update(row for _, row in plans.waiting)
  state = plans.get_state()
  assert sum(seen.values()) == state['drawn'] == state['positions']['a'] > 200
  assert max(seen.values()) - min(seen[row] for row in range(50)) <= 1


def test_refilled_rows_are_never_emptier():
  for seed in range(20):
    full, plain = (
      make(stated_mix(300, seed, 0.3), refill=refill).plan() for refill in (True, False)
    )
    assert full.tokens >= plain.tokens


def test_the_draw_that_waited_longest_always_goes_into_the_next_batch():
  # Rows of 3 fit only where nothing else lies; tiny ones would fill every gap for ever.
  sizes = (
    [Size(90, 0, 0)] * 5 + [Size(51, 0, 0)] * 15 + [Size(49, 0, 0)] * 200 + [Size(1, 0, 0)] * 30
  )
  plans = make(sizes, bins=2, capacity=(100, 1, 0), lookahead=16)
  for _ in range(400):
    oldest = plans.waiting[:1]
    assert set(oldest) <= set(plans.plan().items)


def test_no_draw_waits_for_ever():
  sizes = [Size(100, 0, 0)] + [
    Size(int(n), 0, 0) for n in np.random.default_rng(0).integers(1, 60, 400)
  ]
  plans = make(sizes, bins=2, capacity=(100, 1, 0), lookahead=16)
  waits = collections.Counter()
  longest = 0
  for _ in range(600):
    plans.plan()
    waits = collections.Counter({item: waits[item] + 1 for item in plans.waiting})
    longest = max(longest, max(waits.values()))
  assert longest <= 17


def test_the_same_seed_gives_the_same_plans_whatever_the_machine_and_another_one_others():
  plans = lambda seed: [make(stated_mix(200, 4, 0.3), seed=seed).plan()]
  assert plans(0) == plans(0) != plans(1)


def test_a_plan_goes_on_from_its_state_and_from_nothing_else():
  whole = make(stated_mix(60, 5, 0.3))
  states = [(whole.get_state(), whole.plan()) for _ in range(12)]
  for state, wanted in states[::3]:
    other = make(stated_mix(60, 5, 0.3))
    other.set_state(state)
    assert other.plan() == wanted


def test_rows_are_measured_ahead_of_their_draws_and_only_those_that_come():
  plans = make(stated_mix(1000, 6, 0.3), lookahead=16)
  first = plans.plan()
  asked = plans._lengths['a'].asked
  drawn = [row for _, row in first.items] + [row for _, row in plans.waiting]
  assert set(drawn) <= set(asked) and len(asked) == len(set(asked)) <= len(drawn) + 2 * (16 + 4 * 4)
  while len(asked) < 200:
    plans.plan()
  assert len(asked) == len(set(asked))  # none is asked for twice in an epoch


DROPS = {
  'too_long': Size(9000, 1, 0),
  'too_many_images': Size(90, 129, 0),
  'no_target': Size(0, 0, 0, 'no_target', 'x'),
  'media_missing': Size(0, 0, 0, 'media_missing', 'gone'),
  'schema': Size(0, 0, 0, 'schema', 'broken'),
}


def test_what_cannot_be_used_is_dropped_by_reason_with_an_example_of_each():
  sizes = [*DROPS.values(), Size(90, 0, 9)] * 3 + [Size(4000, 1, 0)] * 200
  plans = make(sizes)
  found = [plans.plan() for _ in range(30)]
  assert set().union(*(plan.dropped for plan in found)) == set(DROPS)
  lines = {reason: line.split('\t') for plan in found for reason, line in plan.examples.items()}
  assert {reason: (line[0], line[2]) for reason, line in lines.items()} == {
    reason: ('a', reason) for reason in DROPS
  }
  assert (
    lines['too_long'][3] == '9000 tokens, a row holds 8192' and lines['media_missing'][3] == 'gone'
  )


def test_data_of_which_too_large_a_share_is_broken_is_refused_after_a_hundred_draws():
  sizes = ([DROPS['media_missing']] * 2 + [DROPS['schema']] + [Size(4000, 1, 0)] * 17) * 10
  plans = make(sizes, share=0.1, lookahead=4)
  wanted = (
    r'SFT data: (\d+) of (\d+) rows drawn are broken \(.*media_missing \d+.*wanted a share of '
    r'at most 0.1'
  )
  with pytest.raises(DataError, match=wanted) as error:
    for _ in range(30):
      plans.plan()
  bad, drawn = map(int, str(error.value).split(' rows')[0].removeprefix('SFT data: ').split(' of '))
  assert (
    drawn >= 100
    and bad > 0.1 * drawn
    and 'data.max_bad_share' in str(error.value)
    and '\n' not in str(error.value)
  )
  allowed = make(sizes, share=0.2, lookahead=4)
  for _ in range(30):
    allowed.plan()
  assert 0.1 < allowed.bad.total() / allowed.get_state()['drawn'] < 0.2


def test_what_is_dropped_without_a_fault_is_no_bad_row():
  sizes = [DROPS['too_long'], DROPS['no_target'], DROPS['too_many_images'], Size(4000, 1, 0)] * 50
  plans = make(sizes, share=0.0)
  for _ in range(20):
    plans.plan()
  assert plans.bad.total() == 0 and plans.get_state()['drawn'] > 200


def test_bad_rows_seen_before_a_resume_count_after_it():
  sizes = [DROPS['schema']] * 20 + [Size(4000, 1, 0)] * 180
  plans = make(sizes, share=0.2)
  for _ in range(12):
    plans.plan()
  state = plans.get_state()
  assert state['bad']['schema'] > 0
  strict = make(sizes, share=state['bad']['schema'] / state['drawn'] / 2)
  strict.set_state(state)
  with pytest.raises(DataError, match='rows drawn are broken'):
    strict.plan()


FILES = (('a.parquet', '11'), ('b.parquet', '22'))


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ((FILES[0], ('b.parquet', '33')), 'b.parquet has changed'),
    (FILES[:1], 'b.parquet is gone'),
    ((*FILES, ('c.parquet', '44')), 'c.parquet is new'),
    (FILES[::-1], 'another order'),
  ],
)
def test_a_run_does_not_go_on_over_other_files(files, message):
  state = make(stated_mix(20, 0, 0.3), identity=FILES).get_state()
  same = make(stated_mix(20, 0, 0.3), identity=FILES)
  same.set_state(state)
  with pytest.raises(
    DataError,
    match=rf"source 'a' is not what the checkpoint was drawn from \(.*{message}.*start a new run",
  ):
    make(stated_mix(20, 0, 0.3), identity=files).set_state(state)


def test_sources_come_and_go_at_their_steps():
  sources = [source('a', 50, last=3), source('b', 50, first=3)]
  plans = Planner(
    sources,
    {name: Sizes([Size(4000, 1, 0)] * 50) for name in 'ab'},
    PlanOptions(4, (8192, 128, 8), 2, True, 1.0),
    0,
  )
  names = [{name for name, _ in plans.plan().items} for _ in range(6)]
  assert names[:3] == [{'a'}] * 3 and names[4:] == [{'b'}] * 2


def test_a_run_does_not_go_on_with_sources_in_another_order():
  plans = lambda names: Planner(
    [source(name, 5) for name in names],
    {name: Sizes([Size(9, 1, 0)] * 5) for name in names},
    PlanOptions(4, (8192, 128, 8), 2, True, 1.0),
    0,
  )
  with pytest.raises(
    DataError, match=r"the checkpoint has sources \['a', 'b'\], wanted \['b', 'a'\] in this order"
  ):
    plans('ba').set_state(plans('ab').get_state())

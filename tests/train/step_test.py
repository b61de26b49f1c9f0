"""The step: the same numbers on any mesh and any split, what attention sees, what is trained, every
knob of the update.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import optax
import pytest

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.metrics import names
from paravt_jax.packing import Sample, Tree
from paravt_jax.train import metric_sums, state, step
from paravt_jax.train.optimizer import Optimizer
from tests.train import common


@functools.cache
def build(kind, shape, frozen=(), rate=1.0, rl=common.RL, options=None):
  mesh, optimizer = common.mesh_of(*shape), common.sgd(rate, frozen)
  if kind == 'sft':
    return step.make_sft_step(common.CONFIG, optimizer, mesh, options or common.MODEL)
  return step.make_rl_step(common.CONFIG, optimizer, mesh, options or common.RL_MODEL, rl)


def run(kind, trees, shape=(1, 1, 1), micro=4, capacity=None, reference=1, **knobs):
  """(change of the parameters, metrics) of one step; the reference has other weights than the
  policy.
  """
  mesh = common.mesh_of(*shape)
  arrays, used = common.packed(trees).micro_batches(micro, capacity)
  start = common.fresh(common.sgd(knobs.get('rate', 1.0), knobs.get('frozen', ())), mesh)
  args = () if kind == 'sft' else (common.params(reference),)
  after, totals = build(kind, shape, **knobs)(start, step.put_batch(mesh, arrays, used), *args)
  assert int(after.step) == 1
  return common.change(common.params(), jax.device_get(after.params)), metric_sums.reduce(totals)


def groups(count=4):
  rng = np.random.default_rng(0)
  return [common.group(rng) for _ in range(count)]


@pytest.mark.parametrize('kind', ['sft', pytest.param('rl', marks=pytest.mark.slow)])
def test_eight_devices_give_the_loss_and_gradient_of_one(kind):
  one, metrics_one = run(kind, groups())
  eight, metrics_eight = run(kind, groups(), shape=(2, 2, 2))
  assert common.relative(eight, one) <= 1e-5
  name = 'sft/loss' if kind == 'sft' else 'policy/loss'
  assert metrics_eight[name] == pytest.approx(metrics_one[name], rel=1e-5)
  assert metrics_eight.keys() == metrics_one.keys()
  for name in metrics_one:
    assert metrics_eight[name] == pytest.approx(metrics_one[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_large_images_give_the_same_step_on_eight_devices_as_on_one():
  rng = np.random.default_rng(3)
  documents = []
  for large in (True, False, True, True):
    one = common.sample(rng, 12, 2)
    pictures = (
      rng.integers(0, 256, (64, 32, 3), dtype=np.uint8) if large else one.images[0],
      one.images[1],
    )
    documents.append(Tree(Sample(one.ids, pictures, one.extras)))
  arrays, used = common.packed(documents, row_large_images=2, large_image_patches=8).micro_batches(
    4
  )
  assert arrays['large_image_grids'].any()
  changes = []
  for shape in ((1, 1, 1), (2, 2, 2)):
    mesh = common.mesh_of(*shape)
    after, totals = build('sft', shape)(
      common.fresh(common.sgd(1.0), mesh), step.put_batch(mesh, arrays, used)
    )
    changes.append(
      (
        common.change(common.params(), jax.device_get(after.params)),
        metric_sums.reduce(totals)['sft/loss'],
      )
    )
  assert common.relative(changes[1][0], changes[0][0]) <= 1e-5 and changes[1][1] == pytest.approx(
    changes[0][1], rel=1e-5
  )


@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_the_split_into_micro_batches_changes_nothing(kind):
  whole, metrics_whole = run(kind, groups())
  split, metrics_split = run(kind, groups(), micro=1, capacity=6)
  assert common.relative(split, whole) <= 1e-5
  for name in metrics_whole:
    assert metrics_split[name] == pytest.approx(metrics_whole[name], rel=1e-4, abs=1e-6), name


def test_micro_batches_that_are_not_used_are_not_run():
  mesh, rows = common.mesh_of(), common.packed(groups())
  arrays, used = rows.micro_batches(1, 6)
  spoil = lambda x: np.concatenate([x[:used], np.ones_like(x[used:])])
  garbage = {name: spoil(x) for name, x in arrays.items()}
  after = lambda a: build('sft', (1, 1, 1))(
    common.fresh(common.sgd(), mesh), step.put_batch(mesh, a, used)
  )[0]
  clean, dirty = after(arrays), after(garbage)
  assert np.array_equal(
    common.change(common.params(), clean.params), common.change(common.params(), dirty.params)
  )


def test_the_supervised_loss_is_the_mean_cross_entropy_over_targets():
  rows = common.packed(groups())
  logprob, mask = common.logprobs(rows), rows.extras['mask']
  _, metrics = run('sft', groups())
  assert metrics['sft/tokens'] == mask.sum()
  assert metrics['sft/loss'] == pytest.approx(-(logprob * mask).sum() / mask.sum(), rel=1e-5)


def test_a_token_without_a_predecessor_is_never_trained():
  document = Tree(Sample(np.arange(10, 14, dtype=np.int32), (), {'mask': np.ones(4)}))
  _, metrics = run('sft', [document])
  assert metrics['sft/tokens'] == 3


def test_a_shared_prefix_gives_the_log_probs_of_separate_sequences():
  tree = groups(1)[0]
  shared = common.packed([tree], rows_multiple=1)
  found = common.logprobs(shared)
  for suffix, span in zip(tree.suffixes, shared.spans[0][1:]):
    joined = Sample(np.concatenate([tree.prefix.ids, suffix.ids]), tree.prefix.images)
    alone = common.packed([Tree(joined)], rows_multiple=1)
    start = len(tree.prefix.ids)
    want = common.logprobs(alone)[0, start : start + len(suffix.ids)]
    np.testing.assert_allclose(found[0, span.start : span.stop], want, atol=2e-6)


def two_documents(rng):
  return [Tree(common.sample(rng, 12, 2)), Tree(common.sample(rng, 12, 2))]


def test_deviation_1_every_earlier_token_and_frame_moves_later_log_probs():
  trees = two_documents(np.random.default_rng(1))
  rows = common.packed(trees, rows_multiple=1)
  before, first = common.logprobs(rows), rows.spans[0][0]
  for at in range(11):
    ids, images = trees[0].prefix.ids.copy(), list(trees[0].prefix.images)
    if ids[at] == common.PAD:
      images[int((ids[:at] == common.PAD).sum())] = (
        255 - images[int((ids[:at] == common.PAD).sum())]
      )
    else:
      ids[at] = 10 + (ids[at] - 9) % 54
    after = common.logprobs(
      common.packed([Tree(Sample(ids, tuple(images))), trees[1]], rows_multiple=1)
    )
    moved = np.abs(after - before)[0, first.start + at + 1 : first.stop]
    assert (moved > 1e-6).all(), at
    assert (after == before)[0, first.start : first.start + at].all(), at


def test_another_packed_sequence_changes_nothing():
  rng = np.random.default_rng(1)
  trees = two_documents(rng)
  rows = common.packed(trees, rows_multiple=1)
  other = common.packed([trees[0], Tree(common.sample(rng, 12, 2))], rows_multiple=1)
  assert rows.spans == other.spans and not np.array_equal(rows.tokens_RT, other.tokens_RT)
  span = rows.spans[0][0]
  assert np.array_equal(
    common.logprobs(rows)[0, span.start : span.stop],
    common.logprobs(other)[0, span.start : span.stop],
  )


def test_another_suffix_of_the_same_prefix_changes_nothing():
  rng = np.random.default_rng(2)
  tree = common.group(rng)
  other = Tree(tree.prefix, (tree.suffixes[0], common.sample(rng, 5), tree.suffixes[2]))
  rows, changed = (common.packed([t], rows_multiple=1) for t in (tree, other))
  a, b = common.logprobs(rows)[0], common.logprobs(changed)[0]
  for kept in (1, 3):
    span = rows.spans[0][kept]
    assert np.array_equal(a[span.start : span.stop], b[span.start : span.stop])


def without_reference():
  """A step with beta 0 and a frozen tower, that gets no reference parameters."""
  mesh, optimizer = common.mesh_of(), common.sgd(1.0, ('visual',))
  arrays, used = common.packed(groups()).micro_batches(4)
  run_step = build('rl', (1, 1, 1), frozen=('visual',), rl=dataclasses.replace(common.RL, beta=0.0))
  return run_step(common.fresh(optimizer, mesh), step.put_batch(mesh, arrays, used))[0].params


def test_a_frozen_tower_gets_no_gradient_and_the_rest_moves():
  after = without_reference()
  assert not common.change(common.params()['visual'], after['visual']).any()
  assert common.change(common.params()['text'], after['text']).any()


def test_a_frozen_tower_has_no_optimizer_state():
  optimizer = Optimizer(optax.adam(0.1), optax.constant_schedule(0.1), ('visual',))
  full = state.abstract(common.CONFIG, optimizer, common.mesh_of())
  assert full.opt_state[0].mu.keys() == {'text'}
  trained = sum(x.size for x in jax.tree.leaves(full.params['text']))
  assert (
    sum(x.size for x in jax.tree.leaves(full.opt_state)) == 2 * trained + 1
  )  # two moments and a count


def test_an_unfrozen_tower_is_trained():
  mesh = common.mesh_of()
  arrays, used = common.packed(groups()).micro_batches(4)
  after, _ = build('sft', (1, 1, 1))(
    common.fresh(common.sgd(), mesh), step.put_batch(mesh, arrays, used)
  )
  for name, leaf in after.params['visual'].items():
    assert common.change(common.params()['visual'][name], leaf).any(), name


def test_at_one_update_prox_is_the_current_policy_and_the_clip_never_acts():
  _, metrics = run('rl', groups())
  assert metrics['policy/ratio'] == pytest.approx(1, abs=1e-6) and metrics['policy/clip_share'] == 0
  assert metrics['policy/updates'] == 1


@pytest.mark.slow
def test_more_updates_per_batch_move_further_from_one_fixed_prox_and_the_clip_acts():
  twice = dataclasses.replace(common.RL, updates_per_batch=3)
  once, metrics_once = run('rl', groups())
  thrice, metrics = run('rl', groups(), rl=twice)
  assert (
    metrics['policy/updates'] == 3 and metrics['policy/tokens'] == metrics_once['policy/tokens']
  )
  assert metrics['policy/ratio'] != pytest.approx(1, abs=1e-3) and metrics['policy/clip_share'] > 0
  assert np.linalg.norm(thrice) > 1.2 * np.linalg.norm(once)
  # the gap is between the fixed prox and the behaviour policy: the same however many updates follow
  assert metrics['policy/gap_mean'] == pytest.approx(metrics_once['policy/gap_mean'], rel=1e-5)


def rl_loss_by_hand(rows, reference, rl, temperature=0.7, normalize=True):
  """The loss of section 7 at one update, in numpy, from log-probs of policy and reference."""
  options = dataclasses.replace(common.RL_MODEL, temperature=temperature)
  logp, behave = common.logprobs(rows, options=options), rows.extras['behavior']
  kl = np.clip(logp - common.logprobs(rows, reference, options), -10, 10)
  mask = rows.extras['mask'] > 0
  advantage = rows.extras['advantage']
  scale = advantage[mask].std() + 1e-6 if normalize else 1.0
  weight = np.exp(logp - behave)
  total = 0.0
  for row, start in zip(*np.nonzero(mask)):
    same = (rows.segments_RT[row] == rows.segments_RT[row, start]) & (
      rows.branches_RT[row] == rows.branches_RT[row, start]
    )
    to_come = same & mask[row] & (np.arange(mask.shape[1]) >= start)
    credit = advantage[row, start] / scale - rl.beta * kl[row][to_come].sum()
    total -= credit * weight[row, start] * (weight[row, start] <= rl.weight_cap)
  return total / mask.sum()


@pytest.mark.parametrize(
  ('batch_norm', 'normalize'), [('std', True), pytest.param('none', False, marks=pytest.mark.slow)]
)
def test_deviation_15_the_loss_is_that_of_the_specification_with_the_reference_at_the_same_temperature(
  batch_norm, normalize
):
  rl = dataclasses.replace(common.RL, batch_norm=batch_norm)
  _, metrics = run('rl', groups(), rl=rl)
  want = rl_loss_by_hand(common.packed(groups()), common.params(1), rl, normalize=normalize)
  assert metrics['policy/loss'] == pytest.approx(want, rel=1e-4)
  assert metrics['policy/kl_reference'] != 0
  assert metrics['policy/kl_reward'] == pytest.approx(
    -0.5 * metrics['policy/kl_reference'], rel=1e-5
  )


def test_a_policy_equal_to_its_reference_has_no_kl():
  _, metrics = run('rl', groups(), reference=0)
  assert metrics['policy/kl_reference'] == pytest.approx(0, abs=1e-6)


def test_beta_zero_needs_no_reference_and_equals_the_update_without_kl():
  mesh = common.mesh_of()
  arrays, used = common.packed(groups()).micro_batches(4)
  batch = step.put_batch(mesh, arrays, used)
  same, _ = build('rl', (1, 1, 1))(common.fresh(common.sgd(), mesh), batch, common.params(0))
  change = lambda params: common.change(common.params()['text'], params['text'])
  assert common.relative(change(without_reference()), change(same.params)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('updates', [1, 2])
def test_features_of_a_frozen_tower_are_shared_and_change_nothing(updates):
  rl = dataclasses.replace(common.RL, updates_per_batch=updates)
  mesh = common.mesh_of()
  arrays, used = common.packed(groups()).micro_batches(2, 4)
  # the same update, but its tower could move: then policy and reference encode on their own
  still = {'text': optax.sgd(1.0), 'visual': optax.set_to_zero()}
  labels = {'text': 'text', 'visual': 'visual'}
  free = Optimizer(optax.multi_transform(still, labels), optax.constant_schedule(1.0), ())
  found = []
  for optimizer in (common.sgd(1.0, ('visual',)), free):
    reference = {**common.params(1), 'visual': common.params()['visual']}
    update = step.make_rl_step(common.CONFIG, optimizer, mesh, common.RL_MODEL, rl)
    batch, start = step.put_batch(mesh, arrays, used), common.fresh(optimizer, mesh)
    encoded = len(
      re.findall(
        r'f32\[[\d,]*,768\] = convert',
        str(
          update.jitted.trace(
            start, batch, {k: v for k, v in reference.items() if k not in optimizer.frozen}
          ).jaxpr
        ),
      )
    )
    after, totals = update(start, batch, reference)
    change = common.change(common.params()['text'], after.params['text'])
    found.append((change, metric_sums.reduce(totals)['policy/loss'], encoded))
  (shared, loss, once), (apart, loss_apart, often) = found
  # at rate 1 a second update magnifies the last bits in which the first ones differ
  bound = {1: 1e-5, 2: 1e-4}[updates]
  assert common.relative(shared, apart) <= bound and loss == pytest.approx(loss_apart, rel=1e-5)
  assert once == 1 < often


def test_a_missing_reference_is_refused():
  mesh = common.mesh_of()
  arrays, used = common.packed(groups()).micro_batches(4)
  with pytest.raises(ConfigError, match='pass them, or set'):
    build('rl', (1, 1, 1))(common.fresh(common.sgd(), mesh), step.put_batch(mesh, arrays, used))


def test_deviation_10_sub_agents_are_trained_when_their_tokens_carry_an_advantage():
  rng = np.random.default_rng(3)
  subagent = Tree(common.sample(rng, 9, 2, 0.5, advantage=1.5))
  with_them, metrics = run('rl', [*groups(2), subagent])
  without, metrics_without = run('rl', groups(2))
  assert metrics['policy/tokens'] > metrics_without['policy/tokens']
  assert common.relative(with_them, without) > 1e-2


def test_the_weight_cap_drops_tokens_that_the_server_thought_unlikely():
  trees = groups()
  for tree in trees:
    tree.suffixes[0].extras['behavior'][:] = -30.0
  _, metrics = run('rl', trees)
  dropped = sum(int(tree.suffixes[0].extras['mask'].sum()) for tree in trees)
  assert metrics['policy/dropped_share'] * metrics['policy/tokens'] >= dropped - 0.01
  assert 0 < metrics['policy/ess'] < 1


def test_metrics_are_split_by_token_class_and_weigh_right():
  _, metrics = run('rl', groups())
  tokens = [metrics[f'policy/tokens/class={name}'] for name in metric_sums.CLASSES]
  gaps = [metrics[f'policy/gap_mean/class={name}'] for name in metric_sums.CLASSES]
  assert sum(tokens) == metrics['policy/tokens']
  assert metrics['policy/gap_mean'] == pytest.approx(np.dot(tokens, gaps) / sum(tokens), rel=1e-5)
  assert metrics['policy/gap_max'] == max(
    metrics[f'policy/gap_max/class={name}'] for name in metric_sums.CLASSES
  )
  assert metrics['policy/entropy'] <= np.log(62)  # 64 tokens, two of them banned


def test_the_gap_at_tokens_of_the_current_version_is_told_apart():
  rng = np.random.default_rng(0)
  old, new = common.group(rng), common.group(rng)
  marked = lambda s: dataclasses.replace(s, extras={**s.extras, 'current': np.ones(len(s.ids))})
  new = Tree(new.prefix, tuple(map(marked, new.suffixes)))
  _, alone = run('rl', [new])
  _, both = run('rl', [old, new])
  _, none = run('rl', [old])
  for kind in ('mean', 'max'):
    assert both[f'policy/gap_current_{kind}'] == pytest.approx(
      alone[f'policy/gap_{kind}'], rel=1e-5
    )
    assert (
      both[f'policy/gap_{kind}'] != pytest.approx(alone[f'policy/gap_{kind}'], rel=1e-5)
      or kind == 'max'
    )
    assert f'policy/gap_current_{kind}' not in none


@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(kind):
  mesh, optimizer = common.mesh_of(), common.adam()
  make, options = (
    (step.make_sft_step, common.MODEL) if kind == 'sft' else (step.make_rl_step, common.RL_MODEL)
  )
  update = make(common.CONFIG, optimizer, mesh, options, *(() if kind == 'sft' else (common.RL,)))
  arrays, used = common.packed(groups()).micro_batches(4)
  args = () if kind == 'sft' else (common.params(1),)
  values = jax.tree.map(np.copy, common.params())
  values['text']['norm']['scale'][0] = np.inf
  start = state.from_params(common.CONFIG, optimizer, mesh, values)
  before = jax.device_get((start.params, start.opt_state))
  after, totals = update(start, step.put_batch(mesh, arrays, used), *args)
  assert all(
    map(
      np.array_equal,
      jax.tree.leaves(before),
      jax.tree.leaves(jax.device_get((after.params, after.opt_state))),
    )
  )
  assert (
    int(after.step) == 1
    and metric_sums.reduce(totals)['optim/skipped'] == 1
    and 'optim/grad_norm' not in metric_sums.reduce(totals)
  )
  good = common.fresh(optimizer, mesh)
  after, totals = update(good, step.put_batch(mesh, arrays, used), *args)
  assert (
    metric_sums.reduce(totals)['optim/skipped'] == 0
    and common.change(common.params(), jax.device_get(after.params)).any()
  )


def test_every_reported_name_is_documented():
  for kind in ('sft', 'rl'):
    _, metrics = run(kind, groups())
    assert {name.split('/class=')[0] for name in metrics} <= set(names.METRICS)


def test_rows_that_do_not_divide_over_the_mesh_are_refused():
  arrays, used = common.packed(groups(1), rows_multiple=1).micro_batches(1)
  with pytest.raises(DataError, match='got 1 rows per micro-batch, wanted a multiple of 4'):
    step.put_batch(common.mesh_of(2, 2, 2), arrays, used)


@pytest.mark.parametrize(
  'knob',
  [
    {'clip': 0.0},
    {'weight_cap': 0.5},
    {'beta': -1.0},
    {'batch_norm': 'x'},
    {'updates_per_batch': 0},
  ],
)
def test_options_that_make_no_sense_are_refused(knob):
  with pytest.raises(ConfigError, match=f'RLOptions.{next(iter(knob))}='):
    build('rl', (1, 1, 1), rl=dataclasses.replace(common.RL, **knob))

"""Schedules by number, and which weights which rule moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.models.qwen3_vl import model
from paravt_jax.train import metric_sums, optimizer, state, step
from tests.train import common

BASE = optimizer.OptimizerOptions(
  name='adamw',
  learning_rate=2e-5,
  matrix_learning_rate=0.02,
  schedule='cosine',
  warmup_steps=75,
  total_steps=1500,
  final_scale=0.0,
  weight_decay=0.01,
  beta1=0.9,
  beta2=0.999,
  epsilon=1e-8,
  momentum=0.95,
  clip_norm=1.0,
)


def test_the_cold_starts_cosine_over_1500_steps_with_5_percent_warm_up():
  rate = optimizer.make_schedule(BASE, 2e-5)
  assert (
    rate(0) == pytest.approx(2e-5 / 75)
    and rate(74) == pytest.approx(2e-5)
    and rate(75) == pytest.approx(2e-5)
  )
  # step 500: 425 of 1425 steps into the cosine, 425 / 1425 = .29825, .5 * (1 + cos(.29825 pi)) =
  # .79612
  assert rate(500) == pytest.approx(2e-5 * 0.79612, rel=1e-4)
  assert rate(1500) == pytest.approx(0, abs=1e-12)


def test_a_constant_schedule_without_warm_up():
  rate = optimizer.make_schedule(
    dataclasses.replace(BASE, schedule='constant', warmup_steps=0), 2e-6
  )
  assert float(rate(0)) == float(rate(9999)) == np.float32(2e-6)


def step_of(name, params, axes, gradient, **changes):
  options = dataclasses.replace(
    BASE, name=name, schedule='constant', warmup_steps=0, clip_norm=0.0, **changes
  )
  built = optimizer.make_optimizer(options, axes, ())
  return built.transform.update(gradient, built.transform.init(params), params)[0]


AXES = {
  'embed': ('vocab', 'embed'),
  'kernel': ('layers', 'embed', 'mlp'),
  'bias': ('layers', 'mlp'),
  'norm': ('norm',),
}
SHAPES = {'embed': (6, 4), 'kernel': (3, 4, 8), 'bias': (3, 8), 'norm': (4,)}


def random(seed):
  rng = np.random.default_rng(seed)
  return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def test_muon_orthogonalises_each_layers_matrix_and_leaves_the_rest_to_adamw():
  update = step_of('muon', random(0), AXES, random(1), weight_decay=0.0, learning_rate=1e-3)
  for layer in update['kernel']:
    # singular values near 1, times sqrt(8 / 4) for the width, times the rate .02
    values = np.linalg.svd(np.asarray(layer), compute_uv=False) / (0.02 * 2**0.5)
    assert (values > 0.6).all() and (values < 1.3).all()
  for name in ('embed', 'bias', 'norm'):
    # Adam with Nesterov's momentum: at the first step rate * sign * (.9 * .1 / .19 + 1) = 1.4737 *
    # rate, whatever the gradient
    np.testing.assert_allclose(update[name], -1.4737e-3 * np.sign(random(1)[name]), rtol=1e-3)


def test_muon_treats_layers_apart():
  gradient = random(1)
  scaled = {**gradient, 'kernel': gradient['kernel'].at[0].multiply(100.0)}
  a, b = (
    step_of('muon', random(0), AXES, g, weight_decay=0.0)['kernel'] for g in (gradient, scaled)
  )
  np.testing.assert_allclose(a, b, atol=1e-4)


def test_decay_acts_on_matrices_and_embeddings_not_on_norms_and_biases():
  still = jax.tree.map(jnp.zeros_like, random(0))
  update = step_of('adamw', random(0), AXES, still, learning_rate=0.1)
  np.testing.assert_allclose(update['kernel'], -0.1 * 0.01 * random(0)['kernel'], rtol=1e-5)
  assert (
    np.asarray(update['embed']).any()
    and not np.asarray(update['norm']).any()
    and not np.asarray(update['bias']).any()
  )
  assert not any(
    np.asarray(u).any() for u in jax.tree.leaves(step_of('adam', random(0), AXES, still))
  )


def test_the_gradient_is_clipped_by_its_global_norm():
  options = dataclasses.replace(BASE, name='adam', clip_norm=1.0)
  clip = optimizer.make_optimizer(options, AXES, ()).transform
  state = clip.init(random(0))
  moment = clip.update(jax.tree.map(lambda x: 1000 * x, random(1)), state, random(0))[1]
  norm = np.sqrt(
    sum(np.square(m / 0.1).sum() for m in jax.tree.leaves(moment[1][0].mu))
  )  # first moment = .1 * gradient
  assert norm == pytest.approx(1, rel=1e-4)


def test_every_matrix_of_the_model_is_muons_and_every_table_adams():
  numbers = jax.tree.map(
    optimizer.matrix_axes, model.logical_axes(common.CONFIG), is_leaf=optimizer.is_axes
  )
  assert numbers['text']['layers']['q']['kernel'] == ((1,), (2,))
  assert numbers['visual']['deepstack']['fc1']['kernel'] == ((1,), (2,))
  assert numbers['visual']['patch_embed']['kernel'] == ((0, 1), (2,))
  for table in (
    numbers['text']['embed']['embedding'],
    numbers['visual']['pos_embed']['embedding'],
    numbers['text']['layers']['norm1']['scale'],
    numbers['visual']['blocks']['fc1']['bias'],
  ):
    assert table is None


def test_frozen_parameters_have_no_state():
  built = optimizer.make_optimizer(BASE, AXES, ('embed',))
  trainable, frozen = optimizer.partition(random(0), built.frozen)
  assert frozen.keys() == {'embed'} and 'embed' not in built.transform.init(trainable)[1][0].mu


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'lion'}, "OptimizerOptions.name='lion': wanted one of"),
    ({'schedule': 'linear'}, "OptimizerOptions.schedule='linear': wanted one of"),
  ],
)
def test_unknown_names_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    optimizer.make_optimizer(dataclasses.replace(BASE, **changes), AXES, ())


def test_an_unknown_frozen_name_is_refused():
  with pytest.raises(ConfigError, match="got \\['vision'\\], wanted names among"):
    optimizer.make_optimizer(BASE, AXES, ('vision',))


# The rate that acts is the rate that is logged

FALLING = dataclasses.replace(
  BASE, learning_rate=0.01, matrix_learning_rate=0.01, warmup_steps=2, total_steps=6
)
RATES = [
  0.005,
  0.01,
  0.01,
  0.01 * (2 + 2**0.5) / 4,
  0.005,
  0.01 * (2 - 2**0.5) / 4,
]  # warm-up of 2, then the cosine to 0 over 4


def signed():
  """Every parameter with a gradient moves by exactly the learning rate, so that a step shows which
  rate acted.
  """
  rate = optimizer.make_schedule(FALLING, FALLING.learning_rate)
  return optimizer.Optimizer(
    optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(rate)), rate, ()
  )


def batch(extras):
  rng = np.random.default_rng(0)
  arrays, used = common.packed([common.group(rng) for _ in range(4)], extras=extras).micro_batches(
    4
  )
  return step.put_batch(common.mesh_of(), arrays, used)


def acted(before, after):
  """The largest change of any parameter."""
  return np.abs(common.change(before, jax.device_get(after.params))).max()


@pytest.mark.slow
@pytest.mark.parametrize('updates', [1, 2])
def test_a_schedule_counts_batches_however_many_updates_each_makes(updates):
  rl, built = dataclasses.replace(common.RL, updates_per_batch=updates), signed()
  train = step.make_rl_step(common.CONFIG, built, common.mesh_of(), common.RL_MODEL, rl)
  learner, given, before = (
    common.fresh(built, common.mesh_of()),
    batch(step.RL_EXTRAS),
    common.params(),
  )
  for wanted in RATES:
    learner, totals = train(learner, given, common.params(1))
    assert metric_sums.reduce(totals)['optim/learning_rate'] == pytest.approx(wanted, rel=1e-5)
    assert acted(before, learner) == pytest.approx(updates * wanted, rel=1e-3)
    before = jax.device_get(learner.params)
  learner, totals = train(learner, given, common.params(1))
  assert (
    metric_sums.reduce(totals)['optim/learning_rate'] == acted(before, learner) == 0
  )  # the cosine has ended, and not before


@pytest.mark.slow
def test_a_skipped_update_does_not_hold_back_the_schedule():
  built = signed()
  train = step.make_sft_step(common.CONFIG, built, common.mesh_of(), common.MODEL)
  spoilt = jax.tree.map(np.copy, common.params())
  spoilt['text']['norm']['scale'][0] = np.inf
  learner, totals = train(
    state.from_params(common.CONFIG, built, common.mesh_of(), spoilt), batch(step.SFT_EXTRAS)
  )
  assert metric_sums.reduce(totals)['optim/skipped'] == 1
  mended = learner.replace(params=common.fresh(built, common.mesh_of()).params)
  learner, totals = train(mended, batch(step.SFT_EXTRAS))
  assert metric_sums.reduce(totals)['optim/learning_rate'] == pytest.approx(RATES[1], rel=1e-5)
  assert acted(common.params(), learner) == pytest.approx(RATES[1], rel=1e-3)


@pytest.mark.parametrize('name', ['adam', 'adamw', 'muon'])
def test_a_step_sets_every_schedule_and_nothing_else_of_an_optimizers_state(name):
  built = optimizer.make_optimizer(dataclasses.replace(FALLING, name=name), AXES, ())
  fresh = built.transform.init(random(0))
  moved = optimizer.at_step(fresh, jnp.int32(4))
  assert jax.tree.structure(moved) == jax.tree.structure(
    fresh
  )  # what was written before is still read
  counts = [
    (np.asarray(a).item(), np.asarray(b).item())
    for a, b in zip(jax.tree.leaves(fresh), jax.tree.leaves(moved))
    if not np.array_equal(a, b)
  ]
  assert counts == [(0, 4)] * (2 if name == 'muon' else 1)
  update = built.transform.update(random(1), moved, random(0))[0]
  straight, at_four = built.transform.update(random(1), fresh, random(0))[0], RATES[4] / RATES[0]
  np.testing.assert_allclose(update['norm'], straight['norm'] * at_four, rtol=1e-4)

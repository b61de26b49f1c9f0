"""The functions of the model: sizes, axes, freezing, the server's loop, single-sequence inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.errors import DataError
from paravt_jax.models import attention
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import PUBLISHED, Config, TextConfig, VisionConfig

IMAGE = 5
CONFIG = Config(
  TextConfig(
    vocab=50,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp=48,
    rope_theta=5e6,
    rope_sections=(4, 2, 2),
    norm_eps=1e-6,
    max_positions=512,
  ),
  VisionConfig(
    width=16, depth=2, mlp=24, heads=2, patch=16, merge=2, temporal=2, positions=16, taps=(0,)
  ),
  tied=True,
  image_id=IMAGE,
  video_id=6,
  vision_start_id=7,
  vision_end_id=8,
)


@pytest.fixture(scope='module')
def params():
  return model.init(CONFIG, jax.random.key(0))


@pytest.mark.parametrize(
  'name, count', [('2b', 2127532032), ('4b', 4437815808), ('8b', 8767123696), ('32b', 33357390064)]
)
def test_the_published_sizes_have_their_number_of_parameters(name, count):
  assert (
    sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params(PUBLISHED[name]()))) == count
  )


def test_every_parameter_names_one_logical_axis_per_dimension():
  shapes, axes = model.abstract_params(CONFIG), model.logical_axes(CONFIG)
  jax.tree.map(lambda leaf, names: np.testing.assert_equal(len(names), leaf.ndim), shapes, axes)
  assert axes['text']['layers']['q']['kernel'] == ('layers', 'embed', 'heads')
  assert axes['visual']['deepstack']['fc2']['kernel'] == ('taps', 'vision_mlp', 'embed')


def _inputs(seed=0):
  rng = np.random.default_rng(seed)
  images = [
    rng.integers(0, 256, (32, 64, 3), dtype=np.uint8),
    rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
  ]
  ids = np.array([1, 7, IMAGE, IMAGE, 8, 2, 7, IMAGE, 8, 3, 4], np.int32)
  return ids, images, model.single_inputs(CONFIG, ids, images)


def test_the_server_loop_gives_what_hidden_gives(params):
  _, _, inputs = _inputs()
  features = model.encode_images(
    CONFIG, params, inputs.patches_BNXPC, inputs.grids_BN2, jnp.float32
  )
  x = model.embed(params, inputs.tokens_BT, features, inputs.visual_index_BT, jnp.float32)
  seen = []

  def attend(layer, q, k, v):
    seen.append(layer)
    return attention.attend(q, k, v, inputs.segments_BT, inputs.branches_BT, backend='xla')

  got = model.run_layers(
    CONFIG, params, x, inputs.positions_ABT, features, inputs.visual_index_BT, attend
  )
  want = model.hidden(CONFIG, params, inputs, dtype=jnp.float32, remat='none', freeze_vision=True)
  assert seen == [0, 1, 2]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_features_from_a_store_replace_the_tower(params):
  _, _, inputs = _inputs()
  run = functools.partial(
    model.hidden, CONFIG, params, dtype=jnp.float32, remat='none', freeze_vision=True
  )
  features = model.encode_images(
    CONFIG, params, inputs.patches_BNXPC, inputs.grids_BN2, jnp.float32
  )
  blind = inputs._replace(patches_BNXPC=0 * inputs.patches_BNXPC)
  np.testing.assert_allclose(run(blind, features=features), run(inputs), atol=1e-6)
  assert np.abs(run(blind) - run(inputs)).max() > 1e-2


def _with_large_images(inputs):
  """The same row with its first image, the larger one, in a still slot: 1 frame slot of 4 patches,
  1 still slot of 8.
  """
  visual = np.where(
    inputs.visual_index_BT < 0,
    -1,
    np.where(inputs.visual_index_BT < 2, 1 + inputs.visual_index_BT, 0),
  ).astype(np.int32)
  patches, grids = np.asarray(inputs.patches_BNXPC), np.asarray(inputs.grids_BN2)
  return inputs._replace(
    visual_index_BT=visual,
    patches_BNXPC=patches[:, 1:, :4],
    grids_BN2=grids[:, 1:],
    large_images_BNXPC=patches[:, :1],
    large_image_grids_BN2=grids[:, :1],
  )


def test_an_image_in_a_still_slot_is_seen_as_in_a_frame_slot(params):
  _, _, inputs = _inputs()
  run = jax.jit(
    functools.partial(model.hidden, CONFIG, dtype=jnp.float32, remat='none', freeze_vision=False)
  )
  np.testing.assert_allclose(
    run(params, inputs=_with_large_images(inputs)), run(params, inputs=inputs), atol=1e-5
  )


@pytest.mark.slow
def test_still_slots_that_nobody_fills_change_nothing_and_give_no_gradient(params):
  _, _, inputs = _inputs()
  empty = inputs._replace(
    large_images_BNXPC=np.full((1, 2, 16, 1, 768), 7, np.uint8),
    large_image_grids_BN2=np.zeros((1, 2, 2), np.int32),
  )
  run = lambda p, inputs: model.hidden(
    CONFIG, p, inputs, dtype=jnp.float32, remat='layers', freeze_vision=False
  )
  loss = jax.jit(jax.value_and_grad(lambda p, inputs: jnp.sum(jnp.sin(run(p, inputs)))))
  (value, gradient), (value_empty, gradient_empty) = loss(params, inputs), loss(params, empty)
  np.testing.assert_allclose(value_empty, value, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient_empty, gradient)


@pytest.mark.parametrize('freeze', [True, False])
def test_a_frozen_tower_gets_no_gradient_and_a_free_one_gets_some_in_every_tensor(params, freeze):
  _, _, inputs = _inputs()
  weight = jax.random.normal(jax.random.key(1), (1, 11, 32))
  loss = lambda p: jnp.sum(
    weight * model.hidden(CONFIG, p, inputs, dtype=jnp.float32, remat='none', freeze_vision=freeze)
  )
  gradient = jax.jit(jax.grad(loss))(params)
  moved = [bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradient['visual'])]
  assert not any(moved) if freeze else all(moved)
  assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradient['text']))


def test_a_suffix_after_a_shared_prefix_has_the_logits_of_its_own_sequence(params):
  row = model.Inputs(
    np.array([[1, 2, 3, 9, 10, 11, 12, 0]]),
    np.tile(np.array([0, 1, 2, 3, 4, 3, 4, 0]), (3, 1, 1)),
    np.array([[1, 1, 1, 1, 1, 1, 1, 0]]),
    np.array([[0, 0, 0, 1, 1, 2, 2, 0]]),
    np.full((1, 8), -1),
    np.zeros((1, 0, 4, 1, 768), np.uint8),
    np.zeros((1, 0, 2), np.int32),
  )
  row = jax.tree.map(lambda a: a.astype(np.int32) if a.dtype == np.int64 else a, row)
  x = model.hidden(CONFIG, params, row, dtype=jnp.float32, remat='none', freeze_vision=True)
  got = (x @ model.head(params, CONFIG))[0]
  np.testing.assert_allclose(got[:5], model.logits(CONFIG, params, [1, 2, 3, 9, 10], []), atol=1e-5)
  np.testing.assert_allclose(
    got[5:7], model.logits(CONFIG, params, [1, 2, 3, 11, 12], [])[3:], atol=1e-5
  )


def test_every_earlier_frame_and_no_later_one_changes_a_logit(params):
  ids, images, _ = _inputs()
  before = model.logits(CONFIG, params, ids, images)
  for i, first in ((0, 2), (1, 7)):
    changed = [255 - image if j == i else image for j, image in enumerate(images)]
    moved = np.abs(model.logits(CONFIG, params, ids, changed) - before).max(axis=1) > 1e-6
    assert not moved[:first].any() and moved[first:].all()


def test_bfloat16_compute_keeps_float32_masters_and_stays_near(params):
  _, _, inputs = _inputs()
  run = lambda dtype: model.hidden(
    CONFIG, params, inputs, dtype=dtype, remat='none', freeze_vision=True
  )
  assert run(jnp.bfloat16).dtype == jnp.bfloat16
  assert np.abs(np.asarray(run(jnp.bfloat16), np.float32) - run(jnp.float32)).mean() < 0.05


@pytest.mark.parametrize(
  'image',
  [
    np.zeros((32, 48, 3), np.uint8),
    np.zeros((32, 32, 3), np.float32),
    np.zeros((32, 32), np.uint8),
  ],
)
def test_an_image_that_is_not_whole_merged_tokens_is_refused(params, image):
  with pytest.raises(DataError, match=r'image 0: got .* sides multiples of 32'):
    model.logits(CONFIG, params, [1, IMAGE], [image])

"""The tower on packed slots: what is empty is skipped, and each grid is interpolated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models.qwen3_vl import model, tower, vision
from tests.models.qwen3_vl.model_test import CONFIG

GRIDS = np.array([[(2, 4), (2, 2), (2, 4), (0, 0)], [(4, 2), (4, 2), (2, 2), (2, 2)]], np.int32)


@pytest.fixture(scope='module')
def params():
  return model.init(CONFIG, jax.random.key(0))


def slots(count):
  """Patches of two rows with `count` slots, of which the first four may hold GRIDS."""
  rng = np.random.default_rng(0)
  patches = rng.integers(0, 256, (2, count, 8, 1, 768), dtype=np.uint8)
  grids = np.zeros((2, count, 2), np.int32)
  grids[:, :4] = GRIDS
  return patches, grids


def real(features, images):
  """The merged tokens and DeepStack features of real patches of the first slots."""
  exists = np.arange(2) < GRIDS.prod(-1)[..., None] // 4
  found = [features.merged_BNYD[:, :images][exists[:, :images]]]
  return [*found, *(one[:, :images][exists[:, :images]] for one in features.deepstack_JBNYD)]


@pytest.mark.parametrize('remat', ['none', 'layers', 'attention'])
def test_slots_in_blocks_give_what_each_image_alone_gives_and_empty_blocks_zeros(params, remat):
  patches, grids = slots(16)
  found = tower.encode_images(CONFIG, params, patches, grids, jnp.float32, remat=remat)
  alone = [
    tower.encode_images(CONFIG, params, patches[:, n : n + 1], grids[:, n : n + 1], jnp.float32)
    for n in range(4)
  ]
  together = tower.Features(
    jnp.concatenate([one.merged_BNYD for one in alone], 1),
    jnp.concatenate([one.deepstack_JBNYD for one in alone], 2),
  )
  for one, other in zip(real(found, 4), real(together, 4)):
    np.testing.assert_allclose(one, other, atol=1e-5)
  # slots 4.. are empty: whole blocks of 4 that no row fills
  assert not found.merged_BNYD[:, 4:].any() and not found.deepstack_JBNYD[:, :, 4:].any()


def test_empty_blocks_are_not_computed(params):
  patches, grids = slots(16)
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
  found = tower.encode_images(CONFIG, broken, patches, grids, jnp.float32)
  assert np.isnan(found.merged_BNYD[:, :4]).any() and not found.merged_BNYD[:, 4:].any()


@pytest.mark.slow
def test_the_gradient_of_blocks_is_that_of_images_alone(params):
  patches, grids = slots(5)

  def loss(visual, encode):
    return sum(jnp.sin(one).sum() for one in encode({**params, 'visual': visual}))

  def blocks(params):
    features = tower.encode_images(CONFIG, params, patches, grids, jnp.float32, remat='layers')
    return real(features, 4)

  def alone(params):
    one = [
      tower.encode_images(CONFIG, params, patches[:, n : n + 1], grids[:, n : n + 1], jnp.float32)
      for n in range(4)
    ]
    features = tower.Features(
      jnp.concatenate([f.merged_BNYD for f in one], 1),
      jnp.concatenate([f.deepstack_JBNYD for f in one], 2),
    )
    return real(features, 4)

  got, want = (jax.grad(loss)(params['visual'], encode) for encode in (blocks, alone))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_positions_of_few_grids_are_those_of_every_image_by_itself():
  rng = np.random.default_rng(1)
  x_BNXW = jnp.asarray(rng.normal(size=(2, 4, 8, 16)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)
  row, column, exists = vision.patch_places(CONFIG.vision, jnp.asarray(GRIDS), 8)
  want = x_BNXW + vision.interpolated_positions(table, row, column, jnp.asarray(GRIDS))
  run = lambda x: vision.add_positions(CONFIG.vision, table, x, jnp.asarray(GRIDS))
  np.testing.assert_allclose(run(x_BNXW)[exists], want[exists], atol=1e-6)
  # the four corners of every patch of every image are never in memory together
  text = str(jax.make_jaxpr(run)(x_BNXW))
  assert 'f32[2,1,8,4,16]' in text and 'f32[2,4,8,4,16]' not in text

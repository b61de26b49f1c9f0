"""Our logits and gradients are those of transformers' Qwen3VLForConditionalGeneration, in
float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from paravt_jax.models.qwen3_vl import model, positions, weights
from paravt_jax.video import patches
from tests.models.qwen3_vl import oracle

SIZES = {
  'unrolled, tied': {'tied': True, 'layers': 3, 'depth': 3, 'taps': (0, 2)},
  'scanned, untied': {'tied': False, 'layers': 6, 'depth': 6, 'taps': (1, 3, 4)},
}


@pytest.fixture(scope='module', params=SIZES)
def pair(request, tmp_path_factory):
  """(torch model, our config, our params) with the same random weights."""
  theirs = oracle.torch_model(**SIZES[request.param])
  folder = tmp_path_factory.mktemp('hf')
  theirs.save_pretrained(folder)
  return theirs, *weights.load_hf(folder)


def _image(rng, rows, columns):
  return rng.integers(0, 256, (32 * rows, 32 * columns, 3), dtype=np.uint8)


def _ids(rng, images):
  """Text, then each image in its vision tokens, text between."""
  ids = list(rng.integers(0, 50, 4))
  for image in images:
    ids += [
      oracle.START,
      *[oracle.IMAGE] * (image.shape[0] * image.shape[1] // 1024),
      oracle.END,
      *rng.integers(0, 50, 3),
    ]
  return np.array(ids, np.int32)


@pytest.mark.parametrize(
  'shapes',
  [[], [(2, 3)], [(1, 1), (3, 2), (1, 4), (2, 2)]],
  ids=['text', 'an image', 'several images'],
)
def test_logits_agree_to_1e_4(pair, shapes):
  theirs, config, params = pair
  rng = np.random.default_rng(0)
  images = [_image(rng, *shape) for shape in shapes]
  ids = _ids(rng, images)
  with torch.no_grad():
    want = oracle.torch_logits(theirs, ids, images=images).numpy()
  got = model.logits(config, params, ids, images)
  assert got.dtype == jnp.float32 and np.abs(want).max() > 1
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def _video_inputs(config, ids, video):
  """One row with one native video: every temporal patch is an image with two frames."""
  pairs, height, width = len(video) // 2, video.shape[1] // 16, video.shape[2] // 16
  flat = [
    np.stack([patches.patchify(f)[0] for f in pair], axis=1)
    for pair in video.reshape(pairs, 2, *video.shape[1:])
  ]
  spots, _ = positions.mrope_positions(
    ids,
    oracle.IMAGE,
    [],
    video_id=oracle.VIDEO,
    video_grids=[(height // 2, width // 2)] * pairs,
  )
  visual = np.full((1, len(ids)), -1, np.int32)
  visual[0, ids == oracle.VIDEO] = np.arange(pairs * height * width // 4)
  ones = np.ones((1, len(ids)), np.int32)
  grids = np.full((1, pairs, 2), (height, width), np.int32)
  return model.Inputs(
    ids[None], spots[:, None], ones, 0 * ones, visual, np.stack(flat)[None], grids
  )


def _all_logits(config, params, inputs, **options):
  x = model.hidden(
    config, params, inputs, dtype=jnp.float32, remat='none', freeze_vision=False, **options
  )
  return x @ model.head(params, config)


def test_native_video_agrees_to_1e_4(pair):
  theirs, config, params = pair
  rng = np.random.default_rng(1)
  video = rng.integers(0, 256, (6, 64, 96, 3), dtype=np.uint8)
  ids = [1, 2]
  for second in range(3):
    ids += [10 + second, oracle.START, *[oracle.VIDEO] * 6, oracle.END]
  ids = np.array([*ids, 3, 4], np.int32)
  with torch.no_grad():
    want = oracle.torch_logits(theirs, ids, video=video).numpy()
  got = _all_logits(config, params, _video_inputs(config, ids, video))[0]
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def _packed(config, rng):
  """Three documents in one row with padding behind, each with images; and what transformers needs
  to see the same.
  """
  documents = [[(1, 2)], [], [(2, 2), (1, 1)]]
  images = [[_image(rng, *shape) for shape in shapes] for shapes in documents]
  parts = [model.single_inputs(config, _ids(rng, i), i) for i in images]
  most = max(p.patches_BNXPC.shape[2] for p in parts)
  pad = lambda a: np.pad(a, [(0, 0), (0, 0), (0, most - a.shape[2]), (0, 0), (0, 0)])
  visual, first = [], 0
  for part in parts:  # indices move on by the images before, each of most / 4 merged tokens
    own = max(part.patches_BNXPC.shape[2] // 4, 1)
    moved = (
      part.visual_index_BT // own * (most // 4) + part.visual_index_BT % own + first * (most // 4)
    )
    visual.append(np.where(part.visual_index_BT >= 0, moved, -1))
    first += part.patches_BNXPC.shape[1]
  join = lambda name: np.concatenate([getattr(p, name) for p in parts], axis=-1)
  segments = np.concatenate([np.full_like(p.tokens_BT, i + 1) for i, p in enumerate(parts)], axis=1)
  inputs = model.Inputs(
    join('tokens_BT'),
    join('positions_ABT'),
    segments,
    0 * segments,
    np.concatenate(visual, axis=1),
    np.concatenate([pad(p.patches_BNXPC) for p in parts], axis=1),
    np.concatenate([p.grids_BN2 for p in parts], axis=1),
  )
  longer = {
    n: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 5)])
    for n, a in inputs._asdict().items()
    if n.endswith('BT')
  }
  resets = np.concatenate([np.arange(p.tokens_BT.shape[1]) for p in parts])[None, None]
  four = np.concatenate([resets, inputs.positions_ABT])
  return inputs._replace(**longer), [i for own in images for i in own], four, parts, images


@pytest.mark.parametrize('backend', ['xla', 'chunked'])
def test_several_packed_sequences_agree_to_1e_4_with_transformers_and_with_each_alone(
  pair, backend
):
  theirs, config, params = pair
  inputs, images, four, parts, own_images = _packed(config, np.random.default_rng(2))
  length = four.shape[-1]
  with torch.no_grad():
    want = oracle.torch_logits(
      theirs, inputs.tokens_BT[0, :length], images=images, position_ids=four
    ).numpy()
  got = np.asarray(_all_logits(config, params, inputs, backend=backend))[0, :length]
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
  alone = [model.logits(config, params, p.tokens_BT[0], i) for p, i in zip(parts, own_images)]
  np.testing.assert_allclose(got, np.concatenate(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize('remat', ['none', 'layers'])
def test_gradients_of_a_small_loss_agree_to_1e_3_relative_for_every_tensor(pair, remat):
  theirs, config, params = pair
  rng = np.random.default_rng(3)
  images = [_image(rng, 1, 2), _image(rng, 2, 2)]
  ids = _ids(rng, images)
  inputs = model.single_inputs(config, ids, images)

  def loss(p):
    x = model.hidden(config, p, inputs, dtype=jnp.float32, remat=remat, freeze_vision=False)[0]
    logprob = jax.nn.log_softmax(x @ model.head(p, config))
    return -jnp.mean(logprob[jnp.arange(len(ids) - 1), ids[1:]])

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  theirs.zero_grad()
  logprob = torch.log_softmax(oracle.torch_logits(theirs, ids, images=images), dim=-1)
  want = -logprob[torch.arange(len(ids) - 1), torch.tensor(ids[1:]).long()].mean()
  want.backward()
  assert float(value) == pytest.approx(want.item(), rel=1e-5)
  gradient = jax.tree.map(np.asarray, gradient)
  by_name = dict(theirs.named_parameters())
  scale = max(float(w.grad.norm()) for w in by_name.values())
  for name, slot in weights.name_table(config).items():
    got = weights.pick(config, gradient, slot)
    right = by_name[name].grad.numpy()
    assert np.linalg.norm(got - right) <= 1e-3 * np.linalg.norm(right) + 1e-7 * scale, name

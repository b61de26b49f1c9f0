"""FLOPs: against XLA's own count of the learner's step, and of published sizes by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models.qwen3_vl import model, tower
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.orchestrator import parts
from paravt_jax.orchestrator.plan import flops, shapes, state
from paravt_jax.orchestrator.plan.shapes import Load
from paravt_jax.row_layout import Shape
from paravt_jax.train import state as states
from paravt_jax.train import step
from tests.orchestrator.plan.requests import request

# Up to four layers are unrolled, and one micro-batch of one chunk has loops that run once: so XLA,
# which counts the body of a loop once, counts all of this model. It is wide enough for products to
# outweigh the other passes.
NARROW = Config(
  text=TextConfig(
    vocab=4096,
    width=512,
    layers=4,
    heads=8,
    kv_heads=4,
    head_dim=64,
    mlp=1536,
    rope_theta=1e4,
    rope_sections=(12, 10, 10),
    norm_eps=1e-6,
    max_positions=4096,
  ),
  vision=VisionConfig(
    width=256, depth=3, mlp=512, heads=4, patch=16, merge=2, temporal=2, positions=64, taps=(0, 1)
  ),
  tied=False,
  image_id=1,
  video_id=2,
  vision_start_id=3,
  vision_end_id=4,
)
TRAIN = {
  'train__backend': 'xla',
  'train__row_tokens': 256,
  'train__row_images': 1,  # several slots are a loop, of which XLA counts one round
  'train__image_patches': 256,
  'train__rows': 1,
  'train__micro_batches': 1,
  'train__head_chunk': 256,
}
FROZEN = {'train__freeze_vision': True, 'optimizer__name': 'adamw'}


def counted(job, rl):
  """FLOPs of the learner's step as XLA counts them before it optimizes."""
  optimizer, mesh = state.optimizer_of(job), parts.make_mesh(job.mesh)
  options = parts.model_options(job.train, 1.0, ())
  train, extras = job.train, step.SFT_EXTRAS if rl is None else step.RL_EXTRAS
  row = (1, train.rows, train.row_tokens)
  batch = {
    name: jax.ShapeDtypeStruct(row, np.int32)
    for name in ('tokens', 'segments', 'branches', 'visual_index', 'predecessor')
  }
  batch |= {name: jax.ShapeDtypeStruct(row, kind) for name, kind in extras.items()}
  slots = (1, train.rows, train.row_images)
  batch |= {
    'positions': jax.ShapeDtypeStruct((1, train.rows, 3, train.row_tokens), np.int32),
    'patches': jax.ShapeDtypeStruct((*slots, train.image_patches, 1, 768), np.uint8),
    'grids': jax.ShapeDtypeStruct((*slots, 2), np.int32),
    'used': jax.ShapeDtypeStruct((), np.int32),
  }
  abstract = states.abstract(job.model, optimizer, mesh)
  if rl is None:
    lowered = step.make_sft_step(job.model, optimizer, mesh, options).lower(abstract, batch)
  else:
    made = step.make_rl_step(job.model, optimizer, mesh, options, rl).jitted
    lowered = made.lower(abstract, batch, abstract.params if rl.beta > 0 else None)
  return lowered.cost_analysis()['flops']


def load(job, scored):
  length = job.train.row_tokens
  return Load(
    documents=1,
    tokens=length,
    trained=length,
    images=1,
    rows=1,
    micro_batches=1,
    fill=1.0,
    image_fill=1.0,
    visible_pairs=length**2 // 2,
    multiplied_pairs=length**2,
    scored=scored,
    limit='tokens',
    shape=Shape(length, 1, 1),
    full_micro_batches=1,
  )


@pytest.mark.parametrize(
  'changes',
  [
    {'train__remat': 'none'},
    {'train__remat': 'layers'},
    {'train__remat': 'layers', 'train__freeze_vision': False},
    {'train__remat': 'none', 'optimizer__name': 'muon'},
  ],
  ids=['plain', 'remat', 'tower', 'muon'],
)
def test_flops_of_an_sft_step_are_xlas_within_five_per_cent(changes):
  asked = request('sft:tiny', **{**TRAIN, **FROZEN, **changes})
  job = dataclasses.replace(asked.job, model=NARROW)
  own = flops.made(job, load(job, 256)).total
  assert own == pytest.approx(counted(job, None), rel=0.05)


@pytest.mark.parametrize('slots', [1, 4])
@pytest.mark.parametrize('remat', ['none', 'layers'])
def test_flops_of_a_trained_tower_are_xlas_within_five_per_cent(slots, remat):
  asked = request(
    'sft:tiny',
    **{**TRAIN, 'train__row_images': slots, 'train__remat': remat},
    train__freeze_vision=False,
  )
  job = dataclasses.replace(asked.job, model=NARROW)

  def loss(params, patches, grids):
    found = tower.encode_images(
      NARROW, params, patches, grids, jnp.float32, remat=remat, backend='xla'
    )
    return (found.merged_BNYD**2).sum() + (found.deepstack_JBNYD**2).sum()

  patches = jax.ShapeDtypeStruct((1, slots, 256, 1, 768), np.uint8)
  grids = jax.ShapeDtypeStruct((1, slots, 2), np.int32)
  lowered = jax.jit(jax.grad(loss)).lower(model.abstract_params(NARROW), patches, grids)
  # four slots are a loop over blocks of one, which XLA counts once
  assert flops.tower_flops(job) == pytest.approx(lowered.cost_analysis()['flops'], rel=0.05)


@pytest.mark.parametrize('backend', ['chunked', 'xla'])
def test_flops_that_the_policy_attention_saves_are_xlas(backend):
  counts, own = {}, {}
  for remat in ('layers', 'attention'):
    asked = request(
      'sft:tiny', **{**TRAIN, **FROZEN, 'train__backend': backend, 'train__remat': remat}
    )
    job = dataclasses.replace(asked.job, model=NARROW)
    counts[remat] = counted(job, None)
    own[remat] = flops.made(job, load(job, 256)).total
  saved = own['layers'] - own['attention']
  assert saved == (0 if backend == 'xla' else 2 * 2 * 8 * 64 * 4 * 256**2)
  # two products of every layer: scores, and weights by values
  assert counts['layers'] - counts['attention'] == pytest.approx(saved, rel=0.4, abs=2e7)


def test_flops_of_an_rl_step_are_xlas_within_five_per_cent():
  asked = request('rl:tiny', **TRAIN, rl__beta=0.0, optimizer__name='adam')
  job = dataclasses.replace(asked.job, model=NARROW)
  own = flops.made(job, load(job, 256)).total
  assert own == pytest.approx(counted(job, asked.recipe.rl), rel=0.05)


def test_the_8b_models_layers_have_the_weights_of_its_matrices():
  text = request('rl:8b').model.text
  # q and o: 4096 x 4096, k and v: 4096 x 1024, gate, up and down: 4096 x 12288
  assert flops.layer_weights(text) == 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288
  assert flops.text_weights(text) == 36 * 192_937_984


def test_a_frame_of_the_8b_tower_takes_the_flops_that_its_compiled_program_has():
  vision = request('rl:8b').model.vision
  # 183.9 TFLOP for 512 frames of 196 patches, twice (policy and reference), compiled for H100
  assert 1024 * flops.image_flops(vision, 4096, 196) / 1e12 == pytest.approx(183.9, rel=0.02)


def test_a_text_micro_batch_of_rl_8b_takes_the_flops_that_its_compiled_program_has():
  asked = request('rl:8b', train__backend='xla')
  one = dataclasses.replace(load(asked.job, 32768 * 8), rows=8, visible_pairs=1, multiplied_pairs=1)
  made = flops.made(asked.job, one)
  # per device: 2157.2 TFLOP in the layers; 203.9 in a head of all 32 chunks
  assert made.text / 8 / 1e12 == pytest.approx(2157.2, rel=0.005)
  assert made.head / 8 / 1e12 == pytest.approx(203.9, rel=0.005)


def test_more_updates_of_a_batch_score_it_once_more():
  once = flops.passes_of(request('rl:8b').job)
  thrice = flops.passes_of(request('rl:8b', rl__updates_per_batch=3).job)
  assert (once.forward, once.again, once.backward) == (2, 1, 1)
  # reference and prox before the first update, then three updates
  assert (thrice.forward, thrice.again, thrice.backward) == (5, 3, 3)


def test_needed_flops_are_below_those_made_and_do_not_depend_on_the_backend():
  plain, tiled = (
    shapes.pack(asked.job, shapes.documents_of_rl(asked.recipe, asked.shape))
    for asked in (request('rl:8b', train__backend=name) for name in ('xla', 'chunked'))
  )
  assert plain.multiplied_pairs > tiled.multiplied_pairs > tiled.visible_pairs
  job = request('rl:8b').job
  assert flops.needed(job, plain) == flops.needed(job, tiled)
  assert flops.needed(job, tiled).total < flops.made(job, tiled).total


def test_jax_counts_a_product_as_two_flops_per_number():
  product = jax.jit(jnp.matmul).lower(jnp.zeros((64, 128)), jnp.zeros((128, 32)))
  assert product.compile().cost_analysis()['flops'] == 2 * 64 * 128 * 32

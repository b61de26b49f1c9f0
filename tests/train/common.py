"""A model of a few thousand parameters, documents for it, and steps built once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.packing import Sample, Tree, pack
from paravt_jax.train import state, step
from paravt_jax.train.optimizer import Optimizer

PAD = 5
CONFIG = Config(
  text=TextConfig(
    vocab=64,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    rope_theta=1e4,
    rope_sections=(2, 1, 1),
    norm_eps=1e-6,
    max_positions=512,
  ),
  vision=VisionConfig(
    width=16, depth=1, mlp=32, heads=2, patch=16, merge=2, temporal=2, positions=16, taps=(0,)
  ),
  tied=True,
  image_id=PAD,
  video_id=6,
  vision_start_id=3,
  vision_end_id=4,
)
MODEL = step.ModelOptions(
  dtype='float32', remat='none', backend='xla', head_chunk=16, temperature=1.0, banned=()
)
RL_MODEL = step.ModelOptions(
  dtype='float32', remat='none', backend='xla', head_chunk=16, temperature=0.7, banned=(5, 6)
)
RL = step.RLOptions(
  clip=0.2, weight_cap=5.0, beta=0.5, kl_limit=10.0, batch_norm='std', updates_per_batch=1
)


def sgd(rate=1.0, frozen=()):
  """Plain gradient descent, so that a step's parameter change is its gradient."""
  return Optimizer(optax.sgd(rate), optax.constant_schedule(rate), frozen)


def adam(rate=0.1):
  """An optimizer with moments, which a gradient may spoil."""
  return Optimizer(optax.adam(rate), optax.constant_schedule(rate), ())


def mesh_of(data=1, fsdp=1, tensor=1, context=1):
  """A mesh over the first devices."""
  devices = jax.devices()[: data * fsdp * tensor * context]
  return sharding.make_mesh(data, fsdp, tensor, devices, context=context)


def picture(rng):
  """One 32 x 32 image: one token."""
  return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def sample(rng, length, images=0, trained=0.5, advantage=0.0):
  """Random tokens, `images` placeholders in the first half, the last share of the tokens trained, a
  behaviour near uniform.
  """
  ids = rng.integers(10, 64, length).astype(np.int32)
  if images:
    ids[rng.choice(np.arange(1, max(length // 2, 2)), images, replace=False)] = PAD
  mask = (np.arange(length) >= length * (1 - trained)) & (ids != PAD)
  extras = {
    'mask': mask,
    'advantage': np.full(length, advantage),
    'behavior': rng.normal(-4, 0.3, length),
    'token_class': rng.integers(0, 3, length),
  }
  return Sample(ids, tuple(picture(rng) for _ in range(images)), extras)


def group(rng, prefix=8, suffixes=(7, 5, 9), images=2, trained=0.7):
  """A prompt with frames and its rollouts, with advantages that differ."""
  return Tree(
    sample(rng, prefix, images, 0.0),
    tuple(sample(rng, n, 0, trained, rng.normal()) for n in suffixes),
  )


def packed(trees, *, rows_multiple=4, row_tokens=32, extras=step.RL_EXTRAS, **large_images):
  """Rows of 32 tokens and up to 4 images of 4 patches; `large_images` are pack's row_large_images
  and large_image_patches.
  """
  return pack(
    trees,
    row_tokens=row_tokens,
    row_images=4,
    image_patches=4,
    image_id=PAD,
    rows_multiple=rows_multiple,
    extras=extras,
    **large_images,
  )


@functools.cache
def params(seed=0):
  """Random parameters on the host, enlarged so that attention and vision matter."""
  return jax.tree.map(lambda x: np.asarray(x) * 1.5, model.init(CONFIG, jax.random.key(seed)))


def fresh(optimizer, mesh, seed=0):
  """A new state around `params(seed)`."""
  return state.from_params(CONFIG, optimizer, mesh, params(seed))


@functools.cache
def logprob_step(options=MODEL):
  """The log-prob of every token of the first micro-batch, as the steps score it, on one device."""

  def run(values, batch):
    micro = step._micro_batch(batch, jnp.int32(0))
    wanted_RT = jnp.ones(micro['tokens'].shape, bool)
    args = (CONFIG, sgd(), mesh_of(), options, values, micro, wanted_RT)
    return step._scores(*args).logprob_RT

  return jax.jit(run)


def logprobs(rows, values=None, options=MODEL):
  """float32[R, T] of packed rows under `values` (params() by default)."""
  arrays, used = rows.micro_batches(rows.rows)
  batch = step.put_batch(mesh_of(), arrays, used)
  return np.asarray(logprob_step(options)(params() if values is None else values, batch))


def change(before, after):
  """One vector of all parameter changes."""
  pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before))
  return np.concatenate([np.ravel(np.asarray(a) - np.asarray(b)) for a, b in pairs])


def relative(a, b):
  """|a - b| / |b|."""
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))

"""FLOPs of a step: two for each product of two numbers that is added to a sum.

`made` is what the program multiplies: padding, whole chunks, whole tiles, layers computed again.
`needed` is what the data asks for, computed once. Softmax, norms and other passes over arrays are
left out; they are below two per cent at published sizes.
"""

import dataclasses
import math

import jax

from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.models.sharding import is_axes
from paravt_jax.orchestrator.plan.job import Job
from paravt_jax.orchestrator.plan.shapes import Load
from paravt_jax.train.optimizer import matrix_axes, partition

# Whether policy and reference share the features of a frozen tower (train/step.py).
FEATURES_ONCE = True
# Products of attention's backward pass, of which each is as large as one of the two in the forward
# pass: a backend that stores its weights has four, the others compute the scores again.
_BACKWARD = {'xla': 4}
_BACKWARD_TILED = 5
_MUON_ITERATIONS = 5  # of Newton-Schulz, optax.contrib.muon's own number


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of one step over all devices, by part."""

  text: float
  attention: float
  head: float
  vision: float
  update: float  # of the optimizer: Muon's products

  @property
  def total(self) -> float:
    """Returns the sum of the parts."""
    return self.text + self.attention + self.head + self.vision + self.update


@dataclasses.dataclass(frozen=True)
class Passes:
  """How often a step runs through the model."""

  forward: int  # without layers computed again
  again: int  # layers computed again, for the backward pass
  backward: int  # gradients of activations
  weights: int  # gradients of the decoder's and the head's own weights
  tower: int  # forward passes of the vision tower


def passes_of(job: Job) -> Passes:
  """Returns how often a step runs each direction."""
  extra = int(job.reference) + int(job.updates > 1)  # reference, and prox log-probs
  tower = job.updates + extra
  if FEATURES_ONCE and job.train.freeze_vision:
    tower = 1
  return Passes(
    forward=job.updates + extra,
    again=0 if job.train.remat == 'none' else job.updates,
    backward=job.updates,
    weights=job.updates if job.model.adapter is None else 0,
    tower=tower,
  )


def layer_weights(text: TextConfig) -> int:
  """Returns the weights of one decoder layer's matrices."""
  heads = text.width * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
  return heads + 3 * text.width * text.mlp


def text_weights(text: TextConfig) -> int:
  """Returns the weights of all decoder layers' matrices."""
  return text.layers * layer_weights(text)


def adapter_weights(model: Config) -> int:
  """Returns the numbers of an adapter's matrices; 0 without one."""
  if model.adapter is None:
    return 0
  text, rank = model.text, model.adapter.rank
  inner, outer = text.heads * text.head_dim, text.kv_heads * text.head_dim
  sides = {
    'q': text.width + inner,
    'k': text.width + outer,
    'v': text.width + outer,
    'o': inner + text.width,
    'gate': text.width + text.mlp,
    'up': text.width + text.mlp,
    'down': text.mlp + text.width,
  }
  return text.layers * rank * sum(sides[product] for product in model.adapter.products)


def image_flops(vision: VisionConfig, width: int, patches: int) -> float:
  """Returns the FLOPs of one image slot through the tower and its mergers."""
  pixels = 3 * vision.patch**2
  block = 4 * vision.width**2 + 2 * vision.width * vision.mlp
  joined = vision.merge**2 * vision.width
  merger = joined**2 + joined * width
  products = patches * (pixels * vision.width + vision.depth * block)
  products += patches // vision.merge**2 * merger * (1 + len(vision.taps))
  return 2.0 * products + vision.depth * 4.0 * patches**2 * vision.width


def tower_flops(job: Job) -> float:
  """Returns the FLOPs of one image slot in a step, over all passes."""
  passes, vision = passes_of(job), job.model.vision
  slots, patches = job.image_slots[0]
  one = image_flops(vision, job.model.text.width, patches)
  if job.train.freeze_vision:
    return one * passes.tower
  # layers are computed again, but for their last product; where slots lie in several blocks
  # (models/qwen3_vl/tower.py), a block as a whole is computed again before that
  layer = 4 * vision.width**2 + vision.width * vision.mlp
  layers = vision.depth * (2.0 * patches * layer + 4.0 * patches**2 * vision.width)
  again = layers + (one if slots > 1 else 0.0)
  return one * (passes.tower + 2 * passes.backward) + again * passes.again


def made(job: Job, load: Load) -> Flops:
  """Returns what the program multiplies in one step."""
  passes, text = passes_of(job), job.model.text
  tokens = load.micro_batches * job.train.rows * job.row_tokens
  # a layer that is computed again leaves out its last product, whose result nothing reads
  again = text.layers * (layer_weights(text) - text.width * text.mlp)
  weights = text_weights(text) * (passes.forward + passes.backward + passes.weights)
  weights += again * passes.again
  weights += adapter_weights(job.model) * (passes.forward + passes.again + 2 * passes.backward)
  pair = 2.0 * text.heads * text.head_dim * text.layers
  # the policy `attention` keeps the output of a backend that has its own backward pass
  kept = job.train.remat == 'attention' and job.backend not in _BACKWARD
  products = 2 * (passes.forward + (0 if kept else passes.again))
  products += _BACKWARD.get(job.backend, _BACKWARD_TILED) * passes.backward
  # logits are computed again in the backward pass
  logits = passes.forward + 2 * passes.backward + passes.weights
  rows = load.micro_batches * job.train.rows
  return Flops(
    text=2.0 * weights * tokens,
    attention=pair * products * load.multiplied_pairs,
    head=2.0 * text.width * text.vocab * logits * load.scored,
    vision=rows * job.row_images * tower_flops(job),
    update=job.updates * _muon_flops(job),
  )


def needed(job: Job, load: Load) -> Flops:
  """Returns what the data of one step asks for: forward and backward once, and the reference."""
  passes, text = passes_of(job), job.model.text
  times = passes.forward + 2 * passes.backward
  own = passes.forward + passes.backward + passes.weights
  image = image_flops(job.model.vision, text.width, job.train.image_patches)
  weights = text_weights(text) * own + adapter_weights(job.model) * times
  return Flops(
    text=2.0 * weights * load.tokens,
    attention=4.0 * text.heads * text.head_dim * text.layers * times * load.visible_pairs,
    head=2.0 * text.width * text.vocab * own * load.trained,
    vision=image * load.images * (1 if job.train.freeze_vision else 3),
    update=job.updates * _muon_flops(job),
  )


def _muon_flops(job: Job) -> float:
  """Returns the products with which Muon makes every trained matrix orthogonal; 0 for others.

  An iteration of Newton-Schulz on m x n (m <= n) has two products of m^2 n and one of m^3.
  """
  if job.optimizer.name != 'muon':
    return 0.0
  every = model.logical_axes(job.model)
  frozen = ('visual',) if job.train.freeze_vision else ()
  if job.model.adapter is not None:
    frozen = tuple(name for name in every if name != lora.PART)
  axes, _ = partition(every, frozen)
  leaves, _ = partition(model.abstract_params(job.model), frozen)
  total = 0.0
  for names, leaf in zip(jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(leaves)):
    found = matrix_axes(names)
    if found is None:
      continue
    sides = [
      math.prod(leaf.shape[axis] for axis in side)
      for side in (found.reduction_axis, found.output_axis)
      if isinstance(side, tuple)
    ]
    small, large = min(sides), max(sides)
    stacked = math.prod(leaf.shape) // (small * large)
    total += stacked * 2.0 * (2 * small**2 * large + small**3)
  return _MUON_ITERATIONS * total

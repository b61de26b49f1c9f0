"""Memory of one micro-batch on one device, by formulas for the learner's program.

The program runs these phases one after the other, and each takes the memory that the phase before
has freed: the vision tower, the layers forward, the head forward and backward, the layers backward.
So the peak is what stays (saved layer inputs, image features) and the largest phase.

The constants say how many arrays of a kind a phase holds at once. They were fitted to compiled
programs (`python -m experiments.plan ... --compile` shows both figures): change them when the
program changes.
"""

import dataclasses

from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import TextConfig
from paravt_jax.orchestrator.options import SFTTrainOptions
from paravt_jax.orchestrator.plan.flops import layer_weights, text_weights
from paravt_jax.orchestrator.plan.job import Job
from paravt_jax.row_layout import Shape
from paravt_jax.train import step

# One layer's backward pass (models/qwen3_vl/text.py): arrays of hidden units and of the width.
LAYER_HIDDEN = 7
LAYER_WIDTH = 16
# A layer's gathered weights in the compute dtype: the one that runs, and the next one.
LAYER_GATHERED = 2
# Without remat: arrays that every layer keeps for the backward pass.
KEPT_HIDDEN = 3
KEPT_WIDTH = 8
# The head (train/head.py): float32 gradients and compute-dtype copies of the output matrix, and
# float32 logits of a chunk.
HEAD_GRADIENTS = 1
HEAD_COPIES = 3
HEAD_LOGITS = 4
# The tower (models/qwen3_vl/vision.py): arrays of its width and its hidden units, and float32
# position tables of a slot's patches.
TOWER_WIDTH = 8
TOWER_HIDDEN = 2
TOWER_TABLES = 2
TOWER_BLOCKS = 4  # a frozen tower encodes a row's slots in so many blocks, one after the other
# Attention: blocks that `chunked` holds at once, in multiples of its last and largest one.
CHUNKED_BLOCKS = 11.5
XLA_SCORES = 3  # float32 [T, T] arrays of `xla` in a layer's backward pass


@dataclasses.dataclass(frozen=True)
class Activations:
  """Bytes on one device. The parts add up to the peak."""

  layers: int  # saved inputs, and one layer's backward pass
  vision: int  # features, and what the tower needs beyond a layer
  head: int  # what the head needs beyond a layer
  batch: int  # arrays of the step's micro-batches


def activations_of(job: Job, capacity: int) -> Activations:
  """Returns the memory beside the state. `capacity`: micro-batches that the arrays hold."""
  layer, head, tower = _layer(job), _head(job), _tower(job)
  return Activations(
    layers=_saved(job) + layer,
    vision=_features(job) + max(0, tower - max(layer, head)),
    head=max(0, head - layer),
    batch=capacity * batch_bytes(job),
  )


def gradients(job: Job, summed: int) -> int:
  """Returns the bytes of all gradients: the sums, and what the running micro-batch adds to them.

  Gradients of layers that are added in place (models/qwen3_vl/stack.py) need no memory of their
  own.

  Args:
    summed: bytes of the sums.
  """
  in_place = model.adds_to_sums(job.model, job.train.remat, job.train.freeze_vision)
  layers = 4 * text_weights(job.model.text) // (job.mesh.parameter_shards * job.mesh.tensor)
  return 2 * summed - layers * in_place


def largest_shape(job: Job, used: int) -> Shape:
  """Returns the shape of the batch that takes the most memory of a device, for steps of this size.

  A run compiles a program for each shape of `job.ladder` that its steps take. Shapes of full rows
  with room for more micro-batches than such a step needs are left out.

  Args:
    used: micro-batches of full rows that the data of a step fills.
  """
  most = capacity(job, used)
  shapes = [one for one in job.ladder if one.row_tokens < job.train.row_tokens]
  shapes.append(Shape(job.train.row_tokens, job.train.row_images, most))

  def needed(shape: Shape) -> int:
    found = activations_of(job.at(shape), shape.micro_batches)
    return found.layers + found.vision + found.head + found.batch

  return max(shapes, key=needed)


def capacity(job: Job, used: int) -> int:
  """Returns the micro-batches that arrays of the job's rows have room for, at least `used`.

  It is that of the first shape of the ladder with such rows that is large enough.
  """
  rows = [one.micro_batches for one in job.ladder if one.row_tokens == job.row_tokens]
  most = max(rows)
  while most < used:  # a step that needs more than the recipe states doubles it
    most *= 2
  return min([one for one in rows if one >= used], default=most)


def batch_bytes(job: Job) -> int:
  """Returns the bytes of one micro-batch's arrays on one device."""
  extras = step.SFT_EXTRAS if job.kind == 'sft' else step.RL_EXTRAS
  # positions have three axes; patches and grids are counted below
  per_token = 4 * (len(step.INPUTS) - 2 + 2 + len(extras))
  pixels = 3 * job.model.vision.patch**2
  # tables of a row are whole on every device of its context
  slots = sum(
    count * (patches * pixels // job.mesh.context + 8) for count, patches in job.image_slots
  )
  return job.rows_here * (job.row_tokens * per_token + slots)


def _saved(job: Job) -> int:
  """What layers keep: by policy their inputs, or all that their backward passes read."""
  text, kept = job.model.text, job.tokens_here * job.width
  if job.train.remat == 'layers':
    return text.layers * kept * text.width
  if job.train.remat == 'attention':
    # outputs in the compute dtype, and one float32 log-sum per head
    heads = text.heads // job.mesh.tensor
    output = job.tokens_here * heads * (text.head_dim * job.width + 4)
    return text.layers * (kept * text.width + output)
  wide = KEPT_HIDDEN * text.mlp // job.mesh.tensor + KEPT_WIDTH * text.width
  scores = _scores(job, 2) if job.backend == 'xla' else 0
  return text.layers * (kept * wide + scores)


def _layer(job: Job) -> int:
  """The backward pass of one layer: its arrays, weights and gradients."""
  text, wide = job.model.text, job.mesh.tensor
  hidden = LAYER_HIDDEN * text.mlp // wide + LAYER_WIDTH * text.width
  # gathered weights, and the float32 gradient of a layer whose weights are trained
  gradient = 4 if job.model.adapter is None else 0
  weights = layer_weights(text) // wide * (LAYER_GATHERED * job.width + gradient)
  sharded = job.mesh.parameter_shards > 1
  return job.tokens_here * hidden * job.width + weights * sharded + _attention(job, text)


def _attention(job: Job, text: TextConfig) -> int:
  """What the attention backend adds to a layer's backward pass."""
  if job.backend == 'xla':
    return _scores(job, XLA_SCORES)
  if job.backend == 'chunked':
    return int(_scores(job, 1) / 16 * CHUNKED_BLOCKS)
  # float32 sums of the gradients of queries, keys and values
  # those of the whole row, and its keys and values, on every device of the context
  queries = job.tokens_here * text.heads * 4
  keys = job.rows_here * job.row_tokens * 2 * text.kv_heads
  keys *= 4 if job.mesh.context == 1 else 4 + job.width
  return (queries + keys) // job.mesh.tensor * text.head_dim


def _scores(job: Job, copies: int) -> int:
  """float32 arrays of [rows, heads, T, T]."""
  return copies * job.tokens_here * job.row_tokens * job.model.text.heads // (job.mesh.tensor) * 4


def _head(job: Job) -> int:
  """The head's backward pass: whole output matrices, and the logits of a chunk."""
  text, wide = job.model.text, job.mesh.tensor
  matrix = text.width * text.vocab // wide
  chunk = min(job.train.head_chunk, job.row_tokens)
  logits = job.rows_here * chunk * text.vocab // wide // job.mesh.context
  # a frozen head is multiplied as it lies in the state, and has no gradient
  copies = HEAD_GRADIENTS * 4 + HEAD_COPIES * job.width if job.model.adapter is None else 0
  # hidden states of whole rows and their gradient, where a row is split
  states = 2 * job.rows_here * job.row_tokens * text.width * job.width
  return matrix * copies + HEAD_LOGITS * 4 * logits + states * (job.mesh.context > 1)


def _features(job: Job) -> int:
  """Merged tokens of all image slots, and their DeepStack features."""
  vision = job.model.vision
  merged = sum(count * patches for count, patches in job.image_slots) // vision.merge**2
  levels = 1 + len(vision.taps)
  features = job.rows_here * merged * levels
  if job.mesh.context > 1:  # of the slots here, and of the tokens here
    features = features // job.mesh.context + job.tokens_here * levels
  return features * job.model.text.width * job.width


def _tower(job: Job) -> int:
  """The tower's arrays. A trained tower also keeps what its backward pass reads."""
  vision, wide = job.model.vision, job.mesh.tensor
  patches = job.rows_here * sum(count * patches for count, patches in job.image_slots)
  patches //= job.mesh.context
  arrays = TOWER_WIDTH * vision.width + TOWER_HIDDEN * vision.mlp // wide
  work = patches * (arrays * job.width + TOWER_TABLES * 4 * vision.width)
  largest = max((count * size**2 for count, size in job.image_slots), default=0)
  scores = job.rows_here * largest * vision.heads // wide // job.mesh.context * (4 + job.width)
  if job.train.freeze_vision:
    return (work + scores) // TOWER_BLOCKS
  blocks = TOWER_WIDTH if job.train.remat == 'none' else 1
  return work + scores + vision.depth * patches * vision.width * blocks * job.width


def large_images(job: Job) -> bool:
  """Returns whether rows have slots for large images."""
  return isinstance(job.train, SFTTrainOptions) and job.train.row_large_images > 0

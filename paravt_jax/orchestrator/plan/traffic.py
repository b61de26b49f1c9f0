"""Bytes over HBM and links of a step on one device, and the range of its seconds.

The constants of HBM were fitted to the programs of two model sizes, two row lengths, SFT and RL, as
compiled for H100: the bytes that each kernel reads and writes, with nothing kept in a cache. They
count numbers in the compute dtype unless their comment says bytes.
"""

import dataclasses

from paravt_jax.orchestrator.plan import flops
from paravt_jax.orchestrator.plan.accelerators import Accelerator
from paravt_jax.orchestrator.plan.flops import Passes
from paravt_jax.orchestrator.plan.job import Job
from paravt_jax.orchestrator.plan.shapes import Load
from paravt_jax.orchestrator.plan.state import State

# Per token, layer and pass: arrays of hidden units, and of the width.
TOKEN_HIDDEN = 8
TOKEN_WIDTH = 24
WEIGHT_BYTES = 5.7  # per weight of a layer and pass: read, cast, gathered, read again
# Per chunk of the head and product: float32 output matrices, and float32 logits.
HEAD_MATRICES = 2.5
HEAD_LOGITS = 1.6
# Per patch, block and pass of the tower: its width, its hidden units, and scores of every head.
PATCH_WIDTH = 24
PATCH_HIDDEN = 6
PATCH_SCORES = 10
LARGE_IMAGE = (
  1024  # patches, from which on attention keeps no scores (models/attention/dispatch.py)
)
STEP_BYTES = 60  # per trained weight and update: optimizer, norms, casts
# Attention: bytes per pair, head and product. Tiles stay in the cache of a kernel.
PAIR_BYTES = {'xla': 10.0, 'chunked': 10.0, 'tiled': 10.0}
PAIR_BYTES_KERNEL = 0.05
# A TPU cuts the products of layers into windows, and writes and reads their sums for each.
WINDOWS = {'tpu': 2.9}


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes of one step on one device."""

  hbm: float
  links: float


@dataclasses.dataclass(frozen=True)
class Seconds:
  """A range: as if products, HBM and links overlapped fully, and as if they never did.

  Both are bounds at the peak rates of the device. A run is slower than the first.
  """

  low: float
  high: float


def traffic_of(job: Job, load: Load, state: State, large_images: bool = False) -> Traffic:
  """Returns the bytes of one step on one device.

  large_images: count the slots of large images too, which steps without such an image skip.
  """
  passes = flops.passes_of(job)
  hbm = _hbm(job, load, state, passes)
  if large_images:
    hbm += _tower_bytes(job, load, passes, *job.image_slots[1])
  return Traffic(hbm, _links(job, load, passes))


def seconds_of(job: Job, accelerator: Accelerator, total_flops: float, traffic: Traffic) -> Seconds:
  """Returns the range of a step's seconds."""
  times = (
    total_flops / job.devices / accelerator.flops(job.train.dtype),
    traffic.hbm / accelerator.hbm_bytes,
    traffic.links / accelerator.link_bytes,
  )
  return Seconds(max(times), sum(times))


def _hbm(job: Job, load: Load, state: State, passes: Passes) -> float:
  text, wide = job.model.text, job.mesh.tensor
  times = passes.forward + passes.again + passes.backward + passes.weights
  tokens = load.micro_batches * job.tokens_here
  token = (TOKEN_HIDDEN * text.mlp // wide + TOKEN_WIDTH * text.width) * job.width
  layers = text.layers * times * tokens * token * WINDOWS.get(job.platform, 1.0)
  weights = load.micro_batches * times * flops.text_weights(text) / wide * WEIGHT_BYTES

  products = passes.forward + 2 * passes.backward + passes.weights
  chunk = min(job.train.head_chunk, job.row_tokens) * job.train.rows
  matrix = 4.0 * text.width * text.vocab / wide * HEAD_MATRICES * (load.scored / chunk)
  logits = 4.0 * text.vocab / wide * HEAD_LOGITS * load.scored
  logits /= job.row_shards * job.mesh.context

  tower = _tower_bytes(job, load, passes, *job.image_slots[0])

  pairs = load.multiplied_pairs * text.heads * text.layers / job.devices
  each = PAIR_BYTES.get(job.backend, PAIR_BYTES_KERNEL)
  attention = pairs * each * (passes.forward + passes.again + 2 * passes.backward)

  update = job.updates * STEP_BYTES * state.gradients / 4
  return layers + weights + products * (matrix + logits) + tower + attention + update


def _tower_bytes(job: Job, load: Load, passes: Passes, count: int, patches: int) -> float:
  """Bytes of the vision tower over `count` slots of a row, each of `patches` patches."""
  vision, wide = job.model.vision, job.mesh.tensor
  number = PATCH_WIDTH * vision.width + PATCH_HIDDEN * vision.mlp // wide
  if patches < LARGE_IMAGE:
    number += PATCH_SCORES * patches * vision.heads // wide  # else a kernel keeps no scores
  slots = load.micro_batches * job.rows_here * count * patches / job.mesh.context
  trained = 0 if job.train.freeze_vision else 2 * passes.backward + passes.again
  return slots * vision.depth * number * job.width * (passes.tower + trained)


def _links(job: Job, load: Load, passes: Passes) -> float:
  """Bytes that a device receives: gathered weights, reduced gradients, sums of tensor shards, and
  what a row's other slices need.
  """
  text, vision = job.model.text, job.model.vision
  shards, copies, wide = job.mesh.parameter_shards, job.mesh.data, job.mesh.tensor
  layers = flops.text_weights(text) / wide
  matrix = text.width * text.vocab / wide
  tower = vision.depth * (4 * vision.width**2 + 2 * vision.width * vision.mlp) / wide
  # a TPU gathers weights in windows beside each product, so also for the backward pass
  gathers = passes.forward + passes.again + passes.backward * (job.platform == 'tpu')
  # layers' gradients are reduced over fsdp in the compute dtype; over copies twice (reduce, spread)
  fsdp = (gathers + passes.weights) * job.width * layers + passes.tower * job.width * tower
  # embedding and output matrix: both are gathered, and the gradients of whole ones are added up
  fsdp += passes.forward * 2 * job.width * matrix
  fsdp += passes.weights * 2 * (4 + job.width) * matrix
  total = fsdp * (shards - 1) / shards
  total += passes.weights * 2 * 4 * (layers + matrix) / shards * (copies - 1) / copies
  hidden = job.tokens_here * text.width * job.width
  # two sums of a layer's output per pass, and embedded rows, whose width is split over fsdp
  sums = 2 * text.layers * (passes.forward + passes.again + passes.backward)
  total += 2 * sums * hidden * (wide - 1) / wide
  total += 4 * hidden * (shards - 1) / shards
  return (total + _context_links(job, passes)) * load.micro_batches


def _context_links(job: Job, passes: Passes) -> float:
  """Bytes that the slices of rows exchange in a micro-batch."""
  text, slices = job.model.text, job.mesh.context
  if slices == 1:
    return 0.0
  row = job.rows_here * job.row_tokens * job.width * (slices - 1) / slices
  # keys and values are gathered, their gradients are added up; half of the queries are swapped
  keys = 2 * text.kv_heads * text.head_dim / job.mesh.tensor * row
  queries = job.tokens_here * text.heads * text.head_dim * job.width / job.mesh.tensor
  layer = (passes.forward + passes.again + passes.backward) * (keys + queries)
  # hidden states of the head and their gradient, and features of images
  levels = 1 + len(job.model.vision.taps)
  states = (passes.forward + passes.backward) * text.width * row
  merged = sum(count * patches for count, patches in job.image_slots) // job.model.vision.merge**2
  features = job.rows_here * merged * levels * text.width * job.width * (slices - 1) / slices
  return text.layers * layer + states + features * passes.forward

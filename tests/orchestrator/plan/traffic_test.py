"""Bytes and seconds: against compiled programs, and what must move them."""

import dataclasses

import pytest

from paravt_jax.orchestrator.plan import flops, shapes, state, traffic
from paravt_jax.orchestrator.plan.accelerators import ACCELERATORS
from paravt_jax.orchestrator.plan.shapes import Load
from paravt_jax.orchestrator.plan.traffic import Traffic
from paravt_jax.row_layout import Shape
from tests.orchestrator.plan.requests import request


def micro_batch(job):
  """One micro-batch of padding whose head scores all tokens, as a compiled program counts it."""
  rows, length = job.train.rows, job.train.row_tokens
  return Load(
    documents=1,
    tokens=1,
    trained=1,
    images=1,
    rows=rows,
    micro_batches=1,
    fill=1.0,
    image_fill=1.0,
    visible_pairs=1,
    multiplied_pairs=1,
    scored=rows * length,
    limit='tokens',
    shape=Shape(length, 1, 1),
    full_micro_batches=1,
  )


# TB of one micro-batch without the update, as compiled for H100 with a head in every chunk; RL
# programs ran the tower for policy and reference.
COMPILED = {'rl:8b': 4.77 - 0.316, 'sft:8b': 1.01 - 0.062, 'rl:2b': 2.74 - 0.219}


@pytest.mark.parametrize('name', COMPILED)
def test_hbm_bytes_of_a_micro_batch_are_the_compilers_within_fifteen_per_cent(monkeypatch, name):
  monkeypatch.setattr(flops, 'FEATURES_ONCE', False)
  job = request(name).job
  found = state.state_of(job)
  without_update = dataclasses.replace(found, gradients=0)
  own = traffic.traffic_of(job, micro_batch(job), without_update).hbm / 1e12
  assert own == pytest.approx(COMPILED[name], rel=0.15)


def test_fsdp_gathers_each_pass_and_reduces_once():
  job = request('rl:8b', rl__beta=0.0, train__remat='none').job
  own = traffic.traffic_of(job, micro_batch(job), state.state_of(job)).links
  layers, matrix = 36 * 192_937_984, 4096 * 151_936
  tower = 27 * (4 * 1152**2 + 2 * 1152 * 4304)
  # layers: one gather in bfloat16 (they are kept), one reduction. Embedding and output matrix: a
  # gather of each, and sums of whole gradients, in float32 and bfloat16. Then rows of embeddings,
  # whose width lies on eight devices.
  expected = (2 * layers + 2 * tower + 2 * layers + (2 * 2 + 2 * 4 + 2 * 2) * matrix) * 7 / 8
  assert own == pytest.approx(expected + 4 * 32768 * 4096 * 2 * 7 / 8)


def test_one_device_has_no_links_and_tensor_shards_sum_activations():
  assert _links('rl:2b') == 0
  assert _links('rl:8b', mesh__fsdp=4, mesh__tensor=2) > _links('rl:8b')
  assert _links('rl:8b', mesh__fsdp=4, mesh__data=2) > _links('rl:8b') / 2


def _links(name, **changes):
  job = request(name, **changes).job
  return traffic.traffic_of(job, micro_batch(job), state.state_of(job)).links


def test_seconds_range_from_full_overlap_to_none():
  job = request('rl:8b').job
  found = traffic.seconds_of(job, ACCELERATORS['h100'], 8 * 989e12, Traffic(3.35e12 * 2, 450e9 * 4))
  assert (found.low, found.high) == (4.0, 7.0)


def test_attention_without_a_kernel_moves_scores_through_hbm():
  tiled, plain = (request('rl:8b', train__backend=name).job for name in ('chunked', 'xla'))
  bytes_of = []
  for job in (tiled, plain):
    asked = request('rl:8b')
    load = shapes.pack(job, shapes.documents_of_rl(asked.recipe, asked.shape))
    bytes_of.append(traffic.traffic_of(job, load, state.state_of(job)).hbm)
  assert bytes_of[1] > bytes_of[0]

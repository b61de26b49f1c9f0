"""Activations: the formulas against programs that were compiled for H100, and what moves them."""

import dataclasses

import pytest

from paravt_jax.orchestrator.plan import activations, state
from paravt_jax.orchestrator.plan.accelerators import GIB
from tests.orchestrator.plan.requests import request

# Temporary GiB per device of programs compiled for H100 (`make test-aot`).
COMPILED = {
  'rl:8b': ('rl:8b', {}, 25.61),
  'sft:8b': ('sft:8b', {}, 16.12),
}


@pytest.mark.parametrize('case', COMPILED)
def test_a_steps_temporary_memory_is_the_compilers_within_ten_per_cent(monkeypatch, case):
  name, changes, compiled = COMPILED[case]
  monkeypatch.setattr(activations, 'CHUNKED_BLOCKS', 0)  # as an attention without scores
  job = request(name, **changes).job
  found = activations.activations_of(job, 2)
  own = found.layers + found.vision + found.head
  own += activations.gradients(job, state.state_of(job).gradients)
  assert own / GIB == pytest.approx(compiled, rel=0.10)


def test_the_batch_takes_the_bytes_of_its_arrays():
  job = request('rl:8b').job
  # a row: 13 arrays of 32,768 int32 or float32, and 512 slots of 196 patches with a grid
  row = 32768 * 4 * 13 + 512 * (196 * 768 + 8)
  assert activations.batch_bytes(job) == row
  assert activations.activations_of(job, 2).batch == 2 * row


def test_rl_takes_room_for_a_power_of_two_of_micro_batches_and_sft_for_its_own():
  rl, sft = request('rl:8b').job, request('sft:8b').job
  assert [activations.capacity(rl, used) for used in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
  assert activations.capacity(sft, 1) == 4


def test_remat_saves_memory_and_tensor_shards_split_hidden_units():
  job = request('rl:8b').job

  def layers(changed):
    return activations.activations_of(changed, 2).layers

  kept = dataclasses.replace(job, train=job.train.replace(remat='none'))
  split = dataclasses.replace(job, mesh=job.mesh.replace(fsdp=4, tensor=2))
  wide = dataclasses.replace(job, mesh=job.mesh.replace(fsdp=4), train=job.train.replace(rows=4))
  assert layers(kept) > 2 * layers(job)
  assert layers(split) > layers(wide) / 2  # twice the rows on each, half the hidden units
  assert layers(dataclasses.replace(split, train=job.train.replace(rows=4))) < layers(wide)


def test_the_parts_add_up_to_the_largest_phase(monkeypatch):
  monkeypatch.setattr(activations, 'CHUNKED_BLOCKS', 0)
  job = request('sft:8b', train__row_large_images=0).job
  found = activations.activations_of(job, 4)
  saved = 36 * 8192 * 4096 * 2
  # here the head's backward pass is larger than a layer's: matrices of 4096 x 151,936
  head = 4096 * 151_936 * (4 + 3 * 2) + 4 * 4 * 1024 * 151_936
  features = 128 * 49 * 4 * 4096 * 2
  assert found.layers + found.head + found.vision == saved + head + features


def test_auto_is_the_kernel_on_gpus_and_tiles_elsewhere(monkeypatch):
  job = request('rl:8b').job

  class Auto:
    backend, dtype, row_tokens = 'auto', 'bfloat16', 32768

  for platform, backend in (('cuda', 'triton'), ('tpu', 'splash'), ('cpu', 'tiled')):
    assert dataclasses.replace(job, train=Auto, platform=platform).backend == backend
  monkeypatch.setattr(Auto, 'row_tokens', 512)
  assert dataclasses.replace(job, train=Auto, platform='cpu').backend == 'chunked'
  monkeypatch.setattr(Auto, 'dtype', 'float32')
  assert dataclasses.replace(job, train=Auto, platform='cuda').backend == 'tiled'

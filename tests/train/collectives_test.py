"""What a step of the 8B model moves between eight devices, read from the compiled program.

The model has the published widths and axes with few layers. Nothing runs: all arrays are abstract.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl.config import PUBLISHED
from paravt_jax.train import state, step
from tests.train import common, hlo

# No width of the model, and nothing of one device, is a multiple of 40: such an axis is all rows.
ROWS, TOKENS, IMAGES, PATCHES = 40, 256, 7, 64
OPTIONS = step.ModelOptions(
  dtype='bfloat16', remat='layers', backend='chunked', head_chunk=66, temperature=0.7, banned=(5, 6)
)


def narrow():
  """The 8B model with 5 layers and 5 vision blocks: enough that both stacks are scanned."""
  full = PUBLISHED['8b']()
  return dataclasses.replace(
    full,
    text=dataclasses.replace(full.text, layers=5),
    vision=dataclasses.replace(full.vision, depth=5, taps=(1, 2, 3)),
  )


def abstract_batch(mesh, extras):
  """Two micro-batches of ROWS rows, as jax.ShapeDtypeStruct."""
  lead = (2, ROWS)
  shapes = dict.fromkeys(step.INPUTS, ((*lead, TOKENS), np.int32))
  shapes['positions'] = ((*lead, 3, TOKENS), np.int32)
  shapes['patches'] = ((*lead, IMAGES, PATCHES, 1, 768), np.uint8)
  shapes['grids'] = ((*lead, IMAGES, 2), np.int32)
  shapes |= {name: ((*lead, TOKENS), dtype) for name, dtype in extras.items()}
  place = sharding.rows(mesh, 1)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    for name, (shape, dtype) in shapes.items()
  }
  used = jax.ShapeDtypeStruct((), np.int32, sharding=sharding.replicated(mesh))
  return {**batch, 'used': used}


@functools.cache
def compiled(kind, shape, frozen=()):
  """(parameters, the compiled step)."""
  config, mesh, optimizer = narrow(), common.mesh_of(*shape), common.sgd(1.0, frozen)
  start = state.abstract(config, optimizer, mesh)
  count = sum(leaf.size for leaf in jax.tree.leaves(start.params))
  if kind == 'sft':
    made = step.make_sft_step(config, optimizer, mesh, OPTIONS)
    return count, made.lower(start, abstract_batch(mesh, step.SFT_EXTRAS)).compile()
  made = step.make_rl_step(config, optimizer, mesh, OPTIONS, common.RL).jitted
  reference = state.abstract_reference(config, optimizer, mesh, OPTIONS.dtype)
  return count, made.lower(start, abstract_batch(mesh, step.RL_EXTRAS), reference).compile()


def holds_all_rows(found):
  """Whether a result holds something of all rows.

  An all-to-all only exchanges: what comes back is as large as what a device had.
  """
  return found.op != 'all-to-all' and any(
    size and size % ROWS == 0 for _, shape in found.shapes for size in shape
  )


# Bytes per parameter and micro-batch. The policy's layers are gathered three times (forward, again
# for the backward pass, backward) and their gradient is reduced once, the reference's gathered
# once; a CPU does all of it in float32. The embedding and the output matrix, half of the parameters
# here, are gathered once by each and reduced once.
# The tower, .1 of the parameters, is gathered for each of its four blocks of image slots.
BOUND = {'sft': 11, 'rl': 15}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'shape', 'frozen'), [('rl', (1, 8, 1), ('visual',)), ('sft', (2, 2, 2), ())]
)
def test_no_device_gets_all_rows_and_little_moves(kind, shape, frozen):
  parameters, program = compiled(kind, shape, frozen)
  found = hlo.collectives(program.as_text())
  assert len(found) > 20
  assert [one for one in found if holds_all_rows(one)] == []
  assert sum(one.bytes for one in found) <= BOUND[kind] * parameters
  if shape != (1, 8, 1):
    return
  # the output matrix: gathered once by the policy and once by the reference, its gradient reduced
  # once, whatever the number of chunks
  head = [one for one in found if any(size[-2:] == (4096, 151936) for _, size in one.shapes)]
  gathers = 2 if kind == 'rl' else 1
  assert sorted((one.op, one.runs) for one in head) == [
    *[('all-gather', 1)] * gathers,
    ('all-reduce', 1),
  ]


def test_the_text_of_a_program_is_read_with_its_loops():
  text = """HloModule small
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %sum = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), to_apply=%add, metadata={op_name="here"}
}
ENTRY %main (x: f32[1]) -> f32[8] {
  %all = f32[8]{0} all-gather(%x), dimensions={0}
  %w = (s32[], f32[8]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""
  gather, reduce = hlo.collectives(text)
  assert (gather.op, gather.bytes, gather.runs) == ('all-gather', 32, 1)
  assert (reduce.op, reduce.bytes, reduce.source) == ('all-reduce', 5 * (32 + 12), 'here')

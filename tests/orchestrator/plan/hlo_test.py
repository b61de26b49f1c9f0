"""Bytes of compiled programs, counted in their text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paravt_jax.orchestrator.plan import hlo

# A loop of three runs around a gather of 8 x [4, 128] float32 and a kernel, and a reduction.
PROGRAM = """HloModule example

%body (p: (s32[], f32[4,128])) -> (s32[], f32[4,128]) {
  %p = (s32[], f32[4,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,128]{1,0} get-tuple-element(%p), index=1
  %all = f32[32,128]{1,0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}
  %y = f32[4,128]{1,0} negate(%x)
  ROOT %t = (s32[], f32[4,128]{1,0}) tuple(%i, %y)
}

ENTRY %main (a: f32[4,128]) -> f32[4,128] {
  %a = f32[4,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,128]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[4,128]{1,0}) while(%start), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %out = f32[4,128]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[4,128]{1,0} all-reduce(%out), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_count_by_trips_and_by_the_size_of_their_group():
  found = hlo.count(PROGRAM)
  one = 4 * 128 * 4
  # a gather gives 8 parts of which 7 are received, three times; a sum of four goes twice around
  assert found.links == 3 * 8 * one * 7 / 8 + 2 * one * 3 / 4


def test_kernels_read_their_operands_and_write_their_results():
  one = 4 * 128 * 4
  # in each run the gather (1 + 8) and the negation (1 + 1), then the sum (1 + 1)
  assert hlo.count(PROGRAM).hbm == 3 * (9 + 2) * one + 2 * one


def test_results_of_collectives_are_listed():
  assert hlo.collective_shapes(PROGRAM) == [
    ('all-gather', 'f32[32,128]{1,0}'),
    ('all-reduce', 'f32[4,128]{1,0}'),
  ]


@pytest.mark.parametrize(
  ('line', 'group'),
  [
    ('replica_groups=[2,4]<=[8]', 4),
    ('replica_groups={{0,1},{2,3}}', 2),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
  ],
)
def test_the_size_of_a_group_is_read_in_every_notation(line, group):
  text = PROGRAM.replace('replica_groups={{0,1,2,3},{4,5,6,7}}', line)
  one = 4 * 128 * 4
  expected = 3 * 7 * one + 2 * one * (group - 1) / group
  assert hlo.count(text).links == pytest.approx(expected)


def test_a_started_gather_counts_its_result_and_not_its_operand():
  line = (
    '  %g = (f32[4,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%a), replica_groups=[1,8]<=[8]'
  )
  text = PROGRAM.replace('  %zero = s32[] constant(0)', f'{line}\n  %zero = s32[] constant(0)')
  assert hlo.count(text).links - hlo.count(PROGRAM).links == 32 * 128 * 4 * 7 / 8


def test_a_compiled_program_that_gathers_its_weight_has_those_bytes():
  mesh = Mesh(np.asarray(jax.devices()[:8]), ('fsdp',))
  rows, columns = NamedSharding(mesh, PartitionSpec('fsdp')), NamedSharding(mesh, PartitionSpec())
  x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=rows)
  w = jax.ShapeDtypeStruct((256, 32), jnp.float32, sharding=rows)

  def product(x, w):
    return x @ jax.lax.with_sharding_constraint(w, columns)

  text = jax.jit(product, out_shardings=rows).lower(x, w).compile().as_text()
  found = hlo.count(text)
  assert found.links == 256 * 32 * 4 * 7 / 8
  assert found.hbm >= (8 * 256 + 256 * 32 + 8 * 32) * 4


def test_sizes_of_shapes_are_those_of_their_arrays():
  assert hlo.size_of('bf16[2,3]{1,0}') == 12
  assert hlo.size_of('(f32[], (s8[5], pred[2,2]))') == 4 + 5 + 4

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


TPU = """HloModule jit_step

%body.1 (p: (bf16[8,4], u32[])) -> (bf16[8,4], u32[]) {
  %p = (bf16[8,4]{1,0}, u32[]) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %two = u32[] constant(2)
  %s = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1}}
  %d = bf16[8,4]{1,0} collective-permute-done(%s)
  %next = u32[] add(%i, %two)
  ROOT %t = (bf16[8,4]{1,0}, u32[]) tuple(%d, %next)
}

%condition.1 (q: (bf16[8,4], u32[])) -> pred[] {
  %q = (bf16[8,4]{1,0}, u32[]) parameter(0)
  %n = u32[] constant(6)
  %j = u32[] get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %kernel = bf16[8,4]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={
"xprof_metadata":"many lines"
}}, metadata={op_name="x"}
  %in = (bf16[8,4]{1,0}, u32[]) tuple(%kernel, %zero)
  %loop = (bf16[8,4]{1,0}, u32[]) while(%in), condition=%condition.1, body=%body.1
  %out = bf16[8,4]{1,0} get-tuple-element(%loop), index=0
  %near = (bf16[8,4]{1,0:S(1)}, bf16[8,4]{1,0}, u32[]{:S(2)}) copy-start(%out)
  %here = bf16[8,4]{1,0:S(1)} copy-done(%near)
  ROOT %r = bf16[8,4]{1,0} negate(%here)
}
"""


def test_a_tpus_loop_counts_to_the_constant_of_its_condition_by_the_step_of_its_body():
  # six by twos: three runs, each of which sends 64 bytes
  assert hlo.count(TPU).links == 3 * 64


def test_what_stays_in_a_tpus_vector_memory_is_no_traffic_of_hbm():
  # the kernel reads and writes 64; each permute and counter does so too; the
  # copy only reads from HBM, and the last kernel only writes to it
  permutes, counter = 3 * (64 + 64), 3 * 12
  assert hlo.count(TPU).hbm == 128 + permutes + counter + 64 + 64


def test_a_slice_reads_what_it_takes_and_a_scatter_what_it_writes():
  def added(*lines):
    text = '\n'.join([*lines, '  %zero = s32[] constant(0)'])
    return hlo.count(PROGRAM.replace('  %zero = s32[] constant(0)', text)).hbm - plain

  plain = hlo.count(PROGRAM).hbm
  row = 128 * 4
  assert added('  %s = f32[1,128]{1,0} slice(%a), slice={[0:1], [0:128]}') == 2 * row
  # into memory on the chip: only read
  assert added('  %s = f32[1,128]{1,0:S(1)} slice(%a), slice={[0:1], [0:128]}') == row
  of_two = (
    '  %i = s32[2,1]{1,0:S(1)} bitcast(%a)',
    '  %u = f32[2,128]{1,0} bitcast(%a)',
    '  %w = f32[4,128]{1,0} scatter(%a, %i, %u), to_apply=%add',
  )
  assert added(*of_two) == 2 * 2 * row


def test_a_scatter_inside_a_fusion_leaves_the_rest_of_its_array_alone():
  def write(x, rows, values):
    return x.at[rows].set(2 * values, mode='promise_in_bounds')

  x, values = np.zeros((1024, 256), np.float32), np.zeros((4, 256), np.float32)
  made = jax.jit(write, donate_argnums=0).lower(x, np.arange(4), values).compile()
  assert hlo.count(made.as_text()).hbm < 64 * values.nbytes < x.nbytes

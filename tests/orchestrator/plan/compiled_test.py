"""Figures of compiled programs: kept ones, reports of TPU compilers, refusals."""

import time

import jax
import jax.numpy as jnp
import pytest

from paravt_jax.orchestrator.plan import compiled

ASKED = {'dump': '', 'kept': '', 'target': 'cpu:1', 'spec': '', 'flags': ''}
SHAPE = jax.ShapeDtypeStruct((64, 64), jnp.float32)
BYTES = 64 * 64 * 4


class Counting:
  """A lowered program that counts how often it is compiled, or refuses it."""

  def __init__(self, function, error=None):
    self.lowered, self.compiled, self.error = jax.jit(function).lower(SHAPE), 0, error

  def as_text(self):
    return self.lowered.as_text()

  def compile(self):
    self.compiled += 1
    if self.error:
      raise self.error
    return self.lowered.compile()


def test_a_program_is_compiled_once_and_its_figures_are_kept(tmp_path):
  asked = {**ASKED, 'kept': str(tmp_path / 'kept')}
  first, again = Counting(lambda x: x @ x), Counting(lambda x: x @ x)
  found = compiled.measure(first, BYTES, asked)
  assert (first.compiled, found['kept']) == (1, False)
  assert found['memory_gib'] * 2**30 >= 2 * BYTES and found['hbm_tb'] * 1e12 >= 2 * BYTES
  assert compiled.measure(again, BYTES, asked) == {**found, 'kept': True}
  assert again.compiled == 0


@pytest.mark.parametrize(
  ('function', 'changes'),
  [
    (lambda x: x @ x + 1, {}),
    (lambda x: x @ x, {'flags': '--xla_b=1'}),
    (lambda x: x @ x, {'target': 'h100:8'}),
    (lambda x: x @ x, {'spec': 'another device'}),
  ],
  ids=['program', 'flags', 'target', 'device'],
)
def test_what_may_change_the_figures_is_compiled_again(tmp_path, function, changes):
  asked = {**ASKED, 'kept': str(tmp_path)}
  compiled.measure(Counting(lambda x: x @ x), BYTES, asked)
  other = Counting(function)
  assert compiled.measure(other, BYTES, {**asked, **changes})['kept'] is False
  assert other.compiled == 1


def test_another_version_of_a_compiler_is_another_key(monkeypatch):
  before = compiled.program_key('text', ASKED)
  monkeypatch.setattr(compiled, '_version', lambda package: f'{package} 9.9')
  assert compiled.program_key('text', ASKED) != before


def test_a_program_that_does_not_fit_has_its_size_and_the_compilers_line():
  message = 'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 110.25G of 95.74G hbm.'
  error = jax.errors.JaxRuntimeError(message)
  found = compiled.measure(Counting(lambda x: x, error), BYTES, ASKED)
  assert found['memory_gib'] == 110.25 and found['hbm_tb'] is None
  assert found['error'] == message
  assert compiled.refusal('Used 512.00M of 95.74G hbm')['memory_gib'] == 0.5


def test_another_error_of_the_compiler_is_not_swallowed():
  error = jax.errors.JaxRuntimeError('INTERNAL: no tile sizes')
  with pytest.raises(jax.errors.JaxRuntimeError, match='no tile sizes'):
    compiled.measure(Counting(lambda x: x, error), BYTES, ASKED)


def dump(folder, total='Total bytes: 3221225472 (3.00GiB)'):
  """What a TPU's compiler writes before it generates code."""
  text = jax.jit(lambda x: x @ x).lower(SHAPE).compile().as_text()
  name = 'module_0000.jit_step.cl_1.after_optimizations'
  (folder / f'{name}.txt').write_text(text)
  (folder / f'{name}_before_buffer_assignment.txt').write_text('not this one')
  report = f'Memory Space: default (color=0)\n{total}\nMemory Space: vmem\nTotal bytes: 7\n'
  (folder / f'{name}-memory-usage-report.txt').write_text(report)
  return text


def test_a_tpus_report_gives_memory_and_bytes_before_code_is_generated(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled, '_REFUSAL_S', 0.1)
  monkeypatch.setattr(compiled, '_POLL_S', 0.05)
  dump(tmp_path)

  class Endless(Counting):
    def compile(self):
      time.sleep(2)

  found = compiled.measure(Endless(lambda x: x @ x), 2 * 2**30, {**ASKED, 'dump': str(tmp_path)})
  assert (found['memory_gib'], found['arguments_gib'], found['temporary_gib']) == (3, 2, 1)
  assert found['hbm_tb'] * 1e12 >= 2 * BYTES


def test_a_report_without_a_total_names_its_folder(tmp_path):
  dump(tmp_path, total='no total')
  with pytest.raises(ValueError, match='names no total'):
    compiled.read_report(tmp_path, 0)


def test_the_flags_write_one_function_alone(tmp_path):
  flags = compiled.dump_flags(tmp_path, 'step')
  assert f'--xla_dump_to={tmp_path} ' in flags and flags.endswith('module_re=^jit_step$')

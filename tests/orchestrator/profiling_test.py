"""A trace holds the steps that the recipe asks for, and says where it lies."""

import jax
import jax.numpy as jnp

from paravt_jax.orchestrator import profiling


def _run(profiler, count):
  for _ in range(count):
    with profiler.step():
      jax.block_until_ready(jnp.ones(3) + 1)


def test_steps_after_the_first_two_are_traced_and_the_place_is_said(tmp_path, capfd):
  folder = tmp_path / 'deep' / 'profile'
  with profiling.Profiler(profiling.ProfileOptions(steps=2), folder) as profiler:
    _run(profiler, 3)
    assert not list(folder.rglob('*.trace.json.gz'))  # written at its end
    _run(profiler, 2)
    assert len(list(folder.rglob('*.trace.json.gz'))) == 1
  said = capfd.readouterr().err
  assert 'a trace of 2 steps' in said and str(folder) in said and 'ui.perfetto.dev' in said


def test_a_run_that_ends_early_still_writes_its_trace(tmp_path, capfd):
  with profiling.Profiler(profiling.ProfileOptions(steps=10), tmp_path) as profiler:
    _run(profiler, 3)
  assert 'a trace of 1 steps' in capfd.readouterr().err
  assert len(list(tmp_path.rglob('*.trace.json.gz'))) == 1


def test_without_a_wish_nothing_is_written(tmp_path, capfd):
  with profiling.Profiler(profiling.ProfileOptions.published(), tmp_path / 'none') as profiler:
    _run(profiler, 4)
  assert not (tmp_path / 'none').exists() and not capfd.readouterr().err

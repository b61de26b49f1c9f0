"""Ways out: changes that were planned again and fit."""

import dataclasses

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan import advice, build
from tests.orchestrator.plan.requests import recipe, request


def test_a_recipe_that_fits_needs_none():
  assert advice.ways_out(build.make_plan(request('sft:8b', 'h200:8'))) == []


def test_a_recipe_that_is_wrong_elsewhere_gets_none():
  plan = build.make_plan(request('rl:8b', 'rtx4090:8', rollout__max_concurrent=2))
  assert plan.refusals and advice.ways_out(plan) == []


def test_every_way_out_is_below_the_devices_memory(monkeypatch):
  monkeypatch.setattr(advice, 'PATIENCE_S', 600.0)  # a busy machine searches for longer
  asked = request('rl:8b', 'rtx4090:8')
  found = advice.ways_out(build.make_plan(asked))
  assert 0 < len(found) <= advice.MOST
  for line in found:
    assert float(line.partition(': ')[2].split()[0]) <= asked.target.usable_gib


def test_rows_that_are_too_long_for_a_device_are_shared():
  long = {'train__row_tokens': 131072, 'train__row_images': 2048, 'train__micro_batches': 1}
  asked = request('sft:8b', 'h100:8', **long)
  assert not build.make_plan(asked).fits
  shared = {
    'mesh.fsdp': 1,
    'mesh.context': 8,
    'train.rows': 1,
    'train.micro_batches': 8,
  }
  assert shared in [change.knobs for change in advice._changes(asked)]
  changed = dataclasses.replace(asked, recipe=advice.with_knobs(asked.recipe, shared))
  assert build.make_plan(changed).fits


def test_a_server_that_is_too_large_is_advised_another_cache():
  knobs = {'server__kind': 'embedded', 'server__embedded__pages': 4096}
  plan = build.make_plan(request('eval:8b', **knobs))
  assert not plan.fits
  assert 'server.embedded.pages=1024' in advice.ways_out(plan)[0]
  # the columns of slots take memory too
  slots = build.make_plan(request('eval:8b', **knobs, server__embedded__attention='slots'))
  assert not slots.fits and advice.ways_out(slots)
  assert all('server.embedded.lanes' in line for line in advice.ways_out(slots))


def test_knobs_are_set_by_path_and_checked():
  changed = advice.with_knobs(recipe('rl:8b'), {'train.rows': 16, 'mesh.fsdp': 16, 'rl.beta': 0.0})
  assert (changed.train.rows, changed.mesh.fsdp, changed.rl.beta) == (16, 16, 0.0)
  assert advice.with_knobs(recipe('eval:8b'), {'server.sglang.mem_fraction': 0.5})
  with pytest.raises(ConfigError, match='rows'):
    advice.with_knobs(recipe('rl:8b'), {'train.rows': 0})

"""The table of accelerators, and how a target is named."""

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan.accelerators import ACCELERATORS, SCALES, parse_target


def test_every_accelerator_says_where_its_numbers_come_from():
  for one in ACCELERATORS.values():
    assert one.source and one.memory_gib > 0 and one.hbm_bytes > one.link_bytes > 0
    assert one.platform in ('cuda', 'tpu', 'cpu')


def test_a_target_is_a_name_and_a_number_or_a_slice():
  assert parse_target('h100:8').count == 8
  assert parse_target('v5p:2x2x2').count == 8
  assert parse_target('v6e:4x4').count == 16
  hosts = {'v6e:4x4': 4, 'v5p:2x2x2': 2, 'v5p:2x2x1': 1, 'h100:8': 1, 'h100:16': 2, 'cpu:32': 1}
  assert {name: parse_target(name).hosts for name in hosts} == hosts
  assert parse_target('cpu').count == 1
  assert parse_target('v5p:2x2x2').name == 'v5p:2x2x2'
  assert parse_target('h100:8').usable_gib == pytest.approx(79.1 * 0.95)


@pytest.mark.parametrize('text', ['', 'h900:8', 'h100:0', 'h100:-1', 'h100:8x', 'h100:a'])
def test_an_unknown_target_is_refused_with_what_there_is(text):
  with pytest.raises(ConfigError, match='wanted one'):
    parse_target(text)


def test_the_target_of_every_scale_exists():
  assert {scale: parse_target(text).count for scale, text in SCALES.items()}['8b'] == 8

"""Canaries of model folders, with which an evaluation proves servers by URL."""

import pytest

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.orchestrator import canary
from paravt_jax.testing import tiny


@pytest.mark.parametrize(('dtype', 'continuations'), [('float32', 1), ('bfloat16', 4)])
def test_a_folder_that_is_served_in_bfloat16_is_compared_over_more_tokens(
  tmp_path, dtype, continuations
):
  tiny.build_model_folder(tmp_path / 'made', 0)
  config, params = weights.load_hf(tmp_path / 'made')
  weights.save_hf(tmp_path / 'model', config, params, tmp_path / 'made', dtype=dtype)
  found = canary.of_folder(tmp_path / 'model', patches=4, tokens=2)
  assert len(found.continuations) == continuations
  assert (found.rounding > 0) == (dtype == 'bfloat16')

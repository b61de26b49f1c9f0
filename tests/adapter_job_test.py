"""The main job with an adapter, and its cold start; `control_test.py` sends adapters to SGLang."""

import json

import numpy as np
import pytest

from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving import publish
from tests.experiments import small_job

ADAPTED = {
  'train__adapter__rank': 4,
  'optimizer__learning_rate': 2e-3,
  'rollout__steps': 3,
  'eval__questions': 0,
}


@pytest.mark.nightly
def test_an_adapter_trains_on_the_embedded_server_and_goes_on(tmp_path):
  status, _, err = small_job.run(tmp_path, 'adapted', **{**ADAPTED, 'rollout__steps': 2})
  assert status == 0, err[-4000:]
  status, _, err = small_job.run(tmp_path, 'adapted', **ADAPTED)
  assert status == 0, err[-4000:]
  base = check(tmp_path)
  # the cold start's recipe trains one, too
  knobs = {'train__freeze_vision': True, 'train__adapter__rank': 4, 'model__folder': base}
  status, _, err = small_job.run(tmp_path, 'sft', entry='sft', **knobs)
  assert status == 0, err[-4000:]
  losses = [row['sft/loss'] for row in small_job.records(tmp_path, 'sft')]
  assert len(losses) == 12 and np.isfinite(losses).all()
  assert (tmp_path / 'runs' / 'sft' / 'hf' / 'peft' / 'adapter_config.json').is_file()


def check(place):
  """Every step is exact on the weights of its step, and the export is the base and the adapter."""
  rows = small_job.records(place, 'adapted')
  assert [row['step'] for row in rows] == [0, 1, 2]
  assert max(row['policy/gap_current_mean'] for row in rows) <= 1e-4
  assert rows[0]['policy/kl_reference'] == pytest.approx(0.0, abs=1e-6)
  assert rows[2]['policy/kl_reference'] != 0.0
  run = place / 'runs' / 'adapted'
  page = publish.read_manifest(run / 'weights' / '3')
  assert page.adapter is not None and page.adapter.rank == 4
  assert {name.split('/')[0] for name in page.arrays} == {lora.PART}
  # the merged export differs from its base in the decoder's kernels alone
  base = json.loads((run / 'hf' / 'peft' / 'adapter_config.json').read_text())
  folder = place / base['base_model_name_or_path']
  _, before = weights.load_hf(folder)
  _, after = weights.load_hf(run / 'hf')
  for product in lora.PRODUCTS:
    old, new = (tree['text']['layers'][product]['kernel'] for tree in (before, after))
    assert np.abs(np.asarray(new, np.float32) - np.asarray(old, np.float32)).max() > 0
  np.testing.assert_array_equal(
    before['text']['embed']['embedding'], after['text']['embed']['embedding']
  )
  return folder

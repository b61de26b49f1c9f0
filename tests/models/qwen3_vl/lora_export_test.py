"""An exported adapter: PEFT, the library, computes from its folder what our model computes."""

import dataclasses

import jax
import numpy as np
import peft
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import lora_export, model, weights
from tests.models.qwen3_vl import oracle

FORMS = {
  'all products': lora.Adapter(3, 6.0, lora.PRODUCTS),
  'two products': lora.Adapter(2, 1.0, ('v', 'gate')),
}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder as transformers writes it."""
  return oracle.published_folder(tmp_path_factory.mktemp('published'))


def adapted(published, form):
  """(config, parameters) of the folder with a random adapter."""
  config, params = weights.load_hf(published)
  config = dataclasses.replace(config, adapter=form)
  rng = np.random.default_rng(0)
  shapes = model.abstract_params(config)[lora.PART]
  part = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.2).astype(np.float32), shapes)
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  return config, jax.tree.map(jax.numpy.asarray, {**params, lora.PART: part})


@pytest.mark.parametrize('name', FORMS)
def test_peft_loads_the_folder_and_computes_the_same_and_merges_to_the_same(
  published, name, tmp_path
):
  config, params = adapted(published, FORMS[name])
  lora_export.save_peft(tmp_path / 'peft', config, params, published)
  base = Qwen3VLForConditionalGeneration.from_pretrained(published, dtype=torch.float32).eval()
  theirs = peft.PeftModel.from_pretrained(base, tmp_path / 'peft').eval()
  touched = {key for key, _ in theirs.named_parameters() if 'lora_' in key}
  assert len(touched) == 2 * config.text.layers * len(FORMS[name].products)
  assert not any('visual' in key for key in touched)
  ids = np.arange(2, 40, dtype=np.int32)
  want = np.asarray(model.logits(config, params, ids, ()))
  with torch.no_grad():
    found = theirs(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
  np.testing.assert_allclose(found, want, atol=2e-4, rtol=1e-4)
  plain = np.asarray(model.logits(config.base, params, ids, ()))
  assert np.abs(plain - want).max() > 1e-2
  # the folded kernels are those that PEFT merges
  merged = theirs.merge_and_unload().state_dict()
  folded = lora_export.folded(config, params)
  assert lora.PART not in folded
  for product, module in (('v', 'self_attn.v_proj'), ('gate', 'mlp.gate_proj')):
    for layer in range(config.text.layers):
      want = merged[f'model.language_model.layers.{layer}.{module}.weight'].numpy().T
      kernel = folded['text']['layers'][product]['kernel'][layer]
      np.testing.assert_allclose(kernel, want, atol=1e-5)


def test_a_model_without_an_adapter_has_none_to_export(published, tmp_path):
  config, params = weights.load_hf(published)
  for call in (
    lambda: lora_export.folded(config, params),
    lambda: lora_export.save_peft(tmp_path / 'peft', config, params, published),
  ):
    with pytest.raises((ValueError, KeyError)):
      call()
  assert not (tmp_path / 'peft' / lora_export.CONFIG).exists()

"""A published adapter becomes a change of the folder that servers were started with, or is refused."""

import json

import jax
import numpy as np
import pytest

from paravt_jax.errors import SyncError
from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving import manifest, publish, staging
from paravt_jax.serving.base_model import BaseModel

FORM = lora.Adapter(4, 8.0, ('q', 'up'))


@pytest.fixture(scope='module')
def params(base):
  return weights.load_hf(base)[1]


def random_part(params, seed=0):
  rng = np.random.default_rng(seed)
  shapes = lora.shapes(FORM, params['text']['layers'])
  return {
    lora.PART: jax.tree.map(
      lambda x: rng.normal(size=x.shape, scale=0.1).astype(np.float32), shapes
    )
  }


def published(folder, params, part, version=1, **changes):
  given = {'keep': 9, 'frozen': params, 'adapter': FORM, **changes}
  return publish.save(folder, version, part, **given)


def test_a_version_holds_the_adapter_alone_and_is_folded_into_the_folders_kernels(
  base, params, tmp_path
):
  one = BaseModel(base)
  for version in (1, 2):  # the second is no change of the first
    adapter = random_part(params, version)
    folder = published(tmp_path, params, adapter, version)
    page = publish.read_manifest(folder)
    assert page.adapter == FORM and page.frozen.keys() == manifest.leaves(params).keys()
    assert all(name.startswith('adapter/layers/') for name in page.arrays)
    found, changed = one.load(folder)
    assert found == page
    want = lora.fold(FORM, {**params, **adapter})['text']['layers']
    assert manifest.leaves(changed).keys() == {
      f'text/layers/{product}/kernel' for product in FORM.products
    }
    for product, kernel in changed['text']['layers'].items():
      np.testing.assert_allclose(kernel['kernel'], want[product]['kernel'], atol=1e-6)


def test_a_version_of_weights_is_what_was_published(base, params, tmp_path):
  other = jax.tree.map(lambda x: x + 1, params['text'])
  frozen = {'visual': params['visual']}
  folder = publish.save(tmp_path, 1, {'text': other}, keep=1, frozen=frozen)
  page, found = BaseModel(base).load(folder)
  assert page.adapter is None
  jax.tree.map(np.testing.assert_array_equal, found, {'text': other})


def test_an_adapter_is_staged_as_the_kernels_it_changes_in_the_folders_dtype(
  base, params, tmp_path
):
  half = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), random_part(params))
  folder = published(tmp_path / 'weights', params, half)
  with staging.Staging(base, tmp_path / 'staged') as one:
    staged = one.stage(folder)
    only = {('text', 'layers', product, 'kernel') for product in FORM.products}
    _, back = weights.load_hf(staged, only=only)
    assert json.loads((staged / 'config.json').read_text())['dtype'] == 'float32'
  want = lora.fold(FORM, {**params, **half})['text']['layers']
  for product in FORM.products:
    kernel = back['text']['layers'][product]['kernel']
    np.testing.assert_allclose(kernel, want[product]['kernel'], atol=1e-6)


def test_an_adapter_of_another_base_or_form_or_with_a_changed_page_is_refused(
  base, params, tmp_path
):
  one = BaseModel(base)
  other = jax.tree.map(np.array, params)
  other['text']['norm']['scale'] += 1
  with pytest.raises(SyncError, match=r"'text/norm/scale' was left out as unchanged, but is"):
    one.load(published(tmp_path / 'a', other, random_part(params)))
  wide = lora.Adapter(8, 8.0, FORM.products)
  with pytest.raises(SyncError, match=r'adapter/layers/q/lora_a.* is float32.*wanted'):
    one.load(published(tmp_path / 'b', params, random_part(params), adapter=wide))
  more = lora.Adapter(4, 8.0, (*FORM.products, 'v'))
  with pytest.raises(SyncError, match=r"array 'adapter/layers/v/lora_a' is missing"):
    one.load(published(tmp_path / 'c', params, random_part(params), adapter=more))
  folder = published(tmp_path / 'd', params, random_part(params))
  page = json.loads((folder / manifest.FILE).read_text())
  page['adapter']['alpha'] = 80.0
  (folder / manifest.FILE).write_text(json.dumps(page))
  with pytest.raises(SyncError, match='was changed after it was published'):
    one.load(folder)
  both = {**random_part(params), 'text': params['text']}
  with pytest.raises(SyncError, match='publishes an adapter and arrays of the model'):
    one.load(published(tmp_path / 'e', params, both, frozen={'visual': params['visual']}))


def test_a_page_whose_form_is_none_is_broken(base, params, tmp_path):
  folder = published(tmp_path, params, random_part(params))
  page = json.loads((folder / manifest.FILE).read_text())
  page['adapter']['rank'] = 0
  (folder / manifest.FILE).write_text(json.dumps(page))
  with pytest.raises(SyncError, match='broken'):
    manifest.read(folder)


def test_a_folder_that_is_no_model_is_one_error(tmp_path):
  with pytest.raises(SyncError, match=r'base model: .*config\.json'):
    BaseModel(tmp_path)

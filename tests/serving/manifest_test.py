"""The page beside the arrays: what it identifies, and that no edit of it passes."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from paravt_jax.errors import SyncError
from paravt_jax.serving import manifest, publish


def page(**changes):
  entry = manifest.Entry((4,), 'float32', (manifest.Shard(((0, 4),), 'aa'),))
  given = {
    'version': 3,
    'arrays': {'a': entry},
    'frozen': {'b': 'bb'},
    'canary': None,
    'files': {'a/0': (16, 'cc')},
  }
  return manifest.Manifest(**{**given, **changes})


def test_a_page_reads_back_as_it_was(tmp_path):
  wanted = page(canary={'tokens': [1, 2], 'logprobs': [-0.1, -1e-9]})
  (tmp_path / manifest.FILE).write_text(wanted.to_text())
  assert manifest.read(tmp_path) == wanted


def test_the_identity_of_a_model_is_that_of_its_arrays_not_of_its_version():
  assert page().tree == page(version=4, canary={'x': 1}).tree
  assert page().tree != page(frozen={'b': 'other'}).tree
  assert page().tree != page(frozen={'c': 'bb'}).tree
  assert page().tree != page(arrays={'c': page().arrays['a']}).tree


@pytest.mark.parametrize(
  'edit',
  [
    lambda text: text.replace('"version": 3', '"version": 4'),
    lambda text: text.replace('"aa"', '"ab"'),
    lambda text: text.replace('"b": "bb"', '"b": "ba"'),
    lambda text: text.replace('"canary": null', '"canary": 7'),
    lambda text: text.replace('"seal": "', '"seal": "0'),
    lambda text: text + ' ',
    lambda text: text.replace('\n', '\r\n'),
  ],
)
def test_no_edit_passes(edit, tmp_path):
  text = edit(page().to_text())
  assert text != page().to_text()
  (tmp_path / manifest.FILE).write_bytes(text.encode())
  with pytest.raises(SyncError, match=r'was changed after it was published|broken'):
    manifest.read(tmp_path)


def test_an_old_version_under_a_new_name_is_refused(tmp_path):
  folder = publish.save(tmp_path, 3, {'a': np.ones(4, np.float32)}, keep=9)
  shutil.copytree(folder, tmp_path / '4')
  with pytest.raises(SyncError, match='4: holds version 3, wanted 4'):
    manifest.read(tmp_path / '4')


def test_a_missing_and_a_broken_page_are_one_error_each(tmp_path):
  with pytest.raises(
    SyncError,
    match=r'got no manifest.json \(No such file or directory\), wanted a published version',
  ):
    manifest.read(tmp_path)
  for text in (
    '',
    '{"format": 4',
    '[]',
    'null',
    json.dumps({'format': 4, 'version': '1'}),
    '{"format": 4, "version": 1, "arrays": 5}',
    page().to_text().replace('"format": 4', '"format": 3'),
  ):
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(SyncError, match='broken'):
      manifest.read(tmp_path)
  (tmp_path / manifest.FILE).write_bytes(b'\xff\xfe')
  with pytest.raises(SyncError, match='broken'):
    manifest.read(tmp_path)


def test_one_bit_in_the_last_block_of_a_large_array_changes_its_hash():
  array = np.zeros(3 * 2**20 + 5, np.float32)
  ((before, fine),) = manifest.inspect([array])
  array[-1:].view(np.uint8)[0] ^= 1
  assert fine and manifest.inspect([array])[0][0] != before


def test_a_hash_is_of_the_values_in_order_however_they_lie_in_memory():
  array = np.arange(12, dtype=np.float32).reshape(3, 4)
  hashes = [
    one
    for one, _ in manifest.inspect(
      [array, np.asfortranarray(array), array[:, :2], array[:, :2].copy(), array.T]
    )
  ]
  assert hashes[0] == hashes[1] and hashes[2] == hashes[3] and len(set(hashes)) == 3


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_only_infinities_and_nans_are_not_finite(dtype):
  top = float(ml_dtypes.finfo(dtype).max)
  assert manifest.finite(np.array([0.0, -0.0, top, -top, 1e-40], dtype)) and manifest.finite(
    np.zeros(0, dtype)
  )
  for bad in (np.inf, -np.inf, np.nan, -np.nan):
    assert not manifest.finite(np.array([1.0, bad, -1.0], dtype))


def test_frozen_hashes_do_not_depend_on_how_exact_values_are_stored():
  values = np.random.default_rng(0).normal(size=(300, 7)).astype(ml_dtypes.bfloat16)
  one, other = (
    manifest.frozen_hashes({'x': values.astype(dtype)})
    for dtype in (np.float32, ml_dtypes.bfloat16)
  )
  assert one == other != manifest.frozen_hashes({'x': -values})


def test_a_tree_and_its_names_are_each_others_inverse():
  tree = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  assert (
    manifest.leaves(tree) == {'a/b': 1, 'a/c/d': 2, 'e': 3}
    and manifest.nest(manifest.leaves(tree)) == tree
  )

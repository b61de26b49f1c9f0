"""Weight versions: what was saved is what is loaded, or the error names what is wrong."""

import json
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from paravt_jax.errors import SyncError
from paravt_jax.serving import publish


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(30, 8)).astype(np.float32)
  return {'text': {'embed': {'embedding': embedding}, 'norm': {'scale': np.ones(8, np.float32)}},
          'head': {'kernel': rng.normal(size=(8, 30)).astype(np.float32)}}


def abstract(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def test_what_is_saved_is_loaded_bit_by_bit_with_its_version(params, tmp_path):
  folder = publish.save(tmp_path / 'weights', 12, params, keep=2)
  version, back = publish.load(folder, abstract(params))
  assert version == 12 and folder.name == '12'
  jax.tree.map(np.testing.assert_array_equal, params, back)


def test_device_arrays_in_bfloat16_come_back_as_they_were(params, tmp_path):
  half = jax.tree.map(lambda x: jax.numpy.asarray(x, 'bfloat16'), params)
  _, back = publish.load(publish.save(tmp_path, 1, half, keep=1), abstract(half))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), half, back)


def test_only_the_newest_versions_are_kept_and_a_version_can_be_published_again(params, tmp_path):
  for version in (1, 2, 9, 10):
    publish.save(tmp_path, version, params, keep=2)
  publish.save(tmp_path, 10, params, keep=2)
  assert sorted(publish.versions(tmp_path)) == [9, 10]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['10', '9']


def test_a_missing_an_unknown_and_a_reshaped_array_are_named(params, tmp_path):
  folder = publish.save(tmp_path, 1, params, keep=1)
  wanted = abstract(params)
  with pytest.raises(SyncError, match=r"'extra' is missing"):
    publish.load(folder, {**wanted, 'extra': jax.ShapeDtypeStruct((1,), np.float32)})
  with pytest.raises(SyncError, match=r"'head/kernel' is unknown"):
    publish.load(folder, {'text': wanted['text']})
  with pytest.raises(SyncError, match=r"'head/kernel' is float32\[8, 30\], wanted float32\[8, 31\]"):
    publish.load(folder, {**wanted, 'head': {'kernel': jax.ShapeDtypeStruct((8, 31), np.float32)}})
  with pytest.raises(SyncError, match='wanted bfloat16'):
    publish.load(folder, {**wanted, 'head': {'kernel': jax.ShapeDtypeStruct((8, 30), jax.numpy.bfloat16)}})


def test_any_damaged_file_is_noticed(params, tmp_path):
  good = publish.save(tmp_path / 'weights', 1, params, keep=1)
  files = [path.relative_to(good) for path in sorted((good / 'arrays').rglob('*')) if path.is_file() and path.name[0].isdigit()]
  assert len(files) == 3
  for file in files:
    whole = (good / file).read_bytes()
    for damage in (whole[:-5], b'', whole[:10] + bytes([whole[10] ^ 1]) + whole[11:], None):
      broken = shutil.copytree(good, tmp_path / 'broken')
      (broken / file).unlink() if damage is None else (broken / file).write_bytes(damage)
      with pytest.raises(SyncError):
        publish.load(broken, abstract(params))
      shutil.rmtree(broken)


def test_swapped_arrays_and_a_broken_manifest_are_noticed(params, tmp_path):
  folder = publish.save(tmp_path, 1, {'a': np.zeros(4, np.float32), 'b': np.ones(4, np.float32)}, keep=1)
  wanted = abstract({'a': np.zeros(4, np.float32), 'b': np.ones(4, np.float32)})
  (folder / 'arrays' / 'a').rename(tmp_path / 'a')
  (folder / 'arrays' / 'b').rename(folder / 'arrays' / 'a')
  (tmp_path / 'a').rename(folder / 'arrays' / 'b')
  with pytest.raises(SyncError, match="'a' has other content"):
    publish.load(folder, wanted)
  (folder / publish.MANIFEST).write_text('{"format": 1')
  with pytest.raises(SyncError, match='broken'):
    publish.load(folder, wanted)
  (folder / publish.MANIFEST).write_text(json.dumps({'format': 2, 'version': 1, 'arrays': {}}))
  with pytest.raises(SyncError, match='format 2'):
    publish.load(folder, wanted)


def test_values_that_are_not_finite_are_refused(params, tmp_path):
  params['head']['kernel'][0, 0] = np.nan
  folder = publish.save(tmp_path, 1, params, keep=1)
  with pytest.raises(SyncError, match="'head/kernel' holds values that are not finite"):
    publish.load(folder, abstract(params))


def test_a_folder_that_cannot_be_written_is_one_error_and_leaves_nothing(params, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(SyncError, match='cannot be written'):
    publish.save(tmp_path / 'file' / 'weights', 1, params, keep=1)


def test_a_full_disk_is_one_error_and_leaves_what_was_published(params, tmp_path):
  publish.save(tmp_path, 1, params, keep=2)
  large = {'a': np.ones(1 << 20, np.float32)}
  before, old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
  try:
    with pytest.raises(SyncError, match=r'weights cannot be written \(.*; free space') as caught:
      publish.save(tmp_path, 2, large, keep=2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, before)
  assert '\n' not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ['1']


def test_what_a_killed_publisher_left_is_removed_by_the_next(params, tmp_path):
  (tmp_path / '.1.part-7' / 'arrays').mkdir(parents=True)
  publish.save(tmp_path, 2, params, keep=2)
  assert [path.name for path in tmp_path.iterdir()] == ['2']

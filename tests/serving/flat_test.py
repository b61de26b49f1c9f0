"""Versions in memory: what is written is what readers get, bit by bit, or they refuse all of it."""

import gc
import importlib.util
import json
import pathlib
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from paravt_jax.errors import SyncError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving import array_files, flat, manifest, publish, reading, staging

ROOT = pathlib.Path(__file__).parents[2]
torch = pytest.importorskip('torch')


def loader():
  """The module that SGLang's process runs; it imports nothing of ours."""
  file = ROOT / 'third_party/sglang/published_order/flat_weights.py'
  spec = importlib.util.spec_from_file_location('flat_weights', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


flat_weights = loader()


@pytest.fixture
def store(tmp_path):
  return flat.Store(tmp_path)


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  return {
    'large': rng.normal(size=(3, 700_001)).astype(np.float32),  # more than one block
    'half': rng.normal(size=(5, 7)).astype(ml_dtypes.bfloat16),
    'one': np.float32(2.5).reshape(()),
  }


def abstract(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def written(store, params, version=1, **fields):
  page = manifest.Manifest(version, {}, {}, None, {}, **fields)
  return store.write(page, manifest.leaves(params))


def test_what_is_written_is_read_bit_by_bit_and_in_place(store, params):
  folder = written(store, params, 12)
  version, back = reading.load(folder, abstract(params))
  assert version == 12 and folder.name == '12'
  for name, array in params.items():
    assert back[name].dtype == array.dtype and back[name].shape == array.shape
    assert back[name].tobytes() == array.tobytes()
    assert back[name].__array_interface__['data'][0] % 64 == 0
    assert not back[name].flags.writeable


def test_arrays_stay_valid_when_the_version_goes(store, params):
  back = reading.load(written(store, params), abstract(params))[1]
  folder = store._place._folder
  del store
  gc.collect()
  written(flat.Store(folder.parent), {'other': np.zeros(9, np.float32)})
  assert back['large'].tobytes() == params['large'].tobytes()


def test_the_version_before_stays_and_older_ones_go(store, params):
  folders = [written(store, params, version) for version in (1, 2, 3)]
  assert [folder.is_dir() for folder in folders] == [False, True, True]


def test_the_folder_goes_with_its_owner(tmp_path, params):
  store = flat.Store(tmp_path)
  folder = written(store, params)
  assert folder.is_dir()
  del store
  gc.collect()
  assert not list(tmp_path.iterdir())


def flip(at):
  def damage(folder):
    file = folder / flat.FILE
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)

  return damage


def cut(folder):
  file = folder / flat.FILE
  file.write_bytes(file.read_bytes()[:-64])


def without_shards(folder):
  page = json.loads((folder / manifest.FILE).read_text())
  page['arrays']['large']['shards'] = []
  (folder / manifest.FILE).write_text(manifest.parse(page).to_text())  # sealed, as a forger would


DAMAGES = {
  'first byte': (flip(0), "'half' has other content"),
  'a byte of the second block': (flip(5_000_000), "'large' has other content"),
  'the last value': (flip(-64), "'one' has other content"),
  'cut': (cut, 'bytes, wanted'),
  'gone': (lambda folder: (folder / flat.FILE).unlink(), 'cannot be read|missing'),
  'manifest gone': (lambda folder: (folder / manifest.FILE).unlink(), 'got no manifest.json'),
  'no shards': (without_shards, "'large' has other content"),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_version_is_refused(store, params, name):
  folder = written(store, params)
  damage, said = DAMAGES[name]
  damage(folder)
  with pytest.raises(SyncError, match=said):
    reading.load(folder, abstract(params))


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_written(store, params, bad):
  params['large'][2, 600_000] = bad
  with pytest.raises(SyncError, match="'large' holds values that are not finite"):
    written(store, params)
  assert not [path for path in store._place._folder.iterdir() if path.is_dir()]


def full(monkeypatch):
  usage = flat.shutil.disk_usage
  monkeypatch.setattr(flat.shutil, 'disk_usage', lambda folder: usage(folder)._replace(free=1000))


def test_without_room_servers_get_the_version_from_the_disk(tmp_path, params, monkeypatch, caplog):
  full(monkeypatch)
  place = tmp_path / 'memory'
  place.mkdir()
  with publish.Publisher(tmp_path / 'weights', keep=1, memory=flat.Store(place)) as publisher:
    monkeypatch.setattr(array_files, '_refuse_too_large', lambda *_: None)
    for version in (1, 2):
      pending = publisher.start(version, params, frozen=None, canary=None)
      found = pending.ready()
      assert found.changes is None
      assert found.whole() == pending.result() == tmp_path / 'weights' / str(version)
  warned = [record for record in caplog.records if record.levelname == 'WARNING']
  assert len(warned) == 1 and '8 MB are wanted, 0 MB are free' in warned[0].getMessage()


def test_servers_need_not_wait_for_the_disk(tmp_path, params, monkeypatch):
  go, write = threading.Event(), array_files.write

  def slow(*args):
    go.wait()
    return write(*args)

  monkeypatch.setattr(array_files, 'write', slow)
  place = tmp_path / 'memory'
  place.mkdir()
  with publish.Publisher(tmp_path / 'weights', keep=2, memory=flat.Store(place)) as publisher:
    pending = publisher.start(3, params, frozen=None, canary={'a': 1})
    folder = pending.ready().whole()
    assert not pending.done and folder.parent.parent == place
    assert manifest.read(folder).canary == {'a': 1}
    fast = reading.load(folder, abstract(params))[1]
    go.set()
    version, slow_ = reading.load(pending.result(), abstract(params))
  assert version == 3
  assert all(fast[name].tobytes() == slow_[name].tobytes() for name in params)


def test_a_disk_that_fails_after_servers_have_the_version_is_told_once(
  tmp_path, params, monkeypatch
):
  def full_disk(*_):
    raise OSError(28, 'No space left on device')

  place = tmp_path / 'memory'
  place.mkdir()
  with publish.Publisher(tmp_path / 'weights', keep=2, memory=flat.Store(place)) as publisher:
    with monkeypatch.context() as patch:
      patch.setattr(array_files, 'write', full_disk)
      pending = publisher.start(1, params, frozen=None, canary=None)
      assert pending.ready().whole().is_dir()
      with pytest.raises(SyncError, match='1: weights cannot be written'):
        publisher.settle()
    publisher.start(2, params, frozen=None, canary=None).result()
    publisher.settle()
  assert publish.versions(tmp_path / 'weights') == [2]


@pytest.fixture
def described(base, loaded, store, tmp_path):
  """The folder that SGLang gets for other weights of the tiny model, and these weights."""
  rng = np.random.default_rng(1)
  other = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(ml_dtypes.bfloat16), loaded[1])
  published = written(store, other, 5)
  with staging.Staging(base, tmp_path / 'staged') as stage:
    yield stage.stage(published), published, other


def test_sglang_gets_every_tensor_as_a_part_of_the_file(described, loaded):
  folder, _, other = described
  (text,) = load_file(folder / staging.WEIGHTS).values()
  found = dict(
    flat_weights.tensors(torch.from_numpy(text), torch.device('cpu'), flat_weights.Kept())
  )
  table = weights.name_table(loaded[0])
  assert found.keys() == table.keys()
  for name, slot in table.items():
    wanted = weights.pick(loaded[0], other, slot)
    assert tuple(found[name].shape) == wanted.shape
    assert found[name].dtype == torch.bfloat16
    bits = found[name].contiguous().view(torch.int16).numpy()
    np.testing.assert_array_equal(bits, wanted.view(np.int16))


@pytest.mark.parametrize('name', ['first byte', 'the last value', 'cut', 'gone'])
def test_sglang_refuses_a_damaged_file_before_the_first_tensor(described, name):
  folder, published, _ = described
  (text,) = load_file(folder / staging.WEIGHTS).values()
  DAMAGES[name][0](published)
  with pytest.raises(flat_weights.WrongWeights):
    flat_weights.tensors(torch.from_numpy(text), torch.device('cpu'), flat_weights.Kept())


def test_a_version_of_another_model_is_not_described(base, loaded, store, tmp_path):
  params = dict(loaded[1])
  params.pop('visual')
  published = written(store, params, 5)
  with (
    staging.Staging(base, tmp_path / 'staged') as stage,
    pytest.raises(SyncError, match='is missing'),
  ):
    stage.stage(published)


def test_the_model_fits_the_file(loaded, store):
  """A server of the embedded kind reads all of a model out of the file."""
  config, params = loaded
  back = reading.load(written(store, params), model.abstract_params(config))[1]
  jax.tree.map(np.testing.assert_array_equal, params, back)

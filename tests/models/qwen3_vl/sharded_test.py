"""Checkpoints of the published layout are read slice by slice onto a mesh."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paravt_jax.errors import DataError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model, stored, weights
from paravt_jax.models.qwen3_vl.config import Config
from tests.models.qwen3_vl import oracle

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder in the published layout."""
  return oracle.published_folder(tmp_path_factory.mktemp('published'))


def places_on(config, data, fsdp, tensor):
  mesh = sharding.make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])
  shapes = model.abstract_params(config)
  return sharding.parameter_shardings(model.logical_axes(config), shapes, mesh)


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_every_device_gets_its_part_of_what_the_files_hold(published, sizes):
  config, whole = weights.load_hf(published)
  places = places_on(config, *sizes)
  _, params = weights.load_sharded(published, places)
  assert jax.tree.structure(params) == jax.tree.structure(whole)
  for want, got, place in zip(*map(jax.tree.leaves, (whole, params, places)), strict=True):
    assert got.dtype == np.float32 and got.sharding == place
    for shard in got.addressable_shards:
      assert shard.data.shape == place.shard_shape(want.shape)  # no device has more than its part
      np.testing.assert_array_equal(shard.data, want[shard.index].astype(np.float32))


def test_only_the_bytes_of_the_asked_leaves_are_read_and_once_for_all_replicas(
  published, monkeypatch
):
  counted = []
  real = stored.Reader.__exit__

  def closed(reader, *rest):
    counted.append(reader.bytes_read)
    real(reader, *rest)

  monkeypatch.setattr(stored.Reader, '__exit__', closed)
  config, whole = weights.load_hf(published)
  for sizes in ((1, 1, 1), (2, 2, 2)):
    places = places_on(config, *sizes)
    weights.load_sharded(published, places)
    _, tower = weights.load_sharded(published, {'visual': places['visual']}, 'bfloat16')
    assert tower.keys() == {'visual'}
    jax.tree.map(np.testing.assert_array_equal, tower['visual'], whole['visual'])
  every, visual = (
    sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (whole, whole['visual'])
  )
  assert counted == [every, visual] * 2


def test_a_tensor_of_another_dtype_is_rounded_like_the_rest_and_an_overflow_is_refused(
  published, tmp_path
):
  name = 'model.language_model.norm.weight'
  tensors = {}
  for file in published.glob('*.safetensors'):
    tensors |= load_file(file)
  (tmp_path / 'config.json').write_text((published / 'config.json').read_text())
  places = places_on(weights.read_config(published), 1, 1, 1)
  wide = np.linspace(1, 2, len(tensors[name]), dtype=np.float32)
  save_file({**tensors, name: wide}, tmp_path / 'model.safetensors')
  norm = weights.load_sharded(tmp_path, places)[1]['text']['norm']['scale']
  np.testing.assert_array_equal(norm, wide.astype(ml_dtypes.bfloat16).astype(np.float32))
  save_file({**tensors, name: np.full_like(wide, 3.4e38)}, tmp_path / 'model.safetensors')
  with pytest.raises(DataError, match='numbers that bfloat16 cannot hold'):
    weights.load_sharded(tmp_path, places)
  save_file({**tensors, name: wide[:-1]}, tmp_path / 'model.safetensors')
  with pytest.raises(DataError, match=r'norm\.weight: got bfloat16\[47\], wanted bfloat16\[48\]'):
    weights.load_sharded(tmp_path, places)


# A model of 3 leaves' worth of text layers; what the host holds is sampled while it loads.
PEAK = """
import sys, threading, time
import jax, numpy as np
from paravt_jax.models.qwen3_vl import model, weights
from tests.models.qwen3_vl import sharded_test
folder = sys.argv[1]
config = weights.read_config(folder)
places = sharded_test.places_on(config, 1, 4, 2)

def held():
  lines = open('/proc/self/status').read().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('RssAnon'))

weights.load_sharded(folder, {'text': {'norm': places['text']['norm']}})  # starts threads, imports
before, peak, done = held(), 0, threading.Event()

def watch():
  global peak
  while not done.is_set():
    peak = max(peak, held())
    time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
_, params = weights.load_sharded(folder, places)
done.set()
watcher.join()
leaves = jax.tree.leaves(params)
print('PEAK', peak - before, sum(x.nbytes for x in leaves), max(x.nbytes for x in leaves))
"""


def wide_config():
  """About 37 million parameters in many leaves, the largest of 8.4 million."""
  small = Config.from_hf(oracle.torch_config(tied=False).to_dict())
  text = dataclasses.replace(small.text, width=512, layers=16, mlp=1024, vocab=8000)
  return dataclasses.replace(small, text=text)


def test_loading_never_holds_more_than_the_shards_and_one_leaf(tmp_path):
  config = wide_config()
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.integers(0, 2**14, leaf.shape, np.uint16).view(ml_dtypes.bfloat16),
    model.abstract_params(config),
  )
  (tmp_path / 'tokenizer.json').write_text('{}')
  weights.save_hf(tmp_path / 'm', config, params, tmp_path, shard_bytes=20_000_000)
  assert len(list((tmp_path / 'm').glob('*.safetensors'))) > 3
  done = subprocess.run(
    [sys.executable, '-c', PEAK, str(tmp_path / 'm')],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  peak, total, largest = map(int, done.stdout.split('PEAK')[1].split())
  assert total == 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 4 * largest
  # On virtual CPU devices the shards are host memory. 48 MB: a block of 16 MB, read and cast.
  assert peak <= total + largest + 48_000_000

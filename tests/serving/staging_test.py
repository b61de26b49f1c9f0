"""What a server loads is what was published, bit by bit; whatever was damaged on the way is refused
before any server is told.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from paravt_jax.errors import SyncError
from paravt_jax.models.placement import anywhere
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving import manifest, publish, reading, staging
from paravt_jax.serving.embedded import programs, server
from tests import patience

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def other(loaded):
  """Other weights of the same model."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: (x + rng.normal(size=x.shape) / 8).astype(np.float32), loaded[1])


@pytest.fixture(scope='module')
def published(loaded, other, tmp_path_factory):
  """Version 7: a new text, the tower held."""
  folder = tmp_path_factory.mktemp('weights')
  return publish.save(
    folder, 7, {'text': other['text']}, keep=9, frozen={'visual': loaded[1]['visual']}
  )


def test_a_full_version_becomes_a_checkpoint_that_reads_back_bit_by_bit(base, other, tmp_path):
  with staging.Staging(base, tmp_path / 'staged') as one:
    folder = one.stage(publish.save(tmp_path / 'weights', 2, other, keep=1))
    _, back = weights.load_hf(folder)
    jax.tree.map(np.testing.assert_array_equal, back, other)
    assert (folder / 'tokenizer.json').read_bytes() == (base / 'tokenizer.json').read_bytes()
    size = json.loads((folder / 'preprocessor_config.json').read_text())['size']
    assert size == {'shortest_edge': 1024, 'longest_edge': 50176}


def test_only_the_published_arrays_are_staged_in_the_dtype_that_they_were_published_in(
  base, loaded, other, tmp_path
):
  half = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), other['text'])
  folder = publish.save(
    tmp_path / 'weights', 2, {'text': half}, keep=1, frozen={'visual': loaded[1]['visual']}
  )
  with staging.Staging(base, tmp_path / 'staged') as one:
    tensors = load_file(one.stage(folder) / staging.WEIGHTS)
  table = weights.name_table(loaded[0])
  assert set(tensors) == {name for name, slot in table.items() if slot.path[0] == 'text'}
  for name, tensor in tensors.items():
    assert tensor.dtype == jax.numpy.bfloat16
    np.testing.assert_array_equal(tensor, weights.pick(loaded[0], {'text': half}, table[name]))


def test_many_bytes_become_several_files_and_an_index(base, other, tmp_path, monkeypatch):
  monkeypatch.setattr(staging, '_FILE_BYTES', 100_000)
  with staging.Staging(base, tmp_path / 'staged') as one:
    folder = one.stage(publish.save(tmp_path / 'weights', 2, other, keep=1))
    assert sorted(path.name for path in folder.glob('*.safetensors')) == [
      f'model-0000{i}-of-00004.safetensors' for i in (1, 2, 3, 4)
    ]
    jax.tree.map(np.testing.assert_array_equal, weights.load_hf(folder)[1], other)


def test_a_version_is_staged_once_and_again_when_it_was_published_again(
  base, loaded, other, tmp_path
):
  with staging.Staging(base, tmp_path / 'staged') as one:
    folder = one.stage(publish.save(tmp_path / 'weights', 2, other, keep=1))
    written = (folder / staging.WEIGHTS).stat().st_ino
    assert (
      one.stage(tmp_path / 'weights' / '2') == folder
      and (folder / staging.WEIGHTS).stat().st_ino == written
    )
    assert one.stage(publish.save(tmp_path / 'weights', 2, loaded[1], keep=1)) == folder
    jax.tree.map(np.testing.assert_array_equal, weights.load_hf(folder)[1], loaded[1])
    last = one.stage(publish.save(tmp_path / 'weights', 3, other, keep=1))
    one.clear(last)
    assert sorted(path.name for path in (tmp_path / 'staged').iterdir()) == ['3']


def test_another_tower_than_the_servers_is_refused(base, other, tmp_path):
  folder = publish.save(
    tmp_path / 'weights', 2, {'text': other['text']}, keep=1, frozen={'visual': other['visual']}
  )
  with (
    staging.Staging(base, tmp_path / 'staged') as one,
    pytest.raises(SyncError, match=r"'visual/.*' was left out as unchanged"),
  ):
    one.stage(folder)


def test_a_folder_that_is_no_model_and_a_disk_that_refuses_are_one_error_each(
  base, published, tmp_path
):
  with pytest.raises(SyncError, match=r'base model: .*config\.json'):
    staging.Staging(tmp_path, None)
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(SyncError, match='cannot be staged for the servers'),
    staging.Staging(base, tmp_path / 'file' / 'x') as one,
  ):
    one.stage(published)


def test_a_fresh_folder_goes_when_it_is_closed_and_a_dead_ones_is_swept(
  base, published, tmp_path, monkeypatch
):
  monkeypatch.setattr(staging, '_MEMORY', tmp_path)
  code = (
    'import os, pathlib; from paravt_jax.serving import owned_folders; '
    f'owned_folders.claim(pathlib.Path({str(tmp_path)!r}), "paravt-staging-"); os._exit(9)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )
  assert done.returncode == 9, done.stderr[-2000:]
  assert len(list(tmp_path.iterdir())) == 1
  with staging.Staging(base, None) as one, staging.Staging(base, None) as two:
    folders = {one.stage(published).parent, two.stage(published).parent}
    assert set(tmp_path.iterdir()) == folders and len(folders) == 2
    assert all(folder.name.startswith(f'paravt-staging-{os.getpid()}-') for folder in folders)
  assert not list(tmp_path.iterdir())


def test_the_temporary_folder_is_taken_where_memory_has_no_room(tmp_path, monkeypatch):
  monkeypatch.setattr(staging.tempfile, 'gettempdir', lambda: str(tmp_path))
  assert staging.memory_folder(2**60) == tmp_path
  monkeypatch.setattr(staging, '_MEMORY', tmp_path / 'nowhere')
  assert staging.memory_folder(1) == tmp_path


def rewritten(folder: pathlib.Path, change) -> None:
  """An edited manifest with a seal that fits, as only our own mistakes could write it."""
  page = json.loads((folder / manifest.FILE).read_text())
  change(page)
  (folder / manifest.FILE).write_text(manifest.parse(page).to_text())


def faults():
  """100 ways to damage a version: (name, function of its copy, which may return the path of the
  damaged one).
  """
  rng = np.random.default_rng(0)
  files = lambda folder: sorted(path for path in (folder / 'arrays').rglob('*') if path.is_file())
  found = []

  def add(name, damage):
    found.append(pytest.param(damage, id=f'{len(found)}-{name}'))

  def at(where, change):
    def damage(folder):
      path = files(folder)[int(where * len(files(folder)))]
      data = change(path.read_bytes())
      path.unlink() if data is None else path.write_bytes(data)

    return damage

  def flipped(place, bit):
    return lambda data: bytes(
      byte ^ 1 << bit if i == int(place * len(data)) else byte for i, byte in enumerate(data)
    )

  for where in rng.random(20):
    add('byte', at(where, flipped(rng.random(), int(rng.integers(8)))))
  for where in rng.random(15):
    share = rng.random()
    add('truncated', at(where, lambda data, share=share: data[: int(share * len(data))]))
  for where in rng.random(10):
    add('gone', at(where, lambda data: None))
  for where in rng.random(5):
    add('longer', at(where, lambda data: data + b'\0'))
  for place in rng.random(15):
    change = flipped(place, int(rng.integers(8)))

    def page_byte(folder, change=change):
      (folder / manifest.FILE).write_bytes(change((folder / manifest.FILE).read_bytes()))

    add('manifest-byte', page_byte)
  for a, b in (('q', 'o'), ('gate', 'up'), ('k', 'v'), ('q_norm', 'k_norm'), ('norm1', 'norm2')):

    def swap(folder, a=a, b=b):
      one, two = (next((folder / 'arrays').glob(f'text.layers.{name}.*')) for name in (a, b))
      one.rename(folder / 'aside')
      two.rename(one)
      (folder / 'aside').rename(two)

    add(f'swapped-files-{a}-{b}', swap)

    def swap_names(folder, a=a, b=b):
      def change(page):
        one, two = (
          next(name for name in page['arrays'] if name.startswith(f'text/layers/{part}/'))
          for part in (a, b)
        )
        page['arrays'][one], page['arrays'][two] = page['arrays'][two], page['arrays'][one]

      rewritten(folder, change)

    add(f'swapped-names-{a}-{b}', swap_names)
  names = (
    'text/embed/embedding',
    'text/layers/q/kernel',
    'text/layers/down/kernel',
    'text/norm/scale',
    'text/layers/norm1/scale',
  )
  for name in names:
    add(
      'other-shape',
      lambda f, n=name: rewritten(
        f, lambda page: page['arrays'][n].update(shape=[2, *page['arrays'][n]['shape']])
      ),
    )
    add(
      'other-dtype',
      lambda f, n=name: rewritten(f, lambda page: page['arrays'][n].update(dtype='bfloat16')),
    )
    add('not-listed', lambda f, n=name: rewritten(f, lambda page: page['arrays'].pop(n)))
    add(
      'other-hash',
      lambda f, n=name: rewritten(
        f, lambda page: page['arrays'][n]['shards'][0].update(hash='0' * 32)
      ),
    )
  for version in ('8', '70'):
    add('old-version-new-name', lambda f, v=version: f.rename(f.with_name(v)))
  add('no-manifest', lambda f: (f / manifest.FILE).unlink())
  add(
    'frozen-differs',
    lambda f: rewritten(
      f, lambda page: page['frozen'].update({'visual/pos_embed/embedding': '0' * 32})
    ),
  )
  add(
    'frozen-forgotten',
    lambda f: rewritten(f, lambda page: page['frozen'].pop('visual/pos_embed/embedding')),
  )
  return found


FAULTS = faults()


@pytest.fixture(scope='module')
def reader(loaded):
  """What a reader of versions has: the model's shapes, and the hashes of its arrays."""
  hashes = manifest.frozen_hashes(manifest.leaves(loaded[1]))
  return model.abstract_params(loaded[0]), {
    name: lambda found=found: found for name, found in hashes.items()
  }


@pytest.fixture(scope='module')
def stage(base, tmp_path_factory):
  with staging.Staging(base, tmp_path_factory.mktemp('stage') / 'staged') as one:
    yield one


def test_the_undamaged_version_is_accepted_by_both(published, reader, stage):
  assert reading.load(published, *reader)[0] == 7 and stage.stage(published).name == '7'
  stage.clear(None)


def test_there_are_a_hundred_faults():
  assert len(FAULTS) == 100


@pytest.mark.parametrize('damage', FAULTS)
def test_a_damaged_version_is_refused_by_reader_and_stage(
  damage, published, reader, stage, tmp_path
):
  folder = shutil.copytree(published, tmp_path / '7')
  folder = damage(folder) or folder
  abstract, own = reader
  with pytest.raises(SyncError, match=r'publish|wanted'):
    reading.load(folder, abstract, own)
  with pytest.raises(SyncError, match=r'publish|wanted'):
    stage.stage(folder)
  assert not list(stage._folder.glob('*')) and not stage._staged


class Served:
  """As much of an engine as loading needs."""

  def __init__(self, config, params, dtype):
    self.config = config
    self.version = 0
    self.params = programs.prepare(config, params, dtype)
    self.shapes = types.SimpleNamespace(place=anywhere)


class Options:
  """As much of the options as loading needs."""

  model_path = 'base'
  image_slots = 1
  image_cache_mb = 1
  max_image_patches = 16

  def __init__(self, dtype):
    self.dtype = dtype


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_embedded_server_keeps_what_a_version_leaves_out(
  dtype, published, base, loaded, other, tmp_path
):
  config, params = loaded
  one = server.Server(Served(config, params, dtype), Options(dtype))
  version, prepared = one._load(str(published), '7')
  assert version == 7
  jax.tree.map(
    np.testing.assert_array_equal,
    prepared,
    programs.prepare(config, {**params, 'text': other['text']}, dtype),
  )
  one.engine.params = programs.prepare(config, other, dtype)
  one._hashes.clear()
  with pytest.raises(
    SyncError, match=r"'visual/.*' was left out as unchanged, but is another one here"
  ):
    one._load(str(published), '7')
  assert one._load(str(base), '3')[0] == 3
  tower = publish.save(
    tmp_path, 8, {'visual': params['visual']}, keep=1, frozen={'text': other['text']}
  )
  _, prepared = one._load(str(tower), None)
  jax.tree.map(
    np.testing.assert_array_equal,
    prepared,
    programs.prepare(config, {**other, 'visual': params['visual']}, dtype),
  )

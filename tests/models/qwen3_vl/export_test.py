"""Exports: the published names, dtype and shards, bit for bit, and whole or absent."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import export, weights
from paravt_jax.models.qwen3_vl.config import PUBLISHED
from tests.models.qwen3_vl import oracle, sharded_test

ROOT = pathlib.Path(__file__).parents[3]
SHARD = 120_000
INDEX = 'model.safetensors.index.json'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder in the published layout."""
  return oracle.published_folder(tmp_path_factory.mktemp('published'))


def test_the_published_8b_is_750_tensors_of_17534247392_bytes_as_transformers_names_them():
  config = PUBLISHED['8b']()
  files = export.plan(config, 'bfloat16', export.SHARD_BYTES)
  index = export.index(files)
  assert index['metadata'] == {'total_size': 17_534_247_392}
  assert len(index['weight_map']) == 750 and len(files) == 4
  assert next(iter(files)) == 'model-00001-of-00004.safetensors'
  assert all(sum(one.bytes for one in tensors) <= 5 * 10**9 for tensors in files.values())
  with torch.device('meta'):
    theirs = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config.to_hf('bfloat16')))
  ours = {one.name: one for tensors in files.values() for one in tensors}
  want = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
  assert {name: one.shape for name, one in ours.items()} == want
  assert {one.dtype for one in ours.values()} == {'bfloat16'}


def test_sharded_arrays_are_exported_in_the_published_dtype_bit_for_bit(published, tmp_path):
  config, whole = weights.load_hf(published)
  for sizes in ((1, 1, 1), (2, 2, 2)):
    _, params = weights.load_sharded(published, sharded_test.places_on(config, *sizes))
    weights.save_hf(
      tmp_path / 'out', config, params, published, dtype='bfloat16', shard_bytes=SHARD
    )
    files = sorted(path.name for path in (tmp_path / 'out').glob('*.safetensors'))
    count = len(files)
    assert count > 2 and files[0] == f'model-00001-of-{count:05d}.safetensors'
    assert all((tmp_path / 'out' / file).stat().st_size <= SHARD + 10_000 for file in files)
    index = json.loads((tmp_path / 'out' / INDEX).read_text())
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    assert index['metadata']['total_size'] == total and set(index['weight_map'].values()) == {
      *files
    }
    for name, file in index['weight_map'].items():
      with safe_open(tmp_path / 'out' / file, 'np') as opened:
        assert opened.get_slice(name).get_dtype() == 'BF16'
    again = weights.load_hf(tmp_path / 'out')
    assert again[0] == config
    same = lambda a, b: np.testing.assert_array_equal(a.view('u2'), b.view('u2'))
    jax.tree.map(same, again[1], whole)
  theirs = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / 'out', dtype='auto')
  want = Qwen3VLForConditionalGeneration.from_pretrained(published, dtype='auto')
  assert theirs.dtype == torch.bfloat16
  for name, tensor in want.state_dict().items():
    assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_one_file_has_the_bytes_that_safetensors_itself_writes(published, tmp_path):
  config, params = weights.load_hf(published)
  weights.save_hf(tmp_path / 'out', config, params, published)
  tensors = {
    name: weights.pick(config, params, s) for name, s in weights.name_table(config).items()
  }
  save_file(tensors, tmp_path / 'want.safetensors', metadata={'format': 'pt'})
  got = (tmp_path / 'out' / 'model.safetensors').read_bytes()
  assert got == (tmp_path / 'want.safetensors').read_bytes()


def test_an_export_takes_one_layer_at_a_time_to_the_host(published, tmp_path, monkeypatch):
  config, params = weights.load_hf(published)
  _, placed = weights.load_sharded(published, sharded_test.places_on(config, 1, 4, 2))
  taken, real = [], export.to_host

  def counted(leaf, layer, dtype):
    taken.append(real(leaf, layer, dtype).nbytes)
    return real(leaf, layer, dtype)

  monkeypatch.setattr(export, 'to_host', counted)
  weights.save_hf(tmp_path / 'out', config, placed, published, dtype='bfloat16')
  assert len(taken) == len(weights.name_table(config))
  assert sum(taken) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert max(taken) == params['visual']['patch_embed']['kernel'].nbytes


def test_values_that_float16_cannot_hold_are_refused_and_nothing_is_left(published, tmp_path):
  config, params = weights.load_hf(published)
  params['text']['norm']['scale'] = params['text']['norm']['scale'] * 0 + 1e6
  for tree in (params, jax.tree.map(jnp.asarray, params)):
    with pytest.raises(DataError, match=r'language_model\.norm\.weight: has values that float16'):
      weights.save_hf(tmp_path / 'out', config, tree, published, dtype='float16')
  assert not list(tmp_path.iterdir())


KILLED = textwrap.dedent("""
    import os, signal, sys
    from paravt_jax.models.qwen3_vl import export, weights
    config, params = weights.load_hf(sys.argv[1])
    real, calls = export.to_host, []
    def die(*args):
      calls.append(args)
      if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
      return real(*args)
    export.to_host = die
    weights.save_hf(sys.argv[2] + '/hf', config, params, sys.argv[1])
""")


def test_a_killed_export_leaves_the_old_folder_and_no_new_one(published, tmp_path):
  def killed():
    command = [sys.executable, '-c', KILLED, str(published), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == -signal.SIGKILL

  killed()
  (left,) = tmp_path.iterdir()  # a hidden folder without config.json
  assert left.name.startswith('.hf.writing-') and not (left / 'config.json').exists()
  with pytest.raises(DataError, match=r'config\.json: cannot be read'):
    weights.load_hf(left)
  config, params = weights.load_hf(published)
  weights.save_hf(tmp_path / 'hf', config, params, published)
  assert left.exists()  # it is young: its writer might be about to lock it
  old = time.time() - 3600
  os.utime(left, (old, old))
  (tmp_path / '.hf.notes').mkdir()  # a folder that is none of ours
  os.utime(tmp_path / '.hf.notes', (old, old))
  weights.save_hf(tmp_path / 'hf', config, params, published)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['.hf.notes', 'hf']
  before = (tmp_path / 'hf' / 'model.safetensors').read_bytes()
  killed()
  assert (tmp_path / 'hf' / 'model.safetensors').read_bytes() == before


def test_an_export_in_progress_is_not_taken_for_an_abandoned_one(published, tmp_path):
  config, params = weights.load_hf(published)
  with export._new_folder(tmp_path / 'hf') as writing:
    old = time.time() - 3600
    os.utime(writing, (old, old))
    weights.save_hf(tmp_path / 'hf', config, params, published)
    assert writing.is_dir()
    weights.write_companions(writing, config, 'bfloat16', published)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']

"""Weight versions: what was saved is what is loaded, or the error names what is wrong."""

import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from paravt_jax.errors import SyncError
from paravt_jax.serving import array_files, manifest, publish, reading
from tests import patience, xla

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(30, 8)).astype(np.float32)
  return {
    'text': {'embed': {'embedding': embedding}, 'norm': {'scale': np.ones(8, np.float32)}},
    'head': {'kernel': rng.normal(size=(8, 30)).astype(np.float32)},
  }


def abstract(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def test_what_is_saved_is_loaded_bit_by_bit_with_its_version(params, tmp_path):
  folder = publish.save(tmp_path / 'weights', 12, params, keep=2)
  version, back = reading.load(folder, abstract(params))
  assert version == 12 and folder.name == '12'
  jax.tree.map(np.testing.assert_array_equal, params, back)


def test_device_arrays_in_bfloat16_come_back_as_they_were(params, tmp_path):
  half = jax.tree.map(lambda x: jax.numpy.asarray(x, 'bfloat16'), params)
  _, back = reading.load(publish.save(tmp_path, 1, half, keep=1), abstract(half))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), half, back)


def test_orbax_itself_reads_the_arrays(params, tmp_path):
  folder = publish.save(tmp_path, 1, params, keep=1)
  jax.tree.map(
    np.testing.assert_array_equal, ocp.PyTreeCheckpointer().restore(folder / 'arrays'), params
  )


def test_a_layout_of_files_that_a_reader_would_not_expect_is_not_published(
  params, tmp_path, monkeypatch
):
  plain = array_files._handler
  monkeypatch.setattr(array_files, '_handler', lambda: type(plain())(use_ocdbt=True))
  with pytest.raises(
    SyncError,
    match=r"weights cannot be written .*'head/kernel': file 'head.kernel/0.0' is not the 240 "
    r'values of a shard',
  ):
    publish.save(tmp_path, 1, params, keep=1)
  assert not list(tmp_path.iterdir())


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
    reading.load(folder, {**wanted, 'extra': jax.ShapeDtypeStruct((1,), np.float32)})
  with pytest.raises(SyncError, match=r"'head/kernel' is unknown"):
    reading.load(folder, {'text': wanted['text']})
  with pytest.raises(
    SyncError, match=r"'head/kernel' is float32\[8, 30\], wanted float32 or bfloat16 \[8, 31\]"
  ):
    reading.load(folder, {**wanted, 'head': {'kernel': jax.ShapeDtypeStruct((8, 31), np.float32)}})


def test_any_damaged_file_is_noticed(params, tmp_path):
  good = publish.save(tmp_path / 'weights', 1, params, keep=1)
  files = [
    path.relative_to(good)
    for path in sorted((good / 'arrays').rglob('*'))
    if path.is_file() and path.name[0].isdigit()
  ]
  assert len(files) == 3
  for file in files:
    whole = (good / file).read_bytes()
    for damage in (whole[:-5], b'', whole[:10] + bytes([whole[10] ^ 1]) + whole[11:], None):
      broken = shutil.copytree(good, tmp_path / 'broken')
      (broken / file).unlink() if damage is None else (broken / file).write_bytes(damage)
      with pytest.raises(SyncError):
        reading.load(broken, abstract(params))
      shutil.rmtree(broken)


def test_swapped_arrays_and_a_broken_manifest_are_noticed(params, tmp_path):
  folder = publish.save(
    tmp_path, 1, {'a': np.zeros(4, np.float32), 'b': np.ones(4, np.float32)}, keep=1
  )
  wanted = abstract({'a': np.zeros(4, np.float32), 'b': np.ones(4, np.float32)})
  (folder / 'arrays' / 'a').rename(tmp_path / 'a')
  (folder / 'arrays' / 'b').rename(folder / 'arrays' / 'a')
  (tmp_path / 'a').rename(folder / 'arrays' / 'b')
  with pytest.raises(SyncError, match=r"'a' \(file 'a/0'\) has other content"):
    reading.load(folder, wanted)
  (folder / publish.MANIFEST).write_text('{"format": 1')
  with pytest.raises(SyncError, match='broken'):
    reading.load(folder, wanted)
  (folder / publish.MANIFEST).write_text(json.dumps({'format': 1, 'version': 1, 'arrays': {}}))
  with pytest.raises(SyncError, match='format 1'):
    reading.load(folder, wanted)


def test_values_that_are_not_finite_are_refused(params, tmp_path):
  params['head']['kernel'][0, 0] = np.nan
  folder = publish.save(tmp_path, 1, params, keep=1)
  with pytest.raises(SyncError, match="'head/kernel' holds values that are not finite"):
    reading.load(folder, abstract(params))


def test_a_folder_that_cannot_be_written_is_one_error_and_leaves_nothing(params, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(SyncError, match='cannot be written'):
    publish.save(tmp_path / 'file' / 'weights', 1, params, keep=1)


def test_arrays_that_do_not_fit_are_refused_before_they_are_written(params, tmp_path, monkeypatch):
  usage = array_files.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    array_files.shutil, 'disk_usage', lambda folder: usage._replace(free=3_999_999)
  )
  large = {'a': np.ones((2, 500_000), np.float32)}
  with pytest.raises(
    SyncError,
    match=r'weights cannot be written \(.*No space left on device: 4 MB are wanted.*; free space',
  ):
    publish.save(tmp_path, 2, large, keep=2)
  assert list(tmp_path.iterdir()) == []
  monkeypatch.setattr(
    array_files.shutil, 'disk_usage', lambda folder: usage._replace(free=4_000_000)
  )
  publish.save(tmp_path, 2, large, keep=2)


@pytest.mark.parametrize('seen', ['before', 'while it writes'])
def test_a_full_disk_is_one_error_and_leaves_what_was_published(
  params, tmp_path, monkeypatch, seen
):
  if seen == 'while it writes':
    monkeypatch.setattr(array_files, '_refuse_too_large', lambda folder, named: None)
  publish.save(tmp_path, 1, params, keep=2)
  large = {'a': np.ones(1 << 20, np.float32)}
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
  try:
    with pytest.raises(SyncError, match=r'weights cannot be written \(.*; free space') as caught:
      publish.save(tmp_path, 2, large, keep=2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, before)
  assert '\n' not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ['1']


def test_what_a_killed_publisher_left_is_removed_by_the_next(params, tmp_path):
  (tmp_path / '.1.part' / 'arrays').mkdir(parents=True)
  publish.save(tmp_path, 2, params, keep=2)
  assert [path.name for path in tmp_path.iterdir()] == ['2']


def test_bfloat16_is_read_where_the_model_is_float32_and_comes_as_published(params, tmp_path):
  half = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), params)
  _, back = reading.load(publish.save(tmp_path, 1, half, keep=1), abstract(params))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(back)} == {'bfloat16'}


def test_other_dtypes_are_not_published(params, tmp_path):
  with pytest.raises(SyncError, match=r"'a' is int32, wanted one of \('bfloat16', 'float32'\)"):
    publish.save(tmp_path, 1, {'a': np.zeros(3, np.int32)}, keep=1)


def test_only_what_trains_is_written_and_the_rest_must_be_what_the_reader_holds(params, tmp_path):
  trained, frozen = {'head': params['head']}, {'text': params['text']}
  folder = publish.save(tmp_path, 4, trained, keep=1, frozen=frozen, canary={'tokens': [1, 2]})
  assert sorted(
    path.name for path in (folder / 'arrays').iterdir() if path.name.startswith(('head', 'text'))
  ) == ['head.kernel']
  own = manifest.leaves(frozen)
  version, back = reading.load(folder, abstract(params), own)
  assert (version, list(back)) == (4, ['head'])
  page = publish.read_manifest(folder)
  assert sorted(page.frozen) == ['text/embed/embedding', 'text/norm/scale'] and page.canary == {
    'tokens': [1, 2]
  }
  with pytest.raises(
    SyncError, match="'text/norm/scale' was left out as unchanged, but is another one here"
  ):
    reading.load(folder, abstract(params), {**own, 'text/norm/scale': np.full(8, 2, np.float32)})
  with pytest.raises(SyncError, match="'text/embed/embedding' is not in this version and not here"):
    reading.load(folder, abstract(params))
  with pytest.raises(SyncError, match="'head/kernel' is both published and frozen"):
    publish.save(tmp_path, 5, trained, keep=1, frozen=params)


def test_a_reader_that_holds_the_rest_in_bfloat16_is_no_stranger(params, tmp_path):
  folder = publish.save(
    tmp_path, 4, {'head': params['head']}, keep=1, frozen={'text': params['text']}
  )
  half = {
    name: np.asarray(leaf, jax.numpy.bfloat16)
    for name, leaf in manifest.leaves({'text': params['text']}).items()
  }
  asked = {
    name: lambda leaf=leaf: manifest.frozen_hashes({'x': leaf})['x'] for name, leaf in half.items()
  }
  assert (
    reading.load(folder, abstract(params), half)[0]
    == reading.load(folder, abstract(params), asked)[0]
    == 4
  )


def test_the_caller_may_overwrite_or_donate_its_arrays_as_soon_as_start_returns(tmp_path):
  host, device = np.ones((64, 8), np.float32), jax.numpy.ones((64, 8))
  with publish.Publisher(tmp_path, keep=3) as publisher:
    pending = publisher.start(1, {'host': host, 'device': device}, frozen=None, canary=None)
    host[:] = 7
    jax.jit(lambda x: x * 7, donate_argnums=0)(device).block_until_ready()
    folder = pending.result()
  assert pending.done
  _, back = reading.load(folder, abstract({'host': host, 'device': host}))
  assert (back['host'] == 1).all() and (back['device'] == 1).all()


def test_writes_are_one_after_the_other_and_a_failed_one_does_not_stop_the_next(
  tmp_path, monkeypatch
):
  with publish.Publisher(tmp_path, keep=2) as publisher:
    pending = [
      publisher.start(version, {'a': np.full(4, version, np.float32)}, frozen=None, canary=None)
      for version in (1, 2, 3)
    ]
    assert pending[0].done and pending[1].done
    pending[2].result()

    def full(folder):
      raise OSError(28, 'No space left on device')

    with (
      monkeypatch.context() as patch,
      pytest.raises(SyncError, match=r'4: weights cannot be written \(No space left on device\)'),
    ):
      patch.setattr(manifest, 'list_files', full)
      publisher.start(4, {'a': np.zeros(4, np.float32)}, frozen=None, canary=None).result()
    publisher.start(5, {'a': np.zeros(4, np.float32)}, frozen=None, canary=None).result()
  assert sorted(publish.versions(tmp_path)) == [3, 5] and not list(tmp_path.glob('.*'))


def test_frozen_arrays_are_hashed_once(params, tmp_path, monkeypatch):
  calls, real = [], manifest.frozen_hashes
  monkeypatch.setattr(
    manifest, 'frozen_hashes', lambda named: calls.append(sorted(named)) or real(named)
  )
  frozen = {'text': params['text']}
  with publish.Publisher(tmp_path, keep=2) as publisher:
    for version in (1, 2):
      publisher.start(version, {'head': params['head']}, frozen=frozen, canary=None).result()
  assert calls == [['text/embed/embedding'], ['text/norm/scale']]


def test_sharded_arrays_are_written_and_hashed_by_shard_and_read_as_one(tmp_path):
  mesh = jax.make_mesh((4, 2), ('rows', 'columns'), axis_types=(AxisType.Auto, AxisType.Auto))
  whole = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)
  place = lambda *axes: jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*axes)))
  params = {
    'both': place('rows', 'columns'),
    'columns': place(None, 'columns'),
    'rows': place('rows'),
    'copies': place(),
  }
  with publish.Publisher(tmp_path, keep=1) as publisher:
    folder = publisher.start(1, params, frozen=None, canary=None).result()
  entries = publish.read_manifest(folder).arrays
  assert {name: len(entry.shards) for name, entry in entries.items()} == {
    'both': 8,
    'columns': 2,
    'rows': 4,
    'copies': 1,
  }
  assert {shard.index for shard in entries['columns'].shards} == {
    ((0, 64), (0, 8)),
    ((0, 64), (8, 16)),
  }
  _, back = reading.load(folder, abstract(params))
  for name in params:
    np.testing.assert_array_equal(back[name], whole)
  again = publish.save(tmp_path, 2, {**params, 'rows': place('rows') + 1}, keep=2)
  assert publish.read_manifest(again).tree != publish.read_manifest(folder).tree


def test_a_publisher_killed_in_the_middle_leaves_no_version(tmp_path):
  code = f"""
import os, pathlib, numpy as np
from paravt_jax.serving import array_files, manifest, publish
publish.save({str(tmp_path)!r}, 1, {{'a': np.ones(4, np.float32)}}, keep=2)
manifest.list_files = lambda folder: os.kill(os.getpid(), 9)
publish.save({str(tmp_path)!r}, 2, {{'a': np.ones(4, np.float32)}}, keep=2)
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )
  assert done.returncode == -9, done.stderr[-2000:]
  assert publish.versions(tmp_path) == [1] and (tmp_path / '.2.part').is_dir()
  publish.save(tmp_path, 3, {'a': np.ones(4, np.float32)}, keep=2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '3']


@pytest.mark.skipif(os.geteuid() == 0, reason='nothing is forbidden to root')
def test_a_folder_without_permission_is_one_error(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(SyncError, match='weights cannot be written'):
    publish.save(tmp_path / 'weights', 1, {'a': np.ones(4, np.float32)}, keep=1)


PROCESS = """
import sys, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from paravt_jax.errors import SyncError
from paravt_jax.serving import array_files, publish
mesh = jax.make_mesh((4,), ('rows',), axis_types=(AxisType.Auto,))
whole = np.arange(32, dtype=np.float32).reshape(8, 4)
def place(*axes):
  sharding = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.make_array_from_callback((8, 4), sharding, lambda index: whole[index])
tree = {'rows': place('rows'), 'copies': place()}
with publish.Publisher(sys.argv[3], keep=3) as publisher:
  for version in (1, 2):
    frozen = {'frozen': place(None, 'rows')}
    print(publisher.start(version, tree, frozen=frozen, canary=None).result())
  if sys.argv[2] == '1':
    full = OSError('the disk of process 1 is full')
    array_files._entries = lambda named: (_ for _ in ()).throw(full)
  try:
    publisher.start(3, tree, frozen=None, canary=None).result()
  except SyncError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_processes_publish_their_shards_as_one_version_and_both_learn_of_a_failure(tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  env = {**os.environ, 'XLA_FLAGS': xla.devices(2)}
  started = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, address, str(i), str(tmp_path / 'weights')],
      cwd=ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in (0, 1)
  ]
  try:
    said = [process.communicate(timeout=patience.seconds(300))[0] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  assert all('the disk of process 1 is full' in one for one in said), said
  whole = np.arange(32, dtype=np.float32).reshape(8, 4)
  assert sorted(publish.versions(tmp_path / 'weights')) == [1, 2]
  for version in (1, 2):
    folder = tmp_path / 'weights' / str(version)
    assert len(publish.read_manifest(folder).arrays['rows'].shards) == 4
    found, back = reading.load(
      folder, abstract({'rows': whole, 'copies': whole, 'frozen': whole}), {'frozen': whole}
    )
    assert found == version and (back['rows'] == whole).all() and (back['copies'] == whole).all()

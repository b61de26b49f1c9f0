"""Changes between versions: what they are applied to becomes the next version bit by bit, or a server
refuses them and stays as it is.
"""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from paravt_jax.errors import SyncError
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving import changes, described, manifest, publish, reading, staging
from paravt_jax.serving.embedded import server
from tests.serving import staging_test
from tests.serving.flat_test import flat_weights

CPU = torch.device('cpu')


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('share', [0.0, 1e-4, 0.01, 0.5, 1.0])
def test_any_share_of_changed_values_comes_back(dtype, share):
  rng = np.random.default_rng(7)
  old = rng.normal(size=(30, 1001)).astype(dtype)
  new = np.where(rng.random(old.shape) < share, old + dtype(1), old).astype(dtype)
  places, values = changes.encode(old, new)
  found = changes.decode(places)
  different = np.flatnonzero(old.view(f'u{old.itemsize}') != new.view(f'u{old.itemsize}'))
  np.testing.assert_array_equal(found, different)
  back = old.copy()
  back.reshape(-1).view(values.dtype)[found] = values
  assert back.tobytes() == new.tobytes()


@pytest.mark.parametrize('gap', [0, 1, 253, 254, 255, 256, 509, 510, 511, 70_000])
def test_gaps_at_the_edges_of_a_byte(gap):
  old = np.zeros(2 * gap + 3, np.float32)
  new = old.copy()
  new[[gap, 2 * gap + 1]] = 1, 2
  places, values = changes.encode(old, new)
  assert changes.decode(places).tolist() == [gap, 2 * gap + 1]
  assert len(places) == 2 + 2 * (gap // 255) and values.view(np.float32).tolist() == [1, 2]


def test_signs_of_zero_and_not_values_count():
  old, new = np.zeros(3, np.float32), np.array([0.0, -0.0, 0.0], np.float32)
  assert changes.decode(changes.encode(old, new)[0]).tolist() == [1]


def halves(params):
  return jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)


def stepped(params, seed):
  """A step of training: about a fiftieth of the values change."""
  rng = np.random.default_rng(seed)
  step = lambda x: np.where(rng.random(x.shape) < 0.02, x * 1.25, x).astype(x.dtype)
  return jax.tree.map(step, params)


@pytest.fixture(scope='module')
def versions(loaded):
  """Three versions of the weights in bfloat16: the last two each change a little."""
  first = halves(loaded[1])
  second = stepped(first, 1)
  return first, second, stepped(second, 2)


@pytest.fixture
def outgoing(versions, tmp_path):
  """What servers get of the three versions."""
  place = tmp_path / 'shared'
  place.mkdir()
  found = []
  with publish.Publisher(tmp_path / 'weights', keep=9, changes=changes.Outlet(place)) as publisher:
    for number, params in enumerate(versions, 1):
      found.append(publisher.start(number, params, frozen=None, canary=None).ready())
    yield found


def size(params):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_the_first_version_goes_out_whole_and_others_as_what_they_change(outgoing, versions):
  first, second, third = outgoing
  assert first.changes is None and reading.load(first.whole(), _shapes(versions[0]))[0] == 1
  for number, one in ((2, second), (3, third)):
    assert changes.is_changes(one.changes) and changes.base(one.changes) == number - 1
    # three bytes for each value of two bytes that changed, and skips
    assert changes.size(one.changes) < 0.06 * size(versions[0])
    version, back = reading.load(one.whole(), _shapes(versions[0]))
    assert version == number
    jax.tree.map(np.testing.assert_array_equal, back, versions[number - 1])


def _shapes(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def test_many_changes_go_out_whole(versions, tmp_path):
  with publish.Publisher(tmp_path / 'w', keep=2, changes=changes.Outlet(tmp_path)) as publisher:
    publisher.start(1, versions[0], frozen=None, canary=None).ready()
    other = jax.tree.map(lambda x: x * ml_dtypes.bfloat16(1.5), versions[0])
    found = publisher.start(2, other, frozen=None, canary=None).ready()
    assert found.changes is None and found.whole().name == '2'


def test_other_arrays_than_before_go_out_whole(versions, tmp_path):
  with publish.Publisher(tmp_path / 'w', keep=2, changes=changes.Outlet(tmp_path)) as publisher:
    publisher.start(1, {'a': np.zeros(8, np.float32)}, frozen=None, canary=None).ready()
    for params in ({'a': np.zeros(9, np.float32)}, {'b': np.zeros(9, np.float32)}):
      assert publisher.start(2, params, frozen=None, canary=None).ready().changes is None


def test_changes_are_applied_bit_by_bit_and_leave_the_base(outgoing, versions):
  folder = outgoing[1].changes
  page, old = manifest.read(folder), manifest.leaves(versions[0])
  kept = {name: array.copy() for name, array in old.items()}
  new = changes.apply(folder, page, old)
  for name, array in manifest.leaves(versions[1]).items():
    assert new[name].tobytes() == array.tobytes()
    assert old[name].tobytes() == kept[name].tobytes()


def flip(file, at):
  def damage(folder):
    data = bytearray((folder / file).read_bytes())
    data[at] ^= 1
    (folder / file).write_bytes(data)

  return damage


def edit(**fields):
  def damage(folder):
    page = json.loads((folder / changes.INDEX).read_text())
    (folder / changes.INDEX).write_text(json.dumps(page | fields))

  return damage


def cut(folder):
  data = (folder / changes.FILE).read_bytes()
  (folder / changes.FILE).write_bytes(data[:-3])


DAMAGES = {
  'a place': flip(changes.FILE, 0),
  'a value': flip(changes.FILE, -1),
  'cut': cut,
  'gone': lambda folder: (folder / changes.FILE).unlink(),
  'no index': lambda folder: (folder / changes.INDEX).write_text('{'),
  'no arrays': edit(arrays={}),
  'a list': edit(arrays=[1]),
  'manifest': lambda folder: (folder / manifest.FILE).unlink(),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_changes_are_refused(outgoing, versions, tmp_path, name):
  folder = shutil.copytree(outgoing[1].changes, tmp_path / '2')
  DAMAGES[name](folder)
  with pytest.raises(SyncError):
    changes.apply(folder, manifest.read(folder), manifest.leaves(versions[0]))


def served(base, config, params, version, dtype):
  engine = staging_test.Served(config, params, dtype)
  engine.version = version
  options = staging_test.Options(dtype)
  options.model_path = str(base)
  return server.Server(engine, options)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_embedded_server_applies_changes_to_what_it_serves(
  base, loaded, versions, outgoing, dtype
):
  one = served(base, loaded[0], versions[0], 1, dtype)
  version, prepared = one._load(str(outgoing[1].changes), '2')
  wanted = served(base, loaded[0], versions[1], 2, dtype).engine.params
  assert version == 2
  jax.tree.map(np.testing.assert_array_equal, prepared, wanted)


def test_a_server_of_another_version_refuses_changes(base, loaded, versions, outgoing):
  one = served(base, loaded[0], versions[0], 1, 'bfloat16')
  with pytest.raises(SyncError, match='changes version 2, served is 1; send the whole version'):
    one._load(str(outgoing[2].changes), '3')
  other = served(base, loaded[0], versions[2], 1, 'bfloat16')  # the number of another run
  with pytest.raises(SyncError, match='other content than was published'):
    other._load(str(outgoing[1].changes), '2')


def test_a_server_that_rounds_more_than_the_version_refuses_changes(base, loaded, tmp_path):
  params = loaded[1]  # float32
  new = stepped(params, 3)
  with publish.Publisher(tmp_path / 'w', keep=2, changes=changes.Outlet(tmp_path)) as publisher:
    publisher.start(1, params, frozen=None, canary=None).ready()
    found = publisher.start(2, new, frozen=None, canary=None).ready()
  with pytest.raises(SyncError, match='served as bfloat16, from which its bits cannot be told'):
    served(base, loaded[0], params, 1, 'bfloat16')._load(str(found.changes), '2')


@pytest.fixture
def stage(base, tmp_path):
  with staging.Staging(base, tmp_path / 'staged', keep=True) as one:
    yield one


def text(folder):
  (found,) = load_file(folder / described.WEIGHTS).values()
  return torch.from_numpy(found)


def check(found, config, params):
  table = weights.name_table(config)
  assert found.keys() == table.keys()
  for name, slot in table.items():
    bits = found[name].contiguous().view(torch.int16).numpy()
    np.testing.assert_array_equal(bits, weights.pick(config, params, slot).view(np.int16))


def test_sglang_applies_changes_to_what_it_keeps(stage, loaded, versions, outgoing):
  kept = flat_weights.Kept()
  whole = stage.stage(outgoing[0].whole())
  check(dict(flat_weights.tensors(text(whole), CPU, kept)), loaded[0], versions[0])
  for number in (1, 2):
    folder = stage.stage(outgoing[number].changes)
    check(dict(flat_weights.tensors(text(folder), CPU, kept)), loaded[0], versions[number])
  assert kept.version == 3


def test_sglang_without_the_base_refuses_and_gets_the_whole(stage, loaded, versions, outgoing):
  kept = flat_weights.Kept()
  changed = stage.stage(outgoing[1].changes)
  with pytest.raises(flat_weights.WrongWeights, match='changes of version 1, kept is None'):
    flat_weights.tensors(text(changed), CPU, kept)
  whole = stage.stage(outgoing[1].whole())
  check(dict(flat_weights.tensors(text(whole), CPU, kept)), loaded[0], versions[1])
  check(
    dict(flat_weights.tensors(text(stage.stage(outgoing[2].changes)), CPU, kept)),
    loaded[0],
    versions[2],
  )


@pytest.mark.parametrize('at', [0, -1])
def test_sglang_keeps_nothing_after_damaged_changes(stage, outgoing, at):
  kept = flat_weights.Kept()
  flat_weights.tensors(text(stage.stage(outgoing[0].whole())), CPU, kept)
  changed = stage.stage(outgoing[1].changes)
  flip(changes.FILE, at)(outgoing[1].changes)
  with pytest.raises(flat_weights.WrongWeights):
    flat_weights.tensors(text(changed), CPU, kept)
  assert kept.version is None and kept.data is None


@pytest.mark.parametrize('by', [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_sglang_refuses_changes_whose_lengths_do_not_fit(stage, outgoing, by):
  kept = flat_weights.Kept()
  flat_weights.tensors(text(stage.stage(outgoing[0].whole())), CPU, kept)
  folder = outgoing[1].changes
  page = json.loads((folder / changes.INDEX).read_text())
  name = next(iter(page['arrays']))
  page['arrays'][name] = [one + more for one, more in zip(page['arrays'][name], by)]
  (folder / changes.INDEX).write_text(json.dumps(page))
  with pytest.raises(flat_weights.WrongWeights):
    flat_weights.tensors(text(stage.stage(folder)), CPU, kept)
  assert kept.data is None


def test_a_full_disk_is_no_end(versions, tmp_path, monkeypatch, caplog):
  def full(*_):
    raise OSError(28, 'No space left on device')

  with publish.Publisher(tmp_path / 'w', keep=2, changes=changes.Outlet(tmp_path)) as publisher:
    publisher.start(1, versions[0], frozen=None, canary=None).ready()
    with monkeypatch.context() as patch:
      patch.setattr(changes, 'write', full)
      found = publisher.start(2, versions[1], frozen=None, canary=None).ready()
    assert found.changes is None and found.whole().name == '2'
    assert publisher.start(3, versions[2], frozen=None, canary=None).ready().changes is not None
  assert 'weights 2 go out whole: their changes cannot be written (No space' in caplog.text


def test_values_that_are_not_finite_are_told(versions, tmp_path):
  bad = jax.tree.map(np.copy, versions[1])
  bad['text']['norm']['scale'][0] = np.nan
  with publish.Publisher(tmp_path / 'w', keep=2, changes=changes.Outlet(tmp_path)) as publisher:
    publisher.start(1, versions[0], frozen=None, canary=None).ready()
    with pytest.raises(SyncError, match='not finite'):
      publisher.start(2, bad, frozen=None, canary=None).ready()


def test_the_newest_two_changes_stay(versions, tmp_path):
  with publish.Publisher(tmp_path / 'w', keep=2, changes=changes.Outlet(tmp_path)) as publisher:
    found = [
      publisher.start(number, versions[number % 2], frozen=None, canary=None).ready().changes
      for number in range(5)
    ]
  assert [folder is not None and folder.exists() for folder in found] == [
    False,
    False,
    False,
    True,
    True,
  ]

"""Records: complete or absent, onto any mesh, refused with a reason."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.errors import CheckpointError
from paravt_jax.train import checkpoint, state
from tests.train import common

HOST = {'position': {'epoch': 1, 'index': 7}, 'running': ['a', 'b'], 'version': 3, 'none': None}


def tree(scale=1.0, width=3):
  return {
    'params': {'w': jnp.full((2, width), float(scale)), 'b': jnp.zeros(width)},
    'count': jnp.int32(4),
  }


def test_a_record_comes_back_whole_with_its_counters(tmp_path):
  checkpoint.save(tmp_path, 12, tree(2.0), HOST, keep=2)
  record = checkpoint.restore(tmp_path, tree())
  assert record.step == 12 and record.host == HOST
  assert record.state['params']['w'].tolist() == [[2.0] * 3] * 2 and record.state['count'] == 4


def test_the_last_n_records_are_kept(tmp_path):
  for step in (1, 2, 10):
    checkpoint.save(tmp_path, step, tree(step), {'step': step}, keep=2)
  assert checkpoint.steps(tmp_path) == (2, 10) and checkpoint.latest(tmp_path) == 10
  assert checkpoint.restore(tmp_path, tree(), step=2).host == {'step': 2}


def test_a_record_may_be_written_again(tmp_path):
  checkpoint.save(tmp_path, 1, tree(1), {}, keep=2)
  checkpoint.save(tmp_path, 1, tree(5), {'again': True}, keep=2)
  record = checkpoint.restore(tmp_path, tree())
  assert record.host == {'again': True} and record.state['params']['w'][0, 0] == 5


def test_a_learner_state_moves_from_one_device_to_eight(tmp_path):
  optimizer = common.sgd()
  before = common.fresh(optimizer, common.mesh_of())
  checkpoint.save(tmp_path, 1, before, {}, keep=1)
  after = checkpoint.restore(
    tmp_path, state.abstract(common.CONFIG, optimizer, common.mesh_of(2, 2, 2))
  ).state
  kernel = after.params['text']['layers']['gate']['kernel']
  assert len(kernel.sharding.device_set) == 8 and kernel.sharding.shard_shape(kernel.shape) == (
    2,
    16,
    24,
  )
  assert not common.change(jax.device_get(before.params), jax.device_get(after.params)).any()


def test_another_shape_names_file_leaf_got_and_wanted(tmp_path):
  checkpoint.save(tmp_path, 3, tree(width=3), {}, keep=1)
  message = (
    r'00000003: leaf params/b has shape \(3,\) float32, wanted \(4,\) float32; .*own run folder'
  )
  with pytest.raises(CheckpointError, match=message):
    checkpoint.restore(tmp_path, tree(width=4))


def test_a_missing_and_an_unknown_leaf_are_named(tmp_path):
  checkpoint.save(tmp_path, 3, tree(), {}, keep=1)
  with pytest.raises(CheckpointError, match='leaf extra is missing'):
    checkpoint.restore(tmp_path, {**tree(), 'extra': jnp.zeros(1)})
  with pytest.raises(CheckpointError, match='got leaf count'):
    checkpoint.restore(tmp_path, {'params': tree()['params']})


def test_no_record_is_refused_and_an_unknown_step_lists_the_known(tmp_path):
  with pytest.raises(CheckpointError, match='got no checkpoint record'):
    checkpoint.restore(tmp_path / 'none', tree())
  checkpoint.save(tmp_path, 3, tree(), {}, keep=1)
  with pytest.raises(CheckpointError, match=r'no record of step 4; there are records of \[3\]'):
    checkpoint.restore(tmp_path, tree(), step=4)


def damage(path: pathlib.Path):
  for file in (path / 'arrays').rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      file.write_bytes(file.read_bytes()[:8])


def test_a_damaged_record_is_refused_and_says_which_to_fall_back_on(tmp_path):
  checkpoint.save(tmp_path, 1, tree(), {}, keep=2)
  damage(checkpoint.save(tmp_path, 2, tree(), {}, keep=2))
  with pytest.raises(CheckpointError, match=r'half written or damaged .* earlier record \[1\]'):
    checkpoint.restore(tmp_path, tree())
  assert checkpoint.restore(tmp_path, tree(), step=1).step == 1


def test_damaged_counters_are_refused(tmp_path):
  path = checkpoint.save(tmp_path, 1, tree(), HOST, keep=2)
  (path / 'host.json').write_text('{"posi')
  with pytest.raises(CheckpointError, match=r'host.json: half written or damaged'):
    checkpoint.restore(tmp_path, tree())


def test_a_record_that_cannot_be_written_leaves_the_earlier_ones_and_no_remains(tmp_path):
  checkpoint.save(tmp_path, 1, tree(), {}, keep=2)
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='could not be written'):
    checkpoint.save(tmp_path / 'file' / 'below', 2, tree(), {}, keep=2)
  with pytest.raises(TypeError):
    checkpoint.save(tmp_path, 2, tree(), {'no json': object()}, keep=2)
  assert checkpoint.restore(tmp_path, tree()).step == 1


KILLED = textwrap.dedent("""
    import os, pathlib, signal, sys
    import jax.numpy as jnp
    from paravt_jax.train import checkpoint
    checkpoint.save(sys.argv[1], 1, {'w': jnp.ones(4)}, {'step': 1}, keep=3)
    checkpoint._barrier = lambda name: None
    pathlib.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save(sys.argv[1], 2, {'w': jnp.zeros(4)}, {'step': 2}, keep=3)
""")


def test_a_kill_in_the_middle_of_a_save_leaves_the_previous_record_usable(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, '-c', KILLED, str(tmp_path)],
    cwd=root,
    env={**os.environ, 'PYTHONPATH': str(root)},
  )
  assert done.returncode == -signal.SIGKILL
  assert len(list(tmp_path.iterdir())) == 2  # the record, and the remains of the second
  record = checkpoint.restore(tmp_path, {'w': jnp.zeros(4)})
  assert record.step == 1 and record.state['w'].tolist() == [1] * 4
  checkpoint.save(tmp_path, 2, {'w': jnp.zeros(4)}, {'step': 2}, keep=3)
  assert checkpoint.steps(tmp_path) == (1, 2) and len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_save_left_is_swept_and_records_stay(tmp_path):
  checkpoint.save(tmp_path, 1, tree(), {}, keep=2)
  (tmp_path / '.writing-00000002' / 'arrays').mkdir(parents=True)
  checkpoint.sweep(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['00000001'] and checkpoint.latest(
    tmp_path
  ) == 1
  checkpoint.sweep(tmp_path / 'absent')


def test_a_record_is_a_value(tmp_path):
  assert dataclasses.asdict(checkpoint.Record(1, np.zeros(1), {}))['step'] == 1


def test_save_returns_while_the_record_is_written_and_the_caller_may_donate(tmp_path, monkeypatch):
  go, real = threading.Event(), pathlib.Path.rename

  def rename(path, target):
    go.wait()
    return real(path, target)

  monkeypatch.setattr(pathlib.Path, 'rename', rename)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  value = jnp.zeros(1 << 20)
  with checkpoint.Writer(tmp_path, keep=2) as writer:
    path = writer.save(1, {'w': value}, {'step': 1})
    for _ in range(3):
      value = add(value)
    assert value[0] == 3 and checkpoint.latest(tmp_path) is None and not path.exists()
    go.set()
    writer.wait()
    assert checkpoint.latest(tmp_path) == 1 and path.is_dir()
    writer.wait()  # nothing to wait for
    writer.save(2, {'w': value}, {'step': 2})
  assert checkpoint.steps(tmp_path) == (1, 2)
  for step, want in ((1, 0), (2, 3)):
    found = checkpoint.restore(tmp_path, {'w': value}, step=step)
    assert found.host == {'step': step} and set(np.asarray(found.state['w']).tolist()) == {want}


def no_rename(*_):
  raise OSError(28, 'No space left on device')


def test_an_error_of_the_background_surfaces_once_at_the_next_save_or_at_the_end(
  tmp_path, monkeypatch, caplog
):
  message = r'00000001: the record could not be written \(.*No space left on device\)'
  with checkpoint.Writer(tmp_path, keep=2) as writer:
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, 'rename', no_rename)
      writer.save(1, tree(), {})
      with pytest.raises(CheckpointError, match=message):
        writer.save(2, tree(), {})
    assert not list(tmp_path.iterdir())
    writer.save(3, tree(), {})
  assert checkpoint.steps(tmp_path) == (3,)
  monkeypatch.setattr(pathlib.Path, 'rename', no_rename)
  with (
    pytest.raises(CheckpointError, match=message),
    checkpoint.Writer(tmp_path, keep=2) as writer,
  ):
    writer.save(1, tree(), {})
  assert not caplog.records
  # what ended the run is not hidden
  with pytest.raises(KeyError, match='the run'), checkpoint.Writer(tmp_path, keep=2) as writer:
    writer.save(1, tree(), {})
    raise KeyError('the run')
  assert 'could not be written' in caplog.text and checkpoint.steps(tmp_path) == (3,)


KILLED_LATER = textwrap.dedent("""
    import os, pathlib, signal, sys
    import jax.numpy as jnp
    from paravt_jax.train import checkpoint
    writer = checkpoint.Writer(sys.argv[1], keep=1)
    writer.save(1, {'w': jnp.ones(1 << 25)}, {'step': 1})
    writer.wait()
    writer.save(2, {'w': jnp.zeros(1 << 25)}, {'step': 2})
    while not any(pathlib.Path(sys.argv[1]).glob('.writing-*/arrays*')):
      pass  # until the background writes
    os.kill(os.getpid(), signal.SIGKILL)
""")


def test_a_kill_while_training_goes_on_leaves_the_previous_record_usable(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, '-c', KILLED_LATER, str(tmp_path)],
    cwd=root,
    env={**os.environ, 'PYTHONPATH': str(root)},
  )
  assert done.returncode == -signal.SIGKILL
  assert checkpoint.steps(tmp_path) == (1,) and len(list(tmp_path.iterdir())) == 2
  record = checkpoint.restore(tmp_path, {'w': jnp.zeros(1 << 25)})
  assert record.host == {'step': 1} and record.state['w'].min() == 1
  checkpoint.sweep(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['00000001']


def test_a_record_says_where_the_parameters_are_that_it_leaves_out(tmp_path):
  base = checkpoint.Base('/models/a', ('visual',), 'abc')
  path = checkpoint.save(tmp_path, 1, tree(), HOST, keep=3, base=base)
  assert checkpoint.base(tmp_path, 1) == base
  checkpoint.save(tmp_path, 2, tree(), HOST, keep=3)
  assert checkpoint.base(tmp_path, 2) is None
  checkpoint.refuse_other_base(path, base, 'abc', '/models/b')
  with pytest.raises(CheckpointError, match=r'visual of /models/b is not what the .* of /models/a'):
    checkpoint.refuse_other_base(path, base, 'xyz', '/models/b')
  (path / 'base.json').write_text('{"folder": 1}')
  with pytest.raises(CheckpointError, match=r'base\.json: half written or damaged'):
    checkpoint.base(tmp_path, 1)


def test_a_part_of_a_record_can_be_read_alone(tmp_path):
  checkpoint.save(tmp_path, 1, tree(2.0), HOST, keep=1)
  found = checkpoint.restore(tmp_path, {'params': tree()['params']}, partial=True)
  assert found.state['params']['w'].tolist() == [[2.0] * 3] * 2 and found.state.keys() == {'params'}
  with pytest.raises(CheckpointError, match='leaf extra is missing'):
    checkpoint.restore(tmp_path, {'extra': jnp.zeros(1)}, partial=True)

"""Temporary folders go with their process, also if it was killed, and no others do."""

import os
import pathlib
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.serving import owned_folders
from paravt_jax.serving.embedded import launch
from tests import patience
from tests.serving.embedded.options_test import GOOD

ROOT = pathlib.Path(__file__).parents[2]
# starts a server, in whose folder it waits until the server answers
OWNER = """
import os, pathlib, sys
from paravt_jax.serving.embedded import launch, options
launch.launch(options.ServerOptions.from_json(sys.argv[1]), env=dict(os.environ),
              log=pathlib.Path(sys.argv[2]), deadline_s=600.0, parent_pid=os.getpid())
"""


def test_the_next_start_of_a_server_removes_only_the_folder_of_a_killed_owner(
  tmp_path, monkeypatch
):
  parent = tmp_path / 'tmp'
  parent.mkdir()
  owner = subprocess.Popen(
    [sys.executable, '-c', OWNER, GOOD.to_json(), str(tmp_path / 'owner.log')],
    cwd=ROOT,
    env={**os.environ, 'TMPDIR': str(parent)},
  )
  try:
    patience.until(lambda: list(parent.glob('paravt-server-*/.lock')))
  finally:
    owner.kill()
    owner.wait()
  (left,) = parent.iterdir()
  live, lock = owned_folders.claim(parent, 'paravt-server-')
  for name in ('paravt-server-unlocked', 'other'):
    (parent / name).mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(parent))
  with pytest.raises(RolloutError, match='ended with status'):  # there is no model 'm'
    launch.launch(
      GOOD,
      env=dict(os.environ),
      log=tmp_path / 'next.log',
      deadline_s=patience.seconds(120),
      parent_pid=os.getpid(),
    )
  assert not left.exists()
  assert {path.name for path in parent.iterdir()} == {live.name, 'paravt-server-unlocked', 'other'}
  owned_folders.release(live, lock)
  assert not live.exists()


def test_starts_at_the_same_time_leave_each_other_their_folders(tmp_path):
  def start(_):
    owned_folders.sweep(tmp_path, 'x-')
    folder, lock = owned_folders.claim(tmp_path, 'x-')
    (folder / 'port').write_text('1')
    owned_folders.sweep(tmp_path, 'x-')
    assert (folder / 'port').read_text() == '1'
    owned_folders.release(folder, lock)

  with ThreadPoolExecutor(16) as pool:
    list(pool.map(start, range(400)))
  assert not list(tmp_path.iterdir())

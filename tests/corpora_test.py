"""The three commands of the README on archives and rows of the published shapes, from downloads to
a trained checkpoint.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from paravt_jax.data.world import write
from tests import patience
from tests.data.world.small import WORLD

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(place, module, *arguments, status=0):
  """Standard output and error of a command in `place`."""
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-m', module, *arguments],
    cwd=place,
    env=env,
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    check=False,
  )
  assert done.returncode == status, done.stdout + done.stderr
  return done.stdout, done.stderr


def test_three_commands_lead_from_the_downloads_to_a_checkpoint(tmp_path):
  world = write.write(tmp_path / 'download', WORLD, 3, workers=0)
  unpack = ('paravt_jax.data.unpack', '--archives', 'download/source', '--root', 'media')
  materialize = (
    'paravt_jax.data.materialize',
    '--root',
    'media',
    '--parquet-dir',
    'download',
    '--output-dir',
    'rows',
  )
  run(tmp_path, *unpack, '--include', '*00000*')
  out, err = run(tmp_path, *materialize)
  assert (
    'longvt_source/selftrace' in out + err
    and (tmp_path / 'rows' / 'missing.txt').read_text().count('.mp4') == 5
  )
  run(tmp_path, *unpack)
  run(tmp_path, *materialize)
  assert (
    not (tmp_path / 'rows' / 'missing.txt').exists()
    or not (tmp_path / 'rows' / 'missing.txt').read_text()
  )
  knobs = {
    'data.kind': 'files',
    'data.train': "('rows/paravt_sft_*.parquet',)",
    'data.media_root': 'media',
    'steps': 3,
    'video.cache_folder': 'frames',
    'train.image_patches': 4,
  }
  train = (
    'experiments.sft',
    f'--config={ROOT}/configs/sft.py',
    *(f'--config.{name}={value}' for name, value in knobs.items()),
  )
  out, _ = run(tmp_path, *train)
  model = tmp_path / out.splitlines()[-1]
  assert (model / 'config.json').is_file() and list(model.glob('*.safetensors'))
  records = [json.loads(line) for line in (model.parent / 'metrics.jsonl').read_text().splitlines()]
  assert len(records) == 3 and all(record['sft/documents'] > 0 for record in records)
  assert len(list((tmp_path / 'frames').rglob('*.npz'))) > 0
  (tmp_path / 'rows' / 'paravt_sft_trace.parquet').write_bytes(
    (tmp_path / 'rows' / 'paravt_sft_subagent.parquet').read_bytes()
  )
  _, err = run(tmp_path, *train, status=2)
  assert 'is finished, but trace is not what it was trained on' in err and err.count('error:') == 1
  assert sorted(path.name for path in world.sft) == sorted(
    path.name for path in (tmp_path / 'rows').glob('paravt_sft_*')
  )

"""Suite `data`: packing, decoding beside decord, unpacking beside `unzip`, materializing, and how
long steps wait.
"""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pyarrow.parquet

from experiments.bench import decode as bench_decode
from experiments.bench import input as bench_input
from experiments.bench import media as bench_media
from experiments.bench import recipe as recipes
from experiments.bench.generate import limit_cores
from experiments.bench.measuring import say, timed
from paravt_jax.errors import DataError
from paravt_jax.options import to_dict
from paravt_jax.orchestrator.run_folder import fingerprint

_MATERIALIZE = ('-m', 'paravt_jax.data.materialize')
_UNPACK = ('-m', 'paravt_jax.data.unpack')


def suite(recipe: recipes.BenchRecipe) -> dict[str, Any]:
  """{'packing_efficiency', 'decode', 'unpack', 'materialize', 'input_wait_share', ...}; see
  configs/bench.py.
  """
  knobs, folder = recipe.data, pathlib.Path(recipe.run.folder) / 'data'
  folder.mkdir(parents=True, exist_ok=True)
  with limit_cores(recipe.threads):
    say(f'packing: {knobs.packing.batches} batches of the stated mix')
    report: dict[str, Any] = {'packing_efficiency': bench_input.packing_efficiency(recipe, folder)}
    say(f'a clip of {knobs.clip.seconds} s')
    clip = bench_media.clip(folder, knobs.clip)
    say('decoding: our reader and decord take turns')
    report['decode'] = bench_decode.measure(knobs.decode, knobs.sft.video, clip, recipe.threads)
    say('unpacking: ours and unzip take turns')
    report['unpack'] = unpack(knobs.unpack, folder) | {'threads': recipe.threads}
    say(f'materializing {knobs.materialize.rows} rows')
    report['materialize'] = materialize(knobs.materialize, folder)
    return report | bench_input.measure(recipe, folder, clip, say)


# Unpacking


def unpack(knobs: recipes.UnpackBench, folder: pathlib.Path) -> dict[str, Any]:
  """Seconds of our command over those of `unzip -q`: on one archive (the worse of small files and
  large ones), and on several.

  Both are commands, started anew into an empty folder; turns alternate and the best one of each
  counts. The ratios are null without `unzip`.
  """
  if shutil.which('unzip') is None:
    say(
      'there is no unzip on this machine: nothing to compare with; `apt-get install unzip` '
      'brings it'
    )
  one = {
    kind: bench_media.archives(folder / 'archives', kind, knobs.bytes, 1)
    for kind in ('jpgs', 'mp4s')
  }
  parts = folder / f'archives-{knobs.archives}-{knobs.bytes}'
  several = [
    file
    for kind in one
    for file in bench_media.archives(parts, kind, knobs.bytes, knobs.archives // 2)
  ]
  report: dict[str, Any] = {
    kind: _versus_unzip(files, knobs, folder / 'out') for kind, files in one.items()
  }
  report['several'] = _versus_unzip(several, knobs, folder / 'out')
  ratios = [report[kind]['time_ratio_to_unzip'] for kind in one]
  several_ratio = report['several'].pop('time_ratio_to_unzip')
  whole = None if None in ratios else max(ratios)
  return {'time_ratio_to_unzip': whole, 'several_time_ratio_to_unzip': several_ratio, **report}


def _versus_unzip(
  files: list[pathlib.Path], knobs: recipes.UnpackBench, out: pathlib.Path
) -> dict[str, Any]:
  source = files[0] if len(files) == 1 else files[0].parent
  ours = [[sys.executable, *_UNPACK, '--archives', str(source), '--root', str(out)]]
  theirs = [['unzip', '-q', str(file), '-d', str(out)] for file in files]
  for file in files:  # both read from the page cache
    file.read_bytes()
  commands = {'ours': ours, 'unzip': theirs} if shutil.which('unzip') else {'ours': ours}
  seconds: dict[str, float] = {}
  for _, (name, lines) in itertools.product(range(knobs.repeats), commands.items()):
    shutil.rmtree(out, ignore_errors=True)
    taken = timed(lambda lines=lines: [_run(line) for line in lines])
    seconds[name] = min(taken, seconds.get(name, taken))
  shutil.rmtree(out, ignore_errors=True)
  ratio = seconds['ours'] / seconds['unzip'] if 'unzip' in seconds else None
  return {
    'time_ratio_to_unzip': ratio,
    'ours_seconds': seconds['ours'],
    'unzip_seconds': seconds.get('unzip'),
  }


# Materializing


def materialize(knobs: recipes.MaterializeBench, folder: pathlib.Path) -> dict[str, Any]:
  """Rows per second of our command, its start included, and how large the rows are; the media are
  not there and are reported so.
  """
  source, out = folder / 'parquet', folder / 'materialized'
  file = source / f'paravt_sft_bench_{fingerprint(to_dict(knobs))}.parquet'
  if not file.is_file():
    shutil.rmtree(source, ignore_errors=True)
    videos = lambda n: f'{bench_media.BUCKET}/{n // 20:06d}.mp4'
    rows = bench_media.mixed_rows(
      knobs.rows, knobs, videos, [f'{bench_media.BUCKET}/image.jpg'], 600.0, 0
    )
    bench_media.parquet(file, rows)
  shutil.rmtree(out, ignore_errors=True)
  root = folder / 'root'
  root.mkdir(exist_ok=True)
  command = [
    sys.executable,
    *_MATERIALIZE,
    '--root',
    str(root),
    '--parquet-dir',
    str(source),
    '--output-dir',
    str(out),
  ]
  seconds = timed(lambda: _run(command))
  count = pyarrow.parquet.read_metadata(out / file.name).num_rows
  text = sum(len(text) for text in pyarrow.parquet.read_table(file)['messages'].to_pylist())
  return {
    'rows_per_second': count / seconds,
    'rows': count,
    'seconds': seconds,
    'bytes_per_row': text / count,
  }


def _run(command: list[str]) -> None:
  """Raises DataError with the end of what a command that failed has said."""
  home = str(pathlib.Path(__file__).resolve().parents[2])
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join([home, os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep),
  }
  done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
  if done.returncode:
    raise DataError(
      f'bench: {json.dumps(command[:6])} ended with {done.returncode}: {done.stderr[-300:].strip()}'
    )

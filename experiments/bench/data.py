"""Suite `data`: packing, decoding beside decord, unpacking beside `unzip`, materializing, and how
long steps wait.
"""

import concurrent.futures
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet

from experiments.bench import input as bench_input
from experiments.bench import media as bench_media
from experiments.bench import recipe as recipes
from experiments.bench.generate import confined
from paravt_jax.errors import DataError
from paravt_jax.options import to_dict
from paravt_jax.orchestrator.options import VideoOptions
from paravt_jax.orchestrator.run_folder import fingerprint
from paravt_jax.types import Window
from paravt_jax.video import patches, sampling
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.readers import VideoInfo

_MATERIALIZE = ('-m', 'paravt_jax.data.materialize')
_UNPACK = ('-m', 'paravt_jax.data.unpack')
_DEADLINE_S = 300.0
Request = tuple[str, np.ndarray]  # a video, and the seconds wanted of it


def suite(recipe: recipes.BenchRecipe) -> dict[str, Any]:
  """{'packing_efficiency', 'decode', 'unpack', 'materialize', 'input_wait_share', ...}; see
  configs/bench.py.
  """
  knobs, folder = recipe.data, pathlib.Path(recipe.run.folder) / 'data'
  folder.mkdir(parents=True, exist_ok=True)
  with confined(recipe.threads):
    _say(f'packing: {knobs.packing.batches} batches of the stated mix')
    report: dict[str, Any] = {'packing_efficiency': bench_input.packing_efficiency(recipe, folder)}
    _say(f'a clip of {knobs.clip.seconds} s')
    clip = bench_media.clip(folder, knobs.clip)
    _say('decoding: our reader and decord take turns')
    report['decode'] = decode(knobs.decode, knobs.sft.video, clip, recipe.threads)
    _say('unpacking: ours and unzip take turns')
    report['unpack'] = unpack(knobs.unpack, folder) | {'threads': recipe.threads}
    _say(f'materializing {knobs.materialize.rows} rows')
    report['materialize'] = materialize(knobs.materialize, folder)
    return report | bench_input.measure(recipe, folder, clip, _say)


def _say(text: str) -> None:
  print(f'bench: {text}', file=sys.stderr, flush=True)


# Decoding


def decode(
  knobs: recipes.DecodeBench, video: VideoOptions, clip: pathlib.Path, workers: int
) -> dict[str, Any]:
  """Frames per second of our reader and of decord, and the ratio, on overviews, on windows, and on
  both together.

  decord is asked twice: behind our pool's protocol, and plainly (a thread per worker, get_batch,
  the same resize); the faster counts. All get the same file, times, sizes and number of workers;
  turns alternate and the best one of each counts.
  """
  seconds: dict[tuple[str, str], float] = {}
  with (
    DecodePool(workers, _DEADLINE_S, 'pyav') as ours,
    DecodePool(workers, _DEADLINE_S, 'decord') as theirs,
  ):
    info = ours.probe_sync(str(clip))
    size = patches.target_size(info.height, info.width, video.min_pixels, video.max_pixels)
    requests = _requests(knobs, clip, info)

    def ask_ours(request: Request) -> Any:
      path, times = request
      return ours.frames_sync(path, times, video.min_pixels, video.max_pixels)

    def ask_theirs(request: Request) -> Any:
      path, times = request
      return theirs.frames_sync(path, times, video.min_pixels, video.max_pixels)

    def ask_decord(request: Request) -> Any:
      path, times = request
      return _plain_decord(path, times, size)

    asked = {'ours': ask_ours, 'decord_pool': ask_theirs, 'decord': ask_decord}
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
      for who in asked.values():
        list(threads.map(who, [(str(clip), np.zeros(1))] * 2 * workers))  # starts the processes
      for _, (who, ask), (kind, wanted) in itertools.product(
        range(knobs.repeats), asked.items(), requests.items()
      ):
        taken = _timed(lambda ask=ask, wanted=wanted: list(threads.map(ask, wanted)))
        seconds[who, kind] = min(taken, seconds.get((who, kind), taken))
  counts = {kind: sum(len(times) for _, times in wanted) for kind, wanted in requests.items()}
  return _versus_decord(counts, seconds) | {'workers': workers}


def _versus_decord(
  counts: Mapping[str, int], seconds: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
  """Rates and ratios of {kind: frames} and {(who, kind): seconds}, over all kinds and for each."""
  report = _rates(
    {who: (sum(counts.values()), sum(seconds[who, kind] for kind in counts)) for who, _ in seconds}
  )
  return report | {
    kind: _rates({who: (counts[kind], seconds[who, kind]) for who, _ in seconds}) for kind in counts
  }


def _rates(taken: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
  """{who: (frames, seconds)} as frames per second, and how much faster we are than the faster of
  the others.
  """
  rates = {who: frames / seconds for who, (frames, seconds) in taken.items()}
  ratio = rates['ours'] / max(rate for who, rate in rates.items() if who != 'ours')
  return {
    'frames_per_second_ratio_to_decord': ratio,
    **{f'{who}_frames_per_second': rate for who, rate in rates.items()},
  }


def _requests(
  knobs: recipes.DecodeBench, clip: pathlib.Path, info: VideoInfo
) -> dict[str, list[Request]]:
  """Overviews of the whole video, and windows as a sub-agent sees them, each at a place of its
  own.
  """
  fps, duration = info.fps, info.duration
  overview = sampling.budget_times(duration, knobs.overview_frames, fps)
  starts = np.linspace(0, duration - knobs.window_seconds - 1, knobs.windows).tolist()
  windows = [Window(start, start + knobs.window_seconds, knobs.window_frames) for start in starts]
  return {
    'overview': [(str(clip), overview - 0.5 * n / fps) for n in range(knobs.overviews)],
    'window': [
      (str(clip), sampling.window_times(window, fps=1.0, min_frames=2, max_frames=64))
      for window in windows
    ],
  }


def _plain_decord(path: str, times: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """What one writes with decord: indices from times, one get_batch; then our resize."""
  # here and not above: loaded before PyAV, its FFmpeg takes the place of PyAV's codecs (VP9 no
  # longer encodes)
  import decord

  reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
  indices = np.clip(np.floor(times * reader.get_avg_fps() + 1e-6), 0, len(reader) - 1).astype(int)
  return patches.resize(reader.get_batch(indices.tolist()).asnumpy(), size)


# Unpacking


def unpack(knobs: recipes.UnpackBench, folder: pathlib.Path) -> dict[str, Any]:
  """Seconds of our command over those of `unzip -q`: on one archive (the worse of small files and
  large ones), and on several.

  Both are commands, started anew into an empty folder; turns alternate and the best one of each
  counts. The ratios are null without `unzip`.
  """
  if shutil.which('unzip') is None:
    _say(
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
    taken = _timed(lambda lines=lines: [_run(line) for line in lines])
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
  seconds = _timed(lambda: _run(command))
  count = pyarrow.parquet.read_metadata(out / file.name).num_rows
  text = sum(len(text) for text in pyarrow.parquet.read_table(file)['messages'].to_pylist())
  return {
    'rows_per_second': count / seconds,
    'rows': count,
    'seconds': seconds,
    'bytes_per_row': text / count,
  }


def _timed(work: Callable[[], Any]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


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

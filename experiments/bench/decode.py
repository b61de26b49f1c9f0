"""Frames per second of our reader and of decord, in turns, on one clip."""

import concurrent.futures
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.bench.measuring import timed
from experiments.bench.recipe import DecodeBench
from paravt_jax.orchestrator.options import VideoOptions
from paravt_jax.types import Window
from paravt_jax.video import patches, sampling
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.readers import VideoInfo

_DEADLINE_S = 300.0
Request = tuple[str, np.ndarray]  # a video, and the seconds wanted of it


def measure(
  knobs: DecodeBench, video: VideoOptions, clip: pathlib.Path, workers: int
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
        taken = timed(lambda ask=ask, wanted=wanted: list(threads.map(ask, wanted)))
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


def _requests(knobs: DecodeBench, clip: pathlib.Path, info: VideoInfo) -> dict[str, list[Request]]:
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

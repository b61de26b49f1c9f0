"""Chooses the times (seconds) at which frames are sampled.

The functions are pure. The decoder later maps each time to a real frame.
"""

from collections.abc import Sequence

import numpy as np

from paravt_jax import seeds
from paravt_jax.errors import ConfigError
from paravt_jax.types import Clip, Window


def draw_budget(seed: int, task_id: str, epoch: int, choices: Sequence[int]) -> int:
  """Returns the overview budget K of a prompt, drawn uniformly from `choices`.

  K depends only on (seed, task id, epoch). Every rollout of the group and every process on every
  machine draws the same K. With a single choice, K is constant.

  Raises:
    ConfigError: no choices, or one below 1.
  """
  if not choices or min(choices) < 1:
    raise ConfigError(
      f'frame budgets: got {tuple(choices)!r}, wanted integers >= 1; set them in the recipe'
    )
  return int(choices[seeds.at(seed, 'frames', task_id, epoch) % len(choices)])


def available(duration: float, fps: float) -> int:
  """Returns the number of frames of a video: round(duration * fps), at least 1."""
  return max(1, round(duration * fps))


def budget_times(duration: float, budget: int, fps: float) -> np.ndarray:
  """Returns the times of an overview of `budget` frames: the centers of equal parts of the video.

  Args:
    duration: of the video, seconds.
    budget: K, frames wanted.
    fps: average frame rate; round(duration * fps) frames are available. The rate never overrides
      the budget.

  Returns:
    float64[min(K, frames available)], strictly increasing seconds. At a constant frame rate each
    time selects a different frame.

  Raises:
    ValueError: duration, budget or fps is not positive.
  """
  if not (duration > 0 and budget > 0 and fps > 0):
    raise ValueError(
      f'budget_times: got duration={duration}, budget={budget}, fps={fps}, wanted all three '
      'positive'
    )
  count = min(int(budget), available(duration, fps))
  return (np.arange(count) + 0.5) * (duration / count)


def overview_times(duration: float, budget: int, fps: float) -> np.ndarray:
  """Returns exactly `budget` times for an overview, unlike `budget_times`.

  A short video may have a varying frame rate (slides); the extra times make sure that no frame is
  missed. `once` then removes repeated frames. At a constant rate min(K, available) frames remain.

  Raises: as `budget_times`.
  """
  times = budget_times(duration, budget, fps)
  if len(times) == budget:
    return times
  return (np.arange(int(budget)) + 0.5) * (duration / int(budget))


def once(clip: Clip, times: Sequence[float] | np.ndarray, since: float = 0.0) -> tuple[Clip, int]:
  """Removes repeated frames from a clip decoded at `times`.

  Returns:
    (clip, repeats removed). Each frame keeps its first label.

  The frame on screen at the start of a window began before the window. Its label would be before
  `since`, the window's start, so the requested time replaces it.
  """
  # labels [N] inside the window, then the first index of each distinct frame
  labels = np.where(clip.seconds < since, np.minimum(times, clip.duration), clip.seconds)
  _, first = np.unique(clip.own, return_index=True)
  first = np.sort(first)
  repeated = len(clip.own) - len(first)
  frames = clip.frames[first] if repeated else clip.frames
  return Clip(frames, labels[first], clip.duration, clip.own[first]), repeated


def window_times(window: Window, *, fps: float, min_frames: int, max_frames: int) -> np.ndarray:
  """Returns times inside a window: start, start + 1/fps, ... <= end.

  More than `max_frames` times are thinned evenly; fewer than `min_frames` are replaced by
  `min_frames` evenly spaced times. If `window.num_frames` is set, it replaces the rate: that many
  evenly spaced times from start to end, clamped to [min_frames, max_frames].

  Returns:
    float64[n], min_frames <= n <= max_frames, strictly increasing seconds within [start, end]; the
    first one is start.

  Raises:
    ValueError: start >= end, or 1 <= min_frames <= max_frames and fps > 0 do not hold.
  """
  if not (window.start < window.end and fps > 0 and 1 <= min_frames <= max_frames):
    raise ValueError(
      f'window_times: got {window}, fps={fps}, frames {min_frames}..{max_frames}, '
      'wanted start < end, fps > 0 and 1 <= min <= max'
    )
  span = window.end - window.start
  at_rate = int(np.floor(span * fps + 1e-9)) + 1
  if window.num_frames is not None:
    return _spread(window, min(max(window.num_frames, min_frames), max_frames))
  if at_rate < min_frames:
    return _spread(window, min_frames)
  steps = (
    np.arange(at_rate) if at_rate <= max_frames else np.linspace(0, at_rate - 1, max_frames).round()
  )
  return np.minimum(window.start + steps / fps, window.end)


def _spread(window: Window, count: int) -> np.ndarray:
  """Returns float64[count], evenly spaced from start to end; a single time is start."""
  return np.linspace(window.start, window.end, count)

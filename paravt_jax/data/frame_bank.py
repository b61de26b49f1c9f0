"""Keeps the frames of a small set of videos in memory."""

import asyncio
import collections
import threading
from collections.abc import Sequence

import numpy as np

from paravt_jax.data import sft
from paravt_jax.types import Clip
from paravt_jax.video.readers import VideoInfo


class FrameBank:
  """Frames in memory, decoded once: every `step` seconds of each video, starting at t = 0.

  Requests for other times go to the decoder. It can replace DecodePool, and FrameStore in rollouts.
  Thread-safe.
  """

  def __init__(self, frames: sft.Frames, step: float, min_pixels: int, max_pixels: int):
    self._frames, self._step, self._pixels = frames, step, (min_pixels, max_pixels)
    self._clips: dict[str, Clip] = {}
    self._infos: dict[str, VideoInfo] = {}
    self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)

  @property
  def bytes(self) -> int:
    """Returns the number of bytes of all pixels in memory."""
    return sum(clip.frames.nbytes for clip in self._clips.values())

  def probe_sync(self, path: str) -> VideoInfo:
    """Like DecodePool.probe_sync, but calls it once per video."""
    if path not in self._infos:
      self._infos[path] = self._frames.probe_sync(path)
    return self._infos[path]

  def load(self, path: str) -> None:
    """Decodes the grid of a video unless it is in memory. Raises MediaError."""
    with self._locks[path]:
      if path not in self._clips:
        times = np.arange(0, self.probe_sync(path).duration - 1e-6, self._step)
        self._clips[path] = self._frames.frames_sync(path, times.tolist(), *self._pixels)

  def frames_sync(
    self, path: str, seconds: Sequence[float], min_pixels: int, max_pixels: int
  ) -> Clip:
    """Like DecodePool.frames_sync."""
    # [n] indices on the grid; other times or sizes go to the decoder
    index = np.asarray(seconds) / self._step
    whole = np.round(index).astype(int)
    if (min_pixels, max_pixels) != self._pixels or np.abs(index - whole).max() > 1e-6:
      return self._frames.frames_sync(path, seconds, min_pixels, max_pixels)
    self.load(path)
    clip = self._clips[path]
    if whole.max() >= len(clip.frames):
      return self._frames.frames_sync(path, seconds, min_pixels, max_pixels)
    own = clip.seconds if clip.own is None else clip.own
    return Clip(clip.frames[whole], clip.seconds[whole], clip.duration, own[whole])

  async def frames(
    self, path: str, seconds: Sequence[float], min_pixels: int, max_pixels: int
  ) -> Clip:
    """Like frames_sync, in a thread, without blocking the event loop."""
    return await asyncio.to_thread(self.frames_sync, path, seconds, min_pixels, max_pixels)

  async def probe(self, path: str) -> VideoInfo:
    """Like probe_sync, in a thread, without blocking the event loop."""
    return await asyncio.to_thread(self.probe_sync, path)
